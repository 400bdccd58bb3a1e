"""Whether the training stages of a recipe fit, tried: `fate-trl check --step`.

Each stage takes two steps (in the second the optimiser's states are there) on rows of the longest prompt and the
longest completion that the recipe allows, so that what does not fit shows in a minute and not after an hour. SFT and
preferences learn made-up tokens; PFPO opens episodes, scores and selects as in a run, on completions that are made up.
All this runs in a process of its own: where memory runs out the system ends that process and not this one, and its
peak is not that of the checks before it.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..ledger.writing import RunDirectory
from ..recipe.schema import Recipe
from ..recipe.trl_keys import trl_defaults
from ..types import BufferRow, Pair, RolloutRequest
from .memory import CONTEXT, GIB, Lengths, Need, lower
from .subject import Finding

STAGES = {"warm_start": "warm_start", "sft": "sft", "preference": "preference", "pfpo": "pfpo: train"}
"""The training stages in their order, and what their needs are called."""


@dataclass(frozen=True)
class Plan:
    """What is tried.

    Attributes:
        recipe: As the user gave it.
        lengths: Tokens of the rows.
        request: The longest prompt that PFPO samples on; None where there are no tasks.
        room: Bytes of the device.
        cap: The share of the GPU in (0, 1] that may be taken; None for all, and on a CPU.
    """

    recipe: Recipe
    lengths: Lengths
    request: RolloutRequest | None
    room: float
    cap: float | None = None

    @property
    def stages(self) -> list[str]:
        trains = self.recipe.rounds > 0 and self.request is not None
        return [stage for stage in STAGES if trains and getattr(self.recipe, stage) is not None]


def step_findings(plan: Plan, needs: Mapping[str, Need]) -> Iterator[Finding]:
    """A finding for each training stage: its peak beside the estimate, or what to lower where it did not fit."""
    if not plan.stages:
        yield Finding("step", "ok", "nothing is trained")
        return
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=take, args=(plan, sender), daemon=True)
    child.start()
    sender.close()
    for stage in plan.stages:
        try:
            told = receiver.recv()
        except EOFError:
            child.join()
            yield _ended(plan, stage, child.exitcode)
            return
        yield _told(plan, stage, told, needs[STAGES[stage]])
        if told.get("loading"):
            return
    child.join()


def _told(plan: Plan, stage: str, told: Mapping[str, Any], need: Need) -> Finding:
    """What became of a stage."""
    if "error" in told:
        advice = lower(stage, plan.recipe) if told["memory"] else ""
        return Finding(f"step: {stage}", "error", told["error"], advice)
    estimated = need.total - (CONTEXT if told["gpu"] else 0)  # of which torch's allocator knows nothing
    rows = _rows(plan.recipe, stage)
    reason = (
        f"peak {told['peak'] / GIB:.2f} GiB, {told['peak'] / estimated:.2f} times the estimate of "
        f"{estimated / GIB:.2f}; {rows} × ({told['prompt']} + {told['completion']}) tokens, {told['seconds']:.1f} s"
    )
    data = {**told, "rows": rows, "estimate": estimated, "room": plan.room}
    if told["peak"] > 0.9 * plan.room:
        return Finding(
            f"step: {stage}", "warning", f"{reason}; more than 90 % of it all", lower(stage, plan.recipe), data
        )
    return Finding(f"step: {stage}", "ok", reason, data=data)


def _ended(plan: Plan, stage: str, status: int | None) -> Finding:
    """The process ended without a word."""
    if status == -signal.SIGKILL:
        reason = "the process was killed, as the system does where memory runs out"
        return Finding(f"step: {stage}", "error", reason, lower(stage, plan.recipe))
    return Finding(f"step: {stage}", "error", f"the process ended with status {status} in the middle of it")


def _rows(recipe: Recipe, stage: str) -> int:
    """Rows that go through the model at a time."""
    config = {"preference": "dpo_config", "pfpo": "grpo_config"}.get(stage, "sft_config")
    rows = {**trl_defaults(config), **getattr(recipe, stage).trl}["per_device_train_batch_size"]
    return int(rows) * (2 if stage == "preference" else 1)  # both sides of a pair


# ------------------------------------------------------------------------------------------------ in the process


def take(plan: Plan, out: Connection) -> None:
    """Try the stages one after the other, and tell of each; what it prints is nobody's concern."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    with out, tempfile.TemporaryDirectory() as folder:
        try:
            learner = _learner(plan, folder)
        except Exception as error:
            out.send({**_failure(error), "loading": True})
            return
        for stage in plan.stages:
            try:
                out.send(_tried(learner, stage, plan))
            except Exception as error:
                out.send(_failure(error))
                del error  # with the frames that hold what did not fit
                _free(learner)


def _learner(plan: Plan, folder: str) -> Any:
    """The recipe's learner; its PFPO makes completions up."""
    import torch

    from ..train.build import build
    from ..train.full_length import FullLength

    if plan.cap is not None:
        torch.cuda.set_per_process_memory_fraction(plan.cap)
    evolution = build(shortened(plan.recipe), RunDirectory(folder))
    made: Any = evolution.learner
    made.trainer = FullLength
    return made


def shortened(recipe: Recipe) -> Recipe:
    """The recipe with two optimiser steps a stage, each of as few rows as go through the model at a time."""
    short = recipe.model_copy(deep=True)
    for stage in (short.warm_start, short.sft, short.preference, short.pfpo):
        if stage is not None:
            stage.__pydantic_extra__ = {**stage.trl, "max_steps": 2, "gradient_accumulation_steps": 1}
    if short.pfpo is not None:
        keys = {**trl_defaults("grpo_config"), **short.pfpo.trl}
        group, rows = keys["num_generations"], keys["per_device_train_batch_size"]
        whole = group // math.gcd(group, rows)
        fewer = {"gradient_accumulation_steps": whole, "steps_per_generation": None, "generation_batch_size": None}
        short.pfpo.__pydantic_extra__ = {**short.pfpo.trl, **fewer, "redraw_rounds": 0, "use_vllm": False}
    short.evaluation.max_error_rate = 1.0  # nobody grades what is made up
    short.rollout.__pydantic_extra__ = {**short.rollout.trl, "use_vllm": False}
    return short


def _tried(learner: Any, stage: str, plan: Plan) -> dict[str, Any]:
    """Two steps of a stage: seconds, the peak in bytes, and tokens of a row."""
    prompt, completion = plan.lengths.longest_prompt, plan.lengths.completion
    rows = 2 * _rows(plan.recipe, stage)
    gpu = _forget_peak()
    start = time.perf_counter()
    pfpo = plan.recipe.pfpo
    if stage == "preference" or (stage == "pfpo" and pfpo is not None and pfpo.prompts == "plain"):
        prompt = plan.lengths.prompt
    if stage == "pfpo":
        learner.pfpo([plan.request] * rows, 0)
    elif stage == "preference":
        learner.preference([_pair(prompt, completion)] * rows, 0)
    else:
        learner.sft([_row(prompt, completion)] * rows, 0, stage)
    seconds = time.perf_counter() - start
    return {"peak": _peak(), "gpu": gpu, "seconds": seconds, "prompt": prompt, "completion": completion}


_WORD = 7
"""The token that made-up rows are of."""


def _row(prompt: int, completion: int) -> BufferRow:
    ids, own = (_WORD,) * completion, (1,) * completion
    return BufferRow("anchor", "", "", prompt_ids=(_WORD,) * prompt, completion_ids=ids, policy_mask=own)


def _pair(prompt: int, completion: int) -> Pair:
    ids, own = (_WORD,) * completion, (1,) * completion
    facts: dict[str, Any] = {"feedback": "The task was not done.", "repair_prompt_ids": (_WORD,) * prompt}
    facts |= {"own_ids": ids, "own_mask": own}
    return Pair("", "", 0, (_WORD,) * prompt, ids, own, ids, own, 1.0, 0, 0, **facts)


def _failure(error: BaseException) -> dict[str, Any]:
    from ..train.out_of_memory import is_out_of_memory

    memory = is_out_of_memory(error)
    said = f"{type(error).__name__}: {error}" if not memory else "out of memory"
    return {"error": said, "memory": memory}


def _free(learner: Any) -> None:
    import gc

    import torch

    learner.fresh()
    learner.model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()


def _forget_peak() -> bool:
    """Begin to count anew; returns whether there is a GPU. Only Linux forgets a process's peak."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return False


def _peak() -> int:
    """Bytes: what torch held on the GPU, else what the process held."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
