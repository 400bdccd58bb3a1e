"""Budgets: what tries are shared out to, that the shares add up, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import PluginError
from ..hookspecs import Item, Spent
from ..ledger.components import metrics_of, read_states, restore, states_of, write_states
from ..ledger.layout import seed_of
from ..recipe.schema import BudgetRef, Recipe, bounds, budgets_in
from ..types import Case, Failure, Repair, RolloutRequest, Task, Trajectory

FILE = "budgets.json"
"""Holds the state of budgets, beside a policy."""


@dataclass(frozen=True)
class Budgets:
    """The budgets of a run by what they share tries out in: "collect", "repair", "buffer" and "pfpo"; see `Item`.

    Attributes:
        made: The components.
        references: What the recipe says of each, and the mean tries of one item without it.
        seed: The run's.
    """

    made: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, tuple[BudgetRef, int]] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_unlearned", states_of(self.made))

    @classmethod
    def of(cls, recipe: Recipe, made: Mapping[str, Any]) -> Budgets:
        """A recipe's; `made` are its components."""
        return cls(made, budgets_in(recipe), recipe.seed)

    def __contains__(self, stage: str) -> bool:
        return stage in self.made

    def shares(self, stage: str, items: Sequence[Item], round: int) -> list[int]:
        """Tries by item, of a stage that has a budget.

        Raises:
            PluginError: They are not one whole number per item within the bounds, or do not add up.
        """
        reference, usual = self.references[stage]
        low, mean, high = bounds(stage, reference, usual)
        total = nearest_whole(mean * len(items))
        rng = np.random.default_rng(seed_of(self.seed, round, f"budget-{stage}"))
        said = self.made[stage].tries(list(items), total=total, low=low, high=high, rng=rng) if items else []
        who = f"budget {reference.name!r}"
        try:
            given = list(said)
            counts = [int(count) for count in given]
            whole = counts == given
        except (TypeError, ValueError, OverflowError):  # no list, or of no numbers; NaN; infinity
            whole = False
        if not whole or len(counts) != len(items):
            raise PluginError(
                f"{who}: tries must return one whole number for each of {len(items)} items, not {str(said)[:80]}."
            )
        if sum(counts) != total:
            raise PluginError(f"{who}: its tries add up to {sum(counts)}; there are {total}.")
        if counts and not low <= min(counts) <= max(counts) <= high:
            raise PluginError(
                f"{who}: its tries lie in [{min(counts)}, {max(counts)}]; the bounds are [{low}, {high}]."
            )
        return counts

    def told(self, stage: str, tried: Sequence[Spent]) -> None:
        """Tell the budget of a stage, if it is there and listens, what its tries came to."""
        budget = self.made.get(stage)
        if budget is not None and hasattr(budget, "told"):
            budget.told(list(tried))

    def record(self, stage: str, counts: Sequence[int] | None) -> dict[str, Any]:
        """What the stage's record says of its budget: how many got least and most, and the budget's own metrics."""
        if counts is None or stage not in self.made:
            return {}
        spread = {"items": len(counts), "tries": sum(counts), "none": sum(not count for count in counts)}
        ends = {"least": min(counts), "most": max(counts)} if counts else {}
        return {"budget": {**spread, **ends, **metrics_of(self.made[stage])}}

    def save(self, folder: str | Path) -> None:
        """Write their state into a policy's folder."""
        write_states(folder, self.made, FILE)

    def load(self, folder: str | Path) -> None:
        """Take up the state in a policy's folder; where there is none, what they began with."""
        restore(self.made, {**vars(self)["_unlearned"], **read_states(folder, FILE)})


def nearest_whole(number: float) -> int:
    """The nearest whole number; halves go up."""
    return int(number + 0.5)


# ------------------------------------------------------------------------------------------------ items


def key_of(request: RolloutRequest) -> str:
    """`Item.key` of a request."""
    return _key(request.task, repaired=request.of is not None)


def _key(task: Task, *, repaired: bool) -> str:
    return f"{task.suite}/{task.id}@repair" if repaired else f"{task.suite}/{task.id}"


def task_item(task: Task, stage: Literal["collect", "pfpo"], size: int = 1) -> Item:
    """A plain task."""
    return Item(_key(task, repaired=False), task.kind, stage, size)


def failure_item(failure: Failure, stage: Literal["repair", "pfpo"], size: int = 1) -> Item:
    """A failure, or the prompt of its repair."""
    return _with_facts(failure, (failure.trajectory, failure.card), stage, size)


def repair_item(repair: Repair) -> Item:
    """A chosen repair."""
    assert repair.chosen is not None
    return _with_facts(repair.failure, (repair.candidates[repair.chosen], repair.cards[repair.chosen]), "buffer")


def _with_facts(failure: Failure, case: Case, stage: Literal["repair", "buffer", "pfpo"], size: int = 1) -> Item:
    trajectory, card = case
    return Item(
        _key(failure.trajectory.task, repaired=True),
        failure.trajectory.task.kind,
        stage,
        size,
        failed=failure.card.failed,
        scores={name: score.value for name, score in card.scores.items() if score.value is not None},
        calls=tuple(call.name for call in trajectory.calls),
    )


def prompt_items(requests: Sequence[RolloutRequest], failures: Iterable[Failure], size: int) -> list[Item]:
    """PFPO's prompts: plain tasks, and repair prompts of some of the failures."""
    by_try = {_try(failure.trajectory): failure for failure in failures}
    return [
        task_item(request.task, "pfpo", size)
        if request.of is None
        else failure_item(by_try[request.task.suite, request.task.id, request.of], "pfpo", size)
        for request in requests
    ]


def _try(trajectory: Trajectory) -> tuple[str, str, int]:
    return trajectory.task.suite, trajectory.task.id, trajectory.attempt


# ------------------------------------------------------------------------------------------------ what they came to


def collected_tries(cases: Iterable[Case]) -> list[Spent]:
    """Each task that was rolled out, in order, with how many of its rollouts resolved."""
    found: dict[str, tuple[Item, list[bool]]] = {}
    for trajectory, card in cases:
        item = task_item(trajectory.task, "collect")
        found.setdefault(item.key, (item, []))[1].append(card.resolved)
    return [Spent(item, len(resolved), sum(resolved)) for item, resolved in found.values()]


def repair_tries(repairs: Iterable[Repair]) -> list[Spent]:
    """Each failure, with how many of its candidates were acceptable."""
    return [Spent(failure_item(r.failure, "repair"), len(r.candidates), len(r.accepted)) for r in repairs]


def prompt_tries(items: Sequence[Item], tried: Mapping[str, Sequence[int]]) -> list[Spent]:
    """Each prompt that PFPO drew, once, with how many of its rollouts resolved; `tried` is by the items' keys."""
    known = {item.key: item for item in items}
    return [Spent(known[key], *counts) for key, counts in tried.items() if key in known]
