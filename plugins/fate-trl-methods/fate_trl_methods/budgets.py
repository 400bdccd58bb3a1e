"""The budgets of the family `control`: who gets how many tries, so that each try teaches most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fate_trl import Item, Spent

Share = Annotated[float, Field(ge=0, le=1)]


def spent_best(values_I_N: np.ndarray, total: int, low: int) -> list[int]:
    """Tries by item that add up to `total` and whose values add up to most, by dynamic programming.

    Args:
        values_I_N: Value of low, low + 1, … tries of each item.
        total: All tries together.
        low: Least tries of one item.

    Source: Knapsack RL (a bounded knapsack); O(items x total x tries), exact. Where several are best, earlier items
    get less.
    """
    items, widths = values_I_N.shape
    best_B = np.full(total + 1, -np.inf)
    best_B[0] = 0.0
    taken_I_B = np.zeros((items, total + 1), int)
    for item in range(items):
        before_B, best_B = best_B, np.full(total + 1, -np.inf)
        for column in range(widths):
            count = low + column
            if count > total:
                break
            reached = before_B[: total + 1 - count] + values_I_N[item, column]
            better = reached > best_B[count:]
            best_B[count:][better] = reached[better]
            taken_I_B[item, count:][better] = count
    counts, left = [], total
    for item in reversed(range(items)):
        counts.append(int(taken_I_B[item, left]))
        left -= counts[-1]
    return counts[::-1]


class Knapsack:
    """Tries go where they are worth most, by what earlier tries of the same item came to; the sum is exact.

    An item of success rate p is worth, with N rollouts, (1 - p^N - (1-p)^N) p (1-p)^2: how likely its group has both
    successes and failures, times what the policy gains by it. So what always succeeds, and what never does, gets least.
    With `value: success` it is 1 - (1-p)^N, how likely one of them succeeds, which is all that a repair needs.

    p is (s + strength * prior) / (n + strength) with n rollouts and s successes so far, of which each stage forgets a
    share; the prior is the rate of all items of the same kind of task that failed in the same objectives, and one half
    where none was tried. So a first round shares out evenly, and p is never 0 or 1.

    Source: Knapsack RL, value and constraint read on a published page; the dynamic programme is checked by brute force.
    Ours: the prior, forgetting, repairs and tasks as items, and `success`.

    Args:
        value: Of N tries of an item.
        strength: Of the prior, in rollouts; above 0.
        forget: Share of the earlier counts that is forgotten each time that it is told of an item.
    """

    def __init__(
        self,
        value: Literal["signal", "success"] = "signal",
        strength: Annotated[float, Field(gt=0)] = 2.0,
        forget: Share = 0.5,
    ):
        self.value = value
        self.strength = strength
        self.forget = forget
        self._seen: dict[str, list[float]] = {}
        self._alike: dict[str, list[float]] = {}

    def rate(self, item: Item) -> float:
        """Success rate of an item as far as it is known, in (0, 1)."""
        (n, s), (of_all, good) = self._seen.get(item.key, (0, 0)), self._alike.get(_class(item), (0, 0))
        return (s + self.strength * (good + 1) / (of_all + 2)) / (n + self.strength)

    def worth(self, rate: float, rollouts: np.ndarray) -> np.ndarray:
        """Value of so many rollouts."""
        fails = (1 - rate) ** rollouts
        if self.value == "success":
            return np.asarray(1 - fails)
        return np.asarray((1 - rate**rollouts - fails) * rate * (1 - rate) ** 2)

    def tries(self, items: Sequence[Item], *, total: int, low: int, high: int, rng: np.random.Generator) -> list[int]:
        """The best shares; see `spent_best`."""
        counts = np.arange(low, high + 1)
        values = [self.worth(self.rate(item), counts * item.size) for item in items]
        return spent_best(np.array(values).reshape(len(items), len(counts)), total, low)

    def told(self, tried: Sequence[Spent]) -> None:
        """Count what the tries came to."""
        found: dict[str, list[Spent]] = {}
        for each in tried:
            found.setdefault(each.item.key, []).append(each)
        for key, of_item in found.items():
            self._add(self._seen, key, of_item)
        alike: dict[str, list[Spent]] = {}
        for each in tried:
            alike.setdefault(_class(each.item), []).append(each)
        for name, of_class in alike.items():
            self._add(self._alike, name, of_class)

    def _add(self, counts: dict[str, list[float]], key: str, tried: Sequence[Spent]) -> None:
        n, s = counts.get(key, [0.0, 0.0])
        kept = 1 - self.forget
        counts[key] = [kept * n + sum(t.rollouts for t in tried), kept * s + sum(t.successes for t in tried)]

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"seen": self._seen, "alike": self._alike}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from them."""
        self._seen = {key: list(counts) for key, counts in state["seen"].items()}
        self._alike = {key: list(counts) for key, counts in state["alike"].items()}

    def metrics(self) -> dict[str, float]:
        """Items that it knows, and their success rate on average."""
        rates = [s / n for n, s in self._seen.values() if n]
        return {"known": float(len(rates)), **({"rate": float(np.mean(rates))} if rates else {})}


def _class(item: Item) -> str:
    """What items have in common that are likely as hard as each other."""
    return " ".join([item.kind, *item.failed])
