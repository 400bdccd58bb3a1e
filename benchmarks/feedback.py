"""What a verifier's step and sentence buy: how often a failure is repaired, with and without them.

    python benchmarks/feedback.py --out docs/results/feedback

The embedded policy fails on training tasks of the workbench; each failure gets K candidates from the same policy under
each way of asking, executed and scored by the four built-in verifiers, accepted if they resolve the task. *single* is
the share of candidates that are accepted, *any* the share of failures with at least one among K. Seeds are averaged per
failure first; 95 % t-intervals over failures. Differences are paired by failure, against `reflect`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from fate_trl.ledger.layout import seed_of
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.repairing import failures_of
from fate_trl.loop.rounds import Evolution
from fate_trl.plugins import load
from fate_trl.recipe.loading import make_recipe
from fate_trl.train.build import build
from fate_trl.types import Failure, RolloutRequest
from fate_trl.verify.scoring import score_all

WAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "resample": ("resample", {}, "the plain task again: neither"),
    "transcript": ("reflect", {"sentences": False}, "task and failed trajectory: neither"),
    "step": ("reflect", {"sentences": False, "step": True}, "the same, and the step at fault"),
    "reflect": ("reflect", {}, "the same, and the verifiers' sentences (the default)"),
    "both": ("reflect", {"step": True}, "sentences and step"),
    "resume": ("resume", {}, "restart before the step at fault: the step, no sentence"),
}


def repaired(run: Evolution, failures: list[Failure], way: str, k: int, seed: int) -> np.ndarray:
    """Whether each candidate resolves its failure's task, shape (failures, K)."""
    name, args, _ = WAYS[way]
    requests = load("repair", name, args).requests(failures, k, np.random.default_rng(seed))
    size = run.recipe.rollout.chunk
    done = []
    for start in range(0, len(requests), size):
        tried = run.learner.rollout(requests[start : start + size], seed_of(seed, 1, way, start))
        done += [card.resolved for card in score_all(run.verifiers, tried)]
    return np.array(done, dtype=float).reshape(len(failures), k)


def measured(tasks: int, k: int, seeds: int) -> dict[str, Any]:
    """The rows of the table, and how many failures they are about."""
    rollout = {"chunk": 128, "max_completion_length": 128, "max_tool_calling_iterations": 6}
    suite = {"name": "workbench", "args": {"train": tasks}}
    recipe = make_recipe({"model": {"threads": 1}, "suites": [suite], "rollout": rollout})
    with tempfile.TemporaryDirectory() as folder:
        run = build(recipe, RunDirectory(folder))
        first = run.learner.rollout([RolloutRequest(task, task.messages) for task in run.tasks("train")], 0)
        failures = failures_of(zip(first, score_all(run.verifiers, first), strict=True))
        found = {way: np.stack([repaired(run, failures, way, k, seed) for seed in range(seeds)]) for way in WAYS}
    kinds = np.array([failure.trajectory.task.kind for failure in failures])
    rows = [row(way, group, found, kinds) for group in ("all", *sorted(set(kinds))) for way in WAYS]
    return {"tasks": tasks, "k": k, "seeds": seeds, "failures": len(failures), "rows": rows}


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean of (failures,) values with its 95 % t-interval."""
    mean, half = values.mean(), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return {"value": float(mean), "low": float(mean - half), "high": float(mean + half)}


def row(way: str, group: str, found: dict[str, np.ndarray], kinds: np.ndarray) -> dict[str, Any]:
    """One way of asking on the failures of one kind: shares with intervals, and the paired difference of `any`."""
    chosen = kinds == group if group != "all" else np.ones(len(kinds), bool)
    single = {name: values.mean(axis=(0, 2))[chosen] for name, values in found.items()}
    any_of = {name: values.max(axis=2).mean(axis=0)[chosen] for name, values in found.items()}
    return {
        "way": way,
        "kind": group,
        "n": int(chosen.sum()),
        "single": interval(single[way]),
        "any": interval(any_of[way]),
        "single_less_reflect": interval(single[way] - single["reflect"]),
    }


PAGE = """# What a verifier's step and sentence buy

    python benchmarks/feedback.py --out docs/results/feedback

How often a failure is repaired, by what the repair prompt says of it. The embedded policy fails on {failures} of
{tasks} training tasks of the workbench; each failure gets {k} candidates under each way of asking, with {seeds} seeds,
from the same policy. Candidates are executed and scored by the four built-in verifiers, and accepted if all objectives
pass.

- *single*: the share of candidates that are accepted. *any*: the share of failures with at least one among {k}.
- In brackets: 95 % t-intervals over failures, each averaged over its candidates and seeds first. The last column is
  paired by failure.

{table}

## What it says

- Sentences buy most: with them a failure is repaired at least once in two thirds of the cases, instead of half. Most of
  that is on harmful and attacked tasks. On benign ones no way of asking stands out.
- The step at fault buys something by itself, and about as much as the sentences where the attack has to be left alone.
- Both together do worse than sentences alone. The embedded policy was made on prompts that have the sentences and never
  the step, so with a model that can read it may well be otherwise; `step` is off by default.
- To restart before the fault (`resume`) repairs no more than to try again from the start.

One policy, one world, and a policy that had seen such prompts: read the order of the rows, not their size.

Python {python}, {cores} CPU cores, shared with other work.
"""


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| failures | asked with | n | single, % | any, % | single less `reflect`, points |"]
    lines.append("|---|---|---:|---|---|---|")
    for r in rows:
        cells = [
            f"{100 * m['value']:.1f} [{100 * m['low']:.1f}, {100 * m['high']:.1f}]"
            for m in (r[key] for key in ("single", "any", "single_less_reflect"))
        ]
        lines.append(f"| {r['kind']} | `{r['way']}`: {WAYS[r['way']][2]} | {r['n']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(found: dict[str, Any]) -> str:
    return PAGE.format(**{**found, "table": table(found["rows"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write OUT.json and OUT.md")
    parser.add_argument("--tasks", type=int, default=480)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    setting = {"python": platform.python_version(), "cores": os.cpu_count()}
    found = {**setting, **measured(asked.tasks, asked.k, asked.seeds)}
    print(page(found))
    if asked.out:
        Path(f"{asked.out}.md").write_text(page(found), encoding="utf-8")
        Path(f"{asked.out}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
