"""Scored trajectories in, the metrics of `metrics.json` out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..types import KINDS, Case
from .definitions import metrics_for, suite_metrics
from .excluded import causes, is_error, reasons
from .intervals import measure, point_values
from .repeatable import as_the_models, is_repeatable
from .totals import table_of


def summarize(cases: Sequence[Case], *, seed: int = 0) -> dict[str, Any]:
    """Every metric of a set of cases, as one row's payload of `metrics.json`.

    Args:
        cases: Trajectories with their score cards, of any kinds and suites.
        seed: Seed of the bootstrap, non-negative.

    Returns:
        {"metrics": {name: {"value", "low", "high", "n", "clusters"}}, "errors": {...}}, JSON values only.
        A metric also has "few_clusters": True (see intervals.py), and "error_low" and "error_high" if cases were
        excluded. "errors" is {} if there were none, else the number of excluded cases as "excluded", "causes":
        {cause: count} (see `causes`), a count for each "objective/reason" ("rollout/reason" for a broken episode), and
        "bounds": {metric: [low, high]}, which also holds metrics that no case is left for. Where a server failed on
        some whenever it was asked, "repeatable" is their number, and "as_the_models" {metric: {"value", "n"}} with
        these scored as the model's failures (see repeatable.py). "held_out" counts by objective the errors of
        held-out verifiers, each of which leaves its case out of that one metric only.
    """
    metrics, bounds = measure(table_of((cases,), (1.0,)), [*metrics_for(cases), *suite_metrics(cases)], seed)
    excluded = sum(map(is_error, cases))
    counts: dict[str, Any] = {**reasons(cases), "excluded": excluded, "causes": causes(cases), "bounds": bounds}
    errors = counts if excluded else {}
    repeatable = sum(map(is_repeatable, cases))
    if repeatable:
        blamed = [as_the_models(case) for case in cases]
        values = point_values(table_of((blamed,), (1.0,)), metrics_for(blamed))
        errors |= {"repeatable": repeatable, "as_the_models": values}
    silent = Counter(name for _, card in cases for name, score in card.held_out.items() if score.status == "error")
    if silent:
        errors = {"excluded": excluded, **errors, "held_out": dict(silent)}
    return {"metrics": metrics, "errors": errors}


def rows(
    cases: Sequence[Case], *, round: int, split: str, policy: str, accepted: bool, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of `metrics.json`: suite "all" and each suite, times kind "all" and each kind that occurs."""
    suites = ["all", *sorted({trajectory.task.suite for trajectory, _ in cases})]
    out = []
    for suite in suites:
        for kind in ("all", *KINDS):
            chosen = [
                case for case in cases if suite in ("all", case[0].task.suite) and kind in ("all", case[0].task.kind)
            ]
            if chosen:
                head = {"round": round, "split": split, "suite": suite, "kind": kind}
                out.append({**head, "policy": policy, "accepted": accepted, **summarize(chosen, seed=seed)})
    return out
