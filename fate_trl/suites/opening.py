"""A recipe's suites: opened, with their tasks under the names that the recipe gives them, and their tools in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from .. import plugins
from ..hookspecs import Suite
from ..types import Task


class Named(Protocol):
    """A component as a recipe names it."""

    name: str
    args: dict[str, Any]


def open_suites(references: Iterable[Named]) -> dict[str, Suite]:
    """Suites by the name that a recipe gives them."""
    return {reference.name: plugins.load("suite", reference.name, reference.args) for reference in references}


def tasks_of(suites: Mapping[str, Suite], split: str, seed: int) -> list[Task]:
    """All tasks of a split, of all suites, each under the name of its suite."""
    return [
        dataclasses.replace(task, suite=name) for name, suite in suites.items() for task in suite.tasks(split, seed)
    ]


def tools_of(suite: Suite, names: Iterable[str]) -> list[Callable[..., Any]]:
    """Prototypes of a suite's tools, in the order in which TRL lists an environment's methods: by name."""
    prototypes = suite.tools()
    return [prototypes[name] for name in sorted(names)]
