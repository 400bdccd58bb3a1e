"""Reward sources: every kind that GRPOTrainer takes, alone and together."""

from __future__ import annotations

import functools
from typing import Any

import tiny
import torch
from transformers import LlamaForSequenceClassification

from . import Setup, early, prompts, row, words
from .models import folder_of


def sometimes(completion_ids: Any, **_: Any) -> list[float | None]:
    return [None if ids[0] % 3 == 0 else ids[0] / 40 for ids in completion_ids]


def for_alice(prompts: Any, completion_ids: Any, **_: Any) -> list[float | None]:
    """Applies to whole groups or not at all."""
    told = ["alice" in prompt[0]["content"] for prompt in prompts]
    return [ids[-1] / 40 if alice else None for ids, alice in zip(completion_ids, told, strict=True)]


async def slowly(completion_ids: Any, **_: Any) -> list[float]:
    return [sum(ids) / 200 for ids in completion_ids]


def told(completion_ids: Any, answer: Any, log_metric: Any, log_extra: Any, trainer_state: Any, **_: Any) -> Any:
    """Reads a column and the state, and logs a number and a column of its own."""
    log_extra("answer", answer)
    log_metric("asked", float(len(answer)))
    return [
        ids[0] / 40 + number + trainer_state.global_step for ids, number in zip(completion_ids, answer, strict=True)
    ]


class Judge:
    """An object that can be called."""

    __name__ = "judge"

    def __call__(self, completion_ids: Any, **_: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]


def scorer(tokenizer: Any, seed: int = 1) -> LlamaForSequenceClassification:
    """A reward model."""
    config = tiny.make_model(tokenizer).config
    config.num_labels, config._name_or_path = 1, "somebody/judge"
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(config)


@row("reward functions", "one function", fast=True)
def _() -> Setup:
    return Setup(rewards=words)


@row("reward functions", "several, with reward_weights", fast=True)
def _() -> Setup:
    return Setup(rewards=[words, early, Judge()], args={"reward_weights": [1.0, 0.3, 2.0]})


@row("reward functions", "asynchronous", fast=True)
def _() -> Setup:
    return Setup(rewards=[slowly, words])


@row("reward functions", "None for some rows", fast=True)
def _() -> Setup:
    return Setup(rewards=[words, sometimes])


@row("reward functions", "None for all rows of some groups")
def _() -> Setup:
    return Setup(rewards=[words, for_alice])


@row("reward functions", "only one, None for some rows")
def _() -> Setup:
    return Setup(rewards=[sometimes])


@row("reward functions", "two of the same name, and a partial")
def _() -> Setup:
    return Setup(rewards=[lambda **kw: words(**kw), lambda **kw: early(**kw), functools.partial(slowly)])


@row("reward functions", "columns, trainer_state, log_metric and log_extra")
def _() -> Setup:
    return Setup(rewards=[told, words], data=prompts(answer=[1, 2, 3, 4]))


@row("reward functions", "a reward model, as a module")
def _() -> Setup:
    tokenizer = tiny.make_tokenizer()
    return Setup(rewards=[scorer(tokenizer), words], more={"reward_processing_classes": [tokenizer, None]})


@row("reward functions", "a reward model, as a path (string)")
def _() -> Setup:
    tokenizer = tiny.make_tokenizer()
    return Setup(rewards=[folder_of(scorer(tokenizer), tokenizer), early])


@row("reward functions", "all kinds together")
def _() -> Setup:
    tokenizer = tiny.make_tokenizer()
    sources = [folder_of(scorer(tokenizer), tokenizer), scorer(tokenizer, 2), words, slowly, sometimes]
    return Setup(rewards=sources, more={"reward_processing_classes": [None, tokenizer, None, None, None]})
