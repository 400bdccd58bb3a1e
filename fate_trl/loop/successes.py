"""Repairs for groups of PFPO whose rows all fail: which request may bring which along. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..types import Repair, RolloutRequest, Trajectory


def with_successes(requests: Sequence[RolloutRequest], repairs: Sequence[Repair]) -> list[RolloutRequest]:
    """The requests, those on a plain task each with the round's chosen repair of it that resolved it, if there is one.

    A repair that went on from the middle of the failure begins nowhere, and one that was recorded elsewhere has no
    tokens, so neither can stand behind a plain prompt.
    """
    known: dict[tuple[str, str], Trajectory] = {}
    for repair in repairs:
        if repair.chosen is not None and repair.cards[repair.chosen].resolved:
            chosen = repair.candidates[repair.chosen]
            if any(chosen.policy_mask) and not chosen.replayed:
                known.setdefault((chosen.task.suite, chosen.task.id), chosen)
    return [
        request
        if request.of is not None
        else replace(request, success=known.get((request.task.suite, request.task.id)))
        for request in requests
    ]
