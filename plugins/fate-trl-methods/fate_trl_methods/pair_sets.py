"""Pair losses that look beyond one pair: at sides without a partner, at the batch, or at what a pair's loss was before.

Below, x is beta times a side's log-ratio to the reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field


def dpo_of(batch: Any) -> Any:
    """DPO's loss of each pair of a batch, (B,)."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(batch.beta * (batch.chosen.log_ratio_B - batch.rejected.log_ratio_B))


class Pmpo:
    """Repairs are made likelier and failures less likely, each side by itself, near the reference.

    L = -alpha E_repairs log pi + (1 - alpha) E_failures log pi + kl KL(reference to policy), sums over a side's tokens,
    means over sides. Where `kl` is above 1 - alpha failures alone do not drive the policy off without end.

    Source: PMPO, [recall]. Ours: the KL divergence is estimated at the failures' tokens, which were sampled without a
    repair's prompt, by r - 1 - log r with r = policy / reference, so no logits are needed.

    Args:
        alpha: What repairs count, in [0, 1]; 0 learns from failures alone.
        kl: Weight of the divergence, 0 or above.
    """

    unpaired = True

    def __init__(self, alpha: Annotated[float, Field(ge=0, le=1)] = 0.5, kl: Annotated[float, Field(ge=0)] = 1.0):
        self.alpha = alpha
        self.kl = kl

    def __call__(self, batch: Any) -> Any:
        repairs = _mean(batch.chosen.logps_B_T.sum(dim=1), batch.chosen.there_B)
        failures = _mean(batch.rejected.logps_B_T.sum(dim=1), batch.rejected.there_B)
        ratio_B_T = batch.rejected.logps_B_T - batch.rejected.ref_logps_B_T
        divergence_B = (ratio_B_T.exp() - 1 - ratio_B_T).sum(dim=1)
        kl = _mean(divergence_B, batch.rejected.there_B)
        return -self.alpha * repairs + (1 - self.alpha) * failures + self.kl * kl


class Uapo:
    """Each side against a learned utility anchor a: -log sigma(x - a) of repairs, -log sigma(a - x) of failures.

    The mean over the repairs of a batch plus that over its failures, so sides need no partner. The anchor descends the
    same loss.

    Source: UAPO: the anchor and that it decouples the sides, in an abstract and on a published page; the formula is
    [recall]. Ours: the anchor is one number for all prompts, it learns by plain gradient steps, and only from batches
    that have both sides, as one kind alone would move it without end.

    Args:
        rate: Of the anchor's steps, 0 or above; 0 leaves it where it is.
        anchor: Where it starts.
    """

    unpaired = True

    def __init__(self, rate: Annotated[float, Field(ge=0)] = 0.05, anchor: float = 0.0):
        self.rate = rate
        self.anchor = anchor

    def __call__(self, batch: Any) -> Any:
        from torch.nn.functional import logsigmoid

        repair_B = -logsigmoid(batch.beta * batch.chosen.log_ratio_B - self.anchor)
        failure_B = -logsigmoid(self.anchor - batch.beta * batch.rejected.log_ratio_B)
        return _mean(repair_B, batch.chosen.there_B) + _mean(failure_B, batch.rejected.there_B)

    def learn(self, batch: Any) -> None:
        if not (batch.chosen.there_B.any() and batch.rejected.there_B.any()):
            return
        above_B = (self.anchor - batch.beta * batch.chosen.log_ratio_B).sigmoid()
        below_B = (batch.beta * batch.rejected.log_ratio_B - self.anchor).sigmoid()
        slope = _mean(above_B, batch.chosen.there_B) - _mean(below_B, batch.rejected.there_B)
        self.anchor -= self.rate * float(slope)

    def state_dict(self) -> dict[str, Any]:
        return {"anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.anchor = float(state["anchor"])

    def metrics(self) -> dict[str, float]:
        """The anchor."""
        return {"anchor": self.anchor}


class Relative:
    """Every repair of the batch against every failure of it, those of like prompts more.

    L = mean over repairs i of sum_j -log sigma(w_ij (x_i - x_j)), w_ij = softmax_j(-(1 - cos(p_i, p_j)) / tau) over the
    batch's failures j, p the prompts. As tau falls to 0, a repair meets its own failure alone, as in DPO.

    Source: relative preference optimisation, read in the authors' code. Ours: prompts are compared by the tokens that
    they do not all begin with, where the authors embed sentences; the sum over failures is less its value at w = 0,
    log 2 for all but one of them, which changes no gradient.

    Args:
        tau: Temperature of the weights, above 0.
    """

    needs = ("prompts",)
    unpaired = True

    def __init__(self, tau: Annotated[float, Field(gt=0)] = 0.5):
        self.tau = tau

    def __call__(self, batch: Any) -> Any:
        from torch.nn.functional import logsigmoid, normalize

        repairs, failures = batch.chosen.there_B, batch.rejected.there_B
        prompt_B_D = normalize(batch.prompt_B_D, dim=1)
        likeness_I_J = prompt_B_D[repairs] @ prompt_B_D[failures].T
        weight_I_J = ((likeness_I_J - 1) / self.tau).softmax(dim=1)
        chosen_I, rejected_J = batch.chosen.log_ratio_B[repairs], batch.rejected.log_ratio_B[failures]
        if not (len(chosen_I) and len(rejected_J)):
            return 0 * (chosen_I.sum() + rejected_J.sum())
        margin_I_J = batch.beta * weight_I_J * (chosen_I[:, None] - rejected_J[None, :])
        return (-logsigmoid(margin_I_J).sum(dim=1) - (len(rejected_J) - 1) * math.log(2)).mean()


class Feasible:
    """Every pair is to reach a loss of at most epsilon: it has a multiplier, raised until it does, then lowered.

    L = mean lambda_i l_i; lambda_i <- max(0, lambda_i + rate (l_i - epsilon - slack lambda_i)) after each step; l is
    DPO's loss, or the chosen side's cross-entropy per token.

    Source: Feasible Learning, [recall]; `slack` is its resilient form. Ours: multipliers begin at 1, where it is DPO,
    and belong to a pair's content, so they are kept over epochs, rounds and resumes.

    Args:
        epsilon: Bound on a pair's loss; DPO's is 0.69 at the reference.
        rate: Of the multipliers, 0 or above; at 0 it is the plain mean.
        on: What is bounded.
        slack: How far a bound gives way to its multiplier, 0 or above.
    """

    def __init__(
        self,
        epsilon: Annotated[float, Field(ge=0)] = 0.4,
        rate: Annotated[float, Field(ge=0)] = 0.5,
        on: Literal["pair", "chosen"] = "pair",
        slack: Annotated[float, Field(ge=0)] = 0.0,
    ):
        self.epsilon = epsilon
        self.rate = rate
        self.on = on
        self.slack = slack
        self._multipliers: dict[str, float] = {}

    def __call__(self, batch: Any) -> Any:
        loss_B = self._losses(batch)
        return (loss_B.new_tensor([self.multiplier(key) for key in batch.key_B.tolist()]) * loss_B).mean()

    def multiplier(self, key: int) -> float:
        """The multiplier of a pair."""
        return self._multipliers.get(str(key), 1.0)

    def _losses(self, batch: Any) -> Any:
        """l of each pair, (B,)."""
        if self.on == "pair":
            return dpo_of(batch)
        tokens_B = (batch.chosen.turn_B_T >= 0).sum(dim=1).clamp(min=1)
        return -batch.chosen.logps_B_T.sum(dim=1) / tokens_B

    def learn(self, batch: Any) -> None:
        for key, loss in zip(batch.key_B.tolist(), self._losses(batch).tolist(), strict=True):
            before = self.multiplier(key)
            self._multipliers[str(key)] = max(0.0, before + self.rate * (loss - self.epsilon - self.slack * before))

    def state_dict(self) -> dict[str, Any]:
        return {"multipliers": dict(self._multipliers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._multipliers = {str(key): float(value) for key, value in state["multipliers"].items()}

    def metrics(self) -> dict[str, float]:
        """Mean and largest multiplier of the pairs met so far."""
        values = list(self._multipliers.values()) or [1.0]
        return {"multiplier_mean": math.fsum(values) / len(values), "multiplier_max": max(values)}


def _mean(values_B: Any, where_B: Any) -> Any:
    """Mean of those that are there; 0, with a gradient of 0, where none is."""
    return (values_B * where_B).sum() / where_B.sum().clamp(min=1)
