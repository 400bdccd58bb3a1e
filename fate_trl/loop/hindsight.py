"""From repaired failures to turns that their policy would write otherwise in hindsight.

A verifier names the message at fault. The policy that had the verifiers' feedback and an accepted repair in its prompt
is a better judge of that turn than the policy that wrote it, and it is the same policy: so it can be its own teacher
(ours, after SDFT, arXiv 2601.19897, and HinT-SD, arXiv 2605.17873).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..choose.repairs import Reflect, fault
from ..choose.turns import span_of
from ..ledger.writing import RunDirectory
from ..types import Hindsight, Repair


def write_hindsight(run: RunDirectory, name: str, repairs: Sequence[Repair], round: int) -> dict[str, Any]:
    """Write the turns at fault of a round's repaired failures; returns what the stage's record says of them.

    A repaired failure has none where no verifier names a message, and where the policy wrote no such turn: a failure
    that was recorded elsewhere has no tokens of this model.
    """
    repaired = [repair for repair in repairs if repair.chosen is not None]
    turns = [turn for repair in repaired if (turn := hindsight_of(repair, round)) is not None]
    run.write_text(name, "")
    run.append(name, (turn.to_dict() for turn in turns))
    left_out = {"turns_left_out": len(repaired) - len(turns)} if len(turns) < len(repaired) else {}
    return {"turns": len(turns), **left_out}


def hindsight_of(repair: Repair, round: int) -> Hindsight | None:
    """The turn at fault of a repaired failure, with its teacher's prompt; None where there is no such turn."""
    assert repair.chosen is not None
    failed, chosen, at = repair.failure.trajectory, repair.candidates[repair.chosen], fault(repair.failure)
    span = None if at is None else span_of(failed, at)
    if span is None:
        return None
    begin, end = span
    return Hindsight(
        suite=failed.task.suite,
        task=failed.task.id,
        round=round,
        prompt_ids=failed.prompt_ids,
        before_ids=failed.completion_ids[:begin],
        turn_ids=failed.completion_ids[begin:end],
        teacher=Reflect().prompt(repair.failure, chosen),
        tools=failed.task.tools,
        failure=failed.attempt,
        repair=chosen.attempt,
    )
