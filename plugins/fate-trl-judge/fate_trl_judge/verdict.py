"""What a judge may answer, as a JSON schema, and how an answer is read: exactly, or not at all.

An answer is one JSON object that holds the key of its request and a finding for each objective, and nothing besides.
Whatever else it is, such as a quotation of the trajectory, two objects, or half of one, is no verdict. And no verdict
is an error, never a 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic's; the standard one lacks what it needs before Python 3.12

from fate_trl import Score, Trajectory, spoken, visible

YES_NO: Literal["yes-no"] = "yes-no"
Scale = Literal["yes-no"] | int

LONGEST = 300
"""Characters of a reason and of a sentence of feedback that are kept (ours)."""


class NoVerdict(Exception):
    """An answer that is no verdict."""


def answer_type(objectives: Sequence[str], scale: Scale) -> TypeAdapter[Any]:
    """The form of an answer: its schema is what a server may hold its model to, and validates what comes back."""
    verdict = Literal["yes", "no"] if scale == YES_NO else Annotated[int, Field(ge=0, le=int(scale))]
    exact = with_config(ConfigDict(extra="forbid", strict=True))
    fields = {"reason": str, "verdict": verdict, "step": int | None, "feedback": str}
    finding = exact(TypedDict("Finding", fields))
    verdicts = exact(TypedDict("Verdicts", dict.fromkeys(objectives, finding)))
    return TypeAdapter(exact(TypedDict("Answer", {"key": str, "verdicts": verdicts})))


def parse(answer: str, key: str, form: TypeAdapter[Any], scale: Scale, trajectory: Trajectory) -> dict[str, Score]:
    """The scores that an answer gives. A step that the trajectory does not have is left out.

    Thoughts are no answer, and a code fence around the object is no part of it.

    Raises:
        NoVerdict: It is not of the form, or lacks the key.
    """
    text = spoken(answer).strip()
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", text, re.DOTALL)
    try:
        found = form.validate_python(json.loads(fenced[1] if fenced else text, object_pairs_hook=_once))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the answer"
        raise NoVerdict(visible(f"the answer is no verdict: {place}: {first['msg']}")[:LONGEST]) from None
    except (ValueError, RecursionError):
        raise NoVerdict(f"the answer is no JSON object: {text[:80]!r}") from None
    if found["key"] != key:
        raise NoVerdict("the answer lacks the key of its request")
    steps = range(len(trajectory.messages))
    return {name: _score(finding, scale, steps) for name, finding in found["verdicts"].items()}


def parse_word(answer: str) -> Score:
    """The score that one word gives: yes or no, and nothing else.

    Raises:
        NoVerdict: It is more, or another word.
    """
    word = spoken(answer).strip().rstrip(".").lower()
    if word not in ("yes", "no"):
        raise NoVerdict(f"the answer is neither yes nor no: {answer[:80]!r}")
    return Score(float(word == "yes"))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys occur once: of two verdicts neither counts."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError
    return dict(pairs)


def _score(finding: dict[str, Any], scale: Scale, steps: range) -> Score:
    value = float(finding["verdict"] == "yes") if scale == YES_NO else finding["verdict"] / int(scale)
    if value == 1:
        return Score(value, reason=_line(finding["reason"]))
    step = finding["step"] if finding["step"] in steps else None
    return Score(value, reason=_line(finding["reason"]), feedback=_line(finding["feedback"]), step=step)


def _line(text: str) -> str:
    return visible(" ".join(text.split()))[:LONGEST]
