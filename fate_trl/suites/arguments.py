"""Arguments for a tool, drawn from its JSON schema: what a model may write that reads the schema and nothing else."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

TEXTS = ("a", "tea", "17", "hello world", "2031-05-17", "/", "ä", "")
WHOLE = (1, 0, 2, 7, -1, 100)
NUMBERS = (1.0, 0.5, 0.0, -2.5, 20.0)


def draw_arguments(parameters: Mapping[str, Any], known: Sequence[str], rng: random.Random) -> dict[str, Any]:
    """Arguments that the schema allows; those that need not be given are left out half of the time.

    Args:
        parameters: The schema of an object.
        known: Texts that mean something to the environment, such as names in its state; drawn half of the time.
        rng: Decides everything.
    """
    required = parameters.get("required", ())
    properties = parameters.get("properties", {})
    given = [name for name in properties if name in required or rng.random() < 0.5]
    return {name: draw(properties[name], known, rng) for name in given}


def draw(schema: Mapping[str, Any], known: Sequence[str], rng: random.Random) -> Any:
    """A value that the schema allows."""
    if schema.get("nullable") and rng.random() < 0.25:
        return None
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "anyOf" in schema:
        return draw(rng.choice(schema["anyOf"]), known, rng)
    kind = schema.get("type", ["string", "integer", "boolean"])
    kind = rng.choice(kind) if isinstance(kind, list) else kind
    match kind:
        case "integer":
            return rng.choice(WHOLE)
        case "number":
            return rng.choice(NUMBERS)
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case "array":
            return _array(schema, known, rng)
        case "object":
            values = schema.get("additionalProperties", {"type": "string"})
            return {_text(known, rng): draw(values, known, rng) for _ in range(rng.randrange(3))}
    return _text(known, rng)


def _array(schema: Mapping[str, Any], known: Sequence[str], rng: random.Random) -> list[Any]:
    if "prefixItems" in schema:
        return [draw(item, known, rng) for item in schema["prefixItems"]]
    return [draw(schema.get("items", {"type": "string"}), known, rng) for _ in range(rng.randrange(3))]


def _text(known: Sequence[str], rng: random.Random) -> str:
    return rng.choice(known if known and rng.random() < 0.5 else TEXTS)


def texts_in(value: Any, limit: int = 20) -> list[str]:
    """The texts in a JSON value, keys included, in the order in which they stand; short ones only."""
    found: dict[str, None] = {}

    def look(value: Any) -> None:
        if isinstance(value, str) and 0 < len(value) <= 60:
            found[value] = None
        for item in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
            look(item)

    look(value)
    return list(found)[:limit]
