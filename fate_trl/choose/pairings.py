"""The built-in pairing, and what pairings make pairs with: two trajectories as continuations of one prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..hookspecs import Component, Tried, hookimpl
from ..types import Case, Failure, Pair, ScoreCard, Trajectory
from .repairs import fault, feedback
from .turns import span_of

fate_trl_api = 1


class ChosenFailure:
    """Each chosen repair beside the failure that it repairs, both under the plain task's prompt (ours).

    Args:
        unpaired: A failure without a chosen repair stands alone; for pair losses that take pairs of one side.
    """

    def __init__(self, unpaired: bool = False):
        self.unpaired = unpaired
        self._alone = 0

    def metrics(self) -> dict[str, float]:
        """Failures that stand alone, where they may."""
        return {"alone": self._alone} if self.unpaired else {}

    def pairs(self, tried: Tried) -> list[Pair | None]:
        alone = [repair.failure for repair in tried.repairs if repair.chosen is None and self.unpaired]
        self._alone = len(alone)
        return [
            *self._both(tried),
            *(lone_failure((failure.trajectory, failure.card), tried.round) for failure in alone),
        ]

    def _both(self, tried: Tried) -> list[Pair | None]:
        return [
            pair_of(
                (repair.candidates[repair.chosen], repair.cards[repair.chosen]),
                (repair.failure.trajectory, repair.failure.card),
                repair.failure.trajectory,
                tried.round,
            )
            for repair in tried.repairs
            if repair.chosen is not None
        ]


def pair_of(better: Case, worse: Case, plain: Trajectory, round: int, worse_round: int = 0) -> Pair | None:
    """Two scored trajectories of a task as a pair, the better one chosen; None where they make none.

    A side that went on from given turns (a repair by `resume`) has these in its prompt; the other side must begin
    alike, and they get no loss on either.

    Args:
        better: A candidate of stage "repair", with its scores.
        worse: The rejected side, of stage "collect" or "repair".
        plain: A trajectory under the plain task's prompt, which becomes the pair's; the failure, say.
        round: Number of the round.
        worse_round: That of the rejected side, where it is another.

    There is no pair where a side has no tokens of this model (it was recorded elsewhere), where given turns render
    otherwise now or are not the other side's, or where a side has no token of its own.
    """
    sides = [_continuation(trajectory, plain) for trajectory, _ in (better, worse)]
    if sides[0] is None or sides[1] is None:
        return None
    (chosen_ids, chosen_given), (rejected_ids, rejected_given) = sides[0], sides[1]
    given = max(chosen_given, rejected_given)
    if chosen_ids[:given] != rejected_ids[:given]:
        return None
    chosen_mask, rejected_mask = (
        (0,) * given + trajectory.policy_mask[given - own :]
        for (trajectory, _), own in zip((better, worse), (chosen_given, rejected_given), strict=True)
    )
    if not (any(chosen_mask) and any(rejected_mask)):
        return None
    return Pair(
        suite=plain.task.suite,
        task=plain.task.id,
        round=round,
        prompt_ids=plain.prompt_ids,
        chosen_ids=chosen_ids,
        chosen_mask=chosen_mask,
        rejected_ids=rejected_ids,
        rejected_mask=rejected_mask,
        score_gap=score_gap(better[1], worse[1]),
        failure=worse[0].attempt,
        repair=better[0].attempt,
        rejected_stage=worse[0].stage or "collect",
        rejected_round=0 if worse_round == round else worse_round,
        feedback=" ".join(feedback(Failure(*worse))),
        fault=_fault(worse, rejected_given),
        repair_prompt_ids=() if _begins_like(better[0], plain) else better[0].prompt_ids,
    )


def lone_failure(worse: Case, round: int) -> Pair | None:
    """A failure without a better side as a pair of one side; None where it has no tokens of this model."""
    trajectory, card = worse
    if not (trajectory.prompt_ids and any(trajectory.policy_mask)):
        return None
    return Pair(
        suite=trajectory.task.suite,
        task=trajectory.task.id,
        round=round,
        prompt_ids=trajectory.prompt_ids,
        chosen_ids=(),
        chosen_mask=(),
        rejected_ids=trajectory.completion_ids,
        rejected_mask=trajectory.policy_mask,
        score_gap=0.0,
        failure=trajectory.attempt,
        repair=-1,
        feedback=" ".join(feedback(Failure(trajectory, card))),
        fault=_fault(worse, 0),
    )


def _begins_like(trajectory: Trajectory, plain: Trajectory) -> bool:
    """Whether it was given the plain task's prompt, and perhaps some turns after it; not a repair prompt."""
    return trajectory.prompt[: len(plain.prompt)] == plain.prompt


def _fault(worse: Case, given: int) -> tuple[int, ...]:
    """Where among its tokens, of which the first were given, a trajectory's turn at fault begins and ends."""
    step = fault(Failure(*worse))
    span = None if step is None else span_of(worse[0], step)
    return () if span is None else (given + span[0], given + span[1])


def _continuation(trajectory: Trajectory, plain: Trajectory) -> tuple[tuple[int, ...], int] | None:
    """What follows the plain prompt in a trajectory, as tokens, and how many of them it was given; None if unknown."""
    if not (trajectory.completion_ids and plain.prompt_ids):
        return None
    if not _begins_like(trajectory, plain):
        return trajectory.completion_ids, 0  # a repair prompt of its own
    start = len(plain.prompt_ids)
    if trajectory.prompt_ids[:start] != plain.prompt_ids:
        return None
    given = trajectory.prompt_ids[start:]
    return given + trajectory.completion_ids, len(given)


def score_gap(better: ScoreCard, worse: ScoreCard) -> float:
    """Mean difference over the objectives that have a value on both cards, in [-1, 1]; 0 where there is none."""
    both = [name for name in better.scores if name in worse.scores]
    return _mean([b - w for b, w in zip(better.vector(both), worse.vector(both), strict=True)])


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else 0.0


@hookimpl
def fate_trl_pairings() -> list[Component]:
    return [Component("chosen-failure", ChosenFailure, "each chosen repair beside the failure that it repairs")]
