"""A run directory is read for people: streamed, as far as it got, and left as it is."""

import json
import shutil

import pytest

from fate_trl.errors import LedgerError, RecipeError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.report.reading import Run


def test_policies_are_the_rows_of_the_metrics(scripted_folder):
    run = Run.open(scripted_folder)
    assert list(run.rounds) == [0, 1, 2]
    assert [policy.name for policy in run.policies][:3] == ["base", "round-1", "round-2"]
    assert {policy.name for policy in run.policies if policy.scripted} == {"oracle", "do-nothing", "refuse-all", "obey"}
    measured = {(policy.round, split, policy.name) for policy in run.policies for split in policy.stages}
    assert measured == {(row["round"], row["split"], row["policy"]) for row in run.rows}
    assert run.policy("base").round == 0
    with pytest.raises(RecipeError, match=r"'round-9'; it has: base, round-1"):
        run.policy("round-9")


def test_the_default_policy_is_the_last_accepted_one(scripted_copy):
    assert Run.open(scripted_copy).policy().name == "round-2"
    stages = scripted_copy / "rounds/02/stages.jsonl"
    stages.write_text(stages.read_text().replace('"accepted":true', '"accepted":false'))
    assert Run.open(scripted_copy).policy().name == "round-1"
    assert Run.open(scripted_copy).rounds[2].accepted is False


def test_cases_are_those_of_the_ledger(scripted_folder):
    run, ledger = Run.open(scripted_folder), RunDirectory(scripted_folder)
    for round, stage in [(0, "eval-test"), (1, "collect"), (2, "eval-validation")]:
        assert list(run.cases(round, stage)) == ledger.cases(f"rounds/{round:02d}/rollouts.jsonl", stage)
    assert list(run.cases(1, "repair")) == ledger.cases("rounds/01/repairs.jsonl", "repair")
    whole, bare = next(run.cases(1, "collect")), next(run.cases(1, "collect", text=False))
    assert bare[1] == whole[1]
    assert (bare[0].task.id, bare[0].calls, bare[0].outcome) == (whole[0].task.id, whole[0].calls, whole[0].outcome)
    assert bare[0].messages == bare[0].task.messages == ()


def test_what_is_half_written_is_passed_over_and_left_alone(scripted_copy):
    file = scripted_copy / "rounds/01/rollouts.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-2]) + lines[-2][:50])
    before = file.read_bytes()
    last = json.loads(lines[-1])
    left = sum((r["stage"], r["chunk"]) != (last["stage"], last["chunk"]) for r in map(json.loads, lines))
    assert len(list(Run.open(scripted_copy).records(1, "rollouts"))) == left
    assert file.read_bytes() == before


def test_a_run_that_has_just_begun_is_empty(scripted_copy):
    shutil.rmtree(scripted_copy / "rounds")
    (scripted_copy / "metrics.json").unlink()
    run = Run.open(scripted_copy)
    assert (run.rounds, run.rows, run.policies, run.manifest) == ({}, [], [], {})
    assert list(run.records(1, "rollouts")) == []


def test_what_cannot_be_read_says_so(scripted_copy):
    with pytest.raises(LedgerError, match=r"is no run directory"):
        Run.open(scripted_copy / "rounds")
    stages = scripted_copy / "rounds/01/stages.jsonl"
    for text in ("[]\n", "{broken\n"):
        stages.write_text(text)
        with pytest.raises(LedgerError, match=r"stages\.jsonl, line 1 is damaged"):
            Run.open(scripted_copy)
    (scripted_copy / "metrics.json").write_text("{")
    with pytest.raises(LedgerError, match="damaged"):
        Run.open(scripted_copy)
