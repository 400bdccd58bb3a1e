"""Faults of the disk, of the run directory, and of what there is to work on: a clear stop, and then on."""

from __future__ import annotations

import json
from pathlib import Path

from disk import file_size

from fate_trl.errors import LedgerError
from fate_trl.ledger import fsck
from fate_trl.ledger.writing import RunDirectory
from fate_trl.suites.scripted import perform
from fate_trl.types import Script

from . import RECIPE, Bench, Learner, Ran, fault, workbench

ROLLOUTS = "rounds/01/rollouts.jsonl"


def stops(ran: Ran, says: str) -> None:
    assert isinstance(ran.stopped, LedgerError), ran.stopped
    assert says in str(ran.stopped), ran.stopped


# ------------------------------------------------------------------------------------------------ the disk


@fault("disk", "full while records are written", "the run stops and names the file; resumed, it loses nothing")
def _(bench: Bench) -> Ran:
    with file_size(20_000):
        stops(bench.run(), ".jsonl: File too large")
    return bench.run().bears()


class Heavy(Learner):
    """Its policy is larger than the disk."""

    def save(self, path):
        super().save(path)
        (Path(path) / "weights").write_bytes(b"w" * 2_000_000)


@fault("disk", "full while a policy is saved", "the run stops and names the folder; resumed, it loses nothing")
def _(bench: Bench) -> Ran:
    with file_size(1_000_000):
        stops(bench.run(learner=Heavy), "rounds/00/base: File too large")
    assert list(bench.path.rglob("weights")) == []
    return bench.run(learner=Heavy).bears()


@fault("disk", "the output cannot be written to", "the run stops and names the place; resumed, it loses nothing")
def _(bench: Bench) -> Ran:
    bench.path.mkdir(parents=True)
    (bench.path / "rounds").write_text("not a folder")
    stops(bench.run(), "rounds/00/rollouts.jsonl")
    (bench.path / "rounds").unlink()
    return bench.run().bears()


# ------------------------------------------------------------------------------------------------ the run directory


def damaged(bench: Bench, file: str, change) -> Ran:
    """Run, damage a file, have that refused, mend it, and go on."""
    bench.run().bears()
    run = RunDirectory(bench.path)
    reopen(run)
    lines = (bench.path / file).read_bytes().splitlines(keepends=True)
    (bench.path / file).write_bytes(b"".join(change(lines)))
    try:
        refused = str(bench.run().stopped)
    except LedgerError as error:  # not only the run, but also what counts its records
        refused = str(error)
    assert file in refused, refused
    assert "fsck" in refused, refused
    run.write_text("recipe.yaml", "suites: [workbench]\n")
    assert [damage.file for damage in fsck.repair(run)] == [file]
    return bench.run().bears()


def reopen(run: RunDirectory) -> None:
    """Have the round entered again, as after a stop before its end."""
    records = [record for record in run.read("rounds/01/stages.jsonl") if record["stage"] != "accept"]
    run.write_text("rounds/01/stages.jsonl", "")
    run.append("rounds/01/stages.jsonl", records)


@fault("run directory", "a record damaged in the middle", "refused by file and line; mended, its chunk is done again")
def _(bench: Bench) -> Ran:
    return damaged(bench, ROLLOUTS, lambda lines: [lines[0], b"\x00garbage\n", *lines[2:]])


@fault("run directory", "a record taken out", "refused by file and line; mended, its chunk is done again")
def _(bench: Bench) -> Ran:
    return damaged(bench, ROLLOUTS, lambda lines: lines[1:])


@fault("run directory", "a record there twice", "refused by file and line; mended, its chunk is done again")
def _(bench: Bench) -> Ran:
    return damaged(bench, ROLLOUTS, lambda lines: [lines[0], *lines])


@fault("run directory", "a record of another shape", "refused by file and line; mended, its chunk is done again")
def _(bench: Bench) -> Ran:
    return damaged(bench, ROLLOUTS, lambda lines: [json.dumps({"n": 1}).encode() + b"\n", *lines[1:]])


@fault("run directory", "the end of a finished stage cut off", "refused; mended, what is missing is done again")
def _(bench: Bench) -> Ran:
    return damaged(bench, "rounds/01/repairs.jsonl", lambda lines: lines[: -json.loads(lines[-1])["of"]])


@fault(
    "run directory",
    "a finished stage's record damaged",
    "refused by file and line; mended, the stage is recorded again",
)
def _(bench: Bench) -> Ran:
    return damaged(bench, "rounds/01/stages.jsonl", lambda lines: [b"{\n", *lines[1:]])


@fault("run directory", "a torn last record", "cut off and done again, without a word")
def _(bench: Bench) -> Ran:
    bench.run().bears()
    records = (bench.path / ROLLOUTS).read_bytes()
    (bench.path / ROLLOUTS).write_bytes(records[:-40])
    run = RunDirectory(bench.path)
    done = [record for record in run.read("rounds/01/stages.jsonl") if record["stage"] not in ("accept", "eval-test")]
    run.write_text("rounds/01/stages.jsonl", "")
    run.append("rounds/01/stages.jsonl", done)
    ran = bench.run().bears()
    assert (bench.path / ROLLOUTS).read_bytes() == records
    return ran


# ------------------------------------------------------------------------------------------------ little to work on


class Mute(Learner):
    """A model that emits nothing."""

    def _one(self, request, role):
        return perform(self.suites[request.task.suite], request, Script(), self.name, self.limits)


@fault("policy", "emits nothing", "scored as failures; nothing is repaired, and the round is finished")
def _(bench: Bench) -> Ran:
    ran = bench.run(learner=Mute).bears()
    assert not any(card.resolved for _, card in ran.collected)
    assert (bench.path / "rounds/01/buffer.jsonl").read_bytes() == b""
    return ran


@fault("policy", "fails nowhere", "nothing to repair; the round is finished")
def _(bench: Bench) -> Ran:
    everything = frozenset(task.id for task in workbench().tasks("train"))
    ran = bench.run(learner=lambda suites, _: Learner(suites, everything)).bears()
    assert all(card.resolved for _, card in ran.collected)
    return ran


@fault("policy", "repairs nothing", "no rows, and the round is finished")
def _(bench: Bench) -> Ran:
    class Hopeless(Learner):
        def _role(self, request, seed):
            return "do-nothing" if request.stage == "repair" else super()._role(request, seed)

    ran = bench.run(learner=Hopeless).bears()
    assert any(card.failed for _, card in ran.collected)
    return ran


@fault("data", "a single task to train on", "the round is finished")
def _(bench: Bench) -> Ran:
    ran = bench.run(changes={"rollout": {**RECIPE["rollout"], "tasks": 1}}).bears()
    assert len(ran.collected) == 1
    return ran
