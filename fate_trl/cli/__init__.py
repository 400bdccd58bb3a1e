"""The command line. torch is imported inside commands only, and after everything that can be checked without it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape

from .. import __version__
from ..errors import FateError
from ..process.team import require_one
from .card import save_model, write_card
from .check import check_recipe
from .compare import compare_runs
from .console import err, visible
from .eval import evaluate_model
from .fsck import check_run
from .interchange import export_failures, import_recorded
from .lists import list_plugins, recipes_app
from .new_plugin import new_plugin
from .replay import replay_run
from .report import report_run
from .rescore import rescore
from .run import run_recipe
from .suites import suites_app
from .view import view_run

_LONGEST = 10_000
"""Most characters of an error that are shown: it may quote a file."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"fate-trl {__version__}")
        raise typer.Exit


@app.callback(epilog="Begin with: fate-trl run quickstart. What there is: fate-trl recipes, suites, plugins.")
def fate_trl(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train a tool-using language model on its own failed trajectories: run a recipe, look at what came of it."""


app.command("run")(run_recipe)
app.command("eval")(evaluate_model)
app.command("check")(check_recipe)
app.command("report")(report_run)
app.command("compare")(compare_runs)
app.command("view")(view_run)
app.command("card")(write_card)
app.command("save")(save_model)
app.command("fsck")(check_run)
app.command("export")(export_failures)
app.command("import")(import_recorded)
app.command("replay")(replay_run)
app.command("rescore")(rescore)
app.add_typer(suites_app, name="suites")
app.command("plugins")(list_plugins)
app.add_typer(recipes_app, name="recipes")
app.command("new-plugin")(new_plugin)


def main() -> None:
    """Entry point: our own errors become one line on stderr and exit status 2, never a traceback."""
    try:
        if not {"run", "eval"} & set(sys.argv[1:2]):
            require_one("this command")
        app(standalone_mode=True)
    except FateError as error:
        text = str(error)
        cut = f" [cut: {len(text) - _LONGEST:,} more characters]" if len(text) > _LONGEST else ""
        err.print(f"[bold red]error:[/] {escape(visible(text[:_LONGEST]) + cut)}", soft_wrap=True)
        sys.exit(2)
