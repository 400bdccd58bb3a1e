"""Advantages under constraints: objectives with a threshold that must be kept, and one that is to be raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fate_trl import Choice, RecipeError, pareto

from .common import Batch, Learning, averaged, centred, means_by_objective, standardised, weighted_mean

Rate = Annotated[float, Field(gt=0, le=1)]


@dataclass
class _Constrained(Learning):
    """Thresholds by objective, and what is raised: `primary`, or the reward where none is named."""

    thresholds: dict[str, float] = field(kw_only=True)
    primary: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.thresholds:
            raise RecipeError("thresholds names no objective; give at least one, such as {security: 0.95}.")
        if self.primary in self.thresholds:
            raise RecipeError(f"{self.primary!r} is both the primary objective and under a threshold; drop one.")

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.thresholds, *([self.primary] if self.primary else ()))

    def _raised(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Values (G, N) of what is raised, and the rows that have them."""
        if self.primary is None:
            return batch.reward_G_N, batch.valid_G_N
        return np.nan_to_num(batch.column(self.primary)), batch.applies(self.primary)


@dataclass
class Lagrangian(_Constrained):
    """Constrained RLHF: advantages of the constraints, mixed by multipliers that learn.

    Squashed: mu = sigmoid(xi); A = (K - sum of mu) A_0 + sum of mu_k A_k, each standardised in its group;
    xi_k <- xi_k - v_k, v_k <- momentum v_k + rate mu'_k (J_k - threshold_k), J_k the batch's mean of objective k.
    Otherwise: lambda_k <- max(0, lambda_k - rate (J_k - threshold_k)) and A = A_0 + sum of lambda_k A_k.
    A multiplier falls while its threshold is kept, and rises while it is not.

    Source: constrained RLHF (reward-model overoptimisation), the authors' code; there A_0 is the KL term's advantage,
    here that of the primary objective, since GRPO has the KL term in its loss. An objective that does not apply to a
    whole batch does not move its multiplier (ours).

    Attributes:
        thresholds: By objective, what its mean must reach, in its own unit.
        primary: What is raised; by default the reward.
        rate, momentum: Of the multipliers.
        squashed: Whether multipliers lie in (0, 1), or in [0, infinity).
    """

    rate: Rate = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.1
    squashed: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._xi = dict.fromkeys(self.thresholds, 0.0)
        self._velocity = dict.fromkeys(self.thresholds, 0.0)

    def multipliers(self) -> dict[str, float]:
        """By objective: mu, or lambda."""
        return {name: 1 / (1 + np.exp(-xi)) if self.squashed else xi for name, xi in self._xi.items()}

    def _advantages(self, batch: Batch) -> np.ndarray:
        of = self.multipliers()
        rest = len(of) - sum(of.values()) if self.squashed else 1.0
        said_G_N = rest * standardised(*self._raised(batch))
        for name, multiplier in of.items():
            said_G_N = said_G_N + multiplier * standardised(np.nan_to_num(batch.column(name)), batch.applies(name))
        return said_G_N

    def _learn(self, batch: Batch) -> None:
        means = dict(zip(batch.objectives, means_by_objective(batch.scores_G_N_M).tolist(), strict=True))
        for name, mu in self.multipliers().items():
            if np.isnan(means[name]):
                continue
            excess = means[name] - self.thresholds[name]
            if self.squashed:
                self._velocity[name] = self.momentum * self._velocity[name] + self.rate * mu * (1 - mu) * excess
                self._xi[name] -= self._velocity[name]
            else:
                self._xi[name] = max(0.0, self._xi[name] - self.rate * excess)

    def state_dict(self) -> dict[str, Any]:
        return {"xi": dict(self._xi), "velocity": dict(self._velocity)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._xi = {name: float(state["xi"][name]) for name in self.thresholds}
        self._velocity = {name: float(state["velocity"][name]) for name in self.thresholds}

    def metrics(self) -> dict[str, float]:
        return {f"multiplier/{name}": float(value) for name, value in self.multipliers().items()}


@dataclass
class CostGate(_Constrained):
    """Constrained MDP for distillation: the reward while the running cost is within its budget, else the penalty.

    The running mean of each constrained objective is kept. While all are at or above their thresholds, advantages are
    those of the reward; while one is not, the reward of a row is -penalty times what it falls short of the thresholds,
    summed over those that are broken, and nothing else counts.

    Source: LLM distillation as a constrained MDP [recall: the gate]; ours: costs run over generations, not over the
    tokens of one row.

    Attributes:
        thresholds, primary: As in `lagrangian`.
        penalty: Per unit of shortfall (ours); 1 keeps the constraint a fifth of the time on a toy, 10 two thirds.
        rate: Of the running means.
    """

    penalty: Annotated[float, Field(gt=0)] = 10.0
    rate: Rate = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._means: dict[str, float] = {}

    def broken(self) -> list[str]:
        """Objectives whose running mean is below its threshold."""
        return [name for name, least in self.thresholds.items() if self._means.get(name, least) < least]

    def _advantages(self, batch: Batch) -> np.ndarray:
        broken = self.broken()
        if not broken:
            return centred(*self._raised(batch))
        short_G_N = sum(np.maximum(self.thresholds[name] - np.nan_to_num(batch.column(name)), 0) for name in broken)
        any_G_N = np.logical_or.reduce([batch.applies(name) for name in broken])
        return centred(np.where(any_G_N, -self.penalty * short_G_N, 0.0), any_G_N)

    def _learn(self, batch: Batch) -> None:
        for name, mean in zip(batch.objectives, means_by_objective(batch.scores_G_N_M).tolist(), strict=True):
            if name in self.thresholds and not np.isnan(mean):
                self._means[name] = averaged(self._means.get(name), mean, self.rate)

    def state_dict(self) -> dict[str, Any]:
        return {"means": dict(self._means)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._means = {name: float(mean) for name, mean in state["means"].items()}

    def metrics(self) -> dict[str, float]:
        return {"gated": float(bool(self.broken())), **{f"mean/{name}": mean for name, mean in self._means.items()}}


@dataclass
class IPOBarrier(Learning):
    """C-MORL's interior point: raise one objective, with a logarithmic barrier before the others' floors.

    An objective j other than the primary must keep share x its incumbent value R_j. With J_j its running mean, its
    advantages count 1 / (sharpness x max(J_j - share R_j, 1e-3)) by the number of the others: little while there is
    slack, much at the floor. Incumbents are the means of the first generation, or those that are given.
    `choose` takes, of the front's members that keep the floors, the one with the most of the primary; where none does,
    the one that falls short least in all.

    Source: C-MORL, the authors' code (share .9, sharpness 20, clamp 1e-3); the derivative of the barrier as weights of
    advantages is derived, the running means and the incumbents from the first generation are ours.

    Attributes:
        primary: What is raised; by default the first objective.
        incumbents: R_j by objective, in its own unit.
        share: Of an incumbent that must be kept.
        sharpness: The barrier's t.
        rate: Of the running means.
    """

    primary: str | None = None
    incumbents: dict[str, float] = field(default_factory=dict)
    share: Annotated[float, Field(gt=0, le=1)] = 0.9
    sharpness: Annotated[float, Field(gt=0)] = 20.0
    rate: Rate = 0.2

    CLAMP = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._incumbents = dict(self.incumbents)
        self._means: dict[str, float] = {}

    @property
    def needs(self) -> tuple[str, ...]:
        return (*([self.primary] if self.primary else ()), *self.incumbents)

    def _first(self, objectives: Sequence[str]) -> str:
        return self.primary or objectives[0]

    def barrier(self, name: str) -> float:
        """Weight of an objective's advantages; 0 before anything is known of it."""
        if name not in self._means or name not in self._incumbents:
            return 0.0
        slack = self._means[name] - self.share * self._incumbents[name]
        return 1 / (self.sharpness * max(slack, self.CLAMP))

    def _advantages(self, batch: Batch) -> np.ndarray:
        first = self._first(batch.objectives)
        others = [name for name in batch.objectives if name != first]
        said_G_N = centred(np.nan_to_num(batch.column(first)), batch.applies(first))
        for name in others:
            weight = self.barrier(name) / len(others)
            said_G_N = said_G_N + weight * centred(np.nan_to_num(batch.column(name)), batch.applies(name))
        return said_G_N

    def _learn(self, batch: Batch) -> None:
        for name, mean in zip(batch.objectives, means_by_objective(batch.scores_G_N_M).tolist(), strict=True):
            if not np.isnan(mean):
                self._means[name] = averaged(self._means.get(name), mean, self.rate)
                self._incumbents.setdefault(name, mean)

    def choose(self, scores_K_M: np.ndarray, *, objectives: Sequence[str], rng: np.random.Generator) -> Choice | None:
        chosen = super().choose(scores_K_M, objectives=objectives, rng=rng)
        if chosen is None or len(chosen.front) < 2:
            return chosen
        weights_M = np.array([(self.weights or {}).get(name, 1.0) for name in objectives])
        members_F_M = pareto.orient(scores_K_M, weights_M)[list(chosen.front)]
        first = list(objectives).index(self._first(objectives))
        floors_M = [self.share * self._incumbents.get(name, -np.inf) for name in objectives]
        floors_M[first] = -np.inf
        short_F = np.nan_to_num(np.maximum(np.array(floors_M) - members_F_M, 0)).sum(axis=1)
        # By shortfall, then by the primary, then by the mean, then by place.
        mean_F = weighted_mean(members_F_M[None], np.abs(weights_M))[0]
        best = np.lexsort((-mean_F, -np.nan_to_num(members_F_M[:, first]), short_F))[0]
        return Choice(index=chosen.front[int(best)], front=chosen.front, decided_by="ipo-barrier")

    def state_dict(self) -> dict[str, Any]:
        return {"means": dict(self._means), "incumbents": dict(self._incumbents)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._means = {name: float(value) for name, value in state["means"].items()}
        self._incumbents = {name: float(value) for name, value in state["incumbents"].items()}

    def metrics(self) -> dict[str, float]:
        return {f"barrier/{name}": self.barrier(name) for name in self._means}


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, 0.0)


@dataclass
class MaxMin(Learning):
    """MaxMin: what is worst off decides.

    Per batch: the weights of the objectives are a softmax of -J / temperature over their running means J, or all on the
    lowest for temperature 0; of a group only those that apply to it count. Per row: the reward is the row's lowest
    objective, or its soft minimum.

    Source: MaxMin-RLHF; the authors' code takes the minimum of each row, the batch's means stand there commented out,
    and are the paper's. Users are objectives here (ours), and running means smooth the choice (ours).

    Attributes:
        per: `batch` or `row`.
        temperature: In the objectives' unit; 0 is the hard minimum.
        rate: Of the running means.
    """

    per: Literal["batch", "row"] = "batch"
    temperature: Annotated[float, Field(ge=0)] = 0.0
    rate: Rate = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._means: dict[str, float] = {}

    @property
    def whole_batch(self) -> bool:  # type: ignore[override]
        """The first generation's means are those of its whole batch."""
        return self.per == "batch"

    def _advantages(self, batch: Batch) -> np.ndarray:
        if self.per == "row":
            return centred(self._lowest(batch.scores_G_N_M), batch.valid_G_N)
        now = means_by_objective(batch.scores_G_N_M).tolist()
        means = [self._means.get(name, mean) for name, mean in zip(batch.objectives, now, strict=True)]
        known_G_N_M = ~np.isnan(batch.scores_G_N_M)
        levels_G_N_M = np.where(known_G_N_M, np.nan_to_num(np.array(means)), np.inf)
        lowest_G_N_1 = _finite(levels_G_N_M.min(axis=2, keepdims=True))
        if self.temperature == 0:
            weights_G_N_M = (levels_G_N_M == lowest_G_N_1).astype(float)
        else:
            weights_G_N_M = np.exp(-(levels_G_N_M - lowest_G_N_1) / self.temperature)
        weights_G_N_M /= np.maximum(weights_G_N_M.sum(axis=2, keepdims=True), 1e-300)
        return centred((np.nan_to_num(batch.scores_G_N_M) * weights_G_N_M).sum(axis=2), batch.valid_G_N)

    def _lowest(self, scores_G_N_M: np.ndarray) -> np.ndarray:
        """The lowest objective of each row, or its soft minimum -t log mean exp(-r / t), (G, N)."""
        known_G_N_M = ~np.isnan(scores_G_N_M)
        filled_G_N_M = np.where(known_G_N_M, scores_G_N_M, np.inf)
        lowest_G_N_1 = _finite(filled_G_N_M.min(axis=2, keepdims=True))
        if self.temperature == 0:
            return np.asarray(lowest_G_N_1[:, :, 0])
        summed_G_N = np.exp(-(filled_G_N_M - lowest_G_N_1) / self.temperature).sum(axis=2)
        count_G_N = np.maximum(known_G_N_M.sum(axis=2), 1)
        return np.asarray(lowest_G_N_1[:, :, 0] - self.temperature * np.log(np.maximum(summed_G_N, 1e-300) / count_G_N))

    def _learn(self, batch: Batch) -> None:
        for name, mean in zip(batch.objectives, means_by_objective(batch.scores_G_N_M).tolist(), strict=True):
            if not np.isnan(mean):
                self._means[name] = averaged(self._means.get(name), mean, self.rate)

    def state_dict(self) -> dict[str, Any]:
        return {"means": dict(self._means)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._means = {name: float(mean) for name, mean in state["means"].items()}

    def metrics(self) -> dict[str, float]:
        return {f"mean/{name}": mean for name, mean in self._means.items()}
