"""A recipe's run on torch: its components loaded, its model loaded, ready to be called, on one process or several."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

import torch

from ..hookspecs import Suite
from ..ledger.layout import policy_folder
from ..ledger.writing import RunDirectory
from ..loop.assemble import assemble
from ..loop.counts import peak_memory
from ..loop.reporter import Reporter, Silent
from ..loop.rounds import Evolution
from ..process.stop import ECHO, SIGNALS
from ..process.team import Led, Team
from ..process.team import follow as follow_main
from ..recipe.components import Components, components_of
from ..recipe.schema import Recipe
from .learner import TrlLearner
from .processor import settled


def build(
    recipe: Recipe, run: RunDirectory, reporter: Reporter | None = None, components: Components | None = None
) -> Evolution:
    """A recipe's run on torch: its components loaded, its model loaded, ready to be called.

    Where a launcher started several processes, the main one calls this; the others call `follow`.
    """
    team = Team()
    recipe = settled(recipe, run.read_json("manifest.json") or {})
    team.agreed((recipe, run.path))
    evolution = _built(recipe, run, reporter or Silent(), team, components)
    if team.size > 1:
        evolution.learner = Led(evolution.learner, team)
        evolution.stop.echo = ECHO
    return evolution


def follow() -> None:
    """What every process but the main one does, from its start to its end."""
    for number in SIGNALS:  # they reach all processes, and the main one decides
        signal.signal(number, lambda *_: None)
    team = Team()
    recipe, path = team.agreed()
    follow_main(_built(recipe, RunDirectory(path), Silent(), team).learner, team)


def _built(
    recipe: Recipe, run: RunDirectory, told: Reporter, team: Team, components: Components | None = None
) -> Evolution:
    made = components or components_of(recipe)

    def learner_of(suites: Mapping[str, Suite], verifiers: list[Any], selector: Any) -> TrlLearner:
        return TrlLearner(
            recipe, suites, verifiers, selector, told, team, made.pair_loss, made.policy_loss, made.callbacks
        )

    evolution = assemble(recipe, run, learner_of, told, made)
    evolution.memory = lambda: {**_memory(), **learner.taken()}
    learner: Any = evolution.learner
    learner.stop = evolution.stop
    learner.keep_states_of({"chooser": evolution.selector, "repair": evolution.repair})
    learner.first_policy = lambda: policy_folder(run.path, 0)
    learner.tasks = [task for split in ("train", "validation", "test") for task in evolution.tasks(split)]
    return evolution


def _memory() -> dict[str, float]:
    """`peak_memory`, and what torch held at most on the busiest GPU since it was last asked."""
    gpus = range(torch.cuda.device_count())
    held = [torch.cuda.max_memory_allocated(gpu) / 2**20 for gpu in gpus]
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    return {**peak_memory(), **({"peak_gpu_memory_mb": max(held)} if held else {})}
