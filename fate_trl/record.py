"""What makes a frozen dataclass a record: it goes to JSON and back, nested records and tuples included.

The hashes that name contents and make seeds stand here too, since they are made of the same canonical JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import types as _types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, Self

from .errors import FateError


class Record:
    """Mixin: JSON round trip for frozen dataclasses, nested records and tuples included."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of JSON values; fields at their default are left out, so records stay short."""
        defaults = _defaults(type(self))  # type: ignore[arg-type]
        given = ((name, getattr(self, name), default) for name, default in defaults)
        return {name: plain(value) for name, value, default in given if value != default}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises FateError that names the key that is missing or unknown, or the wrong value."""
        if not isinstance(data, Mapping):
            raise FateError(f"{cls.__name__}: it is an object in JSON, not {type(data).__name__}")
        hints = _hints(cls)  # type: ignore[arg-type]
        unknown = sorted(set(data) - set(hints))
        if unknown:
            raise FateError(f"{cls.__name__}: unknown key {unknown[0]!r}; known keys are {sorted(hints)}")
        try:
            return cls(**{key: _typed(hints[key], value) for key, value in data.items()})
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise FateError(f"{cls.__name__}: {error}") from None


@cache
def _defaults(cls: type) -> list[tuple[str, Any]]:
    """The fields of a record, each with its default, to compare with."""
    return [
        (f.name, f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default)
        for f in dataclasses.fields(cls)
    ]


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(hint), typing.get_args(hint)


DEPTH = 100
"""Levels to which a record is nested at most (ours); a policy may write arguments that would overflow every reader."""

CUT = "[nested too deeply]"
"""What stands in a record for what is nested deeper."""


_LEAVES = frozenset({str, int, bool, type(None)})
"""Most values are of these types, and stand for themselves; records are walked for every chunk and every copy."""


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON values: records as objects, tuples as lists, non-finite floats as texts, deep nesting cut."""
    if type(value) in _LEAVES:
        return value
    if isinstance(value, Record):
        return value.to_dict()
    if depth > DEPTH and isinstance(value, (Mapping, tuple, list)):
        return CUT
    if isinstance(value, Mapping):
        return {key: item if type(item) in _LEAVES else plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [item if type(item) in _LEAVES else plain(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # a policy may write NaN as an argument; its record is kept all the same
    return value


def _typed(hint: Any, value: Any) -> Any:
    """`value` from JSON as the annotation `hint` wants it: records and tuples are rebuilt, the rest is checked."""
    if hint is Any:
        return value
    origin, arguments = _parts(hint)
    if origin in (typing.Union, _types.UnionType):
        return _either([a for a in arguments if a is not type(None)], value) if value is not None else None
    if origin is tuple:
        if arguments[0] is int and all(type(item) is int for item in value):
            return tuple(value)
        return tuple(_typed(arguments[0], item) for item in _expect(value, (list, tuple)))
    if origin is dict:
        return {key: _typed(arguments[1], item) for key, item in _expect(value, Mapping).items()}
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if issubclass(hint, Record):
        return hint.from_dict(value)
    if hint is float:
        return float(_expect(value, (int, float, str)))  # "nan": see _plain
    return _expect(value, hint)


def _either(hints: Sequence[Any], value: Any) -> Any:
    *others, last = hints
    for hint in others:
        with contextlib.suppress(TypeError, ValueError):
            return _typed(hint, value)
    return _typed(last, value)


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = getattr(kind, "__name__", " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind)
        raise TypeError(f"{value!r} is no {wanted}")
    return value


def nested(value: Any, levels: int = DEPTH) -> bool:
    """Whether JSON values are nested deeper than this many levels."""
    if type(value) in _LEAVES or not isinstance(value, (Mapping, list, tuple)):
        return False
    items = value.values() if isinstance(value, Mapping) else value
    return levels <= 0 or any(nested(item, levels - 1) for item in items)


def copied(value: Any) -> Any:
    """A copy of a record, or of JSON values, that shares nothing that can be changed; five times faster than deepcopy.

    Anything else inside (a picture in a row of a plain TRL data set) is shared.
    """
    if type(value) in _LEAVES:
        return value
    if isinstance(value, dict):
        return {key: item if type(item) in _LEAVES else copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [item if type(item) in _LEAVES else copied(item) for item in value]
    if isinstance(value, tuple):  # token ids and names are of one type, and cannot be changed
        return value if value and type(value[0]) in _LEAVES else tuple(map(copied, value))
    if isinstance(value, Record):
        twin = object.__new__(type(value))  # as it is: what a record checks when it is made was checked
        vars(twin).update({name: item if type(item) in _LEAVES else copied(item) for name, item in vars(value).items()})
        return twin
    return value


def dumps(value: Any, sort: bool = True) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII only (lone surrogates and control characters stay escaped).

    NaN and infinity, which JSON does not know, become the texts "nan", "inf" and "-inf". Without `sort` keys keep
    their order: a record that is read back must word and render the same prompts as the one that was written.
    """
    return json.dumps(plain(value), sort_keys=sort, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def stable_hash(*parts: Any) -> int:
    """63-bit hash of JSON values, the same on every machine and in every process; every seed comes from here."""
    digest = hashlib.blake2b(dumps(list(parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def content_hash(value: Any) -> str:
    """128 bits of a record's or JSON value's content, in hexadecimal: a name that nobody makes twice by chance."""
    return hashlib.blake2b(dumps(value).encode(), digest_size=16).hexdigest()
