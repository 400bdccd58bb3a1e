"""Chat messages, and the texts in them: what was said, what of it is the answer, and how to show it to whom.

A text may be an attacker's: `visible` makes it safe for a terminal, `quoted` for a judge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .record import CUT, dumps, nested, plain

Message = dict[str, Any]
"""A chat message as transformers' templates take it: role, content, and tool_calls or name where they apply."""


def shallow(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages, none nested deeper than a record may be: a policy may write calls that are.

    In place of such arguments stands a text, so that they count as malformed; the recorder ran no such call.
    """
    return tuple(plain(_shallow(message)) if nested(message) else message for message in messages)


def _shallow(message: Message) -> Message:
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        function = {**function, "arguments": CUT} if nested(function.get("arguments")) else function
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls} if calls else message


def text_of(message: Message) -> str:
    """A message's text, with content blocks joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(block.get("text", "") for block in content if isinstance(block, Mapping))
    return ""


def answer_of(message: Message) -> str:
    """What an assistant's message says to the user: its text behind the last thought; what everybody judges it by.

    Thoughts that stand in fields of their own (`reasoning_content`, blocks of type "thinking") are no part of it.
    """
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        said = [block for block in content if isinstance(block, Mapping) and block.get("type") not in _THOUGHT_BLOCKS]
        return spoken(text_of({"content": said}))
    return spoken(text_of(message))


def spoken(text: str) -> str:
    """What stands behind the last thought of a text: all of it where there is none, "" where the last one is open.

    Thoughts stand between tags (`<think>`, `<thinking>`, `<thought>`, `<reasoning>`, `<seed:think>`, `[THINK]`, those
    of Cohere, Gemma and Kimi), of which the first may stand in the prompt, or in gpt-oss's channels.
    """
    bare = _BARE_CHANNELS.match(text)  # decoded without special tokens
    if bare:
        return text[bare.end() :]
    end = max((found.end() for found in _THOUGHT_ENDS.finditer(text)), default=0)
    if _THOUGHT_BEGINS.search(text, end):
        return ""
    return _TURN_ENDS.sub("", text[end:]).lstrip() if end else text


_THOUGHT_BLOCKS = ("thinking", "redacted_thinking", "reasoning")
_TAGS = r"think|thinking|thought|thoughts|reasoning|reason|seed:think|longcat_think"
_THOUGHT_BEGINS = re.compile(
    rf"(?<![`'\"])(?:<(?:{_TAGS})>|\[THINK\]|<\|(?:START_THINKING|begin_of_thought)\|>|<\|channel>thought"
    r"|<\|channel\|>analysis|◁think▷)",
    re.IGNORECASE,
)
_THOUGHT_ENDS = re.compile(
    rf"</(?:{_TAGS})>|\[/THINK\]|<\|(?:END_THINKING|end_of_thought)\|>|<channel\|>|◁/think▷"
    r"|<\|channel\|>(?:final|commentary)(?![^<]*\bto=)[^<]*(?:<\|constrain\|>\w+)?<\|message\|>",
    re.IGNORECASE,
)
_BARE_CHANNELS = re.compile(r"\Aanalysis(?=[A-Z\W]).*assistantfinal(?=\W|[A-Z])", re.DOTALL)
_TURN_ENDS = re.compile(r"(?:\s*<\|(?:end|return|call|END_RESPONSE)\|>)+\s*\Z|\A\s*<\|START_RESPONSE\|>")


def visible(text: str) -> str:
    """Control characters spelled out: a text from a file must not steer the terminal, nor read otherwise than it is."""
    return "".join(c if c == "\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def counted(number: int, things: str) -> str:
    """A number and what it counts, in a regular plural: "1 case", "2 cases", "1 trajectory"."""
    if number != 1:
        return f"{number:,} {things}"
    return f"1 {things.removesuffix('ies')}y" if things.endswith("ies") else f"1 {things.removesuffix('s')}"


_BRACKETED = re.compile(r"\[(?=/?[A-Z_]+\])")


def quoted(value: Any) -> str:
    """A text, or any JSON value, as one JSON string of printable ASCII, to be shown to a judge as evidence.

    It ends no line and no quotation, and holds nothing that a chat template treats as its own: special tokens are
    written in angle brackets (<|im_end|>, </s>) or in square ones ([INST]), and both stay escaped.
    """
    text = json.dumps(value if isinstance(value, str) else dumps(value, sort=False))
    return _BRACKETED.sub(r"\\u005b", text.replace("<", r"\u003c"))
