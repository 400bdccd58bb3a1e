"""The type and the number of threads with which this processor multiplies fastest: `auto` in a recipe's model.

A processor with AVX512-BF16 or AMX multiplies bfloat16 several times faster than float32; one with AVX2 only is as much
slower. A second thread halves the time of a large product, and doubles that of a small one.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, TrainerCallback

from ..process.memory import machine_memory
from ..recipe.schema import Recipe
from .models import model_folder

ROWS, INNER, OUTER = 256, 576, 1536
"""A product of a small model's: so many tokens through a layer of SmolLM2-135M."""

TRIALS = 5
"""The fastest of so many counts, since other work only ever slows one down (ours)."""

PAUSE = 0.05
"""Seconds (ours) between trials, so that a burst of other work, such as a run that starts, ends before the last."""

MAPPED = 2**18
"""Bytes (ours) from which a block of memory is given back as soon as it is free, once memory is short."""

SHORT = 0.5
"""Share of the machine's memory (ours) from which on it is short: glibc may double what tensors take."""

GAIN = 1.15
"""bfloat16, which is less exact, or a further thread must be faster by this factor (ours)."""


class MindsMemory(TrainerCallback):
    """Looks after each micro-batch whether memory is short."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        mind_memory()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        mind_memory()


def mind_memory() -> None:
    """Give freed tensors back to the system at once, from when this process holds `SHORT` of the machine's memory, or
    of its part of that where several processes of a launcher share the machine.

    Not before: each tensor then begins with new pages, which doubles the time of a training step on some kernels, and
    costs a few per cent on others (docs/results/memory.md). On a CPU with glibc only, and not where the user set the
    threshold.
    """
    if sys.platform == "linux" and not torch.cuda.is_available() and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if held > SHORT * machine_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
            give_memory_back()


@cache
def give_memory_back() -> None:
    """Have glibc give freed blocks from `MAPPED` bytes on back to the system at once; no other allocator can.

    By itself glibc keeps blocks of up to 32 MB, and cannot put an aligned one where another of its size was: training
    steps then hold up to twice the memory of their tensors.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((-3, MAPPED), (-4, 2**15)):  # M_MMAP_THRESHOLD, M_MMAP_MAX
            libc.mallopt(option, value)
    release()


def release() -> None:
    """Give what glibc keeps of freed blocks back to the system: after a training stage, which held far more than what
    follows will need.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # type: ignore[union-attr]


@cache
def fastest_dtype() -> str:
    """ "bfloat16" or "float32" on a CPU, by timing; on a GPU "bfloat16", or "float16" where it has none."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if seconds(torch.float32) > GAIN * seconds(torch.bfloat16) else "float32"


def fastest_threads(hidden: int) -> int:
    """One thread, or torch's choice where a product of this many columns is faster with it."""
    given = torch.get_num_threads()
    if given == 1:
        return 1
    several = seconds(torch.float32, rows=16, inner=hidden, outer=4 * hidden)
    torch.set_num_threads(1)
    try:
        one = seconds(torch.float32, rows=16, inner=hidden, outer=4 * hidden)
    finally:
        torch.set_num_threads(given)
    return given if one > GAIN * several else 1


def seconds(dtype: torch.dtype, rows: int = ROWS, inner: int = INNER, outer: int = OUTER) -> float:
    """Time of one product, (rows, inner) by (inner, outer)."""
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, outer, dtype=dtype)
    repeats = min(100, max(1, 10**8 // (rows * inner * outer)))
    best = float("inf")
    for trial in range(TRIALS):
        time.sleep(PAUSE if trial else 0)
        began = time.perf_counter()
        for _ in range(repeats):
            left @ right
        best = min(best, (time.perf_counter() - began) / repeats)
    return best


def settled(recipe: Recipe, manifest: Mapping[str, Any]) -> Recipe:
    """A recipe with `auto` replaced by what its run chose before, or else by what this machine does fastest.

    Args:
        recipe: As the user wrote it.
        manifest: Of the run, if it goes on after a stop; empty otherwise.
    """
    model = recipe.model
    asked = [key for key in ("threads", "dtype") if getattr(model, key) == "auto"]
    if not asked:
        return recipe
    chosen = dict(manifest.get("chosen") or {})
    if not chosen.keys() >= set(asked):
        config = AutoConfig.from_pretrained(model_folder(model), revision=model.revision)
        chosen = {"threads": fastest_threads(config.get_text_config().hidden_size), "dtype": fastest_dtype()}
    update = {key: chosen[key] for key in asked}
    return recipe.model_copy(update={"model": model.model_copy(update=update)})
