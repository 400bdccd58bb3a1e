"""Verifiers."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ...hookspecs import Suite
from ...record import dumps
from ...types import Score, Trajectory
from ...verify import scoring
from .. import samples
from .helpers import as_json, assert_same


@pytest.fixture(scope="module")
def untouched(own_suites: list[Suite]) -> list[Trajectory]:
    """The trajectories as they were made: plugins get copies, so that one that changes them cannot hide it."""
    return samples.trajectories(own_suites)


@pytest.fixture(scope="module")
def trajectories(verifier: Any, untouched: list[Trajectory]) -> list[Trajectory]:
    return copy.deepcopy(untouched)


def _scores(verifier: Any, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]:
    """What a verifier says of a batch, without the pipeline's safety net."""
    if not hasattr(verifier, "score_one"):
        return list(verifier.score(trajectories))

    async def every() -> list[dict[str, Score]]:
        return list(await asyncio.gather(*(verifier.score_one(trajectory) for trajectory in trajectories)))

    return asyncio.run(every())


def test_verifier_names_its_objectives(verifier: Any) -> None:
    assert scoring.is_verifier(verifier), "it needs a tuple `objectives`, and `score` or an async `score_one`"
    assert verifier.objectives
    assert all(isinstance(name, str) and name.strip() for name in verifier.objectives)
    assert len(set(verifier.objectives)) == len(verifier.objectives)


def test_verifier_is_no_repair_strategy(verifier: Any) -> None:
    assert not hasattr(verifier, "requests"), "judges never repair"


def test_verifier_gives_each_trajectory_a_score_per_objective(verifier: Any, trajectories: list[Trajectory]) -> None:
    """Hostile text, empty messages, missing outcomes and unknown tools among them: nothing may raise."""
    scored = _scores(verifier, trajectories)
    assert isinstance(scored, list)
    assert len(scored) == len(trajectories)
    for trajectory, scores in zip(trajectories, scored, strict=True):
        assert set(scores) == set(verifier.objectives)
        for score in scores.values():
            _check_score(score, trajectory)


def _check_score(score: Any, trajectory: Trajectory) -> None:
    assert isinstance(score, Score), f"{score!r} is no fate_trl.Score"
    assert Score.from_dict(json.loads(dumps(score))) == score, "a score holds JSON values only"
    if score.status == "error":
        assert score.reason, "an error needs a reason"
    if score.value is not None:
        assert 0 <= score.value <= 1
    if score.step is not None:
        assert 0 <= score.step < len(trajectory.messages), "`step` is an index into the trajectory's messages"


def test_verifier_does_not_change_its_input(verifier: Any, untouched: list[Trajectory]) -> None:
    given = copy.deepcopy(untouched)
    _scores(verifier, given)
    assert_same(as_json(given), as_json(untouched), "it changed a trajectory, or their order")


def test_verifier_says_the_same_twice(verifier: Any, trajectories: list[Trajectory]) -> None:
    assert_same(_scores(verifier, trajectories), _scores(verifier, trajectories), "the second time differs")


def test_verifier_scores_do_not_depend_on_the_batch(verifier: Any, trajectories: list[Trajectory]) -> None:
    """Failed batches are retried record by record, and a stopped run goes on with other batches."""
    scored = _scores(verifier, trajectories)
    order = np.random.default_rng(0).permutation(len(trajectories))
    shuffled = _scores(verifier, [trajectories[i] for i in order])
    assert_same(shuffled, [scored[i] for i in order], "the order matters")
    some = order[:40]
    alone = [_scores(verifier, [trajectories[i]])[0] for i in some]
    assert_same(alone, [scored[i] for i in some], "the batch matters")


def test_verifier_never_fails_a_policy_for_a_missing_outcome(verifier: Any, trajectories: list[Trajectory]) -> None:
    """Where no episode ran there is no outcome. That is an error or not applicable, not a fault of the policy."""
    known = [trajectory for trajectory in trajectories if trajectory.outcome is not None]
    blind = _scores(verifier, [replace(trajectory, outcome=None) for trajectory in known])
    for trajectory, before, after in zip(known, _scores(verifier, known), blind, strict=True):
        for name in verifier.objectives:
            punished = after[name].value == 0 and before[name].value != 0
            assert not punished, f"{name} becomes 0 without an outcome, on a {trajectory.task.kind} task"


def test_verifier_applies_to_all_tries_of_a_task_or_to_none(verifier: Any, trajectories: list[Trajectory]) -> None:
    """An objective that does not apply drops out of a whole group, so it may depend on the task only."""
    found: dict[tuple[str, str, str], set[bool]] = {}
    for trajectory, scores in zip(trajectories, _scores(verifier, trajectories), strict=True):
        for name, score in scores.items():
            if score.status != "error":
                key = (trajectory.task.suite, trajectory.task.id, name)
                found.setdefault(key, set()).add(score.status == "not_applicable")
    mixed = sorted({name for (_, _, name), seen in found.items() if len(seen) == 2})
    assert not mixed, f"{mixed} is not applicable to some tries of a task, but scores others; give those a value"


def test_verifier_is_not_constant(verifier: Any, trajectories: list[Trajectory]) -> None:
    """An objective that never moves teaches nothing. Where it is about tasks of your own, bring a suite of them."""
    scored = _scores(verifier, trajectories)
    values = {name: {s[name].value for s in scored if s[name].value is not None} for name in verifier.objectives}
    assert any(len(seen) > 1 for seen in values.values()), (
        f"only one value over {len(trajectories)} trajectories: {values}"
    )


def test_verifier_says_in_numbers_what_it_spent_and_once(verifier: Any, trajectories: list[Trajectory]) -> None:
    """`usage()`, where there is one: since it was asked last."""
    scoring.score_all([verifier], trajectories[:3])
    spent = scoring.spent([verifier])
    assert all(isinstance(name, str) and np.isfinite(amount) for name, amount in spent.items())
    assert not any(scoring.spent([verifier]).values()), "what was told once is told again"


def test_verifier_is_not_asked_about_broken_episodes(verifier: Any, trajectories: list[Trajectory]) -> None:
    """An infrastructure error is an error score for every objective, never 0, and costs its neighbours nothing."""
    broken = replace(trajectories[0], outcome=None, stop="error", error="the environment did not open")
    cards = scoring.score_all([verifier], [*trajectories[:5], broken])
    assert set(cards[-1].errors) == set(verifier.objectives)
    assert_same([card.scores for card in cards[:-1]], _scores(verifier, trajectories[:5]), "a faulty neighbour matters")
