"""A run directory that an earlier version wrote, killed half way through a line of its second round.

tests/data/earlier_run is as that version left it: a scripted learner on a small workbench. Today's code reads it,
shows it, and goes on with it.
"""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fate_trl import interchange
from fate_trl.cli import app
from fate_trl.cli.card import write_cards
from fate_trl.ledger import fsck
from fate_trl.ledger.layout import file_of
from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.report.reading import Run
from fate_trl.suites.scripted import ScriptedLearner

EARLIER = Path(__file__).parent / "data/earlier_run"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(EARLIER, tmp_path / "run")


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def resumed(folder):
    run = RunDirectory(folder)
    with run.lock():
        return assemble(run.recipe(), run, lambda suites, *_: ScriptedLearner(suites, skill=0.3, gain=0.1))()


def test_it_is_read():
    before, run = contents(EARLIER), Run.open(EARLIER)
    assert (list(run.rounds), [policy.name for policy in run.policies][:2]) == ([0, 1, 2], ["base", "round-1"])
    assert run.rounds[1].accepted
    assert run.rounds[2].accepted is None
    assert {row["policy"] for row in run.rows} >= {"base", "round-1", "oracle"}
    reader = RunReader.open(EARLIER)
    assert reader.policy_folder() == EARLIER / "rounds/01/policy"
    for number, stages in ((number, reader.stages(number)) for number in reader.rounds):
        for name, stage in stages.items():
            if "trajectories" in stage:
                assert len(reader.cases(file_of(number, "rollouts"), name)) == stage["trajectories"]
    assert len(list(interchange.run_cases(EARLIER))) == 12
    assert contents(EARLIER) == before


def test_it_has_no_damage():
    assert fsck.examine(RunReader.open(EARLIER)) == []


@pytest.mark.parametrize("command", ["report", "view --export {out}", "export -o {out}.jsonl", "card -o {out}.md"])
def test_it_is_shown(copy, tmp_path, command):
    name, *options = command.format(out=tmp_path / "out").split()
    shown = CliRunner().invoke(app, [name, str(copy), *options])
    assert shown.exit_code == 0, shown.output
    assert (copy / "report.html").exists() == (name == "report")


def test_its_policies_are_compared(copy):
    shown = CliRunner().invoke(app, ["compare", f"{copy}@base", f"{copy}@round-1", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.output)


def test_it_is_gone_on_with(copy):
    before = contents(copy)
    rows = resumed(copy)
    after = contents(copy)
    assert {row["round"] for row in rows} == {0, 1, 2}
    torn = "rounds/02/rollouts.jsonl"
    assert not before[torn].endswith(b"\n")
    for name in (name for name in before if name.endswith(".jsonl")):
        whole = before[name][: before[name].rfind(b"\n") + 1]
        assert after[name].startswith(whole), f"{name}: what was recorded stays"
    assert fsck.examine(RunReader.open(copy)) == []
    assert Run.open(copy).rounds[2].accepted is not None
    assert resumed(copy) == rows, "nothing is done twice"
    assert contents(copy) == after
    write_cards(RunDirectory(copy), RunReader.open(copy).recipe())


def test_its_figures_are_what_they_were(copy):
    """What is measured anew from its records is what it wrote then, where a figure has its name still."""
    then = json.loads((EARLIER / "metrics.json").read_text())["rows"]
    now = {(row["round"], row["split"], row["suite"], row["kind"], row["policy"]): row for row in resumed(copy)}
    for row in then:
        fresh = now[row["round"], row["split"], row["suite"], row["kind"], row["policy"]]["metrics"]
        for name, metric in row["metrics"].items():
            if name in fresh:
                assert fresh[name]["value"] == pytest.approx(metric["value"], nan_ok=True), (row["policy"], name)
