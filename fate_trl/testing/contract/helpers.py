"""What the checks of the contract suite share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ... import plugins
from ...record import dumps
from ...verify.loading import load as load_verifier
from ..pytest_plugin import NOT_CHECKED


def assert_same(found: Sequence[Any], expected: Sequence[Any], meaning: str) -> None:
    """Fail with the first pair that differs.

    A plain assert of two long lists would have pytest, where the variable CI is set, work minutes on their difference.
    """
    assert len(found) == len(expected), f"{meaning}: {len(found)} in place of {len(expected)}"
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one != other:
            pytest.fail(f"{meaning}: number {i} is {_short(one)} in place of {_short(other)}")


def _short(thing: Any) -> str:
    text = thing if isinstance(thing, str) else repr(thing)
    return text if len(text) <= 300 else f"{text[:300]}…"


def arguments_of(config: pytest.Config, name: str) -> dict[str, Any]:
    try:
        given = json.loads(config.getoption("--fate-args"))
        return dict(given.get(name, {}))
    except (ValueError, TypeError, AttributeError):
        raise pytest.UsageError('--fate-args takes JSON: {"component": {"argument": 1}}') from None


def make(config: pytest.Config, type: plugins.Type, name: str) -> Any:
    """A component, with the arguments of `--fate-args`."""
    plugin, arguments = config.getoption("--fate-plugin"), arguments_of(config, name)
    lacking = sorted(plugins.required(plugins.components(plugin, type)[name].factory) - set(arguments))
    if lacking:
        given = json.dumps({name: dict.fromkeys(lacking, "…")}, ensure_ascii=False)
        config.stash[NOT_CHECKED].add(f"{type} {name} was not checked: it needs --fate-args '{given}'")
        pytest.skip(f"{type} {name} needs {', '.join(lacking)}: give them with --fate-args")
    if type == "verifier":
        return load_verifier(f"{plugin}/{name}", arguments)
    return plugins.load(type, f"{plugin}/{name}", arguments)


def as_json(records: Sequence[Any]) -> list[str]:
    return [dumps(record.to_dict()) for record in records]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)
