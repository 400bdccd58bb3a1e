"""Trajectories as a tracker's traces: the conversation step by step, and what became of it.

Only trackio has them (`trackio.Trace`, from 0.25 on). Its messages are OpenAI's: a result names the call that it
answers. All text comes from attackers, so what could steer a terminal is spelled out, and long texts are cut.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from ..messages import Message, text_of, visible
from ..types import Case

SAMPLES = 6
"""Traces of a stage's trajectories (ours): some of each kind, failures first."""

LONGEST = 4000  # characters of a message


def sampled(cases: Sequence[Case], most: int = SAMPLES) -> list[Case]:
    """A few of a stage's cases: from each kind of task in turn, those that fail first, otherwise as they come."""
    by_kind: dict[str, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case[1].resolved):
        by_kind[case[0].task.kind].append(case)
    turns = chain.from_iterable(zip_longest(*(by_kind[kind] for kind in sorted(by_kind))))
    return [case for case in turns if case is not None][:most]


def trace_of(case: Case, **about: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(messages, metadata) of a trajectory.

    Args:
        case: The trajectory and its scores.
        about: More of the metadata, such as the round and the step.
    """
    trajectory, card = case
    scores = {name: score.status if score.value is None else score.value for name, score in card.scores.items()}
    metadata = {
        "task": visible(trajectory.task.id),
        "suite": trajectory.task.suite,
        "kind": trajectory.task.kind,
        "stage": trajectory.stage,
        "attempt": trajectory.attempt,
        "policy": trajectory.policy,
        "stop": trajectory.stop,
        "resolved": card.resolved,
        "failed": list(card.failed),
        "scores": scores,
        "why": {name: _cut(score.reason) for name, score in card.scores.items() if score.reason},
        "status": "error" if trajectory.error else "ok",
        **about,
    }
    prompt = trajectory.prompt or trajectory.task.messages
    return list(_messages([*prompt, *trajectory.messages])), metadata


def _messages(messages: Iterable[Message]) -> Iterator[dict[str, Any]]:
    number, waiting = 0, list[str]()
    for message in messages:
        said: dict[str, Any] = {"role": message["role"], "content": _cut(text_of(message))}
        if message["role"] == "tool":
            said |= {"tool_call_id": waiting.pop(0)} if waiting else {}
            said |= {"name": visible(str(message["name"]))} if "name" in message else {}
        if message.get("tool_calls"):
            calls = [_call(call, f"call_{number + place}") for place, call in enumerate(message["tool_calls"])]
            number, waiting = number + len(calls), [call["id"] for call in calls]
            said["tool_calls"] = calls
        yield said


def _call(call: Mapping[str, Any], id: str) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return {
        "id": id,
        "type": "function",
        "function": {"name": visible(str(function.get("name"))), "arguments": _cut(text)},
    }


def _cut(text: str) -> str:
    return visible(text if len(text) <= LONGEST else f"{text[:LONGEST]} [cut: {len(text) - LONGEST} more characters]")
