"""Every row of the fault table: what was injected into a real round did what the row says, and lost no record."""

import os

import pytest
from faults import Bench, faults, noise

from fate_trl import metrics
from fate_trl.errors import ErrorBudgetExceeded
from fate_trl.recipe.loading import make_recipe


@pytest.fixture
def no_metrics(monkeypatch):
    """They and the disk take most of a scripted round's time; benchmarks/faults.py runs the same rows with them."""
    monkeypatch.setattr(metrics, "rows", lambda *_, **__: [])
    monkeypatch.setattr(os, "fsync", lambda _: None)


ROWS = [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else []) for row in faults()]


@pytest.mark.parametrize("row", ROWS)
def test_fault(row, tmp_path, no_metrics):
    ran = row.trial(Bench(tmp_path / "run"))
    assert ran.stopped is None
    assert (ran.lost, ran.duplicated) == (0, 0)


def test_rows_are_distinct():
    names = [row.name for row in faults()]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.slow
def test_a_run_with_everyday_faults_finishes_and_says_the_same(tmp_path):
    values = noise.recipe({"train": 30, "validation": 0, "test": 120}, rounds=1)
    found = noise.compared(make_recipe(values), tmp_path, noise.scripted)
    assert found["clean"]["excluded"] == 0
    noisy = found["noisy"]
    assert {"tool_failed", "verifier_raised"} <= set(noisy["causes"])
    assert noisy["excluded"] + noisy["resolved"]["n"] == 120
    assert noisy["resolved"]["error_low"] < noisy["resolved"]["value"] < noisy["resolved"]["error_high"]
    assert noise.agrees(found)


@pytest.mark.slow
def test_the_default_error_budget_does_not_bear_that_many(tmp_path):
    values = noise.recipe({"train": 30, "validation": 0, "test": 60}, rounds=1)
    del values["evaluation"]["max_error_rate"]
    with pytest.raises(ErrorBudgetExceeded, match=r"tool_failed +\d+  tool \w+ failed: OSError"):
        noise.compared(make_recipe(values), tmp_path, noise.scripted)
