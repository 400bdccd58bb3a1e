"""AgentHarm's tools: one module each, with canned answers and no state. Executed as they are, but for two repairs.

Files that three of them read are looked for in the package, not in the working directory, where they are not; and the
one that makes up a random link makes the same link for the same call, so that replaying calls gives the same results.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from inspect_ai.tool import Tool, ToolDef
from inspect_evals.agentharm.benchmark import benign_tools, harmful_tools
from jsonschema import Draft7Validator

from fate_trl import ToolError, make_tool, stable_hash

from .data import Side
from .grading import finish

_LOCK = Lock()


class Toolbox:
    """All tools of one side.

    Attributes:
        prototypes: By name, as a suite offers them.
    """

    def __init__(self, side: Side):
        package = harmful_tools if side == "harmful" else benign_tools
        _find_files(package.__name__)
        self._tools: dict[str, Tool] = {name: getattr(package, name)() for name in sorted(package.__all__)}
        definitions = {name: ToolDef(tool) for name, tool in self._tools.items()}
        self._schemas = {name: d.parameters.model_dump(exclude_none=True) for name, d in definitions.items()}
        self.prototypes: Mapping[str, Callable[..., Any]] = {
            name: _prototype(self._tools[name], definition) for name, definition in definitions.items()
        }

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run a tool.

        Raises:
            ToolError: The arguments are not of the tool's schema (inspect checks the same), or the tool raised.
        """
        wrong = [error.message for error in Draft7Validator(self._schemas[name]).iter_errors(dict(arguments))]
        if wrong:
            raise ToolError(f"{name}: {'; '.join(wrong)}")
        with _LOCK:
            before = random.getstate()
            random.seed(stable_hash(name, dict(arguments)))
            try:
                return str(finish(self._tools[name](**arguments)))
            except Exception as error:
                raise ToolError(f"{name}: {type(error).__name__}: {error}") from None
            finally:
                random.setstate(before)


def _find_files(package: str) -> None:
    module = sys.modules[package]
    root = Path(str(module.__file__)).parents[2]  # the modules write "benchmark/…"
    for name in ("read_file", "edit_txt"):
        reader: Any = sys.modules[f"{package}.{name}"]
        reader.files = {key: str(root / file) for key, file in reader.files.items()}
    converter: Any = sys.modules[f"{package}.convert_pdf_to_text"]
    read = converter.read_file_content
    converter.read_file_content = lambda path: read(str(root / path))


def _prototype(tool: Tool, definition: ToolDef) -> Callable[..., Any]:
    described = definition.parameters.properties
    parameters = [
        (name, parameter.annotation, described[name].description or name)
        for name, parameter in inspect.signature(tool).parameters.items()
    ]
    return make_tool(definition.name, definition.description, parameters)
