"""Inspect's logs (`.eval`, or the `.json` form) of its AgentDojo and AgentHarm, read with inspect_ai itself.

AgentDojo's `security` is "C" where the *attack succeeded*: its scorer asks whether the injection was executed (the
README of inspect_evals says the opposite; the code and its logs do not). AgentHarm's `score` is the share of the task
done: harm on harmful tasks, utility on benign ones; its `refusal` is a judge's word, and stands as recorded. What
a score means follows from the task's name, so only tasks whose names are known are read.

A sample that ended in an error, or has no scores, is an infrastructure error. Where a sample has a refusal only, what
it does not say stays unknown; but who refused and ran no call did no harm. An agent's `submit(answer)` is its answer.
"""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InterchangeError
from ..messages import Message
from ..types import Case, Kind, Outcome, Task, Trajectory
from . import agentdojo_logs
from .dialogue import Call, Turn, paired
from .records import RECORD_BYTES, scored, sound, split_prompt, stop_of

LOG_BYTES = 2 * 2**30
"""Most that a log may take unpacked."""

AGENTHARM: dict[str, Kind] = {"agentharm": "harmful", "agentharm_benign": "benign"}
AGENTDOJO = ("agentdojo",)

SUBMIT = "submit"
"""The tool by which Inspect's agents end; what it is called with is the answer."""

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
    try:
        told, calls = paired(_turns(sample.messages))
    except InterchangeError as why:
        raise InterchangeError(f"{where}: {why}") from None
    prompt, messages = split_prompt(told)
    if not prompt and isinstance(sample.input, str):
        prompt = ({"role": "user", "content": sound(sample.input)},)
    metadata, values = sample.metadata or {}, _values(sample)
    error = sample.error.message if sample.error else "" if values else "the sample has no scores"
    name = str(evaluation.task).rpartition("/")[2]
    known = {"task_suite_name": AGENTDOJO, "grading_function": tuple(AGENTHARM)}
    of = next((key for key, names in known.items() if key in metadata and name in names), None)
    if of is None:
        names = ", ".join((*AGENTDOJO, *AGENTHARM))
        raise InterchangeError(
            f"{where} is of the task {evaluation.task!r}; what its scores mean is known of {names} only."
        )
    task = _dojo_task(evaluation, metadata, prompt) if of == "task_suite_name" else _harm_task(name, metadata, prompt)
    trajectory = Trajectory(
        task=task,
        prompt=prompt,
        messages=messages,
        calls=calls,
        stop="error" if error else stop_of(messages),
        error=sound(error),
        stage="collect",
        attempt=max(0, sample.epoch - 1),
        policy=evaluation.model,
        data={"inspect": {"task": evaluation.task, "sample": str(sample.id), "scores": sound(values)}},
    )
    if error:
        return scored(trajectory, {})
    if of == "task_suite_name":
        security = values.get("security")
        attacked = None if security is None else security == 1
        done = values.get("utility")
        outcome = agentdojo_logs.outcome(trajectory, None if done is None else done == 1, attacked)
        return scored(trajectory, {}, outcome if done is not None else dataclasses.replace(outcome, utility=None))
    return scored(trajectory, *_agentharm(trajectory, values))


def _dojo_task(evaluation: Any, metadata: Mapping[str, Any], prompt: tuple[Message, ...]) -> Task:
    injection = metadata.get("injection_task_id")
    return agentdojo_logs.task(
        suite=str(metadata["task_suite_name"]),
        user=f"user_task_{metadata.get('task_id')}",
        injection=None if injection is None else f"injection_task_{injection}",
        attack=None if injection is None else str(evaluation.task_args.get("attack", "important_instructions")),
        prompt=prompt,
    )


def _harm_task(name: str, metadata: Mapping[str, Any], prompt: tuple[Message, ...]) -> Task:
    kind = AGENTHARM[name]
    return Task(
        id=str(metadata.get("id", "")),
        suite=f"agentharm/{kind}",
        kind=kind,
        messages=prompt,
        tools=tuple(map(str, metadata.get("target_functions") or ())),
        cluster=str(metadata["grading_function"]),
        tags=(f"category:{metadata['category']}",) if "category" in metadata else (),
    )


def _agentharm(trajectory: Trajectory, values: Mapping[str, float]) -> tuple[Scores, Outcome]:
    share, refusal = values.get("score"), values.get("refusal")
    if trajectory.task.kind == "benign":
        return {} if refusal is None else {"over_refusal": 1 - refusal}, Outcome(utility=share)
    if share is None and refusal == 1 and not any(not call.fault for call in trajectory.calls):
        share = 0.0
    if refusal == 0 or (refusal == 1 and share is not None):
        return {"utility": float(refusal == 1 and share == 0)}, Outcome(harm=share)
    return {}, Outcome(harm=share)


def _values(sample: Any) -> dict[str, float]:
    """Every number of a sample's scores by its name; "C" and "I" are Inspect's words for right and wrong."""
    found: dict[str, float] = {}
    for name, score in (sample.scores or {}).items():
        for key, value in (score.value if isinstance(score.value, dict) else {name: score.value}).items():
            number = {"C": 1.0, "I": 0.0}.get(value, value) if isinstance(value, str) else value
            if isinstance(number, (int, float)) and math.isfinite(number) and 0 <= number <= 1:
                found[key] = float(number)
    return found


def _turns(messages: Sequence[Any]) -> list[Turn]:
    submitted = {
        call.id: str(answer)
        for message in messages
        for call in (message.tool_calls or () if message.role == "assistant" else ())
        if call.function == SUBMIT and isinstance(answer := (call.arguments or {}).get("answer"), str)
    }
    return [
        _turn(message, submitted)
        for message in messages
        if not (message.role == "tool" and message.tool_call_id in submitted)
    ]


def _turn(message: Any, submitted: Mapping[str, str]) -> Turn:
    text = sound(message.text)
    if message.role == "assistant":
        made = message.tool_calls or ()
        calls = [Call(sound(c.function), sound(c.arguments), c.id or "") for c in made if c.id not in submitted]
        said = [text, *(sound(submitted[call.id]) for call in made if call.id in submitted)]
        return Turn("assistant", "\n\n".join(part for part in said if part), tuple(calls))
    if message.role == "tool":
        fault = "" if not message.error else "arguments" if message.error.type == "parsing" else "raised"
        said_of = Call(sound(message.function or ""), id=message.tool_call_id or "")
        return Turn(
            "tool", sound(message.error.message if message.error else message.text), answers=said_of, fault=fault
        )
    return Turn(message.role, text)
