"""The record of one step of generating and scoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..types import ScoreCard, Trajectory
from .facts import Fact


@dataclass
class Step:
    """What a step holds, from its entry to its end; a trainer that is in none has no such record.

    Attributes:
        mode: "train" or "eval", fixed on entry: continuous batching switches the model to training mode in the middle
            of an evaluation.
        collecting: It is a rollout, which ends after `_generate`.
        prompts: What was last generated from.
        generated: Prompt ids, completion ids, tool masks (or None) and completions, as `_generate` returned them.
        zero_signal_G: Groups of the batch last scored whose score vectors are all equal.
        advantages_B: The selector's own advantages, over all processes, where it sets them.
        column: While the selector's column is there: the matrix that it was added to, the user's weights, its name.
        as_given: The trainer's attributes that are bound to something else for the time being, as they were.
        facts: Of this process's rows, where the selector asks for them.
        learned: The selector has learned from this step; it does so once.
        columns: What a policy loss and callbacks want to know of the rows, over all processes, (B,) by name.
        rows: Of the data set, what the batch is being made of.
        known: Its trajectories and their scores, where they are known before rewards are asked for.
        tokens: What was counted on this process so far, by name.
    """

    mode: str
    collecting: bool = False
    prompts: Sequence[Any] = ()
    generated: tuple[Any, ...] | None = None
    zero_signal_G: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    advantages_B: torch.Tensor | None = None
    column: tuple[torch.Tensor, torch.Tensor, str] | None = None
    as_given: dict[str, Any] = field(default_factory=dict)
    facts: Sequence[Fact] = ()
    learned: bool = False
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    known: tuple[list[Trajectory], list[ScoreCard]] | None = None
    tokens: Counter[str] = field(default_factory=Counter)
