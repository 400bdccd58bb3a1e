"""The pairs of a round: asked of the recipe's pairing, checked, and written to the run directory."""

from __future__ import annotations

from typing import Any

from ..errors import PluginError
from ..hookspecs import Pairing, Tried
from ..ledger.components import metrics_of
from ..ledger.writing import RunDirectory
from ..types import Pair


def pairs_of(pairing: Pairing, tried: Tried) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs of a round, and what the stage's record says of them.

    Raises:
        PluginError: What the pairing returned is no list of pairs of this round's tasks with loss on both sides.
    """
    asked = pairing.pairs(tried)
    who, tasks = f"the pairing {type(pairing).__name__}", {_task(repair.failure) for repair in tried.repairs}
    if not isinstance(asked, list) or not all(pair is None or isinstance(pair, Pair) for pair in asked):
        raise PluginError(f"{who} returned {str(asked)[:80]}; it returns a list of Pair, None where there is none.")
    pairs = [pair for pair in asked if pair is not None]
    for pair in pairs:
        if wrong := _wrong(pair, tried.round, tasks, getattr(pairing, "unpaired", False)):
            raise PluginError(f"{who}: a pair of task {pair.task!r} {wrong}; make it with fate_trl.pair_of.")
    left_out = {"pairs_left_out": len(asked) - len(pairs)} if len(pairs) < len(asked) else {}
    told = metrics_of(pairing)
    return pairs, {"pairs": len(pairs), **left_out, **({"pairing": told} if told else {})}


def _task(failure: Any) -> tuple[str, str]:
    return failure.trajectory.task.suite, failure.trajectory.task.id


def _wrong(pair: Pair, round: int, tasks: set[tuple[str, str]], unpaired: bool) -> str:
    """What keeps a pair from being learned from; "" if nothing does."""
    sides = ((pair.chosen_ids, pair.chosen_mask), (pair.rejected_ids, pair.rejected_mask))
    if pair.round != round or (pair.suite, pair.task) not in tasks:
        return "is of another round, or of a task without a failure in it"
    if not pair.prompt_ids or any(len(ids) != len(mask) for ids, mask in sides):
        return "has no prompt, or a mask of another length than its side"
    if not (any if unpaired else all)(any(mask) for _, mask in sides):
        return "has a side without loss"
    return ""


def write_pairs(run: RunDirectory, name: str, pairing: Pairing, tried: Tried) -> dict[str, Any]:
    """Write the pairs of a round to a file of the run; returns what the stage's record says of them."""
    pairs, counts = pairs_of(pairing, tried)
    run.write_text(name, "")
    run.append(name, (pair.to_dict() for pair in pairs))
    return counts
