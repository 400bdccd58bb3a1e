"""`fate-trl replay`: recorded calls executed again in a recipe's suites, and scored by what comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import __version__, interchange, plugins
from ..errors import InterchangeError, RecipeError
from ..hookspecs import Suite
from ..interchange.records import numbered
from ..ledger.layout import file_of
from ..ledger.scores import Scorer
from ..ledger.writing import RunDirectory
from ..recipe.loading import load_recipe
from ..recipe.schema import Recipe
from ..suites.opening import open_suites
from ..types import Case, Trajectory
from ..verify.loading import load as load_verifier
from .console import AsJson, Sets, err, out, print_json, visible
from .interchange import matched, write_table
from .run import fresh
from .tables import metrics_table


def replay_run(
    run: Annotated[str, typer.Argument(help="A run directory, or logs of AgentDojo or Inspect.")],
    recipe: Annotated[str, typer.Option(help="Whose suites and verifiers; RUN/recipe.yaml by default.")] = "",
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Run directory to write.")
    ] = "runs/replay",
    sets: Sets = [],  # noqa: B006 (typer copies it)
    as_json: AsJson = False,
) -> None:
    """Execute recorded calls in a recipe's suites, in fresh environments, and score what came of them."""
    own = Path(run) / "recipe.yaml"
    if not recipe and not own.is_file():
        raise RecipeError(
            f"{run} has no recipe.yaml; give the recipe whose suites its calls belong to: --recipe RECIPE."
        )
    asked = load_recipe(recipe or own, sets)
    foreign: list[str] = []
    cases = interchange.read(run, left_out=foreign)
    suites = open_suites(asked.suites)
    found = matched(cases, suites, asked.seed, train="all")
    for line in (*foreign, *found.unknown):
        err.print(f"left out: {escape(visible(line))}", soft_wrap=True)
    if not found.cases:
        raise InterchangeError(f"none of {len(cases)} trajectories is of a task of the recipe's suites.")
    trajectories = _replayed(found.cases, suites, asked)
    directory = RunDirectory(fresh(Path(output)))
    with directory.lock():
        scored = _scored(trajectories, asked, directory)
        directory.append_chunk(file_of(1, "rollouts"), "collect", 0, numbered(scored))
        other = sum(t.data.get("replay", {}).get("other", 0) > 0 for t in trajectories)
        counts = {"replayed": len(scored), "with other results": other, "left out": len(foreign) + len(found.unknown)}
        manifest = {"schema": 1, "fate_trl": __version__, "imported": [run], "replay": counts}
        directory.write_json("manifest.json", manifest)
        rows = write_table(directory, scored, asked.seed)
    if as_json:
        print_json({"run": str(directory.path), **counts, "rows": rows})
        return
    if rows:
        out.print(metrics_table(rows))
    out.print(", ".join(f"{number} {name}" for name, number in counts.items()))
    out.print(f"run directory: {escape(visible(str(directory.path)))}", soft_wrap=True)


def _replayed(cases: list[Case], suites: dict[str, Suite], recipe: Recipe) -> list[Trajectory]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        return [
            interchange.replayed(trajectory, suites[trajectory.task.suite], recipe.rollout.limits)
            for trajectory, _ in progress.track(cases, description="replaying")
        ]


def _scored(trajectories: list[Trajectory], recipe: Recipe, directory: RunDirectory) -> list[Case]:
    """With the recipe's verifiers."""
    verifiers: list[Any] = [load_verifier(reference.name, reference.args) for reference in recipe.verifiers]
    identities = [plugins.identity(reference.name, reference.args) for reference in recipe.verifiers]
    cards = Scorer(verifiers, identities, directory)(trajectories)
    return list(zip(trajectories, cards, strict=True))
