"""A trainer's shared prefixes: its rollouts (rollouts.py), its updates (updates.py), or neither and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl.models.utils import unwrap_model_for_generation

from ..spent import Spent
from . import support
from .episodes import ToolTurns
from .rollouts import Rollouts, Row
from .updates import share_updates


def share_training(trainer: Any, more: Sequence[str] = ()) -> None:
    """Let a trainer of TRL's on given rows compute what a batch's rows have in common once, if its model can.

    Its reference model does so too, where it has one. `more` is what the trainer asks TRL's head for; see
    `share_updates`.
    """
    reason = support.of_trainer(trainer)
    if reason:
        support.say("Training runs", reason)
        return
    for each in filter(None, (trainer.model, getattr(trainer, "ref_model", None))):
        model = trainer.accelerator.unwrap_model(each)
        share_updates(model.get_base_model() if hasattr(model, "peft_config") else model, more=more)


class Sharing:
    """What a trainer shares.

    Attributes:
        generates: Whether rollouts share; updates do in any case.
    """

    def __init__(self, rollouts: Rollouts | None):
        self._rollouts = rollouts
        self._rows: list[Row] = []
        self._turns: ToolTurns | None = None

    @classmethod
    def of(cls, trainer: Any) -> Sharing | None:
        """What this trainer can share; None, with the reason in the log, where it can nothing."""
        reason = support.of_trainer(trainer)
        if reason:
            support.say("Rollouts and updates run", reason)
            return None
        model = trainer.accelerator.unwrap_model(trainer.model)
        for each in (model, trainer.ref_model):
            if each is not None:
                share_updates(
                    each.get_base_model() if hasattr(each, "peft_config") else each,
                    temperature=trainer.temperature,
                    budget=trainer.args.pack_tokens,
                    entropy_gradient=trainer._entropy_bonus_enabled,
                )
        reason = support.of_generation(trainer)
        if reason:
            support.say("Rollouts run", reason)
            return cls(None)
        return cls(
            Rollouts(model, trainer.generation_config, trainer.eos_token_ids, cache_gb=trainer.args.prefix_cache_gb)
        )

    @property
    def generates(self) -> bool:
        return self._rollouts is not None

    @property
    def spent(self) -> Spent:
        """Where the rollouts' time went since the trainer was made."""
        return Spent() if self._rollouts is None else self._rollouts.spent

    def tell(self, spent: Spent) -> None:
        """Count from now on in there."""
        if self._rollouts is not None:
            self._rollouts.spent = spent

    def first_turns(self, trainer: Any, prompt_ids: list[list[int]]) -> list[list[int]]:
        """Roll a batch out to the end of its episodes.

        Returns the tokens of the rows' first turns; of rows with tools only an end, since TRL would read calls out of
        them once more, and `episodes` has them.
        """
        assert self._rollouts is not None
        turns = _tool_turns(trainer) if trainer.tools else None
        seed = int(torch.randint(2**62, (1,)))  # of the trainer's random state, which moves on
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model:
            self._rollouts.model = model
            weights = (trainer.state.global_step, sum(parameter._version for parameter in model.parameters()))
            self._rows = self._rollouts.run(prompt_ids, seed, turns, weights)
        self._turns = turns
        if turns is not None:
            return [[trainer._tokenizer.eos_token_id] for _ in self._rows]
        return [row.ids[len(row.prompt) :] for row in self._rows]

    def episodes(self) -> tuple[Any, ...] | None:
        """What `_tool_call_loop` returns, of the batch just rolled out; None if it was not rolled out here."""
        turns, self._turns = self._turns, None
        if turns is None:
            return None
        masks = [row.mask for row in self._rows]
        ids = [row.ids[len(row.prompt) :] for row in self._rows]
        return masks, turns.completions, ids, None, turns.calls, turns.failures, [[] for _ in ids]


def _tool_turns(trainer: Any) -> ToolTurns:
    """The turns of the batch that the trainer has set environments and tools up for."""
    rows = len(trainer._sync_tool_dicts)
    if trainer.environment_factories is not None:
        schemas = [trainer._env_tools[name] for name in trainer._batch_environments]
    else:
        schemas = [trainer.tools] * rows
    return ToolTurns(
        tokenizer=trainer._tokenizer,
        schemas=schemas,
        tools=list(zip(trainer._sync_tool_dicts, trainer._async_tool_dicts, strict=True)),
        together=frozenset(tool.__name__ for tool in trainer._standalone_tools or ()),
        loop=getattr(trainer, "async_loop", None),
        suffix=trainer._get_tool_suffix_ids,
        turns=trainer.max_tool_calling_iterations,
        room=trainer.max_completion_length,
        positions=trainer.model.config.max_position_embeddings,
    )
