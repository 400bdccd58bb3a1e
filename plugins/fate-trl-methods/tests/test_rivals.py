"""conditioned, gd2po, corr-grpo, saw: what shows that they work."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

from worlds import ask, make, played, teach

from fate_trl.errors import RecipeError

ROLES = ("oracle", "do-nothing", "refuse-all", "obey")


def test_conditioned_counts_the_easy_objective_only_where_the_hard_one_is_met():
    rows = np.array([[[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    said = ask(make("conditioned"), rows)[0]
    assert said[2] == said[3], "without security, utility is nothing"
    assert said[0] > said[1] > said[2]
    free = ask(make("conditioned", hard="security", easy=[]), rows)[0]
    assert free[2] > free[3], "with nothing conditioned it is GDPO"
    with pytest.raises(RecipeError, match="cannot condition itself"):
        make("conditioned", easy=["security"])


def test_conditioned_on_real_scores_leaves_obeying_with_nothing_of_its_utility():
    _, scores = played("workbench", ROLES, "attacked")
    assert scores[0, 3].tolist() == [0, 1, 1, 1]
    before = ask(make("conditioned", easy=[]), scores)
    after = ask(make("conditioned", easy=["utility"]), scores)
    assert (after[:, 3] < before[:, 3]).all()
    assert (after.argmax(axis=1) == 0).all()


def test_gd2po_masks_rows_whose_objectives_disagree_and_discounts_their_prompts():
    torn = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    clear = [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    said = ask(make("gd2po"), [torn, clear])
    assert said[0, :2].tolist() == [0.0, 0.0]
    assert said[0, 2] > 0 > said[0, 3]
    assert said[0, 2] == pytest.approx(said[1, 0] / 2), "half of its rows agree"


def test_gd2po_on_real_scores_learns_from_oracles_and_not_from_those_who_trade():
    _, scores = played("tradeoffs", ("oracle", "do-nothing", "obey"), "attacked")
    said = ask(make("gd2po"), scores)
    assert (said[:, 0] > 0).all()
    assert (said[:, 1:] == 0).any(axis=0).all()


def test_corr_grpo_counts_an_objective_that_is_named_twice_once():
    rng = np.random.default_rng(0)
    one = rng.random((6, 8, 1))
    single = ask(make("corr-grpo"), one)
    double = ask(make("corr-grpo"), np.repeat(one, 3, axis=2))
    np.testing.assert_allclose(double, single)
    other = np.concatenate([one, rng.random((6, 8, 1))], axis=2)
    independent = ask(make("corr-grpo"), other)
    assert independent.std() == pytest.approx(single.std(), rel=0.05), "of any number of objectives, the same size"
    against = ask(make("corr-grpo"), np.concatenate([one, 1 - one + 1e-3 * rng.random(one.shape)], axis=2))
    assert np.abs(against).max() < np.abs(single).max(), "what cancels is not blown up"


def test_saw_weighs_what_still_varies():
    selector = make("saw")
    rows = np.array([[[1.0, 0.0], [1.0, 1.0], [0.99, 1.0], [1.0, 0.0]]] * 2)
    said = ask(selector, rows)
    np.testing.assert_allclose(said[0], 2 * (rows[0, :, 1] - 0.5), atol=0.1)  # one objective is all but settled
    for _ in range(30):
        teach(selector, rows)
    found = selector.metrics()
    assert found["variation/utility"] > 10 * found["variation/security"]
    resumed = make("saw")
    resumed.load_state_dict(selector.state_dict())
    assert (ask(resumed, rows[::-1]) == ask(selector, rows[::-1])).all()


def test_rivals_rank_the_oracle_first_on_real_scores():
    _, scores = played("tradeoffs", ROLES)
    for name in ("conditioned", "gd2po", "corr-grpo", "saw"):
        said = ask(make(name), scores)
        assert (said[:, 0] >= said.max(axis=1) - 1e-9).all(), name
