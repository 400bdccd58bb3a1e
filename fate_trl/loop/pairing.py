"""From repairs to pairs: a chosen repair beside the failure that it repairs, as continuations of one prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..ledger.writing import RunDirectory
from ..types import Pair, Repair, ScoreCard


def pairs_of(repairs: Sequence[Repair], round: int) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs of a round's repairs, and what the stage's record says of them.

    A chosen repair makes no pair where either side has no tokens of this model (it was recorded elsewhere), where the
    repair went on from a beginning that renders differently now, or where one side has no token of its own.
    """
    chosen = [repair for repair in repairs if repair.chosen is not None]
    pairs = [pair for repair in chosen if (pair := pair_of(repair, round)) is not None]
    left_out = {"pairs_left_out": len(chosen) - len(pairs)} if len(pairs) < len(chosen) else {}
    return pairs, {"pairs": len(pairs), **left_out}


def write_pairs(run: RunDirectory, name: str, repairs: Sequence[Repair], round: int) -> dict[str, Any]:
    """Write the pairs of a round's repairs to a file of the run; returns what the stage's record says of them."""
    pairs, counts = pairs_of(repairs, round)
    run.write_text(name, "")
    run.append(name, (pair.to_dict() for pair in pairs))
    return counts


def pair_of(repair: Repair, round: int) -> Pair | None:
    """A repair's chosen candidate beside its failure, under the failure's prompt; None where there is no such pair.

    A repair that went on from the failure's first turns has them in its prompt. They are the same on both sides, so
    there is no loss on them on either.
    """
    assert repair.chosen is not None
    chosen, failure = repair.candidates[repair.chosen], repair.failure.trajectory
    if not (chosen.completion_ids and failure.completion_ids and failure.prompt_ids):
        return None
    shared: tuple[int, ...] = ()
    if chosen.prompt[: len(failure.prompt)] == failure.prompt:
        start = len(failure.prompt_ids)
        shared = chosen.prompt_ids[start:]
        if chosen.prompt_ids[:start] != failure.prompt_ids or failure.completion_ids[: len(shared)] != shared:
            return None
    apart = (0,) * len(shared)
    chosen_mask, rejected_mask = apart + chosen.policy_mask, apart + failure.policy_mask[len(shared) :]
    if not (any(chosen_mask) and any(rejected_mask)):
        return None
    return Pair(
        suite=failure.task.suite,
        task=failure.task.id,
        round=round,
        prompt_ids=failure.prompt_ids,
        chosen_ids=shared + chosen.completion_ids,
        chosen_mask=chosen_mask,
        rejected_ids=failure.completion_ids,
        rejected_mask=rejected_mask,
        score_gap=score_gap(repair.cards[repair.chosen], repair.failure.card),
        failure=failure.attempt,
        repair=chosen.attempt,
    )


def score_gap(better: ScoreCard, worse: ScoreCard) -> float:
    """Mean difference over the objectives that have a value on both cards, in [-1, 1]; 0 where there is none."""
    both = [name for name in better.scores if name in worse.scores]
    gaps = [b - w for b, w in zip(better.vector(both), worse.vector(both), strict=True) if not math.isnan(b - w)]
    return math.fsum(gaps) / len(gaps) if gaps else 0.0
