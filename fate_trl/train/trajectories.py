"""Trajectories of what TRL generated: messages, tokens and how each ended, for the verifiers and for a rollout."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..messages import Message, shallow
from ..suites.episodes import EpisodeEnvironment
from ..types import StopReason, Trajectory
from .rows import copied_out, messages_of, request_of


def trajectories_of(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Any],
    generated: tuple[Any, ...],
    environments: Sequence[Any] | None,
    ends: Collection[int],
    tool_rounds: int,
) -> list[Trajectory]:
    """What a batch did, row by row. Asks every episode for its outcome, so: once.

    Args:
        rows: Of the data set.
        prompts: What was generated from: messages, or text.
        generated: Prompt ids, completion ids, tool masks (or None) and completions, as TRL's `_generate` returns them.
        environments: One per row, if there are any.
        ends: Ids of tokens that end a completion.
        tool_rounds: How often the policy may call tools.
    """
    prompt_ids, completion_ids, masks, completions = generated
    out = []
    for i, (row, environment) in enumerate(zip(rows, environments or [None] * len(rows), strict=True)):
        prompt, messages = messages_of(prompts[i], "user"), shallow(messages_of(completions[i], "assistant"))
        request = request_of(row, prompt)
        stop = stop_of(messages, completion_ids[i], ends, tool_rounds)
        episode: dict[str, Any] = {}
        if isinstance(environment, EpisodeEnvironment):
            episode = copied_out(environment, messages)
            stop = "error" if episode["error"] else stop
        out.append(
            Trajectory(
                task=request.task,
                prompt=prompt,
                messages=messages,
                stop=stop,
                stage=request.stage,
                attempt=request.attempt,
                replayed=len(request.replay),
                prompt_ids=tuple(prompt_ids[i]),
                completion_ids=tuple(completion_ids[i]),
                policy_mask=tuple([1] * len(completion_ids[i]) if masks is None else masks[i]),
                **episode,
            )
        )
    return out


def stop_of(
    messages: Sequence[Message], completion_ids: Sequence[int], ends: Collection[int], tool_rounds: int
) -> StopReason:
    """Why a completion ended.

    A last message that still calls tools ended at one of two limits: past TRL's number of rounds the calls were
    never run; within it they ran, and their results, too long for the completion, were taken back out.
    """
    rounds = sum(bool(message.get("tool_calls")) for message in messages)
    last = messages[-1] if messages else {}
    if last.get("tool_calls"):
        return "calls" if rounds > tool_rounds else "length"
    ended = bool(completion_ids) and completion_ids[-1] in ends
    return "answer" if ended and last.get("role") == "assistant" else "length"


def without_content(trajectory: Trajectory) -> Trajectory:
    """The trajectory as far as an error's table of causes needs it."""
    nothing: tuple[Any, ...] = ()
    return replace(
        trajectory,
        task=replace(trajectory.task, messages=nothing, data={}),
        prompt=nothing,
        messages=nothing,
        calls=nothing,
        outcome=None,
        prompt_ids=nothing,
        completion_ids=nothing,
        policy_mask=nothing,
    )
