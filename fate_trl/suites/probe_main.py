"""The process in which a user's environment is tried out: `python -m fate_trl.suites.probe_main`, asked by probing.py.

The user's code may hang or end this process. Nothing here limits its time; the asking process does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import SuiteError
from ..process.answering import answer_lines
from ..process.awaiting import awaited
from ..record import copied
from .conditions import public_state
from .environment import functions_of, load_environment, prototype_of, schema_of
from .values import as_json, is_blocks, rendered

LONGEST = 2000
"""Characters of a result or an observation that are reported."""

Call = Sequence[Any]
"""A tool's name and its arguments."""


class Probe:
    """Answers {"do": verb, ...}; an answer with the key "raised" says what the user's code raised."""

    factory: Callable[[], Any]
    environment: type

    def __call__(self, question: dict[str, Any]) -> dict[str, Any]:
        asked = question.pop("do")
        verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self.load,
            "describe": self.describe,
            "open": self.open,
            "call": self.call,
            "episode": self.episode,
            "pair": self.pair,
        }
        try:
            return verbs[asked](**question)
        except BaseException as error:
            return {"error": str(error)} if asked == "load" else _raised(error)

    def load(self, reference: str) -> dict[str, Any]:
        self.factory, self.environment = load_environment(reference)
        return {}

    def describe(self) -> dict[str, Any]:
        """Its tools as TRL lists and describes them, and what it takes and gives besides."""
        reset = inspect.signature(self.environment.reset).parameters  # type: ignore[attr-defined]
        return {
            "name": self.environment.__name__,
            "tools": [self._described(name) for name in functions_of(self.environment)],
            "takes_rows": "prompt" in reset or any(p.kind is p.VAR_KEYWORD for p in reset.values()),
            "takes_prompt": "prompt" in reset,
            "needs": [name for name, p in list(reset.items())[1:] if p.default is p.empty and p.kind not in _VARIADIC],
            "gives_reward": callable(getattr(self.environment, "get_reward", None)),
        }

    def _described(self, name: str) -> dict[str, Any]:
        try:
            prototype = prototype_of(self.environment, name)
            schema = schema_of(prototype, self.environment.__name__)
        except SuiteError as refusal:
            return {"name": name, "refused": str(refusal)}
        return {"name": name, "signature": f"{name}{inspect.signature(prototype)}", "schema": schema["function"]}

    # ------------------------------------------------------------------------------------------------ episodes

    def _opened(self, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        instance = self.factory()
        return instance, _reset(instance, given)

    def open(self, given: dict[str, Any]) -> dict[str, Any]:
        """Two instances, each reset to the same; {"unmade": why} if none can be made."""
        try:
            self.factory()
        except Exception as error:
            return {"unmade": f"raises {type(error).__name__}: {error}"}
        return {"first": self._opened(given)[1], "second": self._opened(given)[1]}

    def call(self, given: dict[str, Any], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One call in a fresh episode."""
        return _called(self._opened(given)[0], name, arguments)

    def episode(self, given: dict[str, Any], calls: Sequence[Call]) -> dict[str, Any]:
        """All calls in one episode: what each gave, and the state and the reward at the end."""
        instance, opened = self._opened(given)
        return {"reset": opened, **self._run(instance, calls)}

    def _run(self, instance: Any, calls: Sequence[Call]) -> dict[str, Any]:
        ran: dict[str, Any] = {"calls": [_called(instance, *call) for call in calls], "state": _state(instance)}
        if callable(getattr(instance, "get_reward", None)):
            try:
                ran["reward"] = as_json(awaited(instance.get_reward()))
            except Exception as error:
                ran["reward"] = _raised(error)
        return ran

    def pair(self, given: dict[str, Any], calls: Sequence[Call]) -> dict[str, Any]:
        """Two open episodes, the calls in the first, then in the second; and the first again, reset.

        `shared` are the class's own values that changed.
        """
        first, opened = self._opened(given)
        second, _ = self._opened(given)
        held, untouched = self._held(), _state(second)
        ran = self._run(first, calls)
        disturbed = _state(second) != untouched
        found = {
            "shared": sorted(name for name, value in self._held().items() if value != held.get(name)),
            "disturbed": disturbed,
            "alike": self._run(second, calls) == ran,
        }
        again = _reset(first, given)
        changed = [name for name in opened["state"] if again["state"].get(name) != opened["state"][name]]
        left = [name for name in again["state"] if name not in opened["state"]]
        return {
            **found,
            "carried_over": sorted(changed + left) or (["observation"] if again != opened else []),
            "alike_after_reset": self._run(first, calls) == ran,
        }

    def _held(self) -> dict[str, Any]:
        """What the class itself holds, its bases' included, that could be changed."""
        held = {name: value for base in reversed(self.environment.__mro__) for name, value in vars(base).items()}
        mutable = (list, dict, set)
        return {name: as_json(value) for name, value in held.items() if isinstance(value, mutable) and name[:2] != "__"}


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _reset(instance: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    said = awaited(instance.reset(**copied(dict(given))))
    kind = _kind(said)
    shown = rendered(said)[:LONGEST] if kind in ("text", "blocks") else ""
    return {"kind": kind, "type": type(said).__name__, "observation": shown, "state": _state(instance)}


def _state(instance: Any) -> dict[str, Any]:
    return {name: as_json(value) for name, value in public_state(instance).items()}


def _called(instance: Any, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a call gave: {"kind", "type", "reads", "forgotten"} or {"raised", "says"}."""
    tool = getattr(instance, name)
    try:
        value = tool(**copied(arguments))
        forgotten = inspect.isawaitable(value) and not inspect.iscoroutinefunction(tool)
        value = awaited(value)
        kind = _kind(value)
        reads = rendered(value)[:LONGEST] if kind != "image" else ""
    except BaseException as error:
        return _raised(error)
    return {"kind": kind, "type": type(value).__name__, "reads": reads, "forgotten": forgotten}


def _raised(error: BaseException) -> dict[str, Any]:
    left = str(error).startswith(("SystemExit", "KeyboardInterrupt"))  # out of a coroutine, see `awaited`
    return {"raised": str(error).split()[0] if left else type(error).__name__, "says": str(error)[:LONGEST]}


def _kind(value: Any) -> str:
    """What a result is to the model that reads it."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return "text"
    if is_blocks(value):
        return "blocks" if all(block["type"] == "text" for block in value) else "image"
    found = as_json(value)
    if isinstance(found, list):
        return "list"
    if isinstance(found, dict):
        return "dict"
    return "object" if isinstance(found, str) and found.startswith("<") else "value"


if __name__ == "__main__":
    answer_lines(Probe())
