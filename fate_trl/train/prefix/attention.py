"""Attention of a sequence that holds several rows, without most of the pairs that its mask hides.

A kernel that is given a mask computes every pair and throws the hidden ones away. But the first row of a packed
sequence stands in it as it is: its tokens see all before them and nothing else. So they go through the causal kernel,
which skips what is ahead, over their own keys only, and just the tokens after them through the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    causal_head: int = 0,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention "sdpa"; with `causal_head`, of which so many tokens of the sequence are a plain row."""
    if not causal_head or attention_mask is None:
        return _sdpa(module, query, key, value, attention_mask, **given), None
    head, rest = query.tensor_split([causal_head], dim=2)
    out = _sdpa(module, head, key[:, :, :causal_head], value[:, :, :causal_head], None, **{**given, "is_causal": True})
    if rest.size(2):
        out = torch.cat([out, _sdpa(module, rest, key, value, attention_mask[:, :, causal_head:], **given)], dim=1)
    return out, None


def _sdpa(*tensors: Any, **given: Any) -> torch.Tensor:
    out: torch.Tensor = sdpa_attention_forward(*tensors, **given)[0]
    return out


AttentionInterface.register("sdpa", attention)  # the same for every call that does not give `causal_head`
