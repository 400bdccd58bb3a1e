"""One vLLM engine for all trainers of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl.trainer import grpo_trainer


@contextmanager
def one_engine(engine: Any) -> Iterator[None]:
    """Within it a new trainer takes over this vLLM engine, an earlier trainer's on the same model, and starts none.

    TRL starts an engine for each trainer, and a run has a trainer for each stage. A new trainer sends its weights
    before it first generates.
    """

    def taken_over(model: Any, accelerator: Any, max_num_seqs: int | None = None, **settings: Any) -> Any:
        vars(engine).update({"model": model, "accelerator": accelerator, "_weight_metadata": None})
        vars(engine).update({name: value for name, value in settings.items() if name in vars(engine)})
        return engine

    names = vars(grpo_trainer)
    theirs = names["VLLMGeneration"]
    names["VLLMGeneration"] = theirs if engine is None else taken_over
    try:
        yield
    finally:
        names["VLLMGeneration"] = theirs
