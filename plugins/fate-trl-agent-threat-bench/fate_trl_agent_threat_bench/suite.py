"""AgentThreatBench as a suite: inspect-evals' own data, tools and scorer, wrapped; only the scripts are ours."""

from __future__ import annotations

import importlib.metadata
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from inspect_ai.dataset import Sample
from inspect_ai.tool import Tool, ToolDef
from inspect_evals.agent_threat_bench import agent_threat_bench
from inspect_evals.agent_threat_bench.dataset import load_agent_threat_bench_dataset
from inspect_evals.agent_threat_bench.tools import TASK_TOOLS

from fate_trl import Kind, Script, SuiteError, Task, make_tool, stable_hash

from .episode import ThreatEpisode
from .scripts import attacked, obey, oracle

_EVALUATION_ONLY = (
    "AgentThreatBench has 24 tasks in all, so there is nothing to train on that would leave enough to measure with"
)


class ThreatSuite:
    """One of the three tasks; see the factory for the arguments."""

    def __init__(self, name: str, system: str | None = None):
        self.name = f"agent-threat-bench/{name}"
        self._task = name
        own = getattr(agent_threat_bench, f"{name.upper()}_SYSTEM_PROMPT")
        self._system: str = own if system is None else system
        self._samples: dict[str, Sample] = {
            str(sample.id): sample for sample in load_agent_threat_bench_dataset(task_name=name)
        }
        definitions = [(tool, ToolDef(tool)) for tool in TASK_TOOLS[name]]
        self._tools = {definition.name: tool for tool, definition in definitions}
        self._prototypes = {definition.name: _prototype(tool, definition) for tool, definition in definitions}

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """All tasks in "test", in an order drawn by `seed`; none in "train" and "validation"."""
        if split not in ("train", "validation", "test", "all"):
            raise SuiteError(f"{self.name} has no split {split!r}; it has train, validation, test and all")
        ids = list(self._samples) if split in ("test", "all") else []
        random.Random(stable_hash(self.name, split, seed)).shuffle(ids)
        yield from map(self._of, ids)

    def _of(self, id: str) -> Task:
        sample = self._samples[id]
        facts = sample.metadata or {}
        kind: Kind = "attacked" if attacked(self._task, facts) else "benign"
        system = [{"role": "system", "content": self._system}] if self._system else []
        return Task(
            id=id,
            suite=self.name,
            kind=kind,
            messages=(*system, {"role": "user", "content": str(sample.input)}),
            tools=tuple(self._tools),
            cluster=id,
            split="test",
            tags=(f"owasp:{facts['owasp_id']}", f"attack:{facts['attack_name']}", f"difficulty:{facts['difficulty']}"),
        )

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        return self._prototypes

    def open(self, task: Task) -> ThreatEpisode:
        """A fresh episode. Raises SuiteError if the task is not one of this suite's."""
        if task.id not in self._samples:
            raise SuiteError(f"{self.name} has no task {task.id!r}")
        return ThreatEpisode(self._samples[task.id], self._tools, attacked(self._task, self._facts(task)))

    def _facts(self, task: Task) -> Mapping[str, Any]:
        return self._samples[task.id].metadata or {}

    def script(self, task: Task, role: Literal["oracle", "obey"]) -> Script | None:
        """What does the task, or does it and what the injected text asks for (ours; the benchmark has no solutions)."""
        wanted = oracle if role == "oracle" else obey
        return wanted(self._task, str(self._samples[task.id].input), self._facts(task))

    def describe(self) -> dict[str, Any]:
        """For the manifest. Holds no prompt."""
        return {
            "benchmark": "AgentThreatBench",
            "task": self._task,
            "package": importlib.metadata.version("inspect-evals"),
            "hash": f"{stable_hash(*(sample.model_dump(mode='json') for sample in self._samples.values())):016x}",
            "licence": "MIT, with inspect-evals",
            "splits": {"train": 0, "validation": 0, "test": len(self._samples)},
            "evaluation_only": _EVALUATION_ONLY,
        }


def _prototype(tool: Tool, definition: ToolDef) -> Callable[..., Any]:
    described = definition.parameters.properties
    parameters = [
        (name, parameter.annotation, described[name].description or name)
        for name, parameter in inspect.signature(tool).parameters.items()
    ]
    return make_tool(definition.name, definition.description, parameters)
