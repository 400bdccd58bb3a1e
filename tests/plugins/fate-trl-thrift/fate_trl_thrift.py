"""A third party's verifier, as a package of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fate_trl import Component, Score, Trajectory, hookimpl

fate_trl_api = 1

ROUNDS: list[int] = []


class Brief:
    """`brevity`: 1 if the answer has at most `words` words, else the share of it that fits.

    Args:
        words: Longest answer that is brief.
    """

    objectives = ("brevity",)

    def __init__(self, words: int = 12):
        self.words = words

    def score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]:
        return [{"brevity": self._one(len(trajectory.answer.split()))} for trajectory in trajectories]

    def _one(self, said: int) -> Score:
        if said <= self.words:
            return Score(1.0)
        return Score(self.words / said, reason=f"{said} words", feedback=f"Answer in at most {self.words} words.")


@hookimpl
def fate_trl_verifiers() -> list[Component]:
    return [Component("brief", Brief, "answers are short")]


@hookimpl
def fate_trl_round_finished(record: dict[str, Any]) -> None:
    ROUNDS.append(record["round"])
