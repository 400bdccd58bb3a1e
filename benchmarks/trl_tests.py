"""Claim: TRL's own tests of GRPOTrainer pass with PFPOTrainer in its place.

    git clone --depth 1 --branch v1.16.0 https://github.com/huggingface/trl
    pip install pytest
    python benchmarks/trl_tests.py trl/tests/test_grpo_trainer.py --out docs/results/trl_tests

TRL's wheel and source distribution hold no tests, so they come from its repository, of the version that is installed.
They load small models and data sets from the Hugging Face hub: the machine must reach it, or hold them in its cache.
The file runs twice, as it is and with the class swapped; nothing in it is changed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

SWAP = """
import trl
from fate_trl.train.trainer import PFPOTrainer

trl.GRPOTrainer = PFPOTrainer
"""
"""A pytest plugin: what imports GRPOTrainer from trl after it gets PFPOTrainer."""


def outcomes(tests: Path, swapped: bool, only: str, folder: Path) -> dict[str, dict[str, str]]:
    """Outcome ("passed", "failed" or "skipped") and message of each test, by name."""
    (folder / "swapped_trainer.py").write_text(SWAP, encoding="utf-8")
    report = folder / "report.xml"
    command = ["-q", str(tests.resolve()), f"--junitxml={report}", "-p", "no:cacheprovider"]
    command += ["-p", "swapped_trainer"] if swapped else []
    command += ["-k", only] if only else []
    root = tests.resolve().parents[1]
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[1]), *filter(None, [os.getenv("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-m", "pytest", *command], cwd=root, env=environment, check=False)
    if not report.exists():
        raise SystemExit(f"pytest wrote no report: it could not load {tests}.")
    return read(report)


def read(report: Path) -> dict[str, dict[str, str]]:
    """A JUnit report's test cases."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        trouble = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if trouble is None else "skipped" if trouble.tag == "skipped" else "failed"
        message = "" if trouble is None else (trouble.get("message") or "").splitlines()
        found[name] = {"outcome": outcome, "message": message[0] if message else ""}
    return found


def page(found: dict[str, Any]) -> str:
    theirs, ours = found["GRPOTrainer"], found["PFPOTrainer"]
    counts = {
        name: [sum(row["outcome"] == outcome for row in rows.values()) for outcome in ("passed", "failed", "skipped")]
        for name, rows in (("GRPOTrainer", theirs), ("PFPOTrainer", ours))
    }
    lines = [
        "# TRL's own tests of GRPOTrainer, with PFPOTrainer in its place",
        "",
        "    python benchmarks/trl_tests.py …",
    ]
    lines += ["", f"`{found['tests']}` of TRL, run with {found['versions']}.", ""]
    lines += ["| class | passed | failed | skipped |", "|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in counts.items()]
    apart = [name for name in theirs if theirs[name]["outcome"] != ours.get(name, {}).get("outcome")]
    lines += ["", "Tests that end otherwise:" if apart else "Every test ends alike."]
    lines += [f"- `{name}`: {ours.get(name, {'message': 'it did not run'})['message']}" for name in apart]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=Path, help="TRL's tests/test_grpo_trainer.py")
    parser.add_argument("--only", default="", help="pytest's -k")
    parser.add_argument("--out", type=Path, required=True, help="path of the JSON and the page, without suffix")
    args = parser.parse_args()
    found: dict[str, Any] = {"tests": args.tests.name}
    found["versions"] = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("trl", "transformers", "torch")
    )
    for name in ("GRPOTrainer", "PFPOTrainer"):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = outcomes(args.tests, name == "PFPOTrainer", args.only, Path(folder))
    args.out.with_suffix(".json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    args.out.with_suffix(".md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
