"""Buffer rows as what SFT learns from: token ids, and labels on the policy's own tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import FateError
from ..messages import Message
from ..types import BufferRow
from . import templates


class Unrenderable(FateError):
    """A row whose messages the chat template cannot render, in no way that says the same."""


def tokens_of(row: BufferRow, tokenizer: Any, tools: Sequence[Any], **kwargs: Any) -> dict[str, list[int]]:
    """A buffer row as `input_ids` and `labels`, −100 where there is no loss. Sampled tokens are taken as they are.

    Keyword arguments go to the chat template.

    Messages are rendered one more at a time, so each one's tokens are what the template adds for it. What a template
    cannot render is said in another way: several calls of one message as messages of one call, each with its result,
    and arguments that are no object as {}.

    Raises:
        Unrenderable: The template cannot render them in that way either.
        FateError: The template is not prefix-preserving.
    """
    if row.completion_ids:
        ids = [*row.prompt_ids, *row.completion_ids]
        kept = zip(row.completion_ids, row.policy_mask, strict=True)
        return {"input_ids": ids, "labels": [-100] * len(row.prompt_ids) + [i if own else -100 for i, own in kept]}
    halves = (row.messages[: row.loss_from], row.messages[row.loss_from :])
    before, after = (renderable(half, tokenizer, tools, **kwargs) for half in halves)
    messages, loss_from = [*before, *after], len(before)
    ids, labels = [], []
    for end in range(loss_from, len(messages) + 1):
        speaks = end > loss_from and messages[end - 1]["role"] == "assistant"
        following = end < len(messages) and messages[end]["role"] == "assistant"
        if not speaks and not following:
            continue  # one of several tool results in a row: rendered with the last of them
        try:
            full = templates.render(tokenizer, messages[:end], tools, add_generation_prompt=not speaks, **kwargs)
        except Exception as error:  # a template of a third party may raise anything
            raise Unrenderable(f"the chat template cannot render a row: {type(error).__name__}: {error}") from error
        if full[: len(ids)] != ids:
            raise FateError("the chat template is not prefix-preserving: a longer conversation renders differently")
        new = full[len(ids) :]
        stop = len(new)
        if speaks and tokenizer.eos_token_id in new:
            stop = len(new) - new[::-1].index(tokenizer.eos_token_id)  # a newline after the end is not sampled
        ids += new[:stop]
        labels += new[:stop] if speaks else [-100] * stop
    return {"input_ids": ids, "labels": labels}


def renderable(messages: Sequence[Message], tokenizer: Any, tools: Sequence[Any], **kwargs: Any) -> list[Message]:
    """The messages in a way that the template can render; see `tokens_of`. Raises Unrenderable if there is none."""
    out = list(messages)
    calls = [call for message in out for call in message.get("tool_calls") or ()]
    several = any(len(message.get("tool_calls") or ()) > 1 for message in out)
    malformed = not all(isinstance(_function(call).get("arguments"), Mapping) for call in calls)
    if several or malformed:
        missing = templates.missing(tokenizer, tools or [templates.TOOL], **kwargs)
        if malformed and "text arguments" in missing:
            out = [_with_objects(message) for message in out]
        if several and "several calls" in missing:
            out = split_calls(out)
    return out


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function: Mapping[str, Any] = call.get("function", call)
    return function


def _with_objects(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = _function(call)
        if not isinstance(function.get("arguments"), Mapping):
            function = {**function, "arguments": {}}
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls}


def split_calls(messages: Sequence[Message]) -> list[Message]:
    """The messages, each of several calls as one message per call, with its result behind it.

    Results belong to calls by `tool_call_id`, where all have one, else by their order.

    Raises:
        Unrenderable: There are fewer results, or more, than calls.
    """
    out: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        calls = list(message.get("tool_calls") or ())
        if len(calls) < 2:
            out.append(message)
            continue
        end = next((i for i in range(at, len(messages)) if messages[i]["role"] != "tool"), len(messages))
        for number, (call, result) in enumerate(zip(calls, _results(calls, messages[at:end]), strict=True)):
            said = message if number == 0 else {"role": "assistant", "content": ""}
            out += [{**said, "tool_calls": [call]}, result]
        at = end
    return out


def _results(calls: Sequence[Mapping[str, Any]], results: Sequence[Message]) -> list[Message]:
    if len(calls) != len(results):
        raise Unrenderable(
            f"the chat template renders one call per message, and a message of {len(calls)} calls has {len(results)} "
            "results, so it cannot be split"
        )
    by_id = {result.get("tool_call_id"): result for result in results}
    ids = [call.get("id") for call in calls]
    if None not in ids and set(ids) == set(by_id):
        return [by_id[name] for name in ids]
    return list(results)
