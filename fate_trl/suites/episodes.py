"""Opened episodes: every call recorded, bounded in time and size; and their adapter to TRL's `environment_factory`.

Messages are no proof of what ran: TRL takes results that overflow back out of them, and calls past its limit appear in
them but never ran. So the executed trace is kept here, by one `Recorder` around every suite's episode, which also
replays calls to restore a state. TRL pools environment instances and resets them in the next batch, so outcomes are
copied out of the recorder before that.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar

import pydantic

from ..errors import FateError, SuiteError, ToolError
from ..hookspecs import Episode, Suite
from ..messages import Message, shallow, text_of
from ..process.bounded import Limits, Thread, TimedOut
from ..record import DEPTH, copied, dumps, nested, stable_hash
from ..types import Cause, Outcome, RolloutRequest, StopReason, Task, ToolCall, Trajectory

T = TypeVar("T")

OPENINGS = 3
"""How often an episode that fails to open is tried (ours): a service that lends environments has bad moments."""


class Recorder:
    """An opened episode with its executed trace. Opening never raises: what went wrong is kept in `error`.

    All of an episode runs on one thread, which is left behind when something hangs: what it does later goes nowhere,
    since the recorder hands out copies and reads the episode no more.

    Attributes:
        calls: What was executed, in order, replayed calls first.
        replayed: Number of replayed calls.
        prompt: What the policy is given: the request's messages, and what the episode says when it is opened.
        observation: The latter, where the messages do not hold it yet; "" if there is nothing to append.
        error: Reason of an infrastructure error; "" while there is none.
        cause: Its kind; "" while there is none.
    """

    def __init__(self, suite: Suite, request: RolloutRequest, limits: Limits | None = None):
        self.limits = limits or Limits()
        self.request = request
        self.calls: list[ToolCall] = []
        self.observation = ""
        self.error = ""
        self.cause: Cause | Literal[""] = ""
        self._prototypes: dict[str, Callable[..., Any]] = {}
        self._checks_itself = bool(getattr(suite, "checks_arguments", False))
        self._episode: Episode | None = None
        self._thread = Thread()
        for trial in range(OPENINGS):
            try:
                self._open(suite)
                break
            except TimedOut:  # not again: three times the limit is too long to wait
                self.fail("open_timeout", f"opening the episode took over {self.limits.tool_seconds:g} s")
                break
            except Exception as error:
                if trial + 1 == OPENINGS or isinstance(error, FateError):
                    self.fail("open_failed", f"opening the episode failed: {type(error).__name__}: {error}")
                    break
        self._observe()
        self._replay(request.replay)
        self.replayed = len(self.calls)
        self.prompt = observing(request.messages, self.observation)

    def _observe(self) -> None:
        said = getattr(self._episode, "observation", "")
        if not isinstance(said, str):
            self.fail("open_failed", f"the episode's observation is {type(said).__name__}, not a text")
        elif not self.request.observed:
            self.observation = said
        elif said not in "\n".join(map(text_of, self.request.messages)):
            self.fail(
                "replay_diverged", "the environment says something else when it is opened than in the recorded prompt"
            )

    def _open(self, suite: Suite) -> None:
        task = self.request.task
        self._prototypes = {name: tool for name, tool in suite.tools().items() if name in set(task.tools)}
        self._episode = self._within(lambda: suite.open(copied(task)))
        if self._episode is None:
            raise TypeError("the suite returned None, not an episode")

    def _within(self, function: Callable[[], T]) -> T:
        return self._thread.call(function, self.limits.tool_seconds)

    def fail(self, cause: Cause, reason: str) -> None:
        """Close the episode for an infrastructure error."""
        self.cause, self.error = cause, reason
        self._episode = None
        self._thread.close()

    def _replay(self, calls: Sequence[ToolCall]) -> None:
        for number, call in enumerate(calls):
            if self.error:
                return
            try:
                result = self.call(call.name, call.arguments)
            except ToolError as refusal:
                result = str(refusal)
            if not self.error and result != call.result:
                reason = f"replay of call {number} ({call.name}) gave another result than the recorded one"
                self.fail("replay_diverged", reason)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Execute one tool and record it. Raises ToolError, with what the policy may read, if the call failed.

        A call is never tried again: the first try may have had its effect.
        """
        if self._episode is None:
            raise ToolError("the environment is closed")
        if nested(arguments):
            self.refuse(name, f"the arguments are nested deeper than {DEPTH} levels")
        episode, given = self._episode, dict(arguments)
        try:
            _check(self._prototypes, name, None if self._checks_itself else given)
        except ToolError as error:
            raise ToolError(self._record(name, given, str(error), fault="arguments")) from None
        try:
            handed = copied(given)
            result = self._within(lambda: episode.execute(name, handed))
            if not isinstance(result, str):
                raise TypeError(f"it returned {type(result).__name__}, not a text")
        except TimedOut:
            self.fail("tool_timeout", f"tool {name} took over {self.limits.tool_seconds:g} s")
            raise ToolError(f"{name} timed out") from None
        except ToolError as error:
            raise ToolError(self._record(name, given, str(error), fault=error.fault)) from None
        except Exception as error:
            wrong = _misfit(self._prototypes[name], given)
            if wrong:  # crashing a tool must not pay: with arguments of the wrong type it is the policy's doing
                raise ToolError(self._record(name, given, f"{name}: {wrong}", fault="arguments")) from None
            self.fail("tool_failed", f"tool {name} failed: {type(error).__name__}: {error}")
            raise ToolError(f"{name} is not available") from None
        return self._record(name, given, result)

    def refuse(self, name: str, why: str) -> NoReturn:
        """Record a call that cannot even be tried. Raises ToolError, with what the policy may read."""
        if self._episode is None:
            raise ToolError("the environment is closed")
        raise ToolError(self._record(name, {}, f"{name}: {why}", fault="arguments"))

    def _record(self, name: str, arguments: dict[str, Any], result: str, fault: str = "") -> str:
        """Keep the call; returns what the policy may read: no longer than the limit, and encodable for a tokenizer."""
        limit, result = self.limits.tool_characters, result.encode("utf-8", "replace").decode()
        if len(result) > limit:
            result = result[:limit] + f" [cut: {len(result) - limit} more characters]"
        self.calls.append(ToolCall(name=name, arguments=arguments, result=result, fault=fault))
        return result

    def outcome(self, messages: Sequence[Message]) -> Outcome | None:
        """The episode's facts, or None with the reason in `error`."""
        if self._episode is None:
            return None
        episode, calls, said = self._episode, copied(tuple(self.calls)), copied(tuple(messages))
        try:
            outcome = self._within(lambda: episode.outcome(calls, said))
            _check_outcome(outcome)
            own: Outcome = copied(outcome)
            return own
        except TimedOut:
            self.fail("grading_timeout", f"grading took over {self.limits.tool_seconds:g} s")
        except Exception as error:
            self.fail("grading_failed", f"grading failed: {type(error).__name__}: {error}")
        finally:
            self._thread.close()  # hundreds of episodes of a batch wait for TRL to reset them
        return None

    def trajectory(self, messages: Sequence[Message], stop: StopReason, policy: str, **data: Any) -> Trajectory:
        """The finished episode, graded: once, at its end.

        Args:
            messages: What followed the prompt.
            stop: Why the policy ended; "error" takes its place where the episode broke.
            policy: Name of what acted.
            data: More of the producer; JSON values only.
        """
        messages = shallow(messages)
        outcome = self.outcome(messages)
        return Trajectory(
            task=self.request.task,
            prompt=self.prompt,
            messages=messages,
            calls=tuple(self.calls),
            outcome=outcome,
            stop="error" if self.error else stop,
            error=self.error,
            cause=self.cause,
            stage=self.request.stage,
            attempt=self.request.attempt,
            replayed=self.replayed,
            policy=policy,
            data=data,
        )


def observing(messages: Sequence[Message], observation: str) -> tuple[Message, ...]:
    """A prompt with what the environment says at the end of its last message, as TRL appends it: without a space."""
    if not observation:
        return tuple(messages)
    *before, last = messages
    content = last.get("content") or ""
    more: Any = observation if isinstance(content, str) else [{"type": "text", "text": observation}]
    return (*before, {**last, "content": content + more})


def _check(prototypes: Mapping[str, Callable[..., Any]], name: str, arguments: dict[str, Any] | None) -> None:
    """Raises ToolError if there is no such tool, or the arguments, if any are given, do not fit its signature."""
    if name not in prototypes:
        raise ToolError(f"no tool named {name}; there are {', '.join(sorted(prototypes)) or 'none'}")
    if arguments is None:
        return
    try:
        inspect.signature(prototypes[name]).bind(**arguments)
    except TypeError as error:
        raise ToolError(f"{name}: {error}") from None


def _misfit(prototype: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """What does not fit a tool's annotations as they read in JSON, "" if all does."""
    for name, hint in inspect.get_annotations(prototype, eval_str=True).items():
        if name in arguments:
            try:
                pydantic.TypeAdapter(hint).validate_json(dumps(arguments[name]), strict=True)
            except pydantic.ValidationError as error:
                return f"argument {name!r}: {error.errors()[0]['msg']}"
            except pydantic.PydanticUserError:  # no type that JSON has a value for
                continue
    return ""


def _check_outcome(outcome: Any) -> None:
    """Raises TypeError or ValueError if these are no facts that could be scored and recorded."""
    if type(outcome) is not Outcome:
        raise TypeError(f"it returned {type(outcome).__name__}, not an Outcome")
    for name in ("utility", "harm", "yielded"):
        value = getattr(outcome, name)
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise ValueError(f"it returned {name}={value!r}, which is no number in [0, 1]")
    json.dumps(vars(outcome))  # what is no JSON could not be recorded


# ------------------------------------------------------------------------------------------------ TRL's side


class EpisodeEnvironment:
    """What TRL pools and resets: one class per set of tools, made by `environment_class`."""

    _suites: Mapping[str, Suite] = {}
    _limits = Limits()

    def __init__(self) -> None:
        self._recorder: Recorder | None = None

    def reset(self, request: RolloutRequest, **_row: Any) -> str | None:
        """Open the episode of `request`, which TRL's row carries; returns what TRL is to append to the prompt."""
        self._recorder = Recorder(self._suites[request.task.suite], request, self._limits)
        return self._recorder.observation or None


def toolset(task: Task) -> str:
    """Key of the environment class that serves a task: its suite and its set of tools."""
    return f"{task.suite}:{stable_hash(*sorted(task.tools)):016x}"


def environment_factories(
    suites: Mapping[str, Suite], tasks: Iterable[Task], limits: Limits | None = None
) -> dict[str, type[EpisodeEnvironment]]:
    """TRL's `environment_factory` for all tasks that will ever be rolled out: one class per suite and tool subset.

    TRL probes factories once, at construction, so every split's tasks must be among `tasks`.
    """
    classes: dict[str, type[EpisodeEnvironment]] = {}
    for task in tasks:
        key = toolset(task)
        if key not in classes:
            classes[key] = _environment_class(suites, task, limits or Limits())
    return classes


def _environment_class(suites: Mapping[str, Suite], task: Task, limits: Limits) -> type[EpisodeEnvironment]:
    prototypes = suites[task.suite].tools()
    missing = sorted(set(task.tools) - set(prototypes))
    if missing:
        raise SuiteError(f"task {task.id!r} offers tool {missing[0]!r}, which suite {task.suite!r} does not have")
    members: dict[str, Any] = {name: _method(name, prototypes[name]) for name in task.tools}
    return type("Environment", (EpisodeEnvironment,), {**members, "_suites": suites, "_limits": limits})


def _method(name: str, prototype: Callable[..., Any]) -> Callable[..., Any]:
    """A method with the prototype's signature, annotations and docstring, which calls the recorder.

    It takes any keyword: arguments that do not fit are the recorder's to refuse and record.
    """

    def method(self: EpisodeEnvironment, /, **arguments: Any) -> str:
        assert self._recorder is not None, "TRL resets an environment before it calls a tool"
        return self._recorder.call(name, arguments)

    signature = inspect.signature(prototype)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = signature.replace(parameters=[this, *signature.parameters.values()])  # type: ignore[attr-defined]
    method.__name__ = method.__qualname__ = name
    method.__doc__ = inspect.getdoc(prototype)
    method.__annotations__ = {key: value for key, value in inspect.get_annotations(prototype, eval_str=True).items()}
    return method


def make_tool(
    name: str,
    description: str,
    parameters: Sequence[tuple[str, Any, str]],
    optional: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """A tool prototype from a description, for suites whose tools are not Python functions with Google docstrings.

    Args:
        name: Tool name.
        description: First line(s) of the docstring.
        parameters: (name, annotation, description) in order.
        optional: Defaults of the parameters that need not be given.
    """
    optional = optional or {}

    def prototype(**arguments: Any) -> str:
        raise NotImplementedError("a prototype describes a tool; the episode executes it")

    prototype.__name__ = prototype.__qualname__ = name
    prototype.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                key,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=annotation,
                default=optional.get(key, inspect.Parameter.empty),
            )
            for key, annotation, _ in parameters
        ]
    )
    prototype.__annotations__ = {key: annotation for key, annotation, _ in parameters}
    lines = [description.strip()]
    if parameters:
        lines += ["", "Args:"] + [f"    {key}: {' '.join(text.split())}" for key, _, text in parameters]
    prototype.__doc__ = "\n".join(lines)
    return prototype
