"""Where a guard's weights come from: checked when a recipe is read, loaded when the first trajectory is judged.

The check reads the model's `config.json` alone and needs no torch. Weights are loaded once per process, whichever
verifiers ask for them; a model that failed to load is not tried again.
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fate_trl import FateError, RecipeError

Kind = Literal["classifier", "generative"]
DType = Literal["auto", "float32", "float16", "bfloat16"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Source:
    """Which weights, and where they go.

    Attributes:
        kind: What is made of them.
        path: A folder or a hub id.
        revision: Branch, tag or commit of a hub id.
        device: As torch names it; None is the GPU if there is one.
        dtype: Of the weights; `auto` is that of the checkpoint.
        four_bit: Whether they are quantised to 4 bits while they are loaded.
    """

    kind: Kind
    path: str
    revision: str | None
    device: str | None
    dtype: DType
    four_bit: bool

    def config(self) -> dict[str, Any]:
        """The model's configuration.

        Raises:
            RecipeError: There is no such model, or no package for what is asked.
        """
        if self.four_bit and importlib.util.find_spec("bitsandbytes") is None:
            raise RecipeError("guard: load_in_4bit needs bitsandbytes: pip install 'fate-trl-guard[qlora]'")
        folder = Path(self.path).expanduser()
        if not folder.is_dir() and (not _HUB_ID.fullmatch(self.path) or folder.parent.is_dir()):
            raise RecipeError(
                f"guard: no folder {self.path!r}, and it is no hub id (owner/name). Give one or the other."
            )
        file = folder / "config.json" if folder.is_dir() else self._download()
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise RecipeError(f"guard: {folder} holds no readable config.json; it is no folder of a model.") from None

    def _download(self) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.path, "config.json", revision=self.revision))
        except Exception as error:  # no such id, no access, no network: the remedy is the same
            reason = str(error).strip().partition("\n")[0]
            raise RecipeError(
                f"guard: {self.path} cannot be had from the hub ({type(error).__name__}: {reason}). Check its name, "
                "log in if it asks for that, or download it and give the folder."
            ) from error


_LOADED: dict[Source, tuple[Any, Any] | FateError] = {}
_LOADING = threading.Lock()


def load(source: Source) -> tuple[Any, Any]:
    """(model, tokenizer), the same for all who ask.

    Raises:
        FateError: They cannot be loaded.
    """
    with _LOADING:
        if source not in _LOADED:
            try:
                _LOADED[source] = _load(source)
            except Exception as error:  # told for every trajectory, at no further cost
                _LOADED[source] = FateError(f"{source.path} cannot be loaded: {type(error).__name__}: {error}")
        found = _LOADED[source]
    if isinstance(found, FateError):
        raise found
    return found


def _load(source: Source) -> tuple[Any, Any]:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BitsAndBytesConfig,
    )

    folder = Path(source.path).expanduser()
    path = str(folder) if folder.is_dir() else source.path
    kinds: dict[Kind, Any] = {"classifier": AutoModelForSequenceClassification, "generative": AutoModelForCausalLM}
    device = source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = kinds[source.kind].from_pretrained(
        path,
        revision=source.revision,
        dtype=source.dtype,
        use_safetensors=True,
        device_map={"": device},
        quantization_config=quantised if source.four_bit else None,
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(path, revision=source.revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer
