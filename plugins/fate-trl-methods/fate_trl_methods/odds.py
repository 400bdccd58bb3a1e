"""Log-probabilities of given tokens under a frozen model; the one file here that needs torch, imported when used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from fate_trl.errors import RecipeError


def load(path: str, device: str) -> Any:
    """A frozen causal language model. Raises RecipeError where there is none."""
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"implicit-reward: no model can be loaded from {path}: {error}") from None
    return model.to(device).eval().requires_grad_(False)


@torch.inference_mode()
def log_probabilities(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> np.ndarray:
    """Log-probability of each token of the completion after the prompt and those before it, (T,), in nats."""
    if not len(completion):
        return np.zeros(0)
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    own = logits.log_softmax(dim=-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    return np.asarray(own.double().cpu().numpy())
