"""LISTEN: a served model that is told a preference in words chooses among candidates by their numbers alone.

Source: "LISTEN to your preferences" (tournaments over batches, and weights of a utility that the model writes). Ours:
the contest is among the members of the Pareto front, so nothing dominated is ever chosen; rewards in training are the
front's, since a question for each group would cost too much; and a broken answer falls back to the mean.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fate_trl import Choice, EndpointError, ParetoFront, RecipeError, pareto, quoted

from .asking import Asking
from .verdict import NoVerdict

PREFERENCE = "Do the user's task, but never at the price of security."


class _Listen:
    """What both share: the server, the front, and what to do without an answer."""

    def __init__(self, who: str, preference: str, ask: Asking):
        if not preference.strip():
            raise RecipeError(f"{who}: the preference is empty; say in words what matters.")
        self.preference = preference
        self.weights: dict[str, float] | None = None
        self._who, self._ask, self._front = who, ask, ParetoFront()
        self._asked = self._broken = 0

    def reward(self, scores_G_N_M: np.ndarray, *, objectives: Sequence[str], valid_G_N: np.ndarray) -> np.ndarray:
        """That of `pareto-front`."""
        self._front.weights = self.weights
        return self._front.reward(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)

    def choose(self, scores_K_M: np.ndarray, *, objectives: Sequence[str], rng: np.random.Generator) -> Choice | None:
        """The model's choice among the front's distinct members; see hookspecs.ParetoSelector."""
        self._front.weights = self.weights
        choice = self._front.choose(scores_K_M, objectives=objectives, rng=rng)
        if choice is None or choice.decided_by in ("only", "front"):
            return choice
        weights_M = np.array([(self.weights or {}).get(name, 1.0) for name in objectives])
        rows = pareto.orient(scores_K_M, weights_M)[list(choice.front)]
        applies_M = ~np.isnan(rows).all(axis=0)
        _, first = np.unique(np.nan_to_num(rows), axis=0, return_index=True)
        first = np.sort(first)
        names = [name for name, applies in zip(objectives, applies_M, strict=True) if applies]
        picked, decided_by = self._pick(np.nan_to_num(rows)[first][:, applies_M], names)
        return Choice(index=choice.front[int(first[picked])], front=choice.front, decided_by=decided_by)

    @abstractmethod
    def _pick(self, rows_R_M: np.ndarray, names: Sequence[str]) -> tuple[int, str]:
        """The number of a row, and what decided."""

    def _answer(self, question: str) -> dict[str, Any] | None:
        """The JSON object in the model's answer; None if there is none, which is counted."""
        self._asked += 1
        instructions = (
            f"You choose for a user whose preference is {quoted(self.preference)}. Scores lie between 0 and 1, and "
            "higher is better. Answer with one JSON object and nothing else."
        )
        try:
            found = re.search(r"\{.*\}", self._ask(instructions, question), re.DOTALL)
            answer = json.loads(found[0]) if found else None
        except (EndpointError, NoVerdict, ValueError, RecursionError):
            answer = None
        return answer if isinstance(answer, dict) else None

    def metrics(self) -> dict[str, float]:
        """How often it asked, and how often there was no use in the answer."""
        return {"asked": float(self._asked), "broken": float(self._broken)}


def _table(rows_R_M: np.ndarray, names: Sequence[str]) -> str:
    lines = (
        f"{number}: " + ", ".join(f"{name} {value:.3g}" for name, value in zip(names, row, strict=True))
        for number, row in enumerate(rows_R_M)
    )
    return "\n".join(lines)


class ListenTournament(_Listen):
    """A knock-out: batches of candidates, the model names each batch's winner, until one is left.

    K candidates take at most ceil(log_size K) rounds. Where an answer names no candidate, the batch's best mean wins.
    The contest is among the members of the Pareto front.

    Source: "LISTEN to your preferences" [recall]: tournaments over batches; the front and the fallback are ours.

    Args:
        url, model: What stands before /chat/completions; the model's name there.
        preference: What matters, in words.
        size: Candidates of a batch.
        max_tokens, seconds, retries, key_env: As for the judge.
    """

    def __init__(
        self,
        url: str,
        model: str,
        preference: str = PREFERENCE,
        size: Annotated[int, Field(ge=2, le=32)] = 4,
        max_tokens: Annotated[int, Field(ge=1)] = 256,
        seconds: Annotated[float, Field(gt=0)] = 60.0,
        retries: Annotated[int, Field(ge=0)] = 4,
        key_env: str = "OPENAI_API_KEY",
    ):
        who = "listen-tournament"
        super().__init__(who, preference, Asking(who, url, model, max_tokens, seconds, retries, key_env))
        self.size = size

    def _pick(self, rows_R_M: np.ndarray, names: Sequence[str]) -> tuple[int, str]:
        left = list(range(len(rows_R_M)))
        while len(left) > 1:
            batches = [left[start : start + self.size] for start in range(0, len(left), self.size)]
            left = [self._winner(rows_R_M, names, batch) for batch in batches]
        return left[0], "listen-tournament"

    def _winner(self, rows_R_M: np.ndarray, names: Sequence[str], batch: list[int]) -> int:
        if len(batch) == 1:
            return batch[0]
        rows = rows_R_M[batch]
        answer = self._answer(f'Which candidate is best?\n{_table(rows, names)}\nForm: {{"choice": number}}') or {}
        choice = answer.get("choice")
        if isinstance(choice, int) and not isinstance(choice, bool) and 0 <= choice < len(batch):
            return batch[choice]
        self._broken += 1
        return batch[int(rows.mean(axis=1).argmax())]


class ListenUtility(_Listen):
    """The model writes weights of the objectives, once for each set of them, and the weighted sum chooses.

    Weights below 0 count as 0, and their sum as 1. Where an answer holds no weights, all count alike, and the model is
    asked again the next time. The weights are its state.

    Source: "LISTEN to your preferences" [recall]: a utility that the model writes. Ours: it writes it once, not in
    turns with what it would choose.

    Args:
        url, model, preference, max_tokens, seconds, retries, key_env: As for `listen-tournament`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        preference: str = PREFERENCE,
        max_tokens: Annotated[int, Field(ge=1)] = 256,
        seconds: Annotated[float, Field(gt=0)] = 60.0,
        retries: Annotated[int, Field(ge=0)] = 4,
        key_env: str = "OPENAI_API_KEY",
    ):
        who = "listen-utility"
        super().__init__(who, preference, Asking(who, url, model, max_tokens, seconds, retries, key_env))
        self._written: dict[str, list[float]] = {}

    def _pick(self, rows_R_M: np.ndarray, names: Sequence[str]) -> tuple[int, str]:
        return int((rows_R_M @ self.shares(names)).argmax()), "listen-utility"

    def shares(self, names: Sequence[str]) -> np.ndarray:
        """The weights of these objectives, which sum to 1, (M,)."""
        key = " ".join(names)
        if key not in self._written:
            form = json.dumps({"weights": dict.fromkeys(names, 0.5)})
            answer = self._answer(f"How much does each of {', '.join(names)} count? Form: {form}") or {}
            weights = answer.get("weights")
            found = [weights.get(name) for name in names] if isinstance(weights, dict) else [None]
            sound = [max(0.0, float(w)) for w in found if isinstance(w, int | float) and np.isfinite(w)]
            if len(sound) < len(names) or not sum(sound) > 0:
                self._broken += 1
                return np.full(len(names), 1 / len(names))
            self._written[key] = [weight / sum(sound) for weight in sound]
        return np.array(self._written[key])

    def state_dict(self) -> dict[str, Any]:
        """The weights by set of objectives."""
        return {"weights": {key: list(value) for key, value in self._written.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._written = {key: [float(weight) for weight in value] for key, value in state["weights"].items()}
