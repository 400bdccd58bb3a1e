"""What a saved policy thinks of given tokens: loaded for one batch, asked, and given back."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch

from ..errors import FateError
from ..recipe.schema import Model
from .models import load_model, load_weights

Row = tuple[Sequence[int], Sequence[int]]
"""Token ids, and a mask of the same length: 1 on those that count."""


def log_likelihoods_of(model: Model, rows: Sequence[Row], batch: int) -> list[float]:
    """Log-probability, in nats and at temperature 1, of each row's counted tokens, each after all before it.

    The model stands on the GPU if there is one, and is given back at the end. The random state is left as it is.

    Args:
        model: As in a recipe, with its adapter.
        rows: The tokens.
        batch: Rows that go through the model together.

    Raises:
        FateError: The model's vocabulary is smaller than a token's number.
        RecipeError: The model cannot be loaded.
    """
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # an adapter's first weights are drawn
        loaded = load_model(model)[0] if model.train_tokens else load_weights(model)
    try:
        loaded.to("cuda" if torch.cuda.is_available() and not model.load_in_4bit else loaded.device).eval()
        words = loaded.get_input_embeddings().num_embeddings
        if (highest := max((max(ids) for ids, _ in rows), default=0)) >= words:
            raise FateError(f"a trajectory has the token {highest}, and {model.path} has {words}: it is another model.")
        order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
        found = dict.fromkeys(order, 0.0)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            found.update(zip(chosen, _sums(loaded, [rows[row] for row in chosen]), strict=True))
        return [found[row] for row in range(len(rows))]
    finally:
        del loaded
        gc.collect()
        torch.cuda.empty_cache()


def _sums(model: torch.nn.Module, rows: Sequence[Row]) -> list[float]:
    """Padded on the right, where a causal model sees nothing of it."""
    device = next(model.parameters()).device
    ids, masks = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(list(part)) for part in parts], batch_first=True).to(device)
        for parts in zip(*rows, strict=True)
    )
    there = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row, _ in rows], True)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=there.to(device), use_cache=False).logits
        sums = []
        for each, own, mask in zip(logits, ids, masks, strict=True):  # a row at a time: float32 logits are large
            kept = mask[1:].bool()
            scored = each[:-1][kept].float().log_softmax(-1)
            sums.append(float(scored.gather(1, own[1:][kept, None]).sum()))
    return sums
