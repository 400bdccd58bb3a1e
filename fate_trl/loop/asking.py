"""How a repair strategy is asked for a round's failures: once, or in steps, for those that no candidate repairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import FateError
from ..hookspecs import STEPS, RepairStrategy
from ..recipe.schema import RepairSettings
from ..types import Case, Failure, Repair, RolloutRequest
from .repairing import Try, acceptable, by_failure, check_requests

Roll = Callable[[Sequence[RolloutRequest]], list[Case]]
"""Rolls requests out and scores them; or gives what was recorded of them."""


class Asking:
    """What a strategy asks for a round's failures, and what came of it so far.

    Args:
        strategy: Is asked.
        settings: The recipe's `repair`.
        failures: Of the round.
        shares: Candidates by failure, in each step; None for `k` each.
        rng: The stage's.

    Attributes:
        requests: What was asked for so far, the next step's included.
        cases: What came of it.
        steps: How many failures each step was about, its candidates, and how many of its failures it repaired.

    Raises:
        FateError: A request that repairs none of the failures, or a number that another one has; or too many steps.
    """

    def __init__(
        self,
        strategy: RepairStrategy,
        settings: RepairSettings,
        failures: Sequence[Failure],
        shares: Sequence[int] | None,
        rng: np.random.Generator,
    ):
        self._strategy, self._settings, self._failures, self._rng = strategy, settings, failures, rng
        self._k = settings.k if shares is None else max(shares, default=0)
        self._shares = None if shares is None else dict(zip(map(_try, failures), shares, strict=True))
        self.requests: list[RolloutRequest] = []
        self.cases: list[Case] = []
        self.steps: list[dict[str, int]] = []
        self._next = self._asked(strategy.requests(list(failures), self._k, rng) if self._k else [])

    def _asked(self, requests: Sequence[RolloutRequest]) -> list[RolloutRequest]:
        """A step's requests, checked, each failure's cut to its share."""
        check_requests([*self.requests, *requests], self._failures, self._settings.strategy.name)
        if self._shares is not None:
            left = dict(self._shares)
            kept = []
            for request in requests:
                key = (request.task.suite, request.task.id, request.of or 0)
                if left[key] > 0:
                    left[key] -= 1
                    kept.append(request)
            requests = kept
        self.requests += requests
        return list(requests)

    def go(self, roll: Roll) -> None:
        """Do the steps that are left."""
        unrepaired = self.tried()
        while True:
            self.cases += roll(self._next)
            before, unrepaired = unrepaired, [repair for repair in self.tried() if not repair.accepted]
            repaired = len(before) - len(unrepaired)
            self.steps.append({"failures": len(before), "candidates": len(self._next), "repaired": repaired})
            again = getattr(self._strategy, "again", None)
            if again is None or not unrepaired or not self._k:
                return
            if len(self.steps) == STEPS:
                raise FateError(
                    f"repair strategy {self._settings.strategy.name!r} goes on asking after {STEPS} steps; `again` "
                    "returns an empty list when it has nothing more to try."
                )
            self._next = self._asked(again(unrepaired, len(self.steps), self._k, self._rng))
            if not self._next:
                return

    def tried(self) -> list[Repair]:
        """Each failure with its candidates so far, and which of them are acceptable; nothing is chosen."""
        found, settings = by_failure(self.requests, self.cases), self._settings
        out = []
        for failure in self._failures:
            candidates = found.get(_try(failure), [])
            fit = [
                index
                for index, (_, card) in enumerate(candidates)
                if acceptable(failure.card, card, settings.accept, settings.floors)
            ]
            trajectories, cards = [t for t, _ in candidates], [card for _, card in candidates]
            out.append(Repair(failure, tuple(trajectories), tuple(cards), tuple(fit)))
        return out

    def summary(self) -> dict[str, Any]:
        """What the stage's record says of the steps, where the strategy may take several."""
        return {"asked": self.steps} if hasattr(self._strategy, "again") else {}


def _try(failure: Failure) -> Try:
    return failure.trajectory.task.suite, failure.trajectory.task.id, failure.trajectory.attempt
