"""Every row of the drop-in matrix: what GRPOTrainer takes, PFPOTrainer takes, to the same bits."""

import inspect
import re
from dataclasses import fields
from functools import reduce
from pathlib import Path

import pytest
from dropin import Row, Tried, processes, rows, training, tried
from transformers import TrainingArguments
from trl import GRPOConfig, GRPOTrainer

MARKED = [pytest.param(row, id=row.name, marks=[] if row.fast else [pytest.mark.slow]) for row in rows()]


def check(row: Row, found: Tried) -> None:
    assert found.sound, found
    assert found.same == (not row.setup().differs), found


@pytest.mark.parametrize("row", MARKED)
def test_row(row: Row, tmp_path):
    if row.needs:
        pytest.importorskip(row.needs)
    check(row, tried(row, tmp_path))


@pytest.mark.slow
def test_two_processes(tmp_path):
    """The fast rows on two processes, and two against one: only sums are taken in another order."""
    fast = {row.name: row for row in rows() if row.fast}
    found = processes.on_two(tmp_path, list(fast))
    for name, row in fast.items():
        check(row, Tried(**found[name]))
    for by_trainer in processes.against_one(tmp_path, found).values():
        assert max(by_trainer.values()) < 1e-5, by_trainer


def test_every_argument_and_key_has_a_row():
    """What a later TRL adds is missing here until somebody writes its row."""
    setups = [row.setup() for row in rows() if not row.needs]
    given = reduce(set.union, (set(setup.more) for setup in setups), {"model", "reward_funcs", "args", "train_dataset"})
    assert set(inspect.signature(GRPOTrainer).parameters) - given == {"processing_class", "quantization_config"}
    own = {key.name for key in fields(GRPOConfig)} - {key.name for key in fields(TrainingArguments)}
    tried_keys = reduce(set.union, ({*setup.args, *setup.theirs} for setup in setups), {"max_completion_length"})
    missing = {key for key in own - tried_keys if not key.startswith(tuple(training.NOT_RUN))}
    assert not missing


def test_oldest_versions_are_the_lower_bounds():
    root = Path(__file__).parents[1]
    bounds = re.findall(r'^  "([\w-]+)>=([\d.]+)', (root / "pyproject.toml").read_text(), re.MULTILINE)
    pins = re.findall(r"^([\w-]+)==([\d.]+)", (root / "constraints-oldest.txt").read_text(), re.MULTILINE)
    padded = {name: version + ".0" * (2 - version.count(".")) for name, version in bounds}
    assert pins
    assert {(name, padded[name]) for name, _ in pins} == set(pins)


def test_rows_are_distinct():
    names = [row.name for row in rows()]
    assert len(names) == len(set(names)) >= 80
