"""Whether an injected text entered what a policy read."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")
_NO_LETTER = re.compile(r"[^A-Za-z0-9]+")


def entered(payloads: Iterable[str], results: Iterable[str]) -> bool:
    """Whether one of the injected texts stands in one of the tool results.

    Only letters and digits are compared. YAML folds line breaks when an environment is read, and wraps lines, doubles
    quotes and writes escapes when a result is shown, so that the text itself is never found by looking for it.
    """
    needles = [letters for letters in map(_letters, payloads) if letters]
    return any(needle in _letters(result) for result in results for needle in needles)


def _letters(text: str) -> str:
    return _NO_LETTER.sub("", _ESCAPE.sub("", text))
