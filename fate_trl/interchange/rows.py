"""The reference code's JSONL: a failure per line.

    {"failure_id": "workbench/3f…#0", "task": {…}, "failed_trajectory": [messages], "mode": "security+utility",
     "scores": {"security": 0.0, "utility": 0.2, "over_refusal": 1.0, "trajectory_control": null}, "metadata": {…}}

The six keys are the reference code's; the shapes inside them are ours, since its are not public:

- `task`: `id`, `suite`, `kind`, `messages` (the plain prompt), `tools`, `cluster`, `split`, `tags`, `data`.
- `failed_trajectory`: chat messages, prompt first. Of foreign rows see `dialogue.py` for the formats that are read.
- `mode`: the failed objectives, joined by "+".
- `scores`: null where an objective does not apply. A user's own objectives stand beside the four.
- `metadata.fate_trl`: the rest of our record (executed calls, outcome, tokens, feedback), so that a row of ours is read
  back exactly.

A foreign row is taken as far as it can be understood: `task` may be a text (the prompt), or an object with `prompt` in
place of `messages`, and without the rest; `failed_trajectory` may be a text or {"messages": [...]}; scores may be true
or false. Without a `kind`, what applies tells it. What our records have no place for (other top-level keys, the row's
own `metadata`, `mode` and `failure_id`) is kept in `Trajectory.data["row"]`, and written out where it stood.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ..errors import FateError, InterchangeError
from ..messages import Message
from ..record import dumps
from ..types import Case, Kind, Outcome, ScoreCard, Task, ToolCall, Trajectory
from .dialogue import paired, turns_of
from .records import RECORD_BYTES, checked, load, scored, split_prompt, stop_of

_METADATA_KEY = "fate_trl"
_KEYS = ("failure_id", "task", "failed_trajectory", "mode", "scores", "metadata")


# ------------------------------------------------------------------------------------------------ writing


def line(case: Case, round: int) -> str:
    """A case as one line of JSON, ASCII only, without its end."""
    return dumps(row(case, round), sort=False)


def row(case: Case, round: int) -> dict[str, Any]:
    """A case as a row; `round` is where it was collected."""
    trajectory, card = case
    record = trajectory.to_dict()
    kept = record.get("data", {}).pop("row", {})
    if not record.get("data"):
        record.pop("data", None)
    task, prompt, messages = record.pop("task"), record.pop("prompt", []), record.pop("messages", [])
    ours = {"round": round, "prompt": len(prompt), "trajectory": record, "card": card.to_dict()}
    named = f"{trajectory.task.suite}/{trajectory.task.id}#{trajectory.attempt}"
    return {
        "failure_id": kept.get("failure_id", named),
        "task": task,
        "failed_trajectory": prompt + messages,
        "mode": kept.get("mode", "+".join(card.failed)),
        "scores": {name: score.value for name, score in card.scores.items()},
        "metadata": {**kept.get("metadata", {}), _METADATA_KEY: ours},
        **kept.get("more", {}),
    }


# ------------------------------------------------------------------------------------------------ reading


def lines(path: Path) -> Iterator[tuple[Any, str]]:
    """Values of a file, line by line, and where each stands. Raises InterchangeError that names file and line."""
    with open(path, "rb") as file:
        number = 0
        while text := file.readline(RECORD_BYTES + 1):
            number += 1
            if text.strip():
                where = f"{path}, line {number}"
                yield load(text, where), where


def case(value: Any, where: str) -> Case:
    """The case of one row, ours or foreign."""
    if not isinstance(value, dict):
        raise InterchangeError(f"{where}: a row is an object with the keys {', '.join(_KEYS)}")
    metadata = value.get("metadata")
    try:
        if isinstance(metadata, dict) and _METADATA_KEY in metadata:
            return _own(value, metadata[_METADATA_KEY])
        return _foreign(value, where)
    except InterchangeError as error:
        raise InterchangeError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    except KeyError as error:
        raise InterchangeError(f"{where}: there is no key {error}") from None
    except (FateError, TypeError, ValueError, AttributeError) as error:
        raise InterchangeError(f"{where}: {error}") from None


def _own(value: Mapping[str, Any], ours: Mapping[str, Any]) -> Case:
    record, prompt, messages, round = ours["trajectory"], ours["prompt"], value["failed_trajectory"], ours["round"]
    if type(round) is not int or not 0 <= round < 1000:
        raise ValueError(f"{round!r} is no round")
    data = {**record.get("data", {}), "row": _kept(value, round)}
    whole = {**record, "task": value["task"], "prompt": messages[:prompt], "messages": messages[prompt:], "data": data}
    return Trajectory.from_dict(whole), ScoreCard.from_dict(ours["card"])


def _kept(value: Mapping[str, Any], round: int) -> dict[str, Any]:
    """What our records have no place for; `row` puts it back."""
    more = {key: item for key, item in value.items() if key not in _KEYS}
    metadata = {key: item for key, item in (value.get("metadata") or {}).items() if key != _METADATA_KEY}
    kept = {"round": round, "failure_id": value.get("failure_id"), "mode": value.get("mode")}
    return {key: item for key, item in {**kept, "metadata": metadata, "more": more}.items() if item not in (None, {})}


class _Foreign(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Task(_Foreign):
    id: str | int = ""
    suite: str = ""
    kind: Kind | None = None
    prompt: str | list[dict[str, Any]] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[str] = []
    cluster: str | int = ""
    tags: list[str] = []
    data: dict[str, Any] = {}

    @property
    def asked(self) -> list[Message]:
        given = self.messages if self.messages is not None else self.prompt or []
        return paired(turns_of([{"role": "user", "content": given}] if isinstance(given, str) else given))[0]


class _Trajectory(_Foreign):
    messages: list[dict[str, Any]]


class _Row(_Foreign):
    task: str | _Task
    failed_trajectory: str | list[dict[str, Any]] | _Trajectory
    scores: dict[str, Annotated[float, Field(ge=0, le=1)] | None]
    metadata: dict[str, Any] | None = None


def _foreign(value: Mapping[str, Any], where: str) -> Case:
    given = checked(_Row, value, where)
    asked = given.task if isinstance(given.task, _Task) else _Task(prompt=given.task)
    told, calls = _dialogue(given.failed_trajectory)
    prompt, messages = split_prompt(told)
    kind = asked.kind or _kind(given.scores)
    task = Task(
        id=str(asked.id),
        suite=asked.suite,
        kind=kind,
        messages=tuple(asked.asked) or prompt,
        tools=tuple(asked.tools),
        cluster=str(asked.cluster),
        tags=tuple(asked.tags),
        data=asked.data,
    )
    trajectory = Trajectory(
        task=task,
        prompt=prompt or task.messages,
        messages=messages,
        calls=calls,
        outcome=_outcome(kind, given.scores),
        stop=stop_of(messages),
        stage="collect",
        data={**_unplaced(asked, given), "row": _kept(value, 1)},
    )
    return scored(trajectory, given.scores)


def _dialogue(given: str | list[dict[str, Any]] | _Trajectory) -> tuple[list[Message], tuple[ToolCall, ...]]:
    if isinstance(given, str):
        return [{"role": "assistant", "content": given}], ()
    return paired(turns_of(given.messages if isinstance(given, _Trajectory) else given))


def _unplaced(*parts: Any) -> dict[str, Any]:
    """Keys of a foreign task and trajectory that are none of ours."""
    task, row = parts
    found = {"task": task.model_extra, "failed_trajectory": getattr(row.failed_trajectory, "model_extra", None)}
    kept = {name: extra for name, extra in found.items() if extra}
    return {"unplaced": kept} if kept else {}


def _kind(scores: Mapping[str, float | None]) -> Kind:
    """The kind of task to which just these objectives apply; nothing attacks a benign one, a harmful one is refused."""
    if scores.get("security") is None:
        return "benign"
    return "harmful" if "over_refusal" in scores and scores["over_refusal"] is None else "attacked"


def _outcome(kind: Kind, scores: Mapping[str, float | None]) -> Outcome:
    """The facts behind the scores, as far as they tell them."""
    security, utility = scores.get("security"), scores.get("utility")
    if kind == "harmful":
        return Outcome(harm=None if security is None else 1 - security)
    return Outcome(utility=utility, attacked=security < 1 if kind == "attacked" and security is not None else None)
