"""Trajectories of what TRL generated: messages, tokens and how each ended, for the verifiers and for a rollout."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from ..messages import Message, shallow
from ..suites.episodes import EpisodeEnvironment
from ..types import StopReason, Trajectory
from .rows import copied_out, messages_of, request_of

Words = Callable[[Sequence[int]], str]


def trajectories_of(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Any],
    generated: tuple[Any, ...],
    environments: Sequence[Any] | None,
    ends: Collection[int],
    tool_rounds: int,
    words: Words | None = None,
) -> list[Trajectory]:
    """What a batch did, row by row. Asks every episode for its outcome, so: once.

    Args:
        rows: Of the data set.
        prompts: What was generated from: messages, or text.
        generated: Prompt ids, completion ids, tool masks (or None) and completions, as TRL's `_generate` returns them.
        environments: One per row, if there are any.
        ends: Ids of tokens that end a completion.
        tool_rounds: How often the policy may call tools.
        words: All that the policy wrote in a message but its calls, from the tokens; of a text between, before or
            after calls, TRL keeps the last stretch only.
    """
    prompt_ids, completion_ids, masks, completions = generated
    out = []
    for i, (row, environment) in enumerate(zip(rows, environments or [None] * len(rows), strict=True)):
        prompt, messages = messages_of(prompts[i], "user"), shallow(messages_of(completions[i], "assistant"))
        if words is not None:
            messages = _with_words(messages, completion_ids[i], None if masks is None else masks[i], words)
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
                data={"weights": request.weights} if request.weights else {},
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
    last = messages[-1] if messages else {}
    if last.get("tool_calls"):
        return "length" if overflowed(messages, tool_rounds) else "calls"
    ended = bool(completion_ids) and completion_ids[-1] in ends
    return "answer" if ended and last.get("role") == "assistant" else "length"


def overflowed(messages: Any, tool_rounds: int) -> bool:
    """Whether a completion's last calls ran, and their results, too long for it, were taken back out."""
    if not messages or isinstance(messages, str) or not messages[-1].get("tool_calls"):
        return False
    return sum(bool(message.get("tool_calls")) for message in messages) <= tool_rounds


def _with_words(
    messages: tuple[Message, ...], ids: Sequence[int], mask: Sequence[int] | None, words: Words
) -> tuple[Message, ...]:
    """The messages, each that calls tools with all the text around its calls; every run of the mask is a message."""
    own = [1] * len(ids) if mask is None else mask
    runs = [
        [token for token, _ in run] for kept, run in groupby(zip(ids, own, strict=True), lambda pair: pair[1]) if kept
    ]
    spoken = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if len(runs) != len(spoken):  # an environment of the user's that marks tokens otherwise
        return messages
    out = list(messages)
    for i, run in zip(spoken, runs, strict=True):
        if messages[i].get("tool_calls") and isinstance(messages[i].get("content"), str):
            out[i] = {**messages[i], "content": words(run) or messages[i]["content"]}
    return tuple(out)


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
