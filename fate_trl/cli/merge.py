"""`fate-trl merge`: one policy, or a front of them, from the weights of several."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .. import plugins
from ..errors import FateError, LedgerError, RecipeError
from ..ledger.components import metrics_of
from ..ledger.layout import is_run, policy_folder, round_of, split_policy
from ..ledger.reading import RunReader
from ..ledger.writing import RunDirectory
from ..loop.merging import checked
from ..recipe.checks import check
from ..recipe.loading import validated
from ..recipe.lora import adapter_config
from ..record import dumps, plain
from ..serve.target import values_of
from .console import AsJson, Sets, out, print_json, visible
from .rescore import arguments


def merge(
    method: Annotated[str, typer.Argument(help="A merge, such as soup or merging/map; `fate-trl plugins` lists them.")],
    policies: Annotated[list[str], typer.Argument(metavar="POLICY...", help="RUN, RUN@ROUND, or a folder of weights.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder to write; a new one.")],
    sets: Sets = [],  # noqa: B006
    tasks: Annotated[int, typer.Option(min=1, help="Validation tasks of one evaluation, where the merge asks.")] = 60,
    rank: Annotated[int, typer.Option(min=0, help="Rank of a merged adapter; 0 for the exact one.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the merge's draws, and of its evaluations.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Merge the weights of policies; of several merged ones (a front) each gets a folder of its own."""
    if Path(output).exists():
        raise RecipeError(f"{output} is there already; give another place.")
    chooser = plugins.load("merge", method, arguments(sets))
    folders = [_weights(policy) for policy in policies]
    evaluation = _Evaluation(policies[0], folders, tasks, seed)
    target = _new_folder(output)
    try:
        rows = chooser.coefficients(len(folders), evaluation, np.random.default_rng(seed))
        chosen = checked(rows, len(folders), method)
        from ..train.merging import merge_weights

        written: list[dict[str, Any]] = []
        record: dict[str, Any] = {"method": method, "policies": policies, "merged": written, "tried": evaluation.tried}
        record |= {"metrics": metrics_of(chooser)}
        for number, row in enumerate(chosen, 1):
            path = target if len(chosen) == 1 else target / f"{number:02}"
            path.mkdir(exist_ok=True)
            told = merge_weights(folders, row, path, rank or None)
            written.append({"folder": str(path), "coefficients": row, **told})
        (target / "merge.json").write_text(dumps(record) + "\n", encoding="utf-8")
    except BaseException as error:  # half a policy is none
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, OSError):
            raise FateError(f"{output} cannot be written: {error}; give another place, or make room.") from error
        raise
    if as_json:
        return print_json(plain(record))
    out.print(_table(policies, record, evaluation))


def _new_folder(output: str) -> Path:
    """The folder to write, made before anything is tried. Raises RecipeError where it cannot be."""
    target = Path(output)
    try:
        target.mkdir(parents=True)
    except OSError as error:
        raise RecipeError(f"the folder {output} cannot be made: {error.strerror}; give another place.") from None
    return target


def _weights(policy: str) -> Path:
    """The folder of a policy's weights. Raises RecipeError or LedgerError where there is none."""
    name, wanted = split_policy(policy)
    path, round = Path(name), round_of(wanted)
    if wanted and round is None:
        raise RecipeError(f"{policy}: after the @ stands the number of a round.")
    if not is_run(path):
        if wanted or not any(path.glob("*.safetensors")):
            raise RecipeError(f"{policy!r} is neither a run directory, RUN@ROUND, nor a folder with safetensors.")
        return path
    found = policy_folder(path, 0) if round == 0 else RunReader.open(path).policy_folder(round)
    if found is None:
        raise LedgerError(f"{policy} has no weights of its own: it trained nothing, or no round was accepted.")
    return found


class _Evaluation:
    """What merged policies score on validation tasks of the first policy's run; a model is loaded when it is asked."""

    def __init__(self, target: str, folders: Sequence[Path], tasks: int, seed: int):
        self.target, self.folders, self.tasks, self.seed = target, folders, tasks, seed
        self.tried: list[dict[str, Any]] = []
        self.objectives: Sequence[str] = ()

    def __call__(self, coefficients: Sequence[float]) -> Sequence[float]:
        from ..train.merging import merge_weights

        (row,) = checked([coefficients], len(self.folders), "in hand")
        with tempfile.TemporaryDirectory() as scratch:
            merge_weights(self.folders, row, scratch)
            self._run.learner.load(scratch)
        scores: list[float] = self._run.validation_scores(self.seed)
        shown = [None if math.isnan(score) else score for score in scores]  # JSON has no NaN
        self.tried.append({"coefficients": row, "scores": dict(zip(self.objectives, shown, strict=True))})
        return scores

    @cached_property
    def _run(self) -> Any:
        from ..train.build import build

        run, _ = split_policy(self.target)
        if not is_run(Path(run)):
            raise FateError(f"this merge evaluates; give a run first, whose tasks it can take: {self.target} is none.")
        data = values_of(run)
        data["model"]["adapter"] = None
        if data["model"]["lora"] is not None:
            data["model"]["lora"] |= self._exact(data["model"]["lora"])
        data |= {
            "rounds": 0,
            "evaluation": {**data["evaluation"], "validation": self.tasks},
            "output_dir": "runs/merge",
        }
        recipe = validated(data)
        made = build(recipe, RunDirectory(tempfile.mkdtemp()), components=check(recipe))
        self.objectives = made.objectives
        return made

    def _exact(self, lora: dict[str, Any]) -> dict[str, Any]:
        """The size of the exact merged adapter."""
        sizes = [adapter_config(folder) for folder in self.folders]
        rank = sum(size["r"] for size in sizes)
        return {"r": rank, "lora_alpha": sizes[0]["lora_alpha"] * rank // sizes[0]["r"] or rank}


def _table(policies: Sequence[str], record: dict[str, Any], evaluation: _Evaluation) -> Table:
    table = Table(box=SIMPLE_HEAD, title="Shares of the policies")
    table.add_column("written to")
    for policy in policies:
        table.add_column(escape(visible(policy)), justify="right")
    scores: dict[tuple[float, ...], Any] = {tuple(t["coefficients"]): t["scores"] for t in evaluation.tried}
    for name in evaluation.objectives:
        table.add_column(f"{name}, %", justify="right")
    number: Callable[[float | None], str] = lambda score: "" if score is None else f"{100 * score:.0f}"  # noqa: E731
    for merged in record["merged"]:
        own = scores.get(tuple(merged["coefficients"]), {})
        shares = (f"{share:.2f}" for share in merged["coefficients"])
        cells = (number(own.get(name)) for name in evaluation.objectives)
        table.add_row(escape(visible(merged["folder"])), *shares, *cells)
    return table
