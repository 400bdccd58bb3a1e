"""Buffer rows as what SFT learns from: token ids, and labels on the policy's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import FateError
from ..types import BufferRow
from . import templates


def tokens_of(row: BufferRow, tokenizer: Any, tools: Sequence[Any], **kwargs: Any) -> dict[str, list[int]]:
    """A buffer row as `input_ids` and `labels`, −100 where there is no loss. Sampled tokens are taken as they are.

    Keyword arguments go to the chat template.

    Messages are rendered one more at a time, so each one's tokens are what the template adds for it; that needs a
    prefix-preserving template, and raises FateError where it is not.
    """
    if row.completion_ids:
        ids = [*row.prompt_ids, *row.completion_ids]
        kept = zip(row.completion_ids, row.policy_mask, strict=True)
        return {"input_ids": ids, "labels": [-100] * len(row.prompt_ids) + [i if own else -100 for i, own in kept]}
    ids, labels = [], []
    for end in range(row.loss_from, len(row.messages) + 1):
        speaks = end > row.loss_from and row.messages[end - 1]["role"] == "assistant"
        following = end < len(row.messages) and row.messages[end]["role"] == "assistant"
        if not speaks and not following:
            continue  # one of several tool results in a row: rendered with the last of them
        full = templates.render(tokenizer, row.messages[:end], tools, add_generation_prompt=not speaks, **kwargs)
        if full[: len(ids)] != ids:
            raise FateError("the chat template is not prefix-preserving: a longer conversation renders differently")
        new = full[len(ids) :]
        stop = len(new)
        if speaks and tokenizer.eos_token_id in new:
            stop = len(new) - new[::-1].index(tokenizer.eos_token_id)  # a newline after the end is not sampled
        ids += new[:stop]
        labels += new[:stop] if speaks else [-100] * stop
    return {"input_ids": ids, "labels": labels}
