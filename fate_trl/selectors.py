"""The built-in Pareto selectors, thin over pareto.py. They see numbers and objective names, never text.

| name | reward of a row in its group | training in PFPOTrainer |
|---|---|---|
| `pareto-front` | 1 if no row dominates it, else 0; plus a small tie-break | one reward column |
| `pareto-rank` | falls strictly with its front; plus a small tie-break | one reward column |
| `product` | product of its objectives | one reward column |
| `weighted-sum` | weighted sum of its objectives | TRL's own `sum_then_normalize`, untouched |
| `gdpo` | weighted sum of its objectives | TRL's own `normalize_then_sum`, untouched |

`aggregation` says which of TRL's `multi_objective_aggregation` a selector hands the weights to; None means that the
trainer adds the column `reward`. With one objective no selector reverses GRPO's order of advantages.

Weights are by objective, 1 where none is given. Weight 0 takes an objective out altogether (fronts included), a
negative weight means that lower is better. Only the front is the paper's; tie-breaks and numbers are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from . import pareto
from .hookspecs import Choice, Component, hookimpl
from .types import RecipeError

fate_trl_api = 1


@dataclass
class _Selector:
    """What all share: weights, and a choice by front first.

    Attributes:
        weights: Weight by objective; may be replaced between calls, as TRL's `reward_weights` may.
    """

    weights: dict[str, float] | None = None

    aggregation: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for name, weight in (self.weights or {}).items():
            if not np.isfinite(weight):
                raise RecipeError(f"the weight of objective {name!r} is {weight}; it must be a finite number")

    def choose(self, scores_K_M: np.ndarray, *, objectives: Sequence[str], rng: np.random.Generator) -> Choice | None:
        """Pick one member of the candidates' front; `rng` is not used, so equal input gives equal output.

        `decided_by` is "only" (one candidate), "front" (the front holds one distinct vector), the tie-break's name,
        or "index" where that ties between different vectors too. The lowest index wins what is still tied.
        Raises ValueError if a candidate lacks a score that another has, and RecipeError for weights of unknown names.
        """
        if not len(scores_K_M):
            return None
        scores_1_K_M, weights_M = self._oriented(np.asarray(scores_K_M)[None], objectives)
        valid_1_K = np.ones(scores_1_K_M.shape[:2], bool)
        members = np.flatnonzero(pareto.first_front(scores_1_K_M, valid_1_K)[0])
        keys = self._keys(scores_1_K_M, valid_1_K, weights_M)[0, members]
        # Without any objective that applies all keys are NaN, and all vectors equal.
        best = members if np.isnan(keys).any() else members[keys == keys.max()]
        if len(scores_K_M) == 1:
            decided_by = "only"
        elif _distinct(scores_1_K_M[0, members]) == 1:
            decided_by = "front"
        else:
            decided_by = self._decider() if _distinct(scores_1_K_M[0, best]) == 1 else "index"
        return Choice(index=int(best[0]), front=tuple(members.tolist()), decided_by=decided_by)

    def reward(self, scores_G_N_M: np.ndarray, *, objectives: Sequence[str], valid_G_N: np.ndarray) -> np.ndarray:
        """Rewards (G, N); NaN for rows that are not valid, and for groups where no objective applies."""
        scores_G_N_M, weights_M = self._oriented(np.asarray(scores_G_N_M), objectives)
        return self._rewards(scores_G_N_M, valid_G_N, weights_M)

    def _oriented(self, scores_G_N_M: np.ndarray, objectives: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Scores where higher is better and weight 0 does not apply, and the sizes of the weights."""
        weights = self.weights or {}
        unknown = sorted(set(weights) - set(objectives))
        if unknown:
            raise RecipeError(f"there is no objective {unknown[0]!r} to weight; the objectives are {list(objectives)}")
        if scores_G_N_M.shape[-1] != len(objectives):
            raise ValueError(f"{scores_G_N_M.shape[-1]} columns of scores for the objectives {list(objectives)}")
        weights_M = np.array([weights.get(name, 1.0) for name in objectives])
        return pareto.orient(scores_G_N_M, weights_M), np.abs(weights_M)

    def _rewards(self, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _keys(self, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
        """What decides within the front, (G, N)."""
        return self._rewards(scores_G_N_M, valid_G_N, weights_M)

    def _decider(self) -> str:
        """Name of what `_keys` computes."""
        raise NotImplementedError


def _distinct(scores_K_M: np.ndarray) -> int:
    """Number of distinct vectors; a NaN, which here means not applicable, equals a NaN."""
    return len(np.unique(np.nan_to_num(scores_K_M), axis=0))


@dataclass
class ParetoFront(_Selector):
    """`pareto.front_reward`; among several members of a front the tie-break decides.

    Attributes:
        tie_break: "mean" (weighted mean of the objectives that apply), "worst" (their lowest) or "crowding".
        epsilon: Weight of the tie-break, at most 0.5; the front counts 1. 0 leaves groups that are one front
            without a gradient, and most groups of 8 are, so the default is 0.1 (ours).
    """

    tie_break: Literal["mean", "worst", "crowding"] = "mean"
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.epsilon <= 0.5:
            raise RecipeError(f"epsilon is {self.epsilon}; it must lie in [0, 0.5], or tie-breaks outweigh fronts")
        if self.tie_break not in ("mean", "worst", "crowding"):
            raise RecipeError(f"no tie-break {self.tie_break!r}; there are 'mean', 'worst' and 'crowding'")

    def _rewards(self, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
        ties_G_N = self._keys(scores_G_N_M, valid_G_N, weights_M)
        return pareto.front_reward(scores_G_N_M, valid_G_N, ties_G_N, self.epsilon)

    def _keys(self, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
        return pareto.tie_values(scores_G_N_M, valid_G_N, weights_M, self.tie_break)

    def _decider(self) -> str:
        return self.tie_break


@dataclass
class ParetoRank(ParetoFront):
    """`pareto.rank_reward`: as `ParetoFront`, but rows behind the front are told apart by their fronts."""

    def _rewards(self, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
        ties_G_N = self._keys(scores_G_N_M, valid_G_N, weights_M)
        return pareto.rank_reward(scores_G_N_M, valid_G_N, ties_G_N, self.epsilon)


@dataclass
class Product(_Selector):
    """`pareto.product_reward`, weights as exponents: a row must be good at everything to be rewarded."""

    def _rewards(self, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
        return pareto.product_reward(scores_G_N_M, valid_G_N, weights_M)

    def _decider(self) -> str:
        return "product"


@dataclass
class WeightedSum(_Selector):
    """The weighted sum. Training is TRL's own; `reward` serves choices, tests and analysis."""

    aggregation: ClassVar[str | None] = "sum_then_normalize"

    def _rewards(self, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
        return pareto.weighted_sum(scores_G_N_M, valid_G_N, weights_M)

    def _decider(self) -> str:
        return "weighted-sum"


@dataclass
class GDPO(WeightedSum):
    """As `WeightedSum`, but TRL normalises each objective in its group before it sums (GDPO)."""

    aggregation: ClassVar[str | None] = "normalize_then_sum"


@hookimpl
def fate_trl_selectors() -> list[Component]:
    """The built-ins."""
    return [
        Component("pareto-front", ParetoFront, "1 on the group's Pareto front, 0 behind it, plus a small tie-break"),
        Component("pareto-rank", ParetoRank, "falls with the Pareto front a row is on, plus a small tie-break"),
        Component("product", Product, "product of the objectives, weights as exponents"),
        Component("weighted-sum", WeightedSum, "weighted sum of the objectives, by TRL itself"),
        Component("gdpo", GDPO, "objectives normalised one by one, then summed, by TRL itself"),
    ]
