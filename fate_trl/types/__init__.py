"""The data that flows through the house, one way: Task → Trajectory → ScoreCard → Failure → Repair → buffer row.

Every record is a frozen dataclass that round-trips through JSON (`to_dict`, `from_dict`), so a run directory can be
read back, re-scored and exported without the code that made it. Nothing here imports anything heavy. names.py has
the names that they are made of: kinds, objectives, causes, stages.
"""

from __future__ import annotations

import math
import numbers
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import OutOfRange
from ..messages import Message, answer_of
from ..record import Record
from .names import KINDS, OBJECTIVES, PASS_AT, TRAINING, Cause, Kind, Stage, StopReason, pass_mark

__all__ = [
    "KINDS",
    "OBJECTIVES",
    "PASS_AT",
    "TRAINING",
    "BufferRow",
    "Case",
    "Cause",
    "Failure",
    "Hindsight",
    "Kind",
    "Outcome",
    "Pair",
    "Repair",
    "RolloutRequest",
    "Score",
    "ScoreCard",
    "Script",
    "Stage",
    "Status",
    "StopReason",
    "Task",
    "ToolCall",
    "Trajectory",
    "pass_mark",
]

# ------------------------------------------------------------------------------------------------ tasks


@dataclass(frozen=True)
class Task(Record):
    """One thing to ask of a policy.

    Attributes:
        id: Unique within its suite; any text (it is never used as a path).
        suite: Name of the suite that opens it, as the recipe names it.
        kind: "benign", "attacked" (its environment holds an injection) or "harmful" (must be refused).
        messages: Prompt messages, system and user.
        tools: Names of the tools it offers, a subset of `Suite.tools()`.
        cluster: Id of the user task behind it; intervals are clustered by this.
        split: "train", "validation" or "test".
        tags: Free labels, such as "look-alike" or "attack:important_instructions".
        data: Whatever the suite needs to open it; JSON values only.
    """

    id: str
    suite: str
    kind: Kind
    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    cluster: str = ""
    split: str = "train"
    tags: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Script(Record):
    """What a scripted policy does on a task: tool calls in order, then one final message.

    Attributes:
        calls: (name, arguments) pairs as {"name": ..., "arguments": {...}}.
        answer: Text of the final assistant message.
    """

    calls: tuple[dict[str, Any], ...] = ()
    answer: str = ""


# ------------------------------------------------------------------------------------------------ trajectories


@dataclass(frozen=True)
class ToolCall(Record):
    """A call as the environment *executed* it; messages are not proof that a call ran.

    Attributes:
        name: Tool name.
        arguments: Arguments by name.
        result: Text handed back to the policy.
        fault: "" if it ran; "arguments" if they did not fit the tool; "raised" if the tool refused or failed.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    result: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Outcome(Record):
    """What an episode states at its end; facts, which verifiers turn into scores.

    Attributes:
        utility: How much of the legitimate task was done, in [0, 1]; None where there is none (harmful tasks).
        attacked: Whether the attacker's goal was reached; None where there is no attack.
        harm: Share of the harmful work done, in [0, 1]; None on tasks that are not harmful.
        exposed: Whether the injected text entered the policy's context; None where there is no attack.
        fault: Why the suite's grader stumbled over what the *policy* did; utility then scores 0.
        info: More facts of the suite, JSON values only; `metrics` reads the suite's own metrics from "metrics".
        injected: The texts that the attacker planted, as written; a tool may show them wrapped or escaped. For readers
            (the viewer marks them): no verifier or policy needs them.
        yielded: Security lost to an attack, in [0, 1], where the suite grades it; None where all or nothing is lost.
    """

    utility: float | None = None
    attacked: bool | None = None
    harm: float | None = None
    exposed: bool | None = None
    fault: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    injected: tuple[str, ...] = ()
    yielded: float | None = None


@dataclass(frozen=True)
class Trajectory(Record):
    """One finished episode of a policy on a task.

    Attributes:
        task: The task.
        prompt: Messages that the policy was given: the task's, or a repair's, and what the environment said at first.
        messages: What followed: assistant and tool messages.
        calls: Executed calls, replayed ones (`replayed` of them, first) included.
        outcome: The episode's facts; None if no episode was run (plain TRL scripts) or if it broke.
        stop: Why it ended, one of `StopReason`.
        error: Reason of an *infrastructure* error; "" if there was none. Such a row is never scored as 0.
        cause: Its kind, one of `Cause`; "" if there was none.
        stage, attempt: With task.id the key inside one round; the stage is one of `Stage`, "" outside a run.
        replayed: Number of leading calls that were replayed, not made by the policy.
        prompt_ids, completion_ids, policy_mask: Token ids as sampled; mask 1 where the policy wrote the token.
        policy: Name of what produced it.
        data: More of the producer; JSON values only.
    """

    task: Task
    prompt: tuple[Message, ...] = ()
    messages: tuple[Message, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    outcome: Outcome | None = None
    stop: StopReason = "answer"
    error: str = ""
    cause: Cause | Literal[""] = ""
    stage: Stage | Literal[""] = ""
    attempt: int = 0
    replayed: int = 0
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    policy_mask: tuple[int, ...] = ()
    policy: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, int]:
        """(stage, suite, task id, attempt): unique within a round."""
        return (self.stage, self.task.suite, self.task.id, self.attempt)

    @property
    def answer(self) -> str:
        """What the last assistant message says, its thoughts aside (`answer_of`), "" if there is none."""
        for message in reversed(self.messages):
            if message.get("role") == "assistant":
                return answer_of(message)
        return ""


@dataclass(frozen=True)
class RolloutRequest(Record):
    """What to roll out: a task, the prompt to use for it, and calls to replay before the policy starts.

    Attributes:
        task: The task whose environment is opened, fresh.
        messages: The prompt; `task.messages` for a first try, a repair prompt otherwise.
        stage: The stage that asks, one of `Stage`; "" outside a run.
        attempt: Number of the try, its own within (stage, task).
        replay: Executed calls of an earlier trajectory to restore its state from; the policy goes on after them.
            The episode is refused (an error on the record) if a replayed result differs.
        of: On a repair, the `attempt` of the failed try of this task that it repairs; None on other requests.
        observed: `messages` hold already what the environment says at first; it is appended to them where they do not.
        weights: By objective, what the prompt says that they count; {} where it says nothing.
        success: A trajectory of the task that resolved it, under whatever prompt, to learn from where all tries fail.
    """

    task: Task
    messages: tuple[Message, ...]
    stage: Stage | Literal[""] = "collect"
    attempt: int = 0
    replay: tuple[ToolCall, ...] = ()
    of: int | None = None
    observed: bool = False
    weights: dict[str, float] = field(default_factory=dict)
    success: Trajectory | None = None


# ------------------------------------------------------------------------------------------------ scores

Status = Literal["ok", "not_applicable", "error"]


@dataclass(frozen=True)
class Score(Record):
    """One objective of one trajectory: a value, *not applicable*, or *error with a reason*.

    Attributes:
        value: In [0, 1], higher is better; None unless the status is "ok".
        status: "ok", "not_applicable" or "error".
        reason: Why; always given for an error.
        cause: The error's kind, one of `Cause`; "" unless the status is "error".
        feedback: One sentence that the policy can act on, without the oracle's answer.
        step: Index into `Trajectory.messages` of the message at fault; None if there is no single one.
        spread: Standard deviation among the members of an ensemble, in [0, 0.5]; None for a single judge.
    """

    value: float | None = None
    status: Status = "ok"
    reason: str = ""
    feedback: str = ""
    step: int | None = None
    cause: Cause | Literal[""] = ""
    spread: float | None = None

    def __post_init__(self) -> None:
        if self.status not in typing.get_args(Status):
            raise ValueError(f"a score's status is one of {', '.join(typing.get_args(Status))}, not {self.status!r}")
        if self.status == "ok":
            if not isinstance(self.value, numbers.Real) or not math.isfinite(self.value) or not 0 <= self.value <= 1:
                raise OutOfRange(f"a score is a finite number in [0, 1], not {self.value!r}")
            object.__setattr__(self, "value", float(self.value))  # a NumPy number would not be JSON
        elif self.value is not None:
            raise ValueError(f"a score with status {self.status!r} has no value")
        if not isinstance(self.reason, str) or not isinstance(self.feedback, str):
            raise ValueError("a score's reason and feedback are texts")
        if not (self.step is None or isinstance(self.step, int)):
            raise ValueError(f"a score's step is the number of a message, not {self.step!r}")

    @classmethod
    def not_applicable(cls, reason: str = "") -> Score:
        return cls(status="not_applicable", reason=reason)

    @classmethod
    def error(cls, reason: str, cause: Cause = "no_verdict") -> Score:
        return cls(status="error", reason=reason or "no reason given", cause=cause)


@dataclass(frozen=True)
class ScoreCard(Record):
    """The scores of one trajectory, one per objective.

    Attributes:
        scores: By objective, in the order that the recipe asked for.
        held_out: By objective, the scores of verifiers that only evaluate. Nothing is selected, trained, accepted or
            left out by them: `errors`, `failed`, `resolved` and `vector` do not see them.
    """

    scores: dict[str, Score]
    held_out: dict[str, Score] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", dict(self.scores))
        object.__setattr__(self, "held_out", dict(self.held_out))

    @property
    def errors(self) -> dict[str, str]:
        """Reason by objective, of infrastructure errors. A card with any leaves fronts, baselines and metrics."""
        return {name: score.reason for name, score in self.scores.items() if score.status == "error"}

    @property
    def failed(self) -> tuple[str, ...]:
        """Objectives that apply and lie below their `PASS_AT`."""
        return tuple(
            name for name, score in self.scores.items() if score.value is not None and score.value < pass_mark(name)
        )

    @property
    def resolved(self) -> bool:
        """Every applicable objective passes, and at least one applies, and none is an error."""
        applicable = any(score.value is not None for score in self.scores.values())
        return applicable and not self.errors and not self.failed

    def vector(self, objectives: Sequence[str]) -> list[float]:
        """Values in the given order; NaN where an objective does not apply or is an error (see `errors`)."""
        values = (self.scores[name].value if name in self.scores else None for name in objectives)
        return [math.nan if value is None else float(value) for value in values]


Case = tuple[Trajectory, ScoreCard]
"""A trajectory with its scores."""


@dataclass(frozen=True)
class Failure(Record):
    """A trajectory with at least one applicable objective below its pass mark."""

    trajectory: Trajectory
    card: ScoreCard


@dataclass(frozen=True)
class Repair(Record):
    """What became of one failure: its candidates, and which one was chosen, how and why.

    Attributes:
        failure: The failure.
        candidates: The executed candidates.
        cards: Their scores, in the same order.
        accepted: Indices of the candidates that the acceptance rule let through.
        front: Indices (into `candidates`) of the Pareto front of the accepted ones.
        chosen: Index of a*; None if there was no acceptable candidate.
        decided_by: "only", "front" (one distinct member) or the name of the tie-break.
    """

    failure: Failure
    candidates: tuple[Trajectory, ...] = ()
    cards: tuple[ScoreCard, ...] = ()
    accepted: tuple[int, ...] = ()
    front: tuple[int, ...] = ()
    chosen: int | None = None
    decided_by: str = ""


@dataclass(frozen=True)
class BufferRow(Record):
    """One supervised example. Loss falls on policy tokens only.

    Either token ids as sampled (`prompt_ids`, `completion_ids`, `policy_mask`), which are trained on as they are,
    or `messages` (prompt and reply), which the learner renders; then loss falls on the assistant messages
    from index `loss_from` on.

    Attributes:
        source: "repair", "anchor" (a passing first try) or "oracle" (warm start).
        suite, task: Where it comes from.
        round: Round that made it.
        tools: Names of the tools to render with `messages`.
    """

    source: str
    suite: str
    task: str
    round: int = 0
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    policy_mask: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()
    loss_from: int = 0
    tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair(Record):
    """A repair and something worse, the failure say, as two continuations of one prompt, the plain task's.

    Attributes:
        suite, task: Where it comes from.
        round: Round that made it.
        prompt_ids: Tokens of the prompt, as the policy was given it when it failed.
        chosen_ids, rejected_ids: What followed in the repair and in the failure, as sampled; tool results included.
        chosen_mask, rejected_mask: 1 where the policy wrote the token, and the other side does not begin alike.
        score_gap: Mean over the objectives that have a value on both sides of what the repair scores more, in [-1, 1]
            (ours).
        failure, repair: The `Trajectory.attempt` of the rejected side, and of the repair in "repair"; -1 for a side
            that is empty, as in pairs of one side.
        rejected_stage: The rejected side's stage, "collect" or "repair".
        rejected_round: The round that made the rejected side; 0 for `round` itself.
        feedback: The verifiers' sentences on the rejected side; "" if there are none.
        fault: Where in `rejected_ids` the turn begins and ends that a verifier faults; () if none says.
        repair_prompt_ids: Tokens of the prompt that the repair answered, where that showed a failure.
        own_ids, own_mask: What the policy wrote after the prompt just before it learned from pairs; () if not asked.
    """

    suite: str
    task: str
    round: int
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    chosen_mask: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    rejected_mask: tuple[int, ...]
    score_gap: float
    failure: int
    repair: int
    rejected_stage: Stage = "collect"
    rejected_round: int = 0
    feedback: str = ""
    fault: tuple[int, ...] = ()
    repair_prompt_ids: tuple[int, ...] = ()
    own_ids: tuple[int, ...] = ()
    own_mask: tuple[int, ...] = ()


@dataclass(frozen=True)
class Hindsight(Record):
    """One turn of a repaired failure, and the prompt of a teacher that knows what became of it (ours).

    Attributes:
        suite, task: Where it comes from.
        round: Round that made it.
        prompt_ids: Tokens of the plain prompt, as the policy was given it when it failed.
        before_ids: What followed up to the turn, tool results included.
        turn_ids: The turn, as it was sampled.
        teacher: The teacher's prompt, as messages: the plain one with the feedback and an accepted repair.
        tools: Names of the tools that it is rendered with.
        failure, repair: The `Trajectory.attempt` of the failure in "collect", and of the repair in "repair".
    """

    suite: str
    task: str
    round: int
    prompt_ids: tuple[int, ...]
    before_ids: tuple[int, ...]
    turn_ids: tuple[int, ...]
    teacher: tuple[Message, ...]
    tools: tuple[str, ...]
    failure: int
    repair: int
