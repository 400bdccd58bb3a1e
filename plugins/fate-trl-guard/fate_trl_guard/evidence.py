"""What a guard is shown of a trajectory: pieces by role, each on one line that its text cannot leave.

The texts are written by attackers, some of whom write to the guard. So each stands on a line as a JSON string, or a
call as a JSON object, after words of ours. Letters of other scripts stay as they are; characters that end lines or
change their direction are spelled out, and so are `<` and brackets like those of [INST] and [USER], which begin the
markers of chat templates and of prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fate_trl import Trajectory, answer_of, dumps, step_of, text_of, visible

Role = Literal["tools", "system", "user", "agent", "call", "result", "answer"]

REQUEST: tuple[Role, ...] = ("tools", "system", "user")
"""What was there before the agent; the rest is what came after."""

_MARKER = re.compile(r"<|\[(?=/?[A-Z_]+\])")


@dataclass(frozen=True)
class Piece:
    """Something that was asked, said, called or returned.

    Attributes:
        role: Who speaks; `answer` is the last words of the agent, alone and unquoted, for classifiers that read a text.
        value: A text, or JSON values.
    """

    role: Role
    value: Any

    def line(self, head: str = "") -> str:
        """The piece behind words of ours: its text cannot begin a line, nor hold a marker."""
        return head + (self.value if self.role == "answer" else one_line(self.value))

    def halves(self) -> tuple[Piece, Piece]:
        """The piece in two, of which each is a text; between words where there are any."""
        text = self.value if isinstance(self.value, str) else dumps(self.value, sort=False)
        middle = text.find(" ", len(text) // 2, -1)
        middle = middle if 0 < middle < 3 * len(text) // 4 else len(text) // 2
        return Piece(self.role, text[:middle]), Piece(self.role, text[middle:])


def one_line(value: Any) -> str:
    """A text or JSON value as one line of JSON that holds no marker."""
    plain = value if isinstance(value, str) else json.loads(dumps(value, sort=False))
    line = visible(json.dumps(plain, ensure_ascii=False))
    return _MARKER.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def pieces(trajectory: Trajectory) -> Iterator[Piece]:
    """All there is, in order. Calls that ran and that no message shows, such as replayed ones, stand first."""
    yield Piece("tools", list(trajectory.task.tools))
    for message in trajectory.task.messages:
        yield Piece("system" if message.get("role") == "system" else "user", text_of(message))
    for call in trajectory.calls:
        if step_of(trajectory, call) is None:
            yield Piece("call", {"name": call.name, "arguments": call.arguments})
            yield Piece("result", call.result)
    for message in trajectory.messages:
        if message.get("role") != "assistant":
            yield Piece("result", text_of(message))
            continue
        if answer_of(message):
            yield Piece("agent", answer_of(message))
        for made in message.get("tool_calls") or ():
            function = made.get("function", made)
            yield Piece("call", {"name": function.get("name"), "arguments": function.get("arguments") or {}})
    yield Piece("answer", trajectory.answer)
