"""The recipe iterative-dpo: rounds of the preference stage alone raise what the policy resolves, round by round."""

from __future__ import annotations

import pytest
import torch

from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.recipe.loading import load_recipe
from fate_trl.train.build import build

torch.set_num_threads(1)


def test_a_round_of_it_is_pairs_and_dpo_alone():
    recipe = load_recipe("iterative-dpo")
    assert recipe.preference is not None
    assert recipe.sft is recipe.pfpo is recipe.distillation is None
    assert recipe.rounds > 1
    assert recipe.evaluation.validation == 0, "each round is accepted, so the table shows each"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_resolved_rises_and_the_table_has_each_round(tmp_path):
    recipe = load_recipe(
        "iterative-dpo", ["rounds=2", "rollout.tasks=120", "evaluation.tasks=60", "evaluation.baselines=false"]
    )
    rows = build(recipe, RunDirectory(tmp_path / "run"))()
    table = {row["policy"]: row for row in rows if (row["suite"], row["kind"], row["split"]) == ("all", "all", "test")}
    assert list(table) == ["base", "round-1", "round-2"]
    resolved = [table[policy]["metrics"]["resolved"]["value"] for policy in table]
    assert resolved[2] > resolved[0] + 0.05
    for number in (1, 2):
        told = RunReader.open(tmp_path / "run").stages(number)
        assert told["pairs"]["pairs"] > 0
        assert told["preference"]["accuracy"] > 0.5
