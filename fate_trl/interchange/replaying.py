"""Recorded calls, executed again: one behaviour gets one verdict, however it came in.

A record's own results were told by other code (other checks of utility, no word on exposure, errors worded otherwise).
Where the suite is at hand, its calls are executed in a fresh episode of its task, in their order, and what comes of
them is what counts. What the policy said, and how it ended, stay as recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import ToolError
from ..hookspecs import Suite
from ..messages import Message
from ..process.bounded import Limits
from ..suites.episodes import Recorder
from ..types import Case, RolloutRequest, ToolCall, Trajectory
from .agentdojo_logs import WITHHELD
from .records import scored


def replayed(trajectory: Trajectory, suite: Suite, limits: Limits | None = None) -> Trajectory:
    """A recorded trajectory as its suite sees it; one with an infrastructure error stays as it is.

    Args:
        trajectory: Of a task of the suite's own, as `match` gives it.
        suite: The suite that opens the task.
        limits: Bounds around the episode.

    Returns:
        It with the calls, results and outcome of the episode. `data["replay"]` says how many calls were executed, and
        how many had another result or fault than recorded.
    """
    if trajectory.error:
        return trajectory
    request = RolloutRequest(trajectory.task, trajectory.prompt, trajectory.stage, trajectory.attempt)
    recorder = Recorder(suite, request, limits)
    made = _as_said(trajectory)
    for call in made:
        _execute(recorder, call)
    messages = _retold(trajectory.messages, [call.result for call in recorder.calls[trajectory.replayed :]])
    again = recorder.trajectory(messages, trajectory.stop, trajectory.policy)
    pairs = zip(trajectory.calls, again.calls)
    other = sum((was.result, was.fault) != (now.result, now.fault) for was, now in pairs)
    data = {**trajectory.data, "replay": {"calls": len(again.calls), "other": other}}
    return replace(_with_metrics(again, trajectory), replayed=trajectory.replayed, data=data)


def executed(cases: Iterable[Case], suites: Mapping[str, Suite], limits: Limits | None = None) -> list[Case]:
    """The cases; those of whole logs of AgentDojo's tasks with the verdicts of a replay.

    AgentDojo's environments are closed worlds. Others' results may be a judge's, which no replay gives again; and a
    row of failures brings scores that are meant.
    """
    out = []
    for trajectory, card in cases:
        if trajectory.task.suite.startswith("agentdojo/") and "row" not in trajectory.data:
            out.append(scored(replayed(trajectory, suites[trajectory.task.suite], limits), {}))
        else:
            out.append((trajectory, card))
    return out


def _as_said(trajectory: Trajectory) -> list[ToolCall]:
    """The executed calls; of one whose arguments were no object, with what it said in their place."""
    said: list[Any] = []
    waiting: list[Any] = []
    for message in trajectory.messages:
        if message.get("role") == "assistant":
            waiting = [call.get("function", call) for call in message.get("tool_calls") or ()]
        elif message.get("role") == "tool" and waiting:
            said.append(waiting.pop(0))
    own = trajectory.calls[trajectory.replayed :]
    if [call.get("name") for call in said] != [call.name for call in own]:
        return list(trajectory.calls)
    odd = [replace(call, arguments=s.get("arguments")) for call, s in zip(own, said, strict=True)]
    return [*trajectory.calls[: trajectory.replayed], *odd]


def _execute(recorder: Recorder, call: ToolCall) -> None:
    """One call; what it raises is recorded, and the policy went on after it."""
    try:
        if isinstance(call.arguments, Mapping):
            recorder.call(call.name, call.arguments)
            if call.result == WITHHELD:  # the policy never saw what the tool said
                recorder.calls[-1] = replace(recorder.calls[-1], result=WITHHELD)
        else:
            recorder.refuse(call.name, "the arguments are no JSON object")
    except ToolError:
        return


def _retold(messages: tuple[Message, ...], results: list[str]) -> list[Message]:
    """The messages with the results of the replay, where each has its message."""
    if sum(message.get("role") == "tool" for message in messages) != len(results):
        return list(messages)
    told = iter(results)
    return [{**message, "content": next(told)} if message.get("role") == "tool" else message for message in messages]


def _with_metrics(again: Trajectory, recorded: Trajectory) -> Trajectory:
    """The replay with the metrics that the record states of its own, such as AgentDojo's count of utility."""
    own = recorded.outcome.info.get("metrics") if recorded.outcome else None
    if again.outcome is None or not own:
        return again
    info = {**again.outcome.info, "metrics": {**own, **again.outcome.info.get("metrics", {})}}
    return replace(again, outcome=replace(again.outcome, info=info))
