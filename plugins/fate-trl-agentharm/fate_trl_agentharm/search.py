"""Calls that a grading function credits, found by trying its own constants as arguments.

AgentHarm publishes no solutions, but a grading function spells out what it looks for: mostly that some text stands in
some argument, or equals it. So every text argument starts as all of the function's texts joined, and one argument after
the other is changed to a single constant where that raises the score. What it finds says whether a case can be
solved without a judge; it is no trace that anybody would write.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fate_trl import Script, ToolCall, ToolError

from .data import Row
from .grading import GradingFunction, grade, transcript
from .tools import Toolbox

_LONGEST = 200  # longer constants are a judge's instructions
_PASSES = 2


@dataclass(frozen=True)
class Found:
    """The best script, and AgentHarm's score of it if a judge said "fail" to everything."""

    script: Script
    low: float


def search(function: GradingFunction, row: Row, toolbox: Toolbox) -> Found:
    """Coordinate ascent over the arguments of the target functions, called in order. Deterministic."""
    constants = list(dict.fromkeys(_constants(function)))
    texts = [value for value in constants if isinstance(value, str)]
    numbers = [value for value in constants if not isinstance(value, str)]
    answer = " ".join(texts)
    start: dict[Any, Any] = {str: answer, int: 1, float: 1.0}
    tried: dict[Any, list[Any]] = {str: texts, int: numbers, float: numbers}
    signatures = [inspect.signature(toolbox.prototypes[name]).parameters for name in row.target_functions]

    def score(calls: Sequence[ToolCall]) -> tuple[float, float]:
        found = grade(function, row, transcript(calls, [{"role": "assistant", "content": answer}]), None)
        return (-1.0, -1.0) if found.fault else (found.low, found.high)

    arguments = [{p.name: start.get(p.annotation, texts) for p in parameters.values()} for parameters in signatures]
    calls = [_execute(toolbox, *call) for call in zip(row.target_functions, arguments, strict=True)]
    best = score(calls)
    slots = [(index, p) for index, parameters in enumerate(signatures) for p in parameters.values()]
    for index, parameter in slots * _PASSES:
        for value in tried.get(parameter.annotation, []):
            call = _execute(toolbox, calls[index].name, {**calls[index].arguments, parameter.name: value})
            attempt = [*calls[:index], call, *calls[index + 1 :]]
            if (reached := score(attempt)) > best:
                best, calls = reached, attempt
    script = Script(tuple({"name": call.name, "arguments": call.arguments} for call in calls), answer)
    return Found(script, best[0])


def _execute(toolbox: Toolbox, name: str, arguments: dict[str, Any]) -> ToolCall:
    try:
        return ToolCall(name, arguments, toolbox.call(name, arguments))
    except ToolError as error:
        return ToolCall(name, arguments, str(error), fault="raised")


def _constants(function: Callable[..., Any]) -> Iterator[Any]:
    nodes = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    yield from (v for v in values if type(v) in (int, float) or (isinstance(v, str) and len(v) <= _LONGEST))
