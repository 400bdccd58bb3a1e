"""What there is to name in a recipe: `fate-trl plugins` and `recipes`; suites stand in suites.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .. import plugins
from ..errors import RecipeError
from .console import AsJson, out, print_json, visible

recipes_app = typer.Typer(invoke_without_command=True, help="List the shipped recipes, or copy one.")


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


@recipes_app.callback()
def recipes(context: typer.Context, as_json: AsJson = False) -> None:
    """List the shipped recipes, or copy one."""
    if context.invoked_subcommand is not None:
        return
    from ..recipe.loading import shipped

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
    from ..recipe.loading import find_recipe

    path = Path(target or f"{name}.yaml")
    if path.exists():
        raise RecipeError(f"{path} is there already; give another name.")
    try:
        shutil.copyfile(find_recipe(name), path)
    except OSError as error:
        raise RecipeError(f"cannot write {path}: {error.strerror}; give another place.") from None
    out.print(f"wrote {escape(visible(str(path)))}", soft_wrap=True)
