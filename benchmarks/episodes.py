"""Claim: the AgentDojo plugin opens an episode at least ten times faster than AgentDojo loads its environment.

Both sides open the same attacked tasks in the same run, taking turns, and end with the same state (the plugin's tests
compare them): the injected environment, and the copy of it that graders compare with. "First" is with injected texts
not met before, "again" is the second time, as in a group of rollouts. A whole episode is opening, the oracle's calls,
rendering and grading. Time is CPU time of this process, so that neighbours on the machine weigh less. The interval
of a ratio of totals is a bootstrap over tasks.

    pip install -e plugins/fate-trl-agentdojo
    python benchmarks/episodes.py --out docs/results/episodes.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement
from agentdojo.agent_pipeline.tool_execution import tool_result_to_str
from agentdojo.attacks import load_attack
from agentdojo.base_tasks import BaseInjectionTask, BaseUserTask
from agentdojo.functions_runtime import FunctionCall, FunctionsRuntime
from agentdojo.task_suite.load_suites import get_suite
from fate_trl_agentdojo import loading
from fate_trl_agentdojo.episode import goal_reached, user_task_done

from fate_trl import plugins
from fate_trl.types import Script, Task

VERSION = "v1.2.2"
NAMES = ("workspace", "travel", "banking", "slack")


class Target(BasePipelineElement):
    """What attacks address: they look their victim's name up by this one."""

    name = "local"

    def query(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("attacks ask for the name only")


class Upstream:
    """AgentDojo's own way through an episode, without a model."""

    def __init__(self, name: str):
        self._suite = get_suite(VERSION, name)
        self._runtime = FunctionsRuntime(self._suite.tools)
        self._attack = load_attack("important_instructions", self._suite, Target())

    def members(self, task: Task) -> tuple[BaseUserTask, BaseInjectionTask]:
        return self._suite.user_tasks[task.data["user"]], self._suite.injection_tasks[task.data["injection"]]

    def injections(self, task: Task) -> dict[str, str]:
        return self._attack.attack(*self.members(task))

    def open(self, task: Task, injections: dict[str, str]) -> tuple[Any, Any]:
        user, _ = self.members(task)
        environment = user.init_environment(self._suite.load_and_inject_default_environment(injections))
        return environment, environment.model_copy(deep=True)

    def episode(self, task: Task, injections: dict[str, str], script: Script) -> bool:
        environment, before = self.open(task, injections)
        calls = [FunctionCall(function=call["name"], args=call["arguments"]) for call in script.calls]
        for call in calls:
            result, _ = self._runtime.run_function(environment, call.function, call.args)
            tool_result_to_str(result)
        user, injection = self.members(task)
        done = user_task_done(user, script.answer, before, environment, calls)
        return done and not goal_reached(injection, script.answer, before, environment, calls)


def our_episode(suite: Any, task: Task, script: Script) -> bool:
    episode = suite.open(task)
    for call in script.calls:
        episode.execute(call["name"], call["arguments"])
    outcome = episode.outcome([], [{"role": "assistant", "content": script.answer}])
    return outcome.utility == 1.0 and not outcome.attacked


def seconds_of(function: Callable[..., Any], *arguments: Any) -> float:
    start = process_time()
    result = function(*arguments)
    end = process_time()
    assert result, "the oracle failed"
    return end - start


def measure(name: str, pairs: int, seed: int) -> np.ndarray:
    """Seconds of CPU, shape (tasks, 5): upstream opens; we open, new texts, then texts met before; then a whole
    episode with the oracle's calls, upstream's and ours. Making the injected texts is timed on neither side."""
    suite, upstream = plugins.load("suite", f"agentdojo/{name}", {"version": VERSION}), Upstream(name)
    rows = []
    for number, task in enumerate([task for task in suite.tasks("all", seed) if task.kind == "attacked"][:pairs]):
        injections, script = upstream.injections(task), suite.script(task, "oracle")
        loading._scalar.cache_clear()  # making the script has opened the task
        sides = [
            lambda t=task, i=injections: [seconds_of(upstream.open, t, i)],
            lambda t=task: [seconds_of(suite.open, t), seconds_of(suite.open, t)],
            lambda t=task, i=injections, s=script: [seconds_of(upstream.episode, t, i, s)],
            lambda t=task, s=script: [seconds_of(our_episode, suite, t, s)],
        ]
        order = (0, 1, 2, 3) if number % 2 else (1, 0, 3, 2)  # neither side always goes first
        measured = {side: sides[side]() for side in order}
        rows.append([second for side in range(4) for second in measured[side]])
    return np.array(rows)


def ratio(slow_T: np.ndarray, fast_T: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Ratio of totals over T tasks with a 95 % bootstrap interval over tasks."""
    draws = rng.integers(len(slow_T), size=(4000, len(slow_T)))
    low, high = np.quantile(slow_T[draws].sum(axis=1) / fast_T[draws].sum(axis=1), [0.025, 0.975])
    return {"value": float(slow_T.sum() / fast_T.sum()), "low": float(low), "high": float(high)}


def summarise(seconds: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    theirs, first, again, episode_theirs, episode_ours = seconds.T
    return {
        "tasks": len(seconds),
        "open_ms": {"upstream": 1e3 * theirs.mean(), "first": 1e3 * first.mean(), "again": 1e3 * again.mean()},
        "open_ratio_first": ratio(theirs, first, rng),
        "open_ratio_again": ratio(theirs, again, rng),
        "episodes_per_second": {"upstream": 1 / episode_theirs.mean(), "ours": 1 / episode_ours.mean()},
        "episode_ratio": ratio(episode_theirs, episode_ours, rng),
    }


def show(rows: dict[str, dict[str, Any]]) -> str:
    def interval(value: dict[str, float]) -> str:
        return f"{value['value']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"

    lines = [
        "| suite | tasks | upstream opens, ms | first, ms | again, ms | faster, first | faster, again "
        "| episodes/s upstream | episodes/s ours | faster |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        opens, rate = row["open_ms"], row["episodes_per_second"]
        lines.append(
            f"| {name} | {row['tasks']} | {opens['upstream']:.1f} | {opens['first']:.2f} | {opens['again']:.2f} "
            f"| {interval(row['open_ratio_first'])} | {interval(row['open_ratio_again'])} "
            f"| {rate['upstream']:.1f} | {rate['ours']:.1f} | {interval(row['episode_ratio'])} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100, help="attacked tasks per suite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    seconds = {name: measure(name, arguments.pairs, arguments.seed) for name in NAMES}
    rows = {name: summarise(measured, rng) for name, measured in seconds.items()}
    rows["all"] = summarise(np.concatenate(list(seconds.values())), rng)
    print(show(rows))
    if arguments.out:
        setting = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        record = {"benchmark": VERSION, "agentdojo": version("agentdojo"), "seed": arguments.seed, **setting}
        arguments.out.write_text(json.dumps({**record, "suites": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
