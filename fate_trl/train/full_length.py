"""PFPO on completions that are made up: what a step of full length takes is seen without sampling one."""

from __future__ import annotations

from typing import Any

from .trainer import PFPOTrainer


class FullLength(PFPOTrainer):
    """PFPOTrainer whose completions are of one word, and as long as `max_completion_length` allows."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        tokenizer: Any = self.processing_class
        word = tokenizer.encode("a", add_special_tokens=False)[:1] or [0]
        length = self.args.max_completion_length
        return [word * length for _ in prompt_ids], None
