"""What the record of a stage counts: trajectories, failures, repairs, errors, tokens, memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from ..messages import text_of
from ..metrics import causes, is_error
from ..types import Case, Repair, Stage, Trajectory
from ..verify.written import written_call
from .repairing import failures_of


def measured(stage: str, round: int, *, warm_start: bool, rounds: int) -> tuple[str, str]:
    """(split, policy) that an evaluation stage measured; the policy has no round's name before the first round."""
    _, split, *policy = stage.split("-", 2)
    untrained = "warm-start" if warm_start else "base" if rounds else "model"  # "model": a run that only evaluates
    return split, policy[0] if policy else f"round-{round}" if round else untrained


def evaluation(split: str, policy: str = "") -> Stage:
    """The stage that measures a policy on a split, the learner itself where none is named; `measured` reads it."""
    return cast(Stage, f"eval-{split}-{policy}" if policy else f"eval-{split}")


def peak_memory() -> dict[str, float]:
    """Most memory, in MB, that this process has held since it began, so the figure never falls from stage to stage."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def tokens(cases: Iterable[Case]) -> dict[str, int]:
    """Tokens of rollouts: read by the policy (prompts and tool results, each once), and sampled by it.

    Where an endpoint sampled, its own count is taken.
    """
    prompt = sampled = 0
    for trajectory, _ in cases:
        usage, own = trajectory.data.get("usage", {}), sum(trajectory.policy_mask)
        prompt += len(trajectory.prompt_ids) + len(trajectory.policy_mask) - own or usage.get("prompt_tokens", 0)
        sampled += own or usage.get("completion_tokens", 0)
    return {"prompt_tokens": prompt, "sampled_tokens": sampled}


def tokens_of_round(stages: Mapping[str, Mapping[str, Any]]) -> int:
    """Tokens that the stages of a round read, sampled and trained on; evaluation on the test split is left out."""
    counted = ("prompt_tokens", "sampled_tokens", "trained_tokens")
    used = [record for name, record in stages.items() if not name.startswith("eval-test")]
    return sum(record.get(key) or 0 for record in used for key in counted)


def errors(cases: Sequence[Case]) -> dict[str, Any]:
    """Infrastructure errors of a stage's rollouts: how many trajectories, and how many for each `types.Cause`."""
    return {"errors": sum(map(is_error, cases)), "causes": causes(cases)}


def unread_calls(cases: Iterable[Case]) -> dict[str, int]:
    """How many endings look like calls, where not one call of the whole stage was read; {} where any was, or none."""
    trajectories = [trajectory for trajectory, _ in cases]
    said = [message for trajectory in trajectories for message in trajectory.messages]
    if any(message.get("tool_calls") for message in said):
        return {}
    unread = sum(map(_ends_in_a_call, trajectories))
    return {"unread_calls": unread} if unread else {}


def empty_replies(cases: Iterable[Case]) -> dict[str, int]:
    """How many trajectories there are, errors aside, where not one of a stage holds a word or a call; {} where any."""
    trajectories = [trajectory for trajectory, _ in cases if not trajectory.error]
    said = [m for trajectory in trajectories for m in trajectory.messages if m.get("role") == "assistant"]
    if not trajectories or any(message.get("tool_calls") or text_of(message).strip() for message in said):
        return {}
    return {"empty_replies": len(trajectories)}


def _ends_in_a_call(trajectory: Trajectory) -> bool:
    last = trajectory.messages[-1] if trajectory.messages else {}
    return last.get("role") == "assistant" and written_call(last, trajectory.task.tools)


def collect_summary(cases: Sequence[Case]) -> dict[str, Any]:
    """Counts of a collect stage."""
    return {
        "trajectories": len(cases),
        "failures": len(failures_of(cases)),
        "resolved": sum(card.resolved for _, card in cases),
        **unread_calls(cases),
        **empty_replies(cases),
        **errors(cases),
        **tokens(cases),
    }


def repair_summary(repairs: Sequence[Repair]) -> dict[str, Any]:
    """Counts of a repair stage. Chosen candidates that are not resolved have a count of their own, to be seen."""
    chosen = [(repair, repair.chosen) for repair in repairs if repair.chosen is not None]
    decided: dict[str, int] = {}
    for repair, _ in chosen:
        decided[repair.decided_by] = decided.get(repair.decided_by, 0) + 1
    return {
        "failures": len(repairs),
        "candidates": sum(len(repair.candidates) for repair in repairs),
        "candidates_resolved": sum(card.resolved for repair in repairs for card in repair.cards),
        "candidates_accepted": sum(len(repair.accepted) for repair in repairs),
        **errors([case for repair in repairs for case in zip(repair.candidates, repair.cards, strict=True)]),
        "repaired": len(chosen),
        "chosen_not_resolved": sum(not repair.cards[index].resolved for repair, index in chosen),
        "decided_by": decided,
    }
