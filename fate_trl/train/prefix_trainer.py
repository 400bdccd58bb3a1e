"""GRPOTrainer with shared prefixes, which policy_loss.py stands on; without `share_prefixes` all is TRL's, to the bit.

It overrides four methods of TRL's and copies none:

- `_generate_single_turn`, asked for the first turns of a batch, rolls whole episodes out, and `_tool_call_loop` returns
  what they did.
- `_generate_and_score_completions` numbers the rows, and `_prepare_inputs` puts them back into that order after TRL's
  shuffle, so that the rows of a prompt go through an update together.

Updates are shared beneath TRL's methods, in the model's forward (`prefix_updates`).
"""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOTrainer

from . import batches
from .prefix_sharing import Sharing


class PrefixTrainer(GRPOTrainer):
    """GRPOTrainer that can share prefixes: `PFPOConfig.share_prefixes`.

    Attributes:
        sharing: What is shared; None if nothing is.
    """

    sharing: Sharing | None = None
    args: Any
    _buffered_inputs: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if getattr(self.args, "share_prefixes", False):
            self.sharing = Sharing.of(self)

    @property
    def _whole_groups(self) -> bool:
        """Whether micro-batches hold the rows in their order, and so the groups together."""
        return self.sharing is not None

    def _generate_single_turn(self, prompt_ids: Any, *more: Any, **named: Any) -> Any:
        if self.sharing is None or not self.sharing.generates:
            return super()._generate_single_turn(prompt_ids, *more, **named)  # type: ignore[no-untyped-call]
        return self.sharing.first_turns(self, prompt_ids), None

    def _tool_call_loop(self, *given: Any, **named: Any) -> Any:
        ran = None if self.sharing is None else self.sharing.episodes()
        return super()._tool_call_loop(*given, **named) if ran is None else ran  # type: ignore[no-untyped-call]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        out: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._whole_groups:
            out["row"] = torch.arange(len(out["prompt_ids"]), device=out["prompt_ids"].device)
        return out

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self._whole_groups or self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = batches.whole_groups(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]
