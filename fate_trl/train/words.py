"""What a policy says around its calls: the text of a message without its calls and thoughts, from its tokens.

TRL reads a message by the tokenizer's response template and keeps the last stretch of text of it. Refusals, rules and
judges read the text, so they must see all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import regex as re  # as transformers reads its response templates: theirs may hold what the standard one lacks


def words_of(tokenizer: Any) -> Callable[[Sequence[int]], str] | None:
    """From token ids to that text; None where the tokenizer has no response template that says what a call is."""
    template = getattr(tokenizer, "response_template", None)
    fields = template.get("fields", {}) if isinstance(template, Mapping) else {}
    if "content" not in fields or "tool_calls" not in fields:
        return None
    spans = [span for name, field in fields.items() if name != "content" for span in _spans(field)]
    if not spans:
        return None
    special = re.compile("|".join(re.escape(token) for token in tokenizer.all_special_tokens) or r"(?!)")

    def words(ids: Sequence[int]) -> str:
        text = tokenizer.decode(list(ids), skip_special_tokens=False)
        for span in spans:
            text = span.sub("", text)
        return str(special.sub("", text)).strip()

    return words


def _spans(field: Mapping[str, Any]) -> list[Any]:
    """What a field takes: from its opening to its close, or to the end; and, of a thought that the prompt opened, all
    that stands before its close. Here a close takes all that it matches, also what `\\K` would leave before it."""
    opening = field.get("open_pattern") or (re.escape(field["open"]) if field.get("open") else None)
    closing = field.get("close_pattern") or (re.escape(field["close"]) if field.get("close") else None)
    if opening is None or closing is None:
        return []
    closing = closing.replace(r"\K", "")
    found = [re.compile(rf"{opening}.*?(?:{closing}|\Z)", re.DOTALL)]
    if field.get("content") == "text":
        found.append(re.compile(rf"\A.*?{closing}", re.DOTALL))
    return found
