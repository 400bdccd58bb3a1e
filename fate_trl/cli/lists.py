"""What there is to name in a recipe: `fate-trl suites`, `plugins` and `recipes`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import plugins
from ..errors import RecipeError
from ..recipe.loading import find_recipe, override, shipped
from .console import AsJson, err, out, print_json, visible

suites_app = typer.Typer(invoke_without_command=True, help="List suites, or check one with scripted policies.")
recipes_app = typer.Typer(invoke_without_command=True, help="List the shipped recipes, or copy one.")


@suites_app.callback()
def suites(context: typer.Context, as_json: AsJson = False) -> None:
    """List suites, or check one with scripted policies."""
    if context.invoked_subcommand is None:
        _list("suite", as_json)


@suites_app.command("check")
def suites_check(
    name: Annotated[str, typer.Argument(help="A suite, such as workbench or agentdojo/banking.")],
    sets: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="An argument of the suite.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Seed of its splits.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run the scripted policies over every task of a suite; exit status 1 if the suite has a defect."""
    from ..suites.checking import check_suite

    args: dict[str, Any] = {}
    for text in sets:
        override(args, text)
    suite = plugins.load("suite", name, args)
    progress = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True)
    with progress:
        bar = progress.add_task(f"checking {name}", total=4 * len(list(suite.tasks("all", seed))))
        found = check_suite(suite, seed, lambda amount: progress.advance(bar, amount))
    if as_json:
        print_json({"suite": name, **found})
    else:
        _show_check(name, found)
    if found["defects"] or found["errors"]:
        raise typer.Exit(1)


def _show_check(name: str, found: Mapping[str, Any]) -> None:
    table = Table(title=f"{name}: {found['tasks']}", title_justify="left")
    for column in ("policy", "kind", "tasks", "with script", "utility passes", "attacker wins", "harm", "resolved"):
        table.add_column(column, justify="left" if column in ("policy", "kind") else "right")
    for role, kinds in found["roles"].items():
        for kind, tally in kinds.items():
            table.add_row(role, kind, *(f"{value:g}" for value in tally.values()))
    out.print(table)
    lists = ("defects", "errors", "no_oracle_script", "no_attack_script")
    for title, key in zip(("defect", "error", "no oracle script", "no attack script"), lists, strict=True):
        for line in found[key]:
            out.print(f"{title}: {escape(visible(line))}", soft_wrap=True)


def list_plugins(as_json: AsJson = False) -> None:
    """List built-in components, and installed plugins from their metadata alone."""
    rows = plugins.describe()
    if as_json:
        print_json(rows)
        return
    table = Table()
    for column in ("plugin", "type", "name", "what it is"):
        table.add_column(column)
    for row in rows:
        table.add_row(*(escape(visible(row[key])) for key in ("plugin", "type", "name", "summary")))
    out.print(table)


def _list(type: plugins.Type, as_json: bool) -> None:
    rows = [row for row in plugins.describe() if row["type"] in (type, "not imported", "blocked")]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(f"{escape(visible(row['name'])):<28} {escape(visible(row['summary']))}", soft_wrap=True)


@recipes_app.callback()
def recipes(context: typer.Context, as_json: AsJson = False) -> None:
    """List the shipped recipes, or copy one."""
    if context.invoked_subcommand is not None:
        return
    rows = [{"name": name, "purpose": _purpose(file)} for name, file in shipped().items()]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(f"{escape(visible(row['name'])):<28} {escape(visible(row['purpose']))}", soft_wrap=True)


def _purpose(file: Path) -> str:
    """First line of a recipe's header."""
    return file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").strip()


@recipes_app.command("copy")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="A shipped recipe.")],
    target: Annotated[str, typer.Argument(help="File to write; NAME.yaml by default.")] = "",
) -> None:
    """Copy a shipped recipe, to change it."""
    path = Path(target or f"{name}.yaml")
    if path.exists():
        raise RecipeError(f"{path} is there already; give another name.")
    try:
        shutil.copyfile(find_recipe(name), path)
    except OSError as error:
        raise RecipeError(f"cannot write {path}: {error.strerror}; give another place.") from None
    out.print(f"wrote {escape(visible(str(path)))}", soft_wrap=True)
