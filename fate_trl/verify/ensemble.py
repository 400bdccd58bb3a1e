"""Several verifiers as one: an ensemble within one objective.

A policy that is trained against one judge learns that judge's mistakes. The conservative reducers punish what the
members disagree on: the worst case (WCO) and the mean less the variance (UWO) of Coste et al. 2023, "Reward Model
Ensembles Help Mitigate Overoptimization". How far the members disagree is kept beside every score, as `Score.spread`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ..errors import RecipeError
from ..hookspecs import Component, hookimpl
from ..types import Score, Trajectory
from .loading import load_named
from .scoring import Ask, Wrapper

fate_trl_api = 1

Reduce = Literal["mean", "median", "majority", "min", "uwo", "soft-min"]


class Ensemble(Wrapper):
    """Several verifiers of the same objectives as one.

    Every member judges every trajectory. A member's error is the ensemble's, unless at least `quorum` members have a
    value: then these decide. Members that disagree on whether the objective *applies* make an error. Feedback and
    step are those of the sternest member that gives any.

    Args:
        members: Verifiers as a recipe names them: a name, or {name: …, args: {…}}.
        reduce: `mean`; `median`; `majority` (1 if more than half of the members give at least 0.5, else 0); `min`
            (worst case, WCO); `uwo` (mean − `penalty`·variance, not below 0); `soft-min` (mean weighted by
            exp(−value / `temperature`): min as it goes to 0, mean as it grows).
        penalty: λ of `uwo`, at least 0.
        temperature: Of `soft-min`, above 0.
        quorum: Members that must have a value; all of them by default.

    Raises:
        RecipeError: Fewer than two members, members of different objectives, or a quorum that cannot be met.
    """

    def __init__(
        self,
        members: list[str | dict[str, Any]],
        reduce: Reduce = "mean",
        penalty: Annotated[float, Field(ge=0)] = 1.0,
        temperature: Annotated[float, Field(gt=0)] = 0.1,
        quorum: Annotated[int, Field(ge=1)] | None = None,
    ):
        if len(members) < 2:
            raise RecipeError(f"an ensemble has at least two members, not {len(members)}.")
        super().__init__([load_named(member) for member in members])
        self.objectives: tuple[str, ...] = tuple(self.members[0].objectives)
        for member in self.members[1:]:
            if set(member.objectives) != set(self.objectives):
                raise RecipeError(
                    f"the members of an ensemble score the same objectives; {type(self.members[0]).__name__} scores "
                    f"{', '.join(self.objectives)}, and {type(member).__name__} {', '.join(member.objectives)}."
                )
        self.quorum = len(members) if quorum is None else quorum
        if self.quorum > len(members):
            raise RecipeError(f"a quorum of {quorum} cannot be met by {len(members)} members.")
        self._reduce = reducer(reduce, penalty, temperature)

    def score_by(self, ask: Ask, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]:
        judged = [ask(member, trajectories) for member in self.members]
        return [
            {
                name: combined([cards[i].scores[name] for cards in judged], self._reduce, self.quorum)
                for name in self.objectives
            }
            for i in range(len(trajectories))
        ]


def combined(scores: Sequence[Score], reduce: Callable[[np.ndarray], float], quorum: int) -> Score:
    """The members' scores of one objective as one, by the rules that `Ensemble` states."""
    errors = [score for score in scores if score.status == "error"]
    sound = [score for score in scores if score.status != "error"]
    if len(sound) < quorum:
        return errors[0]
    values = [score.value for score in sound if score.value is not None]
    if not values:
        return sound[0]
    if len(values) < len(sound):
        return Score.error(f"{len(values)} of {len(sound)} members say that the objective applies, the rest not")
    sternest = min(sound, key=lambda score: (score.value, not score.feedback))
    return Score(
        reduce(np.array(values)),
        reason=sternest.reason,
        feedback=sternest.feedback,
        step=sternest.step,
        spread=float(np.std(values)),
    )


def reducer(reduce: Reduce, penalty: float = 1.0, temperature: float = 0.1) -> Callable[[np.ndarray], float]:
    """The rule that makes one number in [0, 1] of the members' values."""

    def soft_min(values: np.ndarray) -> float:
        weights = np.exp((values.min() - values) / temperature)  # shifted, so that nothing overflows
        return float(weights @ values / weights.sum())

    rules: dict[str, Callable[[np.ndarray], float]] = {
        "mean": lambda values: float(values.mean()),
        "median": lambda values: float(np.median(values)),
        "majority": lambda values: float((values >= 0.5).sum() * 2 > len(values)),
        "min": lambda values: float(values.min()),
        "uwo": lambda values: max(0.0, float(values.mean() - penalty * values.var())),
        "soft-min": soft_min,
    }
    return rules[reduce]


@hookimpl
def fate_trl_verifiers() -> list[Component]:
    return [Component("ensemble", Ensemble, "several verifiers of the same objectives as one")]
