"""Batches for policy losses, of log-probabilities that are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fate_trl.hookspecs import PolicyBatch, takes_rows


def batch_of(
    logps: Any,
    reward: Any = None,
    *,
    advantages: Any = None,
    old: Any = None,
    ref: Any = 0.0,
    groups: int = 1,
    valid: Any = None,
    mask: Any = None,
    beta: float = 0.1,
    loss: Any = None,
    scores: Any = None,
    rows: Any = None,
    **more: Any,
) -> PolicyBatch:
    """B rows of T tokens in `groups` groups; a loss with `columns` is asked for them, as the trainer does it.

    Without `old` updates are on-policy. The reference gives each token the log-probability `ref`; None is no reference.
    """
    logps_B_T = torch.as_tensor(logps, dtype=torch.float64)
    logps_B_T = logps_B_T if logps_B_T.requires_grad else logps_B_T.clone().requires_grad_()
    rows_B, width = logps_B_T.shape
    reward_B = torch.zeros(rows_B) if reward is None else torch.as_tensor(reward)
    reward_B = reward_B.to(torch.float64)
    valid_B = torch.ones(rows_B, dtype=bool) if valid is None else torch.as_tensor(valid)
    mask_B_T = torch.ones(rows_B, width, dtype=torch.int) if mask is None else torch.as_tensor(mask)
    old_B_T = logps_B_T.detach() if old is None else torch.as_tensor(old, dtype=torch.float64).expand(rows_B, width)
    group_B = torch.arange(rows_B) // (rows_B // groups)
    if advantages is None:
        advantages = reward_B - torch.stack([reward_B[group_B == g].mean() for g in group_B])
    columns = {}
    if hasattr(loss, "columns"):
        shape = (groups, rows_B // groups)
        valid_G_N = valid_B.numpy().reshape(shape)
        reward_G_N = np.where(valid_G_N, reward_B.numpy().reshape(shape), np.nan)
        scores_G_N_M = np.asarray(scores, float) if scores is not None else reward_G_N[:, :, None]
        facts = {"rows": rows} if takes_rows(loss.columns) else {}
        names = ["security", "utility"][: scores_G_N_M.shape[2]]
        said = loss.columns(scores_G_N_M, reward_G_N=reward_G_N, objectives=names, valid_G_N=valid_G_N, **facts)
        columns = {
            name: torch.tensor(np.where(valid_G_N, values, 0.0).reshape(-1), dtype=torch.float64)
            for name, values in said.items()
        }
    defaults = {"entropy_B_T": torch.ones_like(logps_B_T.detach()), "epsilon_low": 0.2, "epsilon_high": 0.2}
    return PolicyBatch(
        logps_B_T=logps_B_T,
        old_logps_B_T=old_B_T,
        mask_B_T=mask_B_T,
        advantages_B_T=torch.as_tensor(advantages, dtype=torch.float64).reshape(rows_B, -1),
        reward_B=torch.where(valid_B, reward_B, 0.0),
        valid_B=valid_B,
        columns=columns,
        beta=beta if ref is not None else 0.0,
        importance_B_T=torch.ones(rows_B, 1),
        ref_logps_B_T=None if ref is None else torch.full_like(logps_B_T.detach(), ref),
        group_B=group_B,
        **{**defaults, **more},
    )


def slope(loss: Any, given: PolicyBatch) -> torch.Tensor:
    """Gradient of the loss by the log-probability of each token, (B, T)."""
    (gradient,) = torch.autograd.grad(loss(given), given.logps_B_T, retain_graph=True)
    return gradient


class Ppo:
    """PPO on the rewards as they are, without a baseline."""

    def __call__(self, batch: PolicyBatch) -> Any:
        ratio_B_T, reward_B_1 = batch.ratio_B_T, batch.reward_B[:, None]
        clipped_B_T = ratio_B_T.clamp(1 - batch.epsilon_low, 1 + batch.epsilon_high)
        return -batch.mean(torch.minimum(ratio_B_T * reward_B_1, clipped_B_T * reward_B_1))


def ppo(given: PolicyBatch) -> Any:
    """PPO on the advantages."""
    from fate_trl_methods.losses import clipped

    return given.mean(clipped(given))
