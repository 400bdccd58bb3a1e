"""Advantages whose baseline is another rollout, not a statistic of the group."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fate_trl import RecipeError

from .common import Advantages, Batch


class ReMax(Advantages):
    """ReMax: a row's reward less that of the policy's greedy answer to the prompt; no division by a deviation.

    A_i = R(y_i) - R(y_greedy). The greedy answer is the first row of the group, and not trained on. Where it broke,
    its group has no baseline, and no advantages.

    Source: ReMax, the formula is [recall]. Ours: several rows share one greedy answer, and several objectives count by
    their weighted mean, or by the rewards of a `base`.
    """

    orders: ClassVar[bool] = False  # the first row gets 0, whatever it scores

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._base is not None and not hasattr(self._base, "reward"):
            raise RecipeError(f"base: {self.base} sets advantages, and remax needs rewards; take another, or none.")

    @property
    def greedy_row(self) -> bool:
        return True

    def _advantages(self, batch: Batch) -> np.ndarray:
        counts_G_N = batch.valid_G_N & batch.valid_G_N[:, :1]
        return np.where(counts_G_N, batch.reward_G_N - batch.reward_G_N[:, :1], 0.0)
