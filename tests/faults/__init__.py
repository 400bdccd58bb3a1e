"""The fault table: what a run must survive, injected into a real round, each fault a function of its own.

    @fault("tool", "raises", "the episode is closed, and excluded")
    def _(bench):
        return bench.run(execute=...)

A function in any file of this folder is a row: it injects the fault, runs the round, asserts what happened, and returns
the `Ran` of the run that finished. tests/test_faults.py tries every row, benchmarks/faults.py writes them to
docs/results/faults.{md,json}; lost and duplicated records are counted for all of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fate_trl import metrics, plugins
from fate_trl.errors import FateError
from fate_trl.ledger.layout import round_dir
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.rounds import Evolution
from fate_trl.recipe.loading import make_recipe
from fate_trl.recipe.schema import objectives_of
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.suites.workbench.suite import WorkbenchSuite
from fate_trl.types import Score, ScoreCard, Trajectory

SECONDS = 0.4
"""Limit on tools, episodes and verifiers where something hangs; on a busy machine anything may take a tenth of it."""

RECIPE = {
    "suites": [{"name": "workbench", "args": {"train": 9, "validation": 0, "test": 3}}],
    "rollout": {"chunk": 5},
    "repair": {"k": 2},
    "evaluation": {"baselines": False, "validation": 0},
    "rounds": 1,
}


@dataclass(frozen=True)
class Fault:
    """A row: where the fault sits, what is injected, what must come of it, and the function that tries it.

    `slow` rows take seconds; they are tried by `pytest -m slow` and by the benchmark.
    """

    area: str
    injected: str
    expected: str
    trial: Callable[[Bench], Ran]
    slow: bool = False

    @property
    def name(self) -> str:
        return f"{self.area}: {self.injected}"


FAULTS: list[Fault] = []


def fault(area: str, injected: str, expected: str, slow: bool = False) -> Callable[[Callable[[Bench], Ran]], None]:
    """Register a function of a `Bench` as a row of the table."""

    def register(trial: Callable[[Bench], Ran]) -> None:
        FAULTS.append(Fault(area, injected, expected, trial, slow))

    return register


def faults() -> list[Fault]:
    """Every row, of every file in this folder."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return FAULTS


# ------------------------------------------------------------------------------------------------ faulty parts


class Spoilt:
    """The workbench with some of its calls replaced on the bench's target tasks.

    Args:
        suite: The workbench.
        targets: Ids of the tasks to spoil.
        calls: By name: `open(task, open)`, `execute(episode, name, arguments)`, or `outcome(episode, calls, messages)`,
            with what they replace among their arguments.
    """

    def __init__(self, suite: WorkbenchSuite, targets: frozenset[str], calls: Mapping[str, Callable[..., Any]]):
        self.suite, self.targets, self.calls = suite, targets, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self.suite, name)

    def spoils(self, task: Any) -> bool:
        return task.id in self.targets

    def open(self, task: Any) -> Any:
        if not self.spoils(task):
            return self.suite.open(task)
        opened = self.calls["open"](task, self.suite.open) if "open" in self.calls else self.suite.open(task)
        return SpoiltEpisode(opened, self.calls) if opened is not None else None


class SpoiltEpisode:
    def __init__(self, episode: Any, calls: Mapping[str, Callable[..., Any]]):
        self.episode, self.calls = episode, calls

    def execute(self, name: str, arguments: Any) -> Any:
        if "execute" in self.calls:
            return self.calls["execute"](self.episode, name, arguments)
        return self.episode.execute(name, arguments)

    def outcome(self, calls: Any, messages: Any) -> Any:
        if "outcome" in self.calls:
            return self.calls["outcome"](self.episode, calls, messages)
        return self.episode.outcome(calls, messages)


class Learner(ScriptedLearner):
    """Plays the oracle on the targets, so that they call tools; on other tasks some tries fail and are repaired."""

    def __init__(self, suites: Mapping[str, Any], targets: frozenset[str]):
        super().__init__(suites)
        self.targets = targets

    def _role(self, request: Any, seed: int) -> Any:
        return "oracle" if request.task.id in self.targets else super()._role(request, seed)


class Watched(Evolution):
    """Writes down every record that was asked for: the key of each request, by its file."""

    asked: set[tuple[Any, ...]]

    def _roll(self, round, file, stage, requests, *more, **told):  # type: ignore[no-untyped-def]
        self.asked |= {(f"{round_dir(round)}/{file}.jsonl", stage, r.task.id, r.attempt) for r in requests}
        return super()._roll(round, file, stage, requests, *more, **told)


class Mine:
    """A verifier that gives every trajectory full marks, but asks `answer` about the targets."""

    objectives = ("mine",)

    def __init__(self, targets: frozenset[str], answer: Callable[[Trajectory], Any]):
        self.targets, self.answer = targets, answer

    def score(self, trajectories: Any) -> Any:
        good = {"mine": Score(1.0)}
        return [self.answer(t) if t.task.id in self.targets else good for t in trajectories]


# ------------------------------------------------------------------------------------------------ bench and result


@dataclass
class Ran:
    """What a round left behind.

    Attributes:
        cases: Recorded cases of every file and stage.
        rows: Rows of metrics.json; [] if the run was stopped.
        stopped: Why the run stopped, if it did.
        lost, duplicated: Records asked for and not there, and there twice.
    """

    cases: dict[tuple[str, str], list[tuple[Trajectory, ScoreCard]]]
    rows: list[dict[str, Any]]
    stopped: FateError | None
    lost: int
    duplicated: int

    @property
    def collected(self) -> list[tuple[Trajectory, ScoreCard]]:
        return self.cases.get(("rounds/01/rollouts.jsonl", "collect"), [])

    @property
    def causes(self) -> dict[str, int]:
        """Number of collected records by cause."""
        return metrics.causes(self.collected)

    def excludes(self, cause: str, targets: frozenset[str]) -> Ran:
        """Assert that exactly the targets were excluded, for this cause, and that nothing of it became a number."""
        assert self.stopped is None, self.stopped
        assert self.causes == {cause: len(targets)}, self.causes
        for trajectory, card in self.collected:
            hit = trajectory.task.id in targets
            assert bool(card.errors) == hit, trajectory.task.id
            assert all(card.scores[name].value is None for name in card.errors)
            assert all(card.errors.values()), "every error says why"
        return self

    def bears(self) -> Ran:
        """Assert that nothing was excluded."""
        assert self.stopped is None, self.stopped
        assert self.causes == {}, self.causes
        return self

    def __str__(self) -> str:
        if self.stopped is not None:
            return f"the run stopped: {str(self.stopped).splitlines()[0]}"
        cases = [case for found in self.cases.values() for case in found]
        excluded = ", ".join(f"{n} {cause}" for cause, n in metrics.causes(cases).items())
        return f"{len(cases)} records, excluded: {excluded or 'none'}; the round was finished"


@cache
def workbench() -> WorkbenchSuite:
    """The suite of every trial; its tasks are drawn once."""
    suite = WorkbenchSuite(**RECIPE["suites"][0]["args"])
    drawn = {split: suite.tasks(split, 0) for split in ("train", "validation", "test")}
    suite.tasks = lambda split, seed=0: drawn[split]  # type: ignore[method-assign]
    return suite


@dataclass
class Bench:
    """Where a fault is tried: one round of a scripted learner on the workbench, in a folder of its own.

    Attributes:
        path: The folder.
        targets: Two training tasks on which faults are injected, and which the learner solves by calling tools.
        asked: Every record asked for, over all runs in this folder.
    """

    path: Path
    targets: frozenset[str] = field(
        default_factory=lambda: frozenset(
            t.id for t in [t for t in workbench().tasks("train") if t.kind == "benign"][:2]
        )
    )
    asked: set[tuple[Any, ...]] = field(default_factory=set)

    def run(
        self,
        verifiers: tuple[Any, ...] = (),
        learner: Any = None,
        changes: Mapping[str, Any] | None = None,
        quick: bool = False,
        **calls: Callable[..., Any],
    ) -> Ran:
        """Run the round, or go on with it.

        Args:
            verifiers: More verifiers, besides the four.
            learner: Makes the learner from (suites, targets); `Learner` by default.
            changes: Keys of the recipe's sections to set.
            quick: Whether something hangs, so that the limit is short: that of `calls`, or else of verifiers.
            calls: What `Spoilt` replaces.
        """
        limits = {"tool_seconds" if calls else "verifier_seconds": SECONDS} if quick else {}
        sections = {key: {**RECIPE.get(key, {}), **value} for key, value in (changes or {}).items()}
        data = {**RECIPE, **sections}
        recipe = make_recipe({**data, "rollout": {**data["rollout"], **limits}})
        suites = {"workbench": Spoilt(workbench(), self.targets, calls)}
        judges = [*(plugins.load("verifier", ref.name, ref.args) for ref in recipe.verifiers), *verifiers]
        evolution = Watched(
            recipe=recipe,
            suites=suites,
            verifiers=judges,
            repair=plugins.load("repair", recipe.repair.strategy.name, recipe.repair.strategy.args),
            selector=plugins.load("selector", recipe.selector.name, recipe.selector.args),
            learner=(learner or Learner)(suites, self.targets),
            run=RunDirectory(self.path),
            objectives=[*objectives_of(recipe, judges)],
        )
        evolution.learner.limits = recipe.rollout.limits
        evolution.asked = self.asked
        rows, stopped = [], None
        try:
            rows = evolution()
        except FateError as error:
            stopped = error
        return self._ran(evolution.run, rows, stopped)

    def _ran(self, directory: RunDirectory, rows: list[dict[str, Any]], stopped: FateError | None) -> Ran:
        cases, found = {}, Counter()
        for name, stage in sorted({(name, stage) for name, stage, *_ in self.asked}):
            cases[name, stage] = directory.cases(name, stage)
            found.update((name, stage, t.task.id, t.attempt) for t, _ in cases[name, stage])
        return Ran(cases, rows, stopped, len(self.asked - set(found)), found.total() - len(found))

    def verifier(self, answer: Callable[[Trajectory], Any], **settings: Any) -> Ran:
        """Run the round with one more verifier, which asks `answer` about the targets."""
        return self.run(verifiers=(Mine(self.targets, answer),), **settings)
