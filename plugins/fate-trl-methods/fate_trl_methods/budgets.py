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
        mixed = np.maximum(1 - rate**rollouts - fails, 0.0)  # without any rollouts the formula would say -1
        return np.asarray(mixed * rate * (1 - rate) ** 2)

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


# ------------------------------------------------------------------------------------------------ by features


def features(item: Item) -> dict[str, float]:
    """What an item is like, as numbers by name: its kind, what failed, its scores, and its calls (ours)."""
    calls = {f"call {name}": float(np.log1p(item.calls.count(name))) for name in set(item.calls)}
    failed = {f"failed {name}": 1.0 for name in item.failed}
    scores = {f"score {name}": value for name, value in item.scores.items()}
    return {"one": 1.0, f"kind {item.kind}": 1.0, **failed, **scores, **calls}


class DOptimal:
    """Tries go where they tell most: each goes to the item that most raises log det of the information matrix.

    The matrix is ridge I plus the sum of x x^T over all tries, x the item's features; one more try of x raises its log
    determinant by log(1 + x^T A^-1 x). Greedy, one try after the other, so likes of what was tried already wait. What
    earlier rounds tried stays in the matrix, of which each round forgets a share.

    Source: active learning for DPO (D-optimal design over pairs), read on a published page. Ours: features are facts
    about the failure (kind, objectives, scores, calls) in the place of the policy's last layer, and all tries weigh
    alike.

    Args:
        ridge: Of the information matrix, above 0.
        forget: Share of the earlier information that is forgotten each time that it is told of some.
    """

    def __init__(self, ridge: Annotated[float, Field(gt=0)] = 1.0, forget: Share = 0.5):
        self.ridge = ridge
        self.forget = forget
        self._known: list[tuple[dict[str, float], float]] = []

    def tries(self, items: Sequence[Item], *, total: int, low: int, high: int, rng: np.random.Generator) -> list[int]:
        """Greedy shares, the least for each first."""
        rows = [features(item) for item in items]
        names = sorted({name for row in [*rows, *(row for row, _ in self._known)] for name in row})
        x_I_F = _matrix(rows, names)
        inverse = self.ridge * np.eye(len(names))
        for row, weight in self._known:
            x_F = _matrix([row], names)[0]
            inverse += weight * np.outer(x_F, x_F)
        inverse = np.linalg.inv(inverse + low * x_I_F.T @ x_I_F)
        counts = np.full(len(items), low)
        for _ in range(total - low * len(items)):
            gain_I = np.einsum("if,fg,ig->i", x_I_F, inverse, x_I_F)
            best = int(np.argmax(np.where(counts < high, gain_I, -np.inf)))
            counts[best] += 1
            along_F = inverse @ x_I_F[best]
            inverse -= np.outer(along_F, along_F) / (1 + gain_I[best])  # Sherman and Morrison
        return [int(count) for count in counts]

    def told(self, spent: Sequence[Spent]) -> None:
        """Keep what was tried."""
        kept = [(row, (1 - self.forget) * weight) for row, weight in self._known]
        fresh = [(features(each.item), float(each.rollouts)) for each in spent if each.rollouts]
        merged: dict[tuple[tuple[str, float], ...], float] = {}
        for row, weight in [*kept, *fresh]:
            key = tuple(sorted(row.items()))
            merged[key] = merged.get(key, 0.0) + weight
        self._known = [(dict(key), weight) for key, weight in merged.items() if weight > 1e-3]

    def state_dict(self) -> dict[str, Any]:
        """What was tried, and how often."""
        return {"known": [[row, weight] for row, weight in self._known]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""
        self._known = [(dict(row), float(weight)) for row, weight in state["known"]]

    def metrics(self) -> dict[str, float]:
        """How many kinds of items it knows."""
        return {"known": float(len(self._known))}


def _matrix(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    return np.array([[row.get(name, 0.0) for name in names] for row in rows]).reshape(len(rows), len(names))


class Submodular:
    """Repairs that stand for all: each one taken is the one that most raises F(S) = sum_i max_{j in S} q_j sim(i, j).

    sim is the cosine of two repairs' features, q_j the mean of a repair's scores, and S is what is taken. F is monotone
    and submodular, so the greedy choice reaches (1 - 1/e) of the best one at least, and a second one of a kind adds
    nothing. What is left over when nothing adds any more goes to those of the best quality.

    Source: submodular reinforcement learning (coverage with diminishing returns), read in its abstract; facility
    location and the greedy bound are the textbook's. Ours: the features, and quality as a factor.
    """

    def tries(self, items: Sequence[Item], *, total: int, low: int, high: int, rng: np.random.Generator) -> list[int]:
        """Greedy shares, the least for each first."""
        if not items:
            return []
        worth_I_I = worth(items)
        order = greedy(worth_I_I, 0 if low else total)
        counts = np.full(len(items), low)
        counts[order] += 1
        quality_I = np.diag(worth_I_I)
        for _ in range(total - int(counts.sum())):
            open_I = counts < high
            fewest = counts[open_I].min()
            counts[int(np.argmax(np.where(open_I & (counts == fewest), quality_I, -np.inf)))] += 1
        return [int(count) for count in counts]


def worth(items: Sequence[Item]) -> np.ndarray:
    """q_j sim(i, j), (I, I): how well j stands for i, in [0, 1]."""
    rows = [features(item) for item in items]
    names = sorted({name for row in rows for name in row})
    x_I_F = _matrix(rows, names)
    x_I_F = x_I_F / np.linalg.norm(x_I_F, axis=1, keepdims=True)
    quality_I = np.array([float(np.mean(list(item.scores.values()))) if item.scores else 1.0 for item in items])
    return np.asarray((x_I_F @ x_I_F.T) * quality_I)


def coverage(worth_I_I: np.ndarray, chosen: Sequence[int]) -> float:
    """F of a set."""
    return float(worth_I_I[:, list(chosen)].max(axis=1).sum()) if len(chosen) else 0.0


def greedy(worth_I_I: np.ndarray, most: int) -> list[int]:
    """At most so many items, the one that adds most first; it ends where none adds anything."""
    chosen: list[int] = []
    covered_I = np.zeros(len(worth_I_I))
    while len(chosen) < most:
        gain_I = np.maximum(worth_I_I - covered_I[:, None], 0.0).sum(axis=0)
        best = int(np.argmax(gain_I))
        if gain_I[best] <= 1e-9:
            break
        chosen.append(best)
        covered_I = np.maximum(covered_I, worth_I_I[:, best])
    return chosen
