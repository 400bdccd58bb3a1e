"""The last policies of learning.py's runs, ready to be asked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.learning import kept
from benchmarks.learning_methods import Json, Method
from fate_trl.hookspecs import Suite
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.rounds import Evolution
from fate_trl.loop.tasks import sample_tasks
from fate_trl.recipe.loading import make_recipe
from fate_trl.types import Case, RolloutRequest, Task, Trajectory
from fate_trl.verify.scoring import score_all


@dataclass(frozen=True)
class Kept:
    """The last policy of a run; `path` is None for the one before training."""

    method: str
    seed: int
    recipe: Json
    path: Path | None


def kept_policies(values: Json, methods: Mapping[str, Method], seeds: Sequence[int], runs: str) -> Iterator[Kept]:
    """The untrained policy, once per seed, and every method's last one, of the seeds on which all are finished."""
    seen: set[int] = set()
    for job, result in kept(values, methods, seeds, runs):
        if job.seed not in seen:
            yield Kept("untrained", job.seed, job.recipe, None)
            seen.add(job.seed)
        path = job.folder / "policy"
        yield Kept(result["method"], job.seed, job.recipe, path if path.is_dir() else None)


@dataclass
class Player:
    """A policy in its suites: rolls requests out, and scores them."""

    evolution: Evolution

    @property
    def suites(self) -> Mapping[str, Suite]:
        return self.evolution.suites

    def tasks(
        self, count: int | None, seed: int, where: Callable[[Task], bool] = lambda task: True, split: str = "test"
    ) -> list[Task]:
        """Tasks of a split, drawn by a seed."""
        found = [task for task in self.evolution.tasks(split) if where(task)]
        return sample_tasks(found, count, np.random.default_rng(seed))

    def play(self, tasks: Sequence[Task], seed: int) -> list[Trajectory]:
        """One try of each task, in order; a task may come more than once."""
        chunk, out = self.evolution.recipe.rollout.chunk, []
        for start in range(0, len(tasks), chunk):
            part = [RolloutRequest(task, task.messages, "", start + n) for n, task in enumerate(tasks[start:][:chunk])]
            out += self.evolution.learner.rollout(part, seed + start)
        return out

    def score(self, trajectories: Sequence[Trajectory]) -> list[Case]:
        cards = score_all(self.evolution.verifiers, trajectories)
        return list(zip(trajectories, cards, strict=True))


@contextmanager
def opened(recipe: Json, policy: Path | None) -> Iterator[Player]:
    """The recipe's policy, or the one in a folder (an adapter or whole weights), as a run would open it.

    What it writes is removed.
    """
    from fate_trl.train.build import build
    from fate_trl.train.models import ADAPTER

    values: dict[str, Any] = copy.deepcopy(recipe) | {"rounds": 0, "token_budget": None, "warm_start": None}
    if policy is not None and (policy / ADAPTER).is_file():
        values["model"] |= {"adapter": str(policy)}
    elif policy is not None:
        values["model"] |= {"path": str(policy), "revision": None, "lora": None}
    with TemporaryDirectory() as folder:
        yield Player(build(make_recipe(values), RunDirectory(Path(folder))))
