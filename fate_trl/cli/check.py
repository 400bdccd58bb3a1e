"""`fate-trl check`: what a recipe will run into, before any weight loads."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import FateError, RecipeError
from ..preflight import findings
from ..preflight.subject import Finding
from ..recipe.grpo import grpo_recipe, own_words
from ..recipe.loading import load_recipe
from .console import AsJson, Sets, out, print_json, visible
from .run import quiet_libraries

_OF_A_RECIPE = ("time", "licence: jsonl")
"""What says nothing of a GRPOConfig: rounds are not timed, and its data set is no suite."""

_COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


def check_recipe(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")] = "",
    sets: Sets = [],  # noqa: B006 (typer copies it)
    grpo: Annotated[str, typer.Option(metavar="FILE", help="In a recipe's place: a YAML of GRPOConfig's keys.")] = "",
    model: Annotated[str, typer.Option(metavar="MODEL", help="With --grpo: a folder or a hub id.")] = "",
    suite: Annotated[list[str], typer.Option(metavar="NAME", help="With --grpo: a suite of prompts and tools.")] = [],  # noqa: B006
    dataset: Annotated[
        str, typer.Option(metavar="FILE", help="With --grpo: JSONL, JSON or CSV with the column 'prompt'.")
    ] = "",
    device_memory: Annotated[
        float | None,
        typer.Option(metavar="GIB", min=1, help="Memory of the GPU in mind, such as 24; else what is here."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Load the model, and time a batch and a step.")] = False,
    step: Annotated[
        bool, typer.Option("--step", help="Load the model, and try each training stage at its full length.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a recipe will run into; exit status 1 if any check finds an error, 0 if none does."""
    _check_options(recipe, grpo, {"--model": model, "--suite": suite, "--dataset": dataset}, measure)
    found: list[Finding] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            if grpo:
                asked = grpo_recipe(grpo, model=model, suites=suite, dataset=dataset, sets=sets, folder=Path(folder))
            else:
                asked = load_recipe(recipe, sets)
            quiet_libraries()
            for finding in findings.findings(asked, device_memory, measure, step):
                if not grpo:
                    found.append(finding)
                elif finding.check not in _OF_A_RECIPE:
                    found.append(_in_own_words(finding))
    except FateError as error:
        found += findings.refused(error)
    wrong = any(finding.verdict == "error" for finding in found)
    if as_json:
        told = [dataclasses.asdict(finding) for finding in found]
        print_json({"recipe": recipe or grpo, "ok": not wrong, "findings": told})
    else:
        out.print(_table(found))
        counts = [f"{sum(f.verdict == verdict for f in found)} {verdict}" for verdict in ("error", "warning", "ok")]
        out.print(", ".join(counts))
    if wrong:
        raise typer.Exit(1)


def _check_options(recipe: str, grpo: str, of_grpo: dict[str, Any], measure: bool) -> None:
    if bool(recipe) == bool(grpo):
        raise RecipeError("give either a recipe, or --grpo FILE with GRPOConfig's keys.")
    for option, value in of_grpo.items():
        if value and not grpo:
            raise RecipeError(f"{option} goes with --grpo; a recipe names its own.")
    if grpo and measure:
        raise RecipeError("--measure times a recipe's rounds; with --grpo, --step tries a step of training.")
    if of_grpo["--suite"] and of_grpo["--dataset"]:
        raise RecipeError("give the prompts by --suite or by --dataset, not by both.")


def _in_own_words(finding: Finding) -> Finding:
    check, reason, advice = map(own_words, (finding.check, finding.reason, finding.advice))
    return dataclasses.replace(finding, check=check, reason=reason, advice=advice)


def _table(found: list[Finding]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in found:
        colour = _COLOURS[finding.verdict]
        advice = f"\n[bold]{escape(visible(finding.advice))}[/]" if finding.advice else ""
        why = escape(visible(finding.reason)) + advice
        table.add_row(f"[{colour}]{finding.verdict}[/]", escape(visible(finding.check)), why)
    return table
