"""Reporters are told how a run goes on: the command line shows it, trackers keep it, tests count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..types import Case


class Reporter(Protocol):
    """Is told when stages begin, advance and end."""

    def start(self, round: int, stage: str, total: int) -> None:
        """A stage begins. `total` is its number of trajectories; 0 if it has none, or if it trains."""
        ...

    def expect(self, total: int) -> None:
        """The stage that has begun has this many training steps."""
        ...

    def advance(self, amount: int = 1, cases: Sequence[Case] = (), log: Mapping[str, Any] | None = None) -> None:
        """`amount` trajectories are done, with their scored cases; or training steps, with what the trainer logged."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The stage is done and recorded; `summary` is its record in stages.jsonl, and its round."""
        ...


class Silent:
    """Reports nothing."""

    def start(self, round: int, stage: str, total: int) -> None: ...

    def expect(self, total: int) -> None: ...

    def advance(self, amount: int = 1, cases: Sequence[Case] = (), log: Mapping[str, Any] | None = None) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...
