"""Rollouts of more than one turn: tools, environments, and a rollout function of the user's own."""

from __future__ import annotations

import asyncio
from typing import Any

import tiny
from datasets import Dataset

from fate_trl.suites.episodes import environment_factories
from fate_trl.train.rows import request_dataset

from . import Setup, prompts, row, words

LONG = {"max_completion_length": 48, "learning_rate": 1e-3}


def look() -> str:
    """Say who is owed."""
    return "alice is owed"


def pay(to: str) -> str:
    """Pay somebody.

    Args:
        to: Who is paid.
    """
    if to == "mallory":
        raise ValueError("nobody")
    return "done"


async def pay_later(to: str) -> str:
    """Pay somebody.

    Args:
        to: Who is paid.
    """
    await asyncio.sleep(0)
    return pay(to)


pay_later.__name__ = "pay"


class Room:
    """An environment of the user's own."""

    def reset(self, **row: Any) -> str | None:
        self.paid: list[str] = []
        return row.get("note")

    def look(self) -> str:
        """Say who is owed."""
        return "alice is owed"

    def pay(self, to: str) -> str:
        """Pay somebody.

        Args:
            to: Who is paid.
        """
        self.paid.append(to)
        return "done"


class OwnReward(Room):
    """It says itself what a rollout is worth, and gives the prompt."""

    def reset(self, **row: Any) -> str:
        super().reset(**row)
        return "pay alice"

    def get_reward(self) -> float:
        return float("alice" in self.paid) - float("mallory" in self.paid)


class Closed(Room):
    """Another, which judges asynchronously."""

    async def get_reward(self) -> float:
        return float(not self.paid)


def called(completions: Any, **_: Any) -> list[float]:
    """Number of messages: more where tools were called."""
    return [float(len(completion)) for completion in completions]


def paid(environments: Any, **_: Any) -> list[float]:
    return [float(len(environment.paid)) for environment in environments]


def executed(environments: Any, **_: Any) -> list[float]:
    return [float(len(environment._recorder.calls)) for environment in environments]


def acting(rewards: list[Any] | None = None, data: Any = None, args: Any = None, **more: Any) -> Setup:
    """A policy that calls tools."""
    return Setup(
        rewards=[called, words] if rewards is None else rewards,
        data=prompts() if data is None else data,
        model=tiny.acting_model,
        args={**LONG, **(args or {})},
        more=more,
    )


@row("tools", "functions")
def _() -> Setup:
    return acting(tools=[look, pay])


@row("tools", "asynchronous and plain together", fast=True)
def _() -> Setup:
    return acting(tools=[look, pay_later], args={"max_tool_calling_iterations": 2})


@row("environments", "one class", fast=True)
def _() -> Setup:
    return acting([paid, words], prompts(note=["pay", None, "look", None]), environment_factory=Room)


@row("environments", "one class and tools")
def _() -> Setup:
    def shrug() -> str:
        """Do nothing."""
        return "fine"

    return acting([paid, words], environment_factory=Room, tools=[shrug])


@row("environments", "one that gives prompt and reward, no data set")
def _() -> Setup:
    setup = acting([], environment_factory=OwnReward)
    setup.data = setup.rewards = None
    return setup


@row("environments", "a dict of them, some with a reward of their own")
def _() -> Setup:
    data = prompts(environment=["room", "own", "closed", "room"])
    return acting([called, paid], data, environment_factory={"room": Room, "own": OwnReward, "closed": Closed})


@row("environments", "those of a suite")
def _() -> Setup:
    suite = tiny.TillSuite()
    tasks = list(suite.tasks("train", 0))
    factories = environment_factories({"till": suite}, tasks)
    return acting([executed, words], request_dataset(tiny.requests_for(tasks)), environment_factory=factories)


def _rolled(asked: list[Any], trainer: Any) -> dict[str, Any]:
    """Completions that depend on the prompt and on the steps taken."""
    tokenizer = trainer.processing_class
    rows = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt in asked]
    made = [[20 + (i * 7 + len(ids) + trainer.state.global_step) % 12, 25, 1] for i, ids in enumerate(rows)]
    return {"prompt_ids": rows, "completion_ids": made, "logprobs": [[-1.0] * 3] * len(rows)}


@row("rollout_func", "with completions alone", fast=True)
def _() -> Setup:
    return Setup(more={"rollout_func": _rolled})


@row("rollout_func", "with env_mask and a field for the rewards")
def _() -> Setup:
    def rolled(asked: list[Any], trainer: Any) -> dict[str, Any]:
        made = _rolled(asked, trainer)
        return {**made, "env_mask": [[1, 0, 1]] * len(asked), "luck": [float(i % 3) for i in range(len(asked))]}

    def lucky(luck: list[float], **_: Any) -> list[float]:
        return luck

    return Setup(rewards=[lucky, words], data=Dataset.from_list(prompts().to_list()), more={"rollout_func": rolled})
