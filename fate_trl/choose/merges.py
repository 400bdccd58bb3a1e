"""The built-in merges: a weighted average of policies, and the first policy of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..errors import FateError
from ..hookspecs import Component, Evaluate, hookimpl

if TYPE_CHECKING:
    import numpy as np

fate_trl_api = 1


class Soup:
    """The average of the policies' weights (SALSA averages two; arXiv 2411.01798).

    Args:
        weights: One per policy, the first policies where there are more; they are divided by their sum. None for the
            plain average of all.
    """

    def __init__(self, weights: Annotated[list[float], Field(min_length=1)] | None = None):
        if weights is not None and abs(sum(weights)) < 1e-6:
            raise FateError(f"soup: the weights {weights} sum to 0; give some whose sum can be made 1.")
        self.weights = weights

    def coefficients(self, policies: int, evaluate: Evaluate, rng: np.random.Generator) -> Sequence[Sequence[float]]:
        weights = [1.0] * policies if self.weights is None else self.weights
        if len(weights) > policies:
            raise FateError(f"soup: {len(weights)} weights for {policies} policies; give at most one for each.")
        whole = [*weights, *[0.0] * (policies - len(weights))]
        return [[weight / sum(weights) for weight in whole]]


class Start:
    """The policy before round 1 alone, as a `reference` for all rounds; of named policies it is the last one."""

    def coefficients(self, policies: int, evaluate: Evaluate, rng: np.random.Generator) -> Sequence[Sequence[float]]:
        return [[*[0.0] * (policies - 1), 1.0]]


@hookimpl
def fate_trl_merges() -> list[Component]:
    return [
        Component("soup", Soup, "the weighted average of policies"),
        Component("start", Start, "the policy before round 1, alone"),
    ]
