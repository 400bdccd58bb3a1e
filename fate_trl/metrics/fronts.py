"""Several policies by the means of their objectives: those that none dominates, how isolated each is, and the best one
for a wish. This is C-MORL's archive of policies; it trains nothing.

Source: C-MORL (Liu et al. 2024), the authors' code: what no other dominates is kept, crowding says which policies to
extend, and a preference w is answered by the argmax of w · G over what is kept. How ties are broken is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..choose import pareto
from ..types import Case
from .definitions import objective_metric
from .intervals import measure
from .totals import Array, table_of


def objective_means(cases: Sequence[Case], objectives: Sequence[str], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """`summarize`'s `mean_<objective>` of these objectives alone, by objective; one without a case is left out."""
    measured, _ = measure(table_of((cases,), (1.0,)), [objective_metric(name) for name in objectives], seed)
    return {name: measured[f"mean_{name}"] for name in objectives if f"mean_{name}" in measured}


def dominators(means_N_M: Array) -> list[list[int]]:
    """Of each policy (N, M) the numbers of those that dominate it; none for what is on the front.

    A policy dominates another if no objective's mean is lower and one is higher. An objective that is NaN for all does
    not apply, and drops out; a policy that lacks one that others have is a ValueError.
    """
    means = _applying(means_N_M)
    at_least_N_N = np.logical_and.reduce(means[:, None] >= means[None], axis=2)
    above_N_N = np.logical_or.reduce(means[:, None] > means[None], axis=2)
    return [np.flatnonzero(at_least_N_N[:, n] & above_N_N[:, n]).tolist() for n in range(len(means))]


def isolation(means_F_M: Array) -> Array:
    """How isolated each member (F,) of a front is: its crowding distance, infinite at the ends of an objective."""
    return pareto.crowding_distance(_applying(means_F_M))


def most_isolated(means_F_M: Array, count: int) -> list[int]:
    """Numbers of the `count` most isolated members, or of as many as there are; of equal ones the first only.

    Ties, such as those of the ends, go to the higher mean of all objectives, then to the first (ours).
    """
    means = _applying(means_F_M)
    first_K = np.sort(np.unique(means, axis=0, return_index=True)[1])
    order = np.lexsort((-means.mean(axis=1)[first_K], -isolation(means)[first_K]))
    return [int(member) for member in first_K[order][:count]]


def wished(means_F_M: Array, weights_M: Array) -> int:
    """Number of the member with the highest weighted sum; of equals that with the higher mean, then the first.

    Args:
        means_F_M: Means of a front's members.
        weights_M: At least 0 each, and above 0 for an objective that applies.
    """
    applies_M = ~np.isnan(means_F_M).all(axis=0)
    if (weights_M < 0).any() or not (weights_M[applies_M] > 0).any():
        raise ValueError("a wish has weights of at least 0, and one above 0 that applies")
    means = _applying(means_F_M)
    return int(np.lexsort((-means.mean(axis=1), -(means @ weights_M[applies_M])))[0])


_DIGITS = 9
"""Decimals of a mean that count: sums of the same scores in another order differ behind them, and decide nothing."""


def _applying(means_N_M: Array) -> Array:
    """The objectives that apply, rounded."""
    means = np.asarray(means_N_M, float)
    means = means[:, ~np.isnan(means).all(axis=0)]
    if not means.size or not np.isfinite(means).all():
        raise ValueError("policies need finite means (N ≥ 1, M ≥ 1) of the objectives that apply")
    return means.round(_DIGITS)
