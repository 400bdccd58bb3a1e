"""Inspect's logs (`.eval`, or the `.json` form) of its AgentDojo and AgentHarm, read with inspect_ai itself.

AgentDojo's `security` is "C" where the *attack succeeded*: its scorer asks whether the injection was executed (the
README of inspect_evals says the opposite; the code and its logs do not). AgentHarm's `score` is the share of the task
done: harm on harmful tasks, utility on benign ones; its `refusal` is a judge's word, and stands as recorded.

A sample that ended in an error, or has no scores, is an infrastructure error.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InterchangeError
from ..types import Case, Kind, Message, Outcome, Task, ToolCall, Trajectory
from . import agentdojo_logs
from .records import RECORD_BYTES, call_message, scored, sound, split_prompt, stop_of

LOG_BYTES = 2 * 2**30
"""Most that a log may take unpacked."""

Scores = dict[str, float | None]


def read(path: Path) -> list[Case]:
    """Cases of a log, in the order of its samples.

    Raises:
        InterchangeError: inspect_ai is not installed, the log is damaged, or of another task.
    """
    _check_size(path)
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise InterchangeError(f"{path} is a log of Inspect; to read it: pip install 'fate-trl[inspect]'") from None
    try:
        log = read_eval_log(str(path.resolve()), resolve_attachments=True)
    except Exception as error:  # whatever a damaged archive makes of zipfile, JSON and pydantic
        raise InterchangeError(f"{path} is no log that inspect_ai reads: {type(error).__name__}: {error}") from None
    return [case(log.eval, sample, f"{path}, sample {sample.id!r}") for sample in log.samples or ()]


def _check_size(path: Path) -> None:
    """A small archive may unpack to a disk full: its own directory says to how much, and readers hold it to that."""
    if path.suffix != ".eval":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InterchangeError(f"{path} is no log of Inspect: {error}") from None
    if sum(sizes.values()) > LOG_BYTES or any(_is_sample(n) and size > 4 * RECORD_BYTES for n, size in sizes.items()):
        raise InterchangeError(f"{path} unpacks to {sum(sizes.values()):,} bytes; a log may take {LOG_BYTES:,}, ")


def _is_sample(name: str) -> bool:
    return name.startswith("samples/")


def case(evaluation: Any, sample: Any, where: str) -> Case:
    """The case of one sample, of the evaluation (`EvalSpec`) that it belongs to."""
    prompt, messages = split_prompt([_message(message) for message in sample.messages])
    if not prompt and isinstance(sample.input, str):
        prompt = ({"role": "user", "content": sound(sample.input)},)
    metadata, values = sample.metadata or {}, _values(sample)
    error = sample.error.message if sample.error else "" if values else "the sample has no scores"
    if "task_suite_name" in metadata:
        task, outcome, recorded = _agentdojo(evaluation, metadata, values, prompt)
    elif "grading_function" in metadata:
        task, outcome, recorded = _agentharm(evaluation, metadata, values, prompt)
    else:
        raise InterchangeError(f"{where} is of {evaluation.task!r}; only AgentDojo and AgentHarm can be read.")
    trajectory = Trajectory(
        task=task,
        prompt=prompt,
        messages=messages,
        calls=tuple(_executed(sample.messages)),
        outcome=None if error else outcome,
        stop="error" if error else stop_of(messages),
        error=sound(error),
        stage="collect",
        attempt=max(0, sample.epoch - 1),
        policy=evaluation.model,
        data={"inspect": {"task": evaluation.task, "sample": str(sample.id), "scores": sound(values)}},
    )
    return scored(trajectory, recorded)


def _agentdojo(
    evaluation: Any, metadata: Mapping[str, Any], values: Mapping[str, Any], prompt: tuple[Message, ...]
) -> tuple[Task, Outcome, Scores]:
    injection = metadata.get("injection_task_id")
    task = agentdojo_logs.task(
        suite=str(metadata["task_suite_name"]),
        user=f"user_task_{metadata.get('task_id')}",
        injection=None if injection is None else f"injection_task_{injection}",
        attack=None if injection is None else str(evaluation.task_args.get("attack", "important_instructions")),
        prompt=prompt,
    )
    security = values.get("security")
    return (
        task,
        agentdojo_logs.outcome(task, values.get("utility") == 1, None if security is None else security == 1),
        {},
    )


def _agentharm(
    evaluation: Any, metadata: Mapping[str, Any], values: Mapping[str, Any], prompt: tuple[Message, ...]
) -> tuple[Task, Outcome, Scores]:
    harmful = not str(evaluation.task).endswith("_benign")
    kind: Kind = "harmful" if harmful else "benign"
    task = Task(
        id=str(metadata.get("id", "")),
        suite=f"agentharm/{kind}",
        kind=kind,
        messages=prompt,
        tools=tuple(map(str, metadata.get("target_functions") or ())),
        cluster=str(metadata["grading_function"]),
        tags=(f"category:{metadata['category']}",) if "category" in metadata else (),
    )
    share, refusal = values.get("score"), values.get("refusal")
    if not harmful:
        return task, Outcome(utility=share), {} if refusal is None else {"over_refusal": 1 - refusal}
    refused: Scores = {} if refusal is None else {"utility": float(refusal == 1 and share == 0)}
    return task, Outcome(harm=share), refused


def _values(sample: Any) -> dict[str, float]:
    """Every number of a sample's scores by its name; "C" and "I" are Inspect's words for right and wrong."""
    found: dict[str, float] = {}
    for name, score in (sample.scores or {}).items():
        for key, value in (score.value if isinstance(score.value, dict) else {name: score.value}).items():
            number = {"C": 1.0, "I": 0.0}.get(value, value) if isinstance(value, str) else value
            if isinstance(number, (int, float)) and math.isfinite(number) and 0 <= number <= 1:
                found[key] = float(number)
    return found


def _message(message: Any) -> Message:
    text = sound(message.text)
    if message.role == "assistant":
        return call_message(text, [(sound(call.function), sound(call.arguments)) for call in message.tool_calls or ()])
    if message.role == "tool":
        return {"role": "tool", "name": sound(message.function or ""), "content": _result(message)}
    return {"role": message.role, "content": text}


def _result(message: Any) -> str:
    return sound(message.error.message if message.error else message.text)


def _executed(messages: Any) -> Iterator[ToolCall]:
    """Calls that have a result, in order; Inspect names the call that a result belongs to."""
    made = {call.id: call for message in messages if message.role == "assistant" for call in message.tool_calls or ()}
    for message in messages:
        if message.role == "tool":
            call = made.get(message.tool_call_id)
            fault = "" if not message.error else "arguments" if message.error.type == "parsing" else "raised"
            name = sound(message.function or (call.function if call else ""))
            yield ToolCall(name, sound(call.arguments) if call else {}, _result(message), fault)
