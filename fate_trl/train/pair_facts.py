"""What a pair loss may ask for beside the two sides of a pair, and the batch that all processes learn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from trl.trainer.utils import use_adapter

from ..choose.turns import turns_of
from ..errors import FateError
from ..hookspecs import PairBatch, PairLoss, PairSide
from ..record import stable_hash
from ..types import Pair

SEQUENCES = {"rationale": ("rationale",), "repair_prompt": ("repaired", "failed"), "own": ("own",)}
"""The further sequences of a pair by the fact that asks for them; each is a field of `PairBatch`."""

LACKING = {
    "rationale": "a rationale",
    "repair_prompt": "a repair prompt",
    "own": "a sample of the policy's own on the pair's prompt",
}


def needs_of(loss: PairLoss | None) -> tuple[str, ...]:
    """The further facts that a pair loss asks for."""
    return tuple(getattr(loss, "needs", ()))


def sequences_of(loss: PairLoss | None) -> tuple[str, ...]:
    """The further sequences that it asks for."""
    return tuple(name for fact in needs_of(loss) for name in SEQUENCES.get(fact, ()))


def key_of(pair: Pair) -> int:
    """A whole number that stands for a pair, in [0, 2^63); the policy's own samples are another each round."""
    return stable_hash(dataclasses.replace(pair, own_ids=(), own_mask=()).to_dict())


def fault_turn(pair: Pair) -> int:
    """The turn of the rejected side, counted over its mask, that a verifier faults; -1 if none says."""
    turns = turns_of(pair.rejected_mask)[slice(*pair.fault)] if pair.fault else ()
    return max(turns, default=-1)


def further_of(pair: Pair, loss: PairLoss | None, tokenizer: Any) -> dict[str, list[int]] | None:
    """The further sequences of a pair as columns of its row: what stands before each, its tokens, and its mask.

    None where the pair lacks one of them.
    """
    needs = needs_of(loss)
    found: dict[str, tuple[Sequence[int], Sequence[int], Sequence[int]]] = {}
    if "repair_prompt" in needs:
        if not pair.repair_prompt_ids:
            return None
        found["repaired"] = (pair.repair_prompt_ids, pair.chosen_ids, pair.chosen_mask)
        found["failed"] = (pair.repair_prompt_ids, pair.rejected_ids, pair.rejected_mask)
    if "rationale" in needs:
        said = tokenizer(pair.feedback, add_special_tokens=False)["input_ids"] if pair.feedback else []
        if not said or not pair.rejected_ids:
            return None
        found["rationale"] = ((*pair.prompt_ids, *pair.rejected_ids), said, [1] * len(said))
    if "own" in needs:
        if not any(pair.own_mask):
            return None
        found["own"] = (pair.prompt_ids, pair.own_ids, pair.own_mask)
    return {
        f"{name}_{column}": list(values)
        for name, columns in found.items()
        for column, values in zip(("before", "ids", "mask"), columns, strict=True)
    }


def check_pairs(pairs: Sequence[Pair], loss: PairLoss | None, tokenizer: Any) -> None:
    """Raises FateError where no pair has what its loss needs."""
    if pairs and all(further_of(pair, loss, tokenizer) is None for pair in pairs):
        lacking = " and ".join(LACKING[fact] for fact in needs_of(loss) if fact in SEQUENCES)
        raise FateError(
            f"the pair loss {type(loss).__name__} needs {lacking}, and none of {len(pairs)} pairs has one: take a "
            "repair strategy that shows the failure, verifiers that give feedback, or another loss."
        )


def prompt_counts(prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """How often each token of a batch's prompts occurs in each of them, (B, D).

    Tokens with which all of them begin alike are left out, unless nothing else is there.
    """
    shared = 0
    while all(len(prompt) > shared for prompt in prompts) and len({prompt[shared] for prompt in prompts}) == 1:
        shared += 1
    rests = [list(prompt)[shared:] for prompt in prompts]
    if not all(rests):
        rests = [list(prompt) for prompt in prompts]
    known = {token: at for at, token in enumerate(sorted({token for rest in rests for token in rest}))}
    counts_B_D = torch.zeros(len(rests), len(known))
    for counts_D, rest in zip(counts_B_D, rests, strict=True):
        counts_D.index_add_(0, torch.tensor([known[token] for token in rest]), torch.ones(len(rest)))
    return counts_B_D


# ------------------------------------------------------------------------------------------------ log-probabilities


def log_probs(model: Any, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A model's log-probability of each token but the first, (rows, L - 1), as TRL's patched forward gives it; 0 at
    those that the completion mask leaves out."""
    labels = tokens["input_ids"].masked_fill(tokens["completion_mask"] == 0, -100)
    given = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    found: torch.Tensor = model(**given, labels=labels, use_cache=False, fused_lm_head=True).log_probs
    return found[:, 1 - labels.shape[1] :]


@contextmanager
def reference_of(trainer: Any) -> Iterator[Any]:
    """A DPO trainer's reference model, without gradients: its frozen copy, or the model with the copied adapter."""
    with torch.no_grad():
        if trainer.ref_model is not None:
            yield trainer.ref_model
            return
        adapted = trainer.accelerator.unwrap_model(trainer.model)
        with use_adapter(adapted, "ref" if "ref" in adapted.peft_config else None):
            yield trainer.model


def further_sides(trainer: Any, model: Any, tokens: Mapping[str, torch.Tensor]) -> dict[str, PairSide]:
    """The further sequences of a batch, which stand below each other in `tokens`, by name."""
    names = sequences_of(trainer.pair_loss)
    logps = log_probs(model, tokens)
    with reference_of(trainer) as reference:
        ref_logps = log_probs(reference, tokens)
    parts = zip(*(each.chunk(len(names)) for each in (logps, ref_logps, tokens["turns"][:, 1:])), strict=True)
    return dict(zip(names, (PairSide(*part) for part in parts), strict=True))


# ------------------------------------------------------------------------------------------------ what is learned from


def of_all(batch: PairBatch, accelerator: Any) -> PairBatch:
    """A batch without gradients, and with the pairs of all processes; prompts are left out where there are several."""

    def gathered(value: Any, fill: int = 0) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if accelerator.num_processes == 1:
            return value.detach()
        if value.ndim > 1:
            value = accelerator.pad_across_processes(value, dim=1, pad_index=fill)
        return accelerator.gather(value.detach())

    def side(given: PairSide | None) -> PairSide | None:
        if given is None:
            return None
        values = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
        return PairSide(**{name: gathered(value, -1 if name == "turn_B_T" else 0) for name, value in values.items()})

    values: dict[str, Any] = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    if accelerator.num_processes > 1:
        values["prompt_B_D"] = None
    made: dict[str, Any] = {n: side(v) if isinstance(v, PairSide) else gathered(v) for n, v in values.items()}
    return PairBatch(**made)
