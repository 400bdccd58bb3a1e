"""`fate-trl run`: the whole loop, or the rest of one that was stopped."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from .. import __version__, interchange, plugins
from ..errors import PluginError, RecipeError, SuiteError
from ..ledger.reading import RunReader
from ..ledger.writing import RunDirectory
from ..loop.reporter import Reporter
from ..loop.rounds import Evolution
from ..preflight.hub import reach_hub
from ..process import team
from ..process.stop import Stopped
from ..process.team import Deserted
from ..recipe.checks import check
from ..recipe.components import Components
from ..recipe.loading import load_with_components
from ..recipe.schema import Recipe
from ..record import dumps, stable_hash
from ..verify.loading import tell_run
from .card import write_cards
from .console import AsJson, Quiet, Sets, err, out, visible
from .progress import reporting
from .report import say_where, write_report
from .tables import metrics_table


def run_recipe(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")] = "",
    sets: Sets = [],  # noqa: B006 (typer copies it)
    resume: Annotated[str, typer.Option(metavar="RUN", help="Go on with a run directory that was stopped.")] = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop of a recipe, or go on with one that was stopped."""
    if team.rank() > 0:
        return follow()
    if bool(recipe) == bool(resume):
        raise RecipeError("give either a recipe, or --resume RUN.")
    if resume:
        asked, components, directory = resumed(resume, sets)
    else:
        asked, components = load_with_components(recipe, sets)
        reach_hub(asked)
        if asked.rollout.recorded is not None:
            interchange.read(asked.rollout.recorded)  # what is wrong with it is said before torch is imported
        directory = RunDirectory(fresh(Path(asked.output_dir)))
    with directory.lock(), explained(directory, "run"):
        directory.write_text("recipe.yaml", asked.dump())
        go(asked, components, directory, quiet, as_json)


def follow() -> None:
    """This process is not the main one of those that a launcher started."""
    from ..train.build import follow

    quiet_libraries()
    try:
        follow()
    except Deserted:
        sys.exit(1)


def resumed(path: str, sets: list[str]) -> tuple[Recipe, Components, RunDirectory]:
    if sets:
        raise RecipeError(
            "--resume goes on with the recipe as it was; --set cannot change it. Start a new run instead."
        )
    run = RunReader.open(path)
    recipe = run.recipe()
    if finished(run, recipe):
        said = "is finished: nothing is left to do but its tables and its report"
        err.print(f"{escape(visible(path))} {said}", soft_wrap=True)
    return recipe, check(recipe), RunDirectory(path)


def finished(run: RunReader, recipe: Recipe) -> bool:
    """Whether every round that the recipe asks for is decided, or where it asks for none, all is evaluated."""
    if recipe.rounds:
        return recipe.rounds in run.rounds and "accept" in run.stages(recipe.rounds)
    return bool((run.read_json("metrics.json") or {}).get("rows"))


def fresh(path: Path) -> Path:
    """The path, or the first of path-2, path-3, … that does not exist: a run never writes into another."""
    if path.name in ("", ".."):
        raise RecipeError(f"the run directory {str(path)!r} has no name of its own; give another place.")
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    if candidate != path:
        there, place = escape(visible(str(path))), escape(visible(str(candidate)))
        err.print(f"{there} is there already, so this goes into [bold]{place}[/]", soft_wrap=True)
    return candidate


_AGAIN = (RecipeError, PluginError, SuiteError)
"""What is wrong with what was asked for stops a resumed run in the same place."""


@contextlib.contextmanager
def explained(directory: RunDirectory, command: str) -> Iterator[None]:
    """However the run stops, the way to go on with it is on the screen, if there is one; one that recorded nothing is
    taken back."""
    signal.signal(signal.SIGTERM, _terminate)
    new = set(directory.path.iterdir()) <= {directory.path / ".lock"}
    try:
        yield
    except BaseException as error:
        if new and not directory.rounds:
            _take_back(directory)
            if isinstance(error, KeyboardInterrupt):
                err.print("stopped before anything was recorded")
                sys.exit(getattr(error, "status", 128 + signal.SIGINT))
            raise
        if isinstance(error, _AGAIN):
            raise
        way = f"fate-trl {command} --resume {escape(visible(str(directory.path)))}"
        err.print(f"stopped; go on with: [bold]{way}[/]", soft_wrap=True)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(getattr(error, "status", 128 + signal.SIGINT))
        raise


def _take_back(directory: RunDirectory) -> None:
    """Remove a run directory that holds no record, only what was asked."""
    for name in ("recipe.yaml", "manifest.json", ".lock"):
        (directory.path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it: that stays
        directory.path.rmdir()


def _terminate(number: int, frame: Any) -> None:
    raise Stopped(number)


def go(asked: Recipe, components: Components, directory: RunDirectory, quiet: bool, as_json: bool) -> None:
    """Load what the recipe names, run it, and show what came out."""
    quiet_libraries()
    tell_run([*components.verifiers, *components.held_out], directory)  # what is not there is said before torch loads
    if asked.model.endpoint is not None:
        team.require_one("a model behind an endpoint")
        from ..serve.endpoint import build  # no torch: the model runs elsewhere
    else:
        from ..train.build import build  # torch, from here on

    with reporting(quiet, as_json) as shown, _tracked(asked, directory, shown) as reporter:
        evolution = build(asked, directory, reporter, components)
        directory.write_json("manifest.json", _manifest(asked, evolution))
        with evolution.stop.listening():
            rows = evolution()
    if not as_json:
        out.print(metrics_table(rows))
        if asked.evaluation.keep == "best" and (kept := directory.kept) is not None:
            out.print(f"kept: the policy of round {kept}, the best on the validation tasks")
        out.print(f"run directory: {directory.path}", soft_wrap=True)
    _described("its model cards", directory, lambda: write_cards(directory, asked))
    page = _described("its report", directory, lambda: write_report(directory.path))
    if as_json:
        report = None if page is None else str(page)
        print(dumps({"event": "finished", "run": str(directory.path), "report": report, "rows": rows}))
    elif page is not None:
        say_where("report", page)


def _described(what: str, directory: RunDirectory, write: Callable[[], Any]) -> Any:
    """What `write` returns; a warning, and None, where it fails: the run is done all the same."""
    try:
        return write()
    except Exception as error:
        place, reason = visible(str(directory.path)), visible(f"{type(error).__name__}: {error}")
        again = f"The run is finished; `fate-trl report {place}` tries once more."
        err.print(f"[yellow]warning:[/] {what} cannot be written: {escape(reason)}. {escape(again)}", soft_wrap=True)
        return None


@contextlib.contextmanager
def _tracked(asked: Recipe, directory: RunDirectory, shown: Reporter) -> Iterator[Reporter]:
    """The recipe's trackers in front of what is shown; they are told when the run ends, however it does."""
    if not asked.report_to:
        yield shown
        return
    from ..loop.trackers import Tracking

    with contextlib.closing(Tracking(asked, directory, shown)) as reporter:
        yield reporter


def quiet_libraries() -> None:
    """Keep other libraries' bars and notes about their next versions off our screen; they are not for our users."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _manifest(asked: Recipe, evolution: Evolution) -> dict[str, Any]:
    """What a reader needs to repeat the run: versions, seeds, hashes, hardware, the suites' own words."""
    packages = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
    return {
        "schema": 1,
        "fate_trl": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "plugins": {name: found[0].dist.version for name, found in plugins.installed().items() if found[0].dist},
        "recipe": asked.model_dump(mode="json"),
        "recipe_hash": f"{stable_hash(asked.model_dump(mode='json')):016x}",
        "seed": asked.seed,
        **_chosen(asked, evolution.recipe),
        "suites": {name: suite.describe() for name, suite in evolution.suites.items()},
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            **_accelerators(asked),
        },
    }


def _chosen(asked: Recipe, settled: Recipe) -> dict[str, Any]:
    """What `auto` became, so that a resumed run goes on with it."""
    keys = [key for key in ("dtype", "threads") if getattr(asked.model, key) == "auto"]
    return {"chosen": {key: getattr(settled.model, key) for key in keys}} if keys else {}


def _accelerators(asked: Recipe) -> dict[str, Any]:
    """What the model runs on, where it runs here."""
    if asked.model.endpoint is not None:
        return {}
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processes": team.count(), "threads": torch.get_num_threads(), "gpus": gpus}
