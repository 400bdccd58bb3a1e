"""What losses are told: torch's tensors under names, with what is made of them; torch itself is not needed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class PairSide:
    """One side of a batch of B pairs; T tokens of the longest sequence. Torch's tensors.

    Attributes:
        logps_B_T: The policy's log-probability of each token that it wrote itself, with gradients; 0 at all others.
        ref_logps_B_T: The reference's; the reference is the policy as the stage found it.
        turn_B_T: The number, from 0, of the policy's message that the token is of; -1 at tokens that it did not write,
            and at those with which the other side begins alike.
        first_logps_B_T: Those of the policy that the run began with, if the loss needs "first_policy".
    """

    logps_B_T: Any
    ref_logps_B_T: Any
    turn_B_T: Any
    first_logps_B_T: Any = None

    @property
    def log_ratio_B(self) -> Any:
        """Log of how much likelier the policy makes the side than the reference does, (B,)."""
        return self.logps_B_T.sum(dim=1) - self.ref_logps_B_T.sum(dim=1)

    @property
    def there_B(self) -> Any:
        """Whether the pair has this side, booleans (B,); only losses that are `unpaired` meet pairs without one."""
        return (self.turn_B_T >= 0).any(dim=1)


@dataclass(frozen=True)
class PairBatch:
    """What a pair loss is told of B pairs.

    Attributes:
        chosen, rejected: Their sides.
        score_gap_B: `Pair.score_gap`, in [-1, 1].
        beta: The recipe's `preference.beta`.
        key_B: A whole number that stands for the pair, its tokens included; equal in every epoch and process.
        fault_B: The turn of the rejected side that a verifier faults; -1 where none says.
        prompt_B_D: If the loss needs "prompts", how often each token of the batch's prompts occurs in this one, those
            left out with which all of them begin alike (ours).
        rationale: If it needs "rationale", the verifiers' sentences on the failure, behind prompt and failure, as the
            policy would write them.
        repaired, failed: If it needs "repair_prompt", the chosen and the rejected side once more, behind the repair's
            prompt, which shows a failure.
        own: If it needs "own", what the policy wrote by itself on the pair's prompt, just before the stage.
    """

    chosen: PairSide
    rejected: PairSide
    score_gap_B: Any
    beta: float
    key_B: Any = None
    fault_B: Any = None
    prompt_B_D: Any = None
    rationale: PairSide | None = None
    repaired: PairSide | None = None
    failed: PairSide | None = None
    own: PairSide | None = None


@dataclass(frozen=True)
class PolicyBatch:
    """What a policy loss is told of a micro-batch: B rows, T tokens of the longest completion. Torch's tensors.

    A row is out where an error left it out, or where none of its tokens counts.

    Attributes:
        logps_B_T: The policy's log-probability of each token that counts, with gradients; 0 at all others.
        old_logps_B_T: Those of the policy that sampled, without gradients.
        mask_B_T: 1 at the tokens that count, which the policy wrote itself, 0 at tools' and padding.
        entropy_B_T: Entropy in nats of the distribution that the token was drawn from, without gradients.
        advantages_B_T: As the selector and TRL made them, (B, 1) or, by token, (B, T).
        reward_B: The selector's reward of each row, not centred, over all objectives; of a selector that sets
            advantages itself, these. 0 where a row is out.
        valid_B: Rows that are not out; booleans.
        columns: What `columns` of the loss returned, of these rows: (B,) by name.
        beta: The recipe's `pfpo.beta`, as it stands now.
        epsilon_low, epsilon_high: How far a ratio may go below and above 1: `pfpo.epsilon`, `pfpo.epsilon_high`.
        importance_B_T: How much likelier a token was under the policy than under the engine that sampled it, as TRL
            corrects that; ones (B, 1) where the policy samples itself.
        ref_logps_B_T: The reference's, the policy as the stage found it; None where `pfpo.beta` is 0.
        group_B: A number for each group, for losses that need `whole_groups`; else None.
        logits_B_T_V: Logits by sampling temperature, without gradients, for losses that need `logits`; else None.
    """

    logps_B_T: Any
    old_logps_B_T: Any
    mask_B_T: Any
    entropy_B_T: Any
    advantages_B_T: Any
    reward_B: Any
    valid_B: Any
    columns: Mapping[str, Any]
    beta: float
    epsilon_low: float
    epsilon_high: float
    importance_B_T: Any = 1.0
    ref_logps_B_T: Any = None
    group_B: Any = None
    logits_B_T_V: Any = None

    @cached_property
    def ratio_B_T(self) -> Any:
        """How much likelier each token has become since it was sampled; 1 at tokens that do not count."""
        return (self.logps_B_T - self.old_logps_B_T).exp()

    @property
    def kl_B_T(self) -> Any:
        """TRL's estimate of the divergence from the reference, by token: times the ratio, for an unbiased gradient."""
        kl_B_T = (self.ref_logps_B_T - self.logps_B_T).exp() - (self.ref_logps_B_T - self.logps_B_T) - 1
        return kl_B_T * self.ratio_B_T

    @property
    def log_ratio_B(self) -> Any:
        """Log of how much likelier each row has become since it was sampled."""
        return (self.logps_B_T - self.old_logps_B_T).sum(dim=1)

    @property
    def ref_log_ratio_B(self) -> Any:
        """Log of how much likelier the policy makes each row than the reference does."""
        return (self.logps_B_T - self.ref_logps_B_T).sum(dim=1)

    @property
    def together_B_B(self) -> Any:
        """Whether two rows are of one group, and neither is out; booleans. For losses that need `whole_groups`."""
        return (self.group_B[:, None] == self.group_B) & self.valid_B[:, None] & self.valid_B

    def mean(self, values_B_T: Any) -> Any:
        """Mean over the tokens that count, as in TRL's `bnpo`."""
        return (values_B_T * self.mask_B_T).sum() / self.mask_B_T.sum().clamp(min=1.0)

    def row_mean(self, values_B: Any) -> Any:
        """Mean over the rows that are not out."""
        return (values_B * self.valid_B).sum() / self.valid_B.sum().clamp(min=1)
