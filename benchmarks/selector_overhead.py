"""What a selector that learns, or that reads facts about rows, costs a step of PFPOTrainer beside `pareto-front`.

    python benchmarks/selector_overhead.py [docs/results/selector_overhead.json] [--steps 20]

The episodes of trainer_overhead.py: 64 completions per step in groups of 8, two tools, four verifiers; the learning
rate is 0, so all selectors see the same tokens. What differs between selectors is the time in `_select` (the question,
the answer, what is learned) and in `facts_of`; it is taken in CPU time of the thread, which other work on the machine
hardly disturbs. The step time with a selector over that with `pareto-front` is then 1 + what it takes more / the step;
the target is at most 1.02. Needs plugins/fate-trl-methods.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from trainer_overhead import settings
from transformers import TrainerCallback

from fate_trl.train import trainer as trainer_module
from fate_trl.train.config import PFPOConfig
from fate_trl.train.trainer import PFPOTrainer

MEASURED: dict[str, dict[str, Any]] = {
    "pareto-front": {},
    "advantages/lagrangian": {"thresholds": {"security": 0.9}},
    "advantages/mixed-var": {},
    "advantages/maxmin": {},
    "advantages/polychromic": {},
    "advantages/segments": {},
    "advantages/value-differences": {},
}


class Clock(TrainerCallback):
    """CPU time of each step, and in it of what is timed; the first step, which warms caches, is left out."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.own: list[float] = []
        self._inside = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside += time.thread_time() - started

        return run

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.manual_seed(state.global_step)
        self._started, self._inside = time.thread_time(), 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step > 1:
            self.steps.append(time.thread_time() - self._started)
            self.own.append(self._inside)


def measure(make: Callable[..., Any], name: str, arguments: dict[str, Any], steps: int) -> Clock:
    """Train with one selector."""

    def config(*args: Any, **kwargs: Any) -> PFPOConfig:
        return PFPOConfig(*args, selector=name, selector_args=arguments, **kwargs)

    clock, facts_of = Clock(), trainer_module.facts_of
    trainer = make(PFPOTrainer, config, steps, 0)
    trainer._select = clock.timed(trainer._select)
    trainer.add_callback(clock)
    trainer_module.facts_of = clock.timed(facts_of)
    try:
        trainer.train()
    finally:
        trainer_module.facts_of = facts_of
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", nargs="?", default="docs/results/selector_overhead.json")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per selector")
    options = parser.parse_args()
    torch.set_num_threads(1)
    make = settings()["episodes and verifiers"]
    clocks = {name: measure(make, name, arguments, options.steps) for name, arguments in MEASURED.items()}
    step = float(np.median([np.median(clock.steps) for clock in clocks.values()]))
    plain = float(np.median(clocks["pareto-front"].own))
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, 1 thread",
        "steps": options.steps,
        "step_ms": 1000 * step,
    }
    print("| selector | own ms | ratio of steps |\n|---|---|---|")
    for name, clock in clocks.items():
        own = float(np.median(clock.own))
        results[name] = {"own_ms": 1000 * own, "ratio": 1 + (own - plain) / step}
        print(f"| {name} | {1000 * own:.2f} | {results[name]['ratio']:.4f} |", flush=True)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    Path(options.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
