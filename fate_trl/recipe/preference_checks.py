"""What TRL would say of `preference` only once a model is loaded, or in the middle of a training."""

from __future__ import annotations

from typing import Any, get_args

from .. import plugins
from ..errors import PluginError, RecipeError
from ..hookspecs import PairFact, Pairing, RepairStrategy, Stateful
from .schema import Preference
from .trl_keys import dpo_values, trl_defaults

_REFERENCE = ("precompute_ref_log_probs", "sync_ref_model")
_TRLS = ("loss_type", "loss_weights", "label_smoothing", "ld_alpha", "f_divergence_type", "use_weighting")
_NO_DIVERGENCE = {"nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"}


def check_preference(preference: Preference) -> None:
    """Raises RecipeError for values of DPOConfig's keys that DPOTrainer does not take, and that the stage cannot."""
    given = {key: value for key, value in preference.trl.items() if value is not None}
    both = [key for key in _TRLS if preference.loss is not None and key in given]
    if both:
        raise RecipeError(
            f"preference.{both[0]} says something of TRL's losses, and preference.loss takes their place; give one."
        )
    losses = _losses(given.get("loss_type", "sigmoid"))
    _check_loss(given, losses)
    weights = given.get("loss_weights")
    if weights is not None and (not isinstance(weights, list) or len(weights) != len(losses)):
        raise RecipeError(
            f"preference.loss_weights is {weights!r}; it is a list of as many numbers as loss_type has losses."
        )
    beta = given.get("beta")
    if isinstance(beta, (int, float)) and beta <= 0:
        raise RecipeError(f"preference.beta is {beta!r}; it is above 0.")
    for key in _REFERENCE:
        if given.get(key):
            raise RecipeError(f"preference.{key}: the reference is the policy as the stage finds it; leave it out.")
    if given.get("padding_free") or given.get("truncation_mode", "keep_start") != "keep_start":
        raise RecipeError("preference takes neither padding_free nor another truncation_mode than keep_start.")


def check_pair_loss(loss: Any, repair: RepairStrategy | None, strategy: str, pairing: Pairing | None) -> None:
    """Raises PluginError for a plugin's pair loss that breaks its contract, RecipeError where it cannot be served.

    Args:
        loss: What was made for `preference.loss`; None for TRL's losses, which take whole pairs.
        repair: The repair strategy.
        strategy: Its name in the recipe.
        pairing: The pairing.
    """
    if loss is None:
        if getattr(pairing, "unpaired", False):
            raise RecipeError("preference.pairing makes pairs of one side, and TRL's losses take none: set loss.")
        return
    who, needs, facts = f"the pair loss {type(loss).__name__}", getattr(loss, "needs", ()), get_args(PairFact)
    if not callable(loss):
        raise PluginError(f"{who} cannot be called; a pair loss is called with a PairBatch.")
    unknown = [fact for fact in needs if fact not in facts] if isinstance(needs, (tuple, list)) else [needs]
    if unknown:
        raise PluginError(f"{who} needs {unknown[0]!r}; `needs` is a tuple out of {', '.join(facts)}.")
    if hasattr(loss, "learn") and not isinstance(loss, Stateful):
        raise PluginError(f"{who} has `learn`, but neither state_dict() nor load_state_dict(state): it would forget.")
    if getattr(pairing, "unpaired", False) and not getattr(loss, "unpaired", False):
        raise RecipeError(f"preference.pairing makes pairs of one side, and {who} takes none; take another of the two.")
    if "repair_prompt" in needs and not getattr(repair, "shows_failure", True):
        raise RecipeError(
            f"preference.loss: {who} needs repair prompts that show the failure, and those of {strategy} do not; "
            "take another repair.strategy, such as reflect, or another loss."
        )


def _losses(named: Any) -> list[str]:
    losses = [named] if isinstance(named, str) else named
    known = dpo_values("loss_type")
    if not isinstance(losses, list) or not losses:
        raise RecipeError(f"preference.loss_type is {named!r}; it is one of {', '.join(known)}, or a list of them.")
    for loss in losses:
        if known and loss not in known:
            hint = plugins.nearest(str(loss), known)
            raise RecipeError(f"preference.loss_type: TRL has no {loss!r}{hint} There are {', '.join(known)}.")
    return losses


def _check_loss(given: dict[str, Any], losses: list[str]) -> None:
    smoothing = given.get("label_smoothing", trl_defaults("dpo_config").get("label_smoothing", 0.0))
    if "exo_pair" in losses and smoothing == 0:
        raise RecipeError("preference.loss_type exo_pair needs label_smoothing above 0; its paper takes 1e-3.")
    if "robust" in losses and isinstance(smoothing, (int, float)) and not 0 <= smoothing < 0.5:
        raise RecipeError(f"preference.label_smoothing is {smoothing!r}; with robust it is in [0, 0.5).")
    divergence, known = given.get("f_divergence_type", "reverse_kl"), dpo_values("f_divergence_type")
    if known and divergence not in known:
        hint = plugins.nearest(str(divergence), known)
        raise RecipeError(
            f"preference.f_divergence_type: TRL has no {divergence!r}{hint} There are {', '.join(known)}."
        )
    without = sorted(_NO_DIVERGENCE & set(losses))
    if divergence != "reverse_kl" and without:
        raise RecipeError(f"preference.f_divergence_type {divergence!r} cannot go with the loss {without[0]}.")
    if given.get("use_weighting") and {"aot", "aot_unpaired"} & set(losses):
        raise RecipeError("preference.use_weighting cannot go with aot, which sorts what it would weight.")
