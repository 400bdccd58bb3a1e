"""A conversation as an OpenAI-compatible server wants it. What a model broke is mended here, and only here.

Strict servers decode the whole history and refuse it for one call whose arguments are no JSON object, for a name that
no function may have, or for a call without a result. The record keeps what the model wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..messages import Message, text_of
from .replies import REASONING

NO_RESULT = "[no result]"
"""Stands for the result of a call that nothing answered."""

_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")


def wire_messages(messages: Sequence[Message], tools: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The messages as requests hold them: results stand by their calls' ids, arguments are JSON objects.

    A call keeps the id that the model gave it, unless another has it already; the others are numbered. A result
    belongs to the call whose id it names; one that names none to the first open call of its tool, or else of any, in
    the last assistant message. Thoughts since the user's last word go back under the key that they came by.

    Args:
        messages: Prompt and what followed.
        tools: Names of tools that the server knows; any other name is spelled as a function's may be.
    """
    out: list[dict[str, Any]] = []
    ids = _Ids()
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            out.append({"role": "tool", "content": text_of(message), "tool_call_id": ids.answered(message)})
            continue
        out += ids.unanswered()
        wired: dict[str, Any] = {"role": message["role"], "content": text_of(message)}
        if index > last:
            wired |= {key: message[key] for key in REASONING if message.get(key)}
        if message.get("tool_calls"):
            wired["tool_calls"] = [
                {"id": ids.given(call), "type": "function", "function": _function(call.get("function", call), tools)}
                for call in message["tool_calls"]
            ]
        out.append(wired)
    return out + list(ids.unanswered())


def _function(function: Mapping[str, Any], tools: Sequence[str]) -> dict[str, str]:
    name, arguments = str(function.get("name", "")), function.get("arguments")
    if name not in tools:
        name = _NO_NAME.sub("_", name)[:64] or "_"
    return {"name": name, "arguments": json.dumps(arguments) if isinstance(arguments, Mapping) else "{}"}


class _Ids:
    """Which call is answered by which result."""

    def __init__(self) -> None:
        self._made: set[str] = set()
        self._open: list[tuple[str, str, str]] = []  # (id on the wire, id that the model gave, tool's name) of calls

    def given(self, call: Mapping[str, Any]) -> str:
        """The id of a call on the wire."""
        own, number = str(call.get("id") or ""), len(self._made)
        wired = own
        while not wired or wired in self._made:
            wired, number = f"call{number:05d}", number + 1  # nine letters and digits: one server's parser insists
        self._made.add(wired)
        self._open.append((wired, own, call.get("function", call).get("name", "")))
        return wired

    def answered(self, message: Message) -> str:
        """The id on the wire of the call that a result answers; its own, or none, where it answers no call."""
        own = str(message.get("tool_call_id") or "")
        fits = [call for call in self._open if call[1] == own]
        if not own:
            fits = [call for call in self._open if call[2] == message.get("name")] or self._open
        if not fits:
            return own
        call = fits[0]
        self._open.remove(call)
        return call[0]

    def unanswered(self) -> Iterator[dict[str, Any]]:
        """A result for each call that got none, before the conversation goes on."""
        for wired, _, _ in self._open:
            yield {"role": "tool", "content": NO_RESULT, "tool_call_id": wired}
        self._open = []
