"""Whether prefixes can be shared: by a model's configuration, by how a trainer is set up, and by a trial.

What cannot share is trained as TRL does it, and the reason is said once.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..models import keep_gradients
from . import attention  # noqa: F401  it registers the attention that takes `causal_head`
from .cache import additive_or_boolean
from .rollouts import Sampling

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""How far logits of a trial in float32 may differ, relative to the largest (ours); in other types 100 times as far."""

_said: set[str] = set()


def say(what: str, reason: str) -> None:
    """Log, once per process, why something is done as TRL does it."""
    line = f"{what} as TRL does it, prefixes are not shared: {reason}."
    if line not in _said:
        _said.add(line)
        logger.warning(line)


def of_config(config: Any) -> str:
    """Why a model of this configuration cannot share prefixes; "" if nothing in it says so. No weights are needed."""
    text = config.get_text_config()
    if text is not config:
        return f"{config.model_type} takes more than text"
    if getattr(config, "is_encoder_decoder", False):
        return f"{config.model_type} has an encoder"
    implementation = getattr(config, "_attn_implementation", None) or "sdpa"
    if implementation not in ("sdpa", "eager"):
        return f"the attention {implementation!r} takes no mask of its own; leave attn_implementation out"
    kinds = {type(layer) for layer in DynamicCache(config=config).layers} - {DynamicLayer}
    if kinds:
        names = {name for name in getattr(config, "layer_types", None) or () if name != "full_attention"}
        return f"{config.model_type} has layers without a full cache ({', '.join(sorted(names)) or 'sliding window'})"
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        return f"the positions of {config.model_type} ({kind}) depend on how long the longest row is"
    return ""


def of_trial(model: Any) -> str:
    """Why a model cannot share prefixes, by trying: two rows with one beginning, packed and cached, beside plain ones.

    It catches what no configuration says, such as positions that are counted from a batch's padding.
    """
    size = min(model.get_input_embeddings().weight.shape[0], 1000)
    ids = [(7 * i * i + 3 * i + 1) % size for i in range(12)]
    device = model.device
    training = model.training
    keep_gradients(model)
    model.eval()
    try:
        with torch.no_grad():
            padded = torch.tensor([[0, 0, *ids[:8]], [*ids[:6], *ids[8:]]], device=device)
            mask = torch.ones_like(padded)
            mask[0, :2] = 0
            plain = model(input_ids=padded, attention_mask=mask, use_cache=False).logits[:, -1].float()
            # One sequence: six tokens in common, then two of the first row, then four of the second.
            seen = torch.ones(12, 12, dtype=torch.bool).tril()
            seen[8:, 6:8] = False
            packed = model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([[*range(8), *range(6, 10)]], device=device),
                attention_mask=additive_or_boolean(seen[None, None].to(device), model),
                use_cache=False,
                logits_to_keep=torch.tensor([7, 11], device=device),
                causal_head=8,
            ).logits[0]
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        return f"{type(model).__name__} cannot be called with a mask and positions of ours ({error})"
    finally:
        model.train(training)
    limit = TOLERANCE * (1 if model.dtype == torch.float32 else 100)
    if packed.shape != plain.shape or (packed.float() - plain).abs().max() > limit * plain.abs().max():
        return f"{type(model).__name__} answers otherwise where rows share a sequence"
    return ""


def of_trainer(trainer: Any) -> str:
    """Why a trainer's model and wrapper cannot share prefixes, in rollouts or updates; "" if they can."""
    if getattr(trainer, "_is_vlm", False):
        return "the model takes images"
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return "FSDP and DeepSpeed split the weights, and gather them once per call"
    if getattr(trainer, "aux_loss_enabled", False):
        return "the balancing loss of experts counts every row's tokens"
    if getattr(trainer.accelerator, "parallelism_config", None) is not None:
        return "sequences are split over devices"
    model = trainer.accelerator.unwrap_model(trainer.model)
    peft = getattr(model, "peft_config", {})
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in peft.values()):
        return "the adapter puts tokens before the prompt"
    causal = model.get_base_model() if peft else model
    return of_config(causal.config) or of_trial(causal)


def of_generation(trainer: Any) -> str:
    """Why a trainer that may share prefixes in updates cannot do so in rollouts."""
    if trainer.rollout_func is not None:
        return "rollout_func generates in its own way"
    if trainer.use_vllm:
        return "vLLM generates, which has a prefix cache of its own"
    if trainer.use_transformers_continuous_batching:
        return "continuous batching generates"
    model = trainer.accelerator.unwrap_model(trainer.model)
    return Sampling.unsupported(trainer.generation_config) or Sampling.unsupported(model.generation_config)
