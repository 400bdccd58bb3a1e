"""Two policies compared case by case, and the rounds' gate.

Two policies are compared case by case, on the tasks that both have: see `compare`. A difference of rates also has an
exact test: the sign test on clusters, which is McNemar's exact test (McNemar 1947) where every cluster is one case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import FateError
from ..types import Case
from .definitions import Metric, metrics_for, objective_metric
from .excluded import MAX_ERROR_RATE, check_errors
from .intervals import measure
from .totals import Table, table_of, values_of


def sign_test(up: int, down: int) -> float:
    """Exact two-sided p-value, in (0, 1], of `up` against `down` if either way were as likely: binomial with p = ½."""
    trials, fewer = up + down, min(up, down)
    if up == down:
        return 1.0
    i = np.arange(1, fewer + 1)
    log_terms = np.cumsum(np.concatenate([[-trials * np.log(2.0)], np.log(trials + 1 - i) - np.log(i)]))
    return float(2 * np.exp(log_terms).sum())


def _by_key(cases: Sequence[Case]) -> dict[tuple[str, str, int], Case]:
    keyed = {(t.task.suite, t.task.id, t.attempt): (t, card) for t, card in cases}
    if len(keyed) < len(cases):
        counts = Counter((t.task.suite, t.task.id, t.attempt) for t, _ in cases)
        raise FateError(
            f"two cases share (suite, task id, attempt) {counts.most_common(1)[0][0]!r}, so they cannot be paired; "
            "pass the cases of one stage of one round"
        )
    return keyed


def _compare(
    cases_a: Sequence[Case], cases_b: Sequence[Case], metrics: Sequence[Metric], seed: int, max_error_rate: float
) -> dict[str, dict[str, Any]]:
    check_errors(cases_a, max_error_rate)
    check_errors(cases_b, max_error_rate)
    a, b = _by_key(cases_a), _by_key(cases_b)
    common = [key for key in a if key in b]
    if not common:
        raise FateError(
            f"the {len(a)} and {len(b)} cases have no (suite, task id, attempt) in common; compare runs of one split"
        )
    table = table_of(([a[key] for key in common], [b[key] for key in common]), (-1.0, 1.0))
    lonely = [keyed[key][0].task for keyed in (a, b) for key in keyed if not (key in a and key in b)]
    measured, _ = measure(table, metrics, seed)
    for metric in metrics:
        if metric.name in measured:
            measured[metric.name]["n_unmatched"] = sum(map(metric.applies, lonely))
            measured[metric.name] |= _exact(table, metric)
    return measured


def _exact(table: Table, metric: Metric) -> dict[str, Any]:
    """The exact test of a difference of rates; {} where the values are no zeros and ones, or are weighted by kind."""
    values_S_N = values_of(table, metric, None)
    used_N = ~np.isnan(values_S_N).any(axis=0)
    if metric.by_kind or not np.isin(values_S_N[:, used_N], (0.0, 1.0)).all():
        return {}
    change_N = values_S_N[1, used_N] - values_S_N[0, used_N]
    change_C = np.bincount(table.cluster_N[used_N], change_N)
    p = sign_test(int((change_C > 0).sum()), int((change_C < 0).sum()))
    return {"rose": int((change_N > 0).sum()), "fell": int((change_N < 0).sum()), "p": p}


def compare(
    cases_a: Sequence[Case], cases_b: Sequence[Case], *, seed: int = 0, max_error_rate: float = MAX_ERROR_RATE
) -> dict[str, dict[str, Any]]:
    """What changed from a to b, for every metric: mean paired difference b − a, case by case.

    Cases are matched on (suite, task id, attempt). A pair counts where both sides have a value. `mean_<objective>` and
    `objective_product` keep their equal weights per kind, so each value is the difference of the two summaries
    of the matched cases. For `objective_product` that is a difference of products, not a mean of differences.

    Args:
        cases_a, cases_b: The two sets of cases, each with one case per (suite, task id, attempt).
        seed: Seed of the bootstrap, non-negative.
        max_error_rate: Share in [0, 1] of cases that may have an infrastructure error, on each side (ours: 2 %).

    Returns:
        {name: {"value", "low", "high", "n", "clusters", "n_unmatched"}} with values in [-1, 1]; `n` counts pairs and
        `n_unmatched` the cases of either side, of tasks that the metric is defined on, that the other side lacks.
        "few_clusters", "error_low" and "error_high" as in `summarize`. A rate also has "rose" and "fell", the numbers
        of pairs that went from 0 to 1 and back, and "p", the exact test of whether clusters rise as often as they fall.

    Raises:
        ErrorBudgetExceeded: Too many cases have an error.
        FateError: Keys are not unique, or the two sides have none in common.
    """
    return _compare(cases_a, cases_b, metrics_for([*cases_a, *cases_b]), seed, max_error_rate)


def paired(
    cases_a: Sequence[Case],
    cases_b: Sequence[Case],
    metric: str,
    *,
    seed: int = 0,
    max_error_rate: float = MAX_ERROR_RATE,
) -> dict[str, Any]:
    """`compare` for one metric. Raises FateError also if the metric is unknown or has no pair."""
    known = {known.name: known for known in metrics_for([*cases_a, *cases_b])}
    if metric not in known:
        raise FateError(f"unknown metric {metric!r}; known are {', '.join(known)}")
    measured = _compare(cases_a, cases_b, [known[metric]], seed, max_error_rate)
    if metric not in measured:
        raise FateError(f"metric {metric!r} has no matched case with a value on both sides")
    return measured[metric]


def regressions(
    cases_before: Sequence[Case],
    cases_after: Sequence[Case],
    objectives: Sequence[str],
    tolerance: float,
    *,
    seed: int = 0,
    max_error_rate: float = MAX_ERROR_RATE,
) -> list[str]:
    """The objectives that got worse for sure: the 95 % interval of `mean_<objective>`'s change is below −tolerance.

    Used by the rounds' acceptance gate (ours). An objective that applies to none of the tasks cannot get worse.

    Args:
        cases_before, cases_after: Cases of the accepted and of the new policy on the same tasks.
        objectives: Objectives to judge.
        tolerance: Loss that is put up with, in score units, at least 0.
        seed, max_error_rate: As in `compare`.

    Raises:
        ErrorBudgetExceeded, FateError: As in `compare`; FateError also if no card knows an objective.
    """
    changes = _changes(cases_before, cases_after, objectives, seed, max_error_rate)
    return [name for name, change in changes.items() if change["high"] < -tolerance]


def gains(
    cases_before: Sequence[Case],
    cases_after: Sequence[Case],
    objectives: Sequence[str],
    margin: float,
    *,
    seed: int = 0,
    max_error_rate: float = MAX_ERROR_RATE,
) -> list[str]:
    """The objectives whose mean rose by `margin` or more; the same as `regressions` in all else.

    The mean itself counts, not its interval: a gate asks here whether a round did anything (two-gate acceptance).
    """
    changes = _changes(cases_before, cases_after, objectives, seed, max_error_rate)
    return [name for name, change in changes.items() if change["value"] >= margin]


def _changes(
    cases_before: Sequence[Case],
    cases_after: Sequence[Case],
    objectives: Sequence[str],
    seed: int,
    max_error_rate: float,
) -> dict[str, dict[str, Any]]:
    """Change of each objective's mean, with its interval; of those that apply to some task."""
    known = {name for _, card in (*cases_before, *cases_after) for name in card.scores}
    for name in objectives:
        if name not in known:
            raise FateError(f"objective {name!r} was not scored; scored were {', '.join(sorted(known))}")
    metrics = [objective_metric(name) for name in objectives]
    changes = _compare(cases_before, cases_after, metrics, seed, max_error_rate)
    return {name: changes[f"mean_{name}"] for name in objectives if f"mean_{name}" in changes}
