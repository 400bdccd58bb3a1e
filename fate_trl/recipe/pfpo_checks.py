"""Whether PFPO can give a policy loss and callbacks what they need: asked of a recipe, and of a trainer's settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import plugins
from ..errors import RecipeError
from .schema import Recipe, generation
from .trl_keys import trl_defaults

OF_TRLS_LOSS = (
    *("loss_type", "delta", "importance_sampling_level", "off_policy_mask_threshold", "top_entropy_quantile"),
    *("entropy_coef", "use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta"),
    *("entropy_target", "use_bias_correction_kl", "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos"),
    *("vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
)
"""GRPOConfig's keys that say something of TRL's loss alone. A policy loss has epsilon, epsilon_high and beta of it."""

_SIZES = {"per_device_train_batch_size": "num_generations", "per_device_eval_batch_size": "num_generations_eval"}


def check_pfpo(recipe: Recipe, loss: Any, callbacks: Sequence[Any], selector: Any, objectives: Sequence[str]) -> None:
    """Raises RecipeError where the recipe's policy loss or callbacks cannot work."""
    if recipe.pfpo is None:
        return
    check_greedy(generation(recipe), selector)
    if recipe.pfpo.exchange:
        _check_exchange(recipe)
    given = {key: value for key, value in recipe.pfpo.trl.items() if value is not None}
    own = [key for key in OF_TRLS_LOSS if loss is not None and key in given]
    if own:
        raise RecipeError(f"pfpo.{own[0]} says something of TRL's loss, and pfpo.loss takes its place; give one.")
    settings = {**trl_defaults("grpo_config"), **given}
    beta = settings.get("beta")
    if isinstance(beta, (int, float)) and beta < 0:
        raise RecipeError(f"pfpo.beta is {beta!r}; it is 0, for no KL term, or above.")
    if settings.get("sync_ref_model"):
        _check_synced(recipe, beta)
    if recipe.pfpo.reference is not None and not settings.get("beta"):
        raise RecipeError("pfpo.reference: where pfpo.beta is 0 nothing is held to a reference; set pfpo.beta above 0.")
    check_setting(settings, loss, callbacks, selector, "pfpo.")
    if loss is not None:
        plugins.check_needs(loss, objectives, "policy loss")


def _check_synced(recipe: Recipe, beta: Any) -> None:
    """Raises RecipeError where no reference can follow the policy. TRL says so of two cases once a model is loaded."""
    assert recipe.pfpo is not None
    wrong = None
    if recipe.pfpo.reference is not None:
        wrong = "mixes the policy into what pfpo.reference makes: leave pfpo.reference out"
    elif not beta:
        wrong = "follows with a reference, and where pfpo.beta is 0 there is none: set pfpo.beta above 0"
    elif recipe.model.lora is not None:
        wrong = "needs a reference model of its own, and beside an adapter there is none: leave model.lora out"
    if wrong:
        raise RecipeError(f"pfpo.sync_ref_model {wrong}, or leave pfpo.sync_ref_model out.")


def check_setting(
    settings: Mapping[str, Any], loss: Any, callbacks: Iterable[Any], selector: Any, where: str = ""
) -> None:
    """What a policy loss and callbacks need of GRPOConfig's settings, and of the selector. Raises RecipeError."""
    for each in filter(None, (loss, *callbacks)):
        who = type(each).__name__
        if getattr(each, "reference", False) and not settings.get("beta"):
            raise RecipeError(
                f"{who} compares with the reference, and where {where}beta is 0 there is none: set {where}beta above 0."
            )
        if getattr(each, "weighs", False) and not getattr(selector, "weighs", hasattr(selector, "weights")):
            raise RecipeError(
                f"{who} sets the objectives' weights, and the selector {type(selector).__name__} does not weigh: take "
                "weighted-sum, or another that does."
            )
    if getattr(loss, "whole_groups", False):
        for rows, group in _SIZES.items():
            size, of = settings.get(rows), settings.get(group)
            if size and of and size % of:
                raise RecipeError(
                    f"{type(loss).__name__} compares the rows of a group, so a micro-batch holds whole groups: "
                    f"{where}{rows} is {size}, which is no multiple of {group} = {of}."
                )


def check_greedy(settings: Mapping[str, Any], selector: Any) -> None:
    """Raises RecipeError where a selector compares with a greedy row, and the engine samples all rows alike."""
    if not getattr(selector, "greedy_row", False):
        return
    for engine in ("use_vllm", "use_transformers_continuous_batching", "rollout_func"):
        if settings.get(engine):
            raise RecipeError(
                f"{type(selector).__name__} compares with a greedy row of each group, and with {engine} all "
                f"rows are sampled alike: leave {engine} out, or take another selector."
            )


def _check_exchange(recipe: Recipe) -> None:
    """Raises RecipeError where there is no repair to exchange a row for, or where it cannot stand among the rows."""
    assert recipe.pfpo is not None
    wrong = None
    if recipe.repair is None:
        wrong = "puts repairs into groups, and repair is null: give repair"
    elif recipe.pfpo.prompts == "repair":
        wrong = "puts repairs behind plain prompts, and pfpo.prompts is repair: set it to plain or mixed"
    elif generation(recipe).get("use_vllm"):
        wrong = (
            "puts rows into groups that vLLM did not sample, and TRL asks it how likely each was: leave use_vllm out"
        )
    if wrong:
        raise RecipeError(f"pfpo.exchange {wrong}, or leave pfpo.exchange out.")
