"""The tools that a user gives a trainer, as TRL's loop gets them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from transformers.utils import get_json_schema


class Schemas:
    """JSON schemas of tools, each made once: of a function TRL would make it for every prompt and every reply.

    That took a tenth of a round.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, dict[str, Any]]] = {}

    def __call__(self, tools: Sequence[Any]) -> list[Any]:
        """The tools, each function replaced by its schema."""
        for tool in tools:
            if id(tool) not in self._made and (inspect.isfunction(tool) or inspect.ismethod(tool)):
                self._made[id(tool)] = (tool, get_json_schema(tool))  # held, so that its id stays its own
        return [self._made[id(tool)][1] if id(tool) in self._made else tool for tool in tools]
