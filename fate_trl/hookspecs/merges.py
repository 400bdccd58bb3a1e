"""The contract of merges: how the weights of several policies become one policy's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

Evaluate = Callable[[Sequence[float]], Sequence[float]]
"""From coefficients to what a policy merged by them scores on validation tasks: the mean by objective, in [0, 1], in
the order of the run's objectives; NaN where an objective applies to none of the tasks."""


class Merge(Protocol):
    """Says which shares of policies a merged policy has. It moves no weights itself.

    `coefficients` gets the number of policies, what evaluates a choice (each call rolls policies out, so it costs), and
    a generator. It returns one row of coefficients per merged policy, the one to take first; each row has one number
    per policy and sums to 1, and any of them may be negative. In a round the policies are the one that was just
    trained, then those of earlier accepted rounds as they were trained, the latest first, and the policy before round 1
    last; for `fate-trl merge` they are those that are named, in their order.

    Optional: `metrics()`, numbers by name about the last choice; they stand in the stage's record, as `merge`.
    """

    def coefficients(
        self, policies: int, evaluate: Evaluate, rng: np.random.Generator
    ) -> Sequence[Sequence[float]]: ...
