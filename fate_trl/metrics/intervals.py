"""Values of metrics with their 95 % intervals, and with what the excluded cases could have made of them.

Intervals are two-sided, 95 %, and clipped to the metric's range. A cluster is (suite, `Task.cluster`), or
(suite, task id) for tasks without one.

- Zeros and ones, one case per cluster, one mean: Wilson's score interval (Wilson 1927).
- Everything else: bootstrap-t over clusters (Efron & Tibshirani 1993, ch. 12.5), 2000 resamples, with linearised
  cluster-robust standard errors, on the arcsine scale, which evens out the variance near the ends of the range
  (simulated: nearer to 95 % than without it, and never off the range).
- If (almost) all clusters agree, resamples without any variance are common and a bootstrap knows nothing. Then a
  share h of unseen clusters may differ as much as the range allows, where h = z² / (C + z²) is Wilson's upper end for
  0 of C clusters. At 0 and 1 that is Wilson's interval on the number of clusters, which is conservative: more
  cases in a cluster buy nothing. The plain normal interval is joined to it.
- Below 20 clusters, in its smallest kind for a mean by kind, an interval is flagged (`few_clusters`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from .definitions import Metric
from .totals import Array, Design, Table, design_of

FEW_CLUSTERS = 20
"""Below this many clusters an interval is flagged (ours)."""

_Z = 1.959963984540054  # 97.5 % point of the normal distribution
RESAMPLES = 2000
BLOCK = 2_000_000  # entries of a (resamples, clusters) array held at once: 16 MB
_BROKEN = 0.01  # share of resamples without variance above which the bootstrap's 2.5 % tail is not believed
_ZERO_ERROR = 1e-9  # standard errors below this are rounding noise of 0


def _estimate(totals_B_S_F_K_2: Array, design: Design) -> tuple[Array, Array]:
    """Estimates (B,) from totals, and their gradients by the totals (B, S, F, K, 2); NaN where a stratum is empty."""
    weight, sign = design.weight_F_K, design.sign_S
    sums, counts = totals_B_S_F_K_2[..., 0], np.where(weight > 0, totals_B_S_F_K_2[..., 1], 1.0)
    counts = np.where(counts > 0, counts, np.nan)
    means = sums / counts
    factors_B_S_F = (weight * means).sum(axis=-1)
    # Products of the *other* factors without dividing, since a factor may be 0.
    others = np.stack(
        [np.delete(factors_B_S_F, f, axis=-1).prod(axis=-1) for f in range(factors_B_S_F.shape[-1])], axis=-1
    )
    by_sum = sign[:, None, None] * others[..., None] * weight / counts
    return (sign * factors_B_S_F.prod(axis=-1)).sum(axis=-1), np.stack([by_sum, -by_sum * means], axis=-1)


def estimate_with_error(weights_B_C: Array, design: Design) -> tuple[Array, Array]:
    """Estimates and linearised, cluster-robust standard errors, both (B,), with each cluster taken so many times."""
    c = design.clusters
    flat_C_D = design.totals_C_S_F_K_2.reshape(c, -1)
    totals = (weights_B_C @ flat_C_D).reshape(-1, *design.totals_C_S_F_K_2.shape[1:])
    estimates, gradients = _estimate(totals, design)
    # Ratios do not change when all totals are scaled, so these influences sum to 0 without centring.
    influence_B_C = gradients.reshape(len(totals), -1) @ flat_C_D.T
    variance = np.einsum("bc,bc,bc->b", weights_B_C, influence_B_C, influence_B_C)
    return estimates, np.sqrt(variance * c / max(c - 1, 1))


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share in [0, 1] of n independent cases."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _unseen(value: float, error: float, design: Design) -> tuple[float, float]:
    """Interval where (almost) all clusters agree: see the module's docstring.

    A cluster that differs may do so in every factor of a product at once, hence the power.
    """
    share = 1 - (design.smallest / (design.smallest + _Z**2)) ** len(design.weight_F_K)
    low, high = design.range
    below, above = max(share * (value - low), _Z * error), max(share * (high - value), _Z * error)
    return value - below, value + above


def _angle(estimates: Array, errors: Array, design: Design) -> tuple[Array, Array]:
    """Estimates and standard errors on the arcsine scale, in radians."""
    low, high = design.range
    share = np.clip((estimates - low) / (high - low), 1e-12, 1 - 1e-12)
    return np.arcsin(np.sqrt(share)), errors / (2 * (high - low) * np.sqrt(share * (1 - share)))


def _bootstrap_t(value: Array, error: Array, t: Array, design: Design) -> tuple[float, float]:
    """Interval from the studentized resamples `t`, taken back from the arcsine scale."""
    low, high = design.range
    angle, spread = _angle(value, error, design)
    ends = np.clip(angle - np.quantile(t, (0.975, 0.025)) * spread, 0, np.pi / 2)
    return tuple((low + (high - low) * np.sin(ends) ** 2).tolist())


def _studentized(designs: Sequence[Design], seed: int) -> list[Array]:
    """Per design the studentized resamples that have a variance, at most 2000; designs of one size share resamples."""
    out: list[list[Array]] = [[] for _ in designs]
    by_size: dict[int, list[int]] = defaultdict(list)
    for i, design in enumerate(designs):
        by_size[design.clusters].append(i)
    for size, members in by_size.items():
        rng = np.random.default_rng([seed, size])
        centres = {i: _angle(*estimate_with_error(np.ones((1, size)), designs[i]), designs[i])[0] for i in members}
        block = max(1, BLOCK // size)
        for start in range(0, RESAMPLES, block):
            b = min(block, RESAMPLES - start)
            draws = rng.integers(size, size=(b, size)) + np.arange(b)[:, None] * size
            weights_B_C = np.bincount(draws.ravel(), minlength=b * size).reshape(b, size).astype(float)
            for i in members:
                estimates, errors = estimate_with_error(weights_B_C, designs[i])
                sound = errors > _ZERO_ERROR
                angles, spreads = _angle(estimates[sound], errors[sound], designs[i])
                out[i].append((angles - centres[i]) / spreads)
    return [np.concatenate(blocks) for blocks in out]


def intervals(designs: dict[str, Design], seed: int) -> dict[str, dict[str, Any]]:
    """Value, interval, n and clusters of each design."""
    point = {name: estimate_with_error(np.ones((1, d.clusters)), d) for name, d in designs.items()}
    resampled = [name for name, d in designs.items() if not d.simple and point[name][1][0] > _ZERO_ERROR]
    t_by_name = dict(zip(resampled, _studentized([designs[name] for name in resampled], seed), strict=True))
    out: dict[str, dict[str, Any]] = {}
    for name, design in designs.items():
        value, error = (float(array[0]) for array in point[name])
        t = t_by_name.get(name, np.empty(0))
        if design.simple:
            low, high = wilson(value, design.n)
        elif len(t) < (1 - _BROKEN) * RESAMPLES:
            low, high = _unseen(value, error, design)
        else:
            low, high = _bootstrap_t(*point[name], t, design)
        least, most = design.range
        out[name] = {
            "value": value,
            "low": max(least, min(low, value)),
            "high": min(most, max(high, value)),
            "n": design.n,
            "clusters": design.clusters,
        }
        if design.smallest < FEW_CLUSTERS:
            out[name]["few_clusters"] = True
    return out


def _error_bounds(table: Table, metrics: Sequence[Metric]) -> dict[str, list[float]]:
    """Lowest and highest value of each metric over what the excluded cases could have been; {} without errors."""
    bounds: dict[str, list[float]] = {}
    if not table.error_S_N.any():
        return bounds
    lowest = (table.sign_S < 0).astype(float)  # a side that is subtracted lowers the result by being high
    for metric in metrics:
        designs = [design_of(table, metric, fill) for fill in (lowest, 1 - lowest)]
        ends = [_estimate(d.totals_C_S_F_K_2.sum(axis=0)[None], d)[0] for d in designs if d is not None]
        if ends:  # filling decides the values, not which cases count: both designs are there or none is
            bounds[metric.name] = [float(end[0]) for end in ends]
    return bounds


def measure(table: Table, metrics: Sequence[Metric], seed: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Measured metrics with their error bounds, and the bounds by themselves."""
    designs = {metric.name: design for metric in metrics if (design := design_of(table, metric)) is not None}
    measured, bounds = intervals(designs, seed), _error_bounds(table, metrics)
    for name in measured.keys() & bounds.keys():
        measured[name]["error_low"], measured[name]["error_high"] = bounds[name]
    return measured, bounds


def point_values(table: Table, metrics: Sequence[Metric]) -> dict[str, dict[str, Any]]:
    """{"value", "n"} of each metric, without an interval."""
    found = {metric.name: design for metric in metrics if (design := design_of(table, metric)) is not None}
    values = {name: float(estimate_with_error(np.ones((1, d.clusters)), d)[0][0]) for name, d in found.items()}
    return {name: {"value": value, "n": found[name].n} for name, value in values.items()}
