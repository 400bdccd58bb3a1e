"""Verifiers that break their contract, each in one way; only `good` may pass the contract suite."""

import random

from fate_trl import Component, Score, hookimpl


class Good:
    objectives = ("brevity",)

    def score(self, trajectories):
        return [{"brevity": self.one(trajectory)} for trajectory in trajectories]

    def one(self, trajectory):
        return Score(1.0 if len(trajectory.answer) < 30 else 0.0)


class Constant(Good):
    def one(self, trajectory):
        return Score(1.0)


class Async:
    """Good too, one trajectory at a time."""

    objectives = ("brevity",)

    async def score_one(self, trajectory):
        return {"brevity": Good().one(trajectory)}


class Mutating(Good):
    def one(self, trajectory):
        for message in trajectory.messages:
            message["seen"] = True
        return super().one(trajectory)


class Sorting(Good):
    def score(self, trajectories):
        trajectories.sort(key=lambda trajectory: trajectory.answer)
        return super().score(trajectories)


class NotANumber(Good):
    """Returns NaN, as a float: `Score` would refuse it."""

    def one(self, trajectory):
        return float("nan")


class TooHigh(Good):
    """Goes round the check in `Score`."""

    def one(self, trajectory):
        score = super().one(trajectory)
        object.__setattr__(score, "value", score.value * 2)
        return score


class OtherObjectives(Good):
    def score(self, trajectories):
        return [{"length": self.one(trajectory)} for trajectory in trajectories]


class Short(Good):
    """One score too few."""

    def score(self, trajectories):
        return super().score(trajectories)[1:]


class Nameless(Good):
    objectives = ()

    def score(self, trajectories):
        return [{} for _ in trajectories]


class Dice(Good):
    def one(self, trajectory):
        return Score(random.random())


class Relative(Good):
    """Grades on a curve: the longest answer of the batch fails."""

    def score(self, trajectories):
        longest = max(len(trajectory.answer) for trajectory in trajectories)
        return [{"brevity": Score(0.0 if len(t.answer) == longest else 1.0)} for t in trajectories]


class Fragile(Good):
    """Raises on a trajectory without messages."""

    def one(self, trajectory):
        return Score(1.0 if trajectory.messages[-1]["role"] == "assistant" else 0.5)


class Blaming(Good):
    """No outcome, no points."""

    def one(self, trajectory):
        return Score(0.0) if trajectory.outcome is None else super().one(trajectory)


class Choosy(Good):
    """Not applicable to what it does not like, so a group of tries would have holes."""

    def one(self, trajectory):
        return Score.not_applicable() if trajectory.calls else super().one(trajectory)


class Misplaced(Good):
    """Points at a message that is not there."""

    def one(self, trajectory):
        return Score(0.0, step=999) if trajectory.calls else Score(1.0)


class Unexplained(Good):
    """An error without a reason."""

    def one(self, trajectory):
        return Score(status="error") if trajectory.outcome is None else super().one(trajectory)


class Repairing(Good):
    def requests(self, failures, k, rng):
        return []


def swallowing(**options):
    return Good()


@hookimpl
def fate_trl_verifiers():
    kinds = {
        "good": Good,
        "async": Async,
        "constant": Constant,
        "mutating": Mutating,
        "sorting": Sorting,
        "not-a-number": NotANumber,
        "too-high": TooHigh,
        "other-objectives": OtherObjectives,
        "short": Short,
        "nameless": Nameless,
        "dice": Dice,
        "relative": Relative,
        "fragile": Fragile,
        "blaming": Blaming,
        "choosy": Choosy,
        "misplaced": Misplaced,
        "unexplained": Unexplained,
        "repairing": Repairing,
        "swallowing": swallowing,
    }
    listed = [Component(name, factory, f"a {name} verifier") for name, factory in kinds.items()]
    return [*listed, Component("Bad Name", Good, "")]
