"""`fate-trl suites`: list the suites; check one with scripted policies, or an environment class without any rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from .. import plugins
from .console import AsJson, counted, err, out, print_json, visible

suites_app = typer.Typer(invoke_without_command=True, help="List suites, or check one, or an environment class.")

SHOWN = 3
"""Tasks that are named where many have the same."""


@suites_app.callback()
def suites(context: typer.Context, as_json: AsJson = False) -> None:
    """List suites, or check one, or an environment class."""
    if context.invoked_subcommand is not None:
        return
    rows = [row for row in plugins.describe() if row["type"] == "suite" or _may_have_suites(row)]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(f"{escape(visible(row['name'])):<28} {escape(visible(row['summary']))}", soft_wrap=True)


def _may_have_suites(row: Mapping[str, Any]) -> bool:
    """Whether a row is of a plugin that was not imported, and whose source has suites."""
    return row["type"] in ("not imported", "blocked") and not plugins.without_suites(row["plugin"])


@suites_app.command("check")
def suites_check(
    name: Annotated[
        str,
        typer.Argument(help="A suite, such as workbench or agentdojo/banking; or an environment, my_env.py:Class."),
    ],
    sets: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="An argument of the suite, or of reset.")
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Seed of its splits, or of the arguments that tools are called with.")] = 0,
    seconds: Annotated[float, typer.Option(help="Time for one call of an environment.", min=0.1)] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Run the scripted policies over every task of a suite; exit status 1 if the suite has a defect.

    Of an environment class, tools are listed and called with arguments drawn from their schemas: what raises, hangs,
    returns no text, shares state between instances or depends on the hash seed is reported.
    """
    from ..recipe.loading import overridden

    args: dict[str, Any] = {}
    overridden(args, sets)
    if re.search(r"\.py:\w*$", name):
        _check_environment(name, args, seed, seconds, as_json)
    else:
        _check_suite(name, args, seed, as_json)


def _check_suite(name: str, args: dict[str, Any], seed: int, as_json: bool) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ..suites.checking import check_suite

    suite = plugins.load("suite", name, args)
    progress = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True)
    with progress:
        bar = progress.add_task(f"checking {name}", total=4 * len(list(suite.tasks("all", seed))))
        found = check_suite(suite, seed, lambda amount: progress.advance(bar, amount))
    if as_json:
        print_json({"suite": name, **found})
    else:
        _show_suite(name, found)
    if found["defects"] or found["errors"]:
        raise typer.Exit(1)


HEADS = ("policy", "kind", "tasks", "with script", "utility passes", "attacker wins", "harm", "resolved")


def _show_suite(name: str, found: Mapping[str, Any]) -> None:
    table = Table(title=f"{name}: {found['tasks']}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in HEADS:
        table.add_column(column, justify="left" if column in ("policy", "kind") else "right")
    for role, kinds in found["roles"].items():
        for kind, tally in kinds.items():
            table.add_row(role, kind, *(f"{value:g}" for value in tally.values()))
    out.print(table)
    _say(f"tools ({len(found['tools'])}): {', '.join(tool['name'] for tool in found['tools'])}")
    for cause in found["causes"]:
        first = f"{cause['tasks'][0]}: " if cause["detail"] and len(cause["tasks"]) > 1 else ""
        detail = f"; {first}{cause['detail']}" if cause["detail"] else ""
        _say(f"{cause['level']}: {_named(cause['tasks'])}: {cause['what']}{detail}")
    for key, title in (("no_oracle_script", "no oracle script"), ("no_attack_script", "no attack script")):
        if found[key]:
            _say(f"{title}: {_named(found[key])}")


def _named(tasks: Sequence[str]) -> str:
    """Tasks by name, or a count and the first names."""
    if len(tasks) <= SHOWN:
        return ", ".join(tasks)
    return f"{len(tasks)} tasks ({', '.join(tasks[:SHOWN])}, …)"


def _check_environment(reference: str, given: dict[str, Any], seed: int, seconds: float, as_json: bool) -> None:
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from ..suites.environment import check_reference
    from ..suites.probing import probe

    check_reference(reference)
    with Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=err, transient=True) as progress:
        bar = progress.add_task(f"trying {reference}", total=None)
        found = probe(
            reference,
            given,
            seed=seed,
            seconds=seconds,
            advance=lambda what: progress.update(bar, description=f"{reference}: {visible(what)}"),
        )
    if as_json:
        print_json({"reference": reference, **found})
    else:
        _say(f"{found['environment']}: {counted(len(found['tools']), 'tools')}, {counted(found['calls'], 'calls')}")
        for tool in found["tools"]:
            _say(f"  {tool.get('signature') or tool['name'] + ': refused'}")
        for finding in found["findings"]:
            _say(f"{finding['level']}: {finding['where']}: {finding['what']}")
        if not found["findings"]:
            _say("nothing found")
    if any(finding["level"] == "defect" for finding in found["findings"]):
        raise typer.Exit(1)


def _say(text: str) -> None:
    out.print(escape(visible(text.replace("\n", " "))), soft_wrap=True)
