"""The preference stage: TRL's DPO losses on pairs of trajectories, with loss on the policy's own tokens of all turns.

DPOTrainer's own way from data to loss does not fit trajectories: it wants text, and its collator takes everything after
the prompt for the policy's words, tool results too. So pairs come as tokens with masks, and our collator passes the
masks on as TRL's `completion_mask`: from there on all is TRL's, its sums of that mask (in `ipo`, `sigmoid_norm` and
`sft`) included. The reference is the model as the stage finds it; of a full model TRL would load the hub's weights.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import DPOConfig, DPOTrainer

from ..choose.turns import turns_of
from ..hookspecs import PairBatch, PairLoss, PairSide
from ..ledger.components import metrics_of, restore, states_of
from ..types import Pair
from .pair_facts import (
    fault_turn,
    further_of,
    further_sides,
    key_of,
    log_probs,
    needs_of,
    of_all,
    prompt_counts,
    sequences_of,
)
from .plugin_loss import scalar
from .reference import complete_reference

logger = logging.getLogger(__name__)

SETTINGS = {"max_length": None, "remove_unused_columns": False}
"""What differs from DPOConfig's defaults: nothing is cut off, as in SFT, and all columns reach the collator."""


WRONG_WAY = (
    "the preference stage ended with the chosen side ahead in %.0f %% of the pairs, fewer than half: it learned the "
    "wrong way. discopop does so from its reference on where discopop_tau is below 0.11."
)


SIDES = ("chosen", "rejected")
FACTS = ("turns", "score_gap", "key", "fault", "first", "prompts", "further")
"""What a batch holds for pair losses alone. TRL hands the model all that it does not know, so these are taken out."""


@dataclass
class PairCollator:
    """A batch as DPOTrainer wants it: the chosen sides and below them the rejected ones, padded on the right.

    Attributes:
        pad_token_id: Fills up.
        max_length: Tokens to keep of a side, its prompt included, from its start; None keeps all.
        multiple: The width is one of this; None for any.
        loss: The pair loss, which may ask for further facts.
    """

    pad_token_id: int
    max_length: int | None = None
    multiple: int | None = None
    loss: PairLoss | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Tensors of 2 B rows: `input_ids`, `attention_mask`, `completion_mask` (1 on the policy's own tokens), and
        `FACTS` for pair losses: `turns` of the same shape, -1 elsewhere; numbers of the B pairs; what they need."""
        parts = [(row["prompt_ids"], row[f"{side}_ids"], row[f"{side}_mask"]) for side in SIDES for row in rows]
        batch: dict[str, Any] = self._tokens(parts)
        batch["score_gap"] = torch.tensor([row["score_gap"] for row in rows], dtype=torch.float32)
        batch |= {name: torch.tensor([row[name] for row in rows]) for name in ("key", "fault")}
        if "chosen_first" in rows[0]:
            firsts = [torch.tensor(row[f"{side}_first"]) for side in SIDES for row in rows]
            first = pad_sequence(firsts, batch_first=True)
            batch["first"] = torch.nn.functional.pad(first, (0, batch["turns"].shape[1] - 1 - first.shape[1]))
        if "prompts" in needs_of(self.loss):
            batch["prompts"] = prompt_counts([row["prompt_ids"] for row in rows])
        if further := sequences_of(self.loss):
            columns = ("before", "ids", "mask")
            batch["further"] = self._tokens([[row[f"{name}_{c}"] for c in columns] for name in further for row in rows])
        return batch

    def _tokens(self, parts: Sequence[Sequence[Sequence[int]]]) -> dict[str, Any]:
        """Sequences, each what stands before, what follows, and the mask of that, as tensors below each other."""
        ids = [[*before, *after][: self.max_length] for before, after, _ in parts]
        masks = [([0] * len(before) + list(mask))[: self.max_length] for before, _, mask in parts]
        return {
            "input_ids": self._padded(ids, self.pad_token_id),
            "attention_mask": self._padded([[1] * len(side) for side in ids], 0),
            "completion_mask": self._padded(masks, 0),
            "turns": self._padded([turns_of(mask).tolist() for mask in masks], -1),
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
        first_policy: Within it the model has the weights that the run began with; None where the stage begins with
            them.
    """

    def __init__(
        self,
        model: Any,
        args: DPOConfig,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        callbacks: list[Any],
        pair_loss: PairLoss | None = None,
        first_policy: Callable[[], AbstractContextManager[Any]] | None = None,
    ):
        has_adapter = hasattr(model, "peft_config")
        multiple = int(args.pad_to_multiple_of) if args.pad_to_multiple_of else None
        super().__init__(
            model=model,
            ref_model=None if has_adapter else copy.deepcopy(model).requires_grad_(False).eval(),
            args=args,
            data_collator=PairCollator(tokenizer.pad_token_id, args.max_length, multiple, pair_loss),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        complete_reference(self.model)
        self.pair_loss = pair_loss
        if pair_loss is not None:
            self.loss_types, self.loss_weights = [], []
            self.add_callback(LossState(pair_loss))
        if first_policy is not None and "first_policy" in needs_of(pair_loss):
            with first_policy():
                self.train_dataset = Dataset.from_list([{**row, **self._first(row)} for row in rows])

    def _first(self, row: Any) -> dict[str, list[float]]:
        """The log-probabilities of a pair's sides under the weights that the model has, as columns."""
        model: Any = self.model
        model.eval()
        tokens = self.data_collator([row])
        with torch.no_grad():
            logps = log_probs(model, {name: t.to(model.device) for name, t in tokens.items() if name != "further"})
        sizes = [side.sum().item() - 1 for side in tokens["attention_mask"]]
        sides = zip(SIDES, logps, sizes, strict=True)
        return {f"{name}_first": values[:size].float().cpu().tolist() for name, values, size in sides}

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, or the plugin's on the log-probabilities that TRL's own calls of both models give."""
        of_trl: Any = super().compute_loss
        inputs = dict(inputs)
        facts = {name: inputs.pop(name) for name in FACTS if name in inputs}
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
        return trls + self._of_plugin(self.pair_loss, self._batch(model, logps, facts))

    def _batch(self, model: Any, logps: Sequence[torch.Tensor], facts: Mapping[str, Any]) -> PairBatch:
        """What the loss is told; of `logps` the policy's come first, then the reference's, each (2 B, L - 1)."""
        first = facts.get("first", logps[1] if "first_policy" in needs_of(self.pair_loss) else None)
        known = [*logps, facts["turns"][:, 1:], *([] if first is None else [first])]
        chosen, rejected = (PairSide(*side) for side in zip(*(values.chunk(2) for values in known), strict=True))
        batch = PairBatch(
            chosen, rejected, facts["score_gap"], self.beta, facts["key"], facts["fault"], facts.get("prompts")
        )
        more: Any = further_sides(self, model, facts["further"]) if "further" in facts else {}
        return replace(batch, **more)

    def _of_plugin(self, loss: Any, batch: PairBatch) -> Any:
        """The plugin's loss, which then learns from the batch if it does, in training."""
        value = scalar(loss(batch), loss, "pair loss")
        if hasattr(loss, "learn") and torch.is_grad_enabled():
            loss.learn(of_all(batch, self.accelerator))
        for name, number in metrics_of(loss).items():
            self._metrics["train"][f"loss/{name}"] = [number]
        return value

    @property
    def head_fields(self) -> tuple[str, ...]:
        """What it asks TRL's head for beside log-probabilities, for its metrics and for WPO's weights."""
        return ("mean_logits", *(("log_sum_sq_probs",) if self.use_weighting else ()))

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """The rows are tokens already."""
        return dataset


class LossState(TrainerCallback, ExportableState):
    """The state of a pair loss goes into checkpoints, and comes back where a training goes on from one."""

    def __init__(self, loss: PairLoss):
        self.components = {"pair-loss": loss}

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": states_of(self.components)}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:
            restore(self.components, state.stateful_callbacks[type(self).__name__]["attributes"])


def rows_of(
    pairs: Sequence[Pair], max_length: int | None, loss: PairLoss | None = None, tokenizer: Any = None
) -> list[dict[str, Any]]:
    """Pairs as rows for the trainer.

    Those are left out that lack what the loss needs, or keep no own token of a side within `max_length` tokens; a side
    may be empty from the start where the loss is `unpaired`.
    """
    rows = []
    for pair in pairs:
        further = further_of(pair, loss, tokenizer)
        if further is None:
            continue
        names = ("prompt_ids", "chosen_ids", "chosen_mask", "rejected_ids", "rejected_mask")
        row: dict[str, Any] = {name: list(getattr(pair, name)) for name in names}
        sides = [(row["prompt_ids"], row[f"{side}_mask"]) for side in SIDES]
        if getattr(loss, "unpaired", False) and any(any(mask) for _, mask in sides):
            sides = [(before, mask) for before, mask in sides if any(mask)]
        sides += [(further[f"{name}_before"], further[f"{name}_mask"]) for name in sequences_of(loss)]
        if all(any(mask[: None if max_length is None else max(0, max_length - len(p))]) for p, mask in sides):
            numbers = {"score_gap": pair.score_gap, "key": key_of(pair), "fault": fault_turn(pair)}
            rows.append({**row, **further, **numbers})
    return rows


def tokens_in(row: Mapping[str, Any]) -> int:
    """Tokens of a pair's sides, each with its prompt, and of its further sequences."""
    sequences = (values for name, values in row.items() if name.endswith(("_ids", "_before")))
    return len(row["prompt_ids"]) + sum(map(len, sequences))


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


def told_of(
    trainer: PairTrainer, rows: Sequence[Mapping[str, Any]], log: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The stage's record: `summary_of`, what it took, and what the pair loss says of itself. Warns of the wrong way."""
    told = {"rows": len(rows), **summary_of(rows, log)}
    if told.get("accuracy", 1) < 0.5 and told["margin"] < 0:  # pairs that have not moved yet are not ahead
        logger.warning(WRONG_WAY, 100 * told["accuracy"])
    told["trained_tokens"] = round(sum(map(tokens_in, rows)) * (trainer.state.epoch or 0))
    learned = metrics_of(trainer.pair_loss)
    return {**told, "pair_loss": learned} if learned else told
