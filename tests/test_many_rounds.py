"""A run of more than a hundred rounds is seen whole by everything that looks at a run."""

import json
import os
import shutil
from contextlib import contextmanager

import pytest
from case import case
from typer.testing import CliRunner

from fate_trl import interchange
from fate_trl.cli import app
from fate_trl.cli.card import write_cards
from fate_trl.ledger import fsck
from fate_trl.ledger.layout import file_of, round_dir, rounds_in
from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.report.reading import Run
from fate_trl.report.summary import summarise

ROUNDS = [98, 99, 100, 101]


@pytest.fixture
def long_run(scripted_copy):
    """A finished run whose second round is said to be each of `ROUNDS`."""
    first, second = (scripted_copy / round_dir(number) for number in (1, 2))
    rows = json.loads((scripted_copy / "metrics.json").read_text())["rows"]
    kept = [row for row in rows if row["round"] == 0]
    for number in ROUNDS:
        shutil.copytree(first, scripted_copy / round_dir(number))
        (scripted_copy / round_dir(number) / "policy").mkdir(exist_ok=True)
        (scripted_copy / round_dir(number) / "policy" / "skill.json").write_text("{}")
        kept += [{**row, "round": number, "policy": f"round-{number}"} for row in rows if row["round"] == 1]
    shutil.rmtree(first)
    shutil.rmtree(second)
    run = RunDirectory(scripted_copy)
    run.write_json("metrics.json", {"schema": 1, "rows": kept})
    packages = {"torch": "2", "transformers": "5", "trl": "1"}
    run.write_json(
        "manifest.json",
        {"recipe": run.recipe_values(), "suites": {}, "packages": packages, "fate_trl": "0", "python": "3"}
        | (run.read_json("manifest.json") or {}),
    )
    return run


LOOK = {
    "policy_folder": lambda run: run.policy_folder() == run.path / "rounds/101/policy",
    "report": lambda run: list(Run.open(run.path).rounds) == [0, *ROUNDS],
    "the report's last policy": lambda run: Run.open(run.path).policy().name == "round-101",
    "the summary": lambda run: "round-101" in json.dumps(summarise(Run.open(run.path))),
    "export": lambda run: {number for number, _ in interchange.run_cases(run.path)} == set(ROUNDS),
    "card": lambda run: "round-101" in _cards(run),
    "fsck": lambda run: _damaged(run, 100) == [file_of(100, "rollouts")],
    "fsck of a policy": lambda run: _emptied(run, 101) == ["rounds/101/policy"],
}


def _cards(run):
    write_cards(run, run.recipe())
    return (run.path / "rounds/101/policy/README.md").read_text()


def _damaged(run, number):
    file = run.path / file_of(number, "rollouts")
    file.write_bytes(b"garbage\n" + file.read_bytes())
    return [damage.file for damage in fsck.examine(run)]


def _emptied(run, number):
    (run.path / round_dir(number) / "policy/skill.json").unlink()
    return [damage.file for damage in fsck.examine(run)]


@pytest.mark.parametrize(
    "who",
    [
        pytest.param(
            who,
            marks=case(
                "runs and reports",
                f"rounds 98 to 101, and {who}",
                "rounds from 100 on were not seen, or sorted before the others",
                "all are seen, in their order",
            ),
        )
        for who in LOOK
    ],
)
def test_rounds_from_a_hundred_on_are_seen(long_run, who):
    assert LOOK[who](long_run)


def test_only_folders_of_rounds_are_rounds(tmp_path):
    for name in ("00", "01", "7", "007", "100", "0100", "1e2", "²", "01.damaged", ".01-x", "final"):
        (tmp_path / "rounds" / name).mkdir(parents=True)
    (tmp_path / "rounds/02").write_text("a file")
    assert rounds_in(tmp_path) == [0, 1, 100]
    assert rounds_in(tmp_path / "nowhere") == []


@contextmanager
def read_only(folder):
    """Within, this process is somebody who may read a folder and write nowhere near it."""
    if os.geteuid() != 0:
        pytest.skip("needs the right to become another user")
    closed = [place for place in folder.parents if not place.stat().st_mode & 0o001]
    modes = [(place, place.stat().st_mode) for place in [*closed, folder, *folder.rglob("*")]]
    for place, mode in modes:
        place.chmod(mode | 0o111 if place in closed else 0o555 if place.is_dir() else 0o444)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            (folder / "new").touch()
        yield
    finally:
        os.seteuid(0)
        for place, mode in modes:
            place.chmod(mode)


LOOKS = {
    "which policy it ends with": lambda run: RunReader.open(run).policy_folder(),
    "its trajectories": lambda run: RunReader.open(run).cases(file_of(1, "rollouts"), "collect"),
    "its damage": lambda run: not fsck.examine(RunReader.open(run)),
    "its policies": lambda run: CliRunner().invoke(app, ["compare", f"{run}@base", f"{run}"]).exit_code == 0,
    "its failures": lambda run: list(interchange.run_cases(run)),
    **{
        command: lambda run, command=command: CliRunner().invoke(app, [*command.split(), str(run)]).exit_code == 0
        for command in ("report --json", "fsck")
    },
}


@pytest.mark.parametrize("what", [*LOOKS])
@case(
    "runs and reports",
    "a run directory of somebody else, which may only be read",
    "`eval RUN`, `card` and `export` opened its lock, or cut its files",
    "it is read like one's own",
)
def test_a_run_is_read_by_somebody_who_may_not_write(scripted_copy, what):
    before = {file: file.read_bytes() for file in scripted_copy.rglob("*") if file.is_file()}
    with read_only(scripted_copy):
        assert LOOKS[what](scripted_copy)
    assert {file: file.read_bytes() for file in scripted_copy.rglob("*") if file.is_file()} == before
