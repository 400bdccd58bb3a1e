"""How often each prompt of a training was rolled out, and how many of its rollouts resolved: what budgets are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object

from ..loop.budgets import key_of
from ..types import ScoreCard


class Tally:
    """Counts by the key of a prompt's `Item`, over all processes, re-drawn groups included; rows with errors are not
    counted. Its state is the trainer's, so it stands in checkpoints."""

    def __init__(self) -> None:
        self.tried: dict[str, list[int]] = {}

    def add(self, rows: Sequence[Mapping[str, Any]], cards: Sequence[ScoreCard]) -> None:
        """Count a batch: this process's rows, with their scores. Every process calls this."""
        mine = [
            (key_of(row["request"]), card.resolved)
            for row, card in zip(rows, cards, strict=True)
            if "request" in row and not card.errors
        ]
        for key, resolved in gather_object(mine):
            counts = self.tried.setdefault(key, [0, 0])
            counts[0] += 1
            counts[1] += resolved

    def state_dict(self) -> dict[str, Any]:
        return {"tried": self.tried}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tried = {key: list(counts) for key, counts in state["tried"].items()}
