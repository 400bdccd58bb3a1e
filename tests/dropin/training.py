"""Data, losses, keys of the configuration, and the life of a training: evaluation, checkpoints, callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig

from . import Setup, prompts, row, values_of
from .models import on_disk

# ------------------------------------------------------------------------------------------------ data


@row("data", "conversational prompts with a system message")
def _() -> Setup:
    texts = ["pay alice", "who is bob"] * 2
    system = {"role": "system", "content": "look"}
    return Setup(data=Dataset.from_list([{"prompt": [system, {"role": "user", "content": t}]} for t in texts]))


@row("data", "plain prompts", fast=True)
def _() -> Setup:
    return Setup(data=Dataset.from_dict({"prompt": ["pay alice", "who is owed", "look", "bob is"]}))


@row("data", "an iterable data set", fast=True)
def _() -> Setup:
    return Setup(data=prompts().to_iterable_dataset())


@row("data", "a column `kind`, by which we log")
def _() -> Setup:
    return Setup(data=prompts(kind=["easy", "hard", "easy", "hard"]))


@row("data", "only the column prompt, in the order given")
def _() -> Setup:
    return Setup(data=prompts(more=[1, 2, 3, 4]), args={"remove_unused_columns": True, "shuffle_dataset": False})


# ------------------------------------------------------------------------------------------------ losses and keys

TWICE = {"num_iterations": 2, "steps_per_generation": 2, "max_steps": 5}
"""The policy moves between a generation and its last use, so that ratios differ from 1."""


def _with(**args: Any) -> Any:
    return lambda: Setup(args=args)


for _loss in values_of("loss_type"):
    for _level in values_of("importance_sampling_level"):
        row(
            "losses",
            f"loss_type {_loss}, importance_sampling_level {_level}",
            fast=_loss == "dapo" and _level == "token",
        )(_with(loss_type=_loss, importance_sampling_level=_level, epsilon=0.05, **TWICE))
for _scale in values_of("scale_rewards"):
    row("losses", f"scale_rewards {_scale}")(_with(scale_rewards=_scale))
row("losses", "scale_rewards True, as older scripts have it")(_with(scale_rewards=True))
for _aggregation in values_of("multi_objective_aggregation"):
    _selector = {"normalize_then_sum": "gdpo"}.get(_aggregation, "weighted-sum")

    def _aggregated(aggregation: str = _aggregation, selector: str = _selector) -> Setup:
        theirs = {"multi_objective_aggregation": aggregation}
        return Setup(args={"reward_weights": [1.0, 0.4]}, theirs=theirs, selector=selector)

    row("losses", f"multi_objective_aggregation {_aggregation}, here selector {_selector}")(_aggregated)

KEYS: dict[str, dict[str, Any]] = {
    "delta": {"delta": 1.1, **TWICE},
    "epsilon_high": {"epsilon": 0.01, "epsilon_high": 0.02, **TWICE},
    "sapo_temperature_neg, sapo_temperature_pos": {
        "loss_type": "sapo", "sapo_temperature_neg": 1.5, "sapo_temperature_pos": 0.5, **TWICE
    },
    "vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg": {
        "loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_pos": 2.0, "vespo_k_neg": 2.0, "vespo_lambda_neg": 1.0,
        **TWICE,
    },
    "mask_truncated_completions": {"mask_truncated_completions": True, "max_completion_length": 16},
    "top_entropy_quantile": {"top_entropy_quantile": 0.5},
    "entropy_coef": {"entropy_coef": 0.1},
    "use_adaptive_entropy": {
        "use_adaptive_entropy": True, "entropy_coef": 0.1, "entropy_coef_min": 0.01, "entropy_coef_max": 0.5,
        "entropy_coef_delta": 0.05, "entropy_target": 5.0, "max_steps": 3,
    },
    "off_policy_mask_threshold": {"off_policy_mask_threshold": 1e-4, **TWICE},
    "generation_batch_size": {"generation_batch_size": 16, "max_steps": 4},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2, "max_steps": 3},
    "num_generations": {"num_generations": 8},
    "temperature, top_p, top_k, min_p": {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "generation_kwargs": {"generation_kwargs": {"suppress_tokens": [20, 21]}},
    "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": False}},
    "cache_implementation": {"cache_implementation": "dynamic"},
    "pad_to_multiple_of": {"pad_to_multiple_of": 8},
    "use_transformers_continuous_batching": {
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": {"num_blocks": 64, "max_batch_tokens": 256},  # else all memory
    },
    "log_completions": {
        "log_completions": True, "num_completions_to_print": 1, "log_unique_prompts": True, "log_multimodal": False
    },
}  # fmt: skip
for _key, _args in KEYS.items():
    row("keys of GRPOConfig", _key)(_with(**_args))


@row("keys of GRPOConfig", "a plain GRPOConfig, selector as a keyword", fast=True)
def _() -> Setup:
    return Setup(config=GRPOConfig)


NOT_RUN = {
    "vllm": "needs a GPU and vLLM",
    "use_vllm": "needs a GPU and vLLM",
    "ds3_gather_for_generation": "needs DeepSpeed",
    "trust_remote_code": "needs a model with code of its own",
    "log_completions_hub_repo": "needs the hub",
    "use_transformers_paged": "TRL's old name for use_transformers_continuous_batching",
}
"""Keys of GRPOConfig, or beginnings of them, that no row sets, and why."""


# ------------------------------------------------------------------------------------------------ a training's life


@row("training", "evaluation on a data set")
def _() -> Setup:
    args = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    return Setup(args=args, more={"eval_dataset": prompts("look", "pay bob")})


@row("training", "evaluation on a dict of data sets, groups of two")
def _() -> Setup:
    args = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, "num_generations_eval": 2}
    return Setup(args=args, more={"eval_dataset": {"one": prompts("look", "bob"), "two": prompts("pay bob", "alice")}})


@row("training", "evaluation before training, groups of one, an iterable data set")
def _() -> Setup:
    args = {"eval_strategy": "steps", "eval_on_start": True, "per_device_eval_batch_size": 2, "num_generations_eval": 1}
    return Setup(args=args, more={"eval_dataset": prompts("look", "pay bob").to_iterable_dataset()})


def _resumed(make: Any) -> Any:
    """Train for three steps, and for two more from the checkpoint after the third."""
    first = make(save_strategy="steps", save_steps=1, max_steps=3)
    first.train()
    second = make(max_steps=5)
    second.train(resume_from_checkpoint=str(Path(first.args.output_dir) / "checkpoint-3"))
    return second


@row("training", "checkpoints, resumed in the first epoch", fast=True)
def _() -> Setup:
    return Setup(use=_resumed, data=prompts(*["look", "pay alice", "who is bob", "steal from bob", "i cannot"] * 2))


@row("training", "checkpoints, resumed in a later epoch")
def _() -> Setup:
    return Setup(
        use=_resumed,
        differs="GRPOTrainer goes on with the order of the first epoch; ours as if it had not been interrupted",
    )


@row("training", "the best checkpoint, by a reward of the evaluation, loaded at the end")
def _() -> Setup:
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "per_device_eval_batch_size": 4}
    return Setup(model=on_disk, args={**every, **best}, more={"eval_dataset": prompts("look", "pay bob")})


class Watcher(TrainerCallback):
    """Writes into the log what it sees, changes the trainer's weights, and ends the training."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        state.log_history.append({"watched": sum(float(p.detach().sum()) for p in model.parameters())})
        control.should_training_stop = state.global_step == 3


@row("training", "callbacks", fast=True)
def _() -> Setup:
    return Setup(args={"max_steps": 9}, more={"callbacks": [Watcher()]})


@row("training", "an optimiser and a schedule of the user's own")
def _() -> Setup:
    def model(tokenizer: Any) -> Any:
        made = tiny.make_model(tokenizer)
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        setup.more["optimizers"] = (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))
        return made

    setup = Setup(model=model, args={"max_steps": 3}, more={"optimizers": None})
    return setup


@row("training", "epochs instead of steps, a sampler that goes on")
def _() -> Setup:
    return Setup(args={"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 4, "num_generations": 2})
