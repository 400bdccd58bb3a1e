"""The preference stage: TRL's DPO losses on pairs of trajectories, with loss on the policy's own tokens of all turns.

DPOTrainer's own way from data to loss does not fit trajectories: it wants text, and its collator takes everything after
the prompt for the policy's words, tool results too. So pairs come as tokens with masks, and our collator passes the
masks on as TRL's `completion_mask`: from there on all is TRL's, its sums of that mask (in `ipo`, `sigmoid_norm` and
`sft`) included. The reference is the model as the stage finds it; of a full model TRL would load the hub's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl import DPOConfig, DPOTrainer

from ..choose.turns import turns_of
from ..errors import PluginError
from ..hookspecs import PairBatch, PairLoss, PairSide
from ..types import Pair

SETTINGS = {"max_length": None, "remove_unused_columns": False}
"""What differs from DPOConfig's defaults: nothing is cut off, as in SFT, and all columns reach the collator."""


WRONG_WAY = (
    "the preference stage ended with the chosen side ahead in %.0f %% of the pairs, fewer than half: it learned the "
    "wrong way. discopop does so from its reference on: start it after another loss."
)


@dataclass
class PairCollator:
    """A batch as DPOTrainer wants it: the chosen sides and below them the rejected ones, padded on the right.

    Attributes:
        pad_token_id: Fills up.
        max_length: Tokens to keep of a side, its prompt included, from its start; None keeps all.
        multiple: The width is one of this; None for any.
    """

    pad_token_id: int
    max_length: int | None = None
    multiple: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors of 2 B rows: `input_ids`, `attention_mask`, `completion_mask` (1 on the policy's own tokens), and for
        pair losses `turns` (of the same shape, -1 elsewhere) and `score_gap` (B)."""
        sides = [(row, side) for side in ("chosen", "rejected") for row in rows]
        ids = [[*row["prompt_ids"], *row[f"{side}_ids"]][: self.max_length] for row, side in sides]
        masks = [[0] * len(row["prompt_ids"]) + list(row[f"{side}_mask"]) for row, side in sides]
        return {
            "input_ids": self._padded(ids, self.pad_token_id),
            "attention_mask": self._padded([[1] * len(side) for side in ids], 0),
            "completion_mask": self._padded([mask[: self.max_length] for mask in masks], 0),
            "turns": self._padded([turns_of(mask)[: self.max_length].tolist() for mask in masks], -1),
            "score_gap": torch.tensor([row["score_gap"] for row in rows], dtype=torch.float32),
        }

    def _padded(self, rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
        missing = -padded.shape[1] % (self.multiple or 1)
        return torch.nn.functional.pad(padded, (0, missing), value=value)


class PairTrainer(DPOTrainer):
    """DPOTrainer on rows that are tokens with masks; see `rows_of`.

    Args:
        model: What is trained. Of a full model a frozen copy becomes the reference; of one with an adapter TRL copies
            the adapter.
        args: Its configuration, with `SETTINGS`.
        rows: From `rows_of`.
        tokenizer: Says what fills up.
        callbacks: As the trainer takes them.
        pair_loss: Minimised in the place of TRL's losses; TRL then computes its metrics alone.
    """

    def __init__(
        self,
        model: Any,
        args: DPOConfig,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        callbacks: list[Any],
        pair_loss: PairLoss | None = None,
    ):
        has_adapter = hasattr(model, "peft_config")
        multiple = int(args.pad_to_multiple_of) if args.pad_to_multiple_of else None
        super().__init__(
            model=model,
            ref_model=None if has_adapter else copy.deepcopy(model).requires_grad_(False).eval(),
            args=args,
            data_collator=PairCollator(tokenizer.pad_token_id, args.max_length, multiple),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.pair_loss = pair_loss
        if pair_loss is not None:
            self.loss_types, self.loss_weights = [], []

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, or the plugin's on the log-probabilities that TRL's own calls of both models give."""
        of_trl: Any = super().compute_loss
        inputs = dict(inputs)  # TRL hands the model all that it does not know
        turns_2B_L, score_gap_B = inputs.pop("turns"), inputs.pop("score_gap")
        if self.pair_loss is None:
            return of_trl(model, inputs, *args, **kwargs)
        logps: list[torch.Tensor] = []  # the policy's, then the reference's
        called = [self.accelerator.unwrap_model(each) for each in (self.model, self.ref_model) if each is not None]
        hooks = [each.register_forward_hook(lambda _, __, out: logps.append(out.log_probs)) for each in called]
        try:
            trls = of_trl(model, inputs, *args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        sides = zip(*(values.chunk(2) for values in (*logps, turns_2B_L[:, 1:])), strict=True)
        chosen, rejected = (PairSide(*side) for side in sides)
        return trls + _scalar(self.pair_loss(PairBatch(chosen, rejected, score_gap_B, self.beta)), self.pair_loss)

    @property
    def head_fields(self) -> tuple[str, ...]:
        """What it asks TRL's head for beside log-probabilities, for its metrics and for WPO's weights."""
        return ("mean_logits", *(("log_sum_sq_probs",) if self.use_weighting else ()))

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """The rows are tokens already."""
        return dataset


def _scalar(loss: Any, of: PairLoss) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.requires_grad:
        raise PluginError(
            f"the pair loss {type(of).__name__} returned {str(loss)[:80]}; it returns a scalar tensor with a gradient."
        )
    return loss


def rows_of(pairs: Sequence[Pair], max_length: int | None) -> list[dict[str, Any]]:
    """Pairs as rows for the trainer; those that keep no own token of a side within `max_length` tokens are left out."""
    rows = []
    for pair in pairs:
        room = None if max_length is None else max(0, max_length - len(pair.prompt_ids))
        if any(pair.chosen_mask[:room]) and any(pair.rejected_mask[:room]):
            sides = ("prompt_ids", "chosen_ids", "chosen_mask", "rejected_ids", "rejected_mask")
            row: dict[str, Any] = {name: list(getattr(pair, name)) for name in sides}
            rows.append({**row, "score_gap": pair.score_gap})
    return rows


@contextmanager
def dropout_kept(model: torch.nn.Module) -> Iterator[None]:
    """TRL turns a model's dropout off for good (`disable_dropout`); after this the next stage finds it as it was."""
    found = {module: module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    try:
        yield
    finally:
        for module, p in found.items():
            module.p = p


def summary_of(rows: Sequence[Mapping[str, Any]], log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the stage's record says of the pairs: the policy's tokens a side, and how the training told them apart.

    `margin` is how much more the chosen side gained on the reference than the rejected one, times beta; `accuracy` the
    share of pairs where it did. Both are means over the last quarter of the logged steps.
    """
    out: dict[str, Any] = {
        f"{side}_tokens_mean": sum(sum(row[f"{side}_mask"]) for row in rows) / len(rows)
        for side in ("chosen", "rejected")
    }
    for name, key in (("margin", "rewards/margins"), ("accuracy", "rewards/accuracies")):
        values = [entry[key] for entry in log if entry.get(key) is not None]
        last = values[-max(1, len(values) // 4) :]
        out |= {name: sum(last) / len(last)} if last else {}
    return out
