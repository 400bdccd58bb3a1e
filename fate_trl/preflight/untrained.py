"""Tokens that a chat template demands and that a model was never trained on.

A call format may hang on special tokens, such as `<tool_call>`. A model family shares one vocabulary, and a member that
was not trained on tool calls has such tokens with embedding rows as they were initialised. It cannot write them, and
LoRA on linear layers cannot teach it to. Their rows look like those of the ids that no token has: a vocabulary is
padded to a round size, and nothing ever trains the padding. Only these rows are read, so no model loads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..messages import Message
from ..train import templates

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""Endings of the input embedding's name in a file of weights."""

LEAST_UNUSED = 4
"""Fewer unused rows tell nothing (ours)."""

ALIKE = 0.999
"""A row is untrained where its cosine with the mean unused row is at least this, and its length the same to 2 % (ours).

In Qwen2.5-Coder-0.5B the untrained call tags have 1.0000, and trained special tokens at most .93.
"""

_CHUNK = 4096


def demanded(tokenizer: Any, call: dict[str, Any], tools: Sequence[Any]) -> list[int]:
    """Ids of the added tokens that the policy must write to make a call, as the template renders one."""
    messages: list[Message] = [{"role": "user", "content": "hi"}]
    _, ids = templates.written(tokenizer, messages, call, tools)
    added = set(tokenizer.added_tokens_decoder)
    return list(dict.fromkeys(id for id in ids if id in added))


def untrained(folder: Path, tokens: int, ids: Sequence[int]) -> list[int]:
    """Those of `ids` whose embedding equals the unused rows; [] where the folder cannot tell.

    Args:
        folder: A folder of safetensors.
        tokens: Number of tokens that the tokenizer has; rows from there on are unused.
        ids: Token ids to look at.
    """
    found = _embedding(folder)
    if found is None or not ids:
        return []
    rows, size = found
    if size - tokens < LEAST_UNUSED:
        return []
    unused = np.concatenate([rows(start, min(start + _CHUNK, size)) for start in range(tokens, size, _CHUNK)])
    mean = unused.mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length == 0 or float(np.linalg.norm(unused - mean, axis=1).mean()) > 0.05 * length:
        return []  # the padding has no common value to compare with
    return [id for id in ids if id < tokens and _alike(rows(id, id + 1)[0], mean, length)]


def _alike(row: NDArray[np.float32], mean: NDArray[np.float32], length: float) -> bool:
    norm = float(np.linalg.norm(row))
    return norm > 0 and float(row @ mean) / (norm * length) >= ALIKE and abs(norm / length - 1) < 0.02


def _embedding(folder: Path) -> tuple[Any, int] | None:
    """(rows from, to) -> float32 array, and the number of rows, of the input embedding; None where it is not found."""
    from safetensors import safe_open

    for file in _files(folder):
        with safe_open(file, framework="pt") as weights:
            name = next((key for key in weights.keys() if key.endswith(EMBEDDINGS)), None)  # noqa: SIM118
            if name is None:
                continue
            size = weights.get_slice(name).get_shape()[0]

        def rows(start: int, stop: int, file: Path = file, name: str = name) -> NDArray[np.float32]:
            with safe_open(file, framework="pt") as weights:
                array: NDArray[np.float32] = weights.get_slice(name)[start:stop].float().numpy()
                return array

        return rows, size
    return None


def _files(folder: Path) -> list[Path]:
    """Files of weights, those first that the index says hold an embedding."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        where = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        named = {folder / file for key, file in where.items() if key.endswith(EMBEDDINGS)}
        return sorted(file for file in named if file.is_file())
    return sorted(folder.glob("*.safetensors"))
