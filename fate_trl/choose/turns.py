"""Which of a trajectory's tokens, messages and calls belong together: by the policy's turns, from 0."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from ..record import stable_hash
from ..types import Trajectory


def turns_of(mask: Sequence[int]) -> np.ndarray:
    """The turn of each token, from 0, -1 where the policy wrote nothing: every run of ones is a turn, (T,)."""
    own_T = np.asarray(mask, int) != 0
    begins_T = own_T & ~np.concatenate([[False], own_T[:-1]])
    return np.where(own_T, np.cumsum(begins_T) - 1, -1)


def span_of(trajectory: Trajectory, message: int) -> tuple[int, int] | None:
    """Where in `completion_ids` the policy's message of this index begins and ends; None where it has no tokens."""
    turn_T = turns_of(trajectory.policy_mask)
    spoken = [i for i, each in enumerate(trajectory.messages) if each.get("role") == "assistant"]
    if message not in spoken or len(spoken) != turn_T.max(initial=-1) + 1:
        return None
    at = np.flatnonzero(turn_T == spoken.index(message))
    return int(at[0]), int(at[-1]) + 1


def call_turns(trajectory: Trajectory) -> tuple[int, ...]:
    """The number of the policy's message that made each executed call; -1 for a replayed one.

    Messages may hold calls that never ran, so executed ones are looked for by name, in order.
    """
    spoken = [message for message in trajectory.messages if message.get("role") == "assistant"]
    asked = [
        (turn, call.get("function", call).get("name"))
        for turn, message in enumerate(spoken)
        for call in message.get("tool_calls") or ()
    ]
    turns, at = [-1] * trajectory.replayed, 0
    for call in trajectory.calls[trajectory.replayed :]:
        found = next((i for i in range(at, len(asked)) if asked[i][1] == call.name), None)
        if found is not None:
            at = found + 1
        turns.append(asked[at - 1][0] if at else 0)
    return tuple(turns)


def call_paths(trajectory: Trajectory) -> tuple[int, ...]:
    """For each executed call, a number that stands for all calls up to it, arguments included."""
    return tuple(accumulate((stable_hash(call.name, call.arguments) for call in trajectory.calls), stable_hash))
