"""filtered-ranks, copo, log-map: what shows that they work."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

from worlds import ask, make, played, teach

from fate_trl.errors import RecipeError

EIGHT = [[0.1, 0.4, 0.9, 0.3, 0.5, 0.0, 0.7, 0.6]]


def test_filtered_ranks_keeps_the_best_and_the_worst_of_eight():
    said = ask(make("filtered-ranks"), EIGHT)[0]
    assert np.flatnonzero(said).tolist() == [2, 5]
    np.testing.assert_allclose(said[[2, 5]], [0.45, -0.45])  # less the mean of the two that are kept


def test_filtered_ranks_best_is_compared_with_the_whole_group():
    said = ask(make("filtered-ranks", strategy="best"), EIGHT)[0]
    assert np.flatnonzero(said).tolist() == [2]
    assert said[2] == pytest.approx(0.9 - np.mean(EIGHT))
    random = ask(make("filtered-ranks", strategy="best-random"), EIGHT)[0]
    weights = np.array([0.4 if value == 0.9 else 0.1 for value in EIGHT[0]])
    mean = (weights * EIGHT[0]).sum() / weights.sum()
    np.testing.assert_allclose(random, weights / 0.4 * (np.array(EIGHT[0]) - mean))


def test_filtered_ranks_shares_out_ties_and_works_on_fronts():
    said = ask(make("filtered-ranks"), [[1.0, 1.0, 0.5, 0.0]])[0]
    np.testing.assert_allclose(said, [0.25, 0.25, 0.0, -0.5])
    _, scores = played("tradeoffs", ("oracle", "do-nothing", "obey", "refuse-all"), "attacked")
    fronts = ask(make("filtered-ranks", base="pareto-rank", base_args={"epsilon": 0.0}), scores)
    assert (fronts[:, 0] > 0).all(), "the oracle is the only front"
    assert (fronts[:, 1:].min(axis=1) < 0).all()


def test_filtered_ranks_finds_the_strategy_whose_rows_tell_the_truth():
    """Rewards that are right for the best and the worst of a group, and noise between."""
    selector, rng = make("filtered-ranks", strategy="fit", truth="utility"), np.random.default_rng(0)
    for _ in range(30):
        truth = rng.permuted(np.tile(np.linspace(0, 1, 8), (4, 1)), axis=1)
        middle = (truth > 0) & (truth < 1)
        reward = np.where(middle, rng.uniform(0.1, 0.9, truth.shape), truth)
        teach(selector, np.stack([reward, truth], axis=2), ["security", "utility"])
    fits = selector.metrics()
    assert fits["fit/best-worst"] > 0.99
    assert max(fits, key=lambda name: fits[name]) == "fit/best-worst"
    assert fits["fit/best"] < 0.5, "rows of one rank have nothing to tell apart"
    same = ask(make("filtered-ranks", strategy="best-worst"), EIGHT)
    both = np.stack([np.array(EIGHT), np.random.default_rng(1).random((1, 8))], axis=2)
    np.testing.assert_allclose(ask(selector, both, ["security", "utility"]), same)  # the truth is no reward
    with pytest.raises(RecipeError, match="truth"):
        make("filtered-ranks", strategy="fit")


def test_copo_teaches_groups_that_agree_and_leaves_mixed_ones_their_order():
    fails, passes, mixed = [0.0] * 4, [1.0] * 4, [0.0, 1.0, 0.0, 1.0]
    said = ask(make("copo"), [fails, passes, mixed])
    assert (said[0] < -0.5).all()
    assert (said[1] > 0.5).all()
    assert said[2, 1] == said[2, 3] > said[2, 0] == said[2, 2]
    weight = 1 / (1 + np.exp(-0.5))  # one bit of entropy
    prompts = np.array([0.0, 1.0, 0.5 * (1 - 0.75 / 2 * 1.0)])
    standardised = (prompts - prompts.mean()) / (prompts.std(ddof=1) + 1e-4)
    local = 0.5 / (np.std(mixed, ddof=1) + 1e-4)
    assert said[2, 1] == pytest.approx(weight * local + (1 - weight) * standardised[2])
    assert (ask(make("copo"), [passes, passes]) == 0).all()


def test_copo_on_real_scores_gives_every_prompt_something():
    _, scores = played("workbench", ("oracle", "oracle", "do-nothing", "do-nothing"))
    agreeing = scores[:, :2]
    assert (np.abs(ask(make("copo"), agreeing)) < 1e-9).all(), "all prompts alike: nothing to compare either"
    half = np.concatenate([agreeing[:8], scores[8:16, 2:]])
    said = ask(make("copo"), half)
    assert said[:8].min() > 0 > said[8:].max()


def test_log_map_keeps_the_order_and_spreads_small_scores():
    values = np.array([[0.0, 0.01, 0.05, 0.2, 0.9, 1.0]])
    said = ask(make("log-map"), values)[0]
    assert (np.diff(said) > 0).all()
    assert said[1] - said[0] > 5 * 0.01
    assert said[-1] - said[0] == pytest.approx(1.0)
    assert said[5] - said[4] < 0.1
    signed = ask(make("log-map"), [[-0.5, 0.0, 0.5]])[0]
    assert signed[0] == -signed[2]
