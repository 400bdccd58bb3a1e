"""From failures to rows to train on: which candidates are acceptable, which is chosen, what is kept of it.

Pure functions, on trajectories that were rolled out and scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FateError
from ..hookspecs import ParetoSelector
from ..metrics import is_error
from ..types import BufferRow, Case, Failure, Repair, RolloutRequest, ScoreCard, Trajectory
from .tasks import sample_tasks

Try = tuple[str, str, int]
"""Suite, task id and attempt: one try within a stage."""


def failures_of(cases: Iterable[Case]) -> list[Failure]:
    """Scored trajectories below a pass mark; errors are no failures."""
    return [Failure(trajectory, card) for trajectory, card in cases if not is_error((trajectory, card)) and card.failed]


def limited(failures: Sequence[Failure], most: int | None, rng: np.random.Generator) -> list[Failure]:
    """At most so many failures, spread evenly over the kinds of their tasks; all for None."""
    if most is None or len(failures) <= most:
        return list(failures)
    chosen = sample_tasks([failure.trajectory.task for failure in failures], most, rng)
    left, kept = Counter((task.suite, task.id) for task in chosen), []
    for failure in failures:
        key = (failure.trajectory.task.suite, failure.trajectory.task.id)
        if left[key]:
            left[key] -= 1
            kept.append(failure)
    return kept


def acceptable(failure: ScoreCard, candidate: ScoreCard, rule: str, floors: Mapping[str, float]) -> bool:
    """Whether a candidate may enter the front (ours): the rule is the recipe's `repair.accept`."""
    names = _applicable(failure)
    if candidate.errors or names != _applicable(candidate):
        return False  # the same objectives apply to all tries of a task, or a front cannot compare them
    if rule == "random":  # `select` draws one of all that have scores
        return True
    if rule == "resolves":
        return candidate.resolved
    before, after = np.array(failure.vector(names)), np.array(candidate.vector(names))
    if rule == "dominates":
        return bool((after >= before).all() and (after > before).any())
    return all(not candidate.vector([name])[0] < floor for name, floor in floors.items())


def _applicable(card: ScoreCard) -> list[str]:
    """Objectives that have a value, sorted."""
    return sorted(name for name, score in card.scores.items() if score.value is not None)


def select(
    failure: Failure,
    candidates: Sequence[Case],
    selector: ParetoSelector,
    objectives: Sequence[str],
    accept: str,
    floors: Mapping[str, float],
    rng: np.random.Generator,
) -> Repair:
    """Drop what is not acceptable, take the Pareto front, pick one of it."""
    accepted = [i for i, (_, card) in enumerate(candidates) if acceptable(failure.card, card, accept, floors)]
    if accept == "random" and accepted:
        accepted = [int(rng.choice(accepted))]
    scores_K_M = np.array([candidates[i][1].vector(objectives) for i in accepted]).reshape(
        len(accepted), len(objectives)
    )
    choice = selector.choose(scores_K_M, objectives=objectives, rng=rng) if accepted else None
    return Repair(
        failure=failure,
        candidates=tuple(trajectory for trajectory, _ in candidates),
        cards=tuple(card for _, card in candidates),
        accepted=tuple(accepted),
        front=tuple(accepted[i] for i in choice.front) if choice else (),
        chosen=accepted[choice.index] if choice else None,
        decided_by=choice.decided_by if choice else "",
    )


def check_requests(requests: Sequence[RolloutRequest], failures: Sequence[Failure], strategy: str) -> None:
    """Raise FateError for a request that repairs none of the failures, or has the attempt of another request."""
    known = {(f.trajectory.task.suite, f.trajectory.task.id, f.trajectory.attempt) for f in failures}
    taken: set[Try] = set()
    for request in requests:
        task, number = request.task, (request.task.suite, request.task.id, request.attempt)
        if (task.suite, task.id, request.of) not in known:
            wrong = f"is of attempt {request.of}, which belongs to no failure"
        elif number in taken:
            wrong = f"has attempt {request.attempt}, as another of them has"
        else:
            taken.add(number)
            continue
        raise FateError(
            f"repair strategy {strategy!r}: a request of task {task.id!r} {wrong}; see hookspecs.RepairStrategy."
        )


def by_failure(requests: Sequence[RolloutRequest], cases: Sequence[Case]) -> dict[Try, list[Case]]:
    """The executed candidates of each failure, by the failure's suite, task id and attempt."""
    of = {(request.task.suite, request.task.id, request.attempt): request.of or 0 for request in requests}
    grouped: dict[Try, list[Case]] = {}
    for trajectory, card in cases:
        suite, task = trajectory.task.suite, trajectory.task.id
        grouped.setdefault((suite, task, of[suite, task, trajectory.attempt]), []).append((trajectory, card))
    return grouped


def selection(repair: Repair) -> dict[str, Any]:
    """A repair as a record; its trajectories stand in rollouts.jsonl and repairs.jsonl, and are named by key."""
    return {
        "failure": list(repair.failure.trajectory.key),
        "failed": list(repair.failure.card.failed),
        "candidates": [list(trajectory.key) for trajectory in repair.candidates],
        "accepted": list(repair.accepted),
        "front": list(repair.front),
        "chosen": repair.chosen,
        "decided_by": repair.decided_by,
    }


def row_of(trajectory: Trajectory, source: str, round: int, prompt: Trajectory | None = None) -> BufferRow:
    """A trajectory as a buffer row: its tokens as sampled, or its messages if the model that learns did not sample it.

    Args:
        trajectory: What to learn.
        source: "repair", "anchor" or "oracle".
        round: Round that made it.
        prompt: Condition on this trajectory's prompt instead of its own.
    """
    given = prompt or trajectory
    common: dict[str, Any] = {
        "source": source,
        "suite": trajectory.task.suite,
        "task": trajectory.task.id,
        "round": round,
    }
    if trajectory.completion_ids and given.prompt_ids:  # a recorded failure's prompt has no tokens of this model
        return BufferRow(
            **common,
            prompt_ids=given.prompt_ids,
            completion_ids=trajectory.completion_ids,
            policy_mask=trajectory.policy_mask,
        )
    return BufferRow(
        **common,
        messages=given.prompt + trajectory.messages,
        loss_from=len(given.prompt),
        tools=trajectory.task.tools,
    )


def rows_of(repair: Repair, target: str, round: int) -> list[BufferRow]:
    """Buffer rows of a repair: conditioned on the repair prompt, on the plain task, or both.

    A prompt that merely continues the plain task (a resumed or resampled try) is a plain one already.
    """
    if repair.chosen is None:
        return []
    chosen, plain = repair.candidates[repair.chosen], repair.failure.trajectory
    if chosen.prompt[: len(plain.prompt)] == plain.prompt:
        return [row_of(chosen, "repair", round)]
    both = {"repair": [row_of(chosen, "repair", round)], "plain": [row_of(chosen, "repair", round, prompt=plain)]}
    return both["repair"] + both["plain"] if target == "both" else both[target]


def anchors(cases: Sequence[Case], count: int, round: int, rng: np.random.Generator) -> list[BufferRow]:
    """Up to `count` passing first tries, spread evenly over the kinds."""
    passing = {(t.task.suite, t.task.id, t.attempt): t for t, card in cases if card.resolved}
    by_task = {(t.task.suite, t.task.id): t for t in passing.values()}
    tasks = sample_tasks([t.task for t in by_task.values()], count, rng)
    return [row_of(by_task[task.suite, task.id], "anchor", round) for task in tasks]
