"""What the readers of recorded trajectories share: bounded parsing, sound text, scores out of what was recorded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import InterchangeError
from ..messages import Message
from ..record import DEPTH
from ..types import Case, Outcome, Score, ScoreCard, StopReason, Trajectory
from ..verify.scoring import OverRefusal, Security, TrajectoryControl, Utility, score_all

RECORD_BYTES = 16 * 2**20
"""Most that one recorded trajectory may take as JSON: a megabyte in every message still fits."""

_VERIFIERS = (Security(), Utility(), OverRefusal(), TrajectoryControl())
_M = TypeVar("_M", bound=BaseModel)


class Foreign(InterchangeError):
    """A file that is none of those that are read, or is of a suite or a task that is not."""


def load(text: bytes, where: str) -> Any:
    """A JSON value of at most `RECORD_BYTES`. Raises InterchangeError, with `where` it stands, for anything else."""
    if len(text) > RECORD_BYTES:
        raise InterchangeError(f"{where} takes {len(text):,} bytes; one record may take {RECORD_BYTES:,}.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InterchangeError(f"{where} is not JSON: {error}") from None


def sound(value: Any, depth: int = 0) -> Any:
    """A JSON value whose text every encoder takes (a lone surrogate becomes "?"), nested at most `DEPTH` levels."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if depth >= DEPTH:
        return "[nested too deeply]" if isinstance(value, (Mapping, list)) else value
    if isinstance(value, Mapping):
        return {sound(str(key)): sound(item, depth + 1) for key, item in value.items()}
    return [sound(item, depth + 1) for item in value] if isinstance(value, list) else value


def checked(model: type[_M], value: Any, where: str) -> _M:
    """A foreign record as `model` describes it. Raises InterchangeError that names the key that is wrong."""
    try:
        return model.model_validate(sound(value))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "it"
        raise InterchangeError(f"{where}: {key}: {first['msg']}") from None


def split_prompt(messages: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """(prompt, what followed): the prompt is everything before the first assistant or tool message."""
    end = next((i for i, m in enumerate(messages) if m.get("role") in ("assistant", "tool")), len(messages))
    return tuple(messages[:end]), tuple(messages[end:])


def stop_of(messages: Sequence[Message]) -> StopReason:
    """How a recorded trajectory ended: with an answer, or with calls that nobody answered."""
    last = messages[-1] if messages else {}
    return "answer" if last.get("role") == "assistant" and not last.get("tool_calls") else "calls"


def scored(trajectory: Trajectory, recorded: Mapping[str, float | None], outcome: Outcome | None = None) -> Case:
    """The trajectory with its scores: those recorded stand; the others, and all feedback, are our own verifiers'.

    Args:
        trajectory: With the facts of its outcome, as far as the record tells them.
        recorded: Scores by objective, in [0, 1]; None where the objective does not apply.
        outcome: Takes the place of the trajectory's own.
    """
    trajectory = trajectory if outcome is None else dataclasses.replace(trajectory, outcome=outcome)
    (own,) = score_all(_VERIFIERS, [trajectory])
    scores = dict(own.scores)
    for name, value in recorded.items() if not trajectory.error else ():
        mine = scores.get(name)
        if mine is None:
            scores[name] = Score.not_applicable("so recorded") if value is None else Score(value)
        elif value is not None and mine.status != "not_applicable":  # what applies follows from the kind of task
            agrees = mine.value is not None and (mine.value < 1) == (value < 1)  # else its words are of another verdict
            scores[name] = dataclasses.replace(mine, value=value) if agrees else Score(value)
    return trajectory, ScoreCard(scores)


def numbered(cases: Iterable[Case]) -> list[Case]:
    """The cases, each try of a task with a number of its own: a record is found by (stage, suite, task, attempt)."""
    taken: set[tuple[Any, ...]] = set()
    last: dict[tuple[Any, ...], int] = {}
    kept = []
    for trajectory, card in cases:
        task, attempt = trajectory.key[:3], trajectory.attempt
        if trajectory.key in taken:
            attempt = last[task] + 1
            trajectory = dataclasses.replace(trajectory, attempt=attempt)
        taken.add(trajectory.key)
        last[task] = max(attempt, last.get(task, attempt))
        kept.append((trajectory, card))
    return kept
