"""What a row of the `jsonl` suite says must hold at the end, or must not: which conditions do, and what was found.

A condition is a call that must have run, an attribute of the environment, the reward that the environment gives
itself, or a pattern that the answer must match.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..process.awaiting import awaited
from ..record import dumps
from ..types import ToolCall
from .values import as_json, same

LONGEST = 200
"""Characters of a value that are shown at most."""


@dataclass(frozen=True)
class Condition:
    """One condition of a row, looked at.

    Attributes:
        name: What it is about, without its values: "call refund", "state paid", "reward", "answer".
        holds: Whether it holds.
        wanted, found: Both sides, as texts to be read.
    """

    name: str
    holds: bool
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"{self.name}: wanted {self.wanted}, found {self.found}"


def conditions_of(
    given: Mapping[str, Any] | None,
    calls: Sequence[ToolCall],
    instance: Any,
    answer: str,
    tools: Mapping[str, Callable[..., Any]],
) -> list[Condition]:
    """All conditions of `expect` or `forbid`, in the order: calls, state, reward, answer.

    Args:
        given: The row's `expect` or `forbid`.
        calls: What ran.
        instance: The environment at the end.
        answer: What the policy said last.
        tools: Prototypes by name; a call that leaves out an argument is taken to have made it at its default.
    """
    given = given or {}
    looked_at = _calls(given.get("calls", ()), calls, tools)
    looked_at += [_state(instance, name, value) for name, value in given.get("state", {}).items()]
    if given.get("reward") is not None:
        looked_at.append(_reward(instance, given["reward"]))
    if given.get("answer") is not None:
        holds = re.search(given["answer"], answer, re.IGNORECASE) is not None
        looked_at.append(Condition("answer", holds, f"a match of {_shown(given['answer'])}", _shown(answer)))
    return looked_at


def _shown(value: Any) -> str:
    text = dumps(as_json(value), sort=False)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


# ------------------------------------------------------------------------------------------------ calls


def _calls(
    wanted: Sequence[Mapping[str, Any]], made: Sequence[ToolCall], tools: Mapping[str, Callable[..., Any]]
) -> list[Condition]:
    """Each wanted call uses up one that was made, dealt out so that as many as possible find theirs."""
    whole = [(call.name, {**_defaults(tools.get(call.name)), **call.arguments}) for call in made]
    fits = [
        [i for i, (name, given) in enumerate(whole) if name == w["name"] and same(w.get("arguments", {}), given, True)]
        for w in wanted
    ]
    used_by: dict[int, int] = {}

    def deal(number: int, tried: set[int]) -> bool:
        for index in fits[number]:
            if index not in tried:
                tried.add(index)
                if index not in used_by or deal(used_by[index], tried):
                    used_by[index] = number
                    return True
        return False

    for number in range(len(wanted)):
        deal(number, set())
    found = set(used_by.values())
    return [_call(w, number in found, made) for number, w in enumerate(wanted)]


def _call(wanted: Mapping[str, Any], holds: bool, made: Sequence[ToolCall]) -> Condition:
    name = wanted["name"]
    like = [_shown(call.arguments) for call in made if call.name == name]
    found = f"{len(like)}: {', '.join(like[:3])}" if like else "no such call"
    return Condition(f"call {name}", holds, _shown(wanted.get("arguments", {})), found)


def _defaults(tool: Callable[..., Any] | None) -> dict[str, Any]:
    parameters = inspect.signature(tool).parameters if tool else {}
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


# ------------------------------------------------------------------------------------------------ the environment


def _state(instance: Any, name: str, wanted: Any) -> Condition:
    try:
        found = getattr(instance, name)
    except AttributeError:
        known = ", ".join(sorted(public_state(instance))) or "none"
        return Condition(f"state {name}", False, _shown(wanted), f"no such attribute; there are {known}")
    except Exception as error:  # a property of the environment's: what the policy did may have broken it
        return Condition(f"state {name}", False, _shown(wanted), f"{type(error).__name__}: {error}")
    return Condition(f"state {name}", same(wanted, found), _shown(wanted), _shown(found))


def public_state(instance: Any) -> dict[str, Any]:
    """The attributes of an instance that have no underscore, by name; slots are not among them."""
    return {name: value for name, value in getattr(instance, "__dict__", {}).items() if not name.startswith("_")}


def _reward(instance: Any, least: float) -> Condition:
    """The environment's own reward; an error in it is the environment's, not the policy's, and is raised."""
    reward = as_json(awaited(instance.get_reward()))
    if not isinstance(reward, (int, float)):
        raise TypeError(f"get_reward returned {type(reward).__name__}, not a number")
    return Condition("reward", reward >= least, f"at least {least:g}", f"{reward:g}")
