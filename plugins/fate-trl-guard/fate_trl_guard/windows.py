"""From evidence to token ids: markers that become plain text, and windows that leave nothing out.

A text of a trajectory never becomes a special token: wherever it spells one, or any other token that a tokenizer looks
for before it looks at words, it is cut after the first character and the halves are tokenised apart.

A trajectory that is longer than the guard can read is read in windows, which all show the request. They end with a line
where they can, and each begins with the line that the one before ended with; a line that is too long for half a window
is told as several. What does not fit that way is an error, so nothing goes unread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any

from fate_trl import FateError

from .evidence import REQUEST, Piece, Role
from .formats import Format
from .verdict import NoVerdict

_REQUEST, _RECORD = "FATEREQUEST", "FATERECORD"
"""Words that stand for what is judged while a prompt is rendered; no template takes them for anything else."""


class Prompt:
    """A prompt in three parts, around the request and the record of what came after it.

    Args:
        tokenizer: The guard's.
        parts: Before, between and after; they are ours or the checkpoint's, so special tokens in them are that.
        heads: By role what stands before a piece; roles that are missing are not shown.
        room: Tokens that one window may have.
        most: Windows that one trajectory may have.
    """

    def __init__(
        self, tokenizer: Any, parts: tuple[str, str, str], heads: Mapping[Role, str], room: int, most: int
    ) -> None:
        self._tokenizer, self._parts, self._heads, self._room, self._most = tokenizer, parts, heads, room, most
        known = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
        markers = "|".join(re.escape(word) for word in known if len(word) > 1 and not word.isspace())
        self._markers = re.compile(f"(?={markers})" if markers else "(?!)")
        self._special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}

    def windows(self, pieces: Iterable[Piece]) -> list[list[int]]:
        """The token ids of each window.

        Raises:
            NoVerdict: It takes more windows than it may, or a text becomes a special token.
        """
        shown = [piece for piece in pieces if piece.role in self._heads]
        request = "\n".join(self._line(piece) for piece in shown if piece.role in REQUEST)
        after = [piece for piece in shown if piece.role not in REQUEST]
        left = self._room - sum(len(self._marked(part)) for part in self._parts) - self._count(request)
        if left < self._room // 4:
            raise NoVerdict(f"the request leaves {max(left, 0)} of {self._room} tokens for what came after it")
        if sum(self._count(self._line(piece)) for piece in after) > left * self._most:
            raise NoVerdict(f"it takes more than {self._most} windows of {self._room} tokens")
        cut = self._cut([line for piece in after for line in self._lines(piece, left // 2)], left)
        if len(cut) > self._most:
            raise NoVerdict(f"it takes {len(cut)} windows of {self._room} tokens, and may take {self._most}")
        return [self._assembled(request, "\n".join(lines)) for lines in cut]

    def _line(self, piece: Piece) -> str:
        return piece.line(self._heads[piece.role])

    def _lines(self, piece: Piece, most: int) -> list[str]:
        """A piece as one line, or as several of at most so many tokens."""
        line = self._line(piece)
        if self._count(line) <= most or len(str(piece.value)) < 2:
            return [line]
        return [line for half in piece.halves() for line in self._lines(half, most)]

    def _count(self, line: str) -> int:
        return len(self.plain(f"{line}\n"))

    def _cut(self, lines: list[str], left: int) -> list[list[str]]:
        """Lines by window; of two neighbours some window has both, since a line takes half the room at most."""
        counts = [self._count(line) for line in lines]
        cut: list[list[str]] = []
        start = 0
        while True:
            end, used = start, 0
            while end < len(lines) and used + counts[end] <= left:
                used += counts[end]
                end += 1
            cut.append(lines[start:end])
            if end == len(lines):
                return cut
            start = max(end - 1, start + 1)

    def _assembled(self, request: str, record: str) -> list[int]:
        before, between, after = self._parts
        ids = self._marked(before.rstrip(" ")) + self.plain(_blanks(before) + request)
        ids += self._marked(between.rstrip(" ")) + self.plain(_blanks(between) + record) + self._marked(after)
        if len(ids) > self._room:
            raise NoVerdict(f"a window takes {len(ids)} tokens, and may take {self._room}")
        return ids

    def _marked(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def plain(self, text: str) -> list[int]:
        """The ids of a text in which no marker counts. Raises NoVerdict if a special token comes of it even so."""
        cuts = [0, *(found.start() + 1 for found in self._markers.finditer(text)), len(text)]
        ids = [id for start, end in pairwise(cuts) for id in self._marked(text[start:end])]
        if not self._special.isdisjoint(ids):
            raise NoVerdict("its text becomes a special token")
        return ids


def _blanks(part: str) -> str:
    """The blanks that a part ends with: tokenizers join them to the word that follows."""
    return part[len(part.rstrip(" ")) :]


def of_chat(tokenizer: Any, format: Format, variables: Mapping[str, Any]) -> tuple[str, str, str]:
    """The parts of a generative guard's prompt: its chat template, rendered around the two words.

    Some templates take contents as texts, some as lists of blocks.

    Raises:
        FateError: The template shows the chat in neither way.
    """
    texts = format.messages(_REQUEST, _RECORD)
    blocks = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in texts]
    for messages in (texts, blocks):
        with suppress(Exception):  # whatever a template raises over the wrong one of the two
            rendered = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **{**format.variables, **variables}
            )
            before, rest = rendered.split(_REQUEST)
            between, after = rest.split(_RECORD)
            return before, between, after
    raise FateError("its chat template does not show what the format gives it: is this a model of that format?")


def of_text(tokenizer: Any, request: bool) -> tuple[str, str, str]:
    """The parts of a classifier's input: the special tokens that stand around a text."""
    bare, full = (tokenizer.encode(_RECORD, add_special_tokens=special) for special in (False, True))
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    around = full[:start], full[start + len(bare) :]
    before, after = ("".join(tokenizer.convert_ids_to_tokens(ids)) for ids in around)
    return before, "\n" if request else "", after
