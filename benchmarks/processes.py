"""Claim: a run on two processes comes to what a run on one comes to, and how much sooner.

The quickstart is run as a user would run it, on one process and on two (gloo), with as many rows in each optimiser
step. Sampled text depends on the process that samples it, so the two runs differ as two
seeds do: `resolved` must lie within the other's interval. Wall-clock time depends on how many cores are free; CPU time,
of all processes together, does not, and shows what the second process costs.

    python benchmarks/processes.py --out docs/results/processes
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from fate_trl.suites.scripted import ROLES

ROWS = {"sft.per_device_train_batch_size": 16, "pfpo.per_device_train_batch_size": 64}
"""In all; each of two processes takes half."""

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
SEEDS = (0, 1, 2)


def ran(folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Figures of a run on so many processes."""
    run = folder / f"{number}-{seed}"
    settings = {**{key: rows // number for key, rows in ROWS.items()}, "seed": seed, "output_dir": str(run)}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    launcher = [*LAUNCHER, str(number)] if number > 1 else []
    before, start = _cpu_seconds(), time.perf_counter()
    subprocess.run(
        [sys.executable, *launcher, "-m", "fate_trl.cli", "run", "quickstart", "--quiet", *sets],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wall, cpu = time.perf_counter() - start, _cpu_seconds() - before
    rows = json.loads((run / "metrics.json").read_text())["rows"]
    resolved = {
        row["policy"]: {key: row["metrics"]["resolved"][key] for key in ("value", "low", "high", "n")}
        for row in rows
        if row["split"] == "test" and row["kind"] == "all" and row["suite"] == "all" and row["policy"] not in ROLES
    }
    stages = [json.loads(line) for file in sorted(run.glob("rounds/*/stages.jsonl")) for line in file.open()]
    spent = sum(record["seconds"] for record in stages)
    return {"wall_seconds": wall, "cpu_seconds": cpu, "stage_seconds": spent, "resolved": resolved}


def _cpu_seconds() -> float:
    """Of all children that have ended, and theirs."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


HEAD = """# Two processes against one

    python benchmarks/processes.py --out docs/results/processes

The quickstart on one process and on two (gloo, one thread each, {cores} CPU cores; before it began {load:.1f} other
processes wanted them on average), with as many rows in each optimiser step. How a run is shared out stands in
[More than one process](../processes.md).

| mean over {seeds} seeds | one process | two | ratio |
|---|---:|---:|---:|
{times}

Loading torch and TRL, choosing, and writing are not shared out, nor is what each process waits for the other at the end
of a chunk.

| seed | `resolved`, test split, 95 % interval | one process | two | each within the other's interval |
|---|---|---|---|---|
{resolved}

An interval is that of one policy over the test tasks. Two trainings from other samples end in two policies, as two
seeds do, and these may differ by more than that. At the end of the last round the mean over seeds is {ends}. How
far seeds spread on one process stands in [the evidence](../evidence-worlds.md#the-easy-world).

With a policy that is played back, so that nothing depends on sampling, both record the same trajectories, scores,
selections, buffer rows and metrics, to the byte (`tests/test_processes.py`).
"""


def show(found: dict[str, Any]) -> str:
    one, two = found["one"], found["two"]
    times = {
        "wall-clock seconds, start to end": "wall_seconds",
        "of that in stages": "stage_seconds",
        "CPU seconds of all processes": "cpu_seconds",
    }
    sums = [(words, *(mean(run[key] for run in side.values()) for side in (one, two))) for words, key in times.items()]
    pairs = [
        (seed, policy, one[seed]["resolved"][policy], two[seed]["resolved"][policy])
        for seed in one
        for policy in one[seed]["resolved"]
    ]
    return HEAD.format(
        ends=" and ".join(
            f"{100 * mean(_last(run) for run in side.values()):.1f} % on {name}"
            for name, side in (("one process", one), ("two", two))
        ),
        cores=found["cores"],
        seeds=len(one),
        load=found["load"],
        times="\n".join(f"| {words} | {a:.0f} | {b:.0f} | {b / a:.2f} |" for words, a, b in sums),
        resolved="\n".join(
            f"| {seed} | {policy} | {_interval(a)} | {_interval(b)} | {'yes' if _agree(a, b) else 'no'} |"
            for seed, policy, a, b in pairs
        ),
    )


def _last(run: dict[str, Any]) -> float:
    return float(list(run["resolved"].values())[-1]["value"])


def _agree(one: dict[str, float], other: dict[str, float]) -> bool:
    return all(b["low"] <= a["value"] <= b["high"] for a, b in ((one, other), (other, one)))


def _interval(side: dict[str, float]) -> str:
    return f"{side['value']:.3f} [{side['low']:.3f}, {side['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file to write, without .md and .json")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {
            name: {str(seed): ran(Path(folder), number, seed) for seed in SEEDS}
            for name, number in (("one", 1), ("two", 2))
        }
    found |= {"cores": os.cpu_count(), "load": load, "python": platform.python_version()}
    arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(show(found), encoding="utf-8")
    print(show(found))


if __name__ == "__main__":
    main()
