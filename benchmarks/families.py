"""Small tokenizers and untrained models of real families, made here: nothing is downloaded.

A tokenizer has the chat template that TRL ships for its family, the family's special tokens, and byte-level BPE that
was trained on the templates' own text, so that any text survives. Models are two layers of the family's architecture.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import trl

FOLDER = Path(trl.__file__).parent / "chat_templates"

ENDS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>",),
    "deepseek": ("<｜end▁of▁sentence｜>",),
    "diffusion_gemma": ("<turn|>", "<|tool_response>"),
    "gemma4": ("<turn|>", "<|tool_response>"),
    "gemma": ("<end_of_turn>",),
    "glm": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "idefics": ("<end_of_utterance>",),
    "llama3": ("<|eot_id|>", "<|eom_id|>", "<|eot_id|>"),
    "muse": ("<|eot|>", "<|eom|>"),
    "phi": ("<|end|>",),
    "smolvlm": ("<end_of_utterance>",),
    "llava": ("</s>",),
}
"""What ends a turn, by how a template's name begins: the eos token first, the end of a tool call last."""

_SPECIAL = re.compile(r"<[|｜][^\s'\"{}<>]{1,30}?[|｜]?>|<\w{1,20}\|>|</?(?:think|tool_\w+|tools|\w+_of_\w+|image)>")


_QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
_QWEN3 |= {"max_position_embeddings": 40960, "rms_norm_eps": 1e-6}

REAL = {
    "Qwen/Qwen3-0.6B": _QWEN3
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"tie_word_embeddings": True},
    "Qwen/Qwen3-1.7B": _QWEN3
    | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"tie_word_embeddings": True},
    "Qwen/Qwen3-4B": _QWEN3
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
    | {"tie_word_embeddings": True},
    "Qwen/Qwen3-8B": _QWEN3
    | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
    | {"tie_word_embeddings": False},
    "meta-llama/Llama-3.1-8B-Instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}
"""What decides memory in the config.json of the models that the GPU recipes train."""


def real_config(name: str) -> Any:
    """The configuration of a real model, from `REAL`; no download."""
    from transformers import AutoConfig

    values = dict(REAL[name])
    return AutoConfig.for_model(values.pop("model_type"), **values)


def names() -> list[str]:
    """Every chat template that TRL ships, but its versions for training."""
    return sorted(file.stem for file in FOLDER.glob("*.jinja") if not file.stem.endswith("_training"))


def ends(name: str) -> tuple[str, ...]:
    return next((tokens for start, tokens in ENDS.items() if name.startswith(start)), ("<|im_end|>",))


@cache
def _learned() -> str:
    """BPE of some 1,500 pieces, as JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    core.train([str(file) for file in sorted(FOLDER.glob("*.jinja"))], trainer)
    return core.to_str()


def tokenizer(name: str) -> Any:
    """A small tokenizer with the template of that name."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    special = dict.fromkeys(["<pad>", "<bos>", *ends(name), *_SPECIAL.findall(template)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_learned()),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token=ends(name)[0],
        additional_special_tokens=list(special)[2:],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template
    return made


def model(tokenizer: Any, family: str = "llama", **sizes: Any) -> Any:
    """An untrained model of two layers: "llama" or "qwen3"."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config, cls = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[family]
    torch.manual_seed(0)
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **sizes,
    }
    return cls(config(**values))
