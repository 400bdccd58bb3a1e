"""pareto.py against slow, obvious code, on draws with ties, duplicates, not-applicable columns and invalid rows."""

import itertools
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from fate_trl.choose import pareto

SEEDS = range(40)


def draw(seed):
    """Random (scores_G_N_M, valid_G_N): coarse values, so that ties and duplicates abound."""
    rng = np.random.default_rng(seed)
    groups, rows, columns = rng.integers(1, 6), rng.integers(1, 12), rng.integers(1, 5)
    levels = rng.choice([2, 3, 1000])
    scores = rng.integers(0, levels, (groups, rows, columns)) / 7 - rng.choice([0, 1])
    scores = np.where(rng.random((groups, 1, columns)) < 0.25, np.nan, scores)
    valid = rng.random((groups, rows)) < rng.choice([0.3, 0.8, 1.0])
    # What stands in a row that is not valid must not matter.
    junk = rng.choice([np.nan, np.inf, -np.inf, 9.0], scores.shape)
    return np.where(valid[:, :, None], scores, junk), valid


def vectors(scores_N_M, valid_N):
    """By valid row, its values on the objectives that apply."""
    rows = [i for i in range(len(scores_N_M)) if valid_N[i]]
    applies = [m for m in range(scores_N_M.shape[1]) if any(not np.isnan(scores_N_M[i, m]) for i in rows)]
    return {i: [scores_N_M[i, m] for m in applies] for i in rows}


def beats(a, b):
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def slow_ranks(rows):
    """By row, its front: take away the rows that no remaining row beats, again and again."""
    left, ranks = dict(rows), {}
    for rank in itertools.count():
        if not left:
            return ranks
        front = [i for i in left if not any(beats(left[j], left[i]) for j in left)]
        ranks.update(dict.fromkeys(front, rank))
        left = {i: left[i] for i in left if i not in front}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("cells", [1, 200, pareto.CELLS])
def test_fronts_equal_the_slow_ones(monkeypatch, cells, dtype):
    monkeypatch.setattr(pareto, "CELLS", cells)
    for seed in SEEDS:
        scores, valid = draw(seed)
        scores = scores.astype(dtype)
        ranks = pareto.front_ranks(scores, valid)
        for g in range(len(scores)):
            rows = vectors(scores[g], valid[g])
            expected = slow_ranks(rows)
            assert ranks[g].tolist() == [expected.get(i, -1) for i in range(len(valid[g]))]
        assert (pareto.first_front(scores, valid) == (ranks == 0)).all()


def test_duplicates_share_a_front_and_a_rounding_to_float32_is_not_made():
    twins = np.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    assert pareto.front_ranks(twins).tolist() == [[0, 0, 0, 1]]
    close = np.array([[[1.0], [1.0 + 1e-12]]])
    assert pareto.first_front(close).tolist() == [[False, True]]


def test_empty_input_and_integers():
    assert pareto.first_front(np.zeros((0, 4, 2))).shape == (0, 4)
    assert pareto.front_ranks(np.zeros((3, 0, 2))).shape == (3, 0)
    assert pareto.front_ranks(np.array([[[3, 1], [2, 1]]])).tolist() == [[0, 1]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_value_in_a_valid_row_is_an_error_that_says_where(value):
    scores = np.zeros((3, 4, 2))
    scores[2, 1, 0] = value
    with pytest.raises(ValueError, match="group 2, row 1, objective 0"):
        pareto.first_front(scores)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="shape"):
        pareto.first_front(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="shape"):
        pareto.first_front(np.zeros((4, 2, 0)))
    with pytest.raises(ValueError, match=r"valid_G_N has the shape \(2, 4\)"):
        pareto.first_front(np.zeros((4, 2, 3)), np.ones((2, 4), bool))


def test_complete_rows():
    nan = np.nan
    scores = np.array([[[1, nan, 0], [2, nan, nan], [3, nan, 1]], [[nan] * 3] * 3])
    assert pareto.complete_rows(scores).tolist() == [[True, False, True], [True] * 3]
    pareto.first_front(scores, pareto.complete_rows(scores))  # accepted


# ------------------------------------------------------------------------------------------------ crowding, volume


def slow_crowding(scores):
    """NSGA-II's crowding distance of distinct rows, over objectives that are not constant."""
    out = [0.0] * len(scores)
    for m in range(len(scores[0])):
        order = sorted(range(len(scores)), key=lambda i: scores[i][m])
        span = scores[order[-1]][m] - scores[order[0]][m]
        if span:
            for place, i in enumerate(order):
                ends = place in (0, len(order) - 1)
                gap = np.inf if ends else scores[order[place + 1]][m] - scores[order[place - 1]][m]
                out[i] += gap / span / len(scores[0])
    return out


def test_crowding_equals_the_slow_one_and_duplicates_share_it():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        distinct = rng.permuted(np.tile(np.arange(9.0), (3, 1)), axis=1).T[: rng.integers(2, 10)]
        expected = np.array(slow_crowding(distinct.tolist()))
        np.testing.assert_allclose(pareto.crowding_distance(distinct), expected)
        copies = rng.integers(0, len(distinct), 20)
        copies[: len(distinct)] = np.arange(len(distinct))
        np.testing.assert_allclose(pareto.crowding_distance(distinct[copies]), expected[copies])
    assert pareto.crowding_distance(np.zeros((3, 2))).tolist() == [np.inf] * 3
    assert pareto.crowding_distance(np.zeros((0, 2))).shape == (0,)


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_hypervolume_equals_a_count_of_unit_cells(columns):
    for seed in range(25):
        rng = np.random.default_rng(seed)
        points = rng.integers(-1, 5, (rng.integers(0, 9), columns))
        cells = itertools.product(range(5), repeat=columns)
        expected = sum(any(all(p > c for p, c in zip(point, cell, strict=True)) for point in points) for cell in cells)
        reference = rng.normal(size=columns)
        assert pareto.hypervolume(points, np.zeros(columns)) == expected
        shifted = pareto.hypervolume(points * 0.5 + reference, reference)
        assert shifted == pytest.approx(expected * 0.5**columns)


def test_hypervolume_of_random_fronts_agrees_with_inclusion_and_exclusion():
    for seed in range(10):
        points = np.random.default_rng(seed).random((7, 4))
        volume = sum(
            (-1) ** (size + 1) * np.prod(np.min(points[list(chosen)], axis=0))
            for size in range(1, 8)
            for chosen in itertools.combinations(range(7), size)
        )
        assert pareto.hypervolume(points, np.zeros(4)) == pytest.approx(volume)


def test_hypervolume_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        pareto.hypervolume(np.array([[np.nan, 1.0]]), np.zeros(2))


# ------------------------------------------------------------------------------------------------ group rewards


def slow_ties(rows, weights, how):
    """By row: the raw tie-break value."""
    if how == "mean":
        return {i: sum(w * x for w, x in zip(weights, row, strict=True)) / sum(weights) for i, row in rows.items()}
    if how == "scaled":
        regrets = slow_regrets(rows)
        share = lambda row: sum(w * (1 - r) for w, r in zip(weights, row, strict=True)) / sum(weights)  # noqa: E731
        return {i: share(row) for i, row in regrets.items()}
    if how == "worst":
        return {i: min(row) for i, row in rows.items()}
    if how == "augmented":
        means = slow_ties(rows, weights, "mean")
        return {i: min(row) + 0.1 * means[i] for i, row in rows.items()}
    if how == "product":
        return slow_product(rows, weights, len(weights))
    front = [i for i, rank in slow_ranks(rows).items() if not rank]
    distances = pareto.crowding_distance(np.array([rows[i] for i in front]))
    return dict.fromkeys(rows, 0.0) | {i: min(1.0, d) for i, d in zip(front, distances, strict=True)}


def slow_regrets(rows):
    """By row, per objective: how far from the best, as a share of the distance between the best and the worst."""
    spans = [(max(column), max(column) - min(column)) for column in zip(*rows.values(), strict=True)]
    return {i: [(h - x) / s if s else 0.0 for x, (h, s) in zip(row, spans, strict=True)] for i, row in rows.items()}


def slow_chebyshev(rows, weights, epsilon):
    """1 − the largest weighted regret − epsilon · their weighted mean."""
    out = {}
    for i, regrets in slow_regrets(rows).items():
        weighted = [w * r for w, r in zip(weights, regrets, strict=True)]
        out[i] = 1 - max(weighted) / max(weights) - epsilon * sum(weighted) / sum(weights)
    return out


def slow_constraint(rows, weights, floors, epsilon):
    """The scaled mean where no floor is missed, else minus what is missed, and a little less for a lower mean."""
    means = slow_unit(slow_ties(rows, weights, "mean"))
    out = {}
    for i, row in rows.items():
        missed = sum(floor - x for x, floor in zip(row, floors, strict=True) if x < floor)
        out[i] = -missed - epsilon * (1 - means[i]) if missed else means[i]
    return out


def slow_unit(ties):
    low, high = min(ties.values()), max(ties.values())
    return {i: (tie - low) / max(high - low, 1.0) for i, tie in ties.items()}


def slow_product(rows, weights, columns):
    out = {}
    for i, row in rows.items():
        if columns == 1:
            out[i] = row[0]
            continue
        low = [min(0.0, *(other[m] for other in rows.values())) for m in range(columns)]
        out[i] = np.prod([(x - lo) ** w for x, lo, w in zip(row, low, weights, strict=True)])
    return out


@pytest.mark.parametrize("how", get_args(pareto.TieBreak))
def test_group_rewards_equal_the_slow_ones(how):
    epsilon = 0.3
    for seed in SEEDS:
        scores, valid = draw(seed)
        weights = np.random.default_rng(seed).random(scores.shape[2]) + 0.1
        floors = np.random.default_rng(seed).choice([-np.inf, 0.0, 0.2], scores.shape[2])
        ties = pareto.tie_values(scores, valid, weights, how)
        got = {
            "tie": ties,
            "front": pareto.front_reward(scores, valid, ties, epsilon),
            "rank": pareto.rank_reward(scores, valid, ties, epsilon),
            "product": pareto.product_reward(scores, valid, weights),
            "sum": pareto.weighted_sum(scores, valid, weights),
            "count": pareto.dominance_count(scores, valid),
            "chebyshev": pareto.chebyshev_reward(scores, valid, weights, epsilon),
            "constraint": pareto.constraint_reward(scores, valid, weights, floors, epsilon),
        }
        for g in range(len(scores)):
            rows = vectors(scores[g], valid[g])
            applies = [not np.isnan(scores[g, valid[g], m]).all() for m in range(len(weights))]
            wanted = {name: np.full(len(valid[g]), np.nan) for name in got}
            if rows and any(applies):
                used = weights[applies].tolist()
                raw, ranks = slow_ties(rows, used, how), slow_ranks(rows)
                unit, last = slow_unit(raw), max(max(ranks.values()), 1)
                product = slow_product(rows, used, sum(applies))
                chebyshev = slow_chebyshev(rows, used, epsilon)
                constraint = slow_constraint(rows, used, floors[applies].tolist(), epsilon)
                for i, row in rows.items():
                    wanted["tie"][i] = raw[i]
                    wanted["front"][i] = (ranks[i] == 0) + epsilon * unit[i]
                    wanted["rank"][i] = 1 - ranks[i] / last + epsilon * unit[i] / last
                    wanted["product"][i] = product[i]
                    wanted["sum"][i] = sum(w * x for w, x in zip(used, row, strict=True))
                    wins = sum(beats(row, other) - beats(other, row) for other in rows.values())
                    wanted["count"][i] = wins / max(1, len(rows) - 1)
                    wanted["chebyshev"][i], wanted["constraint"][i] = chebyshev[i], constraint[i]
            for name, values in wanted.items():
                np.testing.assert_allclose(got[name][g], values, atol=1e-12, err_msg=f"{name}, seed {seed}")


def test_orient_flips_and_drops():
    oriented = pareto.orient(np.ones((1, 1, 3)), np.array([2.0, -0.5, 0.0]))
    np.testing.assert_array_equal(oriented, [[[1.0, -1.0, np.nan]]])


def test_no_torch():
    code = "import sys, fate_trl.choose.selectors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
