"""Every shipped recipe, shrunk to two steps per stage, taken through its whole loop on the embedded policy."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
import yaml

from fate_trl.ledger.writing import RunDirectory
from fate_trl.recipe.loading import load_recipe, shipped
from fate_trl.train.build import build

torch.set_num_threads(1)

SMALL = [
    "model.path=embedded",
    "rounds=1",
    "rollout.tasks=12",
    "rollout.chunk=12",
    "rollout.max_completion_length=40",
    "repair.k=2",
    "evaluation.tasks=6",
    "evaluation.validation=3",
    "sft.max_steps=2",
    "sft.per_device_train_batch_size=4",
    "pfpo.max_steps=2",
    "pfpo.per_device_train_batch_size=4",
    "pfpo.num_generations=2",
]
WARM = ["warm_start.max_steps=2", "warm_start.traces=4"]


def recipes() -> list:
    """Those for a CPU; tests/test_gpu_recipes.py has the rest, which need more packages."""
    files = {name: file for name, file in shipped().items() if file.parent.name != "gpu"}
    needs = {name: "agentdojo" in file.read_text() for name, file in files.items()}
    absent = importlib.util.find_spec("agentdojo") is None
    skip = pytest.mark.skipif(absent, reason="the AgentDojo plugin is not installed")
    return [pytest.param(name, marks=[skip] if needs[name] else []) for name in needs]


@pytest.mark.parametrize("name", recipes())
def test_recipe_runs(name, tmp_path):
    warm = "warm_start" in yaml.safe_load(shipped()[name].read_text())
    recipe = load_recipe(name, [*SMALL, *(WARM if warm else [])])
    run = RunDirectory(tmp_path / "run")
    rows = build(recipe, run)()
    stages = [record["stage"] for record in run.read("rounds/01/stages.jsonl")]
    assert stages[:2] == ["collect", "repair"]
    assert stages[-1] == "accept"
    assert "pfpo" in stages
    policies = {row["policy"] for row in rows if row["split"] == "test"}
    assert {"base", "round-1", "oracle", "refuse-all", "do-nothing", "obey"} <= policies
    assert json.loads((run.path / "metrics.json").read_text())["rows"] == rows
    assert any((run.path / "rounds/01/policy").glob("*.safetensors"))


def test_a_run_stopped_between_stages_ends_as_if_it_had_not(tmp_path):
    """Embedded policy, one thread: the same buffer, to the byte, and the same policy."""

    class Stop(Exception):
        pass

    recipe = load_recipe("quickstart", [key.replace("tasks=12", "tasks=24") for key in SMALL])
    whole = RunDirectory(tmp_path / "whole")
    rows = build(recipe, whole)()
    assert (whole.path / "rounds/01/buffer.jsonl").stat().st_size > 0
    part = RunDirectory(tmp_path / "part")
    stopped = build(recipe, part)

    def stop(requests, seed, scratch):
        raise Stop

    stopped.learner.pfpo = stop  # type: ignore[method-assign]
    with pytest.raises(Stop):
        stopped()
    resumed = build(recipe, part)()
    assert (part.path / "rounds/01/buffer.jsonl").read_bytes() == (whole.path / "rounds/01/buffer.jsonl").read_bytes()
    weights = "rounds/01/policy/model.safetensors"
    assert (part.path / weights).read_bytes() == (whole.path / weights).read_bytes()
    assert resumed == rows
