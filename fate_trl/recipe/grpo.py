"""A GRPOConfig of the user's own as a recipe, so that `fate-trl check --grpo` can look at it.

The YAML is what `trl grpo --config` takes: GRPOConfig's keys, and those of its script and model. What is not of the
model, of generation or of training changes nothing that a check looks at, and is passed over; what no part of TRL
knows is an error.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import RecipeError
from .checks import GENERATION, SET_BY_THE_RUN, check
from .loading import overridden, read_values, validated
from .schema import Recipe
from .trl_keys import trl_defaults, trl_keys

_LORA = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
_LORA |= {"lora_target_modules": "target_modules"}
_MODEL = {"model_name_or_path", "model_revision", "dtype", "torch_dtype", "use_peft", "load_in_4bit", *_LORA}
_SCRIPT = {
    *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "dataset_streaming", "datasets"),
    *("reward_funcs", "reward_model_name_or_path", "trust_remote_code", "attn_implementation", "use_bnb_nested_quant"),
    *("bnb_4bit_quant_type", "bnb_4bit_quant_storage", "load_in_8bit", "lora_task_type", "use_rslora", "use_dora"),
    *("lora_target_parameters", "lora_modules_to_save", "env"),
}
"""Keys of TRL's script and model that say nothing about lengths, and of memory nothing that is estimated."""

_ROLLOUT = ("temperature", "top_p", "max_completion_length", "max_tool_calling_iterations")
_FILES = (".jsonl", ".json", ".csv")
_NO_TOOLS = """
class NoTools:
    def reset(self, **_):
        return None

    def none(self) -> str:
        \"\"\"Offered to no row.\"\"\"
        return ""
"""


def grpo_recipe(
    config: str, *, model: str, suites: Sequence[str], dataset: str, sets: Sequence[str], folder: Path
) -> Recipe:
    """What a GRPOConfig amounts to.

    Args:
        config: The YAML file.
        model: Path or hub id; "" for the config's `model_name_or_path`.
        suites: Names of suites whose prompts and tools are looked at.
        dataset: In their place, a JSONL, JSON or CSV file with the column `prompt`; "" for the config's `dataset_name`.
        sets: Overrides, key=value.
        folder: Where the prompts of a data set are kept while they are looked at.

    Raises:
        RecipeError: A key that neither GRPOConfig nor TRL's script or model has; no model; no prompts.
    """
    values = _values(config)
    overridden(values, sets)
    known = set(trl_keys("grpo_config"))
    unknown = [key for key in values if key not in known | _MODEL | _SCRIPT]
    if unknown:
        lines = [f"{key}{plugins.nearest(str(key), known | _MODEL)}" for key in unknown]
        raise RecipeError(f"{config}: GRPOConfig has no key " + "\nnor ".join(lines))
    path = model or values.get("model_name_or_path") or ""
    if not path:
        raise RecipeError(f"{config} names no model; give --model with a folder or a hub id.")
    named: list[Any] = list(suites) or [_prompts(str(dataset or values.get("dataset_name") or ""), config, folder)]
    try:
        recipe = validated({"model": _model(str(path), values), "suites": named, **_training(values, known)})
        check(recipe)
    except RecipeError as error:
        raise RecipeError(own_words(str(error))) from None
    return recipe


def own_words(text: str) -> str:
    """What is said of a recipe's keys, in the words of a GRPOConfig, which has no sections."""
    for key, ours in _LORA.items():
        text = text.replace(f"model.lora.{ours}", key)
    for section in ("pfpo.", "rollout.", "pfpo: "):
        text = text.replace(section, "")
    return text.replace("unknown recipe key", "unknown key")


def _values(config: str) -> dict[str, Any]:
    """What the YAML file holds."""
    file = Path(config).expanduser()
    if not file.is_file():
        raise RecipeError(f"there is no file {config!r}; give a YAML file with GRPOConfig's keys.")
    return read_values(file, "GRPOConfig's keys")


def _training(values: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """The sections of a recipe: what is generated, and what is trained on it."""
    given = {key: value for key, value in values.items() if key in known}
    rollout = {key: given.pop(key, trl_defaults("grpo_config").get(key)) for key in _ROLLOUT}
    rollout = {key: value for key, value in rollout.items() if value is not None}
    rollout |= {key: given.pop(key) for key in list(given) if GENERATION.fullmatch(key)}
    pfpo = {key: value for key, value in given.items() if key not in SET_BY_THE_RUN and key != "model_init_kwargs"}
    none = {"repair": None, "sft": None, "preference": None}
    return {"rollout": rollout, "pfpo": pfpo, "selector": "weighted-sum", "rounds": 1, **none}


def _model(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The section `model`."""
    made = values.get("model_init_kwargs") or {}
    if not isinstance(made, dict):
        raise RecipeError(f"model_init_kwargs must be a mapping, such as {{dtype: bfloat16}}, not {made!r:.80}.")
    dtype = values.get("dtype") or values.get("torch_dtype") or made.get("dtype") or made.get("torch_dtype")
    lora = {ours: values[key] for key, ours in _LORA.items() if values.get(key) is not None}
    return {
        "path": path,
        "revision": values.get("model_revision"),
        "dtype": str(dtype or "float32"),  # TRL's default
        "lora": lora if values.get("use_peft") else None,
        "load_in_4bit": bool(values.get("load_in_4bit")),
    }


# ------------------------------------------------------------------------------------------------ prompts


def _prompts(dataset: str, config: str, folder: Path) -> dict[str, Any]:
    """The suite of a data set's prompts, which offer no tools."""
    if not dataset:
        raise RecipeError(
            f"{config} names no data set; give --suite NAME (`fate-trl suites` lists them), or --dataset with a "
            "JSONL, JSON or CSV file that has the column 'prompt'."
        )
    rows = [json.dumps({"prompt": prompt, "tools": [], "split": "train"}) for prompt in _read(dataset)]
    if not rows:
        raise RecipeError(f"{dataset} holds no rows.")
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(rows), encoding="utf-8")
    code = folder / "no_tools.py"
    code.write_text(_NO_TOOLS, encoding="utf-8")
    return {"name": "jsonl", "args": {"path": str(file), "environment": f"{code}:NoTools"}}


def _read(dataset: str) -> Iterator[Any]:
    """The prompt of each row: a text, or messages."""
    file = Path(dataset).expanduser()
    if not file.is_file() or file.suffix not in _FILES:
        raise RecipeError(
            f"the data set {dataset!r} is no {', '.join(_FILES)} file here; `Dataset.to_json(FILE)` writes one that "
            "--dataset takes."
        )
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(text.splitlines()))
        elif file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise RecipeError(f"{dataset} cannot be read: {error}") from None
    if not isinstance(rows, list):
        raise RecipeError(f"{dataset} must hold a list of rows, each with the column 'prompt'; not {text[:40]!r}.")
    for number, row in enumerate(rows):
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not prompt:
            have = ", ".join(map(str, row)) if isinstance(row, dict) else "no columns"
            raise RecipeError(f"{dataset}: row {number + 1} has no 'prompt', which GRPOTrainer needs; it has {have}.")
        yield prompt
