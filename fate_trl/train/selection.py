"""The selector of a trainer: made, checked, asked for rewards or advantages; and what is logged of its groups."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .. import plugins
from ..choose import pareto
from ..errors import PluginError, RecipeError
from ..hookspecs import Rows, Stateful, takes_rows
from .config import DEFAULT_SELECTOR, PFPOConfig
from .facts import Fact, rows_of

logger = logging.getLogger(__name__)


SCALED_TIES = (
    "rewards lie outside [0, 1], so ties on a front are broken by tie_break='scaled', which takes each objective by "
    "its range in the group. The default 'worst', the lowest objective, would compare unlike units. Name the one that "
    'you want: selector_args={"tie_break": "scaled"}.'
)

GAPS = (
    "a row lacks a reward that others of its group have: %s counts it as 0 in the sum, as GRPOTrainer does. Return a "
    "number for every row, or take a Pareto selector, which leaves such rows out."
)


def make_selector(args: Any, selector: Any, selector_args: Mapping[str, Any] | None) -> Any:
    """The selector that the trainer's keywords ask for, or else the configuration.

    An instance is copied, so that its weights are ours; one with state is not, so that its user finds it there.
    """
    if selector is None:
        selector = getattr(args, "selector", None) or _unnamed(args)
        selector_args = getattr(args, "selector_args", None) if selector_args is None else selector_args
    if isinstance(selector, str):
        return plugins.load("selector", selector, selector_args)
    if selector_args:
        raise RecipeError("selector_args go with a selector's name; this selector is an instance, which has its own.")
    if not callable(getattr(selector, "reward", None)) and not callable(getattr(selector, "advantages", None)):
        raise RecipeError(f"{selector!r} is no selector: it has neither a method `reward` nor `advantages`.")
    return selector if isinstance(selector, Stateful) else copy.copy(selector)


def ties_by_default(args: Any, made: Any, selector: Any, selector_args: Mapping[str, Any] | None) -> bool:
    """Whether the selector that was made breaks ties, and neither it nor its tie-break was chosen by an instance or
    by `selector_args`."""
    if getattr(made, "tie_break", None) != "worst" or not (selector is None or isinstance(selector, str)):
        return False
    if selector is None and selector_args is None:
        selector_args = getattr(args, "selector_args", None)
    return "tie_break" not in (selector_args or {})


def _unnamed(args: Any) -> str:
    """The selector where none is named: TRL's normalize_then_sum is gdpo."""
    if args.multi_objective_aggregation != "normalize_then_sum":
        return DEFAULT_SELECTOR
    logger.warning(
        "multi_objective_aggregation='normalize_then_sum' is the selector gdpo, so gdpo trains here. For Pareto "
        "rewards leave it out, or name a selector."
    )
    return "gdpo"


def scaling(selector: Any, all_verified: bool) -> str:
    """What `scale_rewards` is where the configuration leaves it open; see `PFPOConfig`."""
    if getattr(selector, "aggregation", None) is not None:
        return "group"
    return "none" if all_verified or getattr(selector, "bounded", True) else "group"


def outside_unit(scores_G_N_M: np.ndarray, oriented_G_N_M: np.ndarray) -> bool:
    """Whether a score of an objective that counts lies outside [0, 1]."""
    counted = scores_G_N_M[~np.isnan(oriented_G_N_M)]
    return bool(((counted < 0) | (counted > 1)).any())


def check_aggregation(args: Any, selector: Any) -> None:
    """TRL's way to aggregate must be the one that the selector needs; only the default may be overruled."""
    wanted, given = getattr(selector, "aggregation", None), args.multi_objective_aggregation
    if given not in ("sum_then_normalize", wanted):
        raise RecipeError(
            f"multi_objective_aggregation={given!r} cannot work with the selector {type(selector).__name__}. "
            'Leave it out, or leave the selector out: normalize_then_sum is selector="gdpo".'
        )
    if wanted is None and not isinstance(args, PFPOConfig) and args.scale_rewards == "group":
        logger.warning(
            "scale_rewards='group', GRPOConfig's default, divides by the group's standard deviation: where a tie-break "
            "decides, its epsilon becomes a full advantage. PFPOConfig defaults to 'none' for this selector."
        )


def spread(scores_G_N_M: np.ndarray, among_G_N: np.ndarray) -> np.ndarray:
    """Booleans (G,): the rows that are True in `among_G_N` hold more than one distinct score vector."""
    counted = among_G_N[:, :, None] & ~np.isnan(scores_G_N_M)
    high = np.where(counted, scores_G_N_M, -np.inf).max(axis=1)
    low = np.where(counted, scores_G_N_M, np.inf).min(axis=1)
    differs_G: np.ndarray = (high > low).any(axis=1)
    return differs_G


def group_statistics(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, spread_G: np.ndarray) -> dict[str, float]:
    """What the log says about the groups of a batch: `pareto/...`, by name."""
    front_G_N = pareto.first_front(scores_G_N_M, valid_G_N)
    all_front_G = (front_G_N == valid_G_N).all(axis=1)
    return {
        "pareto/front_size": float(front_G_N.sum(axis=1).mean()),
        "pareto/tie_break_share": float(spread(scores_G_N_M, front_G_N).mean()),
        "pareto/zero_signal_share": float((~spread_G).mean()),
        "pareto/all_front_unequal_share": float((all_front_G & spread_G).mean()),
    }


@dataclass(frozen=True)
class Question:
    """What a selector is asked about: a generation of G groups.

    Attributes:
        scores_G_N_M: Scores by objective; NaN in rows that are not valid.
        valid_G_N: Rows that count.
        objectives: Their names.
        facts: Of all rows, in order; empty where the selector asks for none.
    """

    scores_G_N_M: np.ndarray
    valid_G_N: np.ndarray
    objectives: Sequence[str]
    facts: Sequence[Fact] = ()

    @cached_property
    def rows(self) -> Rows:
        return rows_of(self.facts, self.scores_G_N_M, self.valid_G_N, self.objectives)

    def put(self, method: Callable[..., Any], **more: Any) -> Any:
        """Call a method of a component with it."""
        rows = {"rows": self.rows} if takes_rows(method) else {}
        return method(self.scores_G_N_M, objectives=self.objectives, valid_G_N=self.valid_G_N, **rows, **more)


def wants_facts(selector: Any) -> bool:
    """Whether one of a selector's methods asks for facts about the rows."""
    methods = (getattr(selector, name, None) for name in ("reward", "advantages", "learn"))
    return any(takes_rows(method) for method in methods if callable(method))


def asked(selector: Any, method: str, question: Question) -> np.ndarray:
    """What the selector's "reward" or "advantages" says of the groups, (B, ...); of rows not valid NaN, or 0.

    Raises:
        PluginError: It is of a wrong shape, or not finite for a row that is valid.
    """
    ask, valid_G_N = getattr(selector, method), question.valid_G_N
    given = question.put(ask)
    who = f"selector {type(selector).__name__}: {method}"
    try:
        said = np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise PluginError(f"{who} returned {str(given)[:80]}; it must be numbers of {valid_G_N.shape}.") from None
    shapes = [valid_G_N.shape]
    if method == "advantages":
        tokens = question.rows.turn_G_N_T.shape if takes_rows(ask) else (*valid_G_N.shape, *said.shape[2:3])
        shapes.append(tokens)
    if said.shape not in shapes:
        allowed = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise PluginError(f"{who} returned the shape {said.shape}; it must be {allowed}.")
    if not np.isfinite(said[valid_G_N]).all():
        raise PluginError(f"{who} returned NaN or infinity for a row that is valid.")
    said[~valid_G_N] = np.nan if method == "reward" else 0.0
    return said.reshape(-1, *said.shape[2:])


def fitted(selector: Any, advantages_B: torch.Tensor, width: int) -> torch.Tensor:
    """Advantages of one process's rows; those by token (B, T) at the width of its completions.

    Raises:
        PluginError: A selector that is not told how many tokens there are gave another number.
    """
    if advantages_B.ndim == 1:
        return advantages_B
    given = advantages_B.size(1)
    if given != width and not takes_rows(selector.advantages):
        raise PluginError(
            f"selector {type(selector).__name__}: advantages are {given} tokens wide, and the completions {width}; "
            "take the keyword `rows`, whose turn_G_N_T has the width."
        )
    return torch.nn.functional.pad(advantages_B[:, :width], (0, max(0, width - given)))
