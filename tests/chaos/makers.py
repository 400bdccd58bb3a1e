"""The runs that are killed: a scripted one of a second, without torch, and one that trains the embedded policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fate_trl import metrics
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.loop.rounds import Evolution
from fate_trl.recipe.loading import load_recipe, make_recipe
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.suites.workbench.suite import WorkbenchSuite

SCRIPTED = {
    "suites": [{"name": "workbench", "args": {"train": 9, "validation": 6, "test": 6}}],
    "rollout": {"chunk": 5},
    "repair": {"k": 2},
    "warm_start": {"traces": 6},
    "evaluation": {"baselines": False},
    "rounds": 2,
}

EMBEDDED = [
    "rounds=1",
    "rollout.tasks=12",
    "rollout.chunk=6",
    "rollout.max_completion_length=40",
    "repair.k=2",
    "evaluation.tasks=3",
    "evaluation.validation=3",
    "evaluation.baselines=false",
    "sft.per_device_train_batch_size=4",
    "sft.max_steps=3",
    "sft.save_steps=1",
    "pfpo.per_device_train_batch_size=8",
    "pfpo.max_steps=4",
    "pfpo.num_iterations=2",
    "pfpo.save_steps=1",
]
"""The quickstart, shrunk; every stage writes as many checkpoints as it can."""


def scripted() -> Callable[[Path], Evolution]:
    recipe = make_recipe(SCRIPTED)
    suite = WorkbenchSuite(**recipe.suites[0].args)
    drawn = {split: suite.tasks(split, recipe.seed) for split in ("train", "validation", "test")}

    def make(run: Path) -> Evolution:
        metrics.rows = lambda *_, **__: []  # in the process to be killed; half of its time, and not what is tested
        evolution = assemble(
            recipe,
            RunDirectory(run),
            lambda suites, *_: ScriptedLearner(suites, skill=0.2, repair_skill=0.9, gain=0.1),
        )
        evolution._tasks = drawn
        return evolution

    return make


def embedded() -> Callable[[Path], Evolution]:
    from fate_trl.train.build import build  # once, before the processes are forked

    def make(run: Path) -> Evolution:
        metrics.rows = lambda *_, **__: []
        return build(load_recipe("quickstart", EMBEDDED), RunDirectory(run))

    return make
