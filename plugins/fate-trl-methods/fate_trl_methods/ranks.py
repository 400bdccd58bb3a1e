"""Advantages by a row's rank, by whole prompts, and on mapped scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fate_trl import RecipeError

from .common import Advantages, Batch, Learning, centred, mean_of, standardised, weighted_mean

Strategy = Literal["best", "best-random", "best-worst", "fit"]
_STRATEGIES: tuple[Strategy, ...] = ("best", "best-random", "best-worst")
_SUMS = ("n", "x", "y", "xx", "yy", "xy")


@dataclass
class FilteredRanks(Learning):
    """PF-PPO: only some ranks of a group are learned from, those where the reward can be trusted.

    `best` keeps the best row (weight 1), `best-random` the best with weight .4 and the others with .1, `best-worst` the
    best and the worst with 1. Rows that tie share their weight. The advantage of row i is w_i / max w times its reward
    less the kept rows' weighted mean; with `best`, which keeps one row, less the group's mean. `fit` takes the strategy
    whose kept rows have the highest R^2 between the reward and the objective `truth`, learned over the training.

    Source: PF-PPO, the authors' code, where kept rows are sampled; weights in the place of sampling and the group's
    statistics are derived. `base: pareto-rank` ranks by fronts.

    Attributes:
        strategy: See above.
        truth: For `fit`, an objective that can be trusted; it takes no part in the reward.
    """

    strategy: Strategy = "best-worst"
    truth: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.strategy == "fit") != (self.truth is not None):
            raise RecipeError("filtered-ranks: `strategy: fit` needs `truth`, an objective, and no other takes one.")
        self._sums: dict[Strategy, dict[str, float]] = {name: dict.fromkeys(_SUMS, 0.0) for name in _STRATEGIES}

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.truth,) if self.truth else ()

    def fits(self) -> dict[Strategy, float]:
        """R^2 by strategy, in [0, 1]; 0 where too little is known."""
        out: dict[Strategy, float] = {}
        for name, of in self._sums.items():
            n = max(of["n"], 1e-300)
            spread_x, spread_y = of["xx"] / n - (of["x"] / n) ** 2, of["yy"] / n - (of["y"] / n) ** 2
            both = of["xy"] / n - of["x"] * of["y"] / n**2
            out[name] = both**2 / (spread_x * spread_y) if spread_x > 1e-12 and spread_y > 1e-12 else 0.0
        return out

    def _now(self) -> Strategy:
        """The strategy; before anything is known of their fits, `best-worst`."""
        if self.strategy != "fit":
            return self.strategy
        fits = self.fits()
        return max(reversed(_STRATEGIES), key=lambda name: fits[name])

    def _reward(self, batch: Batch) -> np.ndarray:
        if self.truth is None:
            return batch.reward_G_N
        others_M = np.array([name != self.truth for name in batch.objectives])
        return weighted_mean(batch.scores_G_N_M[:, :, others_M], batch.weights_M[others_M])

    def _advantages(self, batch: Batch) -> np.ndarray:
        reward_G_N, strategy = self._reward(batch), self._now()
        weights_G_N = kept(reward_G_N, batch.valid_G_N, strategy)
        if strategy == "best":
            return np.asarray((weights_G_N > 0) * centred(reward_G_N, batch.valid_G_N))
        total_G_1 = np.maximum(weights_G_N.sum(axis=1, keepdims=True), 1e-300)
        mean_G_1 = (weights_G_N * reward_G_N).sum(axis=1, keepdims=True) / total_G_1
        top_G_1 = np.maximum(weights_G_N.max(axis=1, keepdims=True), 1e-300)
        return np.asarray(weights_G_N / top_G_1 * (reward_G_N - mean_G_1))

    def _learn(self, batch: Batch) -> None:
        if self.truth is None:
            return
        x, y, known = self._reward(batch), np.nan_to_num(batch.column(self.truth)), batch.applies(self.truth)
        for name, of in self._sums.items():
            w = kept(x, batch.valid_G_N, name) * known
            for key, value in zip(_SUMS, (1.0, x, y, x * x, y * y, x * y), strict=True):
                of[key] += float((w * value).sum())

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {name: dict(of) for name, of in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = {name: {key: float(state["sums"][name][key]) for key in _SUMS} for name in _STRATEGIES}

    def metrics(self) -> dict[str, float]:
        return {f"fit/{name}": fit for name, fit in self.fits().items()} if self.truth else {}


def kept(reward_G_N: np.ndarray, valid_G_N: np.ndarray, strategy: Strategy) -> np.ndarray:
    """Weights (G, N) with which a strategy keeps the rows of a group; rows that tie share theirs evenly."""
    high_G_N = _extreme(reward_G_N, valid_G_N)
    if strategy == "best":
        return high_G_N
    if strategy == "best-worst":
        return np.asarray(high_G_N + _extreme(-reward_G_N, valid_G_N))
    return np.asarray(0.1 * valid_G_N + 0.3 * high_G_N)


def _extreme(values_G_N: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    """1 for the highest valid row of each group, shared among those that tie, (G, N)."""
    filled_G_N = np.where(valid_G_N, values_G_N, -np.inf)
    top_G_N = valid_G_N & (filled_G_N == filled_G_N.max(axis=1, keepdims=True))
    return np.asarray(top_G_N / np.maximum(top_G_N.sum(axis=1, keepdims=True), 1))


@dataclass
class COPO(Advantages):
    """Consistency-aware policy optimisation: prompts are compared too, most where a group's rows all agree.

    Global: a prompt's mean reward times 1 - lambda H, with lambda = (1 - 1 / n) / log2 n and H the entropy in bits of
    its rows' outcomes; standardised over the batch's prompts. The mixture is w A_local + (1 - w) A_global with
    w = sigmoid(slope (H - threshold)), and w = 0 for a group whose local advantages are all 0. So groups that all fail
    or all pass teach something.

    Source: COPO, the authors' code, where two clipped losses are blended and w is 0 row by row; here advantages are
    (ours), an outcome is the vector of scores (ours: there it is the answer), and w = 0 goes by groups (ours), since
    otherwise a middling row could overtake a better one.

    Attributes:
        slope, threshold: Of the mixture's weight; entropy in bits.
    """

    slope: Annotated[float, Field(gt=0)] = 1.0
    threshold: Annotated[float, Field(ge=0)] = 0.5

    whole_batch: ClassVar[bool] = True

    def _advantages(self, batch: Batch) -> np.ndarray:
        local_G_N = standardised(batch.reward_G_N, batch.valid_G_N)
        entropy_G = np.array([_entropy(s[v]) for s, v in zip(batch.scores_G_N_M, batch.valid_G_N, strict=True)])
        count_G = np.maximum(batch.valid_G_N.sum(axis=1), 2)
        penalty_G = (1 - 1 / count_G) / np.log2(count_G)
        consistent_1_G = (mean_of(batch.reward_G_N, batch.valid_G_N)[:, 0] * (1 - penalty_G * entropy_G))[None]
        global_G_1 = standardised(consistent_1_G, batch.valid_G_N.any(axis=1).reshape(1, -1)).T
        mixed_G = np.asarray(local_G_N != 0).any(axis=1)
        weight_G = np.where(mixed_G, 1 / (1 + np.exp(-self.slope * (entropy_G - self.threshold))), 0.0)
        weight_G_1 = weight_G.reshape(-1, 1)
        mixed_G_N = weight_G_1 * local_G_N + (1 - weight_G_1) * global_G_1
        return np.where(batch.valid_G_N, mixed_G_N, 0.0)


def _entropy(outcomes_R_M: np.ndarray) -> float:
    """Entropy in bits of the distinct rows."""
    if not len(outcomes_R_M):
        return 0.0
    _, counts = np.unique(np.nan_to_num(outcomes_R_M), axis=0, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


@dataclass
class LogMap(Advantages):
    """Value mapping: each score s becomes sign(s) log(1 + |s| / small) / log(1 + 1 / small) before they are averaged.

    The order of each objective is kept, 0 stays 0 and 1 stays 1, and small scores are spread.

    Source: orchestrated value mapping [recall]; the constants are ours.

    Attributes:
        small: Where the logarithm bends, in the scores' unit.
    """

    small: Annotated[float, Field(gt=0)] = 0.05

    def _advantages(self, batch: Batch) -> np.ndarray:
        mapped_G_N_M = np.sign(batch.scores_G_N_M) * np.log1p(np.abs(batch.scores_G_N_M) / self.small)
        return centred(weighted_mean(mapped_G_N_M / np.log1p(1 / self.small), batch.weights_M), batch.valid_G_N)
