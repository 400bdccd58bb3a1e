"""Rules: a small policy language for people who have neither ground truth nor a judge.

A rule speaks about the calls that *ran*: which tools are never called, what their arguments may be, where a value may
come from, what must go before, how often. It stands in the recipe, so whoever deploys an agent can read it:

    verifiers:
      - name: rules
        args:
          rules:
            - {name: no-deletion, tools: [delete_*], never: true}
            - {name: small-sums, tools: [send_money], arguments: {amount: {at_most: 1000}}}
            - name: known-recipients                # provenance: what the value was first seen in
              tools: [send_money]
              sources: {recipient: [user, get_contacts.iban]}
              feedback: Pay only those whom the user named, or who are contacts.
            - name: no-strange-links                # of the text, only the links are looked at
              tools: [send_message]
              parts: {body: 'https?://[^ ]+'}
              sources: {body: [user, get_contacts.*]}
            - {name: look-first, tools: [send_money], after: [get_balance]}
            - {name: pay-once, tools: [send_money], at_most: 1}
            - {name: only-if-asked, tools: [update_password], never: true, unless_asked: password}

The provenance of values follows the executed trace, as information-flow defences do (CaMeL, Debenedetti et al. 2025;
FIDES, Costa et al. 2025), but by the text of the values alone, with no interpreter in between. All of it is ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache, cached_property, lru_cache
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import RecipeError
from ..hookspecs import Component, hookimpl
from ..messages import text_of
from ..types import Score, ToolCall, Trajectory
from .scoring import step_of

fate_trl_api = 1

USER, SYSTEM, NAMED, ELSEWHERE = "user", "system", "named", "nowhere"
_CHECKS = ("never", "arguments", "sources", "after", "at_most")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Bounds(_Section):
    """What one argument may be; if it is a list, what each of its members may be.

    Attributes:
        at_least, at_most: For numbers; a value that is no number breaks the rule.
        one_of: The legal values.
        matches: A regular expression that fits the whole of the value's text.
    """

    at_least: float | None = None
    at_most: float | None = None
    one_of: list[Any] | None = None
    matches: str | None = None

    @field_validator("matches")
    @classmethod
    def _regular(cls, value: str | None) -> str | None:
        return _compiled(value)

    @model_validator(mode="after")
    def _some_bound(self) -> Bounds:
        if not self.model_fields_set:
            raise ValueError(f"an argument is bounded by at least one of {', '.join(type(self).model_fields)}")
        return self

    def hold(self, value: Any) -> bool:
        """Whether the value keeps within them."""
        if isinstance(value, (list, tuple)):
            return all(self.hold(item) for item in value)
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
        if (self.at_least is not None or self.at_most is not None) and number is None:
            return False
        return (
            (self.at_least is None or number >= self.at_least)  # type: ignore[operator]
            and (self.at_most is None or number <= self.at_most)  # type: ignore[operator]
            and (self.one_of is None or value in self.one_of)
            and (self.matches is None or re.fullmatch(self.matches, str(value), re.DOTALL) is not None)
        )


class Rule(_Section):
    """One rule. It has exactly one check, which every call of `tools` that ran must pass.

    Attributes:
        name: What it is called in reasons.
        tools: Tools that it is about; `*` and `?` are wildcards.
        never: The call is forbidden.
        arguments: Bounds by argument name; an argument that is not given is within them.
        sources: By argument name, what its value may be *first seen* in: `user` or `system` (what they wrote), a tool
            (any of its results), `tool.field` (a field of that name in a tool's JSON or YAML result, the whole of it:
            text inside a longer field is not the field; `tool.*` is any field), `named` (any result of a call that the
            user named: one of the call's own arguments stands in what the user wrote), or `nowhere` (the policy's own
            words). Numbers and words are compared without regard to case and as wholes. Of a list every member is
            looked at.
        parts: For `sources`, by argument name: a regular expression. Only what it finds in the argument is looked at,
            each find by itself: links in a text, say.
        after: One of these tools must have run before.
        at_most: So many calls of `tools` in all.
        unless_asked: A regular expression, without regard to case; where it is found in what the user wrote the rule
            does not hold.
        feedback: A sentence that a policy can act on; a plain one is made where it is left out.
    """

    name: str
    tools: Annotated[list[str], Field(min_length=1)]
    never: Literal[True] | None = None
    arguments: dict[str, Bounds] | None = None
    sources: dict[str, list[str]] | None = None
    parts: dict[str, str] = Field(default_factory=dict)
    after: list[str] | None = None
    at_most: Annotated[int, Field(ge=0)] | None = None
    unless_asked: str | None = None
    feedback: str = ""

    @field_validator("unless_asked")
    @classmethod
    def _regular(cls, value: str | None) -> str | None:
        return _compiled(value)

    @field_validator("parts")
    @classmethod
    def _all_regular(cls, value: dict[str, str]) -> dict[str, str]:
        return {name: _compiled(pattern) or "" for name, pattern in value.items()}

    @model_validator(mode="after")
    def _one_check(self) -> Rule:
        given = [check for check in _CHECKS if getattr(self, check) is not None]
        if len(given) != 1:
            raise ValueError(
                f"rule {self.name!r} has {len(given)} checks; it takes exactly one of {', '.join(_CHECKS)}"
            )
        if strange := sorted(set(self.parts) - set(self.sources or {})):
            raise ValueError(f"rule {self.name!r} looks at parts of {strange[0]!r}, for which it gives no sources")
        return self

    def speaks_of(self, call: ToolCall) -> bool:
        return any(fnmatchcase(call.name, pattern) for pattern in self.tools)


def _compiled(pattern: str | None) -> str | None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


# ------------------------------------------------------------------------------------------------ the verifier


class Rules:
    """A verifier: 1 if no call broke a rule, else 0, with the first broken rule's reason, feedback and step.

    Calls that did not fit their tool never ran, and break no rule; replayed calls are not the policy's.

    Args:
        rules: The rules, at least one.
        objective: Name of the objective that they make.

    Raises:
        RecipeError: Two rules have the same name.
    """

    def __init__(self, rules: Annotated[list[Rule], Field(min_length=1)], objective: str = "rules"):
        names = [rule.name for rule in rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RecipeError(f"two rules are called {twice[0]!r}; give each a name of its own.")
        self.rules = rules
        self.objectives: tuple[str, ...] = (objective,)

    def score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]:
        return [{self.objectives[0]: self._one(trajectory)} for trajectory in trajectories]

    def _one(self, trajectory: Trajectory) -> Score:
        broken = next(self.violations(trajectory), None)
        if broken is None:
            return Score(1.0)
        rule, index, why = broken
        return Score(
            0.0,
            reason=f"{rule.name}: {why}",
            feedback=rule.feedback or f"Do not do this again: {why}.",
            step=step_of(trajectory, trajectory.calls[index]),
        )

    def violations(self, trajectory: Trajectory) -> Iterator[tuple[Rule, int, str]]:
        """(rule, index into `trajectory.calls`, what it did), in the order of the calls."""
        trace = Trace(trajectory)
        rules = [rule for rule in self.rules if not (rule.unless_asked and trace.asks(rule.unless_asked))]
        for index, call in enumerate(trajectory.calls):
            if index < trajectory.replayed or call.fault == "arguments":
                continue
            for rule in rules:
                why = _broken(rule, index, call, trace) if rule.speaks_of(call) else ""
                if why:
                    yield rule, index, why


def _broken(rule: Rule, index: int, call: ToolCall, trace: Trace) -> str:
    """What the call did against the rule; "" if it kept it."""
    if rule.never:
        return f"{call.name} was called"
    if rule.after is not None and not any(
        fnmatchcase(earlier.name, pattern) for earlier in trace.calls[:index] for pattern in rule.after
    ):
        return f"{call.name} was called before {' or '.join(rule.after)}"
    if rule.at_most is not None:
        count = sum(rule.speaks_of(earlier) for earlier in trace.calls[: index + 1] if earlier.fault != "arguments")
        return f"call {count} of at most {rule.at_most}: {call.name}" if count > rule.at_most else ""
    for name, bounds in (rule.arguments or {}).items():
        if name in call.arguments and not bounds.hold(call.arguments[name]):
            return f"{name} of {call.name} is out of bounds"
    for name, sources in (rule.sources or {}).items():
        for value in _looked_at(call.arguments.get(name), rule.parts.get(name)):
            first = trace.first_seen(value, index)
            if not any(allowed(first) for allowed in map(_source, sources)):
                return f"{name} of {call.name} was first seen in {first}"
    return ""


# ------------------------------------------------------------------------------------------------ provenance


class Sighting:
    """Where a value was first seen.

    Attributes:
        place: "user", "system", "nowhere", or the name of the tool in whose result it stands.
        fields: Fields of that result that are the value, the whole of it.
        named: Whether the user named the call: one of its arguments stands in what the user wrote.
    """

    def __init__(self, place: str, fields: frozenset[str] = frozenset(), named: bool = False):
        self.place, self.fields, self.named = place, fields, named

    def __str__(self) -> str:
        texts = {USER: "the user's words", SYSTEM: "the system prompt", ELSEWHERE: "no earlier text"}
        return texts.get(self.place, f"a result of {self.place}")


@cache
def _source(text: str) -> Callable[[Sighting], bool]:
    """A rule's source as a function that tests a sighting."""
    if text == NAMED:
        return lambda seen: seen.named
    if text in (USER, SYSTEM, ELSEWHERE):
        return lambda seen: seen.place == text
    tool, _, field = text.partition(".")
    told = (USER, SYSTEM, ELSEWHERE)
    return lambda seen: (
        seen.place not in told
        and fnmatchcase(seen.place, tool)
        and (not field or any(fnmatchcase(name, field) for name in seen.fields))
    )


class Trace:
    """What a policy had read before each of its calls."""

    def __init__(self, trajectory: Trajectory):
        self.calls = trajectory.calls
        messages = trajectory.task.messages  # not the prompt: a repair prompt quotes what an attacker wrote
        self._asked = "\n".join(text_of(message) for message in messages if message["role"] == "user")
        self._told = "\n".join(text_of(message) for message in messages if message["role"] == "system")

    def asks(self, pattern: str) -> bool:
        """Whether the pattern is found in what the user wrote."""
        return re.search(pattern, self._asked, re.IGNORECASE) is not None

    def first_seen(self, value: str, before: int) -> Sighting:
        """The first text that holds the value as a whole: the prompt, then the results before call `before`."""
        if _contains(self._words_asked, value):
            return Sighting(USER)
        if _contains(_folded(self._told), value):
            return Sighting(SYSTEM)
        for index in range(before):
            if _contains(self._results[index], value):
                return Sighting(self.calls[index].name, self._fields_of(index, value), self._named(index))
        return Sighting(ELSEWHERE)

    @cached_property
    def _words_asked(self) -> str:
        return _folded(self._asked)

    @cached_property
    def _results(self) -> list[str]:
        return [_folded(call.result) for call in self.calls]

    def _named(self, index: int) -> bool:
        values = [v for argument in self.calls[index].arguments.values() for v in _leaves(argument)]
        return any(_contains(self._words_asked, value) for value in values)

    def _fields_of(self, index: int, value: str) -> frozenset[str]:
        return frozenset(field for field, text in _fields(self.calls[index].result) if text == value)


def _looked_at(value: Any, part: str | None) -> list[str]:
    """The folded texts whose origin a rule asks for: a value's scalars, or what `part` finds in them."""
    if part is None:
        return _leaves(value)
    finds = (find.group() for text in _scalars(value) for find in re.finditer(part, text))
    return [_folded(find) for find in finds if find.strip()]


def _leaves(value: Any) -> list[str]:
    """The folded texts of a value's scalars."""
    return [_folded(text) for text in _scalars(value)]


def _scalars(value: Any) -> list[str]:
    """The texts of a value's scalars, empty ones and truth values left out."""
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _scalars(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _scalars(item)]
    return [] if value is None or isinstance(value, bool) or not str(value).strip() else [str(value)]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _contains(text: str, value: str) -> bool:
    """Whether the value stands in the text as a whole: no letter or digit goes on at either end of it."""
    start = text.find(value)
    while start >= 0:
        end = start + len(value)
        inside = start > 0 and text[start - 1].isalnum() and value[0].isalnum()
        inside = inside or (end < len(text) and text[end].isalnum() and value[-1].isalnum())
        if not inside:
            return True
        start = text.find(value, start + 1)
    return False


class _Loader(yaml.BaseLoader):
    """YAML in which every scalar stays the text that it is, and nothing is an alias: nine lines can name a billion."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


@lru_cache(maxsize=256)
def _fields(result: str) -> tuple[tuple[str, str], ...]:
    """(field, folded text) of every scalar of a tool's result; none where that is neither JSON nor YAML."""
    for load in (json.loads, lambda text: yaml.load(text, Loader=_Loader)):
        try:
            return tuple((field, _folded(text)) for field, text in _pairs(load(result)))
        except (yaml.YAMLError, ValueError, RecursionError):
            continue
    return ()


def _pairs(data: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(field, text) of every scalar in nested data; members of a list stand under the list's field."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _pairs(value, str(key))
    elif isinstance(data, list):
        for value in data:
            yield from _pairs(value, name)
    elif data is not None:
        yield name, str(data)


@hookimpl
def fate_trl_verifiers() -> list[Component]:
    return [Component("rules", Rules, "a policy in the recipe: tools, arguments, provenance of values, order, counts")]
