"""Advantages that read facts about whole rows: lengths, calls, how a row ended."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fate_trl import Rows

from .common import Batch, Rowed, centred, mean_of

Share = Annotated[float, Field(ge=0, le=1)]


def own_calls(rows: Rows) -> np.ndarray:
    """How many calls the policy made itself, (G, N)."""
    lengths = np.frompyfunc(len, 1, 1)(rows.calls_G_N).astype(int)
    return np.asarray(lengths - rows.prefix_G_N)


@dataclass
class Adora(Rowed):
    """ADORA: groups whose failures teach little are weighed down.

    A group keeps its advantages where its longest success is longer than its failures that were not cut are on average
    (`length`), or where less than half of it succeeds (`success-rate`); in any other group they are times `weight`.
    A group without a success, or without such a failure, is weighed down by `length`.

    Source: ADORA, the authors' code.

    Attributes:
        predicate: See above.
        weight: Of the groups that do not meet it.
    """

    predicate: Literal["length", "success-rate"] = "length"
    weight: Share = 0.1

    def met(self, batch: Batch) -> np.ndarray:
        """Groups that keep their advantages, booleans (G,)."""
        rows, solved_G_N = batch.facts, batch.facts.resolved_G_N & batch.valid_G_N
        if self.predicate == "success-rate":
            return np.asarray(mean_of(solved_G_N, batch.valid_G_N)[:, 0] < 0.5)
        failed_G_N = batch.valid_G_N & ~solved_G_N & (rows.stop_G_N != "length")
        longest_G = np.where(solved_G_N, rows.length_G_N, -1).max(axis=1)
        mean_G = mean_of(rows.length_G_N, failed_G_N)[:, 0]
        return np.asarray((longest_G > mean_G) & failed_G_N.any(axis=1))

    def _advantages(self, batch: Batch) -> np.ndarray:
        factor_G = np.where(self.met(batch), 1.0, self.weight)
        local = self._local(batch)
        return np.asarray(factor_G.reshape(-1, *[1] * (local.ndim - 1)) * local)


@dataclass
class Aspo(Rowed):
    """ASPO: successes that call a tool early get more, those that call one late get less.

    For successes with calls of their own A += clip(delta (p - mean p) / mean L, -k |A|, k |A|), with p the token at
    which the turn of the first call ends, the mean p over the group's successes that call, and the mean L over its
    rows. As k is below 1 no sign changes; failures keep what they have.

    Source: "Understanding tool-integrated reasoning" [recall].

    Attributes:
        delta: Below 0 earlier calls are better.
        most: k.
    """

    delta: Annotated[float, Field(ge=-10, le=10)] = -2.0
    most: Annotated[float, Field(ge=0, lt=1)] = 0.7

    orders: ClassVar[bool] = False

    def _advantages(self, batch: Batch) -> np.ndarray:
        rows, local_G_N = batch.facts, self._local(batch)
        position_G_N = first_call(rows)
        calling_G_N = batch.valid_G_N & rows.resolved_G_N & (position_G_N >= 0)
        length_G_1 = np.maximum(mean_of(rows.length_G_N, batch.valid_G_N), 1)
        late_G_N = (position_G_N - mean_of(position_G_N, calling_G_N)) / length_G_1
        bound_G_N = self.most * np.abs(local_G_N)
        return local_G_N + np.where(calling_G_N, np.clip(self.delta * late_G_N, -bound_G_N, bound_G_N), 0.0)


def first_call(rows: Rows) -> np.ndarray:
    """Tokens up to the end of the turn that made the first call, (G, N); -1 where the policy made none."""
    out = np.full(rows.prefix_G_N.shape, -1)
    for g, n in np.ndindex(*out.shape):
        own = [turn for turn in rows.call_turns_G_N[g, n] if turn >= 0]
        turn_T = rows.turn_G_N_T[g, n]
        written = np.flatnonzero((turn_T >= 0) & (turn_T <= own[0])) if own else np.zeros(0, int)
        if len(written):
            out[g, n] = written[-1] + 1
    return out


@dataclass
class Otc(Rowed):
    """OTC: among successes, the fewer calls the better.

    The reward of a success is alpha times a factor of its own calls m, with n the least of the group's successes:
    f = 2 n m / (m + n) (or m where n = 0) and the factor is sin(f pi / 2 n); for n = 0 it is cos(m pi / (2 m + c)), and
    1 where m is 0 too. A failure gets no such reward, whatever its calls. What alpha leaves goes to the base's reward.

    Source: OTC; the group's form from a third party's code, whose cos form is the paper's. Without a success in the
    group n is not defined, and there no row is one (ours).

    Attributes:
        alpha: Share of this reward, in [0, 1]; 1 as in the paper.
        smooth: The constant c.
    """

    alpha: Share = 1.0
    smooth: Annotated[float, Field(gt=0)] = 2.0

    orders: ClassVar[bool] = False

    def _advantages(self, batch: Batch) -> np.ndarray:
        calls_G_N, solved_G_N = own_calls(batch.facts), batch.facts.resolved_G_N & batch.valid_G_N
        reward_G_N = np.where(solved_G_N, tool_factor(calls_G_N, solved_G_N, self.smooth), 0.0)
        mixed_G_N = self.alpha * reward_G_N + (1 - self.alpha) * batch.reward_G_N
        return centred(mixed_G_N, batch.valid_G_N)


def tool_factor(calls_G_N: np.ndarray, solved_G_N: np.ndarray, smooth: float) -> np.ndarray:
    """OTC's factor in [0, 1] for each row, (G, N); 1 throughout a group without a success."""
    least_G_1 = np.where(solved_G_N, calls_G_N, np.iinfo(int).max).min(axis=1, keepdims=True)
    found_G_1 = solved_G_N.any(axis=1, keepdims=True)
    n_G_1 = np.where(found_G_1, least_G_1, 0)
    f_G_N = 2 * n_G_1 * calls_G_N / np.maximum(calls_G_N + n_G_1, 1)
    some_G_N = np.sin(f_G_N * np.pi / (2 * np.maximum(n_G_1, 1)))
    none_G_N = np.where(calls_G_N == 0, 1.0, np.cos(calls_G_N * np.pi / (2 * calls_G_N + smooth)))
    return np.where(found_G_1, np.where(n_G_1 > 0, some_G_N, none_G_N), 1.0)


@dataclass
class Polychromic(Rowed):
    """Polychromic objectives: a row earns what the sets that it is in earn, and a set earns reward times diversity.

    f(S) is the mean reward of the n rows of a set times the share of distinct strategies among them; a strategy is the
    sequence of tools called. The advantage of a row is the mean of f over the sets that hold it, less the mean over all
    sets. Where a group has fewer than n valid rows, it keeps the base's advantages.

    Source: polychromic objectives, the published page; sets are all that there are up to `sets`, beyond that as many
    drawn with a fixed seed (ours).

    Attributes:
        size: Rows of a set.
        sets: At most so many sets of a group.
    """

    size: Annotated[int, Field(ge=2)] = 4
    sets: Annotated[int, Field(ge=1)] = 128

    orders: ClassVar[bool] = False

    def _advantages(self, batch: Batch) -> np.ndarray:
        out_G_N = self._local(batch)
        for g, valid_N in enumerate(batch.valid_G_N):
            members = np.flatnonzero(valid_N)
            if len(members) >= self.size:
                keys = [batch.facts.calls_G_N[g, i] for i in members]
                out_G_N[g, members] = self._of(batch.reward_G_N[g, members], keys)
        return out_G_N

    def _of(self, reward_R: np.ndarray, keys: list[Any]) -> np.ndarray:
        drawn = np.array(list(self._drawn(len(reward_R))))
        strategy_R = np.unique([str(key) for key in keys], return_inverse=True)[1]
        distinct_S = np.array([len(set(strategy_R[s].tolist())) for s in drawn])
        earned_S = reward_R[drawn].mean(axis=1) * distinct_S / self.size
        holds_S_R = np.zeros((len(drawn), len(reward_R)), bool)
        np.put_along_axis(holds_S_R, drawn, True, axis=1)
        share_R = np.maximum(holds_S_R.sum(axis=0), 1)
        gain_S = earned_S - earned_S.mean()
        return np.asarray((holds_S_R * gain_S[:, None]).sum(axis=0) / share_R)

    def _drawn(self, rows: int) -> Iterator[tuple[int, ...]]:
        every = list(itertools.combinations(range(rows), self.size))
        if len(every) <= self.sets:
            return iter(every)
        order = np.random.default_rng(0).permutation(len(every))[: self.sets]
        return (every[i] for i in order)


@dataclass
class Truncated(Rowed):
    """Rows that were cut are not judged by what they had not finished: they get their group's expectation.

    A finished row gets its reward less the mean of the group's finished rows. A row whose stop is "length" gets that
    mean less the batch's mean of finished rows: the sign of its prompt's baseline, and no verdict of its own. Where a
    group has no finished row, its cut ones get 0.

    Source: truncated PPO [recall], which puts a value in the place of what a cut row would still earn; the group's mean
    as that value is derived.
    """

    whole_batch: ClassVar[bool] = True
    orders: ClassVar[bool] = False

    def _advantages(self, batch: Batch) -> np.ndarray:
        cut_G_N = batch.valid_G_N & (batch.facts.stop_G_N == "length")
        done_G_N = batch.valid_G_N & ~cut_G_N
        base_G_1 = mean_of(batch.reward_G_N, done_G_N)
        known_G = done_G_N.any(axis=1)
        overall = float(base_G_1[known_G].mean()) if known_G.any() else 0.0
        expected_G_N = np.where(known_G[:, None], base_G_1 - overall, 0.0)
        return np.where(cut_G_N, expected_G_N, centred(batch.reward_G_N, done_G_N))
