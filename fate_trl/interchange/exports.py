"""Trajectories and pairs for other tools: OpenAI's chat format, NeMo Gym's rollouts, TRL's preference data sets.

    openai        {"messages": […], "tools": […], "scores": {…}, "fate_trl": {…}}
    nemo-gym      {"responses_create_params": {"input": […], "tools": […]}, "response": {…}, "reward": 2.2,
                   "reward_components": {"security": 1.0, …}, "security": 1.0, …, "fate_trl": {…}}
    preferences   {"prompt": […], "chosen": […], "rejected": […], "tools": "[…]", "score_gap": 0.5}

In the first two `fate_trl` is the rest of our record, by which `read` makes the trajectory again: the whole of it from
OpenAI's format, all but thoughts in fields of their own from NeMo Gym's, whose items have no place for them. Scores
that do not apply are left out of NeMo Gym's components, and `reward` is their sum, as in its own example.

A pair's two sides follow the plain task's prompt, which is what TRL calls conversational with an explicit prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..errors import FateError, InterchangeError
from ..messages import Message, text_of
from ..record import dumps
from ..types import Case, ScoreCard, Trajectory
from .dialogue import paired, turns_of

Json = dict[str, Any]
KEY = "fate_trl"
_ID = "call_fate_"
"""How ids of calls begin that stand in no record and are made here."""


# ------------------------------------------------------------------------------------------------ writing


def openai_row(case: Case, round: int, tools: Sequence[Json]) -> Json:
    """A trajectory as a conversation of OpenAI's chat format."""
    trajectory, card = case
    said = with_ids((*trajectory.prompt, *trajectory.messages))
    return {"messages": said, "tools": list(tools), "scores": _values(card), KEY: _rest(case, round)}


def gym_row(case: Case, round: int, tools: Sequence[Json]) -> Json:
    """A trajectory as a line of NeMo Gym's rollouts: what its `/verify` of several rewards returns.

    A trajectory with an infrastructure error has no reward, and 0 would be a lie: such are not to be written.
    """
    trajectory, card = case
    values = {name: value for name, value in _values(card).items() if value is not None}
    described = [{"type": "function", "strict": False, **tool["function"]} for tool in tools]
    said = with_ids((*trajectory.prompt, *trajectory.messages))
    named = f"{trajectory.task.suite}/{trajectory.task.id}#{trajectory.attempt}"
    response = {
        "id": f"resp_{named}",
        "object": "response",
        "created_at": 0.0,
        "model": trajectory.policy or "unknown",
        "output": _items(said[len(trajectory.prompt) :], named),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": described,
    }
    asked = {"input": _items(said[: len(trajectory.prompt)], f"{named}-prompt"), "tools": described}
    clash = {"responses_create_params", "response", "reward", "reward_components", KEY}
    return {
        "responses_create_params": asked,
        "response": response,
        "reward": sum(values.values()),
        "reward_components": values,
        **{name: value for name, value in values.items() if name not in clash},
        KEY: _rest(case, round),
    }


def preference_row(chosen: Trajectory, rejected: Trajectory, prompt: Sequence[Message], tools: Sequence[Json]) -> Json:
    """Two trajectories of a task as a row of a preference data set, on the plain prompt.

    Tools are a JSON text, which TRL reads, and which no reader of data sets fills with the keys of other rows' tools.
    """
    row: Json = {"prompt": [dict(message) for message in prompt]}
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        row[name] = [dict(message) for message in _continuation(side, prompt)]
    return {**row, **({"tools": dumps(list(tools), sort=False)} if tools else {})}


def _continuation(side: Trajectory, prompt: Sequence[Message]) -> tuple[Message, ...]:
    """What a side says after the plain prompt: turns that it was given to go on from are a part of it."""
    given = side.prompt[: len(prompt)] == tuple(prompt)
    return (*(side.prompt[len(prompt) :] if given else ()), *side.messages)


def _values(card: ScoreCard) -> dict[str, float | None]:
    return {name: score.value for name, score in card.scores.items()}


def _rest(case: Case, round: int) -> Json:
    """All of our record but the conversation."""
    trajectory, card = case
    record = trajectory.to_dict()
    record.pop("messages", None)
    prompt = len(record.pop("prompt", []))
    record.get("data", {}).pop("row", None)  # where an import keeps the round
    if not record.get("data"):
        record.pop("data", None)
    return {"round": round, "prompt": prompt, "trajectory": record, "card": card.to_dict()}


def with_ids(messages: Iterable[Message]) -> list[Message]:
    """The messages in OpenAI's form: arguments as JSON text, and an id on each call that its result names.

    Results stand in the order of their calls, as in every record.
    """
    out: list[Message] = []
    waiting: list[str] = []
    for number, message in enumerate(messages):
        said = dict(message)
        if said.get("tool_calls"):
            calls = [_call(call, f"{_ID}{number}_{n}") for n, call in enumerate(said["tool_calls"])]
            said["tool_calls"], waiting = calls, [call["id"] for call in calls]
        elif said.get("role") == "tool" and "tool_call_id" not in said:
            said["tool_call_id"] = waiting.pop(0) if waiting else f"{_ID}{number}"
        out.append(said)
    return out


def _call(call: Mapping[str, Any], id: str) -> Json:
    function = dict(call.get("function", call))
    arguments = function.get("arguments")
    function["arguments"] = arguments if isinstance(arguments, str) else dumps(arguments or {}, sort=False)
    return {"id": call.get("id") or id, "type": "function", "function": function}


def _items(messages: Iterable[Message], named: str) -> list[Json]:
    """Messages as items of OpenAI's Responses."""
    items: list[Json] = []
    for number, message in enumerate(messages):
        text, role = text_of(message), message.get("role")
        if role == "tool":
            items.append({"type": "function_call_output", "call_id": message["tool_call_id"], "output": text})
        elif role != "assistant":
            items.append({"type": "message", "role": role, "content": text})
        else:
            calls = message.get("tool_calls") or ()
            if text or not calls:
                content = [{"type": "output_text", "text": text, "annotations": []}]
                said = {"role": "assistant", "content": content, "status": "completed"}
                items.append({"type": "message", "id": f"msg_{named}_{number}", **said})
            items += [{"type": "function_call", "call_id": call["id"], **call["function"]} for call in calls]
    return items


# ------------------------------------------------------------------------------------------------ reading


def is_export(value: Any) -> bool:
    """Whether a line is one of the first two formats, written here."""
    return isinstance(value, dict) and KEY in value and ("messages" in value or "response" in value)


def case(value: Json, where: str) -> Case:
    """The case of a line that `openai_row` or `gym_row` made. Raises InterchangeError that names where it stands."""
    try:
        rest = value[KEY]
        if "messages" in value:
            messages = [_without_ids(message) for message in value["messages"]]
        else:
            given, response = value["responses_create_params"]["input"], value["response"]["output"]
            messages = paired(turns_of([*given, *response]))[0]
        prompt = rest["prompt"]
        record = {**rest["trajectory"], "prompt": messages[:prompt], "messages": messages[prompt:]}
        return Trajectory.from_dict(_in_round(record, rest["round"])), ScoreCard.from_dict(rest["card"])
    except KeyError as error:
        raise InterchangeError(f"{where}: there is no key {error}") from None
    except (FateError, TypeError, ValueError, AttributeError) as error:
        raise InterchangeError(f"{where}: {error}") from None


def _in_round(record: Json, round: Any) -> Json:
    """The record with its round where `interchange.round_of` finds it."""
    if type(round) is not int or not 0 <= round < 1000:
        raise ValueError(f"{round!r} is no round")
    data = record.get("data", {})
    return {**record, "data": {**data, "row": {**data.get("row", {}), "round": round}}}


def _without_ids(message: Mapping[str, Any]) -> Message:
    """A message as it was before `with_ids`."""
    said = dict(message)
    if str(said.get("tool_call_id", "")).startswith(_ID):
        del said["tool_call_id"]
    if said.get("tool_calls"):
        said["tool_calls"] = [_as_recorded(call) for call in said["tool_calls"]]
    return said


def _as_recorded(call: Mapping[str, Any]) -> Json:
    function = dict(call["function"])
    with suppress(ValueError, RecursionError):  # where the policy wrote no JSON
        function["arguments"] = json.loads(function["arguments"])
    kept = {key: item for key, item in call.items() if key != "id" or not str(item).startswith(_ID)}
    return {**kept, "function": function}
