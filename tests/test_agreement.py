"""Krippendorff's alpha: against the published example, plain enumeration, and its own ends."""

import itertools
import random

import numpy as np
import pytest

from fate_trl.metrics.agreement import agreement, alpha, coincidences

_ = None
A = [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _]
B = [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3]
C = [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _]
D = [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _]
PUBLISHED = list(zip(A, B, C, D, strict=True))
"""Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), part C: nominal data, four observers, alpha .743."""


def by_pairs(units):
    """The slow, obvious way: disagreement over pairs within units, against pairs of all the values."""
    spoken = [[v for v in unit if v is not None] for unit in units]
    spoken = [unit for unit in spoken if len(unit) > 1]
    values = [v for unit in spoken for v in unit]
    observed = sum(sum(a != b for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in spoken) / len(
        values
    )
    expected = sum(a != b for a, b in itertools.permutations(values, 2)) / (len(values) * (len(values) - 1))
    return 1 - observed / expected


def test_the_published_example():
    assert agreement(PUBLISHED, range(12))["alpha"] == pytest.approx(0.743, abs=5e-4)


def test_it_equals_enumeration_on_random_input():
    rng = random.Random(0)
    for _trial in range(50):
        raters = rng.randint(2, 4)
        units = [[rng.choice((0, 1, 1, None)) for _rater in range(raters)] for _unit in range(rng.randint(4, 15))]
        values = {v for unit in units if sum(x is not None for x in unit) > 1 for v in unit if v is not None}
        if len(values) == 2:
            assert agreement(units, range(len(units)))["alpha"] == pytest.approx(by_pairs(units))


def test_its_ends():
    both = [(True, True), (False, False)] * 20
    found = agreement(both, range(40))
    assert (found["alpha"], found["low"], found["high"], found["agree"]) == (1, 1, 1, 1)
    assert agreement([(True, False), (False, True)] * 20, range(40))["alpha"] < -0.9
    assert agreement([(True, True)] * 9, range(9))["alpha"] is None, "nobody ever said anything else"
    assert agreement([], [])["n"] == 0
    assert agreement([(True, None), (None, False)], [0, 1])["n"] == 0, "nothing that two judged"
    constant = agreement([(True, number % 2 == 0) for number in range(200)], range(200))
    assert -0.5 < constant["alpha"] < 0, "a judge that always says the same is worth less than chance"
    assert np.isnan(alpha(np.zeros((1, 2, 2)))[0])
    assert coincidences([(1, None)]).sum() == 0


def test_the_interval_holds_the_truth_and_knows_clusters():
    rng = np.random.default_rng(0)
    held = 0
    for _trial in range(100):
        truth = rng.random(40) < 0.5
        heard = np.where(rng.random(40) < 0.8, truth, ~truth)  # alpha .6
        found = agreement(list(zip(truth.tolist(), heard.tolist(), strict=True)), range(40))
        held += found["low"] <= 0.6 <= found["high"]
    assert held >= 88
    alone = agreement([(True, True), (False, True), (False, False), (True, False)] * 10, range(40))
    clustered = agreement([(True, True), (False, True), (False, False), (True, False)] * 10, [i % 4 for i in range(40)])
    assert clustered["clusters"] == 4
    assert clustered["high"] - clustered["low"] > alone["high"] - alone["low"]
