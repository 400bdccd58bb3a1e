"""Evaluation: the policy of now, or a scripted one, on held-out tasks, and the metrics of what it did.

No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import metrics
from ..errors import FateError
from ..hookspecs import Policy, Suite
from ..ledger.layout import seed_of
from ..process.bounded import Limits
from ..suites.opening import tasks_of
from ..suites.scripted import ROLES, ScriptedPolicy
from ..types import RolloutRequest, Stage, Task
from .counts import empty_replies, errors, evaluation, measured, tokens, unread_calls
from .merging import means
from .stages import Stages
from .tasks import longest_first, sample_tasks
from .weighing import equal, weighed


@dataclass(kw_only=True)
class Evaluating(Stages):
    """The stages that evaluate, and the tasks that they and the others draw.

    Attributes:
        suites: By the name that tasks carry.
        objectives: In the order of score vectors.
    """

    suites: Mapping[str, Suite]
    objectives: Sequence[str]

    def __post_init__(self) -> None:
        self._tasks: dict[str, list[Task]] = {}
        self._limits: Limits = self.recipe.rollout.limits
        self._evaluated: dict[tuple[int, str, bool], list[dict[str, Any]]] = {}  # intervals are not computed twice

    # ------------------------------------------------------------------------------------------- tasks

    def tasks(self, split: str) -> list[Task]:
        """All tasks of a split, of all suites, each under the name that the recipe gives its suite."""
        if split not in self._tasks:
            self._tasks[split] = tasks_of(self.suites, split, self.recipe.seed)
        return self._tasks[split]

    def _sample(self, split: str, count: int | None, round: int = 0) -> list[Task]:
        rng = np.random.default_rng(seed_of(self.recipe.seed, round, f"tasks-{split}"))
        kinds = self.recipe.rollout.kinds if split == "train" else None
        tasks = sample_tasks([task for task in self.tasks(split) if kinds is None or task.kind in kinds], count, rng)
        if not tasks:
            advice = f"add tasks, or check the suites' arguments.{self._why()}"
            raise FateError(f"the suites have no {split} tasks; {advice}")
        return longest_first(tasks, self.suites)

    def _why(self) -> str:
        """The reasons of suites that are for evaluation only, as text."""
        described = {name: suite.describe().get("evaluation_only") for name, suite in self.suites.items()}
        return "".join(f" {name}: {reason}." for name, reason in described.items() if reason)

    # ------------------------------------------------------------------------------------------- evaluations

    def _evaluate(self, round: int, split: str, policy: str = "") -> None:
        """Roll the learner out on held-out tasks; `policy` is a name for the learner as it is now."""
        settings = self.recipe.evaluation
        count = settings.tasks if split == "test" else settings.validation
        if count == 0 or (split == "validation" and not self.tasks(split)):
            return
        stage = evaluation(split, policy)
        requests = [RolloutRequest(task, task.messages, stage) for task in self._sample(split, count)]
        if (said := self.recipe.prompt_weights) is not None:
            weights = said.evaluate or equal(self.objectives)
            requests = [weighed(request, weights) for request in requests]
        self._measure(round, stage, requests)

    def _baselines(self) -> None:
        """Roll the scripted policies out on the test tasks: the numbers of a run are read beside theirs."""
        if not self.recipe.evaluation.baselines or self.recipe.evaluation.tasks == 0:
            return
        tasks = self._sample("test", self.recipe.evaluation.tasks)
        for role in ROLES:
            stage = evaluation("test", role)
            requests = [RolloutRequest(task, task.messages, stage) for task in tasks]
            self._measure(0, stage, requests, ScriptedPolicy(self.suites, role, self._limits))

    def _measure(
        self, round: int, stage: Stage, requests: Sequence[RolloutRequest], policy: Policy | None = None
    ) -> None:
        def work() -> Mapping[str, Any]:
            cases = self._roll(round, "rollouts", stage, requests, policy)
            own = {} if policy else {**unread_calls(cases), **empty_replies(cases), **tokens(cases)}
            return {"trajectories": len(cases), **errors(cases), **own}

        self._stage(round, stage, len(requests), work)

    def validation_scores(self, seed: int) -> list[float]:
        """Mean score by objective of the learner as it is, on the validation tasks of the recipe; nothing is recorded.

        Raises FateError where there are no such tasks.
        """
        tasks = self._sample("validation", self.recipe.evaluation.validation or None)
        requests = [RolloutRequest(task, task.messages, "eval-validation") for task in tasks]
        size = self.recipe.rollout.chunk
        chunks = [requests[start : start + size] for start in range(0, len(requests), size)]
        rolled = [self.learner.rollout(chunk, seed_of(seed, n, "merge")) for n, chunk in enumerate(chunks)]
        return means([case for chunk in rolled for case in self._score(chunk)], self.objectives)

    # ------------------------------------------------------------------------------------------- metrics

    def _rows(self, round: int) -> list[dict[str, Any]]:
        """Rows of metrics.json of one round."""
        rows: list[dict[str, Any]] = []
        accepted = self._done(round).get("accept", {"accepted": True})["accepted"]
        for stage in self._done(round):
            if not stage.startswith("eval-"):
                continue
            key = (round, stage, accepted)
            if key not in self._evaluated:
                warm_start = self.recipe.warm_start is not None
                split, name = measured(stage, round, warm_start=warm_start, rounds=self.recipe.rounds)
                cases = self._recorded(round, "rollouts", stage)
                self._evaluated[key] = metrics.rows(
                    cases, round=round, split=split, policy=name, accepted=accepted, seed=self.recipe.seed
                )
            rows += self._evaluated[key]
        return rows

    def _write_metrics(self) -> list[dict[str, Any]]:
        rows = [row for round in range(self.recipe.rounds + 1) for row in self._rows(round)]
        self.run.write_json("metrics.json", {"schema": 1, "rows": rows})
        return rows
