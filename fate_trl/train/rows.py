"""Data set rows: of a request for TRL, and back, the request and the messages that a row stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from ..messages import Message
from ..suites.episodes import EpisodeEnvironment, toolset
from ..types import KINDS, RolloutRequest, Task


def request_row(request: RolloutRequest) -> dict[str, Any]:
    """The data set row of a request, as TRL hands it to `EpisodeEnvironment.reset`."""
    return {
        "prompt": [dict(message) for message in request.messages],
        "environment": toolset(request.task),
        "kind": request.task.kind,
        "request": request,
    }


def request_dataset(requests: Sequence[RolloutRequest]) -> Dataset:
    """A data set of `request_row`s, to train on. Rows are made on access: Arrow could not hold the requests."""
    rows = tuple(requests)

    def rows_of(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        made = [request_row(rows[index]) for index in batch["index"]]
        return {key: [row[key] for row in made] for key in made[0]}

    return Dataset.from_dict({"index": list(range(len(rows)))}).with_transform(rows_of)


def messages_of(text_or_messages: Any, role: str) -> tuple[Message, ...]:
    if isinstance(text_or_messages, str):
        return ({"role": role, "content": text_or_messages},)
    return tuple(text_or_messages)


def kind_of(row: Mapping[str, Any]) -> str:
    if "kind" in row or "request" not in row:
        return str(row.get("kind", "benign"))
    return str(row["request"].task.kind)


def request_of(row: Mapping[str, Any], prompt: tuple[Message, ...]) -> RolloutRequest:
    """The row's request; where it has none, one made up: its kind if it is one of ours, its other columns as data."""
    request = row.get("request")
    if isinstance(request, RolloutRequest):
        return request
    kind: Any = row.get("kind")
    data = {key: value for key, value in row.items() if key not in ("prompt", "kind", "environment", "id")}
    kind = kind if kind in KINDS else "benign"
    return RolloutRequest(
        task=Task(id=str(row.get("id", "")), suite="", kind=kind, messages=prompt, data=data), messages=prompt, stage=""
    )


def copied_out(environment: EpisodeEnvironment, messages: tuple[Message, ...]) -> dict[str, Any]:
    """What an episode leaves in its trajectory: executed calls, outcome, error. TRL resets it in the next batch."""
    recorder = environment._recorder
    assert recorder is not None, "TRL resets an environment before it generates"
    outcome = recorder.outcome(messages)
    return {"calls": tuple(recorder.calls), "outcome": outcome, "error": recorder.error, "cause": recorder.cause}
