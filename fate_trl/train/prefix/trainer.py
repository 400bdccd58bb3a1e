"""GRPOTrainer with shared prefixes, which greedy.py stands on; without `share_prefixes` all is TRL's, to the bit.

It overrides five methods of TRL's and copies none:

- `_generate` reads equal replies once.
- `_generate_single_turn`, asked for the first turns of a batch, rolls whole episodes out, and `_tool_call_loop` returns
  what they did.
- `_generate_and_score_completions` numbers the rows, and `_prepare_inputs` puts them back into that order after TRL's
  shuffle, so that the rows of a prompt go through an update together.

Updates are shared beneath TRL's methods, in the model's forward (updates.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils.chat_parsing.response_templates import load_response_template
from trl import GRPOTrainer

from .. import batches
from ..spent import Spent
from .sharing import Sharing


class PrefixTrainer(GRPOTrainer):
    """GRPOTrainer that can share prefixes: `PFPOConfig.share_prefixes`.

    Attributes:
        sharing: What is shared; None if nothing is.
        spent: Where its time went.
    """

    sharing: Sharing | None = None
    spent = Spent()
    args: Any
    _buffered_inputs: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if getattr(self.args, "share_prefixes", False):
            self.sharing = Sharing.of(self)
        self.tell(Spent())

    def tell(self, spent: Spent) -> None:
        """Count from now on in there."""
        self.spent = spent
        if self.sharing is not None:
            self.sharing.tell(spent)

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        with _parsing_once(getattr(self, "_tokenizer", None)):  # TRL's own tests ask a trainer that was never made
            generated: tuple[Any, ...] = super()._generate(prompts)
        return generated

    @property
    def _whole_groups(self) -> bool:
        """Whether micro-batches hold the rows in their order, and so the groups together."""
        return self.sharing is not None

    def _generate_single_turn(self, prompt_ids: Any, *more: Any, **named: Any) -> Any:
        if self.sharing is None or not self.sharing.generates:
            with self.spent.on("generating"):
                return super()._generate_single_turn(prompt_ids, *more, **named)  # type: ignore[no-untyped-call]
        return self.sharing.first_turns(self, prompt_ids), None

    def _tool_call_loop(self, *given: Any, **named: Any) -> Any:
        ran = None if self.sharing is None else self.sharing.episodes()
        if ran is not None:
            return ran
        with self.spent.on("tools"):
            return super()._tool_call_loop(*given, **named)  # type: ignore[no-untyped-call]

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


@contextmanager
def _parsing_once(tokenizer: Any) -> Iterator[None]:
    """A tokenizer that reads a reply once: many rows say the same, and its `response_template` is compiled each time.

    Of what stands before a reply only what it leaves open matters, such as a thought that was begun.
    """
    template = getattr(tokenizer, "response_template", None)
    if not isinstance(template, dict):
        yield
        return
    compiled, parse = load_response_template(template), tokenizer.parse_response
    known: dict[tuple[tuple[int, ...], str, int], dict[str, Any]] = {}

    def parsed(ids: Sequence[int], *, prefix: Sequence[int], **given: Any) -> dict[str, Any]:
        left_open = compiled.truncate_past_last_anchor(tokenizer.decode(prefix))
        key = (tuple(ids), left_open, id(given.get("tools")))
        if key not in known:
            known[key] = parse(ids, prefix=left_open, **given)
        return copy.deepcopy(known[key])

    tokenizer.response_template, tokenizer.parse_response = compiled, parsed
    try:
        yield
    finally:
        tokenizer.response_template = template
        del tokenizer.parse_response
