"""The state of components that learn: collected, written beside a policy, and given back to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LedgerError, PluginError
from ..hookspecs import Stateful
from ..record import dumps

FILE = "components.json"


def states_of(components: Mapping[str, Any]) -> dict[str, Any]:
    """State by name, of the components that have one.

    Raises:
        PluginError: A component's state holds more than JSON values.
    """
    out = {}
    for name, component in components.items():
        if isinstance(component, Stateful):
            try:
                out[name] = json.loads(dumps(component.state_dict()))
            except (TypeError, ValueError) as error:
                raise PluginError(f"{_who(name, component)}: state_dict() must return JSON values: {error}.") from None
    return out


def restore(components: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Give components back the states that `states_of` returned; those that have none there stay as they are.

    Raises:
        PluginError: A component cannot go on from its state.
    """
    for name, component in components.items():
        if name in states and isinstance(component, Stateful):
            try:
                component.load_state_dict(states[name])
            except Exception as error:
                raise PluginError(
                    f"{_who(name, component)} cannot go on from its saved state ({type(error).__name__}: {error}). "
                    "Its arguments, or its plugin's version, are not those that it was saved with."
                ) from error


def write_states(folder: str | Path, components: Mapping[str, Any], name: str = FILE) -> None:
    """Write the states into a policy's folder; nothing where no component has one."""
    states = states_of(components)
    if states:
        (Path(folder) / name).write_text(dumps(states), encoding="utf-8")


def read_states(folder: str | Path, name: str = FILE) -> dict[str, Any]:
    """The states in a policy's folder; none where nothing was written. Raises LedgerError if they cannot be read."""
    file = Path(folder) / name
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise LedgerError(f"the components' state in {file} cannot be read: {error}.") from error


def metrics_of(component: Any) -> dict[str, float]:
    """A component's own numbers, by name; none where it has no `metrics`. Raises PluginError where they are none."""
    if not hasattr(component, "metrics"):
        return {}
    said = component.metrics()
    try:
        return {str(name): float(value) for name, value in said.items()}
    except (AttributeError, TypeError, ValueError):
        who = type(component).__name__
        raise PluginError(f"{who}: metrics must return numbers by name, not {str(said)[:80]}.") from None


def _who(name: str, component: Any) -> str:
    return f"{name} {type(component).__name__}"
