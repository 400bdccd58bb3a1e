"""mixed-var, cvar, entropic-risk: what shows that they work."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

from fate_trl_methods.risk import certainty_equivalent
from worlds import ask, make, played, teach

from fate_trl.errors import RecipeError


def test_mixed_var_tracks_the_quantiles():
    selector, rng = make("mixed-var", bundle=1, rate=0.05), np.random.default_rng(0)
    for _ in range(2000):
        teach(selector, rng.normal(size=(2, 16)))
    found = selector.metrics()
    assert found["quantile_low"] == pytest.approx(-0.84, abs=0.12)
    assert found["quantile_high"] == pytest.approx(0.84, abs=0.12)


def test_mixed_var_is_steepest_in_the_lower_tail_and_flat_above():
    selector = make("mixed-var", bundle=1, low=0.25, high=0.75)
    selector.load_state_dict({"quantiles": [0.3, 0.7]})
    said = ask(selector, [[0.1, 0.2, 0.4, 0.6, 0.8, 0.9]])[0]
    below, between, above = said[1] - said[0], said[3] - said[2], said[5] - said[4]
    assert below / 0.1 > between / 0.2 > 0
    assert above == 0
    assert (said <= 0).all(), "the paper takes no baseline off"
    assert ask(make("mixed-var", bundle=1, baseline="mean"), [[0.1, 0.4, 0.9]]).sum() == pytest.approx(0)


def test_mixed_var_gives_equal_papers_nothing():
    selector = make("mixed-var", bundle=2)
    selector.load_state_dict({"quantiles": [0.5, 1.5]})
    assert (ask(selector, [[0.3] * 4, [0.2] * 4]) == 0).all()
    one, other = [0.0, 1.0, 0.5, 0.5], [1.0, 0.0, 0.5, 0.5]  # each sums to 1
    assert (ask(selector, [one, other]) == 0).all()
    assert len(np.unique(ask(selector, [one, one])[0])) == 3


def test_mixed_var_papers_go_across_prompts_and_a_short_bundle_counts_as_a_whole_one():
    selector = make("mixed-var", bundle=2, low=0.2, high=0.8)
    said = ask(selector, [[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.5, 1.0]])
    assert (said[0] == said[1]).all(), "all rows of a paper get the same"
    np.testing.assert_allclose(said[2], said[0])  # 0, 2, 1, 2 in both


def test_mixed_var_needs_its_levels_in_order():
    with pytest.raises(RecipeError, match="low must be the lower"):
        make("mixed-var", low=0.8, high=0.2)


def test_cvar_without_risk_is_the_mean_baseline_and_with_it_the_tail_decides():
    _, scores = played("workbench", ("oracle", "do-nothing", "refuse-all", "obey"))
    plain = ask(make("cvar", risk=0.0), scores)
    reward = np.nanmean(scores, axis=2)
    assert (plain == reward - reward.mean(axis=1, keepdims=True)).all()
    tail = ask(make("cvar", risk=1.0, level=0.5), [[0.0, 0.2, 0.8, 1.0]])[0]
    assert tail[2] == tail[3] > tail[1] > tail[0], "above the quantile nothing is told apart"
    both = ask(make("cvar", risk=0.5, level=0.5), [[0.0, 0.2, 0.8, 1.0]])[0]
    assert (np.diff(both) > 0).all()


def test_entropic_risk_ends_in_the_mean_and_orders_by_spread():
    _, scores = played("tradeoffs", ("oracle", "do-nothing", "refuse-all", "obey"))
    plain, near = ask(make("entropic-risk", eta=0.0), scores), ask(make("entropic-risk", eta=1e-7), scores)
    np.testing.assert_allclose(near, plain, atol=1e-6)
    groups, valid = np.array([[0.5, 0.5, 0.5, 0.5], [0.4, 0.4, 0.6, 0.6], [0.0, 0.0, 1.0, 1.0]]), np.ones((3, 4), bool)
    averse = certainty_equivalent(groups, valid, -2.0)[:, 0]
    seeking = certainty_equivalent(groups, valid, 2.0)[:, 0]
    assert (np.diff(averse) < 0).all(), "of equally good groups the wider ones are worth less"
    assert (np.diff(seeking) > 0).all()
    said = ask(make("entropic-risk", eta=-5.0), [[0.0, 0.9, 1.0, 1.0]])[0]
    assert said.mean() == pytest.approx(0, abs=1e-12)
    assert -said[0] > said[1:].max()
