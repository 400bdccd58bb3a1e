"""Paired differences of plain columns of numbers: for results that were made elsewhere and hold no trajectories.

The intervals are those of the metrics, bootstrap-t over clusters, after the values were brought to [0, 1] by the range
that the two sides have together. The tests: for zeros and ones the exact sign test on clusters, for other numbers a
test by flipping the signs of the clusters' differences (Fisher's randomisation test), exact up to 14 clusters, else by
10,000 seeded draws. Corrections for several scores: Holm (1979), Benjamini and Hochberg (1995).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .comparing import sign_test
from .intervals import intervals
from .totals import Design

Array = NDArray[np.float64]
Correction = Literal["holm", "bh", "none"]

EXACT_CLUSTERS = 14
"""Up to this many clusters all 2^C flips of signs are tried (ours)."""

FLIPS = 10_000
"""Random flips of signs beyond that (ours); p is no smaller than 1 / (FLIPS + 1)."""

_BLOCK = 2_000_000  # entries of a (flips, clusters) array held at once: 16 MB


def paired_columns(
    columns: Mapping[str, tuple[Array, Array, NDArray[np.intp]]], *, seed: int = 0, correction: Correction = "holm"
) -> dict[str, dict[str, Any]]:
    """What changed from a to b in each column.

    Args:
        columns: By name the values a (N,) and b (N,) of the same cases, finite, and the number of each case's cluster
            (N,), from 0 without gaps.
        seed: Seed of resamples and of flips, non-negative.
        correction: How p is corrected for the number of columns that have one.

    Returns:
        {name: {"a", "b", "value", "low", "high", "n", "clusters", "p", "p_corrected"}}: the two means, the mean of
        b − a with its 95 % interval, and the p-values in (0, 1]. Columns of zeros and ones also have "rose" and
        "fell", the numbers of cases that went from 0 to 1 and back. "few_clusters" as in the metrics.
    """
    scaled = {name: _scaled(a_N, b_N) for name, (a_N, b_N, _) in columns.items()}
    designs = {name: _design(scaled[name][:2], (-1.0, 1.0), columns[name][2]) for name in columns}
    measured = intervals(designs, seed)
    found: dict[str, dict[str, Any]] = {}
    for name, (a_N, b_N, cluster_N) in columns.items():
        unit = scaled[name][2]
        entry = {**measured[name], "a": float(a_N.mean()), "b": float(b_N.mean())}
        entry |= {key: entry[key] * unit for key in ("value", "low", "high")}
        found[name] = entry | _tested(a_N, b_N, cluster_N, seed)
    for name, p in zip(found, corrected([entry["p"] for entry in found.values()], correction), strict=True):
        found[name]["p_corrected"] = p
    return found


def one_mean(value_N: Array, cluster_N: NDArray[np.intp], *, seed: int = 0) -> dict[str, Any]:
    """One mean of values in [0, 1] with its 95 % interval, as the metrics make it.

    Args:
        value_N: The values, finite.
        cluster_N: The number of each case's cluster, from 0 without gaps.
        seed: Seed of the resamples, non-negative.
    """
    simple = bool(np.isin(value_N, (0.0, 1.0)).all() and len(value_N) == int(cluster_N.max()) + 1)
    return intervals({"": _design((value_N,), (1.0,), cluster_N, simple)}, seed)[""]


def _scaled(a_N: Array, b_N: Array) -> tuple[Array, Array, float]:
    """Both sides in [0, 1], and what 1 is worth in their unit; values that lie there already stay as they are."""
    low, high = min(a_N.min(), b_N.min()), max(a_N.max(), b_N.max())
    if low >= 0 and high <= 1:
        return a_N, b_N, 1.0
    unit = float(high - low) or 1.0
    return (a_N - low) / unit, (b_N - low) / unit, unit


def _design(
    sides_S: Sequence[Array], sign_S: Sequence[float], cluster_N: NDArray[np.intp], simple: bool = False
) -> Design:
    """The totals of each side, one mean each."""
    clusters = int(cluster_N.max()) + 1
    counts_C = np.bincount(cluster_N, minlength=clusters).astype(float)
    totals_C_S_2 = np.stack(
        [np.stack([np.bincount(cluster_N, side_N, clusters), counts_C], axis=-1) for side_N in sides_S], axis=1
    )
    return Design(
        totals_C_S_F_K_2=totals_C_S_2[:, :, None, None, :],
        weight_F_K=np.ones((1, 1)),
        sign_S=np.array(sign_S),
        n=len(cluster_N),
        simple=simple,
    )


def _tested(a_N: Array, b_N: Array, cluster_N: NDArray[np.intp], seed: int) -> dict[str, Any]:
    change_N = b_N - a_N
    change_C = np.bincount(cluster_N, change_N).astype(float)
    if np.isin(a_N, (0.0, 1.0)).all() and np.isin(b_N, (0.0, 1.0)).all():
        p = sign_test(int((change_C > 0).sum()), int((change_C < 0).sum()))
        return {"rose": int((change_N > 0).sum()), "fell": int((change_N < 0).sum()), "p": p}
    return {"p": flip_test(change_C, seed)}


def flip_test(change_C: Array, seed: int = 0) -> float:
    """Two-sided p-value, in (0, 1], of a sum of differences if each had been as likely with the other sign.

    Args:
        change_C: The differences, one for each cluster.
        seed: Seed of the draws, where not all flips are tried.
    """
    change_C = change_C[change_C != 0]
    count = len(change_C)
    if count == 0:
        return 1.0
    least = abs(change_C.sum()) * (1 - 1e-12)  # sums in another order are equal to rounding only
    if count <= EXACT_CLUSTERS:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ change_C) >= least).mean())
    rng, reached, block = np.random.default_rng([seed, count]), 0, max(1, _BLOCK // count)
    for start in range(0, FLIPS, block):
        signs = 1 - 2 * rng.integers(2, size=(min(block, FLIPS - start), count), dtype=np.int8)
        reached += int((np.abs(signs @ change_C) >= least).sum())
    return (reached + 1) / (FLIPS + 1)


def corrected(p_K: Sequence[float], how: Correction) -> list[float]:
    """p-values corrected for their number: Holm's hold the family's error, Benjamini and Hochberg's the false share."""
    if how == "none" or not p_K:
        return list(p_K)
    order = np.argsort(p_K, kind="stable")
    sorted_K, count = np.asarray(p_K, dtype=float)[order], len(p_K)
    if how == "holm":
        stepped = np.maximum.accumulate(sorted_K * (count - np.arange(count)))
    else:
        stepped = np.minimum.accumulate((sorted_K * count / np.arange(1, count + 1))[::-1])[::-1]
    out = np.empty(count)
    out[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in out]
