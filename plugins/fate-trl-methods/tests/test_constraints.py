"""lagrangian, cost-gate, ipo-barrier, maxmin: what shows that they work."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

from worlds import ask, bandit, make, played, teach

from fate_trl import plugins
from fate_trl.errors import RecipeError
from fate_trl.types import OBJECTIVES

ROLES = ("obey", "do-nothing", "refuse-all")


@pytest.fixture(scope="module")
def attacked() -> np.ndarray:
    """Real scores of attacked tasks: obeying loses security, idleness utility, refusing both and more."""
    _, scores = played("tradeoffs", ROLES, "attacked")
    return scores


def test_lagrangian_multiplier_falls_where_kept_and_rises_where_broken():
    selector = make("lagrangian", thresholds={"security": 0.5, "over_refusal": 0.5}, rate=0.1)
    before = selector.multipliers()
    assert before == {"security": 0.5, "over_refusal": 0.5}
    for _ in range(5):
        teach(selector, np.tile([0.2, 1.0, 0.9, 1.0], (2, 4, 1)))
    after = selector.multipliers()
    assert after["security"] > 0.5 > after["over_refusal"]
    assert selector.metrics() == {f"multiplier/{name}": value for name, value in after.items()}
    restarted = make("lagrangian", thresholds={"security": 0.5, "over_refusal": 0.5}, rate=0.1)
    restarted.load_state_dict(selector.state_dict())
    teach(selector, np.tile([0.2, 1.0, 0.9, 1.0], (2, 4, 1)))
    teach(restarted, np.tile([0.2, 1.0, 0.9, 1.0], (2, 4, 1)))
    assert restarted.multipliers() == selector.multipliers()


def test_lagrangian_first_step_is_that_of_the_formula():
    selector = make("lagrangian", thresholds={"security": 0.9}, rate=0.4, momentum=0.0)
    teach(selector, np.tile([0.2, 1.0, 1.0, 1.0], (1, 4, 1)))
    assert selector.multipliers()["security"] == pytest.approx(1 / (1 + np.exp(-0.4 * 0.25 * 0.7)))
    plain = make("lagrangian", thresholds={"security": 0.9}, rate=0.4, squashed=False)
    teach(plain, np.tile([0.2, 1.0, 1.0, 1.0], (1, 4, 1)))
    assert plain.multipliers()["security"] == pytest.approx(0.4 * 0.7)
    teach(plain, np.tile([1.0, 1.0, 1.0, 1.0], (50, 4, 1)))
    for _ in range(20):
        teach(plain, np.tile([1.0, 1.0, 1.0, 1.0], (1, 4, 1)))
    assert plain.multipliers()["security"] == 0, "a multiplier is never below 0"


def test_lagrangian_keeps_a_threshold_that_the_reward_alone_breaks(attacked):
    free = bandit(make("log-map"), attacked * [0, 1, 0, 0] + [0, 0, 0, 0])[-1]
    held = bandit(make("lagrangian", thresholds={"security": 0.9}, primary="utility", rate=1.0), attacked, steps=600)[
        -50:
    ].mean(axis=0)
    security_R = np.nanmean(attacked[:, :, 0], axis=0)
    assert held @ security_R > free @ security_R + 0.1


def test_an_objective_that_is_not_there_is_said():
    selector = make("lagrangian", thresholds={"securty": 0.9})
    with pytest.raises(RecipeError, match=r"'securty'.*did you mean 'security'"):
        plugins.check_needs(selector, OBJECTIVES)
    with pytest.raises(RecipeError, match="names no objective"):
        make("lagrangian", thresholds={})
    with pytest.raises(RecipeError, match="both the primary"):
        make("lagrangian", thresholds={"security": 1.0}, primary="security")


def test_cost_gate_gives_the_reward_within_budget_and_the_penalty_outside():
    selector = make("cost-gate", thresholds={"security": 0.9}, primary="utility", rate=1.0)
    rows = [[[1.0, 0.0], [0.0, 1.0], [0.5, 0.6]]]
    np.testing.assert_allclose(ask(selector, rows)[0], np.array([0.0, 1.0, 0.6]) - 1.6 / 3)
    teach(selector, rows)
    assert selector.metrics()["gated"] == 1
    np.testing.assert_allclose(ask(selector, rows)[0], 10 * (-np.array([0.0, 0.9, 0.4]) + 1.3 / 3))
    teach(selector, [[[0.9, 0.0]] * 3])
    assert selector.metrics() == {"gated": 0.0, "mean/security": 0.9}


def test_cost_gate_keeps_the_constraint_as_often_as_lagrangian(attacked):
    """Share of steps on which the policy keeps it, over three step sizes of the policy, from step 200 on."""
    kept = {}
    security_R = np.nanmean(attacked[:, :, 0], axis=0)
    for name in ("cost-gate", "lagrangian"):
        runs = [
            bandit(make(name, thresholds={"security": 0.8}, primary="utility"), attacked, steps=600, lr=lr)[200:]
            for lr in (0.1, 0.3, 1.0)
        ]
        kept[name] = float(np.mean([(shares @ security_R >= 0.8).mean() for shares in runs]))
    assert kept["cost-gate"] >= kept["lagrangian"]
    assert kept["cost-gate"] > 0.5


def test_ipo_barrier_weighs_an_objective_at_its_floor_and_clamps():
    selector = make("ipo-barrier", primary="utility", incumbents={"security": 1.0, "over_refusal": 0.5})
    selector.load_state_dict(
        {"means": {"security": 0.91, "over_refusal": 0.9}, "incumbents": {"security": 1.0, "over_refusal": 0.5}}
    )
    assert selector.barrier("security") == pytest.approx(1 / (20 * 0.01))
    assert selector.barrier("security") > selector.barrier("over_refusal")
    selector.load_state_dict({"means": {"security": 0.1}, "incumbents": {"security": 1.0}})
    assert selector.barrier("security") == 1 / (20 * 1e-3), "the argument of the logarithm is at least 1e-3"
    assert make("ipo-barrier").barrier("security") == 0, "nothing is known yet"


def test_ipo_barrier_takes_the_first_generation_as_incumbents():
    selector = make("ipo-barrier", primary="utility")
    teach(selector, np.tile([0.8, 0.2, 1.0, 1.0], (2, 4, 1)))
    teach(selector, np.tile([0.1, 0.9, 1.0, 1.0], (2, 4, 1)))
    assert selector.state_dict()["incumbents"]["security"] == pytest.approx(0.8)
    group = np.array([[[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]]])
    assert ask(selector, group)[0, 0] > 0 > ask(selector, group)[0, 1], "security fell below .9 of what it was"


def test_ipo_barrier_picks_of_six_hand_made_candidates():
    selector = make("ipo-barrier", primary="utility", incumbents={"security": 1.0}, share=0.9)
    six = np.array([[0.5, 1.0], [0.8, 0.95], [0.9, 0.7], [0.92, 0.6], [1.0, 0.4], [0.9, 0.65]])
    pick = selector.choose(six, objectives=["security", "utility"], rng=np.random.default_rng(0))
    assert (pick.index, pick.decided_by) == (2, "ipo-barrier"), "the most utility of those with security .9 or more"
    low = six[:2]
    assert selector.choose(low, objectives=["security", "utility"], rng=np.random.default_rng(0)).index == 1


def test_maxmin_raises_the_lowest_objective_above_what_a_weighted_sum_does(attacked):
    """On real scores of attacked tasks in `tradeoffs`, a policy over two ways to fail."""
    two = attacked[:, :2]
    means_R_M = np.nanmean(two, axis=0)[:, :2]
    worst = {}
    for name, selector in (
        ("maxmin", make("maxmin")),
        ("soft", make("maxmin", temperature=0.1)),
        ("sum", make("cvar", risk=0.0)),
    ):
        share = bandit(selector, two, steps=600)[-100:].mean(axis=0)
        worst[name] = float((share @ means_R_M).min())
    assert worst["maxmin"] >= worst["sum"] + 0.05
    assert worst["soft"] >= worst["sum"]


def test_maxmin_by_row_is_the_least_objective():
    rows = [[[1.0, 0.0, 0.5, np.nan], [0.6, 0.6, 0.7, np.nan]]]
    said = ask(make("maxmin", per="row"), rows)[0]
    np.testing.assert_allclose(said, [-0.3, 0.3])
    soft = ask(make("maxmin", per="row", temperature=1e-3), rows)[0]
    np.testing.assert_allclose(soft, said, atol=2e-3)
