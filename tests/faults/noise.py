"""Everyday faults, all at once: a share of tool calls fail, a verifier raises now and then, and hangs now and then."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.loop.rounds import Evolution
from fate_trl.recipe.schema import Recipe
from fate_trl.suites.scripted import ScriptedLearner

from . import Spoilt

TOOLS, RAISES, HANGS = 0.05, 0.05, 0.02
"""Shares of tool calls that fail, and of trajectories on which one call of a verifier raises, or hangs."""

VERIFIER_SECONDS = 0.5


class Unreliable:
    """A verifier that raises on some trajectories and hangs on others, each time anew; else what it wraps."""

    def __init__(self, verifier: Any, rng: random.Random):
        self.objectives = verifier.objectives
        self._verifier, self._rng = verifier, rng

    def score(self, trajectories: Any) -> Any:
        for _ in trajectories:
            draw = self._rng.random()
            if draw < RAISES:
                raise ConnectionError("the judge is down")
            if draw < RAISES + HANGS:
                time.sleep(3 * VERIFIER_SECONDS)
        return self._verifier.score(trajectories)


def spoil(evolution: Evolution, seed: int) -> None:
    """Make the tools of every task, and the verifier of `utility`, unreliable."""
    rng = random.Random(seed)

    def execute(episode: Any, name: str, arguments: Any) -> Any:
        if rng.random() < TOOLS:
            raise OSError("the tool's server is down")
        return episode.execute(name, arguments)

    spoilt = {name: Everywhere(suite, frozenset(), {"execute": execute}) for name, suite in evolution.suites.items()}
    verifiers = [Unreliable(v, rng) if v.objectives == ("utility",) else v for v in evolution.verifiers]
    learner: Any = evolution.learner
    evolution.suites = learner.suites = spoilt
    evolution.verifiers = learner.verifiers = verifiers


class Everywhere(Spoilt):
    """Spoils every task."""

    def spoils(self, task: Any) -> bool:
        return True


def compared(recipe: Recipe, folder: Path, build: Callable[..., Evolution], seed: int = 0) -> dict[str, Any]:
    """`resolved` on the test split, after the last round, of a recipe's run without faults and with them."""
    found: dict[str, Any] = {}
    for name in ("clean", "noisy"):
        evolution = build(recipe, RunDirectory(folder / name))
        if name == "noisy":
            spoil(evolution, seed)
        start = time.perf_counter()
        rows = [row for row in evolution() if row["split"] == "test" and row["suite"] == row["kind"] == "all"]
        found[name] = {"seconds": time.perf_counter() - start, **_kept(rows[-1])}
    return found


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    errors = row["errors"]
    return {
        "resolved": row["metrics"]["resolved"],
        "excluded": errors.get("excluded", 0),
        "causes": errors.get("causes", {}),
    }


def scripted(recipe: Recipe, run: RunDirectory) -> Evolution:
    """A recipe's run with a learner that plays the oracle on most tasks."""
    return assemble(recipe, run, lambda suites, *_: ScriptedLearner(suites, skill=0.5, gain=0.1))


def agrees(found: Mapping[str, Any]) -> bool:
    """Whether `resolved` with faults lies within the interval that it has without."""
    clean, noisy = found["clean"]["resolved"], found["noisy"]["resolved"]
    return clean["low"] <= noisy["value"] <= clean["high"]


def recipe(sizes: Mapping[str, int], **sections: Any) -> dict[str, Any]:
    """The recipe of such a run: so many faults are more than the default error budget of 10 % bears."""
    return {
        "suites": [{"name": "workbench", "args": dict(sizes)}],
        "rollout": {"chunk": 16, "verifier_seconds": VERIFIER_SECONDS},
        "repair": {"k": 2},
        "evaluation": {"baselines": False, "max_error_rate": 0.4},
        **sections,
    }
