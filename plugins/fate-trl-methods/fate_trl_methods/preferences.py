"""The family `preferences`: pairings, for a recipe's `preference.pairing`, and losses on pairs, for `preference.loss`.

Below, m is beta times the chosen side's log-ratio to the reference, less the rejected side's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fate_trl import Component, hookimpl

from .pairings import CrossVerified, EarlierPolicy, MarginFilter, StepPairs

fate_trl_api = 1


class Dmpo:
    """DPO over turns: log-ratios of early turns weigh more, by phi(t, T) = gamma^t (1 - gamma^(T-t)) / (1 - gamma^T).

    T is the number of the side's turns; the loss is -log sigma of beta times the difference of the weighted sums.

    Source: DMPO, read in the authors' code. Ours: turns are the policy's messages, and tools' tokens are in none.

    Args:
        gamma: Discount, in (0, 1]; at 1 phi is (T - t) / T. A side of one turn has phi 1 at any.
    """

    def __init__(self, gamma: Annotated[float, Field(gt=0, le=1)] = 0.7):
        self.gamma = gamma

    def __call__(self, batch: Any) -> Any:
        from torch.nn.functional import logsigmoid

        margin_B = self._weighted(batch.chosen) - self._weighted(batch.rejected)
        return -logsigmoid(batch.beta * margin_B).mean()

    def _weighted(self, side: Any) -> Any:
        """The weighted sum of a side's log-ratios, (B,)."""
        turns_B_1 = side.turn_B_T.amax(dim=1, keepdim=True) + 1
        t_B_T, left_B_T = side.turn_B_T.clamp(min=0), turns_B_1 - side.turn_B_T.clamp(min=0)
        if self.gamma == 1:
            phi_B_T = left_B_T / turns_B_1.clamp(min=1)
        else:
            phi_B_T = self.gamma**t_B_T * (1 - self.gamma**left_B_T) / (1 - self.gamma ** turns_B_1.clamp(min=1))
        return (phi_B_T * (side.logps_B_T - side.ref_logps_B_T)).sum(dim=1)


class Mappo:
    """DPO whose rejected log-ratio counts by the score gap D, in [0, 1]: -log sigma(beta (chosen - D rejected)).

    Source: MaPPO, [recall]. Ours: D is the mean gap of the objectives' scores; below 0 it is 0.
    """

    def __call__(self, batch: Any) -> Any:
        from torch.nn.functional import logsigmoid

        gap_B = batch.score_gap_B.clamp(0, 1)
        return -logsigmoid(batch.beta * (batch.chosen.log_ratio_B - gap_B * batch.rejected.log_ratio_B)).mean()


class RewardAware:
    """The margin m is drawn to a target, scale times the score gap, and not without end.

    `squared` is (m - target)^2; `backward-kl` is the KL divergence from sigma(target) to sigma(m), over both answers;
    `forward-kl` the one from sigma(m) to sigma(target).

    Source: reward-aware preference optimisation; backward KL read in the authors' code, the others [recall].

    Args:
        distance: Of m to its target.
        scale: Of the score gap, above 0.
    """

    def __init__(
        self,
        distance: Literal["squared", "backward-kl", "forward-kl"] = "backward-kl",
        scale: Annotated[float, Field(gt=0)] = 1.0,
    ):
        self.distance = distance
        self.scale = scale

    def __call__(self, batch: Any) -> Any:
        margin_B = batch.beta * (batch.chosen.log_ratio_B - batch.rejected.log_ratio_B)
        target_B = self.scale * batch.score_gap_B
        if self.distance == "squared":
            return ((margin_B - target_B) ** 2).mean()
        if self.distance == "backward-kl":
            return _divergence(target_B, margin_B).mean()
        return _divergence(margin_B, target_B).mean()


def _divergence(of_B: Any, from_B: Any) -> Any:
    """KL divergence between two coins whose log-odds are given."""
    from torch.nn.functional import logsigmoid

    heads_B = of_B.sigmoid() * (logsigmoid(of_B) - logsigmoid(from_B))
    return heads_B + (-of_B).sigmoid() * (logsigmoid(-of_B) - logsigmoid(-from_B))


@hookimpl
def fate_trl_pairings() -> list[Component]:
    return [
        Component("margin-filter", MarginFilter, "DNO: only pairs whose score gap is above a margin"),
        Component("step-pairs", StepPairs, "SVPO: from the first call on in which the sides differ"),
        Component("cross-verified", CrossVerified, "CodeDPO: the best beside the worst as candidates and checks rank"),
        Component("earlier-policy", EarlierPolicy, "the chosen repair beside what an earlier policy did"),
    ]


@hookimpl
def fate_trl_pair_losses() -> list[Component]:
    return [
        Component("dmpo", Dmpo, "DMPO: log-ratios of early turns weigh more"),
        Component("mappo", Mappo, "MaPPO: the rejected side counts by the gap of the scores"),
        Component("reward-aware", RewardAware, "the margin is drawn to the gap of the scores"),
    ]
