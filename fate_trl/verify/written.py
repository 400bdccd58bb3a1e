"""Calls that a policy wrote as text: no parser read them, so nothing ran, whatever the text says.

Every family has a form of its own. Where a form has marks that nobody writes by chance (`<tool_call>`), these tell it;
where it looks like an ordinary answer (JSON, Python), it is a call only if it names one of the task's tools and stands
where a call would: on a line of its own, in a fence, or at the very end. An object *inside* another one reports a call.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..messages import Message, answer_of, text_of

LONGEST = 8_000
"""Characters of an ending that are looked at (ours)."""

_MARKS = re.compile(
    r"<\|?/?tool_?calls?\b|\[TOOL_?CALLS?\]|<\|python_tag\|>|<function=|<function_?call\b|<start_function_call>"
    r"|```tool_c|<｜tool▁calls?▁begin｜>|<\|tool_calls?_(?:section_)?(?:begin|start)\|>|<\|action_start\|>|<\|START_ACTION"
    r"|<\|tool_call>|<invoke name=|<tool_use>|\bfunctools\[\s*\{|✿FUNCTION✿|<arg_key>",
    re.IGNORECASE,
)
_OPENS = re.compile(r"\{|\[(?=\s*\{)")
_CHANNEL = re.compile(r"\bto=(?:functions\.)?(\w+)")
_FENCE = re.compile(r"```\w*[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_LEAD = re.compile(r"[\s`>*-]*(?:\w{0,12}\n)?[\s`\[,;(]*\Z")
_TAIL = re.compile(r"(?:\s|`|[\]);,]|</?\w[^<>]{0,30}>|<\|[^|<>]{1,30}\|>)*\Z")
_NAMES = ("name", "tool", "tool_name", "function", "function_name", "action")
_ARGUMENTS = ("arguments", "parameters", "args", "input", "kwargs", "params", "tool_input", "action_input")
_KEYS = {*_NAMES, *_ARGUMENTS, "type", "id", "call_id", "tool_call_id", "thought"}
_UNCLOSED = re.compile(
    rf"""\{{\s*["'](?:{"|".join(_NAMES)})["']\s*:\s*["'](?P<name>[^"']+)["']\s*,"""
    rf"""\s*["'](?:{"|".join(_ARGUMENTS)})["']\s*:\s*[{{"']"""
)
_ACTION = re.compile(r"^\W*Action\s*:\s*`?(\w+)`?.*\n+\W*Action Input\s*:", re.MULTILINE | re.IGNORECASE)
_TAGGED = re.compile(r"^\s*<(\w+)>\s*(?:<(\w+)>.*?</\2>\s*)*</\1>", re.MULTILINE | re.DOTALL)
_PREFIXED = re.compile(r"^\s*(\w+)\s*(?:\[ARGS\])?\{.*\}\s*\Z", re.DOTALL)


def written_call(message: Message, tools: Collection[str]) -> bool:
    """Whether what a message says is, or ends in, a call that was written as text.

    Args:
        message: An assistant's message that made no call.
        tools: Names of the tools that its author had; without any only unmistakable marks count.
    """
    if any(found[1] in tools for found in _CHANNEL.finditer(text_of(message)[-LONGEST:])):  # gpt-oss's channel
        return True
    text = answer_of(message)[-LONGEST:]
    if _MARKS.search(text):
        return True
    if any(call in tools for call in _named(text)):
        return True
    likely = any(re.search(rf"\b{re.escape(name)}\s*\(", text) for name in tools)
    return likely and any(name in tools for body in _bodies(text) for name in _python(body))


def _named(text: str) -> Iterator[str]:
    """Names in forms that a pattern tells, and in JSON."""
    for pattern in (_ACTION, _TAGGED, _PREFIXED):
        for found in pattern.finditer(text):
            yield found[1]
    yield from _json(text)


def _json(text: str) -> Iterator[str]:
    """Names of calls in the JSON values of a text that stand where a call would."""
    decoder, at = json.JSONDecoder(), 0
    while (found := _OPENS.search(text, at)) is not None:
        start = found.start()
        placed = _LEAD.match(text[text.rfind("\n", 0, start) + 1 : start]) is not None
        try:
            value, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            unclosed = _UNCLOSED.match(text, start)
            if unclosed is not None:
                yield unclosed["name"]
            at = start + 1
            continue
        if placed or _TAIL.match(text, at):
            for item in value if isinstance(value, list) else [value]:
                yield from _call(item)


def _call(value: Any) -> Iterator[str]:
    """The name that an object calls, if it is a call and nothing more."""
    if not isinstance(value, Mapping):
        return
    inner = value.get("function", value.get("tool_call"))
    if isinstance(inner, Mapping):
        yield from _call(inner)
        return
    if isinstance(value.get("tool_calls"), list) and len(value) <= 3:
        for item in value["tool_calls"]:
            yield from _call(item)
        return
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
    if name is not None and set(value) <= _KEYS and (set(value) & set(_ARGUMENTS) or len(value) == 1):
        yield name.removeprefix("functions.")


def _bodies(text: str) -> Iterator[str]:
    """Where a call in Python may stand: the whole text, a fence, the last line, or a line in brackets."""
    yield text
    yield from (found[1] for found in _FENCE.finditer(text))
    lines = [line for line in text.splitlines() if line.strip()]
    yield from lines[-1:]
    yield from (line for line in lines if line.strip().startswith("["))


def _python(text: str) -> Iterator[str]:
    """Names that Python calls at its top level: `f(x=1)`, `[f(x=1), g()]`, `print(default_api.f(x=1))`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
            parsed = ast.parse(text.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for statement in parsed.body:
        value = statement.value if isinstance(statement, (ast.Expr, ast.Assign)) else None
        items = value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
        for item in items:
            if isinstance(item, ast.Call) and isinstance(item.func, ast.Name) and item.func.id == "print" and item.args:
                item = item.args[0]
            if isinstance(item, ast.Call):
                yield item.func.attr if isinstance(item.func, ast.Attribute) else getattr(item.func, "id", "")
