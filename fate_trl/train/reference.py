"""The reference of TRL's trainers: all of the policy that the training begins with, or a saved policy in its place."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig

from .models import policy_in, take_weights

ADAPTER = "ref"
"""TRL's name for the copy of the adapter that it compares with."""


def complete_reference(model: Any) -> None:
    """Give the adapter that TRL compares with what its copy leaves out, so that the training begins at its reference.

    TRL copies the weights in whose names the adapter's stands in the middle. It stands at the end in those of rows of
    trained tokens (`trainable_token_indices`) and of LoRA on embeddings: those would be as before any training.
    """
    weights = dict(model.named_parameters())
    for name, own in weights.items():
        copy = weights.get(f"{name.removesuffix('default')}{ADAPTER}")
        if name.endswith(".default") and copy is not None:
            copy.data.copy_(own.data)


def set_reference(trainer: Any, folder: str) -> None:
    """Make a saved policy the reference of a GRPOTrainer or DPOTrainer that has one, and that has not trained yet.

    The frozen copy of a full model takes its weights. Beside an adapter, TRL's copy of that goes, and the saved adapter
    takes its name; it may be of another rank. Random state is left as it is, so the training draws what it would draw.

    Raises:
        LedgerError: The weights are not there, or do not fit.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.ref_model is not None:
        take_weights(trainer.accelerator.unwrap_model(trainer.ref_model), folder, None)
        return
    own = {name: weights.dtype for name, weights in model.named_parameters() if f".{ADAPTER}." in name}
    with policy_in(folder):
        config = LoraConfig.from_pretrained(folder)
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        model.delete_adapter(ADAPTER)
        model.add_adapter(ADAPTER, config)
    take_weights(model, folder, ADAPTER)
    for name, dtype in own.items():
        weights = model.get_parameter(name)
        weights.requires_grad_(False)
        weights.data = weights.data.to(dtype)
