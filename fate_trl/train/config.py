"""PFPOConfig: GRPOConfig's keys, and those of the Pareto selector."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from ..errors import RecipeError
from ..verify.scoring import SECONDS

DEFAULT_SELECTOR = "pareto-front"


@dataclass
class PFPOConfig(GRPOConfig):
    """GRPOConfig with a selector. Every key of GRPOConfig is taken as it is.

    Args:
        selector: Name of the Pareto selector: "pareto-front", "pareto-rank", "product", "weighted-sum", "gdpo", or a
            plugin's "plugin/name". None stands for "pareto-front", and for "gdpo" where
            `multi_objective_aggregation` is "normalize_then_sum", which is the same.
        selector_args: The selector's arguments.
        redraw_rounds: How often groups whose score vectors are all equal are replaced by groups of new prompts,
            per generation. 0 (ours) changes nothing. Each round generates as many groups as it replaces.
        verifier_seconds: Time for one call of a verifier; see `verifiers.score_all`.
        max_error_rate: Share in [0, 1] of rows with an infrastructure error, from the start of the training on, past
            which it stops; the first three never stop it. 1 (ours) never does; a recipe sets its own.
        share_prefixes: Whether what rows have in common at their beginnings is computed once, in rollouts and in
            updates; False (ours) is TRL's way, to the bit, and True equals it to rounding. Where a model cannot, the
            reason is logged once.
        prefix_cache_gb: Bound in GB, above 0, for keys and values in rollouts that share prefixes; 4 (ours).
        pack_tokens: Tokens, 1 or more, of one call of the model in updates that share prefixes; 4096 (ours). A batch
            of more goes through in several, and its activations are computed twice, so that memory is that of one.
        mask_overflowed: Leave rows out of the loss whose last calls ran, but whose results were too long for the
            completion. TRL takes such results back out and ends the row as if the policy had stopped there, so
            `mask_truncated_completions` keeps it. False (ours) is what TRL does.
        scale_rewards: As in GRPOConfig. None stands for "none" where the selector breaks ties: there the group's
            standard deviation would turn a tie-break's epsilon into a full advantage. It stands for "group",
            GRPOConfig's default, with a selector that hands its weights to TRL, and with one whose rewards are as large
            as the scores ("product", "constraint"), unless all scores are verifiers', which lie in [0, 1].

    Raises:
        RecipeError: `num_generations` is below 2: a group of one has no better and no worse.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "selector_args"]  # noqa: RUF012

    selector: str | None = field(default=None, metadata={"help": "Name of the Pareto selector."})
    selector_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of the selector, as JSON on a command line."}
    )
    redraw_rounds: int = field(
        default=0, metadata={"help": "How often to replace groups whose score vectors are all equal by new prompts."}
    )
    verifier_seconds: float = field(default=SECONDS, metadata={"help": "Time for one call of a verifier."})
    max_error_rate: float = field(
        default=1.0, metadata={"help": "Share of rows with an infrastructure error past which the training stops."}
    )
    share_prefixes: bool = field(
        default=False, metadata={"help": "Whether to compute once what rows have in common at their beginnings."}
    )
    prefix_cache_gb: float = field(default=4.0, metadata={"help": "Bound in GB for the keys and values of rollouts."})
    pack_tokens: int = field(default=4096, metadata={"help": "Tokens of one call of the model in packed updates."})
    mask_overflowed: bool = field(
        default=False, metadata={"help": "Leave rows out of the loss whose last tool results did not fit."}
    )
    scale_rewards: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "As in GRPOConfig; by default 'none', or 'group' for weighted-sum and gdpo."}
    )

    def __post_init__(self) -> None:
        if self.num_generations is not None and self.num_generations < 2:
            raise RecipeError(
                f"num_generations is {self.num_generations}; a group needs at least 2 completions to be compared."
            )
        if self.redraw_rounds < 0:
            raise RecipeError(f"redraw_rounds is {self.redraw_rounds}; it must be 0 or more.")
        if self.prefix_cache_gb <= 0 or self.pack_tokens < 1:
            raise RecipeError(
                f"prefix_cache_gb is {self.prefix_cache_gb} and pack_tokens is {self.pack_tokens}; "
                "the first must be above 0, the second 1 or more."
            )
        super().__post_init__()  # type: ignore[no-untyped-call]
