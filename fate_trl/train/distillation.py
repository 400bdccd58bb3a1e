"""Self-distillation on turns at fault: the policy moves towards what it says itself in hindsight.

Both sides end in the same turn, token for token; the teacher's prompt also holds the feedback and an accepted repair.
The teacher is the policy as the stage finds it: one that moved with the policy would be followed wherever both drift.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.functional import kl_div, pad
from transformers import Trainer
from trl.trainer.utils import use_adapter

Row = Mapping[str, Sequence[int]]
"""Tokens of a turn at fault: `student_ids` and `teacher_ids`, both with the turn at their end, and `turn_ids`."""


TEACHER = "ref"
"""Name of the adapter's copy; TRL's, so that what removes TRL's copy after a stage removes this one."""


def side(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Sequences of one side as the model's inputs (B, L), padded on the left, so that all end in one column."""
    width = max(map(len, rows))
    lacking = [width - len(row) for row in rows]
    ids = [pad(torch.tensor(row), (n, 0), value=pad_token_id) for row, n in zip(rows, lacking, strict=True)]
    seen = torch.stack([pad(torch.ones(width - n, dtype=torch.long), (n, 0)) for n in lacking])
    return {
        "input_ids": torch.stack(ids),
        "attention_mask": seen,
        "position_ids": (seen.cumsum(-1) - 1).clamp(min=0),
    }


def divergence(policy_B_T_V: torch.Tensor, teacher_B_T_V: torch.Tensor, reverse: bool) -> torch.Tensor:
    """KL of two sets of logits by token, (B, T), in nats: KL(teacher ‖ policy), or the other way round."""
    policy, teacher = (logits.float().log_softmax(-1) for logits in (policy_B_T_V, teacher_B_T_V))
    around, of = (teacher, policy) if reverse else (policy, teacher)
    return kl_div(around, of, reduction="none", log_target=True).sum(-1)


class DistillationTrainer(Trainer):
    """transformers' Trainer on rows of tokens, with the divergence between both sides of a turn as its loss.

    Args:
        model: The student. Of a full model a frozen copy becomes the teacher; of one with an adapter, its copy `ref`.
        args: TrainingArguments; all columns must reach the collator.
        rows: As `Row` says.
        tokenizer: Says what fills up.
        callbacks: As the trainer takes them.
        reverse: Minimise KL(policy ‖ teacher), which seeks a mode of the teacher's, instead of KL(teacher ‖ policy).
    """

    def __init__(self, model: Any, args: Any, rows: Sequence[Row], tokenizer: Any, callbacks: list[Any], reverse: bool):
        self.teacher: Any = None
        if hasattr(model, "peft_config"):
            model.add_adapter(TEACHER, model.peft_config["default"])
            set_peft_model_state_dict(model, get_peft_model_state_dict(model), adapter_name=TEACHER)
        else:
            self.teacher = copy.deepcopy(model).requires_grad_(False).eval()
        super().__init__(
            model=model,
            args=args,
            data_collator=self._collated,
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.reverse = reverse
        self.filler: int = tokenizer.pad_token_id
        self.model_accepts_loss_kwargs = False  # ours is a mean; so the Trainer divides it by the accumulated steps

    def _collated(self, rows: Sequence[Row]) -> dict[str, Any]:
        """A batch: both sides, and `turn` (B, T), 1 on the tokens of the turns."""
        sides = {
            name: side([row[f"{name}_ids"] for row in rows], self.filler) for name in ("student", "teacher", "turn")
        }
        return {**sides, "turn": sides["turn"]["attention_mask"]}

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """The mean divergence over the tokens of the batch's turns, in nats."""
        turn_B_T = inputs["turn"]
        kept = turn_B_T.shape[1] + 1  # the token before a turn predicts its first one
        teacher = self._taught(inputs["teacher"], kept)
        policy = model(**inputs["student"], logits_to_keep=kept).logits[:, :-1]
        apart_B_T = divergence(policy, teacher, self.reverse)
        mean: torch.Tensor = (apart_B_T * turn_B_T).sum() / turn_B_T.sum()
        return mean

    def _taught(self, inputs: Mapping[str, torch.Tensor], kept: int) -> torch.Tensor:
        """The teacher's logits, of the positions before each of the last `kept - 1` tokens."""
        model: Any = self.teacher
        as_adapter: Any = nullcontext()
        if model is None:
            model = self.accelerator.unwrap_model(self.model)
            as_adapter = use_adapter(model, TEACHER)
        training = model.training
        model.eval()
        with torch.no_grad(), as_adapter:
            logits: torch.Tensor = model(**inputs, logits_to_keep=kept).logits[:, :-1]
        model.train(training)
        return logits
