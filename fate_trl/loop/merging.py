"""What merges make in a round: its policy, or a reference. Which policies there are, and what a choice is worth."""

from __future__ import annotations

import filecmp
import json
import math
import shutil
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

REFERENCE = "reference"
"""Folder in a training stage's scratch folder of the policy that it is held to, where a merge makes that."""

_RECORD = "merge.json"


def earlier_policies(run: RunDirectory, accepted: Sequence[int]) -> list[str]:
    """Folders of the policies of accepted rounds, each as it was trained, the latest first; then the first of all."""
    folders = []
    for round in sorted(accepted, reverse=True):
        trained = run.path / round_dir(round) / TRAINED
        folders.append(trained if trained.is_dir() else policy_folder(run.path, round))
    return [str(folder) for folder in (*folders, policy_folder(run.path, 0)) if folder is not None]


Scores = Callable[[], Sequence[float]]
"""Mean by objective of the learner as it is, on validation tasks."""


def merge_policies(
    learner: Learner, merge: Merge, folders: Sequence[str], scores: Scores, rng: np.random.Generator
) -> dict[str, Any]:
    """What to record of a merge; the learner then is the policy merged by its first choice.

    Args:
        learner: Merges, and is what `scores` scores.
        merge: Chooses.
        folders: The policies.
        scores: Says what the learner is worth.
        rng: The merge's.

    Raises:
        PluginError: The merge returned something else than its contract says.
    """
    coefficients, record = _chosen(learner, merge, folders, scores, rng)
    return {**record, **_become(learner, folders, coefficients)}


def merge_reference(
    learner: Learner,
    merge: Merge,
    earlier: Sequence[str],
    scores: Scores,
    rng: np.random.Generator,
    run: RunDirectory,
    scratch: str,
) -> tuple[str, dict[str, Any]]:
    """The folder of a training stage's reference, and what to record of it.

    It is merged of the policy as the stage finds it and of earlier ones, which the learner still is afterwards, and
    lies in the stage's scratch folder: a stage that goes on from a checkpoint finds it there. Policies with one and the
    same weights count as one, so their soup is each of them to the bit.

    Args:
        learner: Merges, and is the policy as the stage finds it.
        merge: Chooses.
        earlier: Folders of earlier policies.
        scores: Says what the learner is worth.
        rng: The merge's.
        run: The run.
        scratch: The stage's scratch folder, in the run's.

    Raises:
        PluginError: As in `merge_policies`.
    """
    folder, start = Path(scratch) / REFERENCE, Path(scratch) / "start"
    if (folder / _RECORD).is_file():
        found: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return str(folder), found
    learner.save(str(start))
    folders = [str(start), *earlier]
    coefficients, record = _chosen(learner, merge, folders, scores, rng)
    if "tried" in record:
        learner.load(str(start))
    shares = _shares(folders, coefficients)
    with run.replacing(str(folder.relative_to(run.path))) as fresh:
        if len(shares) == 1:
            shutil.copytree(next(iter(shares)), fresh, dirs_exist_ok=True)
        else:
            record |= learner.merge(list(shares), list(shares.values()), str(fresh), exact=True)
        (fresh / _RECORD).write_text(json.dumps(record), encoding="utf-8")
    shutil.rmtree(start)
    return str(folder), record


def _shares(folders: Sequence[str], coefficients: Sequence[float]) -> dict[str, float]:
    """Coefficients by folder, without those that come to 0; of folders with the same weights the first."""
    shares: dict[str, float] = {}
    for folder, coefficient in zip(folders, coefficients, strict=True):
        same = next((other for other in shares if _same_weights(other, folder)), folder)
        shares[same] = shares.get(same, 0.0) + coefficient
    return {folder: share for folder, share in shares.items() if abs(share) > 1e-9}


def _same_weights(one: str, other: str) -> bool:
    files, others = (sorted(file.name for file in Path(f).glob("*.safetensors")) for f in (one, other))
    _, differ, odd = filecmp.cmpfiles(one, other, files, shallow=False)
    return files == others != [] and not differ and not odd


def _chosen(
    learner: Learner, merge: Merge, folders: Sequence[str], scores: Scores, rng: np.random.Generator
) -> tuple[list[float], dict[str, Any]]:
    """The first choice of a merge, and what to record of it. Where it evaluated, the learner is what it tried last."""
    tried: list[dict[str, Any]] = []
    name = type(merge).__name__

    def evaluate(coefficients: Sequence[float]) -> Sequence[float]:
        (row,) = checked([coefficients], len(folders), name)
        _become(learner, folders, row)
        means = [float(value) for value in scores()]
        tried.append({"coefficients": row, "scores": [None if math.isnan(mean) else mean for mean in means]})
        return means

    first, *_ = checked(merge.coefficients(len(folders), evaluate, rng), len(folders), name)
    own = metrics_of(merge)
    record = {"policies": len(folders), "coefficients": first}
    return first, {**record, **({"tried": tried} if tried else {}), **({"merge": own} if own else {})}


def _become(learner: Learner, folders: Sequence[str], coefficients: Sequence[float]) -> dict[str, Any]:
    """Merge, and load what was merged; returns what the learner says of it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = str(Path(scratch) / "merged")
        told = learner.merge(folders, coefficients, path)
        learner.load(path)
    return told


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
