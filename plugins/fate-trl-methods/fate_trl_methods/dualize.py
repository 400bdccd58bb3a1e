"""One-shot dualization: the weights under which a plain weighted sum keeps the floors, from samples that are there.

MoCAN's formula, as in the authors' code: of S samples for each prompt x, with utility h and constrained objectives g,
z = (h + lambda.(g - b)) / beta, and the dual D(lambda) = beta times the mean over x of log mean exp z is convex. Its
gradient is the mean over x of the samples' g - b, weighed by a softmax of z. Its minimum over lambda >= 0 gives the
policy, tilted from the one that was sampled, that keeps g >= b on average and is best in h; training once on
h + lambda.g reaches it. Where no tilting keeps the floors there is no such lambda, and that is said.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fate_trl import FateError, RunReader, file_of

EDGE = 1e-3
"""By how much the best samples must clear a floor (ours); nearer to it the multiplier goes to infinity."""


@dataclass(frozen=True)
class Dual:
    """A solution: the multipliers (C,), what the tilted policy comes to less the floors (C,), and the steps taken."""

    multipliers_C: np.ndarray
    slack_C: np.ndarray
    steps: int


def dualize(
    utility_X_S: np.ndarray, constrained_X_S_C: np.ndarray, floors_C: np.ndarray, beta: float, tolerance: float = 1e-6
) -> Dual:
    """Minimise the dual, by Newton's method on the multipliers that are not at 0, halved until the dual falls.

    Raises:
        FateError: No tilting of these samples keeps the floors.
    """
    above_X_S_C = constrained_X_S_C - floors_C
    best_C = above_X_S_C.max(axis=1).mean(axis=0)
    if best_C.min() < EDGE:
        raise FateError(
            f"these samples show no policy that keeps the floors with room to spare: the best of each prompt are "
            f"{best_C.min():+.3f} from them. Lower the floors, or collect more tries."
        )
    multipliers_C = np.zeros(len(floors_C))
    value, slack_C, curvature_C_C = _dual(multipliers_C, utility_X_S, above_X_S_C, beta)
    for step in range(500):
        free_C = (multipliers_C > 0) | (slack_C < 0)
        if np.abs(np.where(free_C, slack_C, 0.0)).max(initial=0.0) < tolerance:
            return Dual(multipliers_C, slack_C, step)
        if multipliers_C.max() > 1000 * beta:
            break
        curved = curvature_C_C[np.ix_(free_C, free_C)] + 1e-9 * np.eye(int(free_C.sum()))
        direction_C = np.zeros_like(multipliers_C)
        direction_C[free_C] = -np.linalg.solve(curved, slack_C[free_C])
        direction_C = np.clip(direction_C, -50 * beta, 50 * beta)
        for halving in range(40):
            tried_C = np.maximum(0.0, multipliers_C + direction_C / 2**halving)
            found = _dual(tried_C, utility_X_S, above_X_S_C, beta)
            if found[0] <= value:
                break
        multipliers_C, (value, slack_C, curvature_C_C) = tried_C, found
    raise FateError("no finite multipliers keep all floors at once, though each can be kept: lower one of them.")


def _dual(
    multipliers_C: np.ndarray, utility_X_S: np.ndarray, above_X_S_C: np.ndarray, beta: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """The dual, its gradient (the tilted policy's slack) and its second derivative."""
    z_X_S = (utility_X_S + above_X_S_C @ multipliers_C) / beta
    top_X_1 = z_X_S.max(axis=1, keepdims=True)
    weight_X_S = np.exp(z_X_S - top_X_1)
    total_X_1 = weight_X_S.sum(axis=1, keepdims=True)
    value = beta * float((top_X_1 + np.log(total_X_1 / z_X_S.shape[1])).mean())
    weight_X_S = weight_X_S / total_X_1
    mean_X_C = (weight_X_S[:, :, None] * above_X_S_C).sum(axis=1)
    apart_X_S_C = above_X_S_C - mean_X_C[:, None]
    spread_C_C = np.einsum("xs,xsc,xsd->cd", weight_X_S, apart_X_S_C, apart_X_S_C) / (len(z_X_S) * beta)
    return value, mean_X_C.mean(axis=0), spread_C_C


def samples_of(run: RunReader, round: int, names: Sequence[str]) -> np.ndarray:
    """Scores (X, S, M) of a round's tasks that have all of the objectives: the first try, and the tries to repair it.

    Raises:
        FateError: No task has two of them.
    """
    scores: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for kind, stage in (("rollouts", "collect"), ("repairs", "repair")):
        for trajectory, card in run.cases(file_of(round, kind), stage):
            vector = card.vector(names)
            if not card.errors and not np.isnan(vector).any():
                scores[trajectory.task.suite, trajectory.task.id].append(vector)
    tries = [np.array(rows) for rows in scores.values() if len(rows) > 1]
    if not tries:
        raise FateError(
            f"round {round} of {run.path} has no task with two scored tries that {', '.join(names)} apply to; "
            "it takes a round with repairs."
        )
    fewest = min(map(len, tries))
    return np.stack([rows[:fewest] for rows in tries])


def weights_of(scores_X_S_M: np.ndarray, utility: str, floors: Mapping[str, float], beta: float) -> dict[str, float]:
    """Weights by objective, the utility's 1; the first column is the utility, then the floors' in order."""
    solved = dualize(scores_X_S_M[:, :, 0], scores_X_S_M[:, :, 1:], np.array(list(floors.values())), beta)
    return {utility: 1.0, **dict(zip(floors, solved.multipliers_C.tolist(), strict=True))}


def _floor(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, float(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `fate-trl-dualize`."""
    parser = argparse.ArgumentParser(prog="fate-trl-dualize", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", help="the run directory whose samples to use")
    parser.add_argument("--objective", default="utility", help="what is raised")
    parser.add_argument("--floor", type=_floor, action="append", required=True, metavar="NAME=VALUE")
    parser.add_argument("--beta", type=float, default=0.1, help="strength of the KL term, in units of the objective")
    parser.add_argument("--round", type=int, default=1, help="whose first tries and repairs are the samples")
    given = parser.parse_args(arguments)
    floors = dict(given.floor)
    try:
        scores = samples_of(RunReader.open(given.run), given.round, [given.objective, *floors])
        weights = weights_of(scores, given.objective, floors, given.beta)
    except FateError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print("selector:\n  name: weighted-sum\n  args:\n    weights:")  # noqa: T201
    for name, weight in weights.items():
        print(f"      {name}: {weight:.4g}")  # noqa: T201
    print(f"# of {len(scores)} tasks with {scores.shape[1]} tries each, at beta {given.beta:g}")  # noqa: T201
    return 0
