"""`fate-trl export` and `fate-trl import`: records out of a run for other tools, and recorded ones into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .. import __version__, interchange, metrics
from ..errors import FateError, InterchangeError
from ..hookspecs import Suite
from ..interchange.records import numbered
from ..ledger.layout import file_of
from ..ledger.reading import RunReader
from ..ledger.writing import RunDirectory
from ..loop.counts import collect_summary
from ..loop.repairing import failures_of
from ..recipe.loading import load_recipe
from ..record import dumps
from ..suites.environment import schema_of
from ..suites.opening import open_suites, tasks_of, tools_of
from ..types import Case, Task
from .console import AsJson, Sets, counted, err, out, print_json, visible
from .files import write_whole
from .run import fresh

Format = Literal["failures", "openai", "nemo-gym", "preferences"]


def export_records(
    run: Annotated[str, typer.Argument(help="A run directory.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The JSONL file to write.")],
    format: Annotated[Format, typer.Option("--format", help="What a line is; see the docs' table of formats.")] = (
        "failures"
    ),
    round: Annotated[int | None, typer.Option(help="Only of this round; all rounds by default.")] = None,
    stage: Annotated[
        str, typer.Option(metavar="STAGE", help="openai, nemo-gym: of this stage, such as eval-test.")
    ] = "collect",
) -> None:
    """Write a run's failures, trajectories or pairs as JSONL, for other tools."""
    if stage != "collect" and format not in ("openai", "nemo-gym"):
        raise InterchangeError(f"--stage goes with --format openai and nemo-gym; {format} are of the stages they are.")
    lines, what = _lines(run, format, round, stage)
    write_whole(output, (line + "\n" for line in lines), InterchangeError)
    err.print(f"{what} written to {escape(visible(output))}", soft_wrap=True)


def _lines(run: str, format: Format, round: int | None, stage: str) -> tuple[list[str], str]:
    """The lines of an export, and what they are. Raises InterchangeError where there are none."""
    from ..interchange import exports, rows

    of = "" if round is None else f" in round {round}"
    if format == "failures":
        cases = [(number, case) for number, case in interchange.run_cases(run, round) if failures_of([case])]
        if not cases:
            raise InterchangeError(f"{run} has collected no failures{of}.")
        return [rows.line(case, number) for number, case in cases], counted(len(cases), "failures")
    tools = _Tools(run)
    if format == "preferences":
        told = list(interchange.run_pairs(run, round))
        if not told:
            raise InterchangeError(f"{run} has no pairs{of}: no failure has a chosen repair.")
        made = [
            exports.preference_row(pair.chosen, pair.rejected, pair.prompt, tools.of(pair.chosen.task))
            | {"score_gap": pair.score_gap}
            for pair in told
        ]
        return [dumps(row, sort=False) for row in made], counted(len(made), "pairs")
    cases = list(interchange.run_cases(run, round, stage))
    if not cases:
        raise InterchangeError(f"{run} has no trajectories of the stage {stage!r}{of}; {_stages(run)}")
    if format == "openai":
        made = [exports.openai_row(case, number, tools.of(case[0].task)) for number, case in cases]
        return [dumps(row, sort=False) for row in made], counted(len(made), "trajectories")
    sound = [(number, case) for number, case in cases if not metrics.is_error(case)]
    made = [exports.gym_row(case, number, tools.of(case[0].task)) for number, case in sound]
    left = f" ({len(cases) - len(sound)} with infrastructure errors left out)" if len(sound) < len(cases) else ""
    return [dumps(row, sort=False) for row in made], counted(len(made), "trajectories") + left


def _stages(run: str) -> str:
    reader = RunReader(run)
    have = {str(record.get("stage")) for n in reader.rounds for record in reader.read(file_of(n, "rollouts"))}
    return f"it has those of {', '.join(sorted(have)) or 'none'}."


class _Tools:
    """Schemas of the tools that a run's tasks offer; none, and a word about it, where its suites cannot be opened."""

    def __init__(self, run: str):
        self.suites: Mapping[str, Suite] = {}
        try:
            self.suites = open_suites(RunReader(run).recipe().suites)
        except FateError as error:
            err.print(f"[yellow]without schemas of tools:[/] {escape(visible(str(error)))}", soft_wrap=True)
        self.known: dict[tuple[str, str], dict[str, Any]] = {}

    def of(self, task: Task) -> list[dict[str, Any]]:
        return [self._schema(task.suite, name) for name in sorted(task.tools)] if task.suite in self.suites else []

    def _schema(self, suite: str, name: str) -> dict[str, Any]:
        key = (suite, name)
        if key not in self.known:
            self.known[key] = schema_of(tools_of(self.suites[suite], [name])[0], suite)
        return self.known[key]


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
