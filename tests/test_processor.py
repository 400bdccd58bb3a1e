"""`auto` in a recipe's model: what is faster is taken, and a run that goes on keeps what it chose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fate_trl.errors import RecipeError
from fate_trl.process import memory
from fate_trl.recipe.loading import make_recipe
from fate_trl.train import processor
from fate_trl.train.models import dtype_of

AUTO = {"suites": ["workbench"], "model": {"dtype": "auto", "threads": "auto"}}


@pytest.fixture(autouse=True)
def _forget():
    threads = torch.get_num_threads()
    processor.fastest_dtype.cache_clear()
    yield
    processor.fastest_dtype.cache_clear()
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"), [(1, 7, "float32"), (1, 0.95, "float32"), (2, 1, "bfloat16")]
)
def test_bfloat16_is_taken_where_it_is_clearly_faster(monkeypatch, float32, bfloat16, expected):
    times = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(processor, "seconds", lambda dtype, **_: times[dtype])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processor.fastest_dtype() == expected


@pytest.mark.parametrize(("several", "one", "expected"), [(1.0, 2.0, 4), (1.0, 1.1, 1), (3.0, 1.0, 1)])
def test_threads_are_taken_where_they_are_clearly_faster(monkeypatch, several, one, expected):
    torch.set_num_threads(4)
    monkeypatch.setattr(processor, "seconds", lambda *_, **__: one if torch.get_num_threads() == 1 else several)
    assert processor.fastest_threads(64) == expected
    assert torch.get_num_threads() == 4, "only measured"


def test_products_are_timed():
    assert 0 < processor.seconds(torch.float32, rows=8, inner=16, outer=16) < 60


def test_a_burst_of_other_work_does_not_decide(monkeypatch):
    """While it lasts, each look at the clock is a second later; afterwards a millisecond."""
    now = 0.0

    def look():
        nonlocal now
        now += 1.0 if slept < 3 * processor.PAUSE else 1e-3
        return now

    def sleep(seconds):
        nonlocal slept
        slept += seconds

    slept = 0.0
    monkeypatch.setattr(processor.time, "perf_counter", look)
    monkeypatch.setattr(processor.time, "sleep", sleep)
    repeats = 100
    assert processor.seconds(torch.float32, rows=1, inner=1, outer=1) == pytest.approx(1e-3 / repeats)


def test_a_run_settles_once(monkeypatch):
    recipe = make_recipe(AUTO)
    monkeypatch.setattr(processor, "fastest_dtype", lambda: "bfloat16")
    monkeypatch.setattr(processor, "fastest_threads", lambda hidden: 3)
    first = processor.settled(recipe, {})
    assert (first.model.dtype, first.model.threads) == ("bfloat16", 3)
    assert recipe.model.dtype == "auto"
    again = processor.settled(recipe, {"chosen": {"dtype": "float32", "threads": 1}})
    assert (again.model.dtype, again.model.threads) == ("float32", 1)
    fixed = make_recipe({"suites": ["workbench"]})
    assert processor.settled(fixed, {}) is fixed


def test_only_what_is_auto_is_chosen(monkeypatch):
    monkeypatch.setattr(processor, "fastest_dtype", lambda: "bfloat16")
    recipe = make_recipe({"suites": ["workbench"], "model": {"dtype": "auto", "threads": 2}})
    assert processor.settled(recipe, {}).model.threads == 2


def test_unsettled_types_are_the_safe_ones(monkeypatch):
    model = make_recipe(AUTO).model
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dtype_of(model) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dtype_of(model) == torch.bfloat16


@pytest.mark.parametrize("wrong", [{"dtype": "fast"}, {"threads": 0}, {"threads": "many"}, {"threads": 1.5}], ids=str)
def test_other_words_are_refused(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        make_recipe({"suites": ["workbench"], "model": wrong})


@pytest.mark.parametrize(("share", "given"), [(0.0, True), (1.0, False)])
@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_is_given_back_from_when_it_is_short_on(monkeypatch, share, given):
    called = []
    monkeypatch.setattr(processor, "give_memory_back", lambda: called.append(1))
    monkeypatch.setattr(processor, "SHORT", share)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    processor.mind_memory()
    assert bool(called) is given
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "262144")  # the user has chosen
    called.clear()
    processor.mind_memory()
    assert not called


@pytest.mark.parametrize(
    ("said", "room"), [("max", None), ("1048576", 2**20), ("9223372036854771712", None), ("0", None), (None, None)]
)
def test_a_containers_limit_is_the_memory_there_is(monkeypatch, tmp_path, said, room):
    file = tmp_path / "memory.max"
    if said is not None:
        file.write_text(said + "\n")
    monkeypatch.setattr(memory, "LIMITS", (file,))
    assert memory.machine_memory() == (room or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_processes_of_a_launcher_share_the_memory(monkeypatch):
    called = []
    monkeypatch.setattr(processor, "give_memory_back", lambda: called.append(1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(processor, "machine_memory", lambda: 4 * held)  # half of it is twice what this process holds
    processor.mind_memory()
    assert not called
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    processor.mind_memory()
    assert called


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_what_a_stage_left_is_released():
    script = """
import os, torch
from pathlib import Path
from fate_trl.train import processor
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
tensors = [torch.ones(25_000) for _ in range(2_000)]  # 100 kB each: glibc keeps such blocks
full = resident() - before
last = tensors[-1]
del tensors
kept = resident() - before
processor.release()
assert kept > 0.5 * full > 0, (kept, full)
assert resident() - before < 0.2 * full, (resident() - before, full)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=120)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_tensors_are_given_back_though_others_lie_between_them():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    processor.give_memory_back()
    before = resident()
    tensors = [torch.ones(200_000 + 1_000 * i) for i in range(100)]
    full = resident() - before
    tensors = tensors[9::10]
    assert resident() - before < 0.3 * full
    assert sum(map(len, tensors)) > 0
