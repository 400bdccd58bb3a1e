"""Losses on pairs of a chosen repair and its failure, each pair by itself.

Below, m is beta times the chosen side's log-ratio to the reference, less the rejected side's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .pair_sets import dpo_of


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


class Tgdpo:
    """DPO with a reward r_t per token: a chosen token counts 1 + alpha r_t, a rejected one 1 - alpha r_t.

    L = -log sigma(beta (sum_t (1 + alpha r_t) lr_t of the chosen side - sum_t (1 - alpha r_t) lr_t of the rejected)),
    lr_t a token's log-ratio. At alpha 0 it is DPO.

    Source: TGDPO, read in the authors' code, where r_t is beta lr_t of a policy trained by DPO before. Ours: r_t is the
    verifiers', -1 in the turn of the failure that they fault and 0 elsewhere; or beta lr_t of the policy as it is now.

    Args:
        alpha: What the reward counts, 0 or above.
        reward: Where it is from.
    """

    def __init__(
        self, alpha: Annotated[float, Field(ge=0)] = 0.5, reward: Literal["verifiers", "policy"] = "verifiers"
    ):
        self.alpha = alpha
        self.reward = reward

    def __call__(self, batch: Any) -> Any:
        from torch.nn.functional import logsigmoid

        margin_B = self._weighted(batch, batch.chosen, 1) - self._weighted(batch, batch.rejected, -1)
        return -logsigmoid(batch.beta * margin_B).mean()

    def _weighted(self, batch: Any, side: Any, sign: int) -> Any:
        """The weighted sum of a side's log-ratios, (B,)."""
        ratio_B_T = side.logps_B_T - side.ref_logps_B_T
        if self.reward == "policy":
            reward_B_T = batch.beta * ratio_B_T.detach()
        else:
            faulty_B_T = (side.turn_B_T == batch.fault_B[:, None]) & (side.turn_B_T >= 0)
            reward_B_T = 0 * ratio_B_T.detach() if sign > 0 else -faulty_B_T.to(ratio_B_T.dtype)
        return side.log_ratio_B + sign * self.alpha * (reward_B_T * ratio_B_T).sum(dim=1)


class Inpo:
    """One step of mirror descent towards the Nash policy: (h - 1 / (2 eta))^2, eta the recipe's beta.

    h is how much more the policy prefers the chosen side by its log-odds than two policies do, the run's first one
    (`ratio` of it) and the one that the stage began with (the rest). At ratio 1 in the first round it is IPO.

    Source: INPO, [recall]: h = log pi(w) / pi(l) - tau / eta log pi_ref(w) / pi_ref(l) - (1 - tau / eta) log pi_t(w) /
    pi_t(l). Ours: pi_ref is the policy that the run began with, pi_t the one that the stage finds.

    Args:
        ratio: tau / eta, in [0, 1]; the pull back to the run's first policy.
    """

    needs = ("first_policy",)

    def __init__(self, ratio: Annotated[float, Field(ge=0, le=1)] = 1 / 3):
        self.ratio = ratio

    def __call__(self, batch: Any) -> Any:
        h_B = self._odds(batch.chosen) - self._odds(batch.rejected)
        return ((h_B - 1 / (2 * batch.beta)) ** 2).mean()

    def _odds(self, side: Any) -> Any:
        moved_B = side.first_logps_B_T.sum(dim=1) - side.ref_logps_B_T.sum(dim=1)
        return side.log_ratio_B - self.ratio * moved_B


class HDpo:
    """DPO whose policy counts alpha times: -log sigma(beta (alpha log pi - log pi_ref, chosen less rejected)).

    Its optimum is the reference to the power 1 / alpha, tilted by the reward: below 1 the policy has less entropy than
    DPO's, above it more. At 1 it is DPO.

    Source: H-DPO, [recall].

    Args:
        alpha: Weight of the entropy, above 0.
    """

    def __init__(self, alpha: Annotated[float, Field(gt=0)] = 0.9):
        self.alpha = alpha

    def __call__(self, batch: Any) -> Any:
        from torch.nn.functional import logsigmoid

        margin_B = self._ratio(batch.chosen) - self._ratio(batch.rejected)
        return -logsigmoid(batch.beta * margin_B).mean()

    def _ratio(self, side: Any) -> Any:
        return self.alpha * side.logps_B_T.sum(dim=1) - side.ref_logps_B_T.sum(dim=1)


class Vpo:
    """DPO and the value of the policy that it implies, by the log-ratio of calibration samples.

    L = L_DPO -+ weight beta E log pi / pi_ref of the calibration samples: `pessimistic` (-) raises their probability,
    `optimistic` (+) lowers it. At weight 0 it is DPO.

    Source: VPO: the regulariser and its sign in an abstract, the formula [recall]. Ours: calibration samples are one
    side of the pairs; pessimistic on the chosen side is DPO with SFT on sums of tokens.

    Args:
        weight: Of the value, 0 or above.
        value: Which way.
        calibration: The side that calibrates.
    """

    def __init__(
        self,
        weight: Annotated[float, Field(ge=0)] = 0.1,
        value: Literal["pessimistic", "optimistic"] = "pessimistic",
        calibration: Literal["chosen", "rejected"] = "chosen",
    ):
        self.weight = weight
        self.sign = 1 if value == "optimistic" else -1
        self.calibration = calibration

    def __call__(self, batch: Any) -> Any:
        value = getattr(batch, self.calibration).log_ratio_B.mean()
        return dpo_of(batch).mean() + self.sign * self.weight * batch.beta * value


class Srpo:
    """The policy learns to answer, and to improve on a failure that it is shown: two squared losses on two prompts.

    L = alpha (beta m - 1/2)^2 + (1 - alpha) (beta m' - 1/2)^2; m is the chosen side's log-ratio less the rejected one's
    under the plain prompt, m' the same under the repair's prompt, which shows a failure. At alpha 1 its optimum is
    IPO's.

    Source: SRPO: one loss for an answering and a self-improving policy, in an abstract; the formula is [recall]. Ours:
    the context is the repair's prompt, with the failure and the verifiers' feedback; repairs are never shown; the
    answering part is IPO's.

    Args:
        alpha: What answering counts, in [0, 1].
    """

    needs = ("repair_prompt",)

    def __init__(self, alpha: Annotated[float, Field(ge=0, le=1)] = 0.5):
        self.alpha = alpha

    def __call__(self, batch: Any) -> Any:
        answers_B = batch.chosen.log_ratio_B - batch.rejected.log_ratio_B
        improves_B = batch.repaired.log_ratio_B - batch.failed.log_ratio_B
        squares = [((batch.beta * margin_B - 0.5) ** 2).mean() for margin_B in (answers_B, improves_B)]
        return self.alpha * squares[0] + (1 - self.alpha) * squares[1]


class Rationale:
    """DPO, and the policy learns to say why the failure failed: + weight times the rationale's cross-entropy per token.

    The rationale stands behind the prompt and the failure. At weight 0 it is DPO.

    Source: preference learning with rationales (RDPO), [recall]. Ours: rationales are the verifiers' sentences on the
    failure, not a model's on both sides.

    Args:
        weight: Of the cross-entropy, 0 or above.
    """

    needs = ("rationale",)

    def __init__(self, weight: Annotated[float, Field(ge=0)] = 1.0):
        self.weight = weight

    def __call__(self, batch: Any) -> Any:
        tokens_B = (batch.rationale.turn_B_T >= 0).sum(dim=1).clamp(min=1)
        said_B = -batch.rationale.logps_B_T.sum(dim=1) / tokens_B
        return dpo_of(batch).mean() + self.weight * said_B.mean()


class Hypo:
    """DPO on the pairs, and the KL divergence to the reference on the policy's own samples.

    L = L_DPO + kl / 2 E_own (log pi / pi_ref)^2, sums over a sample's tokens. The second part's gradient is
    log (pi / pi_ref) grad log pi, which is that of KL(pi to pi_ref) on samples of pi. At kl 0 it is DPO.

    Source: HyPO (the importance of online data), [recall]: L_DPO + lambda sg(log pi / pi_ref) log pi on samples of the
    policy. Ours: the samples are the policy's at the stage's start, and the square, whose gradient is the same, stays
    bounded from below as the policy moves on from where it sampled.

    Args:
        kl: Weight of the divergence, 0 or above.
    """

    needs = ("own",)

    def __init__(self, kl: Annotated[float, Field(ge=0)] = 0.1):
        self.kl = kl

    def __call__(self, batch: Any) -> Any:
        return dpo_of(batch).mean() + self.kl / 2 * (batch.own.log_ratio_B**2).mean()


class Spac:
    """DPO against a critic: the chosen side's implicit reward is raised above that of the policy's own samples.

    L = L_DPO + weight beta E (log-ratio of the own sample - log-ratio of the chosen side). The implicit reward, beta
    log pi / pi_ref, is the critic's, which doubts whatever the policy does by itself. At weight 0 it is DPO.

    Source: SPAC: the game of a policy and its adversarial critic, in an abstract; the formula is [recall]. Ours: the
    samples were drawn just before the stage, once for each pair.

    Args:
        weight: Of the doubt, 0 or above.
    """

    needs = ("own",)

    def __init__(self, weight: Annotated[float, Field(ge=0)] = 0.1):
        self.weight = weight

    def __call__(self, batch: Any) -> Any:
        ahead_B = batch.own.log_ratio_B - batch.chosen.log_ratio_B
        return dpo_of(batch).mean() + self.weight * batch.beta * ahead_B.mean()
