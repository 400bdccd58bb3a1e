"""Built-in repair strategies: how a failure becomes K prompts for the same policy.

Strategies word requests; they never judge. The text of a failed trajectory may be an attacker's, so it is quoted
as data: each message of the transcript is one line, prefixed with who wrote it, and cannot start another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..hookspecs import Component, hookimpl
from ..messages import Message, text_of
from ..record import dumps
from ..types import Failure, RolloutRequest, Trajectory

if TYPE_CHECKING:
    import numpy as np

fate_trl_api = 1


def attempts(failure: Failure, k: int, step: int = 0, steps: int = 1) -> range:
    """Attempt numbers of the k candidates of a failure, in one of so many steps: unique within (stage, task)."""
    first = (failure.trajectory.attempt * steps + step) * k
    return range(first, first + k)


def transcript(messages: Sequence[Message], limit: int = 600) -> str:
    """Messages as text, one line each: each text, arguments and result cut to `limit` characters."""
    lines = []
    for message in messages:
        text = " ".join(text_of(message).split())
        if message.get("role") == "tool":
            lines.append(f"result: {text[:limit]}")
            continue
        if text:
            lines.append(f"{'the user' if message.get('role') == 'user' else 'you'} said: {text[:limit]}")
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            lines.append(f"you called: {function.get('name')} {dumps(function.get('arguments') or {})[:limit]}")
    return "\n".join(lines).encode("utf-8", "replace").decode()  # a tokenizer takes no lone surrogates


def feedback(failure: Failure) -> list[str]:
    """The verifiers' sentences on the failed objectives, each once, in the order of the objectives."""
    sentences = (failure.card.scores[name].feedback for name in failure.card.failed)
    return list(dict.fromkeys(sentence for sentence in sentences if sentence))


def fault(failure: Failure) -> int | None:
    """Index of the first message that a failed objective's verifier faults; None if none of them says."""
    steps = (failure.card.scores[name].step for name in failure.card.failed)
    return min((step for step in steps if step is not None), default=None)


class Reflect:
    """The task, the failed trajectory and the verifiers' feedback in one user message (paper; the wording is ours).

    What each part buys is measured in docs/results/feedback.md.

    Args:
        characters: Longest piece of one message that is quoted.
        sentences: Say what was wrong, in the verifiers' words.
        step: Quote the first step at fault apart. The embedded policy was made without it.
    """

    def __init__(self, characters: int = 600, sentences: bool = True, step: bool = False):
        self.characters, self.sentences, self.step = characters, sentences, step

    def requests(self, failures: Sequence[Failure], k: int, rng: np.random.Generator) -> list[RolloutRequest]:
        return [
            RolloutRequest(
                failure.trajectory.task, self.prompt(failure), "repair", attempt, of=failure.trajectory.attempt
            )
            for failure in failures
            for attempt in attempts(failure, k)
        ]

    def prompt(self, failure: Failure, success: Trajectory | None = None) -> tuple[Message, ...]:
        """The repair prompt p_f: the task's messages, the last one extended; a `success` is quoted too (ours)."""
        *before, last = failure.trajectory.task.messages
        parts = [
            text_of(last),
            "",
            "An earlier attempt failed:",
            transcript(failure.trajectory.messages, self.characters),
        ]
        at_fault = fault(failure) if self.step else None
        if at_fault is not None:
            parts += ["The fault is here:", transcript(failure.trajectory.messages[at_fault : at_fault + 1])]
        if self.sentences:
            parts += ["What was wrong:", *feedback(failure)]
        if success is not None:
            parts += ["A later attempt succeeded:", transcript(success.messages, self.characters)]
        parts.append("Now do the task again, from the start, without these faults.")
        return (*before, {**last, "content": "\n".join(parts)})


class Resample:
    """The plain task again, with no feedback: rejection sampling, the baseline of every repair prompt."""

    shows_failure = False

    def requests(self, failures: Sequence[Failure], k: int, rng: np.random.Generator) -> list[RolloutRequest]:
        return [
            RolloutRequest(
                failure.trajectory.task,
                failure.trajectory.task.messages,
                "repair",
                attempt,
                of=failure.trajectory.attempt,
            )
            for failure in failures
            for attempt in attempts(failure, k)
        ]


def restarted(failure: Failure, cut: int, k: int) -> list[RolloutRequest]:
    """k requests that go on from the first `cut` messages of a failure, with the calls in them replayed."""
    trajectory = failure.trajectory
    prefix = trajectory.messages[:cut]
    replay = trajectory.calls[: trajectory.replayed + executed(trajectory, len(prefix))]
    return [
        RolloutRequest(
            trajectory.task,
            trajectory.prompt + prefix,
            "repair",
            attempt,
            replay,
            of=trajectory.attempt,
            observed=True,
        )
        for attempt in attempts(failure, k)
    ]


class Resume:
    """Restart just before the first step that a verifier faults; the executed calls before it are replayed.

    The prefix is prompt and gets no loss. If a replayed result differs from the recorded one, the episode is refused
    (an error on that candidate). A failure that no verifier locates is sampled again from its last message.
    """

    shows_failure = False

    def requests(self, failures: Sequence[Failure], k: int, rng: np.random.Generator) -> list[RolloutRequest]:
        return [request for failure in failures for request in restarted(failure, self.cut(failure), k)]

    def cut(self, failure: Failure) -> int:
        """Index of the assistant message to sample anew: the first one at fault."""
        messages = failure.trajectory.messages
        assistant = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
        if not assistant:
            return 0
        located = fault(failure)
        step = assistant[-1] if located is None else located
        return max((index for index in assistant if index <= step), default=assistant[0])


def executed(trajectory: Trajectory, length: int) -> int:
    """How many of the policy's executed calls stand in its first `length` messages.

    Calls run in the order in which they are written; one that never ran (of an unknown tool, say) has no record.
    """
    own = trajectory.calls[trajectory.replayed :]
    count = 0
    for message in trajectory.messages[:length]:
        for made in message.get("tool_calls") or ():
            function = made.get("function", made)
            written = (function.get("name"), function.get("arguments") or {})
            if count < len(own) and written == (own[count].name, own[count].arguments):
                count += 1
    return count


@hookimpl
def fate_trl_repairs() -> list[Component]:
    return [
        Component("reflect", Reflect, "the task, the failed trajectory and the verifiers' feedback as one prompt"),
        Component("resample", Resample, "the plain task again, no feedback"),
        Component("resume", Resume, "restart just before the first step at fault, state restored by replay"),
    ]
