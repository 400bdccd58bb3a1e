"""`fate-trl report`: a run as one page, for people who decide from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .console import AsJson, out, print_json, visible
from .files import write_whole


def report_run(
    run: Annotated[str, typer.Argument(help="A run directory.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="RUN/report.html by default.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write a run's report: one HTML file that needs no network and runs no script."""
    if as_json:
        from ..report.reading import Run
        from ..report.summary import summarise

        print_json(summarise(Run.open(run)))
    else:
        say_where("report", write_report(run, output))


def write_report(run: str | Path, output: str = "") -> Path:
    """Write the page of a run directory; returns where it is."""
    from ..report.page import report
    from ..report.reading import Run

    found = Run.open(run)
    return write_page(Path(output) if output else found.path / "report.html", report(found))


def write_page(file: Path, text: str) -> Path:
    """Write a page. Raises RecipeError if it cannot be written there."""
    write_whole(file, [text])
    return file


def say_where(what: str, file: Path) -> None:
    out.print(f"{what}: {escape(visible(str(file)))}", soft_wrap=True)
