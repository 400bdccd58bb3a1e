"""What a check of a recipe looks at, and what it says: a subject and findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..loop.tasks import sample_tasks
from ..recipe.schema import Recipe, generation
from ..suites.opening import tools_of
from ..types import Task

Verdict = Literal["ok", "warning", "error"]

SAMPLE = 48
"""Tasks whose lengths are looked at (ours)."""


@dataclass(frozen=True)
class Finding:
    """One check: its name, its verdict, the reason, and what to do where it is not ok."""

    check: str
    verdict: Verdict
    reason: str
    advice: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is looked at: a recipe with its suites, tasks, tokenizer and the model's configuration."""

    recipe: Recipe
    suites: Mapping[str, Any]
    tasks: Mapping[str, Sequence[Task]]
    tokenizer: Any
    config: Any

    @property
    def template_kwargs(self) -> dict[str, Any]:
        return dict(generation(self.recipe).get("chat_template_kwargs") or {})

    def tools(self, task: Task) -> list[Any]:
        """Prototypes in the order in which TRL lists an environment's methods."""
        return tools_of(self.suites[task.suite], task.tools)

    def sample(self, split: str) -> list[Task]:
        return sample_tasks(self.tasks[split], SAMPLE, np.random.default_rng(self.recipe.seed))
