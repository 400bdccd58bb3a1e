"""What a training counts from its start on: tokens, rows with errors, kinds of tasks. Kept in its checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import gather_object

from ..metrics import check_errors, error_budget, is_error
from ..types import Case, ScoreCard, Trajectory
from .trajectories import without_content

logger = logging.getLogger(__name__)

KINDS_LOGGED = 16
KIND_LENGTH = 64
"""A column `kind` with more distinct values, or longer ones, is free text, and gets no keys in the log (ours)."""


@dataclass
class Counts:
    """Counts of one training, alike on every process but for the cases, which are this process's.

    Attributes:
        tokens: By name: "prompt", "sampled", "trained".
        seen: Rows that were scored.
        excluded: Rows of them with an infrastructure error.
        cases: These rows, without their content.
        kinds: Values of the column `kind`; None once they were too many, or too long.
    """

    tokens: dict[str, int] = field(default_factory=dict)
    seen: int = 0
    excluded: int = 0
    cases: list[Case] = field(default_factory=list)
    kinds: set[str] | None = field(default_factory=set)

    def add_tokens(self, tokens: Mapping[str, int]) -> None:
        for name, number in tokens.items():
            self.tokens[name] = self.tokens.get(name, 0) + number

    def add_rows(
        self, trajectories: Sequence[Trajectory], cards: Sequence[ScoreCard], rows: int, failed: int, max_rate: float
    ) -> None:
        """Count this process's rows of a batch, and `rows` and `failed` over all processes.

        Raises:
            ErrorBudgetExceeded: More than `max_rate` failed so far; decided alike on every process.
        """
        if max_rate == 1:
            return
        self.seen += rows
        self.excluded += failed
        broken = filter(is_error, zip(trajectories, cards, strict=True))
        self.cases += [(without_content(trajectory), card) for trajectory, card in broken]
        rate = error_budget(max_rate, self.seen)
        if self.excluded > rate * self.seen:
            check_errors(gather_object(self.cases), rate, of=self.seen)

    def few_kinds(self, kinds: Iterable[str]) -> bool:
        """Whether the column `kind`, with these values of a batch, still looks like one of kinds, not of free text."""
        if self.kinds is None:
            return False
        self.kinds.update(kinds)
        if len(self.kinds) <= KINDS_LOGGED and all(len(kind) <= KIND_LENGTH for kind in self.kinds):
            return True
        self.kinds = None
        logger.warning(
            "the column `kind` holds more than %d kinds, or texts of more than %d characters, so objectives are not "
            "logged by kind.",
            KINDS_LOGGED,
            KIND_LENGTH,
        )
        return False

    def state_dict(self) -> dict[str, Any]:
        """The counts as JSON. Every process calls this."""
        cases = gather_object(self.cases)
        return {
            "tokens": dict(self.tokens),
            "rows": [self.seen, self.excluded],
            "errors": [[trajectory.to_dict(), card.to_dict()] for trajectory, card in cases],
            "kinds": None if self.kinds is None else sorted(self.kinds),
        }

    def load_state_dict(self, state: Mapping[str, Any], main: bool) -> None:
        """Go on from a `state_dict`, or from {}; the main process takes all cases."""
        self.tokens = dict(state.get("tokens", {}))
        self.seen, self.excluded = state.get("rows", (0, 0))
        cases = state.get("errors", ()) if main else ()
        self.cases = [(Trajectory.from_dict(one), ScoreCard.from_dict(other)) for one, other in cases]
        kinds = state.get("kinds", ())
        self.kinds = None if kinds is None else set(kinds)
