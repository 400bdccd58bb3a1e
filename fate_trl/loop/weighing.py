"""Prompts that carry weights: what each objective counts in this answer, in words the policy reads (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..messages import Message, text_of
from ..types import RolloutRequest


def weighed(request: RolloutRequest, weights: Mapping[str, float]) -> RolloutRequest:
    """The request with weights in its system message; a task without one gets one."""
    said = sentence(weights)
    first, *rest = request.messages
    messages: tuple[Message, ...] = ({"role": "system", "content": said}, *request.messages)
    if first.get("role") == "system":
        messages = ({**first, "content": f"{text_of(first)}\n\n{said}"}, *rest)
    return replace(request, messages=messages, weights=dict(weights))


def sentence(weights: Mapping[str, float]) -> str:
    """What the policy reads: each weight in hundredths."""
    return "Weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()) + "."


def drawn(
    requests: Sequence[RolloutRequest], objectives: Sequence[str], alpha: float, rng: np.random.Generator
) -> list[RolloutRequest]:
    """Each request with weights of its own, from a symmetric Dirichlet distribution, in hundredths."""
    draws_R_M = rng.dirichlet([alpha] * len(objectives), len(requests)).round(2)
    return [
        weighed(request, dict(zip(objectives, weights_M.tolist(), strict=True)))
        for request, weights_M in zip(requests, draws_R_M, strict=True)
    ]


def equal(objectives: Sequence[str]) -> dict[str, float]:
    """All alike."""
    return {name: round(1 / len(objectives), 2) for name in objectives}
