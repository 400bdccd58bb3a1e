"""`fate-trl compare`: policies of several runs, or results that other tools made, case by case."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ..errors import RecipeError
from ..interchange.results import READERS, Columns, recognised
from ..ledger.layout import split_policy
from ..metrics.columns import Correction
from ..report import words
from .console import AsJson, counted, out, print_json, visible
from .report import say_where, write_page

_SHOWN = 10
_STYLES = {"better": "green", "worse": "red", "unclear": "dim", "": ""}


def compare_runs(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN[@POLICY]…|FILE…", help="The first is what the others are compared with."),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Write an HTML page too.")] = "",
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare across splits and versions.")] = False,
    max_error_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of cases that may have an error.")] = 0.02,
    case: Annotated[str, typer.Option("--case", metavar="COLUMN", help="Files: what names the case.")] = "",
    cluster: Annotated[
        str, typer.Option("--cluster", metavar="COLUMN", help="Files: a column, metadata or doc key of clusters.")
    ] = "",
    score: Annotated[
        list[str] | None, typer.Option("--score", metavar="COLUMN", help="Files: a column of scores; may be repeated.")
    ] = None,
    metric: Annotated[
        str, typer.Option("--metric", metavar="SCORE", help="Files: the score by which cases are won and lost.")
    ] = "",
    correction: Annotated[
        Correction, typer.Option("--correction", help="Files: how p is corrected for the number of scores.")
    ] = "holm",
    as_json: AsJson = False,
) -> None:
    """Compare runs or policies (RUN@round-1, RUN@base), or files of Inspect, lm-eval, CSV and JSONL, case by case."""
    files = [name for name in runs if recognised(Path(name))]
    for name in runs:
        if files or Path(name).suffix.lower() in READERS:
            _check_there(name)
    if files and len(files) < len(runs):
        other = next(name for name in runs if name not in files)
        raise RecipeError(
            f"{files[0]} is a file of results and {other} is none, so they cannot be compared. Give runs only, or "
            "files only: logs of Inspect, samples of lm-eval, CSV or JSONL."
        )
    if files:
        from ..report.results import compare_results

        found = compare_results(
            files,
            columns=Columns(case, cluster, tuple(score or ())),
            correction=correction,
            primary=metric,
            anyway=anyway,
            max_error_rate=max_error_rate,
        )
    else:
        from ..report.comparison import compare

        found = compare(runs, anyway=anyway, max_error_rate=max_error_rate)
    page = _write(Path(output), "results.html" if files else "compare.html", found) if output else None
    if as_json:
        print_json(found)
        return
    for part in found["comparisons"]:
        _show_results(found, part) if files else _show(found["reference"], part)
    if page is not None:
        say_where("comparison", page)


def _check_there(name: str) -> None:
    if not (Path(name).exists() or Path(split_policy(name)[0]).exists()):
        raise RecipeError(f"there is no {name!r} here; give run directories, or files of results.")


def _write(file: Path, template: str, found: dict[str, Any]) -> Path:
    from ..report.page import render

    return write_page(file, render(template, c=found))


def _show(reference: dict[str, Any], part: dict[str, Any]) -> None:
    a, b = (f"{side['name']} ({side['policy']})" for side in (reference, part))
    for line in part["unlike"]:
        out.print(f"[yellow]unlike:[/] {escape(visible(line))}", soft_wrap=True)
    out.print(escape(visible(f"a = {a}\nb = {b}")), soft_wrap=True)
    table = Table(
        title=f"{counted(part['tasks'], 'test tasks')}, %, paired differences with 95 % intervals",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("metric", no_wrap=True)
    for column in ("a", "b", "b − a", "95 %", "rose", "fell", "p"):
        table.add_column(column, justify="right")
    for name in (name for name in words.HEADLINE if name in part["metrics"]):
        metric = part["metrics"][name]
        change, style = metric["change"], _STYLES[words.judged(name, metric["change"])]
        few = "*" if "few_clusters" in change else ""
        difference = f"[{style}]{words.signed(change['value'])}[/]" if style else words.signed(change["value"])
        values = (words.percent(metric[side]["value"]) for side in "ab")
        counts = (str(change.get("rose", "–")), str(change.get("fell", "–")))
        p = words.p_value(change["p"]) if "p" in change else "–"
        ends = escape(words.signed_interval(change)) + few
        table.add_row(f"{name} {words.arrow(name)}", *values, difference, ends, *counts, p)
    out.print(table)
    for what in ("won", "lost"):
        out.print(f"{what}: {counted(len(part[what]), 'tasks')} resolved by {'b' if what == 'won' else 'a'} only")
        for task in part[what][:_SHOWN]:
            asked = " ".join(task["asked"].split())[:80]
            text = f"  {task['kind']:<9} {task['suite']} {task['task']}  {asked}  ({', '.join(task['failed'])} failed)"
            out.print(escape(visible(text)), soft_wrap=True)
        if len(part[what]) > _SHOWN:
            out.print(f"  … {len(part[what]) - _SHOWN} more; -o and --json have them all")


def _show_results(found: dict[str, Any], part: dict[str, Any]) -> None:
    """One file of results against the first."""
    for line in part["unlike"]:
        out.print(f"[yellow]unlike:[/] {escape(visible(line))}", soft_wrap=True)
    for side, letter in ((found["reference"], "a"), (part, "b")):
        model = f" ({side['model']})" if side["model"] else ""
        broken = f", {counted(side['errors'], 'cases')} with errors left out" if side["errors"] else ""
        out.print(escape(visible(f"{letter} = {side['name']}{model}{broken}")), soft_wrap=True)
    table = Table(
        title=f"{counted(part['pairs'], 'cases')}, paired by {part['paired_by']}; differences with 95 % intervals",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("score", overflow="fold", min_width=8)
    for column in ("a", "b", "b − a", "95 %", "rose", "fell", words.CORRECTIONS[found["correction"]]):
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    for name, entry in part["metrics"].items():
        few = "*" if "few_clusters" in entry else ""
        style = "dim" if entry["low"] <= 0 <= entry["high"] else "bold"
        table.add_row(
            escape(visible(name)),
            *(words.number(entry[side]) for side in "ab"),
            f"[{style}]{words.signed_number(entry['value'])}[/]",
            f"{words.signed_number(entry['low'])}, {words.signed_number(entry['high'])}{few}",
            *(str(entry.get(key, "–")) for key in ("rose", "fell")),
            words.p_value(entry["p_corrected"]),
        )
    out.print(table)
    for what in ("won", "lost"):
        out.print(f"{what}: {counted(len(part[what]), 'cases')} by {escape(visible(part['primary']))}", soft_wrap=True)
        for case in part[what][:_SHOWN]:
            asked = " ".join(case["asked"].split())[:80]
            out.print(escape(visible(f"  {case['case']}  {asked}  {case['a']:g} → {case['b']:g}")), soft_wrap=True)
        if len(part[what]) > _SHOWN:
            out.print(f"  … {len(part[what]) - _SHOWN} more; -o and --json have them all")
