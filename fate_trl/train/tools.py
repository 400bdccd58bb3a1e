"""The tools that a user gives a trainer, as TRL's loop gets them."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from transformers.utils import get_json_schema

from ..suites.episodes import EpisodeEnvironment

Tool = Callable[..., Any]

BLOCKS = {"text", "image", "image_url", "video", "audio"}
"""Types of content blocks, as chat templates know them."""


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


# ------------------------------------------------------------------------------------------------ results


def readable(own: Mapping[str, Tool], later: Mapping[str, Tool], images: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row's tools for TRL's loop: those that it calls at once, and those that it awaits.

    TRL hands a list on as content blocks, which most templates render as nothing, and puts the results of async tools
    behind all others, without an id. Here a list that is none of blocks becomes text, as any other result does in TRL;
    and where one tool of a row is async, all are awaited, so results keep the order of the calls.

    Args:
        own: Tools by name.
        later: Async tools by name.
        images: The model reads content blocks.
    """
    if all(isinstance(getattr(tool, "__self__", None), EpisodeEnvironment) for tool in own.values()) and not later:
        return dict(own), {}  # they return text
    if not later:
        return {name: _texts(tool, images) for name, tool in own.items()}, {}
    return {}, _Awaited({**own, **later}, images)


def as_text(result: Any, images: bool) -> Any:
    """A tool's result as a template renders it: a list as text, unless it is one of content blocks."""
    if not isinstance(result, list):
        return result
    blocks = bool(result) and all(isinstance(part, Mapping) and part.get("type") in BLOCKS for part in result)
    if blocks and all(part["type"] == "text" for part in result) and not images:
        return "\n".join(str(part.get("text", "")) for part in result)
    return result if blocks else str(result)


def _texts(tool: Tool, images: bool) -> Tool:
    @wraps(tool)
    def called(*args: Any, **kwargs: Any) -> Any:
        return as_text(tool(*args, **kwargs), images)

    return called


class _Awaited(dict[str, Tool]):
    """Tools that are all awaited. Those that are not async run when they are called, as in TRL, and their results wait;
    so do the errors of wrong arguments and unknown names."""

    def __init__(self, tools: Mapping[str, Tool], images: bool):
        super().__init__({name: self._awaited(tool, images) for name, tool in tools.items()})

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Tool:
        def unknown(**_: Any) -> Any:
            raise ValueError(f"Tool {name} not found.")

        return self._awaited(unknown, False)

    @staticmethod
    def _awaited(tool: Tool, images: bool) -> Tool:
        def called(**kwargs: Any) -> Awaitable[Any]:
            error, result = None, None
            try:
                result = tool(**kwargs)
            except Exception as raised:
                error = raised

            async def delivered() -> Any:
                if error is not None:
                    raise error
                return as_text(await result if inspect.isawaitable(result) else result, images)

            return delivered()

        return called
