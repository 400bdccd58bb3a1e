"""What the report says of a round's pairs: how many, how far apart, and how the training told their sides apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from .reading import Run

Json = dict[str, Any]


def pairs_of(run: Run) -> list[Json]:
    """Per round that made pairs {"round", "pairs", "left_out", "tasks", "rejected", "gap", "accuracy", "margin",
    "tokens", "own"}.

    "rejected" counts the worse sides by what they are; "gap" has the mean, least and largest score gap; "accuracy" and
    "margin" are the stage's at its end, "tokens" the mean tokens with loss of either side, None where it did not train;
    "own" has the pairing's and the pair loss's own numbers: [whose, name, value].
    """
    out = []
    for number, found in run.rounds.items():
        made, trained = found.stages.get("pairs"), found.stages.get("preference", {})
        if made is None:
            continue
        records = list(run.records(number, "pairs"))
        gaps = [float(record["score_gap"]) for record in records]
        tokens = {side: trained.get(f"{side}_tokens_mean") for side in ("chosen", "rejected")}
        out.append(
            {
                "round": number,
                "pairs": made["pairs"],
                "left_out": made.get("pairs_left_out", 0),
                "tasks": len({(record["suite"], record["task"]) for record in records}),
                "rejected": dict(Counter(_rejected(record) for record in records).most_common()),
                "gap": {"mean": math.fsum(gaps) / len(gaps), "low": min(gaps), "high": max(gaps)} if gaps else None,
                "accuracy": _finite(trained.get("accuracy")),
                "margin": _finite(trained.get("margin")),
                "tokens": tokens if None not in tokens.values() else None,
                "own": [
                    [whose, name.replace("_", " "), value]
                    for whose, told in (("pairing", made.get("pairing")), ("pair loss", trained.get("pair_loss")))
                    for name, value in (told or {}).items()
                    if _finite(value) is not None
                ],
            }
        )
    return out


def _rejected(record: Mapping[str, Any]) -> str:
    """What the worse side of a pair is, in words."""
    if record.get("rejected_round"):
        return "an earlier policy's try"
    return "another candidate" if record.get("rejected_stage") == "repair" else "the failure"


def _finite(value: Any) -> float | None:
    """A number of a record, where NaN is a text."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
