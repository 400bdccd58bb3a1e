"""A recipe's model: its folder, loaded with its tokenizer, and an adapter merged into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import TrainableTokensWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from ..errors import LedgerError, RecipeError
from ..recipe.lora import taken_for_a_model
from ..recipe.schema import EMBEDDED, SMOLLM2, Model
from ..suites.workbench import POLICIES
from . import gguf, templates

ADAPTER = "adapter_model.safetensors"

NOISE = 0.1
"""Noise on the first rows of `model.train_tokens`, in standard deviations of the embedding (ours)."""


def model_folder(model: Model) -> str:
    """Where `model.path` points: a folder, or a hub id as it is."""
    if model.path in EMBEDDED:
        return str(POLICIES[EMBEDDED[model.path]])
    if model.path == SMOLLM2:
        return str(gguf.cached())
    folder = Path(model.path).expanduser()
    return str(folder) if folder.is_dir() else model.path


@contextmanager
def _explained(model: Model) -> Iterator[None]:
    """Within, what transformers cannot find or read is a RecipeError in a sentence."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"model.path: {model.path!r} cannot be loaded: {reason}") from error


def dtype_of(model: Model) -> torch.dtype:
    """Of the weights; `auto`, where no run has settled it, is float32 on a CPU and bfloat16 on a GPU."""
    name = model.dtype
    if name == "auto":
        name = "bfloat16" if torch.cuda.is_available() else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_model(model: Model) -> tuple[Any, Any]:
    """(model, tokenizer) as the recipe asks: precision, 4 bits, LoRA.

    Raises:
        RecipeError: The chat template cannot render tool calls, or a package is missing.
    """
    folder = model_folder(model)
    with _explained(model):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, revision=model.revision)
    templates.prepare(tokenizer, model)
    loaded = load_weights(model, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return loaded, tokenizer


def load_weights(model: Model, tokenizer: Any = None) -> Any:
    """The model without a tokenizer of its own; one is needed only where the recipe trains rows of tokens."""
    folder, quantization = model_folder(model), None
    if model.load_in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    with _explained(model):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, revision=model.revision, dtype=dtype_of(model), quantization_config=quantization
        )
    if getattr(loaded, "_hf_peft_config_loaded", False):  # on the hub, where nothing is looked at before
        raise taken_for_a_model(model.path)
    if model.lora is not None:
        # Not peft's prepare_model_for_kbit_training: its copy of embeddings and head in float32 is 5 GB of an 8B model,
        # and what else it does TRL does too.
        trained = _train_tokens(loaded, tokenizer, model.train_tokens)
        settings = {**model.lora.model_dump(), "trainable_token_indices": trained}
        loaded = get_peft_model(loaded, LoraConfig(task_type="CAUSAL_LM", **settings))
        head = loaded.get_output_embeddings()
        if isinstance(head, TrainableTokensWrapper):  # tied to embeddings; TRL asks it for what peft does not hand on
            head.bias = head.original_module.bias
    if model.adapter is not None:
        set_peft_model_state_dict(loaded, load_file(Path(model.adapter) / ADAPTER))
    keep_gradients(loaded)
    return loaded


def keep_gradients(model: Any) -> None:
    """Leave 4-bit weights as they are on a CPU with AVX512-BF16.

    bitsandbytes 0.50 lays them out anew in the first forward in eval mode, and no gradient flows through them since.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _train_tokens(loaded: Any, tokenizer: Any, words: Sequence[str]) -> list[int] | None:
    """Ids of the tokens whose embedding rows are to be trained; the rows start as the mean of all, and a little noise.

    An untrained row says nothing about its token, and equal rows could not be told apart. The noise depends on the id
    alone, so that every load of the model starts alike.

    Raises:
        RecipeError: A word is not one token of the vocabulary.
    """
    if not words:
        return None
    vocabulary = tokenizer.get_vocab()
    unknown = [word for word in words if word not in vocabulary]
    if unknown:
        raise RecipeError(f"model.train_tokens: {unknown[0]!r} is no token of this model's vocabulary.")
    ids = sorted({vocabulary[word] for word in words})
    with torch.no_grad():
        for layer in (loaded.get_input_embeddings(), loaded.get_output_embeddings()):
            weight = layer.weight
            mean, spread = weight[: len(tokenizer)].mean(dim=0), weight[: len(tokenizer)].std(dim=0)
            for id in ids:
                noise = torch.randn(len(mean), generator=torch.Generator().manual_seed(id)).to(weight)
                weight[id] = mean + NOISE * spread * noise
            if loaded.config.tie_word_embeddings:
                break  # the head is the same matrix
    return ids


@contextmanager
def policy_in(folder: str | Path) -> Iterator[None]:
    """Within, what cannot be read of a saved policy, or does not fit, is a LedgerError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise LedgerError(
            f"the policy in {folder} cannot be loaded: {error}. `fate-trl fsck RUN --repair` puts it aside, and a "
            "resumed run trains it again."
        ) from error


def take_weights(model: Any, folder: str | Path, adapter: str | None) -> None:
    """Give a model the weights of a saved policy: those of its adapter of this name, or all with None.

    Raises:
        LedgerError: The weights are not there, or do not fit.
    """
    with policy_in(folder):
        if adapter is not None:
            set_peft_model_state_dict(model, load_file(Path(folder) / ADAPTER), adapter_name=adapter)
        else:
            saved = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
            model.load_state_dict(saved.state_dict())


def merge_adapter(model: Model, adapter: Path, target: str) -> None:
    """Write the model with an adapter of `model.lora`'s size merged into its weights, and its tokenizer, to a folder.

    The base is loaded in full: merging into 4-bit weights would lose what the adapter learned.
    """
    loaded, tokenizer = load_model(model.model_copy(update={"adapter": str(adapter), "load_in_4bit": False}))
    loaded.merge_and_unload().save_pretrained(target)
    tokenizer.save_pretrained(target)
