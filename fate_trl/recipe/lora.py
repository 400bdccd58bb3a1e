"""What a saved adapter says of itself; no torch, as it is read before anything loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import RecipeError

CONFIG = "adapter_config.json"
_SPECIAL = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "lora_bias")


def adapter_config(folder: Path) -> dict[str, Any]:
    """The configuration of a plain LoRA adapter, as peft wrote it.

    Raises:
        RecipeError: The file cannot be read, lacks a key, or is of another kind of adapter.
    """
    file = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        sizes = {key: config[key] for key in ("r", "lora_alpha")}
        wrong = {key: size for key, size in sizes.items() if not size > 0}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{file} is not a LoRA adapter's: {error!r}.") from None
    if wrong:
        raise RecipeError(f"{file} has r {config['r']} and lora_alpha {config['lora_alpha']}; both are above 0.")
    special = [key for key in _SPECIAL if config.get(key)]
    if config.get("peft_type") != "LORA" or special:
        raise RecipeError(
            f"{folder} is no plain LoRA adapter ({special or config.get('peft_type')}); merge it into its model first."
        )
    return config


def taken_for_a_model(path: str) -> RecipeError:
    """What to say of an adapter that stands where a model's weights should."""
    return RecipeError(
        f"model.path: {path} holds an adapter ({CONFIG}), which transformers lays over the weights that it loads, "
        "merged ones too. Give the adapter's base as model.path and this folder as model.adapter; if its weights are "
        f"merged already, take {CONFIG} out of it."
    )
