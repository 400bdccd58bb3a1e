"""Repair strategies that break their contract, each in one way; only `good` may pass the contract suite."""

import dataclasses

import numpy as np

from fate_trl import Component, Score, hookimpl
from fate_trl.types import RolloutRequest
from fate_trl.verify.scoring import Utility, score_all


class Good:
    def requests(self, failures, k, rng):
        return [self.one(failure, failure.trajectory.attempt * k + i, rng) for failure in failures for i in range(k)]

    def one(self, failure, attempt, rng):
        task = failure.trajectory.task
        return RolloutRequest(task, task.messages, "repair", attempt, of=failure.trajectory.attempt)


class Scoring(Good):
    """Scores by itself, through a name of its own for the pipeline's function."""

    def requests(self, failures, k, rng):
        cards = score_all([Utility()], [failure.trajectory for failure in failures])
        return super().requests([f for f, card in zip(failures, cards) if not card.errors], k, rng)


class OwnJudge:
    objectives = ("hope",)

    def score(self, trajectories):
        return [{"hope": Score(1.0)} for _ in trajectories]


class Hopeful(Good):
    """Asks a judge of its own which failures are worth it."""

    def requests(self, failures, k, rng):
        hopes = OwnJudge().score([failure.trajectory for failure in failures])
        return super().requests([f for f, hope in zip(failures, hopes) if hope["hope"].value], k, rng)


class Both(Good, OwnJudge):
    """Verifier and repair strategy in one."""


@dataclasses.dataclass(frozen=True)
class Graded(RolloutRequest):
    score: float = 1.0


class Grading(Good):
    """Sends a grade along with the request."""

    def one(self, failure, attempt, rng):
        task = failure.trajectory.task
        return Graded(task, task.messages, "repair", attempt)


class Greedy(Good):
    def requests(self, failures, k, rng):
        return super().requests(failures, k + 1, rng)


class Backwards(Good):
    def requests(self, failures, k, rng):
        return super().requests(failures[::-1], k, rng)


class Counting(Good):
    """Numbers attempts from 0, whatever the failure's."""

    def requests(self, failures, k, rng):
        return [self.one(failure, i, rng) for failure in failures for i in range(k)]


class Straying(Good):
    """Repairs an easier task than the one that failed."""

    def one(self, failure, attempt, rng):
        request = super().one(failure, attempt, rng)
        return dataclasses.replace(request, task=dataclasses.replace(request.task, tools=()))


class Collecting(Good):
    """Leaves the stage at "collect"."""

    def one(self, failure, attempt, rng):
        return dataclasses.replace(super().one(failure, attempt, rng), stage="collect")


class Inventing(Good):
    """Replays calls that the failure never made."""

    def one(self, failure, attempt, rng):
        return dataclasses.replace(super().one(failure, attempt, rng), replay=failure.trajectory.calls[::-1])


class Silent(Good):
    def one(self, failure, attempt, rng):
        return dataclasses.replace(super().one(failure, attempt, rng), messages=())


class Idle(Good):
    def requests(self, failures, k, rng):
        return []


class Dice(Good):
    """Random by itself, not by the `rng` that it is given."""

    def one(self, failure, attempt, rng):
        task = failure.trajectory.task
        hint = {"role": "user", "content": f"Hint {np.random.default_rng().integers(1 << 40)}."}
        return dataclasses.replace(super().one(failure, attempt, rng), messages=(*task.messages, hint))


class Mutating(Good):
    def one(self, failure, attempt, rng):
        failure.trajectory.task.messages[-1]["content"] += " Try harder."
        return super().one(failure, attempt, rng)


@hookimpl
def fate_trl_repairs():
    kinds = {
        "good": Good,
        "scoring": Scoring,
        "hopeful": Hopeful,
        "both": Both,
        "grading": Grading,
        "greedy": Greedy,
        "backwards": Backwards,
        "counting": Counting,
        "straying": Straying,
        "collecting": Collecting,
        "inventing": Inventing,
        "silent": Silent,
        "idle": Idle,
        "dice": Dice,
        "mutating": Mutating,
    }
    return [Component(name, factory, f"a {name} strategy") for name, factory in kinds.items()]
