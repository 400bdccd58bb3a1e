"""Damage that no kill leaves: it is named, put aside, and what lacks it is redone; nothing else is lost."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
from case import case
from chaos import makers
from chaos.campaign import results
from typer.testing import CliRunner

from fate_trl import metrics
from fate_trl.cli import app
from fate_trl.errors import LedgerError
from fate_trl.ledger import fsck
from fate_trl.ledger.writing import RunDirectory
from fate_trl.recipe.loading import make_recipe
from fate_trl.types import TRAINING


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished scripted run, and how to make the evolution that goes on with it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "rows", metrics.rows)  # the maker replaces it
        make = makers.scripted()
        make(path)()
    RunDirectory(path).write_text("recipe.yaml", make_recipe(makers.SCRIPTED).dump())
    return path, make


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "rows", metrics.rows)
    shutil.copytree(finished[0], tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def change(run, name, number, line):
    file = run.path / name
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number - 1 : number] = [line] if line is not None else []
    file.write_bytes(b"".join(lines))


DAMAGES = {
    "garbage in a collected chunk": ("rounds/01/rollouts.jsonl", 3, b"gar\xffbage\n"),
    "a line of a repair cut short": ("rounds/02/repairs.jsonl", 2, b'{"chunk": 0, "of": 5\n'),
    "a record of another shape": ("rounds/01/repairs.jsonl", 1, b'{"chunk": 0, "of": 5, "stage": "repair"}\n'),
    "a line taken out by hand": ("rounds/00/rollouts.jsonl", 2, None),
    "an evaluation": ("rounds/02/rollouts.jsonl", -1, b"\n"),
    "a selection": ("rounds/01/selections.jsonl", 1, b"{\n"),
    "a row of the buffer": ("rounds/01/buffer.jsonl", 1, b"[]\n"),
    "a finished stage": ("rounds/01/stages.jsonl", 2, b"7\n"),
    "a finished training stage": ("rounds/02/stages.jsonl", 4, b"\n"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_put_aside_and_redone(finished, run, name):
    file, number, line = DAMAGES[name]
    lines = (run.path / file).read_bytes().splitlines(keepends=True)
    change(run, file, number if number > 0 else len(lines), line)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    (found,) = fsck.examine(run)
    assert found.file == file
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert after == before, "looking changes nothing"
    assert fsck.repair(run) == [found]
    assert fsck.examine(run) == []
    aside = run.path / f"{file}.damaged"
    kept = (aside.read_bytes() if aside.exists() else b"") + (run.path / file).read_bytes()
    intact = [text for n, text in enumerate(lines, 1) if n != (number if number > 0 else len(lines))]
    assert all(text in kept for text in intact), "no good record is lost"
    finished[1](run.path)()
    wanted, got = results(finished[0]), results(run.path)
    assert {key for key in got if key not in wanted} <= {
        f"{file}.damaged",
        *(k for k in got if k.endswith("stages.jsonl.damaged")),
    }
    for key in wanted:
        if key.endswith("stages.jsonl"):
            assert sorted(json.loads(got[key])) == sorted(json.loads(wanted[key]))
        elif key.endswith(".jsonl"):
            assert sorted(got[key].splitlines()) == sorted(wanted[key].splitlines()), key
        else:
            assert got[key] == wanted[key], key


def test_a_stage_with_fewer_records_than_it_counted_is_not_read_as_if_whole(finished, run):
    file = run.path / "rounds/01/rollouts.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    last = json.loads(lines[-1])
    file.write_bytes(b"".join(lines[: -last["of"]]))
    with pytest.raises(LedgerError, match=r"of the \d+ trajectories of eval-test are there.*fsck"):
        finished[1](run.path)()


def test_a_policy_that_is_cut_short_is_trained_again(run, tmp_path):
    weights = run.path / "rounds/01/policy/model.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    weights.write_bytes(struct.pack("<Q", len(header)) + header + b"12345678")
    assert fsck.whole(weights)
    assert fsck.examine(run) == []
    weights.write_bytes(weights.read_bytes()[:-3])
    (found,) = fsck.repair(run)
    assert (found.file, found.again) == ("rounds/01/policy", {*TRAINING, "merge", "save"})
    assert (run.path / "rounds/01/policy.damaged").is_dir()
    done = {record["stage"] for record in run.read("rounds/01/stages.jsonl")}
    assert not done & {"sft", "pfpo", "save", "accept"}
    assert {"collect", "repair", "eval-test"} <= done


def test_small_files(run):
    run.write_json("manifest.json", {"recipe": makers.SCRIPTED})
    (run.path / "metrics.json").write_text("{")
    (run.path / "recipe.yaml").write_text("rounds: [")
    runner = CliRunner()
    shown = runner.invoke(app, ["fsck", str(run.path)])
    assert shown.exit_code == 1
    assert "metrics.json: no JSON" in shown.output
    assert "recipe.yaml" in shown.output
    assert "--repair" in shown.output
    assert runner.invoke(app, ["fsck", str(run.path), "--repair"]).exit_code == 0
    assert "rounds: 2" in (run.path / "recipe.yaml").read_text()
    assert (run.path / "recipe.yaml.damaged").read_text() == "rounds: ["
    assert "no damage" in runner.invoke(app, ["fsck", str(run.path)]).output


def test_a_recipe_that_nobody_has_is_said_so(run):
    (run.path / "recipe.yaml").unlink()
    with pytest.raises(LedgerError, match="put the recipe there"):
        fsck.repair(run)


def test_what_is_no_run(tmp_path):
    with pytest.raises(LedgerError, match="no run directory"):
        CliRunner().invoke(app, ["fsck", str(tmp_path)], standalone_mode=False, catch_exceptions=False)


@case(
    "runs and reports",
    "the last line of a finished round's rollouts cut in half, then fsck --repair",
    "the whole file was put aside; a second fsck found more damage, and the run could not be resumed",
    "the torn end alone goes; its stage is done again, nothing else",
)
def test_a_torn_end_of_a_finished_stage_takes_nothing_else_with_it(finished, run):
    file = run.path / "rounds/01/rollouts.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    (found,) = fsck.examine(run)
    assert len(found.again) == 1
    assert fsck.repair(run) == [found]
    assert fsck.examine(run) == []
    assert file.read_bytes() == whole[:-20], "whoever writes next cuts it"
    done = {json.loads(line)["stage"] for line in (run.path / "rounds/01/stages.jsonl").read_text().splitlines()}
    assert "collect" in done
    assert not found.again & done


def test_a_recipe_that_is_gone_is_told_with_where_it_comes_from(run):
    (run.path / "recipe.yaml").unlink()
    (found,) = fsck.examine(run)
    assert (found.file, found.reason) == ("recipe.yaml", "it is gone; manifest.json has none either")
    run.write_json("manifest.json", {"recipe": {"suites": ["workbench"]}})
    (found,) = fsck.examine(run)
    assert found.reason == "it is gone; --repair restores it from manifest.json"
    assert fsck.repair(run) == [found]
    assert fsck.examine(run) == []


def test_records_of_others_have_no_recipe_to_be_gone(run):
    (run.path / "recipe.yaml").unlink()
    run.write_json("manifest.json", {"imported": ["failures.jsonl"]})
    assert fsck.examine(run) == []


@pytest.mark.parametrize("round", ["", "/01"])
def test_rounds_that_are_gone_are_damage(finished, run, round):
    before = results(run.path)
    run.write_json("metrics.json", {"rows": [{"round": number} for number in (0, 1, 2)]})
    shutil.rmtree(run.path / f"rounds{round}")
    gone = ["rounds/00", "rounds/01", "rounds/02"] if not round else ["rounds/01"]
    assert [found.file for found in fsck.repair(run)] == gone
    if not round:
        finished[1](run.path)()
        assert results(run.path) == before
        assert fsck.examine(run) == []
