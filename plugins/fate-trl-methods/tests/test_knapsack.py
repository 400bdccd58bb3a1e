"""Budgets of the family `control`, on numbers alone."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

from fate_trl_methods.budgets import Knapsack, spent_best

from fate_trl import Item, RecipeError, Spent, plugins

RNG = np.random.default_rng(0)


def items(*keys, stage="repair", kind="benign", **more):
    return [Item(str(key), kind, stage, **more) for key in keys]


def tries(budget, given, total, low=0, high=16):
    return budget.tries(given, total=total, low=low, high=high, rng=np.random.default_rng(0))


def brute_force(values_I_N, total, low):
    """Most that shares within the bounds come to."""
    columns = range(values_I_N.shape[1])
    ways = itertools.product(columns, repeat=len(values_I_N))
    sums = [
        sum(values_I_N[item, column] for item, column in enumerate(way))
        for way in ways
        if sum(way) + low * len(values_I_N) == total
    ]
    return max(sums)


def test_knapsack_equals_brute_force_on_200_random_instances():
    rng = np.random.default_rng(0)
    for _ in range(200):
        count, low = int(rng.integers(1, 6)), int(rng.integers(0, 3))
        high = low + int(rng.integers(1, 5))
        total = int(rng.integers(low * count, high * count + 1))
        rates = rng.random(count)
        worth = Knapsack(value=str(rng.choice(["signal", "success"]))).worth
        values = np.array([worth(rate, np.arange(low, high + 1)) for rate in rates])
        shares = spent_best(values, total, low)
        assert sum(shares) == total
        assert low <= min(shares) <= max(shares) <= high
        reached = sum(values[item, share - low] for item, share in enumerate(shares))
        assert reached == pytest.approx(brute_force(values, total, low), abs=1e-12)


def test_knapsack_shares_out_evenly_before_it_knows_anything():
    assert tries(Knapsack(), items(*range(21)), 63) == [3] * 21
    assert tries(Knapsack(value="success"), items(*range(21)), 84) == [4] * 21


def told(budget, rates, rollouts=40, **more):
    given = items(*rates, **more)
    budget.told([Spent(item, rollouts, round(rollouts * rates[item.key])) for item in given])
    return given


RATES = {"never": 0.0, "rare": 0.1, "third": 0.3, "half": 0.5, "mostly": 0.9, "always": 1.0}


@pytest.mark.parametrize("total", [24, 63, 69])
def test_knapsack_gives_least_to_what_always_and_what_never_succeeds(total):
    budget = Knapsack()
    given = told(budget, RATES)
    shares = dict(zip(RATES, tries(budget, given, total, low=1, high=32), strict=True))
    assert sum(shares.values()) == total
    least = max(shares["never"], shares["always"])
    assert least < min(shares["third"], shares["half"])
    assert shares["never"] == shares["always"] == 1 or total > 24


def test_knapsack_for_repairs_gives_more_to_what_seldom_succeeds_and_least_to_what_is_sure():
    budget = Knapsack(value="success")
    given = told(budget, RATES)
    shares = dict(zip(RATES, tries(budget, given, 24, low=1), strict=True))
    assert shares["rare"] > shares["half"] > shares["always"] == 1


def test_knapsack_of_prompts_counts_the_rollouts_of_a_group():
    """With eight rollouts a group, one group of an even prompt has its signal; a rare one gains by a second."""
    budget = Knapsack()
    given = told(budget, {"rare": 0.1, "half": 0.5, "always": 1.0}, stage="pfpo", size=8)
    assert tries(budget, given, 3, high=4) == [2, 1, 0]


def test_knapsack_takes_no_rollouts_for_worth_nothing_and_leaves_out_what_is_hopeless():
    assert Knapsack().worth(0.4, np.array([0, 1, 2])) == pytest.approx([0, 0, 2 * 0.4 * 0.6 * 0.4 * 0.36])
    budget = Knapsack()
    rates = {**{f"never {n}": 0.0 for n in range(3)}, "rare": 0.1, "third": 0.3, "half": 0.5}
    shares = dict(zip(rates, tries(budget, told(budget, rates, stage="pfpo", size=8), 6, high=4), strict=True))
    assert [shares[f"never {n}"] for n in range(3)] == [0, 0, 0]
    assert min(shares[name] for name in ("rare", "third", "half")) >= 1


def test_knapsack_is_changed_by_what_it_was_told_and_goes_on_from_its_state():
    budget, given = Knapsack(), items("a", "b", "c")
    before = tries(budget, given, 9)
    budget.told([Spent(given[0], 3, 3), Spent(given[1], 3, 1), Spent(given[2], 3, 0)])
    after = tries(budget, given, 9)
    assert before == [3, 3, 3] != after
    again = Knapsack()
    again.load_state_dict(json.loads(json.dumps(budget.state_dict())))
    assert tries(again, given, 9) == after
    assert again.metrics() == budget.metrics() == {"known": 3.0, "rate": pytest.approx(4 / 9)}
    again.told([Spent(given[2], 100, 50)])
    assert budget.state_dict() != again.state_dict(), "the states are not one object"


def test_knapsack_takes_an_item_that_it_does_not_know_for_one_like_those_of_its_kind():
    budget = Knapsack()
    budget.told([Spent(item, 20, 0) for item in items(*range(5), kind="attacked", failed=("security",))])
    alike = items("new", kind="attacked", failed=("security",))[0]
    assert budget.rate(alike) < 0.05
    assert budget.rate(items("new", kind="attacked", failed=("utility",))[0]) == 0.5


def test_knapsack_forgets_a_share_of_what_it_knew():
    budget, (item,) = Knapsack(forget=0.5), items("a")
    budget.told([Spent(item, 8, 0)])
    budget.told([Spent(item, 8, 8)])
    assert budget.state_dict()["seen"] == {"a": [12.0, 8.0]}
    assert Knapsack(forget=1.0).state_dict() == {"seen": {}, "alike": {}}


@pytest.mark.parametrize("arguments", [{"strength": 0}, {"forget": 1.5}, {"value": "most"}, {"weight": 1}])
def test_knapsack_refuses_arguments_that_mean_nothing(arguments):
    with pytest.raises(RecipeError):
        plugins.load("budget", "control/knapsack", arguments)
