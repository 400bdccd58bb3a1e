"""A recorded dialogue as ours: which result answers which call, whatever the format and the order.

Ours pairs results with calls by their order. Others name the call (`tool_call_id`, `tool_use_id`, `call_id`, or the
call itself), and may record results late, in another order, or not at all. So here results are put into the order of
their calls, calls without a result stand last in their message, and only a call with a result counts as executed.

Read are OpenAI's chat messages (the older `function_call` too) and the items of its Responses, and Anthropic's blocks.
What may hold a call or a result and is none of these is refused by its name; thoughts are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InterchangeError
from ..messages import Message
from ..record import dumps
from ..types import ToolCall
from .records import sound

_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")


@dataclass(frozen=True)
class Call:
    """A call, or what a result says of the call that it answers.

    Attributes:
        name: The tool's; "" where a result does not say.
        arguments: By name; None where a result does not say; a text if they are no JSON.
        id: "" where there is none.
    """

    name: str = ""
    arguments: Any = None
    id: str = ""


@dataclass(frozen=True)
class Turn:
    """One message as it was recorded.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        text: What it says.
        calls: An assistant's calls.
        answers: What a tool's result says of its call.
        fault: A result's, as in `ToolCall`.
    """

    role: str
    text: str = ""
    calls: tuple[Call, ...] = ()
    answers: Call = Call()
    fault: str = ""


# ------------------------------------------------------------------------------------------------ pairing


def paired(turns: Sequence[Turn]) -> tuple[list[Message], tuple[ToolCall, ...]]:
    """(messages, executed calls) with the results in the order of their calls.

    Raises:
        InterchangeError: A result answers no call, or cannot be told apart from one that is missing.
    """
    answered = _answered(turns)  # (turn, call) by the turn of a result
    done = set(answered.values())
    turns = list(turns)
    order = list(range(len(turns)))
    start = 0
    for end in range(1, len(turns) + 1):  # runs of results, each sorted by what it answers
        if end == len(turns) or turns[end].role != "tool" or turns[end - 1].role != "tool":
            order[start:end] = sorted(order[start:end], key=lambda i: answered.get(i, (i, 0)))
            start = end
    messages: list[Message] = []
    executed: list[ToolCall] = []
    for i in order:
        turn = turns[i]
        if turn.role == "tool":
            call = turns[answered[i][0]].calls[answered[i][1]] if i in answered else turn.answers
            messages.append({"role": "tool", "name": call.name or turn.answers.name, "content": turn.text})
            if i in answered or call.arguments is not None:  # some results hold their whole call
                executed.append(_executed(call, turn))
        elif turn.role == "assistant":
            calls = [(call.name, call.arguments) for call in turn.calls]
            ran = [calls[number] for number in range(len(calls)) if (i, number) in done]
            messages.append(call_message(turn.text, ran + [c for n, c in enumerate(calls) if (i, n) not in done]))
        else:
            messages.append({"role": turn.role, "content": turn.text})
    return messages, tuple(executed)


def _executed(call: Call, result: Turn) -> ToolCall:
    fits = isinstance(call.arguments, dict)  # what was no JSON ran with nothing, if it ran
    fault = result.fault or ("" if fits else "arguments")
    return ToolCall(call.name, call.arguments if fits else {}, result.text, fault)


def _answered(turns: Sequence[Turn]) -> dict[int, tuple[int, int]]:
    """(turn, number) of the call that each result answers, by the result's turn; none where no call waits for one."""
    waiting: list[tuple[int, int]] = []
    asked = -1  # the last turn with calls
    found: dict[int, tuple[int, int]] = {}
    for i, turn in enumerate(turns):
        if turn.calls:
            asked = i
            waiting += [(i, number) for number in range(len(turn.calls))]
        if turn.role == "tool":
            place = _place(turns, i, waiting, asked)
            if place is not None:
                waiting.remove(place)
                found[i] = place
    return found


def _place(turns: Sequence[Turn], i: int, waiting: Sequence[tuple[int, int]], asked: int) -> tuple[int, int] | None:
    said, call_of = turns[i].answers, {place: turns[place[0]].calls[place[1]] for place in waiting}
    if said.id:
        for place in sorted(waiting, key=lambda place: (-place[0], place[1])):  # ids are used again by some servers
            if call_of[place].id == said.id:
                return place
        raise InterchangeError(f"the result with the id {said.id!r} answers no call that waits for one")
    here = [place for place in waiting if place[0] == asked]
    if not here:
        return None  # its call is written in the text, or nowhere
    if said.name:
        named = [place for place in here if call_of[place].name == said.name]
        same = [place for place in named if said.arguments is None or call_of[place].arguments == said.arguments]
        if not named and said.arguments is not None:
            return None
        if not named:
            raise InterchangeError(f"the result of {said.name!r} answers no call that waits for one")
        return (same or named)[0]
    results = next((j for j in range(i, len(turns)) if turns[j].role != "tool"), len(turns)) - i
    if results < len(here) and i + results < len(turns):
        raise InterchangeError(
            f"{len(here)} calls have {results} results which do not say what they answer; give each a tool_call_id"
        )
    return here[0]


def call_message(content: str, calls: Sequence[tuple[str, Any]]) -> Message:
    """An assistant message, with its calls (name, arguments) as transformers' templates take them."""
    message: Message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls
        ]
    return message


# ------------------------------------------------------------------------------------------------ formats


def turns_of(given: Iterable[Mapping[str, Any]]) -> list[Turn]:
    """Turns of a dialogue of OpenAI's or Anthropic's. Raises InterchangeError that names what is not read."""
    turns: list[Turn] = []
    for item in given:
        if "role" not in item and item.get("type") == "function_call":
            call = _call(item, str(item.get("call_id") or item.get("id") or ""))
            if not turns or turns[-1].role != "assistant":
                turns.append(Turn("assistant"))
            turns[-1] = replace(turns[-1], calls=(*turns[-1].calls, call))
        else:
            turns += _turns(item)
    return turns


def _turns(item: Mapping[str, Any]) -> Iterator[Turn]:
    role, kind = item.get("role"), item.get("type")
    if role is None and kind == "function_call_output":
        yield Turn("tool", _text(item.get("output")), answers=Call(id=str(item.get("call_id") or "")))
    elif role is None and kind in _THOUGHTS:
        return
    elif role is None and isinstance(kind, str):
        raise InterchangeError(
            f"an item of type {kind!r} is not read; messages, function_call and function_call_output are"
        )
    elif role == "assistant":
        yield _assistant(item)
    elif role in ("tool", "function"):
        said = Call(str(item.get("name") or ""), id=str(item.get("tool_call_id") or ""))
        yield Turn("tool", _text(item.get("content")), answers=said)
    elif role == "user":
        yield from _user(item)
    elif role in ("system", "developer"):
        yield Turn("system", _text(item.get("content")))
    else:
        raise InterchangeError(f"a message's role is system, user, assistant or tool, not {role!r}")


def _assistant(item: Mapping[str, Any]) -> Turn:
    content = item.get("content")
    calls = [
        Call(str(block.get("name") or ""), _arguments(block.get("input")), str(block.get("id") or ""))
        for block in _blocks(content)
        if block.get("type") == "tool_use"
    ]
    made = item.get("tool_calls") or ()
    if not isinstance(made, Sequence) or isinstance(made, str):
        raise InterchangeError(f"a message's tool_calls are a list, not {type(made).__name__}")
    for call in [*made, {"function": item["function_call"]}] if item.get("function_call") else made:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise InterchangeError("a call is an object with a function, or with a name and arguments")
        calls.append(_call(function, str(call.get("id") or "")))
    refusal = item.get("refusal")
    text = _text(content, but=("tool_use",)) or (refusal if isinstance(refusal, str) else "")
    return Turn("assistant", text, tuple(calls))


def _user(item: Mapping[str, Any]) -> Iterator[Turn]:
    """Anthropic's results stand in the user's messages, before what the user says."""
    content = item.get("content")
    results = [block for block in _blocks(content) if block.get("type") == "tool_result"]
    for block in results:
        fault = "raised" if block.get("is_error") else ""
        yield Turn(
            "tool", _text(block.get("content")), answers=Call(id=str(block.get("tool_use_id") or "")), fault=fault
        )
    text = _text(content, but=("tool_result",))
    if text or not results:
        yield Turn("user", text)


def _call(function: Mapping[str, Any], id: str) -> Call:
    return Call(str(function.get("name") or ""), _arguments(function.get("arguments")), id)


def _arguments(arguments: Any) -> Any:
    """Arguments as an object, {} for none; as they are if they are no JSON: the verifiers count those as malformed."""
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = sound(json.loads(arguments))
        except (ValueError, RecursionError):
            return arguments
    return {} if arguments is None or arguments == "" else arguments


def _blocks(content: Any) -> list[Mapping[str, Any]]:
    return [block for block in content if isinstance(block, Mapping)] if isinstance(content, list) else []


def _text(content: Any, but: tuple[str, ...] = ()) -> str:
    """The text of a message's content; of its blocks those of the types `but` are read elsewhere."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Mapping):
        return dumps(content, sort=False)
    if not isinstance(content, list):
        raise InterchangeError(f"a message's content is a text or a list of blocks, not {type(content).__name__}")
    return "".join(part if isinstance(part, str) else _block(part, but) for part in content)


def _block(block: Any, but: tuple[str, ...]) -> str:
    kind = block.get("type", "text") if isinstance(block, Mapping) else type(block).__name__
    if kind in _TEXTS or kind == "refusal":
        return str(block.get("refusal" if kind == "refusal" else "text") or "")
    if kind in _THOUGHTS or kind in but:
        return ""
    raise InterchangeError(
        f"a content block of type {kind!r} is not read in this place; text, tool_use and tool_result are"
    )
