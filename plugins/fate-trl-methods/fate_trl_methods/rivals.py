"""Later rivals: other ways to make one advantage of several objectives. Formulas from abstracts say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from fate_trl import RecipeError

from .common import SMALL, Advantages, Batch, Learning, averaged, centred, standardised


def _columns(batch: Batch, scores_G_N_M: np.ndarray) -> np.ndarray:
    """Each objective standardised in its group, (G, N, M); 0 where it does not apply."""
    known_G_N_M = ~np.isnan(scores_G_N_M)
    columns = [
        standardised(np.nan_to_num(scores_G_N_M[:, :, m]), known_G_N_M[:, :, m] & batch.valid_G_N)
        for m in range(scores_G_N_M.shape[2])
    ]
    return np.stack(columns, axis=2)


def _scaled(said_G_N: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    """By the whole batch's standard deviation, as GDPO ends."""
    values = said_G_N[valid_G_N]
    return said_G_N / (values.std() + SMALL) if len(values) else said_G_N


@dataclass
class Conditioned(Advantages):
    """GDPO with a conditioned reward: an easy objective counts only in rows that pass the hard one.

    Objectives other than `hard` are 0 in rows whose hard score is below `at` (or what they are, if below 0). Then GDPO:
    each objective standardised in its group, the weighted sum by the batch's standard deviation.

    Source: GDPO's abstract and its normalisation as TRL has it; the batch's mean is not taken off (ours), it is 0
    already.

    Attributes:
        hard: The objective that must be passed.
        at: From which score on it is.
        easy: What it conditions; by default every other objective.
    """

    hard: str = "security"
    at: float = 1.0
    easy: list[str] | None = None

    whole_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.easy is not None and self.hard in self.easy:
            raise RecipeError(f"conditioned: {self.hard!r} cannot condition itself; take it out of easy.")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.hard, *(self.easy or ()))

    def _advantages(self, batch: Batch) -> np.ndarray:
        missed_G_N = batch.column(self.hard) < self.at
        scores_G_N_M = batch.scores_G_N_M.copy()
        for m, name in enumerate(batch.objectives):
            if name != self.hard and (self.easy is None or name in self.easy):
                column = scores_G_N_M[:, :, m]
                scores_G_N_M[:, :, m] = np.where(missed_G_N, np.minimum(column, 0.0), column)
        summed_G_N = (_columns(batch, scores_G_N_M) * batch.weights_M).sum(axis=2)
        return _scaled(summed_G_N, batch.valid_G_N)


@dataclass
class GD2PO(Advantages):
    """GDPO without rows whose objectives disagree: one normalised advantage above 0 and one below masks the row.

    A group counts by the share of its rows that agree, so prompts where the objectives pull apart count for less.

    Source: GD2PO's abstract (2606.16771): masked rollouts and reweighted queries; the weight of a query is ours.

    Attributes:
        least: Size of a normalised advantage from which on it counts as a sign.
    """

    least: Annotated[float, Field(ge=0)] = 1e-6

    whole_batch: ClassVar[bool] = True

    def _advantages(self, batch: Batch) -> np.ndarray:
        columns_G_N_M = _columns(batch, batch.scores_G_N_M) * (batch.weights_M > 0)
        torn_G_N = (columns_G_N_M > self.least).any(axis=2) & (columns_G_N_M < -self.least).any(axis=2)
        count_G_1 = np.maximum(batch.valid_G_N.sum(axis=1, keepdims=True), 1)
        agreed_G_1 = 1 - (torn_G_N & batch.valid_G_N).sum(axis=1, keepdims=True) / count_G_1
        summed_G_N = agreed_G_1 * np.where(torn_G_N, 0.0, (columns_G_N_M * batch.weights_M).sum(axis=2))
        return _scaled(summed_G_N, batch.valid_G_N)


@dataclass
class CorrGRPO(Advantages):
    """The sum of standardised objectives, by the standard deviation that their correlations give it.

    A = sum of w_k z_k / sqrt(w' C w), with C the correlations of the z over the batch. Objectives that say the same
    count once, not as often as they are named.

    Source: CorrGRPO's abstract (2609.36820): the summed reward normalised by the rewards' correlations; the formula is
    derived.

    Attributes:
        floor: Least variance of the sum, as a share of that of uncorrelated objectives.
    """

    floor: Annotated[float, Field(gt=0, le=1)] = 0.05

    whole_batch: ClassVar[bool] = True

    def _advantages(self, batch: Batch) -> np.ndarray:
        columns_G_N_M = _columns(batch, batch.scores_G_N_M)
        summed_G_N = (columns_G_N_M * batch.weights_M).sum(axis=2)
        variance = self._variance(columns_G_N_M[batch.valid_G_N], batch.weights_M)
        return np.asarray(summed_G_N / np.sqrt(variance))

    def _variance(self, columns_R_M: np.ndarray, weights_M: np.ndarray) -> float:
        """w' C w over the objectives that vary; 1 where none does."""
        size_M = np.sqrt((columns_R_M**2).sum(axis=0))
        moving_M = (size_M > 1e-9) & (weights_M > 0)
        if not moving_M.any():
            return 1.0
        unit_R_M, weights = columns_R_M[:, moving_M] / size_M[moving_M], weights_M[moving_M]
        found = float(weights @ (unit_R_M.T @ unit_R_M) @ weights)
        return max(found, self.floor * float((weights**2).sum()))


@dataclass
class SAW(Learning):
    """Weights by the coefficient of variation: an objective counts as far as it still varies.

    The weight of objective k is its standard deviation by its mean's size over the batch, as a running mean, by the sum
    over all; the advantage is the weighted sum of the objectives less their group's means, times their number.

    Source: SAW's abstract (2606.07705): weights by the coefficient of variation; the running mean is ours.

    Attributes:
        rate: Of the running means.
        floor: Added to the mean's size.
    """

    rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    floor: Annotated[float, Field(gt=0)] = 0.01

    whole_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._variation: dict[str, float] = {}

    def _found(self, batch: Batch) -> dict[str, float]:
        """Coefficient of variation by objective, of this batch."""
        out = {}
        for m, name in enumerate(batch.objectives):
            values = batch.scores_G_N_M[:, :, m]
            values = values[~np.isnan(values)]
            if len(values):
                out[name] = float(values.std() / (abs(values.mean()) + self.floor))
        return out

    def shares(self, batch: Batch) -> np.ndarray:
        """Weights (M,) that sum to 1, by the running coefficients; alike where nothing varies."""
        now = self._found(batch)
        found_M = np.array([self._variation.get(name, now.get(name, 0.0)) for name in batch.objectives])
        found_M = found_M * (batch.weights_M > 0)
        return found_M / found_M.sum() if found_M.sum() > 0 else np.full(len(found_M), 1 / len(found_M))

    def _advantages(self, batch: Batch) -> np.ndarray:
        said_G_N = np.zeros(batch.valid_G_N.shape)
        for m, share in enumerate(self.shares(batch) * len(batch.objectives)):
            known_G_N = batch.valid_G_N & ~np.isnan(batch.scores_G_N_M[:, :, m])
            column_G_N = np.nan_to_num(batch.scores_G_N_M[:, :, m])
            said_G_N += share * batch.weights_M[m] * centred(column_G_N, known_G_N)
        return said_G_N

    def _learn(self, batch: Batch) -> None:
        for name, found in self._found(batch).items():
            self._variation[name] = averaged(self._variation.get(name), found, self.rate)

    def state_dict(self) -> dict[str, Any]:
        return {"variation": dict(self._variation)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._variation = {name: float(value) for name, value in state["variation"].items()}

    def metrics(self) -> dict[str, float]:
        return {f"variation/{name}": value for name, value in self._variation.items()}
