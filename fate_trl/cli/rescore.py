"""`fate-trl rescore`: the stored rollouts of a run, scored by other verifiers, without a model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .. import metrics, plugins
from ..errors import ErrorBudgetExceeded, RecipeError
from ..ledger.layout import round_dir
from ..ledger.scores import Scorer
from ..ledger.writing import RunDirectory
from ..loop.counts import errors, measured
from ..metrics import summarize
from ..recipe.loading import overridden
from ..report.reading import Run
from ..types import Case, ScoreCard, Trajectory
from ..verify.loading import load as load_verifier
from ..verify.loading import tell_run
from ..verify.scoring import SECONDS, check_objectives, spent
from .console import AsJson, counted, err, out, print_json, visible
from .run import fresh

BATCH = 64
"""Trajectories that a verifier is asked about at once, as many as a chunk has by default."""

Stage = tuple[int, str]


def rescore(
    run: Annotated[str, typer.Argument(help="A run directory.")],
    verifier: Annotated[list[str], typer.Option(help="Verifier to score with; may be given several times.")],
    sets: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="An argument of the verifier.")] = [],  # noqa: B006
    stage: Annotated[list[str], typer.Option(help="Only this stage, such as eval-test; may be repeated.")] = [],  # noqa: B006
    round: Annotated[list[int], typer.Option(help="Only this round; may be repeated.")] = [],  # noqa: B006
    seconds: Annotated[float, typer.Option(min=0.001, help="Time for one call of a verifier.")] = SECONDS,
    as_json: AsJson = False,
) -> None:
    """Score a run's stored rollouts with other verifiers; what they score replaces, or adds to, the stored scores."""
    found, verifiers = Run.open(run), _verifiers(verifier, sets)
    directory = RunDirectory(run)
    tell_run(verifiers, directory)
    with directory.lock():
        identities = [plugins.identity(name, arguments(sets)) for name in verifier]
        scorer = Scorer(verifiers, identities, directory, seconds)
        target = RunDirectory(fresh(Path(run) / "rescored" / re.sub(r"\W+", "-", "+".join(verifier)).strip("-")))
        cases = _rescored(found, scorer, target, stage, round)
    objectives = [name for one in verifiers for name in one.objectives]
    seed = found.recipe.get("seed", 0)
    rows = [row for key, pairs in cases.items() for row in _rows(found, key, [new for _, new in pairs], seed)]
    differences = [_difference(key, pairs, objectives, seed) for key, pairs in cases.items()]
    spending = spent(verifiers)
    cost = {"judging": spending} if spending else {}
    target.write_json("metrics.json", {"schema": 1, "rows": rows})
    target.write_json("rescore.json", {"schema": 1, "verifiers": identities, **cost, "differences": differences})
    if as_json:
        print_json(
            {"written": str(target.path), "verifiers": identities, **cost, "differences": differences, "rows": rows}
        )
    else:
        out.print(_table(differences))
        for name, amount in spending.items():
            out.print(f"{escape(visible(name))}: {amount:g}")
        out.print(f"written: {escape(visible(str(target.path)))}", soft_wrap=True)


def arguments(sets: Sequence[str]) -> dict[str, Any]:
    args: dict[str, Any] = {}
    overridden(args, sets)
    return args


def _verifiers(names: Sequence[str], sets: Sequence[str]) -> list[Any]:
    if sets and len(names) > 1:
        raise RecipeError("--set gives an argument to one verifier; rescore with one --verifier at a time.")
    verifiers = [load_verifier(name, arguments(sets)) for name in names]
    check_objectives(verifiers, [])
    return verifiers


# ------------------------------------------------------------------------------------------------ scoring


def _rescored(
    run: Run, scorer: Scorer, target: RunDirectory, stages: Sequence[str], rounds: Sequence[int]
) -> dict[Stage, list[tuple[Case, Case]]]:
    """(stored, new) cases by round and stage, without their text; each batch of cards is written as it is made."""
    files = [
        (number, file) for number in run.rounds for file in ("rollouts", "repairs") if not rounds or number in rounds
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    out: dict[Stage, list[tuple[Case, Case]]] = {}
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("rescoring", total=sum(1 for place in files for _ in run.records(*place)))
        for number, file in files:
            for batch in _batches(run.records(number, file)):
                progress.advance(bar, len(batch))
                chosen = [record for record in batch if not stages or record["stage"] in stages]
                for record, pair in zip(chosen, _score(scorer, target, number, chosen), strict=True):
                    out.setdefault((number, record["stage"]), []).append(pair)
    if not out:
        names = {name for part in run.rounds.values() for name in part.stages}
        known = sorted(name for name in names if name in ("collect", "repair") or name.startswith("eval-"))
        raise RecipeError(f"{run.path} has no such rollouts; its stages are {', '.join(known) or 'none yet'}.")
    return out


def _batches(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for record in records:
        batch.append(record)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _score(
    scorer: Scorer, target: RunDirectory, number: int, records: Sequence[Mapping[str, Any]]
) -> list[tuple[Case, Case]]:
    if not records:
        return []
    trajectories = [Trajectory.from_dict(record["trajectory"]) for record in records]
    stored = [ScoreCard.from_dict(record["card"]) for record in records]
    new = scorer(trajectories)
    fresh = [dataclasses.replace(a, scores={**a.scores, **b.scores}) for a, b in zip(stored, new, strict=True)]
    target.append(
        f"{round_dir(number)}/cards.jsonl",
        ({"key": list(t.key), "card": card.to_dict()} for t, card in zip(trajectories, fresh, strict=True)),
    )
    return [((t, old), (t, new)) for t, old, new in zip(map(_light, trajectories), stored, fresh, strict=True)]


def _light(trajectory: Trajectory) -> Trajectory:
    """All that metrics need, in a tenth of the memory."""
    return dataclasses.replace(trajectory, prompt=(), messages=(), prompt_ids=(), completion_ids=(), policy_mask=())


# ------------------------------------------------------------------------------------------------ what came out


def _rows(run: Run, key: Stage, cases: Sequence[Case], seed: int) -> list[dict[str, Any]]:
    """Rows of metrics.json, each with its stage besides; collected and repaired trajectories are of the split train."""
    number, stage = key
    split, policy = "train", f"round-{number}"
    if stage.startswith("eval-"):
        begins = {"warm_start": bool(run.recipe.get("warm_start")), "rounds": run.recipe.get("rounds", 1)}
        split, policy = measured(stage, number, **begins)
    accepted = bool(run.rounds[number].accepted)
    rows = metrics.rows(cases, round=number, split=split, policy=policy, accepted=accepted, seed=seed)
    return [{"stage": stage, **row} for row in rows]


def _difference(key: Stage, pairs: Sequence[tuple[Case, Case]], objectives: Sequence[str], seed: int) -> dict[str, Any]:
    """What the new scores change, case by case: new less stored, of `resolved` and of each objective's mean.

    {"round", "stage", "cases", "errors", "causes", "metrics": {name: {"stored", "rescored", "difference"}}}; the first
    two are values of `metrics.summarize`, the difference is `metrics.paired`'s, null where nothing was stored, and
    {"undecided": reason} past its error budget.
    """
    stored, new = [list(side) for side in zip(*pairs, strict=True)]
    sides = [summarize(cases, seed=seed)["metrics"] for cases in (stored, new)]
    metrics = {}
    for name in ("resolved", *(f"mean_{objective}" for objective in objectives)):
        if name in sides[1]:
            change = _paired(stored, new, name, seed) if name in sides[0] else None
            metrics[name] = {"stored": sides[0].get(name), "rescored": sides[1][name], "difference": change}
    return {"round": key[0], "stage": key[1], "cases": len(new), **errors(new), "metrics": metrics}


def _paired(stored: Sequence[Case], new: Sequence[Case], name: str, seed: int) -> dict[str, Any]:
    try:
        return metrics.paired(stored, new, name, seed=seed)
    except ErrorBudgetExceeded as error:
        return {"undecided": str(error)}


def _table(differences: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="new less stored scores, 95 % intervals", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("round, stage", "cases", "metric", "stored", "rescored", "difference"):
        table.add_column(column, justify="left" if column in ("round, stage", "metric") else "right")
    for part in differences:
        errors = f" ({counted(part['errors'], 'errors')})" if part["errors"] else ""
        head = [f"{part['round']} {part['stage']}", f"{part['cases']}{errors}"]
        for name, values in part["metrics"].items():
            stored = "–" if values["stored"] is None else f"{values['stored']['value']:.3f}"
            cells = (*head, name.removeprefix("mean_"), stored, f"{values['rescored']['value']:.3f}")
            table.add_row(*(escape(visible(cell)) for cell in cells), _interval(values["difference"]))
            head = ["", ""]
    return table


def _interval(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return "–"
    if "undecided" in change:
        return "undecided"
    return f"{change['value']:+.3f} [dim]({change['low']:+.2f} to {change['high']:+.2f})[/]"
