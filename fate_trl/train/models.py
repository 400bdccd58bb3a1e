"""A recipe's model: its folder, loaded with its tokenizer, and an adapter merged into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from ..recipe.schema import EMBEDDED, SMOLLM2, Model
from ..suites.workbench import POLICIES
from . import gguf, templates

ADAPTER = "adapter_model.safetensors"


def model_folder(model: Model) -> str:
    """Where `model.path` points: a folder, or a hub id as it is."""
    if model.path in EMBEDDED:
        return str(POLICIES[EMBEDDED[model.path]])
    if model.path == SMOLLM2:
        return str(gguf.cached())
    folder = Path(model.path).expanduser()
    return str(folder) if folder.is_dir() else model.path


def load_model(model: Model) -> tuple[Any, Any]:
    """(model, tokenizer) as the recipe asks: precision, 4 bits, LoRA.

    Raises:
        RecipeError: The chat template cannot render tool calls, or a package is missing.
    """
    folder = model_folder(model)
    tokenizer: Any = templates.prepare(AutoTokenizer.from_pretrained(folder, revision=model.revision), model)
    quantization = None
    if model.load_in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, revision=model.revision, dtype=getattr(torch, model.dtype), quantization_config=quantization
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.lora is not None:
        # Not peft's prepare_model_for_kbit_training: its copy of embeddings and head in float32 is 5 GB of an 8B model,
        # and what else it does TRL does too.
        loaded = get_peft_model(loaded, LoraConfig(task_type="CAUSAL_LM", **model.lora.model_dump()))
    if model.adapter is not None:
        set_peft_model_state_dict(loaded, load_file(Path(model.adapter) / ADAPTER))
    return loaded, tokenizer


def merge_adapter(model: Model, adapter: Path, target: str) -> None:
    """Write the model with an adapter of `model.lora`'s size merged into its weights, and its tokenizer, to a folder.

    The base is loaded in full: merging into 4-bit weights would lose what the adapter learned.
    """
    loaded, tokenizer = load_model(model.model_copy(update={"adapter": str(adapter), "load_in_4bit": False}))
    loaded.merge_and_unload().save_pretrained(target)
    tokenizer.save_pretrained(target)
