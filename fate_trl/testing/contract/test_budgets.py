"""Budgets."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from ...hookspecs import Item, Spent, Stateful
from ...record import dumps
from ...types import KINDS, OBJECTIVES
from .helpers import assert_same, generator

BOUNDS = [(0, 4, 1.0), (1, 8, 2.5), (2, 2, 2.0), (0, 1, 0.5)]
"""Least, most and mean tries of one item."""


def items(count: int, stage: Any = "repair") -> list[Item]:
    """Failures of several kinds, two of them of one task."""
    rng, plain = generator(count), stage == "collect"
    return [
        Item(
            key=f"suite/{max(n, 1)}" if plain else f"suite/{max(n, 1)}@repair",
            kind=KINDS[n % 3],
            stage=stage,
            size=8 if stage == "pfpo" else 1,
            failed=() if plain else (OBJECTIVES[n % 4],),
            scores={} if plain else {name: float(rng.random()) for name in OBJECTIVES[: 2 + n % 3]},
            calls=() if plain else tuple(f"tool_{n % m}" for m in range(1, 1 + n % 4)),
        )
        for n in range(count)
    ]


def shared(budget: Any, given: list[Item], bounds: tuple[int, int, float], seed: int = 0) -> list[int]:
    low, high, mean = bounds
    total = int(mean * len(given) + 0.5)
    said = budget.tries(given, total=total, low=low, high=high, rng=generator(seed))
    shares = [int(count) for count in said]
    assert list(said) == shares, "tries are whole numbers"
    assert len(shares) == len(given), "one number per item"
    assert sum(shares) == total, "the tries add up to `total`"
    assert all(low <= share <= high for share in shares), "each lies within the bounds"
    return shares


def spent(given: list[Item]) -> list[Spent]:
    return [Spent(item, 4 * item.size, (5 * n) % (4 * item.size + 1)) for n, item in enumerate(given)]


@pytest.mark.parametrize("stage", ["collect", "repair", "buffer", "pfpo"])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_budget_shares_add_up_within_the_bounds(budget: Any, stage: str, bounds: tuple[int, int, float]) -> None:
    listens = copy.deepcopy(budget)
    for count in (1, 2, 7, 30):
        shared(listens, items(count, stage), bounds)
    if hasattr(listens, "told"):
        listens.told(spent(items(30, stage)))
        shared(listens, items(30, stage), bounds)


def test_budget_depends_on_its_rng_only_and_changes_nothing(budget: Any) -> None:
    given, untouched = items(12), items(12)
    once, twice = (shared(budget, given, BOUNDS[1], 1) for _ in range(2))
    assert_same(twice, once, "the second time differs")
    assert given == untouched, "it changed its items"


def test_budget_listens_to_nothing_as_well(budget: Any) -> None:
    """A round without failures has no tries of repairs."""
    listens = copy.deepcopy(budget)
    if hasattr(listens, "told"):
        listens.told([])
        listens.told([Spent(item, 0, 0) for item in items(3)])
    shared(listens, items(3), BOUNDS[0])


def test_budget_that_learns_goes_on_from_its_state(budget: Any) -> None:
    if not hasattr(budget, "told"):
        return
    learned, given = copy.deepcopy(budget), items(12)
    learned.told(spent(given))
    stateful: Any = budget if isinstance(budget, Stateful) else None
    if stateful is None:
        assert shared(learned, given, BOUNDS[1]) == shared(budget, given, BOUNDS[1]), "it learns, so it needs state"
        return
    state = json.loads(dumps(learned.state_dict()))
    again = copy.deepcopy(stateful)
    again.load_state_dict(state)
    assert shared(again, given, BOUNDS[1]) == shared(learned, given, BOUNDS[1])
    again.told(spent(items(5)))
    assert json.loads(dumps(learned.state_dict())) == state, "two budgets share their state"
