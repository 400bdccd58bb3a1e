"""Merges: shares of policies, on scores that are made up."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import FateError
from ...loop.merging import checked
from ...record import dumps

POLICIES = range(1, 8)


def _shares(merge: Any, policies: int) -> list[list[float]] | str:
    """What it chooses of so many policies, or the error that says that it merges other numbers of them."""

    def evaluate(coefficients: Any) -> list[float]:
        (row,) = checked([coefficients], policies, type(merge).__name__)
        return [float(np.clip(row[0], 0, 1)), float(np.clip(1 - abs(row[-1] - 0.3), 0, 1)), float("nan")]

    try:
        rows = merge.coefficients(policies, evaluate, np.random.default_rng(0))
    except FateError as error:
        return str(error)
    return checked(rows, policies, type(merge).__name__)


def test_shares_are_one_per_policy_with_the_sum_1(merge: Any) -> None:
    chosen = [_shares(merge, policies) for policies in POLICIES]
    assert any(isinstance(rows, list) for rows in chosen), f"it merges no number of policies: {chosen[-1]}"


def test_the_same_scores_and_generator_give_the_same_shares(merge: Any) -> None:
    for policies in POLICIES:
        assert _shares(merge, policies) == _shares(merge, policies)


def test_a_merges_own_numbers_are_numbers(merge: Any) -> None:
    for policies in POLICIES:
        _shares(merge, policies)
    own: dict[str, float] = getattr(merge, "metrics", dict)()
    assert all(isinstance(value, (int, float)) for value in own.values())
    assert dumps(dict(own))
