"""The family `merging`: each by what shows that it works; weights are moved by fate-trl's own tests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fate_trl import FateError, pareto, plugins


def load(name, **args):
    return plugins.load("merge", f"merging/{name}", args)


def asked(merge, policies, evaluate=None, seed=0):
    def nobody(_):
        raise AssertionError("this merge evaluates nothing")

    return np.array(merge.coefficients(policies, evaluate or nobody, np.random.default_rng(seed)))


# ------------------------------------------------------------------------------------------------ nesterov


def test_nesterov_with_a_0_is_the_trained_policy():
    assert asked(load("nesterov", a=0.0), 3).tolist() == [[1.0, 0.0, 0.0]]


def test_nesterov_goes_on_by_a_times_the_last_change():
    now, before = np.array([3.0, 1.0]), np.array([2.0, 2.0])
    ((first, second, rest),) = asked(load("nesterov", a=0.5), 3)
    np.testing.assert_allclose(first * now + second * before, now + 0.5 * (now - before))
    assert rest == 0


def test_nesterov_needs_fewer_rounds_on_a_quadratic():
    """Gradient steps on x'Hx, each round's start extrapolated from the last two that were trained."""

    def rounds(a):
        curvature, trained, start = np.array([1.0, 0.05]), np.ones(2), np.ones(2)
        for number in range(500):
            before, trained = trained, start - curvature * start
            (shares,) = asked(load("nesterov", a=a), 2)
            start = shares[0] * trained + shares[1] * before
            if np.abs(trained).max() < 1e-3:
                return number
        raise AssertionError("it did not converge")

    assert rounds(0.6) < 0.6 * rounds(0.0)


# ------------------------------------------------------------------------------------------------ preference-vectors


def test_preference_vectors_with_eta_0_are_the_policy_itself():
    assert asked(load("preference-vectors", eta=[0.0, 0.0]), 5).tolist() == [[1, 0, 0, 0, 0]]


def test_preference_vectors_move_means_monotonically_with_eta():
    """Weights are points, and what a policy scores is linear in them: the first pair differs in safety alone."""
    points = np.array([[0.0, 0.0], [1.0, 0.2], [-1.0, 0.2], [0.1, 1.0], [0.1, -1.0]])
    sweep = [(asked(load("preference-vectors", eta=[eta, 0.0]), 5) @ points)[0] for eta in (-0.5, 0.0, 0.5, 1.0)]
    assert np.all(np.diff([safety for safety, _ in sweep]) > 0)
    np.testing.assert_allclose([helpful for _, helpful in sweep], 0)


@pytest.mark.parametrize("policies", [2, 4, 6])
def test_preference_vectors_need_a_pair_for_each_eta(policies):
    with pytest.raises(FateError, match="2 values of eta need 5 policies"):
        asked(load("preference-vectors", eta=[0.1, 0.2]), policies)


# ------------------------------------------------------------------------------------------------ map


def planted(shares):
    """Two objectives, quadratic in the shares of three policies; each is best at another place."""
    a, b, _ = shares
    return [0.9 - (a - 0.7) ** 2 - 0.5 * (b - 0.1) ** 2, 0.8 - 0.6 * (a - 0.2) ** 2 - (b - 0.3) ** 2]


def test_map_recovers_a_planted_front():
    merge = load("map", front=1000)
    found = asked(merge, 3, planted)
    every = np.array([s for s in itertools.product(np.linspace(0, 1, 41), repeat=2) if sum(s) <= 1])
    every = np.column_stack([every, 1 - every.sum(1)])
    scores = np.array([planted(share) for share in every])
    front = scores[pareto.front_ranks(scores[None])[0] == 0]
    reached = np.array([planted(share) for share in found])
    far = [np.abs(reached - point).max(1).min() for point in front]
    assert max(far) < 0.05, "each point of the front has a merged policy near it"
    assert list(merge.metrics().values()) == pytest.approx([1.0, 1.0])


def test_map_returns_only_what_no_other_dominates():
    scores = np.array([planted(share) for share in asked(load("map", front=1000), 3, planted)])
    assert (pareto.front_ranks(scores[None])[0] == 0).all()
    assert len(asked(load("map", front=4), 3, planted)) == 4


def test_map_says_how_well_its_fit_holds():
    noise = np.random.default_rng(1)
    merge = load("map", sampled=3.0)
    asked(merge, 3, lambda _: noise.random(2).tolist())
    assert all(r2 < 0.9 for r2 in merge.metrics().values())


def test_map_asks_as_often_as_it_says():
    seen = []
    asked(load("map", sampled=2.0), 3, lambda share: seen.append(tuple(share)) or planted(share))
    assert len(seen) == len(set(seen)) == 12  # 2 (1 + 2 + 3)
    assert np.allclose(np.sum(seen, axis=1), 1)


def test_map_leaves_out_an_objective_that_applies_nowhere():
    merge = load("map")
    asked(merge, 3, lambda share: [*planted(share), np.nan])
    assert len(merge.metrics()) == 2
    with pytest.raises(FateError, match="no objective applies"):
        asked(load("map"), 3, lambda _: [np.nan])


# ------------------------------------------------------------------------------------------------ rank-search


def test_rank_search_finds_the_best_average_of_its_grid():
    def peaked(share):
        return [1 - abs(share[0] - 0.75), 1 - abs(share[1] - 0.25)]

    assert asked(load("rank-search", steps=2, finer=1), 3, peaked).tolist() == [[0.75, 0.25, 0.0]]


def test_rank_search_breaks_ties_by_the_lowest_mean():
    table = {(1.0, 0.0): [0.9, 0.1], (0.0, 1.0): [0.1, 0.9], (0.5, 0.5): [0.6, 0.5]}
    assert asked(load("rank-search", steps=2, finer=0), 2, lambda share: table[tuple(share)]).tolist() == [[0.5, 0.5]]


def test_rank_search_asks_nothing_twice():
    seen = []
    asked(load("rank-search", steps=2, finer=2), 3, lambda share: seen.append(tuple(share)) or planted(share))
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("name", ["nesterov", "map"])
def test_one_policy_is_nothing_to_merge(name):
    with pytest.raises(FateError, match="needs"):
        asked(load(name), 1, planted)
