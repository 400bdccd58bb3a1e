"""The command line. A command's module is imported when the command is named, and torch inside commands only, after
everything that can be checked without it: so `fate-trl --help` and what needs no model are there at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import FateError
from ..process.team import require_one
from .console import err, visible

_LONGEST = 10_000
"""Most characters of an error that are shown: it may quote a file."""

COMMANDS = {
    "run": ("run_recipe", "fate_trl.cli.run", "Run the whole loop of a recipe, or go on with one that was stopped."),
    "eval": (
        "evaluate_model",
        "fate_trl.cli.eval",
        "Evaluate a model, or the policy of a run, on held-out tasks, without training.",
    ),
    "check": (
        "check_recipe",
        "fate_trl.cli.check",
        "Say what a recipe will run into; exit status 1 if any check finds an error, 0 if none does.",
    ),
    "report": (
        "report_run",
        "fate_trl.cli.report",
        "Write a run's report: one HTML file that needs no network and runs no script.",
    ),
    "compare": (
        "compare_runs",
        "fate_trl.cli.compare",
        "Compare runs or policies (RUN@round-1, RUN@base), or files of Inspect, lm-eval, CSV and JSONL, case by case.",
    ),
    "front": (
        "show_front",
        "fate_trl.cli.front",
        "Show which policies of runs no other dominates on the validation tasks, and which one is best for a wish.",
    ),
    "view": (
        "view_run",
        "fate_trl.cli.view",
        "Look at a run's trajectories, failures and repairs in the browser; only this machine can open the page.",
    ),
    "card": (
        "write_card",
        "fate_trl.cli.card",
        "Write the model card of a run's policy. It needs no network and no token.",
    ),
    "save": (
        "save_model",
        "fate_trl.cli.card",
        "Save a run's policy with its tokenizer and model card: an adapter, or the whole model.",
    ),
    "merge": (
        "merge",
        "fate_trl.cli.merge",
        "Merge the weights of policies; of several merged ones (a front) each gets a folder of its own.",
    ),
    "fsck": (
        "check_run",
        "fate_trl.cli.fsck",
        "Show what is damaged in a run directory; status 1 if anything is. --repair mends it.",
    ),
    "export": (
        "export_records",
        "fate_trl.cli.interchange",
        "Write a run's failures, trajectories or pairs as JSONL, for other tools.",
    ),
    "import": (
        "import_recorded",
        "fate_trl.cli.interchange",
        "Read trajectories that were recorded elsewhere into a run directory: to look at, or for `rollout.recorded`.",
    ),
    "replay": (
        "replay_run",
        "fate_trl.cli.replay",
        "Execute recorded calls in a recipe's suites, in fresh environments, and score what came of them.",
    ),
    "rescore": (
        "rescore",
        "fate_trl.cli.rescore",
        "Score a run's stored rollouts with other verifiers; what they score replaces, or adds to, the stored scores.",
    ),
    "suites": ("suites_app", "fate_trl.cli.suites", "List suites, or check one, or an environment class."),
    "plugins": (
        "list_plugins",
        "fate_trl.cli.lists",
        "List built-in components, and installed plugins from their metadata alone.",
    ),
    "recipes": ("recipes_app", "fate_trl.cli.lists", "List the shipped recipes, or copy one."),
    "new-plugin": (
        "new_plugin",
        "fate_trl.cli.new_plugin",
        "Write a plugin package with a test and one marked line to fill in.",
    ),
}
"""Function or group of each command, the module that it is in, and its first sentence, for `--help`."""


def load(name: str) -> Callable[..., Any] | typer.Typer:
    """The function of a command, or its group of commands."""
    attribute, module, _ = COMMANDS[name]
    found: Callable[..., Any] | typer.Typer = getattr(importlib.import_module(module), attribute)
    return found


class OnDemand(TyperGroup):
    """The commands by name and first sentence; the one that is typed is loaded."""

    def __init__(self, **attributes: Any):
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=summary) for name, (_, _, summary) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is None:
            return name, command, rest
        found = load(name)
        if isinstance(found, typer.Typer):
            command = typer.main.get_group(found)
            command.name = name
        else:
            alone = typer.Typer(add_completion=False)
            alone.command(name)(found)
            command = typer.main.get_command(alone)
        return name, command, rest


app = typer.Typer(cls=OnDemand, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


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
