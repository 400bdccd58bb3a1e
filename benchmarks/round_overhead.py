"""Claim: on a round without faults at most 3 % of the time goes into the ledger, the isolation and the checks.

A round of the quickstart with the embedded policy on one CPU thread: a quarter of its tasks, evaluation and steps, in
its chunks. The policy is tiny, so the share is larger here than with any model of use.

- *ledger*: the run directory's methods, flushing to the disk included. *isolation and checks*: calls through bounded
  threads, copies handed to other people's code, and checks of arguments, outcomes, scores and the error budget, less
  what that code itself takes. Both as shares of the round, in CPU time, and in wall-clock time, which other work on
  the machine disturbs: a thread that waits for another lets it in.
- *ratio*: the round's time over that of the same round with flushing, threads and copies taken out. The two take turns,
  from the same policy and seeds, and end with the same records. Median of the pairs' ratios with a bootstrap interval.

    python benchmarks/round_overhead.py --pairs 5 --out docs/results/round_overhead
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

import numpy as np

from fate_trl import metrics
from fate_trl.ledger import writing
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.rounds import Evolution
from fate_trl.process import bounded
from fate_trl.recipe.loading import load_recipe
from fate_trl.suites import episodes
from fate_trl.train.build import build
from fate_trl.verify import scoring

ROUND = ["rounds=1", "rollout.tasks=60", "evaluation.tasks=150", "evaluation.validation=25", "pfpo.max_steps=2"]
LEDGER = ("append", "read", "write_text", "chunks")
ISOLATION = {
    episodes: ("copied", "nested", "_check", "_check_outcome"),
    scoring: ("copied", "_all_of"),
    metrics: ("check_errors",),
}


class Stopwatch:
    """[CPU, wall-clock] seconds by part; what runs inside a measured call counts once, with the outermost.

    To ask for the CPU time takes longer than some of what is measured, so each time it is asked twice, and what that
    took is left out.
    """

    def __init__(self) -> None:
        self.seconds = {"ledger": [0.0, 0.0], "isolation": [0.0, 0.0]}
        self._inside = False

    def add(self, part: str, cpu: float, wall: float) -> None:
        self.seconds[part][0] += cpu
        self.seconds[part][1] += wall

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any, **settings: Any) -> Any:
            if self._inside:
                return function(*arguments, **settings)
            self._inside = True
            asked, cpu, wall = process_time(), process_time(), perf_counter()
            try:
                return function(*arguments, **settings)
            finally:
                wall = perf_counter() - wall
                self.add(part, process_time() - cpu - (cpu - asked), wall)
                self._inside = False

        return measured

    def less_inner(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call(self, function, seconds)` without what `function` takes."""

        def measured(thread: Any, function: Callable[[], Any], seconds: float) -> Any:
            def timed() -> Any:
                cpu, wall = process_time(), perf_counter()
                try:
                    return function()
                finally:
                    self.add(part, cpu - process_time(), wall - perf_counter())

            asked, cpu, wall = process_time(), process_time(), perf_counter()
            try:
                return call(thread, timed, seconds)
            finally:
                wall = perf_counter() - wall
                self.add(part, process_time() - cpu - 2 * (cpu - asked), wall)

        return measured


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    with ExitStack() as stack:
        rooms = {RunDirectory: ("ledger", LEDGER), writing: ("ledger", ("flush",))}
        rooms |= {room: ("isolation", names) for room, names in ISOLATION.items()}
        for room, (part, names) in rooms.items():
            for name in names:
                stack.enter_context(patch.object(room, name, watch.around(part, getattr(room, name))))
        stack.enter_context(patch.object(bounded.Thread, "call", watch.less_inner("isolation", bounded.Thread.call)))
        yield


@contextmanager
def bare() -> Iterator[None]:
    """No flushing, no threads, no copies."""
    with (
        patch.object(os, "fsync", lambda _: None),
        patch.object(bounded.Thread, "call", lambda _, function, seconds: function()),
        patch.object(episodes, "copied", lambda value: value),
    ):
        yield


def one_round(evolution: Evolution, start: str, folder: Path) -> tuple[np.ndarray, bytes]:
    """(CPU and wall-clock seconds, records) of the round, from the policy in `start`."""
    evolution.learner.load(start)
    evolution.run = RunDirectory(folder)
    cpu, wall = process_time(), perf_counter()
    evolution._round(1, 0)
    seconds_C = np.array([process_time() - cpu, perf_counter() - wall])
    files = (folder / f"rounds/01/{name}.jsonl" for name in ("rollouts", "repairs", "buffer"))
    return seconds_C, b"".join(file.read_bytes() for file in files)


def measure(pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        evolution = build(load_recipe("quickstart", ROUND), RunDirectory(root / "unused"))
        evolution.learner.save(str(root / "start"))
        times, shares = [], []
        with suppress(KeyboardInterrupt):
            for number in range(pairs + 1):
                rounds = {}
                for arm in ("guarded", "bare") if number % 2 else ("bare", "guarded"):
                    watch = Stopwatch()
                    with watched(watch) if arm == "guarded" else bare():
                        rounds[arm] = one_round(evolution, str(root / "start"), root / f"{arm}-{number}")
                    if arm == "guarded":
                        share_Q_C = np.array(list(watch.seconds.values())) / rounds[arm][0]
                assert rounds["guarded"][1] == rounds["bare"][1], "both arms do the same"
                if number:  # the first pair warms up
                    times.append([rounds[arm][0] for arm in ("guarded", "bare")])
                    shares.append([*share_Q_C, share_Q_C.sum(axis=0)])
    seconds_P_A_C, share_Q_C = np.array(times), np.median(shares, axis=0)
    parts = ("ledger", "isolation", "together")
    return {
        "pairs": len(times),
        "records": rounds["guarded"][1].count(b"\n"),
        "round_seconds_cpu": float(np.median(seconds_P_A_C[:, 0, 0])),
        "share_cpu": dict(zip(parts, share_Q_C[:, 0].tolist(), strict=True)),
        "share_wall": dict(zip(parts, share_Q_C[:, 1].tolist(), strict=True)),
        "ratio_cpu": ratio(seconds_P_A_C[:, :, 0]),
        "ratio_wall": ratio(seconds_P_A_C[:, :, 1]),
    }


def ratio(seconds_P_A: np.ndarray) -> dict[str, float]:
    """Median of the pairs' ratios, with a 95 % bootstrap interval over pairs."""
    ratios_P = seconds_P_A[:, 0] / seconds_P_A[:, 1]
    draws = np.random.default_rng(0).integers(len(ratios_P), size=(4000, len(ratios_P)))
    low, high = np.quantile(np.median(ratios_P[draws], axis=1), [0.025, 0.975])
    return {"value": float(np.median(ratios_P)), "low": float(low), "high": float(high)}


def show(row: dict[str, Any]) -> str:
    seconds, records = row["round_seconds_cpu"], row["records"]
    lines = [
        f"{row['pairs']} pairs of rounds, each of {seconds:.1f} s of CPU time and {records} records.\n",
        "| time | ledger, % | isolation and checks, % | together, % | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for clock, name in (("cpu", "CPU"), ("wall", "wall clock")):
        shares = " | ".join(f"{100 * value:.2f}" for value in row[f"share_{clock}"].values())
        found = row[f"ratio_{clock}"]
        lines.append(f"| {name} | {shares} | {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    given = parser.parse_args()
    row = measure(given.pairs)
    print(show(row))
    if given.out:
        setting = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        given.out.with_suffix(".json").write_text(json.dumps({**setting, **row}, indent=1) + "\n")
        where = f"Python {setting['python']}, {setting['machine']}, {setting['cores']} cores shared with other work."
        head = f"# What never losing a rollout costs\n\n{(__doc__ or '').strip()}\n\n{where}\n\n"
        given.out.with_suffix(".md").write_text(head + show(row) + "\n")


if __name__ == "__main__":
    main()
