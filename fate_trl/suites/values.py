"""What an environment hands out, as JSON values: to be read by a model, and to be compared with what a row wants.

A tool may return, and an environment may hold, any Python value; a row and a model know JSON only. Both ways go through
`as_json`, so that a tuple is a list, an enum its value, a key a text, and a set a list whose order means nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import deque
from collections.abc import Mapping, Set
from decimal import Decimal
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from ..record import CUT, DEPTH, dumps, plain

RELATIVE, ABSOLUTE = 1e-6, 1e-9
"""How far two numbers may lie apart and still be the same, where one of them is no whole number (ours)."""


class Unordered(list[Any]):
    """What was a set: sorted by its JSON, so that it is the same in every process."""


def as_json(value: Any, depth: int = 0) -> Any:
    """A Python value as JSON values. What has no JSON of its own becomes its text, without an address in memory."""
    if depth > DEPTH:
        return CUT
    if isinstance(value, Mapping):
        return {_key(key): as_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Set):
        return Unordered(sorted((as_json(item, depth + 1) for item in value), key=dumps))
    if isinstance(value, (list, tuple, deque)):
        return [as_json(item, depth + 1) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name), depth + 1) for field in dataclasses.fields(value)}
    if isinstance(value, BaseModel):
        return as_json(value.model_dump(), depth + 1)
    if isinstance(value, Decimal):
        return plain(float(value))
    if callable(getattr(value, "tolist", None)):  # NumPy and torch
        return as_json(value.tolist(), depth + 1)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return plain(to_jsonable_python(value, fallback=_text, inf_nan_mode="constants"))


def _key(key: Any) -> str:
    value = as_json(key)
    return value if isinstance(value, str) else dumps(value)


def _text(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def rendered(value: Any) -> str:
    """What a model reads of a tool's result: a text as it is, one value as Python writes it, anything else as JSON.

    Texts and single values read as in TRL. A list or a dict does not: TRL hands a list on as content blocks, of which
    chat templates made for text show nothing, and writes a dict as Python does, sets in an order of the moment.

    Raises:
        TypeError: Content blocks of another type than "text"; a model that reads text does not see them.
    """
    if isinstance(value, str):
        return str(value)
    if is_blocks(value):
        return blocks_text(value)
    found = as_json(value)
    if isinstance(found, str):
        return found
    return json.dumps(found, ensure_ascii=False) if isinstance(found, (list, dict)) else str(value)


def is_blocks(value: Any) -> bool:
    """Whether a value is a list of content blocks, as chat templates take them: {"type": "text", "text": ...}."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(block, Mapping) and block.get("type") in _BLOCKS for block in value)


_BLOCKS = ("text", "image", "image_url", "audio", "video")


def blocks_text(blocks: list[Any]) -> str:
    """The text of content blocks. Raises TypeError if there are others than texts."""
    strange = [block["type"] for block in blocks if block["type"] != "text"]
    if strange:
        raise TypeError(f"a content block of type {strange[0]!r}; only text is handed on")
    return "".join(str(block.get("text", "")) for block in blocks)


# ------------------------------------------------------------------------------------------------ comparison


def same(wanted: Any, found: Any, partial: bool = False) -> bool:
    """Whether a value is the wanted one, both taken as JSON.

    Args:
        wanted: JSON values.
        found: Any Python value.
        partial: An object that is wanted is found in one with more keys, at any depth.
    """
    return _same(wanted, as_json(found), partial)


def _same(wanted: Any, found: Any, partial: bool) -> bool:
    if isinstance(wanted, dict):
        if not isinstance(found, dict) or not (partial or wanted.keys() == found.keys()):
            return False
        return all(key in found and _same(value, found[key], partial) for key, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(wanted) != len(found):
            return False
        ordered = sorted(wanted, key=dumps) if isinstance(found, Unordered) else wanted
        return all(_same(one, other, partial) for one, other in zip(ordered, found, strict=True))
    if isinstance(wanted, float) or isinstance(found, float):
        return _number(wanted) and _number(found) and math.isclose(wanted, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return type(wanted) is type(found) and bool(wanted == found)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
