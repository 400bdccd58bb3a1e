"""The seam to TRL: what fate_trl/train/trainer.py relies on there. A failure here says that TRL changed, and where."""

from __future__ import annotations

import inspect

import pytest
import tiny
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from fate_trl.train.batches import PADDING
from fate_trl.train.config import PFPOConfig
from fate_trl.train.trainer import PFPOTrainer


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_generate", ["self", "prompts"]),
        ("_tokenize_prompts", ["self", "prompts"]),
        ("_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_get_train_sampler", ["self", "dataset"]),
        ("_prepare_inputs", ["self", "generation_batch"]),
        ("_compute_loss", ["self", "model", "inputs"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
    ],
)
def test_signatures_of_the_methods_that_are_overridden(method, parameters):
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == parameters
    assert list(inspect.signature(getattr(PFPOTrainer, method)).parameters) == parameters


def test_a_turn_is_generated_from_tokens_and_what_goes_with_them():
    """prefix/trainer.py and greedy.py pass the rest on; the first three say which rows are meant."""
    told = list(inspect.signature(GRPOTrainer._generate_single_turn).parameters)
    assert told[:5] == ["self", "prompt_ids", "images", "multimodal_fields", "num_generations"]


def test_constructor_starts_as_trls_and_passes_the_rest_on():
    theirs = list(inspect.signature(GRPOTrainer.__init__).parameters)
    ours = list(inspect.signature(PFPOTrainer.__init__).parameters)
    shared = ours[: ours.index("more")]
    assert shared == theirs[: len(shared)]
    assert {"selector", "selector_args"}.isdisjoint(theirs)


def test_configuration_only_adds():
    added = {"selector", "selector_args", "redraw_rounds", "verifier_seconds", "max_error_rate", "mask_overflowed"}
    added |= {"share_prefixes", "prefix_cache_gb", "pack_tokens"}
    assert set(PFPOConfig.__dataclass_fields__) - set(GRPOConfig.__dataclass_fields__) == added
    changed = {
        name
        for name, field in GRPOConfig.__dataclass_fields__.items()
        if PFPOConfig.__dataclass_fields__[name].default != field.default
    }
    assert changed == {"scale_rewards"}


def test_attributes_and_results_that_are_read(tmp_path, monkeypatch):
    tokenizer = tiny.make_tokenizer()
    rows = [{"prompt": [{"role": "user", "content": "pay alice"}]}] * 4
    trainer = GRPOTrainer(
        tiny.make_model(tokenizer),
        lambda completions, **_: [1.0] * len(completions),
        tiny.config(GRPOConfig, tmp_path, num_iterations=2),
        Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    for name in ("reward_funcs", "reward_func_names", "reward_processing_classes", "reward_weights", "environments"):
        assert hasattr(trainer, name), name
    for name in ("num_generations", "num_generations_eval", "scale_rewards", "multi_objective_aggregation", "_step"):
        assert hasattr(trainer, name), name
    for name in ("max_tool_calling_iterations", "eos_token_ids", "_tokenizer", "_is_vlm", "environment_factories"):
        assert hasattr(trainer, name), name
    assert {"train", "eval"} == set(trainer._metrics)
    assert {"advantages", "rewards"} <= set(trainer._logs)
    kept = []
    generate = trainer._generate
    monkeypatch.setattr(trainer, "_generate", lambda prompts: kept.append(generate(prompts)) or kept[-1])
    trainer.model.train()
    out = trainer._generate_and_score_completions([dict(row) for row in rows])
    prompt_ids, completion_ids, mask, completions = kept[0][:4]
    assert [len(part) for part in (prompt_ids, completion_ids, completions)] == [4, 4, 4]
    assert mask is None
    assert set(out) - set(PADDING) == {"num_items_in_batch"}, "a tensor that a re-draw cannot merge"
    metrics = trainer._metrics["train"]
    assert [len(metrics[name]) for name in ("reward", "reward_std", "rewards/<lambda>/mean")] == [1, 1, 1]
