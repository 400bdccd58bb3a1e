"""The built-in Pareto selectors, thin over pareto.py. They see numbers and objective names, never text.

| name | reward of a row in its group | training in PFPOTrainer |
|---|---|---|
| `pareto-front` | 1 if no row dominates it, else 0; plus a small tie-break | one reward column |
| `pareto-rank` | falls strictly with its front; plus a small tie-break | one reward column |
| `product` | product of its objectives: the volume of the box between it and the origin | one reward column |
| `dominance-count` | share of the group that it dominates, less that which dominates it | one reward column |
| `chebyshev` | falls with its distance to the group's ideal point, objectives by their range | one reward column |
| `constraint` | mean of its objectives if none is below its floor, else below 0 | one reward column |
| `weighted-sum` | weighted sum of its objectives | TRL's own `sum_then_normalize`, untouched |
| `gdpo` | weighted sum of its objectives | TRL's own `normalize_then_sum`, untouched |

`aggregation` says which of TRL's `multi_objective_aggregation` a selector hands the weights to; None means that the
trainer adds the column `reward`. With one objective no selector reverses GRPO's order of advantages.

Weights are by objective, 1 where none is given. Weight 0 takes an objective out altogether (fronts included), a
negative weight means that lower is better. How large a weight is counts where `weighs` is true. Only the front is the
paper's; tie-breaks and numbers are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np

from ..errors import RecipeError
from ..hookspecs import Choice, Component, hookimpl
from . import pareto

fate_trl_api = 1

TieBreak = Literal[pareto.TieBreak, "random"]
TIE_BREAKS = get_args(TieBreak)


@dataclass(frozen=True)
class _Groups:
    """Scores where higher is better and weight 0 does not apply, the sizes of the weights, and what they are of."""

    scores_G_N_M: np.ndarray
    valid_G_N: np.ndarray
    weights_M: np.ndarray
    objectives: Sequence[str]


@dataclass
class _Selector:
    """What all share: weights, and a choice by front first.

    Attributes:
        weights: Weight by objective, see above; may be replaced between calls, as TRL's `reward_weights` may.
    """

    weights: dict[str, float] | None = None

    aggregation: ClassVar[str | None] = None
    bounded: ClassVar[bool] = True
    """Whether rewards stay within a few units, however large the scores are."""

    @property
    def weighs(self) -> bool:
        """Whether the sizes of weights count, or only that one is 0 or negative."""
        return True

    def __post_init__(self) -> None:
        for name, weight in (self.weights or {}).items():
            if not np.isfinite(weight):
                raise RecipeError(f"the weight of objective {name!r} is {weight}; it must be a finite number")

    def choose(self, scores_K_M: np.ndarray, *, objectives: Sequence[str], rng: np.random.Generator) -> Choice | None:
        """Pick one member of the candidates' front; equal input, `rng` included, gives equal output.

        `decided_by` is "only" (one candidate), "front" (the front holds one distinct vector), the tie-break's name,
        or "index" where that ties between different vectors too. The lowest index wins what is still tied.
        Raises ValueError if a candidate lacks a score that another has, and RecipeError for weights of unknown names.
        """
        if not len(scores_K_M):
            return None
        scores_1_K_M = np.asarray(scores_K_M)[None]
        group = self._groups(scores_1_K_M, np.ones(scores_1_K_M.shape[:2], bool), objectives)
        members = np.flatnonzero(pareto.first_front(group.scores_G_N_M, group.valid_G_N)[0])
        keys = self._keys(group)[0, members]
        # Without any objective that applies all keys are NaN, and all vectors equal.
        best = members if np.isnan(keys).any() else members[keys == keys.max()]
        if len(scores_K_M) == 1:
            decided_by = "only"
        elif _distinct(group.scores_G_N_M[0, members]) == 1:
            decided_by = "front"
        else:
            decided_by = self._decider() if _distinct(group.scores_G_N_M[0, best]) == 1 else "index"
        return Choice(index=int(best[0]), front=tuple(members.tolist()), decided_by=decided_by)

    def reward(self, scores_G_N_M: np.ndarray, *, objectives: Sequence[str], valid_G_N: np.ndarray) -> np.ndarray:
        """Rewards (G, N); NaN for rows that are not valid, and for groups where no objective applies."""
        return self._rewards(self._groups(np.asarray(scores_G_N_M), valid_G_N, objectives))

    def _groups(self, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, objectives: Sequence[str]) -> _Groups:
        weights = self.weights or {}
        unknown = sorted(set(weights) - set(objectives))
        if unknown:
            raise RecipeError(f"there is no objective {unknown[0]!r} to weight; the objectives are {list(objectives)}")
        if scores_G_N_M.shape[-1] != len(objectives):
            raise ValueError(f"{scores_G_N_M.shape[-1]} columns of scores for the objectives {list(objectives)}")
        weights_M = np.array([weights.get(name, 1.0) for name in objectives])
        return _Groups(pareto.orient(scores_G_N_M, weights_M), valid_G_N, np.abs(weights_M), objectives)

    def _rewards(self, groups: _Groups) -> np.ndarray:
        raise NotImplementedError

    def _keys(self, groups: _Groups) -> np.ndarray:
        """What decides within the front, (G, N)."""
        return self._rewards(groups)

    def _decider(self) -> str:
        """Name of what `_keys` computes."""
        raise NotImplementedError


def _check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon <= 0.5:
        raise RecipeError(f"epsilon is {epsilon}; it must lie in [0, 0.5], or tie-breaks outweigh the rest")


def _distinct(scores_K_M: np.ndarray) -> int:
    """Number of distinct vectors; a NaN, which here means not applicable, equals a NaN."""
    return len(np.unique(np.nan_to_num(scores_K_M), axis=0))


@dataclass
class ParetoFront(_Selector):
    """`pareto.front_reward`; among several members of a front the tie-break decides.

    Attributes:
        tie_break: "worst" (the lowest of the objectives that apply), "mean" (their weighted mean), "augmented" (the
            lowest plus a tenth of the mean), "scaled" (the mean of each by its range in the group), "product" or
            "crowding"; see `pareto.tie_values`. "random" draws one of the front's distinct vectors, so that over many
            failures the whole front is learned from, not one end of it; in a reward it is no tie-break at all. The
            default resolved most in the one world where they were compared (docs/evidence.md). It is for objectives in
            like units, such as verifiers' [0, 1]; "scaled" is for rewards of different scales or signs.
        epsilon: Weight of the tie-break in the reward, at most 0.5; the front counts 1. 0 leaves groups that are one
            front without a gradient, and most groups of 8 are, so the default is 0.1 (ours). A choice breaks ties
            whatever it is.
    """

    tie_break: TieBreak = "worst"
    epsilon: float = 0.1

    @property
    def weighs(self) -> bool:
        return self.tie_break in ("mean", "augmented", "scaled", "product")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_epsilon(self.epsilon)
        if self.tie_break not in TIE_BREAKS:
            raise RecipeError(f"no tie-break {self.tie_break!r}; there are {', '.join(TIE_BREAKS)}")

    def choose(self, scores_K_M: np.ndarray, *, objectives: Sequence[str], rng: np.random.Generator) -> Choice | None:
        choice = super().choose(scores_K_M, objectives=objectives, rng=rng)
        if self.tie_break != "random" or choice is None or choice.decided_by in ("only", "front"):
            return choice
        counted = [(self.weights or {}).get(name, 1.0) != 0 for name in objectives]
        vectors = np.nan_to_num(np.asarray(scores_K_M)[list(choice.front)][:, counted])
        _, first = np.unique(vectors, axis=0, return_index=True)
        return replace(choice, index=choice.front[rng.choice(first)], decided_by="random")

    def _rewards(self, groups: _Groups) -> np.ndarray:
        ties_G_N = self._keys(groups)
        return pareto.front_reward(groups.scores_G_N_M, groups.valid_G_N, ties_G_N, self.epsilon)

    def _keys(self, groups: _Groups) -> np.ndarray:
        if self.tie_break == "random":
            return np.where(groups.valid_G_N, 0.0, np.nan)
        return pareto.tie_values(groups.scores_G_N_M, groups.valid_G_N, groups.weights_M, self.tie_break)

    def _decider(self) -> str:
        return self.tie_break


@dataclass
class ParetoRank(ParetoFront):
    """`pareto.rank_reward`: as `ParetoFront`, but rows behind the front are told apart by their fronts."""

    def _rewards(self, groups: _Groups) -> np.ndarray:
        ties_G_N = self._keys(groups)
        return pareto.rank_reward(groups.scores_G_N_M, groups.valid_G_N, ties_G_N, self.epsilon)


@dataclass
class Product(_Selector):
    """`pareto.product_reward`, weights as exponents: a row must be good at everything to be rewarded."""

    bounded: ClassVar[bool] = False

    def _rewards(self, groups: _Groups) -> np.ndarray:
        return pareto.product_reward(groups.scores_G_N_M, groups.valid_G_N, groups.weights_M)

    def _decider(self) -> str:
        return "product"


@dataclass
class DominanceCount(_Selector):
    """`pareto.dominance_count`: every comparison in the group counts, not only those that make the front."""

    @property
    def weighs(self) -> bool:
        return False

    def _rewards(self, groups: _Groups) -> np.ndarray:
        return pareto.dominance_count(groups.scores_G_N_M, groups.valid_G_N)

    def _decider(self) -> str:
        return "dominance-count"


@dataclass
class Chebyshev(_Selector):
    """`pareto.chebyshev_reward`: the objective that a row lags behind in most decides.

    Attributes:
        epsilon: Weight of the mean distance, in [0, 0.5].
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_epsilon(self.epsilon)

    def _rewards(self, groups: _Groups) -> np.ndarray:
        return pareto.chebyshev_reward(groups.scores_G_N_M, groups.valid_G_N, groups.weights_M, self.epsilon)

    def _decider(self) -> str:
        return "chebyshev"


@dataclass
class Constraint(_Selector):
    """`pareto.constraint_reward`: the mean, under floors; without floors the mean alone.

    Attributes:
        floors: Floor by objective, in the objective's unit.
        epsilon: What the mean counts while a floor is not kept, in [0, 0.5].
    """

    floors: dict[str, float] | None = None
    epsilon: float = 0.1

    bounded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_epsilon(self.epsilon)

    def _rewards(self, groups: _Groups) -> np.ndarray:
        floors, weights = self.floors or {}, self.weights or {}
        unknown = sorted(set(floors) - set(groups.objectives))
        if unknown:
            raise RecipeError(
                f"there is no objective {unknown[0]!r} to bound; the objectives are {list(groups.objectives)}"
            )
        if any(weights.get(name, 1.0) < 0 for name in floors):
            raise RecipeError("an objective with a negative weight is lower-is-better, and cannot have a floor")
        floors_M = np.array([floors.get(name, -np.inf) for name in groups.objectives])
        return pareto.constraint_reward(groups.scores_G_N_M, groups.valid_G_N, groups.weights_M, floors_M, self.epsilon)

    def _decider(self) -> str:
        return "constraint"


@dataclass
class WeightedSum(_Selector):
    """The weighted sum. Training is TRL's own; `reward` serves choices, tests and analysis."""

    aggregation: ClassVar[str | None] = "sum_then_normalize"

    def _rewards(self, groups: _Groups) -> np.ndarray:
        return pareto.weighted_sum(groups.scores_G_N_M, groups.valid_G_N, groups.weights_M)

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
        Component("dominance-count", DominanceCount, "rows that a row dominates, less those that dominate it"),
        Component("chebyshev", Chebyshev, "closeness to the group's ideal point, objectives by their range"),
        Component("constraint", Constraint, "mean of the objectives, with floors that come first"),
        Component("weighted-sum", WeightedSum, "weighted sum of the objectives, by TRL itself"),
        Component("gdpo", GDPO, "objectives normalised one by one, then summed, by TRL itself"),
    ]
