"""What the policy writes by itself on the prompts of a round's pairs, for pair losses that ask for it. No torch here.

It is sampled once the round has its pairs, just before the policy learns from them, so each round has fresh ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..types import Case, Pair, RolloutRequest, Task
from .counts import errors, tokens


def own_requests(pairs: Sequence[Pair], tasks: Iterable[Task]) -> list[RolloutRequest]:
    """A rollout per pair, in their order, on the plain prompt of its task; `tasks` are those that pairs are of."""
    known = {(task.suite, task.id): task for task in tasks}
    asked: Counter[tuple[str, str]] = Counter()
    out = []
    for pair in pairs:
        task = known[pair.suite, pair.task]
        out.append(RolloutRequest(task, task.messages, "own", asked[pair.suite, pair.task]))
        asked[pair.suite, pair.task] += 1
    return out


def with_own(pairs: Sequence[Pair], cases: Sequence[Case]) -> list[Pair]:
    """The pairs with what was sampled for each; without it where an error broke that, or where the policy was given
    another prompt than the pair's."""
    sampled = [trajectory for trajectory, _ in cases]
    return [
        pair
        if own.error or own.prompt_ids != pair.prompt_ids
        else replace(pair, own_ids=own.completion_ids, own_mask=own.policy_mask)
        for pair, own in zip(pairs, sampled, strict=True)
    ]


def own_summary(pairs: Sequence[Pair], cases: Sequence[Case]) -> dict[str, Any]:
    """What the stage's record says."""
    lacking = sum(not any(pair.own_mask) for pair in with_own(pairs, cases))
    left_out = {"own_left_out": lacking} if lacking else {}
    return {"trajectories": len(cases), **left_out, **errors(cases), **tokens(cases)}
