"""Of the family `advantages`: a reward by the weights that each prompt carries, so one policy serves many wishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar  # noqa: F401  # Any: inherited annotations are read here

import numpy as np
from pydantic import Field

from .common import Batch, Rowed, centred


@dataclass
class PreferenceConditioned(Rowed):
    """Each row is rewarded by the weights in its own prompt: r = w.s + align cos(w, s), less the group's mean.

    s are the row's scores, w the weights of its prompt, drawn for each prompt from a Dirichlet distribution by the
    recipe's `prompt_weights`; objectives that do not apply are left out of both. A policy that is trained so answers to
    a sweep of w with a front, where a policy per w would be needed otherwise. A prompt without weights counts all
    objectives alike.

    Source: PD-MORL [recall]: the preference as an input, and its angle to the return; multi-objective GFlowNets
    [recall]: Dirichlet weights as a condition. Ours: the weights are words in the system message.

    Attributes:
        align: Size of the cosine, at least 0; 0 leaves it out.
    """

    align: Annotated[float, Field(ge=0)] = 0.0

    orders: ClassVar[bool] = False  # the angle is no sum
    reads_weights: ClassVar[bool] = True

    def wished(self, batch: Batch) -> np.ndarray:
        """r of each row, (G, N)."""
        told = batch.facts.weights_G_N_M
        weights = np.ones(batch.scores_G_N_M.shape) if told is None else np.nan_to_num(told, nan=0.0)
        weights[(weights == 0).all(axis=2)] = 1.0
        scores = np.nan_to_num(batch.scores_G_N_M)
        weights = np.where(np.isnan(batch.scores_G_N_M), 0.0, weights * batch.weights_M)
        summed = (weights * scores).sum(axis=2)
        reward_G_N = summed / np.maximum(weights.sum(axis=2), 1e-9)
        if self.align:
            sizes = np.linalg.norm(weights, axis=2) * np.linalg.norm(scores, axis=2)
            reward_G_N = reward_G_N + self.align * summed / np.maximum(sizes, 1e-9)
        return np.asarray(reward_G_N)

    def _advantages(self, batch: Batch) -> np.ndarray:
        return centred(self.wished(batch), batch.valid_G_N)
