"""Makes verifiers by their names in a recipe; a verifier that asks for a process of its own gets it here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import plugins
from ..process.bounded import Isolated
from .scoring import Wrapper

CHILD = "fate_trl.verify.isolated_main"
"""The program of a verifier's own process."""


def load(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Make a verifier: its arguments bound and checked, its factory called; isolated if it asks for that."""
    made = plugins.load("verifier", name, arguments)
    return Isolated(made, name, arguments or {}, CHILD) if getattr(made, "isolated", False) else made


def load_named(reference: str | Mapping[str, Any]) -> tuple[Any, str]:
    """Make a verifier from what a recipe says, a name, or {name: …, args: {…}}; and its `plugins.identity`."""
    name, arguments = plugins.named("verifier", reference)
    return load(name, arguments), plugins.identity(name, arguments or {})


def tell_run(verifiers: Sequence[Any], run: Any) -> None:
    """Tell verifiers, and the members of wrappers, for which run they score; see hookspecs.Verifier."""
    for verifier in verifiers:
        if isinstance(verifier, Wrapper):
            tell_run(verifier.members, run)
        elif hasattr(verifier, "in_run"):
            verifier.in_run(run)
