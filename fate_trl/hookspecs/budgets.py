"""Budgets: what they share tries out to, what they are told, and what they must do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from ..types import Kind

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Item:
    """Something that tries are shared out to. Facts, no text.

    Attributes:
        key: "suite/id" of its task; "suite/id@repair" of a failure, of a repair and of a repair prompt.
        kind: Kind of its task.
        stage: What a try is: "collect" (a rollout of a task), "repair" (a candidate for a failure), "buffer" (a chosen
            repair that is learned from) or "pfpo" (a group of rollouts of a prompt).
        size: Rollouts of one try: `num_generations` in "pfpo", 1 elsewhere.
        failed: Objectives that the failure fell short in; () of a plain task.
        scores: By objective, those that apply: the failure's, and in "buffer" the repair's; {} of a plain task.
        calls: Names of the calls that it executed, in order.
    """

    key: str
    kind: Kind
    stage: Literal["collect", "repair", "buffer", "pfpo"]
    size: int = 1
    failed: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    calls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spent:
    """What an item's tries came to: how many rollouts there were, and how many of them resolved or were acceptable."""

    item: Item
    rollouts: int
    successes: int


class Budget(Protocol):
    """Shares a number of tries out to items: to tasks, failures, chosen repairs or prompts. It never judges.

    `tries` returns one number per item, in order, each in [low, high], which add up to `total`; anything else is a
    PluginError. Two items may have one key (two failed tries of a task). It changes nothing in the budget.

    There may be `told(spent)`, called with a list of `Spent` after each stage: one that shares tasks out is told of
    what was collected, one that shares failures out of their candidates, one that shares prompts out of what was
    collected and of PFPO's groups, and one that shares repairs out of how often each was taken. What it learns belongs
    into `state_dict()`; see `Stateful`. The state is saved with the policy of each stage, so it goes on after a resume
    and goes back with a round that is rolled back; `metrics()` stand in the stage's record, as they were when it shared
    out.
    """

    def tries(self, items: Sequence[Item], *, total: int, low: int, high: int, rng: np.random.Generator) -> list[int]:
        """Tries by item; n * low <= total <= n * high for n items."""
        ...
