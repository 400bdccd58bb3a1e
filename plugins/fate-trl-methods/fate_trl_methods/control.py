"""The family `control`: callbacks that steer PFPO while it trains, for a recipe's `pfpo.callbacks`, and budgets.

Callbacks that weigh objectives by their gradients stand in gradients.py, budgets in budgets.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fate_trl import Component, hookimpl, pareto
from fate_trl_methods.budgets import DOptimal, Knapsack, Submodular
from fate_trl_methods.common import means_by_objective
from fate_trl_methods.gradients import Attached, GradientWeights, MinNorm

fate_trl_api = 1

Positive = Annotated[float, Field(gt=0)]


class KlPid(Attached):
    """SAFE: the KL term grows where the smoothed divergence is above a threshold that follows the reward.

    kl_s = .9 kl_s + .1 kl. The threshold is base + PID(reward velocity - .001), within [low, high]; velocity is what a
    generation's mean score has over the last one's. Above it the penalty is weight (kl_s - threshold)^2 u,
    u = max(.5, floor / (entropy + .1)), and beta is what the recipe says plus the penalty's slope in kl_s.

    Source: SAFE (stable alignment finetuning), the authors' code for smoothing, threshold and penalty. Ours: the slope
    of the penalty in beta, as the KL term is TRL's, the entropy's floor, and no phases.

    Args:
        base: Threshold in nats by token, while the reward grows as it should.
        low, high: What it stays within.
        gains: Of the error, its sum and its change.
        weight: Of the penalty.
        floor: Entropy in nats by token, below which the penalty grows.
    """

    reference = True
    SMOOTHING, VELOCITY = 0.9, 0.001

    def __init__(
        self,
        base: Positive = 0.3,
        low: Positive = 0.1,
        high: Positive = 0.6,
        gains: tuple[float, float, float] = (0.3, 0.01, 0.05),
        weight: Positive = 0.1,
        floor: Positive = 0.5,
    ):
        self.base, self.low, self.high, self.gains = base, low, high, gains
        self.weight, self.floor = weight, floor
        self._state = {"kl": 0.0, "sum": 0.0, "error": 0.0, "threshold": base, "extra": 0.0}
        self._reward: float | None = None
        self._beta = 0.0

    def attach(self, trainer: Any) -> None:
        super().attach(trainer)
        self._beta = float(trainer.beta)
        trainer.beta = self._beta + self._state["extra"]

    def learn(self, scores_G_N_M: np.ndarray, *, objectives: Sequence[str], valid_G_N: np.ndarray) -> None:
        if np.isnan(scores_G_N_M).all():
            return
        mean = float(np.nanmean(scores_G_N_M))
        error = 0.0 if self._reward is None else mean - self._reward - self.VELOCITY
        state, (proportional, integral, derivative) = self._state, self.gains
        state["sum"] += error
        moved = proportional * error + integral * state["sum"] + derivative * (error - state["error"])
        state["threshold"] = float(np.clip(self.base + moved, self.low, self.high))
        self._reward, state["error"] = mean, error

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        measured, own = self.trainer.measured, self._state
        own["kl"] = self.SMOOTHING * own["kl"] + (1 - self.SMOOTHING) * measured["kl"]
        urgency = max(0.5, self.floor / (measured["entropy"] + 0.1))
        own["extra"] = 2 * self.weight * max(0.0, own["kl"] - own["threshold"]) * urgency
        self.trainer.beta = self._beta + own["extra"]

    def state_dict(self) -> dict[str, Any]:
        return {**self._state, "reward": self._reward}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._state = {name: float(state[name]) for name in self._state}
        self._reward = state["reward"]
        if self.trainer is not None:
            self.trainer.beta = self._beta + self._state["extra"]

    def metrics(self) -> dict[str, float]:
        beta = {"kl-pid/beta": self._beta + self._state["extra"]}
        return {**beta, "kl-pid/kl": self._state["kl"], "kl-pid/threshold": self._state["threshold"]}


class KlStop(Attached):
    """A trust region as a stop: a step is not taken from a policy that is too far away.

    Before each step the divergence is measured that the earlier ones came to, over the step's tokens. Where it is above
    the limit, the step's gradient is dropped. `since: start` measures from the policy as the stage found it, and then
    the stage ends; `since: sampled` from the policy that sampled, and then the rest of the updates on these samples is
    dropped, as early stopping in PPO does it.

    Source: TRPO's bound on the divergence [recall]; to stop in the place of a line search is ours.

    Args:
        limit: In nats by token.
        since: From where the divergence is measured; `start` needs pfpo.beta above 0.
    """

    def __init__(self, limit: Positive = 0.1, since: Literal["start", "sampled"] = "start"):
        self.limit, self.since = limit, since
        self.reference = since == "start"
        self._totals = np.zeros(2)
        self._far, self._kl, self._dropped = False, 0.0, 0

    def watch(self, batch: Any) -> None:
        ratio_B_T = batch.ratio_B_T.detach()
        gap_B_T = batch.ref_logps_B_T - batch.logps_B_T.detach() if self.since == "start" else None
        kl_B_T = ratio_B_T - ratio_B_T.log() - 1 if gap_B_T is None else gap_B_T.exp() - gap_B_T - 1
        self._totals += [(kl_B_T * batch.mask_B_T).sum().item(), batch.mask_B_T.sum().item()]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        total, tokens = self.over_processes(self._totals)
        self._totals = np.zeros(2)
        self._kl = total / max(tokens, 1.0)
        self._far = self._kl > self.limit
        if self._far:
            self._dropped += 1
            for parameter in self.trainer.model.parameters():
                parameter.grad = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= self._far and self.since == "start"

    def state_dict(self) -> dict[str, Any]:
        return {"dropped": self._dropped, "kl": self._kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._dropped, self._kl = int(state["dropped"]), float(state["kl"])

    def metrics(self) -> dict[str, float]:
        return {"kl-stop/kl": self._kl, "kl-stop/dropped": float(self._dropped)}


class HypervolumeWeights:
    """Dynamic reward weighting by hypervolume: what extends the front of mean scores is learned from more.

    gain is how much the generation's mean scores add to the hypervolume of those before it; the advantages are
    multiplied by .5 + 1.5 tanh(gain / scale). Points that add nothing are not kept. Other objectives begin anew.

    Source: dynamic reward weighting, the authors' code. Ours: the means are those of each generation of the training,
    there those of a validation. It acts on the advantages: a factor on the rewards would cancel where groups are
    divided by their deviation.

    Args:
        point: The reference, in every objective; scores at or below it add nothing.
        scale: Of the gain; the smaller, the more a small gain counts.
    """

    def __init__(self, point: float = 0.0, scale: Positive = 1.0):
        self.point, self.scale = point, scale
        self._names: list[str] = []
        self._front: list[list[float]] = []
        self._volume, self._factor = 0.0, 1.0

    def learn(self, scores_G_N_M: np.ndarray, *, objectives: Sequence[str], valid_G_N: np.ndarray) -> None:
        mean_M = means_by_objective(scores_G_N_M)
        if np.isnan(mean_M).any():  # an objective that applies nowhere in the generation says nothing of the front
            self._factor = 1.0
            return
        if list(objectives) != self._names:
            self._names, self._front, self._volume = list(objectives), [], 0.0
        every_N_M = np.array([*self._front, mean_M.tolist()])
        volume = pareto.hypervolume(every_N_M, np.full(len(mean_M), self.point))
        gain = volume - self._volume
        self._factor = 0.5 + 1.5 * float(np.tanh(gain / self.scale))
        if gain > 0:
            kept_N = pareto.first_front(every_N_M[None])[0]
            self._front, self._volume = every_N_M[kept_N].tolist(), volume

    def reshape(self, advantages: Any) -> Any:
        return advantages * self._factor

    def state_dict(self) -> dict[str, Any]:
        front = {"names": self._names, "front": self._front}
        return {**front, "volume": self._volume, "factor": self._factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._names, self._front = list(state["names"]), [list(map(float, point)) for point in state["front"]]
        self._volume, self._factor = float(state["volume"]), float(state["factor"])

    def metrics(self) -> dict[str, float]:
        return {"hypervolume-weights/factor": self._factor, "hypervolume-weights/volume": self._volume}


@hookimpl
def fate_trl_callbacks() -> list[Component]:
    return [
        Component("kl-pid", KlPid, "SAFE: beta follows the divergence and the reward"),
        Component("kl-stop", KlStop, "no step from a policy that is too far away"),
        Component("hypervolume-weights", HypervolumeWeights, "what extends the front is learned from more"),
        Component("gradient-weights", GradientWeights, "objectives weigh by how far their gradients agree"),
        Component("min-norm", MinNorm, "objectives weigh so that the step helps all of them"),
    ]


@hookimpl
def fate_trl_budgets() -> list[Component]:
    return [
        Component("knapsack", Knapsack, "tries go where they are worth most, by what earlier ones came to"),
        Component("d-optimal", DOptimal, "tries go to what is least like all that was tried"),
        Component("submodular", Submodular, "items that stand for the others, by quality; likes add nothing"),
    ]
