"""`fate-trl export` and `fate-trl import`: failures out of a run, and recorded ones into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .. import __version__, interchange, metrics
from ..errors import InterchangeError
from ..hookspecs import Suite
from ..interchange.records import numbered
from ..ledger.layout import file_of
from ..ledger.writing import RunDirectory
from ..loop.counts import collect_summary
from ..loop.repairing import failures_of
from ..recipe.loading import load_recipe
from ..suites.opening import open_suites, tasks_of
from ..types import Case
from .console import AsJson, Sets, err, out, print_json, visible
from .run import fresh


def export_failures(
    run: Annotated[str, typer.Argument(help="A run directory.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The JSONL file to write.")],
    round: Annotated[int | None, typer.Option(help="Only this round's failures; all rounds' by default.")] = None,
) -> None:
    """Write a run's failures as JSONL, in the reference code's keys."""
    from ..interchange import rows

    cases = [(number, case) for number, case in interchange.run_cases(run, round) if failures_of([case])]
    if not cases:
        raise InterchangeError(f"{run} has collected no failures{'' if round is None else f' in round {round}'}.")
    try:
        Path(output).write_text("".join(rows.line(case, number) + "\n" for number, case in cases), encoding="ascii")
    except OSError as error:
        raise InterchangeError(f"cannot write {output}: {error.strerror}") from None
    err.print(f"{len(cases)} failures written to {escape(visible(output))}", soft_wrap=True)


def import_recorded(
    files: Annotated[
        list[str], typer.Argument(help="JSONL files of failures, AgentDojo or Inspect logs, or folders of logs.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Run directory to write.")],
    recipe: Annotated[str, typer.Option(help="Keep only trajectories of this recipe's training tasks.")] = "",
    sets: Sets = [],  # noqa: B006 (typer copies it)
    as_json: AsJson = False,
) -> None:
    """Read trajectories that were recorded elsewhere into a run directory: to look at, or for `rollout.recorded`."""
    foreign: list[str] = []
    cases = interchange.read(*files, left_out=foreign)
    counts: dict[str, Any] = {"read": len(cases)}
    if foreign:
        counts["files left out"] = len(foreign)
    for line in foreign:
        err.print(f"left out: {escape(visible(line))}", soft_wrap=True)
    if recipe:
        asked = load_recipe(recipe, sets)
        suites = open_suites(asked.suites)
        found = matched(cases, suites, asked.seed)
        for line in found.unknown:
            err.print(f"left out: {escape(visible(line))}", soft_wrap=True)
        counts |= {"of held-out tasks": len(found.held_out), "of no task of the recipe": len(found.unknown)}
        cases = interchange.executed(found.cases, suites, asked.rollout.limits)
    if not cases:
        raise InterchangeError(f"none of {counts['read']} trajectories is of a training task of {recipe}.")
    directory = RunDirectory(fresh(Path(output)))
    with directory.lock():
        _write(directory, cases, files)
    kinds = {f"{suite or 'no suite'}, {kind}": n for (suite, kind), n in _kinds(cases).items()}
    summary = {name: n for name, n in collect_summary(cases).items() if not name.endswith("tokens")}
    if as_json:
        print_json({"run": str(directory.path), **counts, **summary, "kinds": kinds})
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    for name, number in {**counts, **summary, **kinds}.items():
        table.add_row(escape(visible(name)), str(number))
    out.print(table)
    out.print(f"run directory: {escape(visible(str(directory.path)))}", soft_wrap=True)


def matched(cases: Sequence[Case], suites: Mapping[str, Suite], seed: int, train: str = "train") -> interchange.Matched:
    """The cases and the suites' tasks; those of the split `train` are kept."""
    return interchange.match(cases, tasks_of(suites, "all", seed), tasks_of(suites, train, seed))


def _write(directory: RunDirectory, cases: Sequence[Case], files: list[str]) -> None:
    by_round: dict[int, list[Case]] = {}
    for case in cases:
        by_round.setdefault(interchange.round_of(case), []).append(case)
    for round, members in by_round.items():
        directory.append_chunk(file_of(round, "rollouts"), "collect", 0, numbered(members))
    directory.write_json("manifest.json", {"schema": 1, "fate_trl": __version__, "imported": files})
    write_table(directory, cases)


def write_table(directory: RunDirectory, cases: Sequence[Case], seed: int = 0) -> list[dict[str, Any]]:
    """Write metrics.json of whole logs, for the report's table: one policy, by its name where all name the same.

    Rows of failures have none: of what succeeded they do not tell.
    """
    logs = [case for case in numbered(cases) if "row" not in case[0].data]
    names = {trajectory.policy for trajectory, _ in logs}
    policy = names.pop() if len(names) == 1 else ""
    if not logs:
        return []
    rows = metrics.rows(logs, round=1, split="test", policy=policy or "recorded", accepted=True, seed=seed)
    directory.write_json("metrics.json", {"schema": 1, "rows": rows})
    return rows


def _kinds(cases: Sequence[Case]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for trajectory, _ in cases:
        key = (trajectory.task.suite, trajectory.task.kind)
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))
