"""Whether what trajectories have in common will be computed once, as `share_prefixes` asks."""

from __future__ import annotations

from collections.abc import Iterator

from .subject import Finding, Subject

_ADVICE = "It works, slower; to keep it quiet, set share_prefixes: false."


def prefix_findings(subject: Subject) -> Iterator[Finding]:
    """Nothing, where the recipe does not ask for it."""
    recipe = subject.recipe
    if not recipe.share_prefixes:
        return
    from ..train.prefix.support import of_config

    reason = of_config(subject.config)
    keys = recipe.rollout.trl
    if reason:
        yield Finding("prefixes", "warning", f"not shared: {reason}", _ADVICE)
    elif keys.get("use_vllm"):
        yield Finding("prefixes", "ok", "shared in training; in rollouts by vLLM's own prefix cache")
    elif keys.get("use_transformers_continuous_batching"):
        yield Finding("prefixes", "ok", "shared in training; continuous batching generates, which reads anew each turn")
    else:
        yield Finding("prefixes", "ok", "shared in rollouts and training, if a trial on the weights agrees")
