"""Budgets by features: D-optimal shares and the submodular choice, on made-up and on real failures."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

from fate_trl_methods.budgets import DOptimal, Submodular, coverage, features, greedy, worth

from fate_trl import Item, Spent
from fate_trl.loop.budgets import failure_item
from fate_trl.testing import samples

KINDS = ("benign", "attacked", "harmful")
TOOLS = ("read", "send", "pay", "delete")


def made_up(count, seed):
    rng = np.random.default_rng(seed)
    return [
        Item(
            f"s/{n}@repair",
            str(rng.choice(KINDS, p=[0.8, 0.1, 0.1])),
            "buffer",
            failed=tuple(name for name in ("security", "utility") if rng.random() < 0.4),
            scores={"security": round(float(rng.random()), 2), "utility": round(float(rng.random()), 2)},
            calls=tuple(str(tool) for tool in rng.choice(TOOLS, int(rng.integers(0, 4)), p=[0.7, 0.1, 0.1, 0.1])),
        )
        for n in range(count)
    ]


def real():
    return [failure_item(failure, "repair") for failure in samples.failures()][:40]


def log_det(rows, counts, ridge):
    """Log determinant of the information matrix of so many tries of each row."""
    names = sorted({name for row in rows for name in row})
    x_I_F = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    return np.linalg.slogdet(ridge * np.eye(len(names)) + (x_I_F.T * np.array(counts)) @ x_I_F)[1]


def tries(budget, items, total, low=0, high=4):
    shares = budget.tries(items, total=total, low=low, high=high, rng=np.random.default_rng(0))
    assert sum(shares) == total
    assert all(low <= share <= high for share in shares)
    return shares


@pytest.mark.parametrize("items", [made_up(30, 0), made_up(30, 1), real()], ids=["made-up", "another", "real"])
def test_d_optimal_beats_random_shares(items):
    rows, rng = [features(item) for item in items], np.random.default_rng(0)
    reached = log_det(rows, tries(DOptimal(), items, len(items)), 1.0)
    by_chance = [
        log_det(rows, rng.multinomial(len(items), np.full(len(items), 1 / len(items))), 1.0) for _ in range(200)
    ]
    assert reached > max(by_chance)
    assert reached > log_det(rows, [1] * len(items), 1.0), "and equal ones"


def test_d_optimal_is_the_greedy_choice_by_the_determinant_itself():
    items = made_up(6, 2)
    rows, counts = [features(item) for item in items], [0] * 6
    for _ in range(7):
        more = [log_det(rows, [c + (i == j) for j, c in enumerate(counts)], 1.0) for i in range(6)]
        counts[int(np.argmax(more))] += 1
    assert tries(DOptimal(), items, 7, high=7) == counts


def test_d_optimal_leaves_likes_of_what_was_tried_for_later():
    a, b = Item("s/a", "benign", "repair", failed=("utility",)), Item("s/b", "attacked", "repair", failed=("security",))
    budget = DOptimal()
    assert tries(budget, [a, b], 2) == [1, 1]
    budget.told([Spent(a, 8, 0)])
    assert tries(budget, [a, b], 2) == [0, 2]
    again = DOptimal()
    again.load_state_dict(json.loads(json.dumps(budget.state_dict())))
    assert tries(again, [a, b], 2) == [0, 2]
    for _ in range(15):
        again.told([])
    assert tries(again, [a, b], 2) == [1, 1], "it forgets"
    assert again.metrics() == {"known": 0.0}


@pytest.mark.parametrize("seed", range(20))
def test_submodular_greedy_reaches_its_share_of_the_optimum_by_brute_force(seed):
    items = made_up(9, seed)
    pairs = worth(items)
    for size in (1, 2, 3, 4):
        best = max(coverage(pairs, chosen) for chosen in itertools.combinations(range(9), size))
        assert coverage(pairs, greedy(pairs, size)) >= (1 - 1 / math.e) * best
        shares = tries(Submodular(), items, size, high=1)
        assert set(greedy(pairs, size)) <= {i for i, share in enumerate(shares) if share}


def test_submodular_duplicates_gain_nothing():
    item = Item("s/a", "benign", "buffer", failed=("utility",), scores={"utility": 0.9}, calls=("read",))
    other = Item("s/b", "attacked", "buffer", failed=("security",), scores={"security": 0.8}, calls=("pay",))
    items = [item, item, item, item, other]
    pairs = worth(items)
    assert coverage(pairs, [0, 1, 2, 3]) == coverage(pairs, [0])
    assert len(greedy(pairs, 5)) == 2
    assert tries(Submodular(), items, 2, high=1) == [1, 0, 0, 0, 1]


def test_submodular_has_diminishing_returns():
    pairs = worth(made_up(8, 3))
    for small in itertools.combinations(range(6), 2):
        large = [*small, 6]
        gain = [coverage(pairs, [*chosen, 7]) - coverage(pairs, chosen) for chosen in (small, large)]
        assert gain[0] >= gain[1] - 1e-12 >= -1e-12


def test_submodular_spends_what_is_left_over_on_quality():
    good, bad = (Item(f"s/{q}", "benign", "buffer", scores={"utility": q}) for q in (1.0, 0.2))
    assert tries(Submodular(), [bad, good], 1, high=1) == [0, 1]
    assert tries(Submodular(), [bad, good, good], 2, high=1) == [0, 1, 1]
    assert tries(Submodular(), [bad, good], 3, low=1) == [1, 2]
