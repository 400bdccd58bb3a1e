"""A round's merge: which policies there are, what a choice of shares is worth, and the merged policy."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PluginError
from ..hookspecs import Learner, Merge
from ..ledger.components import metrics_of
from ..ledger.layout import policy_folder, round_dir
from ..ledger.writing import RunDirectory
from ..types import Case

TRAINED = "trained"
"""Folder in a round of the policy before it was merged."""


def earlier_policies(run: RunDirectory, accepted: Sequence[int]) -> list[str]:
    """Folders of the policies of accepted rounds, each as it was trained, the latest first; then the first of all."""
    folders = []
    for round in sorted(accepted, reverse=True):
        trained = run.path / round_dir(round) / TRAINED
        folders.append(trained if trained.is_dir() else policy_folder(run.path, round))
    return [str(folder) for folder in (*folders, policy_folder(run.path, 0)) if folder is not None]


def merge_policies(
    learner: Learner,
    merge: Merge,
    folders: Sequence[str],
    scores: Callable[[], Sequence[float]],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """What to record of a merge; the learner then is the policy merged by its first choice.

    Args:
        learner: Merges, and is what `scores` scores.
        merge: Chooses.
        folders: The policies.
        scores: Mean by objective of the learner as it is, on validation tasks.
        rng: The merge's.

    Raises:
        PluginError: The merge returned something else than its contract says.
    """
    tried: list[dict[str, Any]] = []
    name = type(merge).__name__
    with tempfile.TemporaryDirectory() as scratch:

        def become(coefficients: Sequence[float]) -> dict[str, Any]:
            path = str(Path(scratch) / "merged")
            told = learner.merge(folders, coefficients, path)
            learner.load(path)
            return told

        def evaluate(coefficients: Sequence[float]) -> Sequence[float]:
            (row,) = checked([coefficients], len(folders), name)
            become(row)
            means = [float(value) for value in scores()]
            tried.append({"coefficients": row, "scores": [None if math.isnan(mean) else mean for mean in means]})
            return means

        chosen = checked(merge.coefficients(len(folders), evaluate, rng), len(folders), name)
        told = become(chosen[0])
    own = metrics_of(merge)
    record = {"policies": len(folders), "coefficients": chosen[0], **({"tried": tried} if tried else {})}
    return {**record, **told, **({"merge": own} if own else {})}


def checked(rows: Any, policies: int, name: str) -> list[list[float]]:
    """Rows of coefficients as lists. Raises PluginError unless there are some, each of `policies` with the sum 1."""
    try:
        numbers = np.array(rows, dtype=float)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.ndim != 2 or not len(numbers) or numbers.shape[1] != policies or not np.isfinite(numbers).all():
        wrong = f"it returned {str(rows)[:80]}"
    elif not np.allclose(numbers.sum(1), 1, atol=1e-6):
        wrong = f"the sums of its rows are {numbers.sum(1)[:5].tolist()}"
    else:
        return [list(map(float, row)) for row in numbers]
    raise PluginError(f"the merge {name}: {wrong}; it returns rows of {policies} numbers, each with the sum 1.")


def means(cases: Sequence[Case], objectives: Sequence[str]) -> list[float]:
    """Mean score by objective, NaN where it applies to no case."""
    scores_N_M = np.array([card.vector(objectives) for _, card in cases]).reshape(len(cases), len(objectives))
    return [
        float(column[~np.isnan(column)].mean()) if (~np.isnan(column)).any() else math.nan for column in scores_N_M.T
    ]
