"""Claim: commands that need no model start in under 0.5 s of CPU time, and load no torch.

Each command runs several times in a fresh interpreter. CPU time is user and system time of that process and does not
count what else runs on the machine, though caches and clock rates do; shown are the least and the median. What a
command imports is read from one more run with `python -X importtime`.

    python benchmarks/startup.py --out docs/results/startup
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RUNS = 7
AIM = 0.5
WATCHED = ("numpy", "pydantic", "yaml", "pluggy", "jinja2", "torch", "transformers", "trl", "datasets")

COMMANDS = {
    "--version": ["--version"],
    "--help": ["--help"],
    "compare --help": ["compare", "--help"],
    "compare of two CSV files": ["compare", "a.csv", "b.csv"],
    "plugins": ["plugins"],
    "suites": ["suites"],
    "recipes": ["recipes"],
    "view --help": ["view", "--help"],
    "report --help": ["report", "--help"],
}


def measured(arguments: list[str], folder: Path) -> dict[str, Any]:
    """CPU seconds, peak memory and imports of one command."""
    command = [sys.executable, "-m", "fate_trl", *arguments]
    seconds, peak = [], 0.0
    for _ in range(RUNS):
        child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"fate-trl {' '.join(arguments)} ended with status {child.returncode}")
        seconds.append(used.ru_utime + used.ru_stime)
        peak = max(peak, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
    command[1:1] = ["-X", "importtime"]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines() if line.startswith("import time:")}
    return {
        "cpu_s": {"least": min(seconds), "median": statistics.median(seconds), "n": RUNS},
        "peak_mb": peak,
        "modules": len(imported),
        "packages": [name for name in WATCHED if name in imported],
    }


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, score in (("a.csv", 0), ("b.csv", 1)):
            rows = [f"{case},{(case + score) % 2}" for case in range(100)]
            (folder / file).write_text("\n".join(["case,score", *rows]) + "\n", encoding="utf-8")
        commands = {label: measured(arguments, folder) for label, arguments in COMMANDS.items()}
    return {
        "aim_s": AIM,
        "commands": commands,
        "machine": {"cpus": os.cpu_count(), "load_average": os.getloadavg()[0], "python": platform.python_version()},
    }


def page_of(found: dict[str, Any]) -> str:
    machine = found["machine"]
    lines = [
        "# Startup",
        "",
        f"CPU time (user and system) of whole commands in fresh interpreters, {RUNS} runs each; Python "
        f"{machine['python']} on {machine['cpus']} CPU cores, shared with other work (load average "
        f"{machine['load_average']:.1f}). Made by `benchmarks/startup.py`.",
        "",
        f"| fate-trl … | least, s | median, s | aim, s | peak memory, MB | loads, of {', '.join(WATCHED)} |",
        "|---|---|---|---|---|---|",
    ]
    for label, row in found["commands"].items():
        cpu = row["cpu_s"]
        lines.append(
            f"| {label} | {cpu['least']:.2f} | {cpu['median']:.2f} | < {found['aim_s']} | {row['peak_mb']:.0f} "
            f"| {', '.join(row['packages']) or 'none'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md.")
    out = parser.parse_args().out
    found = measure()
    print(page_of(found))
    if out:
        out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(page_of(found), encoding="utf-8")


if __name__ == "__main__":
    main()
