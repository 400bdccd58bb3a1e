"""Policy losses of the family `losses` that take log-ratios of whole rows to meet rewards, or orders of rewards.

lr is the log of how much likelier a row has become, since it was sampled or against the reference; r its reward by the
selector. Groups are whole, and rows that are out take no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fate_trl import Rows

Positive = Annotated[float, Field(gt=0)]


def group_mean(values_B: Any, together_B_B: Any) -> Any:
    """Mean over the rows of each row's group, (B,); 0 for rows that are out."""
    same_B_B = together_B_B.to(values_B.dtype)
    return same_B_B @ values_B / same_B_B.sum(dim=1).clamp(min=1)


def centred_reward(reward_G_N: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    """Rewards less the mean of their group, so that a constant per prompt changes nothing, (G, N)."""
    filled_G_N = np.where(valid_G_N, reward_G_N, 0.0)
    count_G_1 = np.maximum(valid_G_N.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.where(valid_G_N, filled_G_N - filled_G_N.sum(axis=1, keepdims=True) / count_G_1, 0.0))


class Rebel:
    """REBEL: gaps of log-ratios regress on gaps of rewards, over all pairs of a group.

    The mean over pairs of (lr_i - lr_j - eta (r_i - r_j))^2, lr since the rows were sampled. Of N rows that is
    2 / (N - 1) times the sum of squares of e - mean of e, e = lr - eta r. It is 0 where the gaps agree.

    Source: REBEL, the authors' code; that the sum over pairs separates is derived. Ours: all pairs of a group, not one.

    Args:
        eta: Log-ratio per unit of reward; the larger, the further a step may go.
    """

    whole_groups = True

    def __init__(self, eta: Positive = 1.0):
        self.eta = eta

    def columns(
        self, scores_G_N_M: np.ndarray, *, reward_G_N: np.ndarray, objectives: Sequence[str], valid_G_N: np.ndarray
    ) -> Mapping[str, np.ndarray]:
        return {"reward": centred_reward(reward_G_N, valid_G_N)}

    def __call__(self, batch: Any) -> Any:
        together_B_B = batch.together_B_B
        error_B = batch.log_ratio_B - self.eta * batch.columns["reward"]
        others_B = (together_B_B.sum(dim=1) - 1).clamp(min=1)
        return batch.row_mean(2 * (error_B - group_mean(error_B, together_B_B)) ** 2 * (others_B + 1) / others_B)


class P3o:
    """P3O: the policy gradient of pairs, -(r_i - r_j) / 2 w (lr_i - lr_j), the mean over all pairs of a group.

    w, without a gradient, is the product of the two rows' ratios since they were sampled. It is clipped to
    [1 - epsilon_low, 1 + epsilon_high], each ratio for itself (`separate`) or the product (`joint`).

    Source: P3O [recall]. Ours: all pairs of a group.

    Args:
        clip: What is clipped.
    """

    whole_groups = True

    def __init__(self, clip: Literal["joint", "separate"] = "joint"):
        self.clip = clip

    def __call__(self, batch: Any) -> Any:
        ratio_B = batch.log_ratio_B
        weight_B = ratio_B.detach().exp()
        low, high = 1 - batch.epsilon_low, 1 + batch.epsilon_high
        if self.clip == "separate":
            weight_B = weight_B.clamp(low, high)
        weight_B_B = weight_B[:, None] * weight_B
        if self.clip == "joint":
            weight_B_B = weight_B_B.clamp(low, high)
        gaps_B_B = batch.reward_B[:, None] - batch.reward_B
        pairs_B_B = batch.together_B_B.triu(diagonal=1)
        moved_B_B = ratio_B[:, None] - ratio_B
        return -(pairs_B_B * weight_B_B * gaps_B_B / 2 * moved_B_B).sum() / pairs_B_B.sum().clamp(min=1)


class Dro:
    """DRO: 1/2 (r - V - beta lr)^2, lr against the reference, V what the prompt is worth.

    V is the mean of r - beta lr over the group, which makes the sum least. At the optimum it is
    beta log mean exp(r / beta), over the reference's rows.

    Source: DRO [recall]; the value in closed form over a group, in the place of a network, is derived.
    """

    whole_groups = True
    reference = True

    def __call__(self, batch: Any) -> Any:
        rest_B = batch.reward_B - batch.beta * batch.ref_log_ratio_B
        return batch.row_mean((rest_B - self.values(batch)) ** 2 / 2)

    def values(self, batch: Any) -> Any:
        """V of each row's prompt, (B,); without a gradient, as it is least there."""
        rest_B = batch.reward_B - batch.beta * batch.ref_log_ratio_B.detach()
        return group_mean(rest_B, batch.together_B_B)


class AStarPo:
    """A*-PO: (beta lr - (r - V))^2, lr against the reference, V the optimal value of the prompt.

    V = temperature log mean exp(r / temperature), over the group.

    Source: A*-PO, the code of TRL's A2PO. Ours: TRL estimates V once, from the reference's rows; here the group's stand
    for these, which they are when a stage begins.

    Args:
        temperature: Of V (beta1 there).
    """

    reference = True

    def __init__(self, temperature: Positive = 0.5):
        self.temperature = temperature

    def columns(
        self, scores_G_N_M: np.ndarray, *, reward_G_N: np.ndarray, objectives: Sequence[str], valid_G_N: np.ndarray
    ) -> Mapping[str, np.ndarray]:
        scaled_G_N = np.where(valid_G_N, reward_G_N, -np.inf) / self.temperature
        most_G_1 = np.where(valid_G_N.any(axis=1, keepdims=True), scaled_G_N.max(axis=1, keepdims=True), 0.0)
        mean_G_1 = np.exp(scaled_G_N - most_G_1).sum(axis=1, keepdims=True)
        mean_G_1 = mean_G_1 / np.maximum(valid_G_N.sum(axis=1, keepdims=True), 1)
        value_G_1 = self.temperature * (most_G_1 + np.log(np.maximum(mean_G_1, 1e-300)))
        return {"value": np.broadcast_to(value_G_1, valid_G_N.shape)}

    def __call__(self, batch: Any) -> Any:
        advantage_B = batch.reward_B - batch.columns["value"]
        return batch.row_mean((batch.beta * batch.ref_log_ratio_B - advantage_B) ** 2)


class Exo:
    """EXO: KL(p || q) of a group, p = softmax(beta lr) against the reference, q = softmax(r / temperature).

    Of two rows it is TRL's `exo_pair`, with a label smoothing of q's lesser share. It is at rest where p = q.

    Source: EXO (efficient exact optimisation), the authors' code for rewards. Ours: the mean over groups.

    Args:
        temperature: Of the rewards (beta_r there).
    """

    whole_groups = True
    reference = True

    def __init__(self, temperature: Positive = 0.5):
        self.temperature = temperature

    def __call__(self, batch: Any) -> Any:
        together_B_B = batch.together_B_B
        log_p_B = _log_share(batch.beta * batch.ref_log_ratio_B, together_B_B)
        log_q_B = _log_share(batch.reward_B / self.temperature, together_B_B)
        members_B = together_B_B.sum(dim=1).clamp(min=1)  # each group's sum counts once
        groups = (batch.valid_B / members_B).sum().clamp(min=1)
        return (batch.valid_B * log_p_B.exp() * (log_p_B - log_q_B)).sum() / groups


def _log_share(values_B: Any, together_B_B: Any) -> Any:
    """Logarithm of each row's softmax among its group, (B,); 0 for rows that are out."""
    among_B_B = values_B[None, :].masked_fill(~together_B_B, -1e30)
    total_B = among_B_B.logsumexp(dim=1)
    return (values_B - total_B).masked_fill(~together_B_B.any(dim=1), 0.0)


class Trpa:
    """TRPA: -log sigma(kappa beta (s_i - s_j)) over all pairs of a group whose row i is on a higher level than j.

    s is a row's mean log-ratio to the reference by token, and kappa 2.5 where i is on the top level, else 1. In a group
    of one level it is -log sigma(s) of rows on the top level, and -log sigma(-s) of others.

    Source: TRPA, the authors' code. Ours: levels are the order of the selector's rewards, so their size does nothing;
    the top level is that of rows whose objectives all pass; the mean is over each group's pairs, then over groups.

    Args:
        kappa: How much more the top level counts.
    """

    whole_groups = True
    reference = True

    def __init__(self, kappa: Positive = 2.5):
        self.kappa = kappa

    def columns(
        self,
        scores_G_N_M: np.ndarray,
        *,
        reward_G_N: np.ndarray,
        objectives: Sequence[str],
        valid_G_N: np.ndarray,
        rows: Rows,
    ) -> Mapping[str, np.ndarray]:
        level_G_N = np.zeros(valid_G_N.shape)
        for level_N, reward_N, valid_N in zip(level_G_N, reward_G_N, valid_G_N, strict=True):
            level_N[valid_N] = np.unique(reward_N[valid_N], return_inverse=True)[1]
        return {"level": level_G_N, "top": rows.resolved_G_N}

    def __call__(self, batch: Any) -> Any:
        from torch.nn.functional import logsigmoid

        together_B_B, top_B = batch.together_B_B, batch.columns["top"]
        level_B = batch.columns["level"]
        score_B = batch.ref_log_ratio_B / batch.mask_B_T.sum(dim=1).clamp(min=1)
        above_B_B = together_B_B & (level_B[:, None] > level_B)
        kappa_B_1 = 1 + (self.kappa - 1) * top_B[:, None]
        pairs_B_B = -logsigmoid(kappa_B_1 * batch.beta * (score_B[:, None] - score_B))
        alone_B = -logsigmoid((2 * top_B - 1) * score_B)
        pairs_in_B = (together_B_B.to(score_B.dtype) @ above_B_B.sum(dim=1).to(score_B.dtype)).clamp(min=1)
        ordered_B = (together_B_B & above_B_B.any(dim=1)).any(dim=1)
        members_B = together_B_B.sum(dim=1).clamp(min=1)
        of_row_B = (above_B_B * pairs_B_B).sum(dim=1) / pairs_in_B + ~ordered_B * alone_B / members_B
        groups = (batch.valid_B / members_B).sum().clamp(min=1)
        return (batch.valid_B * of_row_B).sum() / groups
