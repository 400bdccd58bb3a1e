"""AgentDojo's environments, parsed once and copied, equal to what AgentDojo itself loads.

AgentDojo formats the injections into the environment's YAML text and parses the whole text again for every episode,
which takes most of an episode's time. Injections land inside double-quoted scalars, where YAML folds line breaks and
reads escapes, so replacing strings in the parsed objects would give other text. Here only the scalars that hold a
placeholder are formatted and parsed again, and only the models around those that changed are validated again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

import yaml
from agentdojo.functions_runtime import TaskEnvironment
from agentdojo.task_suite.load_suites import get_suite
from agentdojo.task_suite.task_suite import TaskSuite, read_suite_file
from pydantic import BaseModel

from fate_trl import SuiteError

Path = tuple[str | int, ...]


class Template:
    """A suite's environment, parsed once; `load` gives a fresh copy with injections in it."""

    def __init__(self, suite: TaskSuite):
        self._suite = suite
        text = read_suite_file(suite.name, "environment.yaml", suite.data_path)
        self._defaults = suite.get_injection_vector_defaults()
        self._default = suite.load_and_inject_default_environment({})
        self._raw = yaml.safe_load(text.format(**self._defaults))
        self._slots = {path: text[start:end] for path, start, end in _placeholders(yaml.compose(text, yaml.SafeLoader))}

    def load(self, injections: Mapping[str, str]) -> TaskEnvironment:
        """A fresh environment, equal to `suite.load_and_inject_default_environment(injections)`."""
        # A quotation mark would end the scalar it lands in; what the rest then means only the whole text can tell.
        if any('"' in text for text in injections.values()) or not injections.keys() <= self._defaults.keys():
            return self._suite.load_and_inject_default_environment(dict(injections))
        environment = self._default.model_copy(deep=True)
        changes: dict[Path, dict[Path, str]] = {}
        for path, text in self._slots.items():
            if any(f"{{{key}}}" in text for key in injections):
                model = _model_path(environment, path)
                changes.setdefault(model, {})[path] = _scalar(text.format(**{**self._defaults, **injections}))
        for model, values in changes.items():
            self._replace(environment, model, values)
        return environment

    def _replace(self, environment: TaskEnvironment, where: Path, values: Mapping[Path, str]) -> None:
        """Validate the model at `where` again, with other strings below it, and keep its identity.

        Validation computes fields (a file's size) from the strings; a list and a dict may share the model.
        """
        raw = _at(self._raw, where)
        for path, value in values.items():
            raw = _with(raw, path[len(where) :], value)
        old = _at(environment, where)
        old.__dict__.update(type(old).model_validate(raw).__dict__)


@cache
def template(version: str, name: str) -> Template:
    return Template(get_suite(version, name))


@lru_cache(maxsize=4096)
def _scalar(text: str) -> str:
    return yaml.safe_load(text)


def _placeholders(node: yaml.Node, path: Path = ()) -> Iterator[tuple[Path, int, int]]:
    """(path, start, end) of every scalar in the text that `str.format` would change."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if any(True for _ in _placeholders(key)):
                raise SuiteError(f"the environment has a placeholder in the key {key.value!r}, which is not supported")
            yield from _placeholders(value, (*path, yaml.SafeLoader("").construct_object(key)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _placeholders(value, (*path, index))
    elif "{" in node.value or "}" in node.value:
        yield path, node.start_mark.index, node.end_mark.index


def _at(value: Any, path: Path) -> Any:
    for step in path:
        value = getattr(value, step) if isinstance(value, BaseModel) else value[step]
    return value


def _with(value: Any, path: Path, leaf: str) -> Any:
    """`value` with `leaf` at `path`; what lies on the path is copied, the rest is shared."""
    if not path:
        return leaf
    copy = value.copy()
    copy[path[0]] = _with(value[path[0]], path[1:], leaf)
    return copy


def _model_path(environment: BaseModel, path: Path) -> Path:
    """Path of the innermost model around `path`."""
    value: Any = environment
    innermost: Path = ()
    for depth, step in enumerate(path):
        value = getattr(value, step) if isinstance(value, BaseModel) else value[step]
        if isinstance(value, BaseModel):
            innermost = path[: depth + 1]
    return innermost
