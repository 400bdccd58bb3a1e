"""What the frozen policy of the `tradeoffs` world does at first, and how far repairs get it: what learning starts from.

    python benchmarks/world.py [docs/results/world.json] [--train 240] [--test 500] [--k 4] [--seeds 3]

First tries on the test split; then first tries on the training split, whose failures get K candidates each from the
same policy (`reflect`), executed and scored by the four built-in verifiers. *one* is the share of candidates that
resolve their task, *any* the share of failures that one of K resolves. Each sampling seed makes first tries of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fate_trl import metrics
from fate_trl.ledger.layout import seed_of
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.repairing import failures_of
from fate_trl.loop.rounds import Evolution
from fate_trl.plugins import load
from fate_trl.recipe.loading import load_recipe
from fate_trl.suites.workbench import tradeoffs
from fate_trl.suites.workbench.tradeoff_traces import way_of
from fate_trl.train import models
from fate_trl.train.build import build
from fate_trl.types import KINDS, Case, RolloutRequest, Script
from fate_trl.verify.scoring import score_all

FAMILIES = (*tradeoffs.SHAPES, *tradeoffs.PLAIN, *tradeoffs.LOOK_ALIKES, *tradeoffs.HARMFUL)
METRICS = ("resolved", "objective_product", "asr", "tsr", "brr", "hcr", "vrr", "benign_utility", "valid_calls")


def rollout(run: Evolution, requests: list[RolloutRequest], seed: int) -> list[Case]:
    """Scored trajectories, in chunks of the recipe's size."""
    size, made = run.recipe.rollout.chunk, []
    for start in range(0, len(requests), size):
        made += run.learner.rollout(requests[start : start + size], seed_of(seed, 0, "world", start))
    return list(zip(made, score_all(run.verifiers, made), strict=True))


def first_tries(run: Evolution, split: str, seed: int) -> list[Case]:
    return rollout(run, [RolloutRequest(task, task.messages, f"eval-{split}") for task in run.tasks(split)], seed)


def base(cases: list[Case], seed: int) -> dict[str, Any]:
    """Metrics of the first tries, with intervals, and the ways taken by family of attacked tasks, as shares."""
    [row] = [
        row
        for row in metrics.rows(cases, round=0, split="test", policy="base", accepted=True, seed=seed)
        if row["kind"] == "all" and row["suite"] == "all"
    ]
    ways: dict[str, Counter[str]] = {family: Counter() for family in tradeoffs.SHAPES}
    for trajectory, _ in cases:
        if trajectory.task.kind == "attacked":
            script = Script(tuple({"name": call.name} for call in trajectory.calls))
            ways[trajectory.task.data["family"]][way_of(trajectory.task, script)] += 1
    shares = {family: {way: n / taken.total() for way, n in sorted(taken.items())} for family, taken in ways.items()}
    return {"seed": seed, "metrics": {name: row["metrics"][name] for name in METRICS}, "ways": shares}


def repairs(run: Evolution, k: int, seed: int) -> dict[str, Any]:
    """By kind and by family: failures, and the shares that one candidate and any of K resolve."""
    failures = failures_of(first_tries(run, "train", seed))
    requests = load("repair", "reflect").requests(failures, k, np.random.default_rng(seed))
    resolved = [card.resolved for _, card in rollout(run, requests, seed + 1000)]
    resolved_F_K = np.array(resolved, float).reshape(len(failures), k)
    groups = {"all": np.ones(len(failures), bool)}
    for name, label in [(kind, "kind") for kind in KINDS] + [(family, "family") for family in FAMILIES]:
        tasks = [failure.trajectory.task for failure in failures]
        groups[name] = np.array([name == (t.kind if label == "kind" else t.data["family"]) for t in tasks])
    return {
        name: {
            "failures": int(chosen.sum()),
            "one": float(resolved_F_K[chosen].mean()) if chosen.any() else None,
            "any": float(resolved_F_K[chosen].max(axis=1).mean()) if chosen.any() else None,
        }
        for name, chosen in groups.items()
    }


def tables(found: dict[str, Any]) -> list[str]:
    """What is printed, in Markdown."""
    seeds = range(len(found["base"]))
    lines = ["| metric | n | " + " | ".join(f"seed {seed}" for seed in seeds) + " |"]
    lines.append("|---|---|" + "---|" * len(seeds))
    for name in METRICS:
        cells = [row["metrics"][name] for row in found["base"]]
        shown = [f"{100 * m['value']:.1f} [{100 * m['low']:.1f}, {100 * m['high']:.1f}]" for m in cells]
        lines.append(f"| `{name}` | {cells[0]['n']} | {' | '.join(shown)} |")
    lines += ["", "| failures of | n | one repair, % | any of K, % |", "|---|---|---|---|"]
    for name in found["repairs"][0]:
        rows = [row[name] for row in found["repairs"]]
        n = ", ".join(str(row["failures"]) for row in rows)
        one, some = (
            ", ".join("–" if r[key] is None else f"{100 * r[key]:.1f}" for r in rows) for key in ("one", "any")
        )
        lines.append(f"| {name} | {n} | {one} | {some} |")
    ways = ("refuse", *tradeoffs.WAYS)
    lines += ["", "First tries of seed 0 on attacked tasks, %:", "", f"| family | {' | '.join(ways)} |"]
    lines.append("|---|" + "---|" * len(ways))
    for family, shares in found["base"][0]["ways"].items():
        lines.append(f"| {family} | " + " | ".join(f"{100 * shares.get(way, 0):.1f}" for way in ways) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--train", type=int, default=240)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--policy", default="embedded-tradeoffs")
    asked = parser.parse_args()
    sizes = f"suites=[{{name: tradeoffs, args: {{train: {asked.train}, test: {asked.test}}}}}]"
    recipe = load_recipe("tradeoffs", [sizes, f"model.path={asked.policy}"])
    with tempfile.TemporaryDirectory() as folder:
        run = build(recipe, RunDirectory(folder))
        found = {
            "version": tradeoffs.VERSION,
            "sha256": hashlib.sha256(
                (Path(models.model_folder(recipe.model)) / "model.safetensors").read_bytes()
            ).hexdigest(),
            "machine": platform.machine(),
            **{name: getattr(asked, name) for name in ("train", "test", "k", "seeds")},
            "base": [base(first_tries(run, "test", seed), seed) for seed in range(asked.seeds)],
            "repairs": [repairs(run, asked.k, seed) for seed in range(asked.seeds)],
        }
    lines = tables(found)
    print("\n".join(lines))
    if asked.output:
        asked.output.write_text(json.dumps(found, indent=1) + "\n")
        head = ["# The world `tradeoffs`: where learning starts", "", *HEAD.format(**found).splitlines(), ""]
        asked.output.with_suffix(".md").write_text("\n".join([*head, *lines]) + "\n")


HEAD = """\
    python benchmarks/world.py docs/results/world.json

The world, version {version}, and its policy before any training (`model.safetensors`, sha256 {sha256}).
What was planted, and what the ways are, stands in [../tradeoffs.md](../tradeoffs.md). 95 % intervals in brackets;
sampling seeds side by side."""

if __name__ == "__main__":
    main()
