"""Where rewards come from: what a user gives as `reward_funcs`, taken apart into TRL's functions and verifiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .. import plugins
from ..errors import RecipeError
from ..verify.loading import load as load_verifier
from ..verify.scoring import check_objectives, is_verifier


class Objective:
    """One objective of a verifier in the shape of a TRL reward function: it reads what was scored for the batch."""

    def __init__(self, name: str):
        self.__name__ = name
        self.values: list[float | None] = []
        self.spreads: list[float | None] = []

    def __call__(self, **_: Any) -> list[float | None]:
        return self.values


def _names_verifier(name: str) -> bool:
    """Whether a string among the reward functions names a verifier; any other is TRL's id of a reward model."""
    plugin, component = plugins.split_name(name)
    if plugin == plugins.BUILTINS:
        return component in plugins.components(plugin, "verifier")
    return plugin.endswith(".py") or plugin in plugins.installed()


def sources_of(reward_funcs: Any, classes: Any) -> tuple[list[Any], list[Any], list[Objective], list[Any]]:
    """What the user gave as `reward_funcs`, taken apart; the user's lists are left as they are.

    Returns:
        TRL's reward functions and their processing classes (one per column), the columns among them that are a
        verifier's objectives, and the verifiers.
    """
    given = reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    given = [item for item in given if item is not None]
    if classes is None:
        classes = [None] * len(given)
    classes = list(classes) if isinstance(classes, (list, tuple)) else [classes]
    if len(classes) != len(given):
        raise RecipeError(f"{len(classes)} reward_processing_classes for {len(given)} reward_funcs; give one for each.")
    functions, kept_classes, verifiers, columns = [], [], [], []
    for source, processing_class in zip(given, classes, strict=True):
        if isinstance(source, str) and _names_verifier(source):
            source = load_verifier(source)
        if not is_verifier(source):
            functions.append(source)
            kept_classes.append(processing_class)
            continue
        verifiers.append(source)
        new = [Objective(name) for name in source.objectives]
        columns += new
        functions += new
        kept_classes += [None] * len(new)
    check_objectives(verifiers, ())
    return functions, kept_classes, columns, verifiers


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number on repeated ones (two lambdas), since selectors tell objectives apart by name."""
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(out)
