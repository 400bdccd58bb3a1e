"""From scored cases to arrays: a table of all cases, and for one metric their totals by cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..types import KINDS, Case, Task
from .definitions import Metric
from .excluded import is_error

Array = NDArray[np.float64]


def _cluster(task: Task) -> tuple[str, str, str]:
    return (task.suite, "cluster", task.cluster) if task.cluster else (task.suite, "task", task.id)


@dataclass(frozen=True)
class Table:
    """Cases ready for every metric. Axes: S sides (1, or 2 for a comparison), N cases.

    Attributes:
        cases_S: Per side the cases, aligned: column i is the same task and attempt on each side.
        cluster_N: Number of the cluster of each column.
        kind_N: Index into KINDS.
        error_S_N: Whether the case is an infrastructure error.
        sign_S: +1 for the side that is measured, -1 for the one that is subtracted.
    """

    cases_S: tuple[Sequence[Case], ...]
    cluster_N: NDArray[np.intp]
    kind_N: NDArray[np.intp]
    error_S_N: NDArray[np.bool_]
    sign_S: Array


def table_of(cases_S: tuple[Sequence[Case], ...], sign_S: Sequence[float]) -> Table:
    tasks = [trajectory.task for trajectory, _ in cases_S[0]]
    # Sorted, so that resamples do not depend on the order in which episodes finished.
    number = {cluster: i for i, cluster in enumerate(sorted({_cluster(task) for task in tasks}))}
    return Table(
        cases_S=cases_S,
        cluster_N=np.array([number[_cluster(task)] for task in tasks], dtype=np.intp),
        kind_N=np.array([KINDS.index(task.kind) for task in tasks], dtype=np.intp),
        error_S_N=np.array([[is_error(case) for case in cases] for cases in cases_S], dtype=bool),
        sign_S=np.array(sign_S, dtype=float),
    )


@dataclass(frozen=True)
class Design:
    """One metric's cases as totals per cluster. Axes: C clusters, S sides, F factors, K strata.

    Attributes:
        totals_C_S_F_K_2: Weighted sum of values, and sum of weights (the number of cases, where all count the same).
        weight_F_K: Weight of each stratum's mean in its factor; 0 for strata without a case.
        sign_S: Sign of each side.
        n: Number of cases (pairs, for two sides).
        simple: Whether it is one mean of zeros and ones with one case in each cluster.
    """

    totals_C_S_F_K_2: Array
    weight_F_K: Array
    sign_S: Array
    n: int
    simple: bool

    @property
    def clusters(self) -> int:
        return len(self.totals_C_S_F_K_2)

    @property
    def smallest(self) -> int:
        """Clusters in the smallest stratum: a mean by kind is no better known than its least known kind."""
        clusters_F_K = (self.totals_C_S_F_K_2[:, 0, :, :, 1] > 0).sum(axis=0)
        return int(clusters_F_K[self.weight_F_K > 0].min())

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, 1.0) if len(self.sign_S) == 1 else (-1.0, 1.0)


def values_of(table: Table, metric: Metric, fill: Array | None) -> Array:
    """Per-case values of a metric that is no product, shape (S, N); NaN where there is none.

    Errors are NaN, or with `fill` (S,) that number where the metric is defined on the task. A case that lacks a value
    on one side lacks it on all.
    """
    values_S_N = np.full(table.error_S_N.shape, np.nan)
    for s, cases in enumerate(table.cases_S):
        for i, (trajectory, card) in enumerate(cases):
            if not metric.applies(trajectory.task):
                continue
            value = metric.value(trajectory, card) if not table.error_S_N[s, i] else None if fill is None else fill[s]
            if value is not None:
                values_S_N[s, i] = value
    values_S_N[:, np.isnan(values_S_N).any(axis=0)] = np.nan
    return values_S_N


def _weights(table: Table, metric: Metric) -> Array:
    """How much each case counts: an array of the shape (S, N)."""
    return np.array([[metric.weight(trajectory) for trajectory, _ in cases] for cases in table.cases_S])


def design_of(table: Table, metric: Metric, fill: Array | None = None) -> Design | None:
    """Totals of a metric; None if it, or one of its factors, has no case."""
    factors = metric.factors or (metric,)
    strata_N = table.kind_N if metric.by_kind else np.zeros_like(table.kind_N)
    n_strata = len(KINDS) if metric.by_kind else 1
    n_clusters = int(table.cluster_N.max(initial=-1)) + 1
    totals = np.zeros((n_clusters, len(table.sign_S), len(factors), n_strata, 2))
    values_F_S_N = np.stack([values_of(table, factor, fill) for factor in factors])
    weights_F_S_N = np.stack([_weights(table, factor) for factor in factors])
    for f, s in np.ndindex(values_F_S_N.shape[:2]):
        used = ~np.isnan(values_F_S_N[f, s])
        place = (table.cluster_N[used], strata_N[used])
        weights = weights_F_S_N[f, s, used]
        np.add.at(totals[:, s, f, :, 0], place, weights * values_F_S_N[f, s, used])
        np.add.at(totals[:, s, f, :, 1], place, weights)
    present_F_K = totals[:, 0, :, :, 1].sum(axis=0) > 0
    if not present_F_K.any(axis=1).all():
        return None
    used_N = ~np.isnan(values_F_S_N).all(axis=(0, 1))
    clusters, sizes = np.unique(table.cluster_N[used_N], return_counts=True)
    values, weights = (array[~np.isnan(values_F_S_N)] for array in (values_F_S_N, weights_F_S_N))
    one_mean = len(table.sign_S) == 1 and present_F_K.sum() == 1
    return Design(
        totals_C_S_F_K_2=totals[clusters],
        weight_F_K=present_F_K / present_F_K.sum(axis=1, keepdims=True),
        sign_S=table.sign_S,
        n=int(used_N.sum()),
        simple=one_mean and bool((sizes == 1).all() and np.isin(values, (0, 1)).all() and (weights == 1).all()),
    )
