"""The front of the policies of one or more runs: which policy for which wish; plain data for terminal, page and JSON.

Policies are chosen by their means on validation tasks. What they come to on test tasks stands beside, and chooses
nothing. The rules (what dominates, how isolated a policy is, the answer to a wish) are those of metrics/fronts.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ErrorBudgetExceeded, RecipeError
from ..metrics import (
    MAX_ERROR_RATE,
    check_errors,
    dominators,
    isolation,
    objective_means,
    wished,
)
from ..types import OBJECTIVES, Case
from .comparison import Side, differences
from .reading import EvaluatedPolicy, Run

Json = dict[str, Any]
Wish = Mapping[str, float]

_MAY_DIFFER = ("seed of the splits", "verifiers", "fate-trl")
"""What runs may differ in: tasks are compared themselves, and objectives are those that all have."""
_AXES = ("utility", "security", "over_refusal", "trajectory_control")


def wish_of(text: str) -> dict[str, float]:
    """Weights by objective of a wish such as "security=2,utility=1". Raises RecipeError where it is none."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (side.strip() for side in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not (0 <= weight < math.inf) or name in weights:
            raise RecipeError(
                f"--wish {text}: {part.strip()!r} is no weight of its own; a wish is objective=weight, with commas "
                "between, each objective once, each weight at least 0, such as security=2,utility=1."
            )
        weights[name] = weight
    if not any(weights.values()):
        raise RecipeError(f"--wish {text}: every weight is 0, so any policy will do; raise one.")
    return weights


@dataclass(frozen=True)
class _Found:
    """A policy with its validation tasks, and its test cases where it has any."""

    side: Side
    policy: EvaluatedPolicy
    test: Sequence[Case]

    @property
    def objectives(self) -> set[str]:
        return {name for _, card in self.side.cases.values() for name in card.scores}


def front(paths: Sequence[str], *, wishes: Sequence[Wish] = (), seed: int = 0) -> Json:
    """All policies of the runs, and which of them no other dominates on the validation tasks.

    Args:
        paths: Run directories.
        wishes: Weights by objective, as from `wish_of`.
        seed: Of the bootstrap of the intervals.

    Returns:
        JSON values only: {"schema", "objectives", "policies", "left_out", "unlike", "wishes"}. A policy is {"policy",
        "run", "round", "accepted", "on_front", "dominated_by", "isolation", "at_an_end", "validation", "test"}, the
        last two with a metric by objective that applies; "isolation" is null off the front, and at the ends of an
        objective, where it is infinite ("at_an_end"). "wishes" are {"wish", "policy", "score"}.

    Raises:
        RecipeError: The runs have other tasks or no common objective, none was evaluated on validation tasks, or a
            wish names an objective that is none of theirs.
        LedgerError: A path is no run directory.
    """
    found, left_out = _found([(path, Run.open(path)) for path in _distinct(paths)])
    if not found:
        reasons = "\n".join(f"  {one['policy']}: {one['reason']}" for one in left_out)
        raise RecipeError(f"there is no policy to choose from:\n{reasons}")
    unlike = _refused_or_unlike(found)
    objectives = _common(found)
    rows = [_row(one, objectives, seed) for one in found]
    held = [name for name in objectives if any(name in row["validation"] for row in rows)]
    if not held:
        raise RecipeError(f"of the objectives {', '.join(objectives)} none applies to a validation task.")
    whole = [row for row in rows if row["validation"].keys() >= set(held)]
    if not whole:
        raise RecipeError(f"no policy has a mean of each of the objectives {', '.join(held)}.")
    left_out += [
        {
            "policy": row["policy"],
            "reason": f"it has no mean of {', '.join(sorted(set(held) - row['validation'].keys()))}",
        }
        for row in rows
        if row not in whole
    ]
    _place(whole, held)
    found_wishes = [_answer(whole, held, wish) for wish in wishes]
    return {
        "schema": 1,
        "objectives": held,
        "policies": whole,
        "left_out": left_out,
        "unlike": unlike,
        "wishes": found_wishes,
    }


def members(found: Json) -> list[Json]:
    """The policies on the front."""
    return [row for row in found["policies"] if row["on_front"]]


def means(rows: Sequence[Json], objectives: Sequence[str]) -> np.ndarray:
    """Validation means (N, M) of policies."""
    return np.array([[row["validation"][name]["value"] for name in objectives] for row in rows])


def axes(objectives: Sequence[str]) -> list[str]:
    """The two objectives that a picture shows, x first; fewer where there are fewer."""
    return [*(name for name in _AXES if name in objectives), *(n for n in objectives if n not in _AXES)][:2]


# ------------------------------------------------------------------------------------------------ which policies


def _distinct(paths: Sequence[str]) -> list[str]:
    seen: dict[Any, str] = {}
    for path in paths:
        place = Run.open(path).path.resolve()
        if place in seen:
            raise RecipeError(f"{path} and {seen[place]} are the same run; give each once.")
        seen[place] = path
    return list(seen.values())


def _found(runs: Sequence[tuple[str, Run]]) -> tuple[list[_Found], list[Json]]:
    """The policies that were evaluated on validation tasks, and the others with the reason why they are left out."""
    found, left_out = [], []
    for path, run in runs:
        evaluated = {p.round: p for p in run.policies if "validation" in p.stages}
        if not run.rounds:
            left_out.append({"policy": path, "reason": "it has no round yet"})
        for number in run.rounds:
            name = f"{path}@{number}"
            try:
                found.append(_open(name, run, evaluated.get(number), number))
            except _LeftOut as error:
                left_out.append({"policy": name, "reason": str(error)})
    return found, left_out


class _LeftOut(Exception):
    """Why a policy cannot be placed."""


def _open(name: str, run: Run, policy: EvaluatedPolicy | None, round: int) -> _Found:
    if policy is None:
        asked = (run.recipe.get("evaluation") or {}).get("validation")
        off = (
            "its recipe has evaluation.validation 0"
            if asked == 0
            else "there are no such tasks, or it has not got there"
        )
        raise _LeftOut(f"no eval-validation: {off}")
    side = Side.of(name, run, policy, "validation")
    if not side.cases:
        raise _LeftOut("the records of its eval-validation are gone")
    try:
        check_errors(list(side.cases.values()), MAX_ERROR_RATE)
    except ErrorBudgetExceeded as error:
        raise _LeftOut(str(error).splitlines()[0]) from None
    tested = next((p for p in run.policies if p.round == round and p.name == policy.name and "test" in p.stages), None)
    test = list(run.cases(round, tested.stages["test"], text=False)) if tested is not None else []
    return _Found(side, policy, test)


def _refused_or_unlike(found: Sequence[_Found]) -> list[str]:
    """What the runs may differ in, in words. Raises RecipeError where tasks, or what scores them, are others."""
    first, *others = found
    refused: list[str] = []
    unlike: list[str] = []
    for one in others:
        serious = differences(first.side, one.side, _MAY_DIFFER)
        refused += [f"  {one.side.name}: {text}" for text in serious]
        if one.side.run is not first.side.run and not serious:
            unlike += differences(first.side, one.side)
    if refused:
        raise RecipeError(
            f"these cannot be on one front with {first.side.name}, since means on other tasks say nothing:\n"
            + "\n".join(refused)
            + "\nGive runs whose suites and validation tasks are the same."
        )
    return list(dict.fromkeys(unlike))


def _common(found: Sequence[_Found]) -> list[str]:
    """Objectives that every policy was scored on: the built-in verifiers' first."""
    common = set.intersection(*(one.objectives for one in found))
    if not common:
        each = "\n".join(f"  {one.side.name}: {', '.join(sorted(one.objectives))}" for one in found)
        raise RecipeError(f"the policies have no objective in common:\n{each}")
    return [*(name for name in OBJECTIVES if name in common), *sorted(common - set(OBJECTIVES))]


def _row(one: _Found, objectives: Sequence[str], seed: int) -> Json:
    return {
        "policy": one.side.name,
        "run": str(one.side.run.path),
        "round": one.policy.round,
        "accepted": one.policy.accepted,
        "validation": objective_means(list(one.side.cases.values()), objectives, seed=seed),
        "test": objective_means(one.test, objectives, seed=seed) if one.test else {},
    }


# ------------------------------------------------------------------------------------------------ front and wishes


def _place(rows: Sequence[Json], objectives: Sequence[str]) -> None:
    """Say of each policy who dominates it, and of the front's members how isolated they are."""
    means_N_M = means(rows, objectives)
    for row, by in zip(rows, dominators(means_N_M), strict=True):
        row |= {"on_front": not by, "dominated_by": [rows[n]["policy"] for n in by]}
        row |= {"isolation": None, "at_an_end": False}
    kept = [row for row in rows if row["on_front"]]
    for row, distance in zip(kept, isolation(means(kept, objectives)).tolist(), strict=True):
        row |= {"at_an_end": True} if math.isinf(distance) else {"isolation": distance}


def _answer(rows: Sequence[Json], objectives: Sequence[str], wish: Wish) -> Json:
    """C-MORL's assignment: the front's policy with the most of w · G."""
    unknown = [name for name in wish if name not in objectives]
    if unknown:
        raise RecipeError(
            f"--wish: {unknown[0]!r} is no objective of these policies; they have {', '.join(objectives)}."
        )
    kept = [row for row in rows if row["on_front"]]
    weights_M = np.array([wish.get(name, 0.0) for name in objectives])
    best = kept[wished(means(kept, objectives), weights_M)]
    score = sum(weight * best["validation"][name]["value"] for name, weight in wish.items())
    return {"wish": dict(wish), "policy": best["policy"], "score": score}
