"""Callbacks of the family `control` that weigh objectives by their gradients, and what those of the family share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fate_trl import RecipeError
from fate_trl_methods.common import standardised

Rate = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Attached:
    """A callback that knows its trainer while that trains."""

    trainer: Any = None

    def attach(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer = None  # its optimizer's memory is let go

    def over_processes(self, values: np.ndarray) -> np.ndarray:
        """The sum of the processes' values."""
        import torch

        accelerator = self.trainer.accelerator
        own = torch.tensor(values, device=accelerator.device, dtype=torch.float32)
        return np.asarray(accelerator.reduce(own, reduction="sum").cpu().numpy(), float)


class _Gradients(Attached, ABC):
    """Weights of the objectives, on the simplex, from the gradient of each one's policy loss.

    The loss of an objective is that of its scores, standardised in their groups, on the last block's parameters. One
    backward pass of that block per objective and micro-batch.
    """

    weighs = True

    def __init__(self, rate: float, every: int):
        self.rate, self.every = rate, every
        self._weights: dict[str, float] = {}
        self._said: np.ndarray | None = None
        self._steps = 0
        self._flat: Any = None

    @abstractmethod
    def _say(self, gram_K_K: np.ndarray) -> np.ndarray:
        """What one step's inner products say, (K,)."""

    @abstractmethod
    def _next(self, weights_K: np.ndarray, said_K: np.ndarray) -> np.ndarray:
        """Weights after what `every` steps said on average."""

    def attach(self, trainer: Any) -> None:
        super().attach(trainer)
        given = [float(weight) for weight in trainer.reward_weights]
        if min(given) <= 0:
            raise RecipeError(
                f"{type(self).__name__} sets weights above 0, and a weight of an objective is {min(given)}."
            )
        if set(self._weights) != set(trainer.objectives):
            self._weights = {n: w / sum(given) for n, w in zip(trainer.objectives, given, strict=True)}
        self._set()

    def _set(self) -> None:
        """Their sum is the number of objectives, as where each weighs 1."""
        values = [self._weights[name] * len(self._weights) for name in self.trainer.objectives]
        self.trainer.reward_weights = self.trainer.reward_weights.new_tensor(values)

    def columns(
        self, scores_G_N_M: np.ndarray, *, reward_G_N: np.ndarray, objectives: Sequence[str], valid_G_N: np.ndarray
    ) -> Mapping[str, np.ndarray]:
        applies_G_N_M = ~np.isnan(scores_G_N_M)
        return {
            name: standardised(np.nan_to_num(scores_G_N_M[:, :, m]), applies_G_N_M[:, :, m])
            for m, name in enumerate(objectives)
        }

    def watch(self, batch: Any) -> None:
        import torch

        parameters = last_block(self.trainer.model)
        flat = []
        for name in self.trainer.objectives:
            loss = -batch.mean(batch.ratio_B_T * batch.columns[name][:, None])
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            pairs = zip(found, parameters, strict=True)
            flat.append(torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1).float() for g, p in pairs]))
        gradients_K_P = torch.stack(flat)
        self._flat = gradients_K_P if self._flat is None else self._flat + gradients_K_P

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        gradients_K_P = self.trainer.accelerator.reduce(self._flat, reduction="mean").double()
        self._flat = None
        said_K = self._say((gradients_K_P @ gradients_K_P.T).cpu().numpy())
        self._said = said_K if self._said is None else self._said + said_K
        self._steps += 1
        if self._steps == self.every:
            weights_K = np.array([self._weights[name] for name in self.trainer.objectives])
            next_K = self._next(weights_K, self._said / self.every)
            self._weights = dict(zip(self.trainer.objectives, next_K.tolist(), strict=True))
            self._said, self._steps = None, 0
            self._set()

    def state_dict(self) -> dict[str, Any]:
        said = None if self._said is None else self._said.tolist()
        return {"weights": self._weights, "said": said, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights = {str(name): float(weight) for name, weight in state["weights"].items()}
        self._said = None if state["said"] is None else np.array(state["said"])
        self._steps = int(state["steps"])
        if self.trainer is not None and self._weights:
            self._set()

    def metrics(self) -> dict[str, float]:
        name = re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()
        return {f"{name}/{objective}": weight for objective, weight in self._weights.items()}


def last_block(model: Any) -> list[Any]:
    """Trained parameters of the model's last block; all trained ones where its blocks have no numbers."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    numbers = {name: int(found[1]) for name in trained if (found := re.search(r"\.(\d+)\.", name))}
    last = max(numbers.values(), default=None)
    return [p for name, p in trained.items() if last is None or numbers.get(name) == last]


class GradientWeights(_Gradients):
    """Dynamic reward weighting by gradients: log w_k += rate u_k / mean |u|, u_k the sum over j of <g_k, g_j>.

    g_k is the gradient of the policy loss by objective k alone. So what agrees with the others gains weight, and what
    pulls against them loses it.

    Source: dynamic reward weighting, the authors' code. Ours: the size of u is taken out by its mean, and the weights
    are not annealed.

    Args:
        rate: Of a step of the weights, in (0, 1].
        every: Training steps over which u is averaged.
    """

    def __init__(self, rate: Rate = 0.1, every: Count = 1):
        super().__init__(rate, every)

    def _say(self, gram_K_K: np.ndarray) -> np.ndarray:
        return np.asarray(gram_K_K.sum(axis=1))

    def _next(self, weights_K: np.ndarray, said_K: np.ndarray) -> np.ndarray:
        size = np.abs(said_K).mean()
        raised_K = weights_K * np.exp(self.rate * said_K / size) if size > 0 else weights_K
        return np.asarray(raised_K / raised_K.sum())


class MinNorm(_Gradients):
    """MGDA: the weights on the simplex whose weighted gradient is shortest; a step along it helps every objective.

    Gradients are divided by their lengths first. The weights move by `rate` towards the shortest.

    Source: multiple gradient descent, by Frank-Wolfe as in multi-task learning as multi-objective optimisation
    [recall]; that lengths are taken out, and the running weights, are ours.

    Args:
        rate: Of the way to the shortest at each update, in (0, 1].
        every: Training steps over which the inner products are averaged.
    """

    def __init__(self, rate: Rate = 0.2, every: Count = 1):
        super().__init__(rate, every)

    def _say(self, gram_K_K: np.ndarray) -> np.ndarray:
        length_K = np.sqrt(np.maximum(np.diag(gram_K_K), 1e-24))
        return np.asarray(gram_K_K / (length_K[:, None] * length_K))

    def _next(self, weights_K: np.ndarray, said_K: np.ndarray) -> np.ndarray:
        return np.asarray((1 - self.rate) * weights_K + self.rate * shortest(said_K))


def shortest(gram_K_K: np.ndarray, steps: int = 200) -> np.ndarray:
    """Weights on the simplex that make w^T G w least, (K,), by Frank-Wolfe with exact line search."""
    weights_K = np.full(len(gram_K_K), 1 / len(gram_K_K))
    for _ in range(steps):
        along_K = gram_K_K @ weights_K
        corner = int(np.argmin(along_K))
        gap = weights_K @ along_K - along_K[corner]
        curve = weights_K @ along_K - 2 * along_K[corner] + gram_K_K[corner, corner]
        if gap <= 1e-12 or curve <= 0:
            break
        step = min(1.0, gap / curve)
        weights_K = (1 - step) * weights_K
        weights_K[corner] += step
    return weights_K
