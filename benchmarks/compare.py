"""`fate-trl compare` on two logs of 10,000 samples: CPU seconds and memory, beyond those of reading the files.

    python -m benchmarks.compare [docs/results/compare]

Claim: the comparison itself takes less than 2 s of CPU, and its memory does not grow past the files' own rows. Two
tables of 10,000 cases in 500 clusters are made, with five scores, two of them zeros and ones. Reading and comparing
are timed apart, five times each.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from fate_trl.interchange.results import read
from fate_trl.report.results import compare_results

CASES, CLUSTERS, REPEATS = 10_000, 500, 5


def make(path: Path, shift: float, seed: int) -> None:
    """A table of results whose scores are a little better by `shift`."""
    rng = np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(CASES):
            scores = {"acc": int(rng.random() < 0.5 + shift), "pass": int(rng.random() < 0.9)}
            scores |= {name: round(float(rng.normal(shift, 1)), 4) for name in ("f1", "length", "reward")}
            file.write(
                json.dumps({"id": f"case-{i}", "cluster": i % CLUSTERS, "input": f"question {i}", **scores}) + "\n"
            )


def timed(work: Any) -> list[float]:
    taken = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return taken


def main(target: str = "docs/results/compare") -> None:
    with tempfile.TemporaryDirectory() as folder:
        a, b = Path(folder) / "a.jsonl", Path(folder) / "b.jsonl"
        make(a, 0.0, 0)
        make(b, 0.02, 1)
        reading = timed(lambda: (read(a), read(b)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        whole = timed(lambda: compare_results([str(a), str(b)]))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    record = {
        "cases": CASES,
        "clusters": CLUSTERS,
        "reading_s": statistics.median(reading),
        "whole_s": statistics.median(whole),
        "comparing_s": statistics.median(whole) - statistics.median(reading),
        "peak_mb_after_reading": before,
        "peak_mb_after_comparing": after,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    Path(f"{target}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Comparing two logs of 10,000 samples",
        "",
        f"Made by `python -m benchmarks.compare`. CPU seconds, medians of {REPEATS}; five scores, {CLUSTERS} clusters.",
        "",
        "| | CPU seconds | peak memory of the process, MB |",
        "|---|---|---|",
        f"| reading both | {record['reading_s']:.2f} | {before:.0f} |",
        f"| reading and comparing | {record['whole_s']:.2f} | {after:.0f} |",
        f"| comparing alone, by difference | {record['comparing_s']:.2f} | |",
    ]
    Path(f"{target}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines[4:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
