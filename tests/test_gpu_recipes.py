"""Every recipe for a GPU, its loop run on a CPU: two shrunk steps per stage on an untrained model of the same family.

The model has two layers and a small tokenizer with the family's real chat template; the tasks are AgentDojo's, real
ones. What a CPU has not is taken out, and said in `WITHOUT`; 4-bit weights and 8-bit optimisers stay in.
"""

from __future__ import annotations

import importlib.util
import json

import pytest

from benchmarks import families
from fate_trl.ledger.writing import RunDirectory
from fate_trl.recipe.loading import find_recipe, make_recipe, read_values, shipped
from fate_trl.train.build import build

RECIPES = [name for name, file in shipped().items() if file.parent.name == "gpu"]
FAMILIES = {"Qwen/Qwen3": ("qwen3", "qwen3"), "meta-llama/Llama-3.1": ("llama3_1", "llama")}
"""Chat template and architecture, by how a model's hub id begins."""

WITHOUT = ("use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode")
"""Keys of `rollout` that are left out: vLLM needs a GPU. transformers generates instead."""


def test_there_are_recipes_for_every_size_of_card():
    assert len(RECIPES) == 7
    assert set(families.REAL) >= {read_values(find_recipe(name))["model"]["path"] for name in RECIPES}


def shrunk(name, folder):
    """The recipe's values, with a small model, few tasks and few steps."""
    data = read_values(find_recipe(name))
    template, family = next(value for start, value in FAMILIES.items() if data["model"]["path"].startswith(start))
    tokenizer = families.tokenizer(template)
    families.model(tokenizer, family, hidden_size=64, head_dim=16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data["model"] |= {"path": str(folder), "threads": 1}
    data["suites"] = [{"name": "agentdojo/banking", "args": {**data["suites"][0].get("args", {}), "fits": 600}}]
    # Any repair is accepted, since an untrained model makes no good one.
    data["repair"] |= {"k": 2, "max_failures": 2, "accept": "floors", "floors": {"security": 0.0}}
    data["rollout"] = {key: value for key, value in data["rollout"].items() if key not in WITHOUT}
    data["rollout"] |= {"tasks": 4, "chunk": 4, "max_completion_length": 16, "max_tool_calling_iterations": 1}
    data["warm_start"] = {**data["sft"], "traces": 2, "max_steps": 2, "gradient_accumulation_steps": 1}
    data["sft"] |= {"max_steps": 2, "gradient_accumulation_steps": 1}
    data["pfpo"] |= {"max_steps": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    data["pfpo"] |= {"num_generations": 2, "redraw_rounds": 0}
    data["evaluation"] = {"tasks": 2, "validation": 0, "baselines": False}
    return data | {"rounds": 1}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_every_stage(name, tmp_path):
    for package in ("fate_trl_agentdojo", "bitsandbytes"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    recipe = make_recipe(shrunk(name, tmp_path / "model"))
    run = build(recipe, RunDirectory(tmp_path / "run"))
    if recipe.model.load_in_4bit:
        kinds = {type(module).__name__ for module in run.learner.model.modules()}
        assert "Linear4bit" in kinds
    run()
    records = [
        json.loads(line)
        for number in ("00", "01")
        for line in (tmp_path / "run" / "rounds" / number / "stages.jsonl").read_text().splitlines()
    ]
    steps = {record["stage"]: record["steps"] for record in records if "steps" in record}
    assert steps == {"warm_start": 2, "sft": 2, "pfpo": 2}
    assert list((tmp_path / "run" / "rounds" / "01" / "policy").glob("adapter_model.safetensors"))
