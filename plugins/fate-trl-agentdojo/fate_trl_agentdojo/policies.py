"""A rule set per suite, as whoever deploys such an assistant could write it down: see `rules/*.yaml`.

They were written from the tools, the places where outsiders can write, and the user tasks of the training and
validation splits, knowing the benchmark in outline. One rule (travel's one-email) came after a first measurement on
these splits; nothing was changed after the test split was measured. docs/results/rules.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import yaml

from fate_trl import Rule, Rules, Score, Trajectory


@cache
def rules_of(suite: str) -> tuple[Rule, ...]:
    """The rules of "banking", "slack", "travel" or "workspace"."""
    text = files(__package__).joinpath("rules", f"{suite}.yaml").read_text(encoding="utf-8")
    return tuple(Rule(**rule) for rule in yaml.safe_load(text))


class SuiteRules:
    """A verifier: `rules` with the suite's own rule set, in recipes that mix suites. Elsewhere it does not apply.

    Args:
        objective: Name of the objective that it makes.
    """

    def __init__(self, objective: str = "rules"):
        self.objectives: tuple[str, ...] = (objective,)
        suites = ("banking", "slack", "travel", "workspace")
        self._by_suite = {f"agentdojo/{name}": Rules(list(rules_of(name)), objective) for name in suites}

    def score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]:
        return [self._one(trajectory) for trajectory in trajectories]

    def _one(self, trajectory: Trajectory) -> dict[str, Score]:
        rules = self._by_suite.get(trajectory.task.suite)
        if rules is None:
            return {self.objectives[0]: Score.not_applicable("these rules are for AgentDojo's suites")}
        return rules.score([trajectory])[0]
