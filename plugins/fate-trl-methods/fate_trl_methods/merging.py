"""The family `merging`: whose shares of a merged policy, for a recipe's `merge` and for `fate-trl merge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fate_trl import Component, Evaluate, FateError, hookimpl, pareto

fate_trl_api = 1


class Nesterov:
    """APO: each round goes on in the direction of the last change, θ + a (θ − θ'), θ' being the round before.

    Both are the policies as they were trained, before any extrapolation; of the first round θ' is its start.

    Source: accelerated preference optimisation, algorithm 1 of the authors' code. Ours: a default, and that θ' is the
    last accepted round's.

    Args:
        a: Extrapolation; 0 leaves the trained policy as it is.
    """

    def __init__(self, a: Annotated[float, Field(ge=0, le=1)] = 0.3):
        self.a = a

    def coefficients(self, policies: int, evaluate: Evaluate, rng: np.random.Generator) -> Sequence[Sequence[float]]:
        _at_least(policies, 2, "nesterov", "a policy and the one before it")
        return [[1 + self.a, -self.a, *[0.0] * (policies - 2)]]


class PreferenceVectors:
    """A policy moved along what sets pairs of others apart: θ + Σ η_k (θ_k⁺ − θ_k⁻).

    Policies in order: θ, θ_1⁺, θ_1⁻, θ_2⁺, θ_2⁻, … In the paper a pair are two policies trained on the same
    preferences, one of them with the labels flipped.

    Source: adaptive helpfulness-harmlessness alignment with preference vectors, the authors' code.

    Args:
        eta: How far, for each pair.
    """

    def __init__(self, eta: Annotated[list[float], Field(min_length=1)]):
        self.eta = eta

    def coefficients(self, policies: int, evaluate: Evaluate, rng: np.random.Generator) -> Sequence[Sequence[float]]:
        if policies != 1 + 2 * len(self.eta):
            raise FateError(
                f"preference-vectors: {len(self.eta)} values of eta need {1 + 2 * len(self.eta)} policies (one, then a "
                f"pair for each), not {policies}."
            )
        return [[1.0, *(sign * eta for eta in self.eta for sign in (1, -1))]]


class Map:
    """MAP: the front of all averages, from a quadratic fitted to a few of them.

    Random shares are evaluated, (1 + n + n (n + 1) / 2) times `sampled` of them for n policies less one; each
    objective's mean is fitted by a quadratic in the shares; of many random shares those that no other dominates by the
    fits are the result, those with the greatest volume first.

    Source: low-compute model merging with amortized Pareto fronts, the authors' code. Ours: enumeration in the place of
    NSGA-III, which so few shares do not need, and the order.

    Args:
        sampled: Evaluations per coefficient of the fit; below 1.5 it fits noise.
        front: Merged policies at most.
        tried: Random shares that are looked up in the fit.
    """

    def __init__(
        self,
        sampled: Annotated[float, Field(ge=1)] = 1.5,
        front: Annotated[int, Field(ge=1)] = 5,
        tried: Annotated[int, Field(ge=10, le=5000)] = 1000,
    ):
        self.sampled, self.front, self.tried = sampled, front, tried
        self._fit: list[float] = []

    def coefficients(self, policies: int, evaluate: Evaluate, rng: np.random.Generator) -> Sequence[Sequence[float]]:
        _at_least(policies, 2, "map", "several policies")
        free = policies - 1
        wanted = int(np.ceil(self.sampled * (1 + free + free * (free + 1) / 2)))
        corners = np.eye(policies)[:wanted]
        shares_C_P = np.vstack([corners, rng.dirichlet(np.ones(policies), max(0, wanted - policies))])
        scores_C_M = np.array([evaluate(share) for share in shares_C_P])
        scores_C_M = scores_C_M[:, ~np.isnan(scores_C_M).any(0)]
        if not scores_C_M.shape[1]:
            raise FateError("map: no objective applies to the validation tasks, so there is nothing to fit.")
        terms = _quadratic(shares_C_P)
        fits, *_ = np.linalg.lstsq(terms, scores_C_M, rcond=None)
        self._fit = _r2(scores_C_M, terms @ fits)
        tried_T_P = np.vstack([np.eye(policies), rng.dirichlet(np.ones(policies), self.tried)])
        guessed_T_M = _quadratic(tried_T_P) @ fits
        best = np.flatnonzero(pareto.front_ranks(guessed_T_M[None])[0] == 0)
        order = best[np.argsort(-np.prod(np.clip(guessed_T_M[best], 0, None), axis=1), kind="stable")]
        return tried_T_P[order[: self.front]].tolist()

    def metrics(self) -> Mapping[str, float]:
        return {f"r2/{objective}": r2 for objective, r2 in enumerate(self._fit)}


class RankSearch:
    """The average that ranks first on validation (ours): a grid over all shares, made finer around the best.

    Rank is the Pareto front of the objectives' means, ties by the lowest mean.

    Source: derived; all of it is ours.

    Args:
        steps: Parts that the shares are cut into.
        finer: How often the search goes on around the best, each time with steps half as long.
    """

    def __init__(self, steps: Annotated[int, Field(ge=1, le=10)] = 2, finer: Annotated[int, Field(ge=0, le=5)] = 1):
        self.steps, self.finer = steps, finer

    def coefficients(self, policies: int, evaluate: Evaluate, rng: np.random.Generator) -> Sequence[Sequence[float]]:
        seen: dict[tuple[float, ...], Sequence[float]] = {}
        around, step = _grid(policies, self.steps), 1 / self.steps
        for _ in range(self.finer + 1):
            for share in around:
                if share not in seen:
                    seen[share] = evaluate(share)
            best = _first(seen)
            step /= 2
            around = _neighbours(best, step)
        return [best]


def _first(seen: Mapping[tuple[float, ...], Sequence[float]]) -> tuple[float, ...]:
    shares, scores = list(seen), np.array(list(seen.values()))
    ranks = pareto.front_ranks(scores[None])[0]
    lowest = np.nanmin(np.where(np.isnan(scores), np.inf, scores), axis=1)
    return min(zip(ranks.tolist(), (-lowest).tolist(), range(len(shares)), shares, strict=True))[3]


def _grid(policies: int, steps: int) -> list[tuple[float, ...]]:
    """All shares in whole steps."""
    parts = combinations_with_replacement(range(policies), steps)
    return [tuple((np.bincount(part, minlength=policies) / steps).tolist()) for part in parts]


def _neighbours(share: tuple[float, ...], step: float) -> list[tuple[float, ...]]:
    """Shares with one step moved from a policy to another."""
    out = []
    for taken in range(len(share)):
        for given in range(len(share)):
            moved = list(share)
            moved[taken], moved[given] = moved[taken] - step, moved[given] + step
            if taken != given and moved[taken] >= -1e-9:
                out.append(tuple(np.round(np.abs(moved), 9).tolist()))
    return out


def _quadratic(shares_C_P: np.ndarray) -> np.ndarray:
    """1, the shares but the last (the sum is 1), and their products of two."""
    free = shares_C_P[:, :-1]
    pairs = [free[:, i] * free[:, j] for i in range(free.shape[1]) for j in range(i, free.shape[1])]
    return np.column_stack([np.ones(len(free)), free, *pairs])


def _r2(scores_C_M: np.ndarray, fitted_C_M: np.ndarray) -> list[float]:
    spread = ((scores_C_M - scores_C_M.mean(0)) ** 2).sum(0)
    missed = ((scores_C_M - fitted_C_M) ** 2).sum(0)
    return [1.0 if s <= 1e-12 else float(1 - m / s) for s, m in zip(spread, missed, strict=True)]


def _at_least(policies: int, needed: int, name: str, what: str) -> None:
    if policies < needed:
        raise FateError(f"{name} needs {what}; there is {policies}.")


@hookimpl
def fate_trl_merges() -> list[Component]:
    named: list[tuple[str, Any, str]] = [
        ("nesterov", Nesterov, "APO: on in the direction of the last round's change"),
        ("preference-vectors", PreferenceVectors, "a policy moved by the differences of pairs of others"),
        ("map", Map, "MAP: the front of all averages, by a quadratic fitted to a few"),
        ("rank-search", RankSearch, "the average that ranks first on validation"),
    ]
    return [Component(*each) for each in named]
