"""Pareto sorting against the libraries that do it: first front and full ranks, one thread, m = 4 objectives.

    python benchmarks/pareto.py [docs/results/pareto.json] [--quick]

Every library is used as its documentation shows: batched where it can (ours, botorch), else in a loop over groups, with
duplicates kept. Negating scores, building DEAP's individuals and compiling (paretoset's numba) are not timed. In each
repetition ours and every peer run one after the other on the same scores, each for at least BURST seconds; times are
medians, and ratios are medians of the repetition's own ratios. The clock is the thread's CPU time: everything runs in
one thread, and other work on the machine then counts less. A library that loops is timed on the first LOOP groups
only, as its time per group does not depend on their number.

Before timing, every peer's answer is compared with ours; a difference ends the run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fate_trl.choose import pareto

M = 4
GROUPS = (1, 8, 64, 512, 4096)
LOOP = 256
BURST = 0.01
SLOW = 0.2
"""Seconds of one call above which a library gets 3 repetitions only."""


# ------------------------------------------------------------------------------------------------ libraries
# Each takes prepared scores and returns the mask (g, n) of the first front, or the ranks (g, n) from 0.

Run = Callable[[Any], np.ndarray]


class Peer:
    """A library: how to prepare scores, and what to call. `ranks` is None where it has no such function."""

    batched = False

    def __init__(self, prepare: Callable[[np.ndarray], Any], front: Run, ranks: Run | None):
        self.prepare, self.front, self.ranks = prepare, front, ranks


def ours() -> Peer:
    peer = Peer(lambda scores: scores, pareto.first_front, pareto.front_ranks)
    peer.batched = True
    return peer


def pymoo() -> Peer:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    sorting = NonDominatedSorting()

    def front(costs: np.ndarray) -> np.ndarray:
        mask = np.zeros(costs.shape[:2], bool)
        for g, group in enumerate(costs):
            mask[g, sorting.do(group, only_non_dominated_front=True)] = True
        return mask

    return Peer(
        lambda scores: -scores,
        front,
        lambda costs: np.array([sorting.do(group, return_rank=True)[1] for group in costs]),
    )


def moocore() -> Peer:
    from moocore import is_nondominated, pareto_rank

    return Peer(
        lambda scores: scores,
        lambda scores: np.array([is_nondominated(group, maximise=True, keep_weakly=True) for group in scores]),
        lambda scores: np.array([pareto_rank(group, maximise=True) for group in scores]),
    )


def paretoset() -> Peer:
    from paretoset import paretorank, paretoset

    sense = ["max"] * M
    return Peer(
        lambda scores: scores,
        lambda scores: np.array([paretoset(group, sense=sense, distinct=False) for group in scores]),
        lambda scores: np.array([paretorank(group, sense=sense, distinct=False) for group in scores]) - 1,
    )


def botorch() -> Peer:
    import torch
    from botorch.utils.multi_objective.pareto import is_non_dominated

    torch.set_num_threads(1)
    peer = Peer(torch.from_numpy, lambda scores: is_non_dominated(scores, deduplicate=False).numpy(), None)
    peer.batched = True
    return peer


def deap() -> Peer:
    from deap import base
    from deap.tools import sortNondominated

    class Fitness(base.Fitness):
        weights = (1.0,) * M

    class Individual:
        def __init__(self, index: int, values: list[float]):
            self.index = index
            self.fitness = Fitness(values)

    def fronts(groups: list[list[Individual]], first_only: bool) -> np.ndarray:
        out = np.full((len(groups), len(groups[0])), -1)
        for g, group in enumerate(groups):
            for rank, front in enumerate(sortNondominated(group, len(group), first_front_only=first_only)):
                for individual in front:
                    out[g, individual.index] = rank
        return out

    return Peer(
        lambda scores: [[Individual(i, row) for i, row in enumerate(group)] for group in scores.tolist()],
        lambda groups: fronts(groups, True) == 0,
        lambda groups: fronts(groups, False),
    )


PEERS = {"pymoo": pymoo, "moocore": moocore, "paretoset": paretoset, "botorch": botorch, "deap": deap}


# ------------------------------------------------------------------------------------------------ measuring


def draw(kind: str, groups: int, rows: int) -> np.ndarray:
    """Scores (groups, rows, M): uniform, or three verifiers that pass with .7 and one graded in fifths."""
    rng = np.random.default_rng(0)
    if kind == "continuous":
        return rng.random((groups, rows, M))
    scores = (rng.random((groups, rows, M)) < 0.7).astype(float)
    scores[:, :, -1] = rng.integers(0, 6, (groups, rows)) / 5
    return scores


def seconds(run: Run, prepared: Any) -> float:
    """Mean seconds of one call, over as many calls as fill BURST."""
    start = time.thread_time()
    calls, passed = 0, 0.0
    while passed < BURST:
        run(prepared)
        calls, passed = calls + 1, time.thread_time() - start
    return passed / calls


def measure(libraries: dict[str, Peer], task: str, scores: np.ndarray, repetitions: int) -> dict[str, Any]:
    """Microseconds per group by library, and ratios ours/peer; None where the library has no such function."""
    runs: dict[str, tuple[Run, Any, int]] = {}
    expected = getattr(libraries["ours"], task)(scores)
    for name, library in libraries.items():
        run = getattr(library, task)
        if run is None:
            continue
        part = scores if library.batched else scores[:LOOP]
        prepared = library.prepare(part)
        if not np.array_equal(run(prepared), expected[: len(part)]):  # also the warm-up
            sys.exit(f"{name} and ours differ: {task} of {scores.shape}")
        runs[name] = (run, prepared, len(part))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions):
        for name, (run, prepared, groups) in runs.items():
            slow = taken[name] and taken[name][0] * groups > SLOW
            if repetition < 3 or not slow:
                taken[name].append(seconds(run, prepared) / groups)
    return {
        "us": {name: round(1e6 * float(np.median(taken[name])), 3) if name in taken else None for name in libraries},
        "ratio": {
            name: round(float(np.median(np.array(taken["ours"][: len(times)]) / times)), 3)
            for name, times in taken.items()
            if name != "ours"
        },
    }


# ------------------------------------------------------------------------------------------------ reporting


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Markdown: microseconds per group, and in brackets ours/peer (below 1: ours is faster)."""
    lines = [
        "| scores | task | G | n | ours | " + " | ".join(names) + " |",
        "|---|---|---|---|---|" + "---|" * len(names),
    ]
    for row in rows:
        cells = [
            f"{row['us'][name]:.2f} ({row['ratio'][name]:.2f})" if row["us"].get(name) is not None else "–"
            for name in names
        ]
        head = [row["scores"], row["task"], str(row["groups"]), str(row["rows"]), f"**{row['us']['ours']:.2f}**"]
        lines.append("| " + " | ".join(head + cells) + " |")
    return "\n".join(lines)


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="?", default="docs/results/pareto.json", help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="G = 64, n = 8 and 16, 3 repetitions")
    arguments = parser.parse_args()
    sizes = [(64, n) for n in (8, 16)] if arguments.quick else [(g, n) for g in GROUPS for n in (8, 16, 32, 64)]
    libraries, missing = {"ours": ours()}, []
    for name, make in PEERS.items():
        try:
            libraries[name] = make()
        except ImportError:
            missing.append(name)
    rows = []
    for kind in ("continuous", "near-binary"):
        for task in ("front", "ranks"):
            for groups, n in sizes:
                figures = measure(libraries, task, draw(kind, groups, n), 3 if arguments.quick else 9)
                rows.append({"scores": kind, "task": task, "groups": groups, "rows": n, **figures})
    print("Microseconds per group (ours / peer in brackets; below 1 ours is faster)\n")
    print(table(rows, [name for name in libraries if name != "ours"]))
    print(f"\nmissing: {', '.join(missing) or 'none'}")
    distributions = ["numpy", "torch", *(name for name in libraries if name != "ours")]
    record = {
        "objectives": M,
        "threads": 1,
        "machine": {"cpu": cpu(), "python": platform.python_version()},
        "versions": {name: importlib.metadata.version(name) for name in distributions if name not in missing},
        "missing": missing,
        "rows": rows,
    }
    path = Path(arguments.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
