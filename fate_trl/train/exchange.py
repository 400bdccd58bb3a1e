"""A success in groups of PFPO whose rows all fail: one of them is exchanged for the repair of the same task.

Where all rows of a group fail alike there is nothing to compare. A request may bring a trajectory along that did
succeed, under another prompt: that of a repair. It takes the place of the group's last row, behind the plain prompt,
before TRL computes anything of the batch, so log-probabilities, rewards and advantages are of what then stands there.
Source: Scaf-GRPO, the authors' code: one failed row gives way to a hinted success. Ours: the success is the round's
chosen repair, and it must resolve by this training's verifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from accelerate.utils import gather_object

from ..types import ScoreCard, Trajectory
from ..verify.scoring import score_all
from .step import Step


def exchange(trainer: Any, step: Step, generated: tuple[Any, ...]) -> tuple[Any, ...]:
    """What `_generate` returned, with successes in it. `step` keeps the trajectories and their scores for what follows.

    Every process calls this.
    """
    trajectories = trainer._trajectories(step.rows, step.prompts, generated[:4])
    cards = judged(trainer, trajectories)
    given = _successes(trainer, step, trajectories, gather_object([card.resolved for card in cards]))
    scored = judged(trainer, list(given.values())) if given else []
    masks = None if generated[2] is None else list(generated[2])
    ids, completions = list(generated[1]), list(generated[3])
    taken = 0
    for (row, success), card in zip(given.items(), scored, strict=True):
        if not card.resolved or (masks is None and not all(success.policy_mask)):
            continue
        taken += 1
        trajectories[row], cards[row] = success, card
        ids[row] = list(success.completion_ids)
        completions[row] = [dict(message) for message in success.messages]
        if masks is not None:
            masks[row] = list(success.policy_mask)
    trainer._metrics[step.mode]["exchanged_groups"].append(float(sum(gather_object([taken]))))
    exchanged = (generated[0], ids, masks, completions, *generated[4:])
    step.generated, step.known = exchanged[:4], (trajectories, cards)
    return exchanged


def judged(trainer: Any, trajectories: Sequence[Trajectory]) -> list[ScoreCard]:
    """What a trainer's verifiers say."""
    with trainer.spent.on("verifying"):
        return score_all(trainer._verifiers, trajectories, trainer._verifier_seconds)


def _successes(
    trainer: Any, step: Step, trajectories: Sequence[Trajectory], resolved: Sequence[bool]
) -> dict[int, Trajectory]:
    """By the number of this process's row, what may take its place, as if it had been sampled there."""
    size, first = trainer.num_generations, trainer.accelerator.process_index * len(trajectories)
    found = {}
    for row, (given, sampled) in enumerate(zip(step.rows, trajectories, strict=True)):
        success: Trajectory | None = getattr(given.get("request"), "success", None)
        at = first + row + 1
        if success is None or at % size or any(resolved[at - size : at]):
            continue
        if len(success.completion_ids) <= trainer.max_completion_length:
            told: dict[str, Any] = {"prompt": sampled.prompt, "prompt_ids": sampled.prompt_ids, "data": sampled.data}
            found[row] = replace(success, stage=sampled.stage, attempt=sampled.attempt, **told)
    return found
