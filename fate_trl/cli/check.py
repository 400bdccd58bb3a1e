"""`fate-trl check`: what a recipe will run into, before any weight loads."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import FateError
from ..preflight import findings
from ..preflight.subject import Finding
from ..recipe.loading import load_recipe
from .console import AsJson, Sets, out, print_json, visible
from .run import quiet_libraries

_COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


def check_recipe(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    sets: Sets = [],  # noqa: B006 (typer copies it)
    device_memory: Annotated[
        float | None,
        typer.Option(metavar="GIB", min=1, help="Memory of the GPU in mind, such as 24; else what is here."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Load the model, and time a batch and a step.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a recipe will run into; exit status 1 if any check finds an error, 0 if none does."""
    found: list[Finding] = []
    try:
        asked = load_recipe(recipe, sets)
        quiet_libraries()
        found += findings.findings(asked, device_memory, measure)
    except FateError as error:
        found.append(findings.refused(error))
    wrong = any(finding.verdict == "error" for finding in found)
    if as_json:
        print_json({"recipe": recipe, "ok": not wrong, "findings": [dataclasses.asdict(finding) for finding in found]})
    else:
        out.print(_table(found))
        counts = [f"{sum(f.verdict == verdict for f in found)} {verdict}" for verdict in ("error", "warning", "ok")]
        out.print(", ".join(counts))
    if wrong:
        raise typer.Exit(1)


def _table(found: list[Finding]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in found:
        colour = _COLOURS[finding.verdict]
        advice = f"\n[bold]{escape(visible(finding.advice))}[/]" if finding.advice else ""
        why = escape(visible(finding.reason)) + advice
        table.add_row(f"[{colour}]{finding.verdict}[/]", escape(visible(finding.check)), why)
    return table
