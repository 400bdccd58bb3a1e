"""Advantages that count bad rows for more than good ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fate_trl import RecipeError

from .common import Advantages, Batch, Learning, centred, mean_of

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass
class MixedVaR(Learning):
    """RiskPO's mixed value at risk over bundles of prompts.

    The j-th rollouts of a bundle of prompts are one paper, whose reward R is the sum of theirs. With the tracked
    quantiles q_a and q_b of R, rvar = ((R - q_a)+ - (R - q_b)+ + q_a - q_b) / (b - a) and cvar = -(q_a - R)+ / a, the
    advantage of every row of the paper is (w cvar + rvar) / (w + 1) by the bundle's standard deviation. Its slope is
    steepest below q_a and 0 above q_b. Learned: q <- q + rate (level - share of papers below q), for both levels.

    Source: RiskPO, the authors' code. Ours: the quantiles begin at those of the first generation; where the papers of
    a bundle are all but equal the advantage is 0 (the formula's is unbounded there); an invalid row counts as its
    group's mean; the sum of a bundle that the batch cuts short is scaled up to a whole one.

    Attributes:
        bundle: Prompts of a bundle; 1 compares within a prompt's own group.
        low, high: The levels a and b.
        tail: The weight w of the lower tail.
        rate: Step of the quantiles, in the unit of R.
        baseline: `none` as in the paper, where no advantage is above 0; `mean` takes off the bundle's mean.
        floor: Standard deviation of a bundle below which its rows count as equal.
    """

    bundle: Annotated[int, Field(ge=1)] = 5
    low: Share = 0.2
    high: Share = 0.8
    tail: Annotated[float, Field(ge=0)] = 1.5
    rate: Annotated[float, Field(gt=0)] = 0.1
    baseline: Literal["none", "mean"] = "none"
    floor: Annotated[float, Field(gt=0)] = 1e-6

    orders: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise RecipeError(f"mixed-var: low is {self.low} and high {self.high}; low must be the lower level.")
        self._quantiles: list[float] = []

    def _advantages(self, batch: Batch) -> np.ndarray:
        papers_B_N, bundle_of_G = self._papers(batch)
        low, high = self._levels(papers_B_N)
        between = np.maximum(papers_B_N - low, 0) - np.maximum(papers_B_N - high, 0) + low - high
        tail = -np.maximum(low - papers_B_N, 0) / self.low
        value_B_N = (self.tail * tail + between / (self.high - self.low)) / (self.tail + 1)
        deviation_B_1 = value_B_N.std(axis=1, keepdims=True)
        if self.baseline == "mean":
            value_B_N = value_B_N - value_B_N.mean(axis=1, keepdims=True)
        equal_B_1 = deviation_B_1 < self.floor
        said_B_N = np.where(equal_B_1, 0.0, value_B_N / np.where(equal_B_1, 1.0, deviation_B_1))
        return np.where(batch.valid_G_N, said_B_N[bundle_of_G], 0.0)

    def _papers(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Rewards (B, N) of the papers, and for each group the number of its bundle."""
        reward_G_N = np.where(batch.valid_G_N, batch.reward_G_N, mean_of(batch.reward_G_N, batch.valid_G_N))
        bundle_of_G = np.arange(len(reward_G_N)) // self.bundle
        means = [reward_G_N[bundle_of_G == number].mean(axis=0) for number in range(bundle_of_G[-1] + 1)]
        return self.bundle * np.array(means), bundle_of_G

    def _levels(self, papers_B_N: np.ndarray) -> tuple[float, float]:
        low, high = self._quantiles or np.quantile(papers_B_N, [self.low, self.high])
        return float(low), float(high)

    def _learn(self, batch: Batch) -> None:
        papers_B_N, _ = self._papers(batch)
        levels = zip(self._levels(papers_B_N), (self.low, self.high), strict=True)
        self._quantiles = [q + self.rate * (level - float((papers_B_N < q).mean())) for q, level in levels]

    def state_dict(self) -> dict[str, Any]:
        return {"quantiles": list(self._quantiles)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._quantiles = [float(value) for value in state["quantiles"]]

    def metrics(self) -> dict[str, float]:
        return dict(zip(("quantile_low", "quantile_high"), self._quantiles, strict=False))


@dataclass
class CVaR(Advantages):
    """Mean and conditional value at risk of a group: (1 - risk) (r - mean) - (risk / level) ((q - r)+ - its mean).

    q is the quantile of the group's rewards at `level`. With risk 0 it is the reward less the group's mean, to the bit.
    The second term is the derivative of CVaR by the policy (Rockafellar and Uryasev's form), with a mean as baseline.

    Source: expected conditional risk measures for policy gradients [recall]; the group's quantile in the place of a
    learned one is ours.

    Attributes:
        risk: Weight of the lower tail, in [0, 1].
        level: Share of the rows that make the tail.
    """

    risk: Annotated[float, Field(ge=0, le=1)] = 0.5
    level: Share = 0.25

    def _advantages(self, batch: Batch) -> np.ndarray:
        mean = centred(batch.reward_G_N, batch.valid_G_N)
        if self.risk == 0:
            return mean
        counted_G_N = np.where(batch.valid_G_N, batch.reward_G_N, np.nan)
        counted_G_N[~batch.valid_G_N.any(axis=1)] = 0.0
        quantile_G_1 = np.nanquantile(counted_G_N, self.level, axis=1, keepdims=True)
        short_G_N = np.maximum(quantile_G_1 - batch.reward_G_N, 0)
        return (1 - self.risk) * mean - self.risk / self.level * centred(short_G_N, batch.valid_G_N)


def certainty_equivalent(values_G_N: np.ndarray, valid_G_N: np.ndarray, eta: float) -> np.ndarray:
    """(1 / eta) log of the mean of exp(eta r) over each group, (G, 1); the mean for eta = 0.

    With eta below 0 it falls with the spread of equally good groups.
    """
    if eta == 0:
        return mean_of(values_G_N, valid_G_N)
    scaled_G_N = np.where(valid_G_N, eta * values_G_N, -np.inf)
    top_G_1 = np.where(valid_G_N.any(axis=1, keepdims=True), scaled_G_N.max(axis=1, keepdims=True), 0.0)
    summed_G_1 = np.exp(scaled_G_N - top_G_1).sum(axis=1, keepdims=True)
    count_G_1 = np.maximum(valid_G_N.sum(axis=1, keepdims=True), 1)
    return np.asarray((top_G_1 + np.log(np.maximum(summed_G_1, 1e-300) / count_G_1)) / eta)


@dataclass
class EntropicRisk(Advantages):
    """Entropic risk: (exp(eta (r - V)) - 1) / eta, with V the certainty equivalent of the group.

    Its mean over the group is 0, and it is the gradient of V by the policy. eta -> 0 gives the reward less its mean;
    eta < 0 is averse to risk (bad rows count for more), eta > 0 seeks it.

    Source: risk-averse reinforcement learning with the Itakura-Saito loss [recall]; the group's V in the place of a
    learned one is ours.

    Attributes:
        eta: In 1 / unit of the reward, at most 50 in size.
    """

    eta: Annotated[float, Field(ge=-50, le=50)] = -2.0

    def _advantages(self, batch: Batch) -> np.ndarray:
        value_G_1 = certainty_equivalent(batch.reward_G_N, batch.valid_G_N, self.eta)
        gap_G_N = np.where(batch.valid_G_N, batch.reward_G_N - value_G_1, 0.0)
        # expm1 is exact for small arguments; the exponent is at most log N for the row that V is nearest to.
        return gap_G_N if self.eta == 0 else np.expm1(self.eta * gap_G_N) / self.eta
