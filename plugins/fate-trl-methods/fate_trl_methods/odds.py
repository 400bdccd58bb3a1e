"""Log-probabilities of given tokens under a frozen model; the one file here that needs torch, imported when used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from fate_trl import RecipeError


def load(path: str, device: str) -> Any:
    """A frozen causal language model. Raises RecipeError where there is none."""
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"implicit-reward: no model can be loaded from {path}: {error}") from None
    return model.to(device).eval().requires_grad_(False)


@torch.inference_mode()
def log_probabilities(
    model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], width: int
) -> np.ndarray:
    """Log-probability of each token of the completions after its prompt and those before it, (N, width), in nats.

    0 behind the end of a completion. Rows are padded on the right, where causal attention does not look.
    """
    out_N_T = np.zeros((len(prompts), width))
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    ids = torch.zeros((len(rows), max(map(len, rows), default=0)), dtype=torch.long)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = torch.tensor(row, dtype=torch.long)
    if not ids.numel():
        return out_N_T
    ids = ids.to(model.device)
    logs = model(input_ids=ids).logits[:, :-1].float().log_softmax(dim=-1)
    own = logs.gather(2, ids[:, 1:, None])[:, :, 0].double().cpu().numpy()
    for n, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        out_N_T[n, : len(completion)] = own[n, len(prompt) - 1 : len(prompt) - 1 + len(completion)]
    return out_N_T
