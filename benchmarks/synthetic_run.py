"""A large run directory without a model: what the report and the viewer are measured and tested on.

The rounds are real (workbench tasks, executed calls, the built-in verifiers, Pareto selection, the ledger); only the
policy is a script with an adjustable skill. To be as bulky as a model's records, its trajectories carry made-up
token ids; to be as untidy, some end in an infrastructure error, some are cut off, some call a tool wrongly.

    python benchmarks/synthetic_run.py RUN [--trajectories 50000]
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fate_trl import __version__, plugins
from fate_trl.hookspecs import Suite
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.rounds import Evolution
from fate_trl.recipe.loading import make_recipe
from fate_trl.recipe.schema import objectives_of
from fate_trl.record import stable_hash
from fate_trl.suites.scripted import Role, ScriptedLearner
from fate_trl.types import RolloutRequest, ToolCall, Trajectory

FULL = 50_000
SIZES = {"train": 1400, "validation": 240, "test": 1000}
"""Workbench tasks for a run of FULL trajectories; the workbench has not many more."""

ROUNDS, CANDIDATES = 3, 15
ERRORS, CUT, MALFORMED = 0.004, 0.02, 0.03
"""Shares of trajectories that end in an infrastructure error, at the token limit, or begin with a wrong call."""

TOOL_TIMED_OUT = "tool read_file took over 30 s"


class SyntheticLearner(ScriptedLearner):
    """A scripted learner whose records look like a model's. A role on a task is executed once, and then repeated."""

    def __init__(self, suites: Mapping[str, Suite]):
        super().__init__(suites, skill=0.1, repair_skill=0.35, gain=0.03)
        self._played: dict[tuple[str, str], Trajectory] = {}

    def rollout(self, requests: Sequence[RolloutRequest], seed: int) -> list[Trajectory]:
        return [self._untidy(trajectory, seed) for trajectory in super().rollout(requests, seed)]

    def _one(self, request: RolloutRequest, role: Role) -> Trajectory:
        key = (request.task.id, role)
        if key not in self._played:
            self._played[key] = super()._one(request, role)
        return dataclasses.replace(
            self._played[key], prompt=request.messages, stage=request.stage, attempt=request.attempt
        )

    def _untidy(self, trajectory: Trajectory, seed: int) -> Trajectory:
        rng = random.Random(stable_hash(seed, *trajectory.key))
        draw = rng.random()
        if draw < ERRORS:
            trajectory = dataclasses.replace(trajectory, outcome=None, stop="error", error=TOOL_TIMED_OUT)
        elif draw < ERRORS + CUT:
            trajectory = dataclasses.replace(trajectory, messages=trajectory.messages[:-1], stop="length")
        elif draw < ERRORS + CUT + MALFORMED:
            trajectory = _with_wrong_call(trajectory)
        prompt, sampled = rng.randint(150, 400), rng.randint(20, 120)
        return dataclasses.replace(
            trajectory,
            prompt_ids=tuple(rng.randbytes(prompt)),
            completion_ids=tuple(rng.randbytes(sampled)),
            policy_mask=(1,) * sampled,
        )


def _with_wrong_call(trajectory: Trajectory) -> Trajectory:
    """The trajectory with a call in front that the tool refused."""
    refused = "read_file: missing a required argument: 'path'"
    call = {"type": "function", "function": {"name": "read_file", "arguments": {}}}
    return dataclasses.replace(
        trajectory,
        messages=(
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "read_file", "content": refused},
            *trajectory.messages,
        ),
        calls=(ToolCall("read_file", {}, refused, fault="arguments"), *trajectory.calls),
    )


def write_run(folder: Path, trajectories: int = FULL) -> int:
    """Write a run of about that many trajectories (not fewer, from 1,000 on); returns how many there are."""
    share = min(1.0, trajectories / FULL)
    recipe = make_recipe(
        {
            "suites": [{"name": "workbench", "args": {name: round(size * share) for name, size in SIZES.items()}}],
            "verifiers": ["security", "utility", "over_refusal", "trajectory_control"],
            "repair": {"strategy": "reflect", "k": CANDIDATES, "accept": "dominates"},
            "selector": "pareto-front",
            "rollout": {"tasks": None, "chunk": 1200},
            "rounds": ROUNDS,
            "evaluation": {"validation": 240},
            "sft": {},
            "pfpo": {},
            "output_dir": str(folder),
        }
    )
    run = RunDirectory(folder)
    suites = {ref.name: plugins.load("suite", ref.name, ref.args) for ref in recipe.suites}
    verifiers = [plugins.load("verifier", ref.name, ref.args) for ref in recipe.verifiers]
    run.write_text("recipe.yaml", recipe.dump())
    manifest = {"schema": 1, "fate_trl": __version__, "seed": recipe.seed}
    run.write_json("manifest.json", manifest | {"suites": {name: suite.describe() for name, suite in suites.items()}})
    Evolution(
        recipe=recipe,
        suites=suites,
        verifiers=verifiers,
        repair=plugins.load("repair", recipe.repair.strategy.name, recipe.repair.strategy.args),
        selector=plugins.load("selector", recipe.selector.name, recipe.selector.args),
        learner=SyntheticLearner(suites),
        run=run,
        objectives=objectives_of(recipe, verifiers),
    )()
    files = [*folder.glob("rounds/*/rollouts.jsonl"), *folder.glob("rounds/*/repairs.jsonl")]
    return sum(file.read_bytes().count(b"\n") for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--trajectories", type=int, default=FULL)
    asked = parser.parse_args()
    start = time.perf_counter()
    count = write_run(asked.run, asked.trajectories)
    size = sum(file.stat().st_size for file in asked.run.rglob("*") if file.is_file())
    print(f"{count} trajectories, {size / 1e6:.0f} MB, {time.perf_counter() - start:.0f} s: {asked.run}")


if __name__ == "__main__":
    main()
