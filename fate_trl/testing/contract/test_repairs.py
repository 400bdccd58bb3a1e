"""Repair strategies."""

from __future__ import annotations

import copy
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ...hookspecs import STEPS, Suite
from ...record import dumps
from ...types import Failure, Repair, RolloutRequest
from ...verify import scoring
from .. import samples
from .helpers import as_json, assert_same, generator


@pytest.fixture(scope="module")
def untouched_failures(own_suites: list[Suite]) -> list[Failure]:
    return samples.failures(own_suites)


@pytest.fixture(scope="module")
def failures(repair: Any, untouched_failures: list[Failure]) -> list[Failure]:
    return copy.deepcopy(untouched_failures)


@pytest.mark.parametrize("k", [1, 3])
def test_repair_words_at_most_k_requests_per_failure_in_order(repair: Any, failures: list[Failure], k: int) -> None:
    for failure in failures:
        asked = repair.requests([failure], k, generator())
        assert isinstance(asked, list)
        assert len(asked) <= k
        assert all(request.of == failure.trajectory.attempt for request in asked), "`of` is the failure's attempt"
        assert all(request.task == failure.trajectory.task for request in asked), "the task is the failure's"
        assert all(request.stage == "repair" for request in asked)
    keys = [(failure.trajectory.task.id, failure.trajectory.attempt) for failure in failures[:20]]
    asked = repair.requests(failures[:20], k, generator())
    order = [keys.index((request.task.id, request.of)) for request in asked]
    assert order == sorted(order), "requests come in the order of the failures"
    distinct = {failure.trajectory.key: failure for failure in failures}
    every = repair.requests(list(distinct.values()), k, generator())
    tries = [(request.task.suite, request.task.id, request.attempt) for request in every]
    assert len(set(tries)) == len(tries), "no two requests of a task have the same attempt"


def test_repair_asks_for_something(repair: Any, failures: list[Failure]) -> None:
    assert repair.requests(failures, 2, generator())
    assert repair.requests([], 2, generator()) == []


def test_repair_prompts_can_be_sent(repair: Any, failures: list[Failure]) -> None:
    for request in repair.requests(failures, 1, generator()):
        assert isinstance(request.messages, tuple)
        assert request.messages, "a prompt holds at least one message"
        assert all(m.get("role") in ("system", "user", "assistant", "tool") for m in request.messages)
        assert RolloutRequest.from_dict(json.loads(dumps(request))) == request, "a request holds JSON values only"


def test_repair_replays_recorded_calls_only(repair: Any, failures: list[Failure]) -> None:
    for failure in failures:
        for request in repair.requests([failure], 1, generator()):
            recorded = failure.trajectory.calls[: len(request.replay)]
            assert request.replay == recorded, "`replay` is a prefix of the calls that the failure executed"


def test_repair_does_not_change_its_input(repair: Any, untouched_failures: list[Failure]) -> None:
    given = copy.deepcopy(untouched_failures)
    repair.requests(given, 2, generator())
    assert_same(as_json(given), as_json(untouched_failures), "it changed a failure, or their order")


def test_repair_depends_on_its_rng_only(repair: Any, failures: list[Failure]) -> None:
    once, twice = (repair.requests(failures, 3, generator(1)) for _ in range(2))
    assert_same(twice, once, "the second time differs")


def test_repair_never_judges(repair: Any, failures: list[Failure]) -> None:
    """Who words the prompts must not also grade: candidates would be chosen by their author."""
    assert not scoring.is_verifier(repair), "it is a verifier as well; make two components of it"
    with _judging() as judged:
        asked = repair.requests(failures[:20], 3, generator())
    assert not judged, f"it scored trajectories, with {judged[0]}"
    strange = {type(request).__name__ for request in asked if type(request) is not RolloutRequest}
    assert not strange, f"it returns {strange}, not plain RolloutRequests: nothing else may travel with them"


def test_repair_in_steps_goes_on_by_the_rules_and_ends(repair: Any, failures: list[Failure]) -> None:
    """Only where it has `again`: at most k of each step, for the failures given, with numbers of their own."""
    if not hasattr(repair, "again"):
        return
    distinct = list({failure.trajectory.key: failure for failure in failures}.values())
    asked = repair.requests(distinct, 2, generator())
    for step in range(1, STEPS + 1):
        open_ones = [Repair(failure) for failure in distinct[step:]]
        more, same = (repair.again(open_ones, step, 2, generator(1)) for _ in range(2))
        assert_same(same, more, "the second time differs")
        if not more:
            break
        keys = [(r.failure.trajectory.task.id, r.failure.trajectory.attempt) for r in open_ones]
        of = [(request.task.id, request.of) for request in more]
        assert set(of) <= set(keys), "it asks for a failure that has a repair"
        assert max(of.count(key) for key in of) <= 2, "at most k of each step"
        assert all(request.stage == "repair" for request in more)
        asked += more
    else:
        pytest.fail(f"it goes on asking after {STEPS} steps")
    tries = [(request.task.suite, request.task.id, request.attempt) for request in asked]
    assert len(set(tries)) == len(tries), "no two requests of a task have the same attempt"


@contextmanager
def _judging() -> Iterator[list[str]]:
    """Names what scores trajectories meanwhile, however it was imported: `score_all`, or any verifier's method."""
    seen: list[str] = []

    def look(frame: types.FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call":
            return
        if code is scoring.score_all.__code__:
            seen.append("score_all")
        elif code.co_name in ("score", "score_one") and code.co_argcount:
            owner = frame.f_locals.get(code.co_varnames[0])
            if scoring.is_verifier(owner):
                seen.append(type(owner).__name__)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(before)
