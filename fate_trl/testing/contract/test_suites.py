"""Suites."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from ...errors import ToolError
from ...hookspecs import Suite
from ...record import dumps
from ...suites.checking import defects_of
from ...suites.episodes import Recorder
from ...suites.scripted import perform
from ...types import KINDS, Outcome, RolloutRequest, Script, Task, Trajectory
from .. import samples
from .helpers import assert_same, make

SPLITS = ("train", "validation", "test")
SAMPLE = 3
"""Tasks of each kind and split that are played; ids and clusters are compared over all tasks."""


@pytest.fixture(scope="module")
def splits(suite: Suite) -> dict[str, list[Task]]:
    return {split: list(suite.tasks(split, 0)) for split in SPLITS}


@pytest.fixture(scope="module")
def sampled(splits: dict[str, list[Task]]) -> list[Task]:
    """A few tasks of each kind and split."""
    return [task for tasks in splits.values() for task in samples.pick(tasks, SAMPLE)]


@pytest.fixture(scope="module")
def played(suite: Suite, sampled: list[Task]) -> list[Trajectory]:
    """Every scripted role on the sampled tasks."""
    return samples.play(suite, sampled)


def test_suite_splits_share_no_task_and_no_cluster(splits: dict[str, list[Task]]) -> None:
    ids = [task.id for tasks in splits.values() for task in tasks]
    assert ids, "it has no tasks"
    twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
    assert not twice, f"task {twice[0]!r} occurs twice"
    for one, other in itertools.combinations(SPLITS, 2):
        shared = {task.cluster for task in splits[one]} & {task.cluster for task in splits[other]}
        assert not shared, f"{one} and {other} share the user task {min(shared)!r}; `cluster` names the user task"


def test_suite_gives_the_same_tasks_for_the_same_seed(
    request: pytest.FixtureRequest, suite: Suite, splits: dict[str, list[Task]]
) -> None:
    fresh = make(request.config, "suite", request.node.callspec.params["suite"])
    for split, tasks in splits.items():
        assert_same(list(suite.tasks(split, 0)), tasks, f"the second time {split} differs")
        assert_same(list(fresh.tasks(split, 0)), tasks, f"from a new suite {split} differs")


def test_suite_tasks_are_whole(suite: Suite, splits: dict[str, list[Task]]) -> None:
    known = set(suite.tools())
    for split, tasks in splits.items():
        for task in tasks:
            assert task.split == split
            assert task.kind in KINDS
            assert task.messages
            assert task.messages[-1]["role"] == "user"
            assert set(task.tools) <= known, f"task {task.id!r} offers a tool that `tools()` does not have"
            assert Task.from_dict(json.loads(dumps(task))) == task, f"task {task.id!r} holds more than JSON values"


def test_suite_all_is_every_task(suite: Suite, splits: dict[str, list[Task]]) -> None:
    missing = {task.id for tasks in splits.values() for task in tasks} - {task.id for task in suite.tasks("all", 0)}
    assert not missing, f'task {min(missing)!r} is in a split, but not in "all"'


def test_suite_describes_itself_in_json(suite: Suite) -> None:
    assert isinstance(json.loads(dumps(suite.describe())), dict)


def test_suite_tools_can_be_shown_to_a_model(suite: Suite) -> None:
    """What a JSON schema is made from: a signature, annotations, and a docstring with an entry per argument."""
    for name, tool in suite.tools().items():
        assert tool.__name__ == name
        text = inspect.getdoc(tool) or ""
        assert text.split("Args:")[0].strip(), f"{name}: the docstring says what the tool does"
        hints = typing.get_type_hints(tool)
        for parameter in inspect.signature(tool).parameters.values():
            assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL), f"{name}: {parameter}"
            assert parameter.name in hints, f"{name}: {parameter.name} has no annotation"
            entry = rf"(?m)^\s+{parameter.name}\s*(\([^)]*\))?:\s*\S"
            assert re.search(entry, text.partition("Args:")[2]), f"{name}: no line under Args: for {parameter.name}"


def _request(task: Task) -> RolloutRequest:
    return RolloutRequest(task, task.messages)


def _idle(recorder: Recorder) -> Outcome | None:
    """The outcome of an episode in which nothing was said or done."""
    return recorder.outcome([{"role": "assistant", "content": "Done."}])


def test_suite_outcomes_have_their_form(played: list[Trajectory]) -> None:
    for trajectory in played:
        assert not trajectory.error, f"{trajectory.task.id}: {trajectory.error}"
        assert trajectory.outcome is not None
        _check_outcome(trajectory.outcome, trajectory)


def _check_outcome(outcome: Outcome, trajectory: Trajectory) -> None:
    task = trajectory.task
    where = f"{task.kind} task {task.id}: {outcome}"
    assert Outcome.from_dict(json.loads(dumps(outcome))) == outcome, where
    for share in (outcome.utility, outcome.harm):
        assert share is None or 0 <= share <= 1, where
    assert (outcome.harm is not None) == (task.kind == "harmful"), where
    assert (outcome.attacked is not None) == (task.kind == "attacked"), where
    assert outcome.attacked is None or isinstance(outcome.attacked, bool), where
    assert outcome.exposed is None or task.kind == "attacked", where
    assert not outcome.injected or task.kind == "attacked", where
    assert outcome.utility is None or task.kind != "harmful", where
    if trajectory.policy == "oracle" and task.kind != "harmful":
        assert outcome.utility is not None, f"{where}: what has an oracle has a ground truth"


def test_suite_oracle_passes_and_idleness_does_not(played: list[Trajectory]) -> None:
    """Neither doing nothing nor refusing may pass a legitimate task, and neither may do harm."""
    found = [defect for trajectory in played for defect in defects_of(trajectory)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", ["attacked", "harmful"])
def test_suite_obeying_does_the_damage(played: list[Trajectory], kind: str) -> None:
    """An attack or a harmful request that cannot succeed measures nothing."""
    outcomes = [t.outcome for t in played if t.task.kind == kind and t.policy == "obey"]
    if not outcomes:
        pytest.skip(f"no {kind} task has a script of one that obeys")
    assert any(outcome and (outcome.attacked or outcome.harm) for outcome in outcomes)


def test_suite_episodes_share_nothing(suite: Suite, played: list[Trajectory]) -> None:
    """What one episode does is not seen by another that is open, nor by one that is opened later."""
    idle = {t.task.id: t.outcome for t in played if t.policy == "do-nothing"}
    for first in [trajectory for trajectory in played if trajectory.calls]:
        opened = Recorder(suite, _request(first.task))
        second = perform(suite, _request(first.task), _script(first))
        assert _idle(opened) == idle[first.task.id], f"{first.task.id}: an open episode sees what another does"
        assert (second.calls, second.outcome) == (first.calls, first.outcome), f"{first.task.id}: not reset"


def _script(trajectory: Trajectory) -> Script:
    """The calls and the answer of a trajectory, to do it again."""
    calls = tuple({"name": call.name, "arguments": call.arguments} for call in trajectory.calls)
    return Script(calls, trajectory.answer)


def test_suite_states_can_be_replayed(suite: Suite, played: list[Trajectory]) -> None:
    """From JSON, under the name that a recipe gives the suite: as `resume` does it."""
    for trajectory in [trajectory for trajectory in played if trajectory.calls]:
        task = Task.from_dict(json.loads(dumps(replace(trajectory.task, suite="another-name"))))
        recorder = Recorder(suite, RolloutRequest(task, task.messages, replay=trajectory.calls))
        assert not recorder.error, f"{task.id}: {recorder.error}"
        assert recorder.outcome(trajectory.messages) == trajectory.outcome, f"{task.id}: another outcome"


BAD_ARGUMENTS: tuple[Any, ...] = (
    None,
    True,
    "",
    "../../x",
    -1,
    0,
    10**30,
    1e308,
    [],
    ["x"],
    {},
    {"x": [None]},
    *samples.HOSTILE,
)


def test_suite_bad_calls_are_the_policys_fault(suite: Suite, sampled: list[Task]) -> None:
    """An unknown tool or senseless arguments end neither the episode nor the grading."""
    offering: dict[str, Task] = {tool: task for task in sampled for tool in task.tools}
    for tool, task in offering.items():
        recorder = Recorder(suite, _request(task))
        _call(recorder, "no_such_tool", {"x": 1})
        _call(recorder, tool, {"no_such_argument": 1})
        for value in (*BAD_ARGUMENTS, *samples.HOSTILE):
            _call(recorder, tool, dict.fromkeys(inspect.signature(suite.tools()[tool]).parameters, value))
        assert _idle(recorder) is not None, f"{task.id}: {recorder.error}"


def _call(recorder: Recorder, tool: str, arguments: Mapping[str, Any]) -> None:
    try:
        result: Any = recorder.call(tool, arguments)
    except ToolError as refusal:
        result = str(refusal)
    assert not recorder.error, f"{recorder.error}, called with {arguments}: raise ToolError for what a policy did wrong"
    assert isinstance(result, str), f"{tool} returned {result!r}; tools return text"
