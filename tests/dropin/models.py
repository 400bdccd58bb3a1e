"""Models: given as a module or a path, whole, with a new or an existing adapter, quantized."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from typing import Any

import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from . import Setup, row

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}


def folder_of(model: Any, tokenizer: Any) -> str:
    """A folder with the model and its tokenizer, for as long as this process lives; TRL names things by its name."""
    parent = tempfile.mkdtemp(prefix="fate-trl-dropin-")
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    folder = f"{parent}/tiny"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def on_disk(tokenizer: Any) -> str:
    return folder_of(tiny.make_model(tokenizer), tokenizer)


def adapted(tokenizer: Any) -> Any:
    """A model that has an adapter already, with weights of its own."""
    model = tiny.make_model(tokenizer)
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(**LORA))


def untied(tokenizer: Any) -> LlamaForCausalLM:
    config = tiny.make_model(tokenizer).config
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(torch.bfloat16)


def dropping(tokenizer: Any) -> LlamaForCausalLM:
    config = tiny.make_model(tokenizer).config
    config.attention_dropout = 0.2
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def experts(tokenizer: Any) -> MixtralForCausalLM:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_local_experts": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer), **small, **heads, **ids))


@row("models", "a path, with model_init_kwargs")
def _() -> Setup:
    return Setup(model=on_disk, args={"model_init_kwargs": {"dtype": "float32"}})


@row("models", "a reference model (beta), kept in sync")
def _() -> Setup:
    sync = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
    return Setup(model=on_disk, args={"beta": 0.1, "max_steps": 3, **sync})


@row("models", "a reference model without the KL term's correction")
def _() -> Setup:
    return Setup(model=on_disk, args={"beta": 0.1, "max_steps": 3, "use_bias_correction_kl": False})


@row("models", "PEFT, a new adapter", fast=True)
def _() -> Setup:
    return Setup(more={"peft_config": LoraConfig(**LORA)}, args={"beta": 0.1})


@row("models", "PEFT, an existing adapter, its copy as reference")
def _() -> Setup:
    return Setup(model=adapted, args={"beta": 0.1})


@row("models", "quantization_config: bitsandbytes, 4 bits, a new adapter", needs="bitsandbytes")
def _() -> Setup:
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return Setup(model=on_disk, more={"quantization_config": four, "peft_config": LoraConfig(**LORA)})


@row("models", "bfloat16, the head cast to float32")
def _() -> Setup:
    return Setup(model=untied, args={"cast_lm_head_to_fp32": True})


@row("models", "dropout, disabled")
def _() -> Setup:
    return Setup(model=dropping, args={"disable_dropout": True})


@row("models", "dropout")
def _() -> Setup:
    return Setup(model=dropping)


@row("models", "gradient checkpointing")
def _() -> Setup:
    return Setup(args={"gradient_checkpointing": True})


@row("models", "a mixture of experts, router_aux_loss_coef")
def _() -> Setup:
    return Setup(model=experts, args={"router_aux_loss_coef": 0.1})
