"""What the advantage components share: one number per row, statistics of groups, and the interface of a selector.

Shapes: G groups of N rows, M objectives, T tokens of a completion. Rows that are not valid hold NaN in scores and
take no part in any statistic; their advantage is 0. So is that of a group without two different rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fate_trl import Choice, RecipeError, Rows, Stateful, pareto, plugins, takes_rows

SMALL = 1e-4
"""What TRL adds to a standard deviation before it divides by it."""


# ------------------------------------------------------------------------------------------------ statistics


def mean_of(values_G_N: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    """Mean of each group's valid rows, (G, 1); 0 where there are none."""
    count_G_1 = valid_G_N.sum(axis=1, keepdims=True)
    summed_G_1 = np.where(valid_G_N, values_G_N, 0.0).sum(axis=1, keepdims=True)
    return np.asarray(summed_G_1 / np.maximum(count_G_1, 1))


def centred(values_G_N: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    """Values less their group's mean, (G, N); 0 for rows that are not valid."""
    return np.where(valid_G_N, values_G_N - mean_of(values_G_N, valid_G_N), 0.0)


def standardised(values_G_N: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    """Centred values by their group's standard deviation, as TRL computes it (n - 1 in the denominator), (G, N)."""
    centred_G_N = centred(values_G_N, valid_G_N)
    freedom_G_1 = np.maximum(valid_G_N.sum(axis=1, keepdims=True) - 1, 1)
    deviation_G_1 = np.sqrt((centred_G_N**2).sum(axis=1, keepdims=True) / freedom_G_1)
    return np.asarray(centred_G_N / (deviation_G_1 + SMALL))


def means_by_objective(scores_G_N_M: np.ndarray) -> np.ndarray:
    """Mean of each objective over all rows of the batch that have it, (M,); NaN where none has."""
    known_M = (~np.isnan(scores_G_N_M)).sum(axis=(0, 1))
    return np.where(known_M > 0, np.nansum(scores_G_N_M, axis=(0, 1)) / np.maximum(known_M, 1), np.nan)


# ------------------------------------------------------------------------------------------------ the interface


@dataclass(frozen=True)
class Batch:
    """What a component sees of one generation.

    Attributes:
        scores_G_N_M: Higher is better (a negative weight turns its objective round); NaN where one does not apply,
            where its weight is 0, and in rows that are not valid.
        valid_G_N: Rows that count.
        weights_M: Sizes of the weights.
        objectives: Names of the M objectives.
        reward_G_N: One number per row: the base's reward, or the weighted mean of the objectives that apply.
        rows: Facts about the rows; None where the component did not ask for them.
    """

    scores_G_N_M: np.ndarray
    valid_G_N: np.ndarray
    weights_M: np.ndarray
    objectives: Sequence[str]
    reward_G_N: np.ndarray
    rows: Rows | None = None

    def column(self, name: str) -> np.ndarray:
        """Scores of one objective, (G, N)."""
        return np.asarray(self.scores_G_N_M[:, :, list(self.objectives).index(name)])

    def applies(self, name: str) -> np.ndarray:
        """Valid rows that have a score for an objective, booleans (G, N)."""
        return np.asarray(self.valid_G_N & ~np.isnan(self.column(name)))

    def of_all(self) -> list[tuple[int, int]]:
        """(g, n) of every valid row."""
        return [(int(g), int(n)) for g, n in np.argwhere(self.valid_G_N)]

    @property
    def facts(self) -> Rows:
        """The facts about rows, where they were asked for."""
        assert self.rows is not None
        return self.rows


@dataclass
class Advantages:
    """A selector that sets advantages itself. Subclasses say how, in `_advantages`; those with state, in `_learn`.

    Attributes:
        weights: Weight by objective, 1 where none is given; 0 takes it out, a negative one means lower is better.
        base: Name of the selector whose rewards this one works on, such as `pareto-front`, or whose advantages, such as
            another one of this plugin. By default the reward of a row is the weighted mean of its objectives.
        base_args: The base's arguments.
    """

    weights: dict[str, float] | None = None
    base: str | None = None
    base_args: dict[str, Any] = field(default_factory=dict)

    orders: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._base = plugins.load("selector", self.base, self.base_args) if self.base else None
        if getattr(self._base, "aggregation", None) == "normalize_then_sum":
            raise RecipeError(f"base: {self.base} is TRL's own way to aggregate and has no rewards to work on.")
        if isinstance(self._base, Stateful):
            raise RecipeError(f"base: {self.base} learns, and nothing would teach it there; use it by itself.")
        self._chooser = self._base or plugins.load("selector", "pareto-front")

    @property
    def needs(self) -> tuple[str, ...]:
        """Objectives that its arguments name, and that it cannot do without."""
        return ()

    @property
    def greedy_row(self) -> bool:
        """Whether it, or its base, compares with the policy's greedy answer, the first row of a group."""
        return bool(getattr(self._base, "greedy_row", False))

    def choose(self, scores_K_M: np.ndarray, *, objectives: Sequence[str], rng: np.random.Generator) -> Choice | None:
        """The base's choice; that of `pareto-front` where there is no base."""
        if hasattr(self._chooser, "weights"):
            self._chooser.weights = self.weights
        choice: Choice | None = self._chooser.choose(scores_K_M, objectives=objectives, rng=rng)
        return choice

    def advantages(self, scores_G_N_M: np.ndarray, *, objectives: Sequence[str], valid_G_N: np.ndarray) -> np.ndarray:
        """Advantages (G, N); see hookspecs.ParetoSelector."""
        return self._advantages(self._batch(scores_G_N_M, objectives, valid_G_N))

    def _advantages(self, batch: Batch) -> np.ndarray:
        raise NotImplementedError

    def _local(self, batch: Batch) -> np.ndarray:
        """The base's advantages, (G, N): its reward less the group's mean, or what it says itself."""
        if self._base is None or hasattr(self._base, "reward"):
            return centred(batch.reward_G_N, batch.valid_G_N)
        rows = {"rows": batch.rows} if takes_rows(self._base.advantages) else {}
        said = self._base.advantages(batch.scores_G_N_M, objectives=batch.objectives, valid_G_N=batch.valid_G_N, **rows)
        return np.asarray(np.where(batch.valid_G_N, said, 0.0))

    def _batch(
        self, scores_G_N_M: np.ndarray, objectives: Sequence[str], valid_G_N: np.ndarray, rows: Rows | None = None
    ) -> Batch:
        weights_M = np.array([(self.weights or {}).get(name, 1.0) for name in objectives])
        scores = pareto.orient(scores_G_N_M, weights_M)
        scores[~valid_G_N] = np.nan
        if self._base is not None and hasattr(self._base, "reward"):
            if hasattr(self._base, "weights"):
                self._base.weights = self.weights
            reward = self._base.reward(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)
        else:
            reward = weighted_mean(scores, np.abs(weights_M))
        return Batch(scores, valid_G_N, np.abs(weights_M), objectives, np.where(valid_G_N, reward, 0.0), rows)


def weighted_mean(scores_G_N_M: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    """Weighted mean of the objectives that a row has, (G, N); 0 where it has none."""
    known_G_N_M = ~np.isnan(scores_G_N_M)
    total_G_N = (known_G_N_M * weights_M).sum(axis=2)
    summed_G_N = (np.nan_to_num(scores_G_N_M) * weights_M).sum(axis=2)
    return np.asarray(summed_G_N / np.where(total_G_N > 0, total_G_N, 1.0))


class Learning(Advantages):
    """One with state: `learn` is called once per generation, after `advantages`; see hookspecs.ParetoSelector."""

    def learn(self, scores_G_N_M: np.ndarray, *, objectives: Sequence[str], valid_G_N: np.ndarray) -> None:
        """Take in what a generation of the training came to."""
        self._learn(self._batch(scores_G_N_M, objectives, valid_G_N))

    def _learn(self, batch: Batch) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What it has learned, as JSON."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """What it has learned, in numbers for the log."""
        return {}


class Rowed(Advantages):
    """One that asks for facts about the rows."""

    def advantages(  # type: ignore[override]
        self, scores_G_N_M: np.ndarray, *, objectives: Sequence[str], valid_G_N: np.ndarray, rows: Rows
    ) -> np.ndarray:
        """Advantages (G, N) or (G, N, T); see hookspecs.ParetoSelector."""
        return self._advantages(self._batch(scores_G_N_M, objectives, valid_G_N, rows))


def averaged(old: float | None, new: float, rate: float) -> float:
    """A running mean that begins with its first value."""
    return new if old is None else old + rate * (new - old)
