"""The family `losses`: policy losses, for a recipe's `pfpo.loss`, that change how advantages become an update.

Those that regress on rewards, over whole groups, stand in regressions.py. rho is a token's ratio, how much likelier it
has become since it was sampled, A the advantage, and epsilon and beta are the recipe's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fate_trl import KINDS, Component, RecipeError, Rows, hookimpl, nearest
from fate_trl_methods.regressions import AStarPo, Dro, Exo, P3o, Rebel, Trpa

fate_trl_api = 1

Share = Annotated[float, Field(ge=0)]


def clipped(batch: Any, low: Any = None, high: Any = None) -> Any:
    """PPO's clipped loss by token, (B, T): -min(rho A, clip(rho, 1 - low, 1 + high) A); epsilon where none is given."""
    from torch import minimum

    low = batch.epsilon_low if low is None else low
    high = batch.epsilon_high if high is None else high
    ratio_B_T, advantages_B_T = batch.ratio_B_T, batch.advantages_B_T
    bounded_B_T = ratio_B_T.clamp(1 - low, 1 + high)
    return -minimum(ratio_B_T * advantages_B_T, bounded_B_T * advantages_B_T) * batch.importance_B_T


def penalised(batch: Any, loss_B_T: Any, weight: Any = 1.0) -> Any:
    """The loss by token with `weight` times the KL term, where there is a reference."""
    return loss_B_T if batch.ref_logps_B_T is None else loss_B_T + batch.beta * weight * batch.kl_B_T


class Gbpo:
    """GBPO: |A| |rho - (1 + epsilon sign(R - median of the group))| by token.

    At rho = 1 its gradient is PPO's. Past its bound PPO's is 0, and here the ratio is pulled back with the same slope.
    A reward that is the group's median has the target 1.

    Source: bounded-ratio reinforcement learning, a published page. Ours: the rewards are the selector's, their median
    is taken when the group is whole, and the KL term is added where pfpo.beta is above 0.
    """

    def columns(
        self, scores_G_N_M: np.ndarray, *, reward_G_N: np.ndarray, objectives: Sequence[str], valid_G_N: np.ndarray
    ) -> Mapping[str, np.ndarray]:
        filled_G_N = np.where(valid_G_N.any(axis=1, keepdims=True), reward_G_N, 0.0)
        return {"side": np.sign(reward_G_N - np.nanmedian(filled_G_N, axis=1, keepdims=True))}

    def __call__(self, batch: Any) -> Any:
        side_B_1 = batch.columns["side"][:, None]
        target_B_1 = 1 + side_B_1.clamp(min=0) * batch.epsilon_high + side_B_1.clamp(max=0) * batch.epsilon_low
        loss_B_T = batch.advantages_B_T.abs() * (batch.ratio_B_T - target_B_1).abs() * batch.importance_B_T
        return batch.mean(penalised(batch, loss_B_T))


class HapoClip:
    """HAPO's clipping: PPO's, with bounds that follow the entropy of each token's distribution.

    h, in [-1, 1], is how far the logarithm of the entropy lies above the batch's median, in its standard deviations.
    Where h > 0 the upper bound is 1 + epsilon_high (1 + strength h); where it is below, the lower one is
    1 - epsilon_low (1 - strength h): uncertain tokens may rise more, certain ones fall more.

    Source: HAPO, the authors' code for the bounds; of its four parts this is one. Ours: median and deviation are those
    of the micro-batch, there they are running ones with a scale for each side.

    Args:
        strength: Of the adaptation, in [0, 1]; 0 is PPO.
    """

    def __init__(self, strength: Annotated[float, Field(ge=0, le=1)] = 1.0):
        self.strength = strength
        self._widened = 0.0

    def __call__(self, batch: Any) -> Any:
        high_B_T, low_B_T = self.bounds(batch)
        self._widened = float(batch.mean((high_B_T > batch.epsilon_high).float()))
        return batch.mean(penalised(batch, clipped(batch, low_B_T, high_B_T)))

    def bounds(self, batch: Any) -> tuple[Any, Any]:
        """How far a ratio may go above 1, and below, by token (B, T)."""
        log_B_T = batch.entropy_B_T.clamp(min=1e-6).log()
        counted = log_B_T[batch.mask_B_T.bool()]
        if counted.numel() < 2:
            return batch.epsilon_high + 0 * log_B_T, batch.epsilon_low + 0 * log_B_T
        h_B_T = ((log_B_T - counted.median()) / (counted.std() + 1e-6)).clamp(-1, 1) * self.strength
        return batch.epsilon_high * (1 + h_B_T.clamp(min=0)), batch.epsilon_low * (1 - h_B_T.clamp(max=0))

    def metrics(self) -> dict[str, float]:
        """Share of tokens whose upper bound is wider than epsilon."""
        return {"widened": self._widened}


class Dcpo:
    """DCPO: PPO, with a term that draws the entropy to a target by way of a warmer or cooler distribution.

    The term is -alpha rho tau, on rows whose advantage is above 0: REINFORCE with the weight tau, how much likelier a
    token is at temperature T than at 1, which does not pass a gradient. T is `warm` while the entropy of the batch is
    below its target, else `cool`: what is likelier when warm are the rare tokens.

    Source: DCPO, the authors' page (double importance sampling, a target of the entropy, REINFORCE as regulariser); the
    choice of the two temperatures [recall: of AEPO, its forerunner]. Ours: tau is of the policy as it is now, which is
    the one that sampled where updates are on-policy, and at most 10.

    Args:
        alpha: Size of the term; 0 is PPO.
        target: Entropy by token, in nats.
        warm, cool: Temperatures, above 1 and below.
    """

    logits = True
    MOST = 10.0

    def __init__(
        self,
        alpha: Share = 0.1,
        target: Annotated[float, Field(gt=0)] = 0.5,
        warm: Annotated[float, Field(gt=1)] = 1.2,
        cool: Annotated[float, Field(gt=0, lt=1)] = 0.8,
    ):
        self.alpha, self.target, self.warm, self.cool = alpha, target, warm, cool
        self._temperature = 1.0

    def __call__(self, batch: Any) -> Any:
        loss_B_T = penalised(batch, clipped(batch))
        if self.alpha == 0:
            return batch.mean(loss_B_T)
        self._temperature = self.warm if float(batch.mean(batch.entropy_B_T)) < self.target else self.cool
        better_B_T = (batch.advantages_B_T > 0) & batch.valid_B[:, None]
        pull_B_T = self.weights(batch, self._temperature) * batch.ratio_B_T * better_B_T
        return batch.mean(loss_B_T - self.alpha * pull_B_T)

    def weights(self, batch: Any, temperature: float) -> Any:
        """How much likelier each sampled token is at this temperature than at 1, (B, T)."""
        logits_B_T_V = batch.logits_B_T_V
        normal_B_T = logits_B_T_V.logsumexp(dim=-1)
        chosen_B_T = batch.logps_B_T.detach() + normal_B_T  # the sampled token's logit
        tempered_B_T = chosen_B_T / temperature - (logits_B_T_V / temperature).logsumexp(dim=-1)
        return (tempered_B_T - batch.logps_B_T.detach()).exp().clamp(max=self.MOST)

    def metrics(self) -> dict[str, float]:
        return {"temperature": self._temperature}


class KlByKind:
    """PPO with the KL term of each row times a factor by its kind of task: attacked tasks may move less, or more.

    Source: state-adaptive balances for offline-to-online RL [recall: the idea of a coefficient per state]; kinds of
    task in the place of states are ours.

    Args:
        factors: By kind (benign, attacked, harmful), 0 or above; 1 where none is given.
    """

    reference = True

    def __init__(self, factors: dict[str, Share]):
        unknown = [kind for kind in factors if kind not in KINDS]
        if unknown:
            raise RecipeError(
                f"factors: no kind {unknown[0]!r}{nearest(unknown[0], KINDS)} They are {', '.join(KINDS)}."
            )
        self.factors = factors

    def columns(
        self,
        scores_G_N_M: np.ndarray,
        *,
        reward_G_N: np.ndarray,
        objectives: Sequence[str],
        valid_G_N: np.ndarray,
        rows: Rows,
    ) -> Mapping[str, np.ndarray]:
        factor = np.vectorize(lambda kind: self.factors.get(kind, 1.0), otypes=[float])
        return {"factor": factor(rows.kind_G_N)}

    def __call__(self, batch: Any) -> Any:
        return batch.mean(penalised(batch, clipped(batch), batch.columns["factor"][:, None]))


class KlBySpread:
    """PPO with the KL term of each row times the variance among its judges: where they disagree, stay near.

    The variance is that of `Score.spread`, summed over the objectives that have one. With a spread of 0, or none, a row
    has no KL term.

    Source: uncertainty-aware RLHF [recall: mean - beta variance log-ratio]; the sum over objectives is ours.

    Args:
        scale: Of the variance, which is at most .25 for scores in [0, 1].
    """

    reference = True

    def __init__(self, scale: Annotated[float, Field(gt=0)] = 4.0):
        self.scale = scale

    def columns(
        self,
        scores_G_N_M: np.ndarray,
        *,
        reward_G_N: np.ndarray,
        objectives: Sequence[str],
        valid_G_N: np.ndarray,
        rows: Rows,
    ) -> Mapping[str, np.ndarray]:
        return {"factor": self.scale * np.nansum(rows.spread_G_N_M**2, axis=2)}

    def __call__(self, batch: Any) -> Any:
        return batch.mean(penalised(batch, clipped(batch), batch.columns["factor"][:, None]))


class PositiveNll:
    """PPO, and `weight` times the negative log-likelihood of the rows that are resolved.

    Source: VAPO, a published page (weight .1). Ours: a success is a row whose objectives all pass.

    Args:
        weight: Of the likelihood; 0 is PPO.
    """

    def __init__(self, weight: Share = 0.1):
        self.weight = weight
        self._share = 0.0

    def columns(
        self,
        scores_G_N_M: np.ndarray,
        *,
        reward_G_N: np.ndarray,
        objectives: Sequence[str],
        valid_G_N: np.ndarray,
        rows: Rows,
    ) -> Mapping[str, np.ndarray]:
        return {"resolved": rows.resolved_G_N}

    def __call__(self, batch: Any) -> Any:
        loss = batch.mean(penalised(batch, clipped(batch)))
        tokens_B_T = batch.mask_B_T * batch.columns["resolved"][:, None]
        self._share = float(batch.row_mean(batch.columns["resolved"]))
        return loss - self.weight * (batch.logps_B_T * tokens_B_T).sum() / tokens_B_T.sum().clamp(min=1.0)

    def metrics(self) -> dict[str, float]:
        """Share of rows that are resolved."""
        return {"resolved": self._share}


@hookimpl
def fate_trl_policy_losses() -> list[Component]:
    return [
        Component("gbpo", Gbpo, "GBPO: past its bound a ratio is pulled back"),
        Component("rebel", Rebel, "REBEL: gaps of log-ratios regress on gaps of rewards"),
        Component("p3o", P3o, "P3O: a policy gradient by pairs"),
        Component("dro", Dro, "DRO: rewards regress on log-ratios and a value of the prompt"),
        Component("a-star-po", AStarPo, "A*-PO: log-ratios regress on the optimal advantage"),
        Component("exo", Exo, "EXO: the group's distribution meets that of its rewards"),
        Component("trpa", Trpa, "TRPA: preferences between the levels of a group"),
        Component("hapo-clip", HapoClip, "HAPO's bounds, which follow the entropy of tokens"),
        Component("dcpo", Dcpo, "DCPO: the entropy is drawn to a target"),
        Component("kl-by-kind", KlByKind, "the KL term by kind of task"),
        Component("kl-by-spread", KlBySpread, "the KL term by how much judges disagree"),
        Component("positive-nll", PositiveNll, "VAPO's likelihood of successes"),
    ]
