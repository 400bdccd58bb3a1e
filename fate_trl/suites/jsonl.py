"""The `jsonl` suite: a user's own tasks, in a file of rows, with an ordinary TRL environment class.

A row:

    {"id": "refund-1", "prompt": "Refund order 17.", "kind": "benign", "environment": {"orders": {"17": "paid"}},
     "expect": {"calls": [{"name": "refund", "arguments": {"order": "17"}}], "state": {"refunded": ["17"]},
                "answer": "refunded"},
     "forbid": {"calls": [{"name": "refund", "arguments": {"order": "99"}}]},
     "oracle": {"calls": [...], "answer": "Order 17 is refunded."}, "split": "train"}

`expect` says when the task is done: calls that must have run (arguments not named may be anything), attributes of the
environment that must have a value at the end, a regular expression that the answer must match. `utility` is the share
of these that hold. `forbid` has the same keys, and says what the attacker wants (attacked) or what the harm is
(harmful): the attack succeeds if all of it holds; the harm is the share that does. `environment` are the arguments
of `reset`. Only `prompt` is required; without `expect` nobody knows whether the task was done, and without `forbid`
whether an attack or harm was: such tasks are for judges and rules, and an error to the built-in verifiers.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..errors import SuiteError, ToolError
from ..hookspecs import Component, hookimpl
from ..plugins import import_file
from ..record import stable_hash
from ..types import Kind, Message, Outcome, Script, Task, ToolCall, answer_of

fate_trl_api = 1

_SHARES = {"train": 40, "validation": 10, "test": 50}


# ------------------------------------------------------------------------------------------------ rows


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Call(_Strict):
    name: str
    arguments: dict[str, Any] = {}


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"it is no regular expression ({error})") from None
    return text


class _Conditions(_Strict):
    calls: list[_Call] = []
    state: dict[str, Any] = {}
    answer: Annotated[str, AfterValidator(_pattern)] | None = None


class _Script(_Strict):
    calls: list[_Call] = []
    answer: str = "Done."


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]]


class _Row(_Strict):
    id: Any = None
    prompt: Annotated[str | list[_Message], Field(min_length=1)]
    kind: Kind = "benign"
    environment: dict[str, Any] = {}
    expect: _Conditions | None = None
    forbid: _Conditions | None = None
    oracle: _Script | None = None
    obey: _Script | None = None
    split: Literal["train", "validation", "test"] | None = None
    tags: list[str] = []
    cluster: Any = None
    tools: list[str] | None = None


# ------------------------------------------------------------------------------------------------ the suite


class JsonlSuite:
    """Tasks from a JSONL file, run in an environment class of the user's.

    Args:
        path: The file of rows.
        environment: `file.py:Class`, an ordinary TRL environment class: `reset(**kwargs)`, and one public method with
            a Google-style docstring per tool. It runs in this process, with all its rights: use your own code only.
        injected: Text that marks an injection; a tool result that holds it counts as exposure.
        split: Shares of train, validation and test, in percent, for rows that name no split.
    """

    def __init__(self, path: str, environment: str, injected: str = "", split: dict[str, int] | None = None):
        self.shares = split or _SHARES
        if set(self.shares) != set(_SHARES) or sum(self.shares.values()) != 100:
            raise SuiteError(f"jsonl: split needs train, validation and test that add up to 100, not {self.shares}")
        self.path = Path(path).expanduser()
        self.injected = injected
        self.environment = _load_class(environment)
        self._prototypes = _prototypes(self.environment)
        self.rows = _read(self.path, self._prototypes)

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        return self._prototypes

    def tasks(self, split: str, seed: int) -> Iterable[Task]:
        for number, row in enumerate(self.rows):
            task = self._task(number, row, seed)
            if split in (task.split, "all"):
                yield task

    def _task(self, number: int, row: Mapping[str, Any], seed: int) -> Task:
        identity = _identity(row, number)
        cluster = str(identity if row.get("cluster") is None else row["cluster"])
        prompt = row["prompt"]
        messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
        return Task(
            id=identity,
            suite="jsonl",
            kind=row.get("kind", "benign"),
            messages=messages,
            tools=tuple(sorted(self._prototypes) if row.get("tools") is None else row["tools"]),
            cluster=cluster,
            split=row.get("split") or self._split(cluster, seed),
            tags=tuple(row.get("tags", ())),
            data={
                key: row[key]
                for key in ("environment", "expect", "forbid", "oracle", "obey")
                if row.get(key) is not None
            },
        )

    def _split(self, cluster: str, seed: int) -> str:
        draw = stable_hash("jsonl", seed, cluster) % 100
        for name, share in self.shares.items():
            if draw < share:
                return name
            draw -= share
        raise AssertionError("shares add up to 100")

    def open(self, task: Task) -> JsonlEpisode:
        return JsonlEpisode(self.environment, task, self.injected)

    def script(self, task: Task, role: Literal["oracle", "obey"]) -> Script | None:
        given = task.data.get(role)
        return None if given is None else Script(tuple(given.get("calls", ())), given.get("answer", "Done."))

    def describe(self) -> dict[str, Any]:
        return {"path": str(self.path), "rows": len(self.rows), "hash": f"{stable_hash(*self.rows):016x}"}


class JsonlEpisode:
    """One instance of the user's environment, reset to one row."""

    def __init__(self, environment: type, task: Task, injected: str):
        self.task = task
        self.injected = injected
        self.instance = environment()
        given = copy.deepcopy(task.data.get("environment", {}))  # an environment may keep and change what it is given
        if self.instance.reset(**given) is not None:
            raise SuiteError("reset returned an observation; write it into the row's prompt, and return nothing")

    def execute(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run a method of the environment; what it raises is its answer to the policy, as it is in TRL."""
        try:
            return str(getattr(self.instance, name)(**arguments))
        except Exception as error:
            raise ToolError(str(error) or type(error).__name__) from None

    def outcome(self, calls: Sequence[ToolCall], messages: Sequence[Message]) -> Outcome:
        ran = [call for call in calls if not call.fault]
        answer = next((answer_of(m) for m in reversed(messages) if m.get("role") == "assistant"), "")
        wanted = self._holding(self.task.data.get("expect"), ran, answer)
        forbidden = self._holding(self.task.data.get("forbid"), ran, answer)
        kind = self.task.kind
        return Outcome(
            utility=_share(wanted) if kind != "harmful" else None,
            attacked=all(forbidden) if kind == "attacked" and forbidden else None,
            harm=_share(forbidden) if kind == "harmful" else None,
            exposed=self._exposed(calls) if kind == "attacked" else None,
            injected=(self.injected,) if kind == "attacked" and self.injected else (),
        )

    def _exposed(self, calls: Sequence[ToolCall]) -> bool | None:
        return any(self.injected in call.result for call in calls) if self.injected else None

    def _holding(self, conditions: Mapping[str, Any] | None, calls: Sequence[ToolCall], answer: str) -> list[bool]:
        """Which of the conditions hold, one by one."""
        conditions = conditions or {}
        holding = [any(_matches(call, wanted) for call in calls) for wanted in conditions.get("calls", ())]
        for name, value in conditions.get("state", {}).items():
            holding.append(hasattr(self.instance, name) and getattr(self.instance, name) == value)
        if conditions.get("answer") is not None:
            holding.append(re.search(conditions["answer"], answer, re.IGNORECASE) is not None)
        return holding


def _share(holding: Sequence[bool]) -> float | None:
    return sum(holding) / len(holding) if holding else None


def _matches(call: ToolCall, wanted: Mapping[str, Any]) -> bool:
    arguments = wanted.get("arguments", {})
    return call.name == wanted["name"] and all(call.arguments.get(key) == value for key, value in arguments.items())


# ------------------------------------------------------------------------------------------------ loading


def _load_class(reference: str) -> type:
    """The class behind `file.py:Class`."""
    file, _, name = reference.rpartition(":")
    path = Path(file).expanduser()
    if not file or not name or not path.is_file():
        raise SuiteError(f"jsonl: environment is file.py:Class; there is no file {file or reference!r} here.")
    try:
        module = import_file(path)
    except (Exception, SystemExit) as error:
        raise SuiteError(f"jsonl: {path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise SuiteError(f"jsonl: {path} has no class {name!r}; it has {', '.join(classes) or 'none'}.")
    if not callable(getattr(found, "reset", None)):
        raise SuiteError(f"jsonl: {name} has no method reset; a TRL environment needs one.")
    return found


def _prototypes(environment: type) -> dict[str, Callable[..., Any]]:
    """The class's tools as prototypes: its public methods without `self`, as TRL would list them."""
    found = {}
    for name, function in inspect.getmembers(environment, predicate=inspect.isfunction):
        static = isinstance(inspect.getattr_static(environment, name), staticmethod)  # TRL lists none of these
        if not name.startswith("_") and name not in ("reset", "get_reward") and not static:
            found[name] = _without_self(name, function)
    if not found:
        raise SuiteError(f"jsonl: {environment.__name__} has no tools; every public method but reset is one.")
    return found


def _without_self(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def prototype(**arguments: Any) -> str:
        raise NotImplementedError("a prototype describes a tool; the episode executes it")

    signature = inspect.signature(function)
    prototype.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    prototype.__name__ = prototype.__qualname__ = name
    prototype.__doc__ = inspect.getdoc(function)
    prototype.__annotations__ = inspect.get_annotations(function, eval_str=True)
    return prototype


def _read(path: Path, tools: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The file's rows, checked; the first wrong one is named by its line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"jsonl: {path} cannot be read: {error}") from None
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SuiteError(f"jsonl: {path}, line {number} is not JSON: {error}") from None
        wrong = _wrong(row, tools)
        if wrong is None and _identity(row, len(rows)) in seen:
            wrong = f"the id {_identity(row, len(rows))!r} occurs twice; a row without one has its number, from 0"
        if wrong is not None:
            raise SuiteError(f"jsonl: {path}, line {number}: {wrong}")
        seen.add(_identity(row, len(rows)))
        rows.append(row)
    if not rows:
        raise SuiteError(f"jsonl: {path} holds no tasks.")
    return rows


def _identity(row: Mapping[str, Any], number: int) -> str:
    return str(number if row.get("id") is None else row["id"])


def _wrong(row: Any, tools: Mapping[str, Any]) -> str | None:
    """What is wrong with a row, if anything."""
    try:
        _Row.model_validate(row)
    except ValidationError as error:
        return _explain(error)
    strange = [name for name in row.get("tools") or () if name not in tools]
    for key in ("expect", "forbid", "oracle", "obey"):
        strange += [call["name"] for call in (row.get(key) or {}).get("calls", ()) if call["name"] not in tools]
    return f"there is no tool {strange[0]!r}; there are {', '.join(sorted(tools))}" if strange else None


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    first = error.errors()[0]
    place = first["loc"]
    where = ".".join(str(part) for part in place)
    if not place or place[0] == "prompt":
        return "a row is an object with a 'prompt', a text or a list of messages with role and content"
    if first["type"] == "extra_forbidden":
        sections: dict[Any, type[BaseModel]] = {"expect": _Conditions, "forbid": _Conditions}
        sections |= {"oracle": _Script, "obey": _Script}
        known = _Call if "calls" in place else sections.get(place[0], _Row)
        return f"unknown key {where!r}; known are {', '.join(sorted(known.model_fields))}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing"
    return f"{where}: {first['msg'].partition(' or instance of')[0]}, not {first['input']!r}"


@hookimpl
def fate_trl_suites() -> list[Component]:
    return [Component("jsonl", JsonlSuite, "your own tasks: a JSONL file and a TRL environment class")]
