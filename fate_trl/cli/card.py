"""`fate-trl card` and `fate-trl save`: a run's policy, described and taken along."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import RecipeError
from ..ledger.layout import round_dir
from ..ledger.reading import RunReader
from ..ledger.writing import RunDirectory
from ..recipe.schema import Recipe, hub_id
from ..report.model_card import model_card
from .console import out, visible
from .files import write_whole

RunPath = Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")]
RoundNumber = Annotated[int, typer.Option(help="Which round's policy; by default the one handed over.")]


def write_card(
    path: RunPath,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")] = "README.md",
    round: RoundNumber = -1,
) -> None:
    """Write the model card of a run's policy. It needs no network and no token."""
    _, run, recipe, number = _policy(path, round)
    target = Path(output)
    if target.exists():
        raise RecipeError(f"{target} is there already; give another place: -o FILE.")
    text = model_card(run, number, hub_id(recipe.model))
    write_whole(target, [text])
    out.print(f"wrote {escape(visible(str(target)))}", soft_wrap=True)


def save_model(
    path: RunPath,
    target: Annotated[str, typer.Argument(metavar="DIR", help="Folder to write, which must not exist.")],
    round: RoundNumber = -1,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into its base model.")] = False,
    push: Annotated[str, typer.Option(metavar="REPO_ID", help="Upload the folder to a private hub repository.")] = "",
) -> None:
    """Save a run's policy with its tokenizer and model card: an adapter, or the whole model."""
    folder, run, recipe, number = _policy(path, round)
    if folder is None:
        raise RecipeError(f"{path} has no policy of its own: it trained nothing, or no round was accepted. --round N?")
    if Path(target).exists():
        raise RecipeError(f"{target} is there already; give another place.")
    if push:
        _check_token()
    card = model_card(run, number, hub_id(recipe.model))  # before the work: it may say that something is missing
    try:
        if merge and recipe.model.lora is not None:
            from ..train.models import merge_adapter

            merge_adapter(recipe.model, folder, target)
        else:
            shutil.copytree(folder, target, ignore=shutil.ignore_patterns("README.md"))
        (Path(target) / "README.md").write_text(card, encoding="utf-8")
    except BaseException as error:  # half a policy is none
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, OSError):
            raise RecipeError(f"cannot save to {target}: {error}; give another place, or make room.") from error
        raise
    out.print(f"wrote {escape(visible(target))}", soft_wrap=True)
    if push:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(push, private=True, exist_ok=True)
        api.upload_folder(repo_id=push, folder_path=target)
        out.print(f"uploaded to {escape(visible(push))}", soft_wrap=True)


def write_cards(run: RunDirectory, recipe: Recipe) -> None:
    """A card beside the policy of each finished round."""
    for number in run.rounds:
        if (run.path / round_dir(number) / "policy").is_dir():
            run.write_text(f"{round_dir(number)}/policy/README.md", model_card(run, number, hub_id(recipe.model)))


def _check_token() -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise RecipeError("--push needs a token of the hub: set HF_TOKEN, or run `hf auth login`.")


def _policy(path: str, round: int) -> tuple[Path | None, RunReader, Recipe, int]:
    """(folder of the policy, the run, its recipe, number of the round)."""
    run = RunReader.open(path)
    recipe, folder = run.recipe(), run.policy_folder(None if round < 0 else round)
    return folder, run, recipe, int(folder.parent.name) if folder is not None else 0
