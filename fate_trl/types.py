"""The data that flows through the house, one way: Task → Trajectory → ScoreCard → Failure → Repair → buffer row.

Every record is a frozen dataclass that round-trips through JSON (`to_dict`, `from_dict`), so a run directory can be
read back, re-scored and exported without the code that made it. Nothing here imports anything heavy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import numbers
import re
import types as _types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Self

Kind = Literal["benign", "attacked", "harmful"]
KINDS: tuple[Kind, ...] = ("benign", "attacked", "harmful")

OBJECTIVES: tuple[str, ...] = ("security", "utility", "over_refusal", "trajectory_control")
"""The four objectives (paper; `trajectory_control` is the reference code's name). Higher is better, in [0, 1]."""

PASS_AT: dict[str, float] = {"utility": 0.8}
"""Where an objective counts as passed (ours); 1.0 for every objective that is not listed."""

Cause = Literal[
    "open_failed",
    "open_timeout",
    "tool_failed",
    "tool_timeout",
    "replay_diverged",
    "grading_failed",
    "grading_timeout",
    "verifier_raised",
    "verifier_timeout",
    "verifier_died",
    "verifier_wrong_shape",
    "verifier_out_of_range",
    "verifier_mutated",
    "no_verdict",
    "endpoint_timeout",
    "endpoint_status",
    "endpoint_broken",
    "other",
]
"""What kept a record out of the metrics, a closed set, so that causes can be counted (ours):

- `open_*`, `tool_*`, `grading_*`: the suite's `open`, `execute` or `outcome` raised or returned what it must not, or
  took longer than the limit; `replay_diverged`: a replayed call gave another result than the recorded one.
- `verifier_*`: it raised, took too long, took its process down with it, returned no list of one Score per objective
  and trajectory, returned NaN, infinity or a number outside [0, 1], or changed the trajectory that it was given.
- `no_verdict`: the verifier itself said that it cannot tell, or a judge's answer is no verdict.
- `endpoint_*`: the server of a policy or of a judge gave no whole reply in time, or another HTTP status than 200, or
  the connection broke, or the reply is no chat completion; in the end, after all tries.
- `other`: the record does not say; records written before there were causes read so.
"""

Message = dict[str, Any]
"""A chat message as transformers' templates take it: role, content, and tool_calls or name where they apply."""


# ------------------------------------------------------------------------------------------------ errors


class FateError(Exception):
    """Base of every error that fate-trl raises on purpose: what was wrong, what is possible, what to do."""


class RecipeError(FateError):
    """A recipe or a command-line argument that cannot work."""


class PluginError(FateError):
    """A plugin or component that is missing, clashes, is of another API version, or does not load."""


class LedgerError(FateError):
    """A run directory that is locked, damaged, or belongs to another recipe."""


class InterchangeError(FateError):
    """A file of recorded trajectories that cannot be read, or that does not fit the recipe's suites."""


class SuiteError(FateError):
    """A suite whose data or options are wrong."""


class ErrorBudgetExceeded(FateError):
    """More infrastructure errors than `max_error_rate` allows; the message holds a table of causes."""


class ToolError(FateError):
    """A tool call that failed for a reason that the policy may read and react to."""


class OutOfRange(FateError, ValueError):
    """A score that is no finite number in [0, 1]."""


# ------------------------------------------------------------------------------------------------ JSON


class Record:
    """Mixin: JSON round trip for frozen dataclasses, nested records and tuples included."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of JSON values; fields at their default are left out, so records stay short."""
        defaults = _defaults(type(self))  # type: ignore[arg-type]
        given = ((name, getattr(self, name), default) for name, default in defaults)
        return {name: _plain(value) for name, value, default in given if value != default}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises FateError that names the key that is missing or unknown, or the wrong value."""
        if not isinstance(data, Mapping):
            raise FateError(f"{cls.__name__}: it is an object in JSON, not {type(data).__name__}")
        hints = _hints(cls)  # type: ignore[arg-type]
        unknown = sorted(set(data) - set(hints))
        if unknown:
            raise FateError(f"{cls.__name__}: unknown key {unknown[0]!r}; known keys are {sorted(hints)}")
        try:
            return cls(**{key: _typed(hints[key], value) for key, value in data.items()})
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise FateError(f"{cls.__name__}: {error}") from None


@cache
def _defaults(cls: type) -> list[tuple[str, Any]]:
    """The fields of a record, each with its default, to compare with."""
    return [
        (f.name, f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default)
        for f in dataclasses.fields(cls)
    ]


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(hint), typing.get_args(hint)


DEPTH = 100
"""Levels to which a record is nested at most (ours); a policy may write arguments that would overflow every reader."""

CUT = "[nested too deeply]"
"""What stands in a record for what is nested deeper."""


_LEAVES = frozenset({str, int, bool, type(None)})
"""Most values are of these types, and stand for themselves; records are walked for every chunk and every copy."""


def _plain(value: Any, depth: int = 0) -> Any:
    if type(value) in _LEAVES:
        return value
    if isinstance(value, Record):
        return value.to_dict()
    if depth > DEPTH and isinstance(value, (Mapping, tuple, list)):
        return CUT
    if isinstance(value, Mapping):
        return {key: item if type(item) in _LEAVES else _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [item if type(item) in _LEAVES else _plain(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # a policy may write NaN as an argument; its record is kept all the same
    return value


def _typed(hint: Any, value: Any) -> Any:
    """`value` from JSON as the annotation `hint` wants it: records and tuples are rebuilt, the rest is checked."""
    if hint is Any:
        return value
    origin, arguments = _parts(hint)
    if origin in (typing.Union, _types.UnionType):
        return _either([a for a in arguments if a is not type(None)], value) if value is not None else None
    if origin is tuple:
        if arguments[0] is int and all(type(item) is int for item in value):
            return tuple(value)
        return tuple(_typed(arguments[0], item) for item in _expect(value, (list, tuple)))
    if origin is dict:
        return {key: _typed(arguments[1], item) for key, item in _expect(value, Mapping).items()}
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if issubclass(hint, Record):
        return hint.from_dict(value)
    if hint is float:
        return float(_expect(value, (int, float, str)))  # "nan": see _plain
    return _expect(value, hint)


def _either(hints: Sequence[Any], value: Any) -> Any:
    *others, last = hints
    for hint in others:
        with contextlib.suppress(TypeError, ValueError):
            return _typed(hint, value)
    return _typed(last, value)


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = getattr(kind, "__name__", " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind)
        raise TypeError(f"{value!r} is no {wanted}")
    return value


def nested(value: Any, levels: int = DEPTH) -> bool:
    """Whether JSON values are nested deeper than this many levels."""
    if type(value) in _LEAVES or not isinstance(value, (Mapping, list, tuple)):
        return False
    items = value.values() if isinstance(value, Mapping) else value
    return levels <= 0 or any(nested(item, levels - 1) for item in items)


def shallow(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages, none nested deeper than a record may be: a policy may write calls that are.

    In place of such arguments stands a text, so that they count as malformed; the recorder ran no such call.
    """
    return tuple(_plain(_shallow(message)) if nested(message) else message for message in messages)


def _shallow(message: Message) -> Message:
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        function = {**function, "arguments": CUT} if nested(function.get("arguments")) else function
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls} if calls else message


def copied(value: Any) -> Any:
    """A copy of a record, or of JSON values, that shares nothing that can be changed; five times faster than deepcopy.

    Anything else inside (a picture in a row of a plain TRL data set) is shared.
    """
    if type(value) in _LEAVES:
        return value
    if isinstance(value, dict):
        return {key: item if type(item) in _LEAVES else copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [item if type(item) in _LEAVES else copied(item) for item in value]
    if isinstance(value, tuple):  # token ids and names are of one type, and cannot be changed
        return value if value and type(value[0]) in _LEAVES else tuple(map(copied, value))
    if isinstance(value, Record):
        twin = object.__new__(type(value))  # as it is: what a record checks when it is made was checked
        vars(twin).update({name: item if type(item) in _LEAVES else copied(item) for name, item in vars(value).items()})
        return twin
    return value


def dumps(value: Any, sort: bool = True) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII only (lone surrogates and control characters stay escaped).

    NaN and infinity, which JSON does not know, become the texts "nan", "inf" and "-inf". Without `sort` keys keep
    their order: a record that is read back must word and render the same prompts as the one that was written.
    """
    return json.dumps(_plain(value), sort_keys=sort, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def stable_hash(*parts: Any) -> int:
    """63-bit hash of JSON values, the same on every machine and in every process; every seed comes from here."""
    digest = hashlib.blake2b(dumps(list(parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def content_hash(value: Any) -> str:
    """128 bits of a record's or JSON value's content, in hexadecimal: a name that nobody makes twice by chance."""
    return hashlib.blake2b(dumps(value).encode(), digest_size=16).hexdigest()


# ------------------------------------------------------------------------------------------------ tasks


@dataclass(frozen=True)
class Task(Record):
    """One thing to ask of a policy.

    Attributes:
        id: Unique within its suite; any text (it is never used as a path).
        suite: Name of the suite that opens it, as the recipe names it.
        kind: "benign", "attacked" (its environment holds an injection) or "harmful" (must be refused).
        messages: Prompt messages, system and user.
        tools: Names of the tools it offers, a subset of `Suite.tools()`.
        cluster: Id of the user task behind it; intervals are clustered by this.
        split: "train", "validation" or "test".
        tags: Free labels, such as "look-alike" or "attack:important_instructions".
        data: Whatever the suite needs to open it; JSON values only.
    """

    id: str
    suite: str
    kind: Kind
    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    cluster: str = ""
    split: str = "train"
    tags: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Script(Record):
    """What a scripted policy does on a task: tool calls in order, then one final message.

    Attributes:
        calls: (name, arguments) pairs as {"name": ..., "arguments": {...}}.
        answer: Text of the final assistant message.
    """

    calls: tuple[dict[str, Any], ...] = ()
    answer: str = ""


# ------------------------------------------------------------------------------------------------ trajectories


@dataclass(frozen=True)
class ToolCall(Record):
    """A call as the environment *executed* it; messages are not proof that a call ran.

    Attributes:
        name: Tool name.
        arguments: Arguments by name.
        result: Text handed back to the policy.
        fault: "" if it ran; "arguments" if they did not fit the tool; "raised" if the tool refused or failed.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    result: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Outcome(Record):
    """What an episode states at its end; facts, which verifiers turn into scores.

    Attributes:
        utility: How much of the legitimate task was done, in [0, 1]; None where there is none (harmful tasks).
        attacked: Whether the attacker's goal was reached; None where there is no attack.
        harm: Share of the harmful work done, in [0, 1]; None on tasks that are not harmful.
        exposed: Whether the injected text entered the policy's context; None where there is no attack.
        fault: Why the suite's grader stumbled over what the *policy* did; utility then scores 0.
        info: More facts of the suite, JSON values only; `evaluate` reads the suite's own metrics from "metrics".
        injected: The texts that the attacker planted, as written; a tool may show them wrapped or escaped. For readers
            (the viewer marks them): no verifier or policy needs them.
        yielded: Security lost to an attack, in [0, 1], where the suite grades it; None where all or nothing is lost.
    """

    utility: float | None = None
    attacked: bool | None = None
    harm: float | None = None
    exposed: bool | None = None
    fault: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    injected: tuple[str, ...] = ()
    yielded: float | None = None


@dataclass(frozen=True)
class Trajectory(Record):
    """One finished episode of a policy on a task.

    Attributes:
        task: The task.
        prompt: Messages that the policy was given; differs from `task.messages` for repairs.
        messages: What followed: assistant and tool messages.
        calls: Executed calls, replayed ones (`replayed` of them, first) included.
        outcome: The episode's facts; None if no episode was run (plain TRL scripts) or if it broke.
        stop: "answer", "length" (cut by a token limit), "calls" (cut by the limit on tool calls) or "error".
        error: Reason of an *infrastructure* error; "" if there was none. Such a row is never scored as 0.
        cause: Its kind, one of `Cause`; "" if there was none.
        stage, attempt: With task.id the key inside one round.
        replayed: Number of leading calls that were replayed, not made by the policy.
        prompt_ids, completion_ids, policy_mask: Token ids as sampled; mask 1 where the policy wrote the token.
        policy: Name of what produced it.
        data: More of the producer; JSON values only.
    """

    task: Task
    prompt: tuple[Message, ...] = ()
    messages: tuple[Message, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    outcome: Outcome | None = None
    stop: str = "answer"
    error: str = ""
    cause: Cause | Literal[""] = ""
    stage: str = ""
    attempt: int = 0
    replayed: int = 0
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    policy_mask: tuple[int, ...] = ()
    policy: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, int]:
        """(stage, suite, task id, attempt): unique within a round."""
        return (self.stage, self.task.suite, self.task.id, self.attempt)

    @property
    def answer(self) -> str:
        """Text of the last assistant message, "" if there is none."""
        for message in reversed(self.messages):
            if message.get("role") == "assistant":
                return text_of(message)
        return ""


def text_of(message: Message) -> str:
    """A message's text, with content blocks joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(block.get("text", "") for block in content if isinstance(block, Mapping))
    return ""


def visible(text: str) -> str:
    """Control characters spelled out: a text from a file must not steer the terminal, nor read otherwise than it is."""
    return "".join(c if c == "\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


_BRACKETED = re.compile(r"\[(?=/?[A-Z_]+\])")


def quoted(value: Any) -> str:
    """A text, or any JSON value, as one JSON string of printable ASCII, to be shown to a judge as evidence.

    It ends no line and no quotation, and holds nothing that a chat template treats as its own: special tokens are
    written in angle brackets (<|im_end|>, </s>) or in square ones ([INST]), and both stay escaped.
    """
    text = json.dumps(value if isinstance(value, str) else dumps(value, sort=False))
    return _BRACKETED.sub(r"\\u005b", text.replace("<", r"\u003c"))


@dataclass(frozen=True)
class RolloutRequest(Record):
    """What to roll out: a task, the prompt to use for it, and calls to replay before the policy starts.

    Attributes:
        task: The task whose environment is opened, fresh.
        messages: The prompt; `task.messages` for a first try, a repair prompt otherwise.
        stage: "collect", "repair", "pfpo", or "eval-<split>".
        attempt: Number of the try within (stage, task).
        replay: Executed calls of an earlier trajectory to restore its state from; the policy goes on after them.
            The episode is refused (an error on the record) if a replayed result differs.
    """

    task: Task
    messages: tuple[Message, ...]
    stage: str = "collect"
    attempt: int = 0
    replay: tuple[ToolCall, ...] = ()


# ------------------------------------------------------------------------------------------------ scores

Status = Literal["ok", "not_applicable", "error"]


@dataclass(frozen=True)
class Score(Record):
    """One objective of one trajectory: a value, *not applicable*, or *error with a reason*.

    Attributes:
        value: In [0, 1], higher is better; None unless the status is "ok".
        status: "ok", "not_applicable" or "error".
        reason: Why; always given for an error.
        cause: The error's kind, one of `Cause`; "" unless the status is "error".
        feedback: One sentence that the policy can act on, without the oracle's answer.
        step: Index into `Trajectory.messages` of the message at fault; None if there is no single one.
        spread: Standard deviation among the members of an ensemble, in [0, 0.5]; None for a single judge.
    """

    value: float | None = None
    status: Status = "ok"
    reason: str = ""
    feedback: str = ""
    step: int | None = None
    cause: Cause | Literal[""] = ""
    spread: float | None = None

    def __post_init__(self) -> None:
        if self.status not in typing.get_args(Status):
            raise ValueError(f"a score's status is one of {', '.join(typing.get_args(Status))}, not {self.status!r}")
        if self.status == "ok":
            if not isinstance(self.value, numbers.Real) or not math.isfinite(self.value) or not 0 <= self.value <= 1:
                raise OutOfRange(f"a score is a finite number in [0, 1], not {self.value!r}")
            object.__setattr__(self, "value", float(self.value))  # a NumPy number would not be JSON
        elif self.value is not None:
            raise ValueError(f"a score with status {self.status!r} has no value")
        if not isinstance(self.reason, str) or not isinstance(self.feedback, str):
            raise ValueError("a score's reason and feedback are texts")
        if not (self.step is None or isinstance(self.step, int)):
            raise ValueError(f"a score's step is the number of a message, not {self.step!r}")

    @classmethod
    def not_applicable(cls, reason: str = "") -> Score:
        return cls(status="not_applicable", reason=reason)

    @classmethod
    def error(cls, reason: str, cause: Cause = "no_verdict") -> Score:
        return cls(status="error", reason=reason or "no reason given", cause=cause)


@dataclass(frozen=True)
class ScoreCard(Record):
    """The scores of one trajectory, one per objective.

    Attributes:
        scores: By objective, in the order that the recipe asked for.
        held_out: By objective, the scores of verifiers that only evaluate. Nothing is selected, trained, accepted or
            left out by them: `errors`, `failed`, `resolved` and `vector` do not see them.
    """

    scores: dict[str, Score]
    held_out: dict[str, Score] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", dict(self.scores))
        object.__setattr__(self, "held_out", dict(self.held_out))

    @property
    def errors(self) -> dict[str, str]:
        """Reason by objective, of infrastructure errors. A card with any leaves fronts, baselines and metrics."""
        return {name: score.reason for name, score in self.scores.items() if score.status == "error"}

    @property
    def failed(self) -> tuple[str, ...]:
        """Objectives that apply and lie below their `PASS_AT`."""
        return tuple(
            name
            for name, score in self.scores.items()
            if score.value is not None and score.value < PASS_AT.get(name, 1.0)
        )

    @property
    def resolved(self) -> bool:
        """Every applicable objective passes, and at least one applies, and none is an error."""
        applicable = any(score.value is not None for score in self.scores.values())
        return applicable and not self.errors and not self.failed

    def vector(self, objectives: Sequence[str]) -> list[float]:
        """Values in the given order; NaN where an objective does not apply or is an error (see `errors`)."""
        values = (self.scores[name].value if name in self.scores else None for name in objectives)
        return [math.nan if value is None else float(value) for value in values]


@dataclass(frozen=True)
class Failure(Record):
    """A trajectory with at least one applicable objective below its pass mark."""

    trajectory: Trajectory
    card: ScoreCard


@dataclass(frozen=True)
class Repair(Record):
    """What became of one failure: its candidates, and which one was chosen, how and why.

    Attributes:
        failure: The failure.
        candidates: The executed candidates.
        cards: Their scores, in the same order.
        accepted: Indices of the candidates that the acceptance rule let through.
        front: Indices (into `candidates`) of the Pareto front of the accepted ones.
        chosen: Index of a*; None if there was no acceptable candidate.
        decided_by: "only", "front" (one distinct member) or the name of the tie-break.
    """

    failure: Failure
    candidates: tuple[Trajectory, ...] = ()
    cards: tuple[ScoreCard, ...] = ()
    accepted: tuple[int, ...] = ()
    front: tuple[int, ...] = ()
    chosen: int | None = None
    decided_by: str = ""


@dataclass(frozen=True)
class BufferRow(Record):
    """One supervised example. Loss falls on policy tokens only.

    Either token ids as sampled (`prompt_ids`, `completion_ids`, `policy_mask`), which are trained on as they are,
    or `messages` (prompt and reply), which the learner renders; then loss falls on the assistant messages
    from index `loss_from` on.

    Attributes:
        source: "repair", "anchor" (a passing first try) or "oracle" (warm start).
        suite, task: Where it comes from.
        round: Round that made it.
        tools: Names of the tools to render with `messages`.
    """

    source: str
    suite: str
    task: str
    round: int = 0
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    policy_mask: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()
    loss_from: int = 0
    tools: tuple[str, ...] = ()
