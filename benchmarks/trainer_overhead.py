"""What PFPOTrainer costs on top of GRPOTrainer: time inside its own code, and step times side by side.

    python benchmarks/trainer_overhead.py [docs/results/trainer_overhead.json] [--steps 60]

Two settings, of 64 completions per step in groups of 8: plain prompts with four reward functions; and episodes with two
tools, where PFPOTrainer grades the episodes and calls the four built-in verifiers, and GRPOTrainer one trivial reward
function, so the second ratio includes what grading and verifying cost.

- *own*: time inside PFPOTrainer's methods, less the TRL methods, the graders and the verifiers that they call, and its
  share of the step.
- *grading*: time in episodes' outcomes and in verifiers. A suite's and a verifier's own cost comes on top of ours here.
- *ratio*: PFPOTrainer's step time over GRPOTrainer's. The two train side by side, one step at a time, one or the other
  ahead, from the same seed before each step; the learning rate is 0, so both generate the same tokens. The median of
  the pairs' ratios, with a bootstrap interval. It is given in CPU time, which other work on the machine disturbs less,
  and in wall-clock time.

One thread, one CPU; a model of 0.33 M parameters. A larger model makes every share smaller, as the time of our own code
depends on the number of completions alone.
"""

# ruff: noqa: E402 - the tiny world of the tests is found next door
from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
warnings.filterwarnings("ignore")

import numpy as np
import tiny
import torch
import transformers
import trl
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from fate_trl.suites.episodes import Recorder, environment_factories
from fate_trl.train import trainer as trainer_module
from fate_trl.train.config import PFPOConfig
from fate_trl.train.rows import request_dataset
from fate_trl.train.trainer import PFPOTrainer

OBJECTIVES = ["security", "utility", "over_refusal", "trajectory_control"]
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


# ------------------------------------------------------------------------------------------------ clocks


class Exclusive:
    """Time by (label, clock), each without the time of what it called under a label.

    One trainer runs at a time, so one stack serves both; GRPOTrainer's calls are all "trl".
    """

    def __init__(self) -> None:
        self.spent_so_far: dict[tuple[str, str], float] = defaultdict(float)
        self._open: list[dict[str, float]] = []

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            inside = dict.fromkeys(CLOCKS, 0.0)
            self._open.append(inside)
            started = {clock: now() for clock, now in CLOCKS.items()}
            try:
                return function(*args, **kwargs)
            finally:
                self._open.pop()
                for clock, now in CLOCKS.items():
                    took = now() - started[clock]
                    self.spent_so_far[label, clock] += took - inside[clock]
                    if self._open:
                        self._open[-1][clock] += took

        return run

    def attach(self) -> None:
        """Time the three methods of both classes, and what grades and verifies."""
        for cls, label in ((GRPOTrainer, "trl"), (PFPOTrainer, "ours")):
            for name in ("_generate", "_calculate_rewards", "_generate_and_score_completions"):
                setattr(cls, name, self.timed(label, vars(cls)[name]))
        Recorder.outcome = self.timed("grading", Recorder.outcome)  # type: ignore[method-assign]
        trainer_module.score_all = self.timed("grading", trainer_module.score_all)


class Turns:
    """Lets two trainers, each on a thread of its own, take their steps in turns: 0 1 1 0 0 1 1 0 and so on."""

    def __init__(self) -> None:
        self.done = 0
        self.changed = threading.Condition()

    def wait(self, who: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: (0, 1, 1, 0)[self.done % 4] == who)

    def finish(self) -> None:
        with self.changed:
            self.done += 1
            self.changed.notify_all()


class Steps(TrainerCallback):
    """Time of each step on both clocks, taken in turns; not of the first, which warms caches: `after_first` ends it."""

    def __init__(self, turns: Turns, who: int, after_first: Callable[[], None] = lambda: None) -> None:
        self.turns, self.who, self.after_first = turns, who, after_first
        self.took: dict[str, list[float]] = {clock: [] for clock in CLOCKS}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.turns.wait(self.who)
        torch.manual_seed(state.global_step)
        self._started = {clock: now() for clock, now in CLOCKS.items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        took = {clock: now() - self._started[clock] for clock, now in CLOCKS.items()}
        if state.global_step > 1:
            for clock in CLOCKS:
                self.took[clock].append(took[clock])
        else:
            self.after_first()
        self.turns.finish()


# ------------------------------------------------------------------------------------------------ settings


def reward(divisor: int) -> Callable[..., list[float]]:
    def of_ids(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(ids[0] % divisor) for ids in completion_ids]

    of_ids.__name__ = f"mod_{divisor}"
    return of_ids


def settings() -> dict[str, Callable[[type, type, int, int], Any]]:
    """Makers of trainers, by name of the setting: (class, configuration, steps, seed) to trainer."""
    tokenizer = tiny.make_tokenizer()
    model = tiny.make_model(tokenizer, hidden=128)
    plain = tiny.state(model)
    tiny.warm_up(model, tokenizer, tiny.traces(), steps=150)
    acting = tiny.state(model)
    suite = tiny.TillSuite()
    tasks = list(suite.tasks("train", 0)) * 8
    texts = Dataset.from_list([{"prompt": list(task.messages)} for task in tasks])

    def make(
        cls: type, config: type, steps: int, seed: int, weights: dict[str, Any], rewards: Any, data: Any, **more: Any
    ):
        own = tiny.make_model(tokenizer, hidden=128)
        own.load_state_dict(weights)
        length = more.pop("length")
        args = tiny.config(
            config,
            tempfile.gettempdir(),
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=length,
            generation_kwargs={"min_new_tokens": length} if weights is plain else None,
            max_steps=steps + 1,
            learning_rate=0.0,
            seed=seed,
            logging_strategy="no",
        )
        trainer = cls(own, rewards, args, data, processing_class=tokenizer, **more)
        return trainer

    def functions(cls: type, config: type, steps: int, seed: int) -> Any:
        return make(cls, config, steps, seed, plain, [reward(n) for n in (2, 3, 5, 7)], texts, length=32)

    def episodes(cls: type, config: type, steps: int, seed: int) -> Any:
        rewards = OBJECTIVES if cls is PFPOTrainer else [reward(2)]
        factories = environment_factories({"till": suite}, tasks)
        data = request_dataset(tiny.requests_for(tasks))
        return make(cls, config, steps, seed, acting, rewards, data, length=48, environment_factory=factories)

    return {"reward functions": functions, "episodes and verifiers": episodes}


# ------------------------------------------------------------------------------------------------ measuring


def side_by_side(make: Callable[..., Any], steps: int, exclusive: Exclusive) -> list[Steps]:
    """Train GRPOTrainer and PFPOTrainer in turns; their clocks, in this order."""
    turns = Turns()
    clocks = [Steps(turns, 0), Steps(turns, 1, exclusive.spent_so_far.clear)]
    trainers = [make(GRPOTrainer, GRPOConfig, steps, 0), make(PFPOTrainer, PFPOConfig, steps, 0)]

    def train(who: int) -> None:
        torch.set_num_threads(1)  # holds for this thread
        trainers[who].add_callback(clocks[who])
        trainers[who].train()

    threads = [threading.Thread(target=train, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clocks


def interval(ratios: np.ndarray) -> dict[str, float]:
    """Median and its 95 % interval, by percentile bootstrap over the pairs."""
    draws = np.random.default_rng(0).choice(ratios, size=(4000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


def measure(make: Callable[..., Any], steps: int, exclusive: Exclusive) -> dict[str, Any]:
    """One setting: the step times of both, and what of PFPOTrainer's was its own."""
    grpo, pfpo = side_by_side(make, steps, exclusive)
    out: dict[str, Any] = {"steps": steps}
    for clock in CLOCKS:
        a, b = np.array(grpo.took[clock]), np.array(pfpo.took[clock])
        own, grading = (exclusive.spent_so_far[label, clock] / steps for label in ("ours", "grading"))
        out[clock] = {
            "own_ms": 1000 * own,
            "own_share": own / b.mean(),
            "grading_ms": 1000 * grading,
            "grpo_ms": 1000 * float(np.median(a)),
            "pfpo_ms": 1000 * float(np.median(b)),
            **interval(b / a),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", nargs="?", default="docs/results/trainer_overhead.json")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each trainer, per setting")
    options = parser.parse_args()
    torch.set_num_threads(1)
    exclusive = Exclusive()
    exclusive.attach()
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, 1 thread",
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "settings": {},
    }
    print("| setting | clock | own ms | own share | grading ms | GRPO ms | PFPO ms | ratio (95 %) |")
    print("|---|---|---|---|---|---|---|---|")
    for name, make in settings().items():
        results["settings"][name] = row = measure(make, options.steps, exclusive)
        for clock in CLOCKS:
            r = row[clock]
            print(
                f"| {name} | {clock} | {r['own_ms']:.2f} | {r['own_share']:.2%} | {r['grading_ms']:.1f} "
                f"| {r['grpo_ms']:.0f} | {r['pfpo_ms']:.0f} | {r['ratio']:.4f} ({r['low']:.4f} to {r['high']:.4f}) |",
                flush=True,
            )
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    Path(options.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
