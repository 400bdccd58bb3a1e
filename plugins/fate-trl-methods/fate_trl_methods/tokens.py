"""Advantages by token: credit to the turns of a row, from values, prefixes, discounts or a trained policy's odds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fate_trl import Rows

from .common import Batch, Rowed, centred, mean_of

Share = Annotated[float, Field(ge=0, le=1)]


def turns_of(rows: Rows, g: int, n: int) -> int:
    """How many turns the policy wrote in a row."""
    return int(rows.turn_G_N_T[g, n].max(initial=-1)) + 1


def on_tokens(by_turn: Sequence[float] | np.ndarray, turn_T: np.ndarray) -> np.ndarray:
    """Values of turns on the tokens of these turns, (T,); 0 where the policy wrote nothing."""
    values = np.append(np.asarray(by_turn, float), 0.0)
    return np.asarray(values[np.where(turn_T >= 0, turn_T, len(values) - 1)])


def states_of(rows: Rows, g: int, n: int) -> list[tuple[int, ...]]:
    """The calls done at the start of each turn, and at the end of the row: one more than there are turns."""
    path, turns = rows.path_G_N[g, n], rows.call_turns_G_N[g, n]
    return [path[: sum(turn < t for turn in turns)] for t in range(turns_of(rows, g, n) + 1)]


@dataclass
class TurnDiscount(Rowed):
    """Geometric discounts by turns: turn t of T is worth gamma^(T - t) R, less the mean over all turns of the group.

    So a success that comes in fewer turns is worth more in each of them.

    Source: IterResearch's efficiency-aware policy optimisation [recall]. All rows stay, so the batch keeps
    its size (ours: there turns are dropped until it divides).

    Attributes:
        gamma: Discount per turn.
    """

    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95

    orders: ClassVar[bool] = False

    def _advantages(self, batch: Batch) -> np.ndarray:
        rows = batch.facts
        out = np.zeros(rows.turn_G_N_T.shape)
        for g in range(len(out)):
            values: dict[int, np.ndarray] = {}
            for n in map(int, np.flatnonzero(batch.valid_G_N[g])):
                last = turns_of(rows, g, n)
                values[n] = batch.reward_G_N[g, n] * self.gamma ** np.arange(last - 1, -1, -1.0)
            every = np.concatenate([*values.values(), np.zeros(0)])
            baseline = every.mean() if len(every) else 0.0
            for n, by_turn in values.items():
                out[g, n] = on_tokens(by_turn - baseline, rows.turn_G_N_T[g, n])
        return out


@dataclass
class TreePrefix(Rowed):
    """Tree-OPO: rows that start from prefixes of one task form a tree, and each is compared with its own subtree.

    A_i = R_i - alpha V(prefix of i), V the mean (or maximum, or minimum) reward of all rows of the task whose prefix
    begins with that one; then less the mean over the task's rows, and by their standard deviation where that is above
    1. So from a worse place the same reward is worth more, and within one prefix the order of rewards is kept.

    Source: Tree-OPO, the heuristic form of its staged advantages [recall]; prefixes are replayed calls, as the repair
    strategy `resume` makes them.

    Attributes:
        alpha: How much of the prefix's value is taken off, in [0, 1].
        value: The value of a prefix: of its subtree's rewards the `expectation`, or the `optimistic` or `pessimistic`.
    """

    alpha: Share = 0.5
    value: Literal["expectation", "optimistic", "pessimistic"] = "expectation"

    whole_batch: ClassVar[bool] = True
    orders: ClassVar[bool] = False

    def _advantages(self, batch: Batch) -> np.ndarray:
        rows = batch.facts
        trees: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for g, n in batch.of_all():
            trees[rows.task_G_N[g, n]].append((g, n))
        out = np.zeros(batch.valid_G_N.shape)
        for members in trees.values():
            prefixes = [rows.path_G_N[m][: rows.prefix_G_N[m]] for m in members]
            rewards = np.array([batch.reward_G_N[m] for m in members])
            values = {prefix: self._value(prefix, prefixes, rewards) for prefix in set(prefixes)}
            said = rewards - self.alpha * np.array([values[prefix] for prefix in prefixes])
            said -= said.mean()
            said /= max(said.std(), 1.0)
            out[tuple(np.array(members).T)] = said
        return out

    def _value(self, prefix: tuple[int, ...], prefixes: list[tuple[int, ...]], rewards: np.ndarray) -> float:
        below = rewards[[other[: len(prefix)] == prefix for other in prefixes]]
        if self.value == "expectation":
            return float(below.mean())
        return float(below.max() if self.value == "optimistic" else below.min())


@dataclass
class Segments(Rowed):
    """SPO with turns as segments: a turn gets the value of where it led less the value of where it began.

    The value of a state (the calls done so far) is the mean reward of all rows of the task in the batch that passed
    through it, rows that were resumed there included; the last value is the row's own reward. So a row's turns add up
    to R - V(start), and the turn after which things went wrong gets the blame.

    Source: segment policy optimisation, the authors' code for the telescoping values; there each boundary has rollouts
    of its own, here rows that share it serve (derived). The probability mask is left out.
    """

    whole_batch: ClassVar[bool] = True
    orders: ClassVar[bool] = False

    def _advantages(self, batch: Batch) -> np.ndarray:
        rows = batch.facts
        passed: dict[tuple[str, tuple[int, ...]], list[float]] = defaultdict(list)
        members = batch.of_all()
        for g, n in members:
            path, start = rows.path_G_N[g, n], int(rows.prefix_G_N[g, n])
            for done in range(start, len(path) + 1):
                passed[rows.task_G_N[g, n], path[:done]].append(batch.reward_G_N[g, n])
        out = np.zeros(rows.turn_G_N_T.shape)
        for g, n in members:
            states = states_of(rows, g, n)
            values = [float(np.mean(passed[rows.task_G_N[g, n], state])) for state in states[:-1]]
            steps = np.diff([*values, batch.reward_G_N[g, n]])
            out[g, n] = on_tokens(steps, rows.turn_G_N_T[g, n])
        return out


@dataclass
class ValueDifferences(Rowed):
    """Decoupled value policy optimisation: a turn gets the difference of a value function that is learned apart.

    The value of a state, which is the kind of task and the names of the calls done, is the mean reward of all rows that
    ever passed through it, drawn towards the state one call before by `prior` imagined rows. A turn's advantage is
    V(after) - V(before), so a row's turns add up to V(end) - V(start). Within a generation the values stand still; they
    learn once after it.

    Source: "Lean and mean: decoupled value policy optimization" [recall], whose value is a pretrained model; the table
    in its place is ours.

    Attributes:
        prior: Weight of the state before, in rows.
        reward_at_end: Whether the row's own reward takes the place of the last value.
    """

    prior: Annotated[float, Field(gt=0)] = 2.0
    reward_at_end: bool = False

    orders: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._table: dict[str, list[float]] = {}

    def value(self, kind: str, calls: Sequence[str]) -> float:
        """Of a state; 0 where nothing is known of its kind of task."""
        found = 0.0
        for done in range(len(calls) + 1):
            count, summed = self._table.get(_key(kind, calls[:done]), (0.0, 0.0))
            prior = self.prior if done else 0.0
            found = (summed + prior * found) / (count + prior) if count + prior else found
        return found

    def _advantages(self, batch: Batch) -> np.ndarray:
        rows = batch.facts
        out = np.zeros(rows.turn_G_N_T.shape)
        for g, n in batch.of_all():
            calls, kind = rows.calls_G_N[g, n], rows.kind_G_N[g, n]
            values = [self.value(kind, calls[: len(state)]) for state in states_of(rows, g, n)]
            if self.reward_at_end:
                values[-1] = batch.reward_G_N[g, n]
            out[g, n] = on_tokens(np.diff(values), rows.turn_G_N_T[g, n])
        return out

    def learn(self, scores_G_N_M: np.ndarray, *, objectives: Sequence[str], valid_G_N: np.ndarray, rows: Rows) -> None:
        """Take the rewards of a generation into the table."""
        batch = self._batch(scores_G_N_M, objectives, valid_G_N, rows)
        for g, n in batch.of_all():
            calls, kind, start = rows.calls_G_N[g, n], rows.kind_G_N[g, n], int(rows.prefix_G_N[g, n])
            for done in range(start, len(calls) + 1):
                count, summed = self._table.get(_key(kind, calls[:done]), (0.0, 0.0))
                self._table[_key(kind, calls[:done])] = [count + 1, summed + float(batch.reward_G_N[g, n])]

    def state_dict(self) -> dict[str, Any]:
        """The table: rows and their summed reward by state."""
        return {"table": {key: list(value) for key, value in sorted(self._table.items())}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._table = {key: [float(n) for n in value] for key, value in state["table"].items()}

    def metrics(self) -> dict[str, float]:
        """How many states are known."""
        return {"states": float(len(self._table))}


def _key(kind: str, calls: Sequence[str]) -> str:
    return " ".join((str(kind), *calls))


@dataclass
class ImplicitReward(Rowed):
    """Reinforced token optimisation: the log-odds of a policy trained on preferences are a reward for every token.

    With r_t = beta (log pi(token) - log pi_ref(token)), the advantage of a token is the row's own (reward less the
    group's mean) plus the sum of r from this token on, less the group's mean of the whole sum. Summed over a row, r is
    beta times its log-ratio. Both models are frozen: the policy of a preference stage, and where that stage began.

    Source: "DPO meets PPO" [recall of the dense reward]; the group's mean in the place of a critic is derived.

    Attributes:
        policy, reference: Folders (or hub ids) of the two models; an adapter's folder where its base is known to it.
        beta: In units of the reward per nat.
        device: Where they run, such as `cpu` or `cuda`.
    """

    policy: str = field(kw_only=True)
    reference: str = field(kw_only=True)
    beta: Annotated[float, Field(gt=0)] = 0.05
    device: str = "cpu"

    orders: ClassVar[bool] = False
    reads_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._models: list[Any] = []

    def rewards(self, rows: Rows) -> np.ndarray:
        """r of every token that the policy wrote, 0 elsewhere, (G, N, T)."""
        from .odds import load, log_probabilities

        if not self._models:
            self._models = [load(path, self.device) for path in (self.policy, self.reference)]
        assert rows.prompt_ids_G_N is not None
        assert rows.completion_ids_G_N is not None
        out = np.zeros(rows.turn_G_N_T.shape)
        for g in range(len(out)):
            prompts, completions = list(rows.prompt_ids_G_N[g]), list(rows.completion_ids_G_N[g])
            chosen, given = (log_probabilities(model, prompts, completions, out.shape[2]) for model in self._models)
            out[g] = self.beta * (chosen - given)
        return np.where(rows.turn_G_N_T >= 0, out, 0.0)

    def _advantages(self, batch: Batch) -> np.ndarray:
        reward_G_N_T = self.rewards(batch.facts)
        to_come_G_N_T = np.cumsum(reward_G_N_T[:, :, ::-1], axis=2)[:, :, ::-1]
        whole_G_N = reward_G_N_T.sum(axis=2)
        baseline_G_1 = mean_of(whole_G_N, batch.valid_G_N)
        said = centred(batch.reward_G_N, batch.valid_G_N)[:, :, None] + to_come_G_N_T - baseline_G_1[:, :, None]
        return np.where((batch.facts.turn_G_N_T >= 0) & batch.valid_G_N[:, :, None], said, 0.0)
