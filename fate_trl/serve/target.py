"""What a target stands for, as a recipe's values: a model, an adapter, an endpoint, or the policy of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..ledger.layout import is_run, round_of, split_policy
from ..ledger.reading import RunReader
from ..recipe.loading import overridden, validated
from ..recipe.lora import CONFIG, adapter_config
from ..recipe.schema import Recipe


def recipe_of(target: str, model: str = "", base: str = "", sets: Sequence[str] = ()) -> Recipe:
    """A recipe whose `model` and `rollout` are a policy's; its other sections mean nothing.

    Args:
        target: As in `values_of`, or `RUN@2` for a round's.
        model, base: As in `values_of`.
        sets: "key=value" for keys of `model` and `rollout`.

    Raises:
        RecipeError: There is no such target, or an argument means nothing for it.
        LedgerError: The run has no policy of that round.
    """
    path, policy = split_policy(target)
    number = round_of(policy) if policy else -1
    if policy and not is_run(Path(path)):
        raise RecipeError(f"{target}: {path!r} is no run directory; a run's policy is RUN or RUN@round-2.")
    if number is None:
        raise RecipeError(f"{target}: a run's policy is RUN or RUN@round-2, not @{policy}.")
    data = values_of(path, model, base, number)
    data["suites"] = data.get("suites") or ["workbench"]  # a recipe must have some; none is opened here
    for text in sets:
        if text.partition("=")[0].partition(".")[0] not in ("model", "rollout"):
            raise RecipeError(f"--set {text}: only keys of model and rollout mean anything here.")
    overridden(data, sets)
    return validated(data)


def values_of(target: str, model: str = "", base: str = "", round: int = -1) -> dict[str, Any]:
    """A recipe's values that stand for the target, whichever of the four it is.

    Args:
        target: A model (path, hub id, name), an adapter's folder, a run directory, or an endpoint's URL.
        model: The name of an endpoint's model.
        base: The model under an adapter; by default as the adapter says itself.
        round: A run's round; below 0 the one whose policy is handed over.

    Raises:
        RecipeError: An argument means nothing for this kind of target, or one is missing.
    """
    folder = Path(target)
    if target.startswith(("http://", "https://")):
        what, fits = "an endpoint", {"--model"}
        # Small chunks: an endpoint's tokens cost money, and a stop loses at most one chunk of them.
        values: dict[str, Any] = {"model": {"path": model, "endpoint": {"url": target}}, "rollout": {"chunk": 16}}
    elif is_run(folder):
        what, fits = "a run directory", {"--round"}
        values = _of_run(folder, None if round < 0 else round)
    elif (folder / CONFIG).is_file():
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
        data["model"]["adapter" if (folder / CONFIG).exists() else "path"] = str(folder.resolve())
    return data


def _of_adapter(folder: Path, base: str) -> dict[str, Any]:
    config = adapter_config(folder)
    try:
        lora = {key: config[key] for key in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    except KeyError as error:
        raise RecipeError(f"{folder / CONFIG} is not a LoRA adapter's: it lacks {error}.") from None
    base = base or config.get("base_model_name_or_path") or ""
    if not base:
        raise RecipeError(f"{folder / CONFIG} does not name the model under the adapter; give --base MODEL.")
    return {"path": base, "adapter": str(folder.resolve()), "lora": lora}
