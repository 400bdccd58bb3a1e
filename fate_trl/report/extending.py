"""C-MORL's extension of a front: recipes that go on from its most isolated policies, one per objective.

Each raises one objective while the others keep a share of what the policy has. With fate-trl-methods the selector is
its interior point, `advantages/ipo-barrier`; without it `constraint`, whose floors are hard.

Source: C-MORL (Liu et al. 2024), the authors' code: the most isolated policies, each once per objective, floors of
.9 G_j. Under `constraint` the others count a thousandth, which decides ties (ours).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FateError, RecipeError
from ..metrics import most_isolated
from ..plugins import installed
from ..recipe.checks import check
from ..recipe.loading import validated
from ..recipe.schema import Recipe
from ..serve.target import values_of
from .front import Json, means, members

SHARE = 0.9
"""Of what a policy has of the other objectives, which it must keep."""
_TIE = 1e-3

BARRIER = "advantages/ipo-barrier"


@dataclass(frozen=True)
class Extension:
    """A recipe that extends a policy toward an objective.

    Attributes:
        policy, objective: From where, and toward what.
        file: The recipe's file.
        recipe: The recipe.
    """

    policy: str
    objective: str
    file: Path
    recipe: Recipe


def extensions(found: Json, count: int, folder: str | Path) -> list[Extension]:
    """Recipes for the `count` most isolated policies of a front, or for as many as it has.

    Args:
        found: As `front.front` returns it.
        count: Policies to extend, at least 1; of equal ones the first only.
        folder: Where the recipes are to be written; their runs lie beside them.

    Raises:
        RecipeError: A recipe does not load, its run trains nothing, or there is but one objective.
        LedgerError: A policy's weights, or its recipe, are gone.
    """
    kept, objectives = members(found), found["objectives"]
    if len(objectives) < 2:
        raise RecipeError(
            f"{objectives[0]} is the only objective, so there is nothing to trade; train for it as usual."
        )
    chosen = [kept[number] for number in most_isolated(means(kept, objectives), count)]
    return [made for place, row in enumerate(chosen, 1) for made in _of_policy(row, objectives, place, Path(folder))]


def write(made: Sequence[Extension]) -> None:
    """Write the recipes, all or none. Raises RecipeError where one is there already, or it cannot be written."""
    for one in made:
        if one.file.exists():
            raise RecipeError(f"{one.file} is there already; give another --output.")
    try:
        for one in made:
            one.file.parent.mkdir(parents=True, exist_ok=True)
            head = f"# {' '.join(one.policy.split())} extended toward {one.objective}: the others keep {SHARE:.0%}.\n\n"
            one.file.write_text(head + one.recipe.dump(), encoding="utf-8")
    except OSError as error:
        for one in made:
            with suppress(OSError):
                one.file.unlink()
        raise RecipeError(f"cannot write {error.filename}: {error.strerror}; give another --output.") from None


def _of_policy(row: Json, objectives: Sequence[str], place: int, folder: Path) -> Iterator[Extension]:
    data = values_of(row["run"], round=row["round"])
    if not data["rounds"]:
        raise RecipeError(f"{row['policy']}: its recipe only evaluates (rounds: 0), so there is no training to extend.")
    # It starts from trained weights, and learns from failures of its own.
    data |= {"warm_start": None, "rollout": {**data["rollout"], "recorded": None}}
    run = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(row["run"]).resolve().name)
    for objective in objectives:
        others = {name: row["validation"][name]["value"] for name in objectives if name != objective}
        stem = f"{place:02d}-{run}-{row['round']}-{re.sub(r'[^A-Za-z0-9._-]+', '-', objective)}"
        values = {**data, "selector": _selector(objective, others), "output_dir": str(folder / stem)}
        try:
            recipe = validated(values)
            check(recipe)
        except FateError as error:
            raise RecipeError(f"{row['policy']} cannot be extended toward {objective}: {error}") from None
        yield Extension(row["policy"], objective, folder / f"{stem}.yaml", recipe)


def _selector(objective: str, others: Mapping[str, float]) -> dict[str, Any]:
    if BARRIER.partition("/")[0] in installed():
        return {"name": BARRIER, "args": {"primary": objective, "incumbents": dict(others), "share": SHARE}}
    floors = {name: SHARE * value for name, value in others.items()}
    return {
        "name": "constraint",
        "args": {"floors": floors, "weights": {objective: 1.0, **dict.fromkeys(others, _TIE)}},
    }
