"""Pareto sorting and group rewards: pure NumPy, batched over groups, no state.

Every function takes G groups of N rows with M objectives as `scores_G_N_M`, higher is better, and reads it alike:

- Row i dominates row j iff i ≥ j on every objective that applies and i > j on one. Exact duplicates share a front.
- An objective that is NaN in every valid row of a group does not apply there, and drops out.
- Rows that are False in `valid_G_N` (infrastructure errors) leave fronts and baselines and get NaN, or rank −1.
- Any other NaN or infinity in a valid row is a ValueError: libraries put such rows on the front or drop all others
  without a word, so errors are removed first (`complete_rows`).

Speed: rows are compared all against all, one objective at a time, with the groups along the innermost axis, so
that each comparison is one long vector instruction stream whatever N is; groups go in chunks whose boolean
temporaries stay in cache. See benchmarks/pareto.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

TieBreak = Literal["mean", "scaled", "worst", "augmented", "product", "crowding"]

MEAN_SHARE = 0.1
"""What the mean counts beside the lowest objective in the tie-break "augmented"."""

CELLS = 1 << 19
"""Booleans in one temporary of a chunk; 512 KB was the fastest of 16 KB to 512 KB, for N = 8 to 64 (ours)."""


# ------------------------------------------------------------------------------------------------ input


def complete_rows(scores_G_N_M: np.ndarray) -> np.ndarray:
    """Rows (G, N) without a NaN in an objective that some row of their group has: what `valid_G_N` should hold.

    A group where no objective applies is complete.
    """
    missing_G_N_M = np.isnan(scores_G_N_M)
    lacking_G_N_M = missing_G_N_M & ~missing_G_N_M.all(axis=1, keepdims=True)
    complete_G_N: np.ndarray = ~np.logical_or.reduce(lacking_G_N_M, axis=2)
    return complete_G_N


def orient(scores_G_N_M: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    """Scores with the sign of their weight: a negative weight means lower is better, weight 0 drops the objective.

    TRL users write penalties and columns that are only logged in this way. (ours)
    """
    return np.asarray(scores_G_N_M, float) * np.where(weights_M == 0, np.nan, np.sign(weights_M))


def _clean(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with 0 for what is not finite, valid_G_N, and applies_G_M.

    float32 stays float32, because comparing it is twice as fast; everything else becomes float64.
    """
    scores = np.asarray(scores_G_N_M)
    if scores.ndim != 3 or not scores.shape[2]:
        raise ValueError(f"scores must have the shape (groups, rows, objectives ≥ 1), not {scores.shape}")
    if scores.dtype != np.float32:
        scores = scores.astype(np.float64, copy=False)
    valid = np.ones(scores.shape[:2], bool) if valid_G_N is None else np.asarray(valid_G_N, bool)
    if valid.shape != scores.shape[:2]:
        raise ValueError(f"valid_G_N has the shape {valid.shape}; scores need {scores.shape[:2]}")
    finite = np.isfinite(scores)
    if finite.all():
        return scores, valid, np.ones((scores.shape[0], scores.shape[2]), bool)
    applies = np.logical_or.reduce(~np.isnan(scores) & valid[:, :, None], axis=1)
    broken = ~finite & valid[:, :, None] & applies[:, None]
    if broken.any():
        g, n, m = np.argwhere(broken)[0]
        raise ValueError(
            f"group {g}, row {n}, objective {m} is {scores[g, n, m]}, though other rows have a value: "
            "mark rows with errors as not valid (see complete_rows)"
        )
    return np.where(finite, scores, 0), valid, applies


def _masked(values_G_N: np.ndarray, valid_G_N: np.ndarray, applies_G_M: np.ndarray) -> np.ndarray:
    """NaN for rows that are not valid, and for whole groups where no objective applies."""
    some_G = np.logical_or.reduce(applies_G_M, axis=1)
    return np.where(valid_G_N & some_G[:, None], values_G_N, np.nan)


# ------------------------------------------------------------------------------------------------ fronts


def _beats(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Chunk by chunk: the groups, and beats_N_N_g, True where the first row dominates the second."""
    groups, rows, _ = scores_G_N_M.shape
    step = max(1, CELLS // max(1, rows * rows))
    for start in range(0, groups, step):
        chunk = slice(start, min(start + step, groups))
        columns_M_N_g = np.ascontiguousarray(scores_G_N_M[chunk].transpose(2, 1, 0))
        at_least = columns_M_N_g[0][:, None] >= columns_M_N_g[0][None]
        buffer = np.empty_like(at_least)
        for column in columns_M_N_g[1:]:
            np.greater_equal(column[:, None], column[None], out=buffer)
            at_least &= buffer
        # At least as good everywhere, and not the other way round: better somewhere.
        np.greater(at_least, at_least.transpose(1, 0, 2), out=buffer)
        if not valid_G_N[chunk].all():
            buffer &= valid_G_N[chunk].T[:, None]
        yield chunk, buffer


def first_front(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray | None = None) -> np.ndarray:
    """Booleans (G, N): valid and dominated by no valid row."""
    scores, valid, _ = _clean(scores_G_N_M, valid_G_N)
    out_G_N = np.empty(valid.shape, bool)
    for chunk, beats in _beats(scores, valid):
        out_G_N[chunk] = ~np.logical_or.reduce(beats, axis=0).T
    out_G_N &= valid
    return out_G_N


def front_ranks(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray | None = None) -> np.ndarray:
    """Integers (G, N): 0 on the first front, 1 on the front of what remains, and so on; −1 for rows not valid."""
    scores, valid, _ = _clean(scores_G_N_M, valid_G_N)
    out_G_N = np.empty(valid.shape, np.int64)
    for chunk, beats in _beats(scores, valid):
        ranks_N_g = np.zeros(beats.shape[1:], np.int32)
        beaten_N_g = np.logical_or.reduce(beats, axis=0)
        while beaten_N_g.any():
            ranks_N_g += beaten_N_g
            beats &= beaten_N_g[:, None]  # peel: the rows of this front beat nobody any more
            beaten_N_g = np.logical_or.reduce(beats, axis=0)
        out_G_N[chunk] = ranks_N_g.T
    return np.where(valid, out_G_N, -1)


# ------------------------------------------------------------------------------------------------ density and volume


def crowding_distance(scores_N_M: np.ndarray) -> np.ndarray:
    """Crowding distance (N,) of one front without NaN: the mean over objectives of the gap between the neighbours,
    as a share of the objective's range; infinite at the ends of an objective.

    Source: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002. Ours: duplicates count
    once and share their value, and an objective that is constant adds nothing, so the order of the rows is irrelevant.
    """
    distinct_K_M, back_N = np.unique(np.asarray(scores_N_M, float), axis=0, return_inverse=True)
    distance_K = np.zeros(len(distinct_K_M))
    if len(distinct_K_M) == 1:
        distance_K[:] = np.inf
    for column in distinct_K_M.T:
        order = np.argsort(column, kind="stable")
        values = column[order]
        if len(values) and values[-1] > values[0]:
            distance_K[order[[0, -1]]] = np.inf
            distance_K[order[1:-1]] += (values[2:] - values[:-2]) / (values[-1] - values[0])
    return np.asarray(distance_K[back_N.reshape(-1)] / max(1, distinct_K_M.shape[1]))


def hypervolume(scores_N_M: np.ndarray, reference_M: np.ndarray) -> float:
    """Exact volume that the rows (N, M) dominate above the reference (M,), in the product of the objectives' units.

    Slices along the last objective and recurses, so about N^(M−1) steps: meant for fronts of some dozens of rows and
    up to five objectives. Rows not above the reference in every objective add nothing. Raises ValueError on NaN.
    """
    above_N_M = np.asarray(scores_N_M, float) - np.asarray(reference_M, float)
    if above_N_M.ndim != 2 or not above_N_M.shape[1] or np.isnan(above_N_M).any():
        raise ValueError("hypervolume needs rows (N, M ≥ 1) and a reference (M,), without NaN")
    return _volume(above_N_M[(above_N_M > 0).all(axis=1)])


def _volume(above_N_M: np.ndarray) -> float:
    """Volume between the origin and rows that are all positive."""
    if not len(above_N_M):
        return 0.0
    if above_N_M.shape[1] == 1:
        return float(above_N_M.max())
    front = np.unique(above_N_M[first_front(above_N_M[None])[0]], axis=0)
    front = front[np.argsort(-front[:, -1])]
    depths = front[:, -1] - np.append(front[1:, -1], 0.0)
    return float(sum(depth * _volume(front[: k + 1, :-1]) for k, depth in enumerate(depths) if depth > 0))


# ------------------------------------------------------------------------------------------------ group rewards


def weighted_sum(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    """Sum (G, N) of weight · score over the objectives that apply."""
    scores, valid, applies = _clean(scores_G_N_M, valid_G_N)
    total_G_N = np.zeros(valid.shape)
    # One objective after the other, so that rounding is the same in every row and never puts a dominated row ahead.
    for m, weight in enumerate(weights_M):
        total_G_N += weight * scores[:, :, m]
    return _masked(total_G_N, valid, applies)


def _weighted_mean(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    """Weighted mean (G, N) of the objectives that apply."""
    _, _, applies = _clean(scores_G_N_M, valid_G_N)
    weight_G = (applies * weights_M).sum(axis=1)
    return weighted_sum(scores_G_N_M, valid_G_N, weights_M) / np.where(weight_G > 0, weight_G, 1.0)[:, None]


def _regrets(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    """How far each score is from the best in its group, as a share of the group's range there (G, N, M).

    0 where all are equal, NaN where an objective does not apply.
    """
    scores, valid, applies = _clean(scores_G_N_M, valid_G_N)
    among = valid[:, :, None]
    best_G_1_M = scores.max(axis=1, where=among, initial=-np.inf, keepdims=True)
    range_G_1_M = best_G_1_M - scores.min(axis=1, where=among, initial=np.inf, keepdims=True)
    range_G_1_M = np.where(range_G_1_M > 0, range_G_1_M, np.inf)  # no range, or no valid row
    return np.where(applies[:, None] & among, best_G_1_M - scores, np.nan) / range_G_1_M


def tie_values(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray, how: TieBreak) -> np.ndarray:
    """What decides between rows of one front, (G, N), higher is better (ours: the paper's formula is not public).

    "mean": weighted mean of the objectives that apply. "scaled": the same, each first stretched to [0, 1] over its
    range in the group, so that no unit outweighs another. "worst": the lowest of them, without weights. "augmented":
    the same plus `MEAN_SHARE` of the weighted mean, so that rows with one lowest objective are told apart by the others
    (augmented Chebyshev: Steuer & Choo 1983). "product": `product_reward`, the volume of the box under the row.
    "crowding": crowding distance within the first front, at most 1, and 0 behind it: it sees neighbours, not sizes, so
    among rows behind the front it could put a dominated one ahead. Weights must not be negative (`orient`).
    """
    scores, valid, applies = _clean(scores_G_N_M, valid_G_N)
    if how == "mean":
        return _weighted_mean(scores_G_N_M, valid, weights_M)
    if how == "scaled":
        return _weighted_mean(1.0 - _regrets(scores_G_N_M, valid), valid, weights_M)
    if how == "product":
        return product_reward(scores_G_N_M, valid_G_N, weights_M)
    if how in ("worst", "augmented"):
        lowest_G_N = _masked(np.where(applies[:, None], scores, np.inf).min(axis=2), valid, applies)
        if how == "worst":
            return lowest_G_N
        return lowest_G_N + MEAN_SHARE * _weighted_mean(scores_G_N_M, valid, weights_M)
    values_G_N = np.zeros(valid.shape)
    for g, front_N in enumerate(first_front(scores, valid)):
        values_G_N[g, front_N] = np.minimum(crowding_distance(scores[g, front_N][:, applies[g]]), 1.0)
    return _masked(values_G_N, valid, applies)


def _unit(tie_G_N: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    """Tie-break values in [0, 1]: less the group's lowest, and divided by the group's span where that exceeds 1.

    So scores in [0, 1] keep their differences, and rewards of any other size cannot outgrow the fronts.
    """
    low = tie_G_N.min(axis=1, where=valid_G_N, initial=np.inf, keepdims=True)
    high = tie_G_N.max(axis=1, where=valid_G_N, initial=-np.inf, keepdims=True)
    scaled_G_N: np.ndarray = (tie_G_N - low) / np.maximum(high - low, 1.0)
    return scaled_G_N


def front_reward(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, tie_G_N: np.ndarray, epsilon: float) -> np.ndarray:
    """r_PF (G, N): 1 on the first front, 0 below it, plus epsilon · tie-break scaled to [0, 1] (see `_unit`).

    With epsilon < 1 no dominated row reaches the front. The front's indicator is the paper's, the rest is ours.
    """
    scores, valid, applies = _clean(scores_G_N_M, valid_G_N)
    return _masked(first_front(scores, valid) + epsilon * _unit(tie_G_N, valid), valid, applies)


def rank_reward(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, tie_G_N: np.ndarray, epsilon: float) -> np.ndarray:
    """Reward by front (G, N): 1 on the first, 0 on the last of the group's fronts, evenly spaced between (ours).

    Plus epsilon · gap · tie-break scaled to [0, 1], where gap is the distance of two fronts (1 if there is one
    front): with epsilon < 1 a tie-break never crosses fronts. With one or two fronts this is `front_reward`.
    """
    scores, valid, applies = _clean(scores_G_N_M, valid_G_N)
    ranks_G_N = front_ranks(scores, valid)
    gap_G_1 = 1.0 / np.maximum(ranks_G_N.max(axis=1, initial=1, keepdims=True), 1)
    return _masked(1.0 - gap_G_1 * ranks_G_N + epsilon * gap_G_1 * _unit(tie_G_N, valid), valid, applies)


def product_reward(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    """Product (G, N) of score ** weight over the objectives that apply; weights must not be negative (`orient`).

    Products of negative numbers reverse orders, so with several objectives one that goes below 0 in a group is
    shifted up there until its lowest valid row is 0 (ours). With a single one that applies the reward *is* the score,
    whatever its sign.
    """
    scores, valid, applies = _clean(scores_G_N_M, valid_G_N)
    low_G_1_M = scores.min(axis=1, where=valid[:, :, None], initial=0.0, keepdims=True)
    # Rows that are not valid may lie below the shift; they get NaN in the end.
    powers_G_N_M = np.maximum(scores - low_G_1_M, 0.0) ** weights_M
    single_G = applies.sum(axis=1) == 1
    factors_G_N_M = np.where(single_G[:, None, None], scores, powers_G_N_M)
    product_G_N = np.ones(valid.shape)
    for m in range(len(weights_M)):
        product_G_N *= np.where(applies[:, None, m], factors_G_N_M[:, :, m], 1.0)
    return _masked(product_G_N, valid, applies)


def dominance_count(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    """Rows dominated less rows that dominate (G, N), as a share of the other valid rows: in [−1, 1].

    After the strength of SPEA2 (Zitzler, Laumanns & Thiele 2001), both ways and unsquared (ours).
    """
    scores, valid, applies = _clean(scores_G_N_M, valid_G_N)
    net_G_N = np.empty(valid.shape)
    for chunk, beats in _beats(scores, valid):
        beats = beats & valid[chunk].T[None]
        net_G_N[chunk] = (beats.sum(axis=1) - beats.sum(axis=0)).T
    others_G_1 = np.maximum(valid.sum(axis=1, keepdims=True) - 1, 1)
    return _masked(net_G_N / others_G_1, valid, applies)


def chebyshev_reward(
    scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray, epsilon: float
) -> np.ndarray:
    """1 less the weighted Chebyshev distance to the group's ideal point (G, N), and epsilon · their mean distance less.

    The ideal is the best of each objective in the group; distances are shares of its range there. The second term
    keeps a dominated row behind (augmented Chebyshev: Steuer & Choo 1983). Weights must be above 0 where an objective
    applies; they count by their share of the largest.
    """
    _, valid, applies = _clean(scores_G_N_M, valid_G_N)
    regrets_G_N_M = _regrets(scores_G_N_M, valid)
    applying_G_M = applies * weights_M
    share_G_M = applying_G_M / np.where(applies.any(axis=1), applying_G_M.max(axis=1), 1.0)[:, None]
    distance_G_N = (share_G_M[:, None] * np.nan_to_num(regrets_G_N_M)).max(axis=2)
    mean_G_N = _weighted_mean(regrets_G_N_M, valid, weights_M)
    return _masked(1.0 - distance_G_N - epsilon * mean_G_N, valid, applies)


def constraint_reward(
    scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray, floors_M: np.ndarray, epsilon: float
) -> np.ndarray:
    """ε-constraint as a reward (G, N): the weighted mean of a row that keeps every floor, below 0 for any other.

    Means are scaled to [0, 1] (see `_unit`). A row below a floor gets what it lacks to its floors, and epsilon · what
    its mean lacks, both negative: floors come first, as in Deb's rules for constraints (2000). A floor of −inf is none.
    """
    scores, valid, applies = _clean(scores_G_N_M, valid_G_N)
    mean_G_N = _unit(_weighted_mean(scores_G_N_M, valid, weights_M), valid)
    lacks_G_N = np.where(applies[:, None], np.maximum(floors_M - scores, 0.0), 0.0).sum(axis=2)
    return _masked(np.where(lacks_G_N > 0, -lacks_G_N - epsilon * (1.0 - mean_G_N), mean_G_N), valid, applies)
