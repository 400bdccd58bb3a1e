"""`fate-trl front`: of the policies of runs those that no other dominates, and which one for which wish."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ..errors import RecipeError
from ..report import words
from .console import AsJson, counted, out, print_json, visible
from .report import say_where, write_page


def show_front(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Run directories with the same validation tasks.")],
    wish: Annotated[
        list[str] | None,
        typer.Option("--wish", metavar="W", help="Weights, such as security=2,utility=1; may be repeated."),
    ] = None,
    extend: Annotated[
        int | None, typer.Option("--extend", min=1, metavar="N", help="Write recipes that extend the N most isolated.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder of these recipes.")] = "",
    html: Annotated[str, typer.Option("--html", metavar="FILE", help="Write an HTML page too.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show which policies of runs no other dominates on the validation tasks, and which one is best for a wish."""
    from ..report.extending import extensions, write
    from ..report.front import front, wish_of

    if (extend is None) != (not output):
        raise RecipeError("--extend N and --output DIR go together: how many policies to extend, and where to write.")
    found = front(runs, wishes=[wish_of(text) for text in wish or ()])
    made = extensions(found, extend, output) if extend is not None else []
    found["extensions"] = [
        {"policy": one.policy, "objective": one.objective, "recipe": str(one.file), "command": _command(one.file)}
        for one in made
    ]
    page = _write(Path(html), found) if html else None
    write(made)  # last: a page is written anew where a recipe would be there already
    if as_json:
        print_json(found)
        return
    _show(found)
    if page is not None:
        say_where("front", page)


def _command(file: Path) -> str:
    return f"fate-trl run {shlex.quote(str(file))}"


def _write(file: Path, found: dict[str, Any]) -> Path:
    from ..report.page import render

    return write_page(file, render("front.html", f=found))


def _show(found: dict[str, Any]) -> None:
    for line in found["unlike"]:
        _say(f"unlike: {line}")
    out.print(_table(found))
    for row in found["policies"]:
        if not row["on_front"]:
            _say(f"dominated: {row['policy']}, by {', '.join(row['dominated_by'])}")
    for one in found["left_out"]:
        _say(f"left out: {one['policy']}: {one['reason']}")
    for answer in found["wishes"]:
        weights = ", ".join(f"{name}={weight:g}" for name, weight in answer["wish"].items())
        _say(f"for {weights}: {answer['policy']}")
    if found["extensions"]:
        _say("To extend the front, run:")
    for one in found["extensions"]:
        _say(f"  {one['command']}")


def _say(text: str) -> None:
    out.print(escape(visible(text)), soft_wrap=True)


def _table(found: dict[str, Any]) -> Table:
    kept = [row for row in found["policies"] if row["on_front"]]
    table = Table(
        title=f"{counted(len(kept), 'policies')} of {len(found['policies'])} that no other dominates; "
        "validation means, %, with 95 % intervals; test means below",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("policy", overflow="fold", min_width=12)
    for name in found["objectives"]:
        table.add_column(escape(visible(words.label(f"mean_{name}"))), justify="right")
    table.add_column("isolation", justify="right")
    for row in kept:
        undone = "\nrolled back" if row["accepted"] is False else ""
        cells = (_cell(row, name) for name in found["objectives"])
        table.add_row(escape(visible(row["policy"])) + undone, *cells, words.isolation(row))
    return table


def _cell(row: dict[str, Any], objective: str) -> str:
    metric, test = row["validation"][objective], row["test"].get(objective)
    few = "*" if "few_clusters" in metric else ""
    told = f"\n[dim]test {words.percent(test['value'])}[/]" if test else ""
    return f"{words.percent(metric['value'])}{few}\n{escape(words.interval(metric))}{told}"
