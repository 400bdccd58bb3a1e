"""Scripted policies and a scripted learner: no model, no torch, milliseconds per round.

The policies are the sanity baselines of every report: an oracle, one that does nothing, one that refuses everything,
and one that obeys every instruction it meets. The learner exercises whole rounds in tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import ToolError
from ..hookspecs import Suite
from ..messages import Message
from ..process.bounded import Limits
from ..record import stable_hash
from ..types import BufferRow, Hindsight, Pair, RolloutRequest, Script, Task, Trajectory
from .episodes import Recorder

Role = Literal["oracle", "do-nothing", "refuse-all", "obey"]
ROLES: tuple[Role, ...] = ("oracle", "do-nothing", "refuse-all", "obey")
REFUSAL = "I can't help with that."


def script_for(suite: Suite, task: Task, role: Role) -> Script | None:
    """The script of a role on a task; None where the suite has none (an attack without a known way to succeed)."""
    if role == "do-nothing":
        return Script(answer="Done.")
    if role == "refuse-all" or (role == "oracle" and task.kind == "harmful"):
        return Script(answer=REFUSAL)
    return suite.script(task, role)


def perform(
    suite: Suite, request: RolloutRequest, script: Script, policy: str = "script", limits: Limits | None = None
) -> Trajectory:
    """Execute a script in a fresh episode, and record it as a policy's rollout would be."""
    recorder = Recorder(suite, request, limits)
    messages: list[Message] = []
    for call in script.calls:
        function = {"name": call["name"], "arguments": dict(call.get("arguments") or {})}
        messages.append(
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        )
        try:
            result = recorder.call(function["name"], function["arguments"])
        except ToolError as error:
            result = json.dumps({"error": str(error)})
        messages.append({"role": "tool", "name": function["name"], "content": result})
    messages.append({"role": "assistant", "content": script.answer})
    return recorder.trajectory(messages, "answer", policy)


class ScriptedPolicy:
    """Plays one role on every task; where the suite has no script for it, it does nothing.

    Args:
        suites: By the name that tasks carry.
        role: Which script to play.
        limits: Bounds around its episodes.
    """

    def __init__(self, suites: Mapping[str, Suite], role: Role, limits: Limits | None = None):
        self.suites = suites
        self.limits = limits
        self.role = role
        self.name: str = role

    def rollout(self, requests: Sequence[RolloutRequest], seed: int) -> list[Trajectory]:
        return [self._one(request, self.role) for request in requests]

    def _one(self, request: RolloutRequest, role: Role) -> Trajectory:
        suite = self.suites[request.task.suite]
        script = script_for(suite, request.task, role) or Script(answer="Done.")
        if request.replay:
            script = Script(calls=script.calls[len(request.replay) :], answer=script.answer)
        return perform(suite, request, script, self.name, self.limits)


class ScriptedLearner(ScriptedPolicy):
    """Plays the oracle with probability `skill`, a failing role otherwise; each training stage raises the skill.

    Which role it plays depends only on the seed and the request, so an interrupted run repeats itself exactly.

    Args:
        suites: By the name that tasks carry.
        skill: Probability of the oracle on a plain task, in [0, 1].
        repair_skill: The same on a repair prompt.
        gain: How much one training stage adds to the skill; negative to test roll-backs.
    """

    def __init__(self, suites: Mapping[str, Suite], skill: float = 0.4, repair_skill: float = 0.6, gain: float = 0.25):
        super().__init__(suites, "oracle")
        self.name = "scripted"
        self.skill = skill
        self.repair_skill = repair_skill
        self.gain = gain
        self.trained: list[tuple[str, int]] = []

    def rollout(self, requests: Sequence[RolloutRequest], seed: int) -> list[Trajectory]:
        return [self._one(request, self._role(request, seed)) for request in requests]

    def _role(self, request: RolloutRequest, seed: int) -> Role:
        draw = stable_hash(seed, request.stage, request.task.id, request.attempt)
        skill = self.repair_skill if request.stage == "repair" else self.skill
        if draw % 10_000 < skill * 10_000:
            return "oracle"
        return ("obey", "refuse-all", "do-nothing")[draw // 10_000 % 3]

    def _train(self, stage: str, amount: int) -> dict[str, Any]:
        self.skill = min(1.0, max(0.0, self.skill + self.gain))
        self.trained.append((stage, amount))
        return {"skill": self.skill}

    def sft(self, rows: Sequence[BufferRow], seed: int, stage: str, scratch: str | None = None) -> dict[str, Any]:
        return self._train(stage, len(rows))

    def distillation(self, turns: Sequence[Hindsight], seed: int, scratch: str | None = None) -> dict[str, Any]:
        return self._train("distillation", len(turns))

    def preference(
        self, pairs: Sequence[Pair], seed: int, scratch: str | None = None, reference: str | None = None
    ) -> dict[str, Any]:
        return self._train("preference", len(pairs))

    def pfpo(
        self, requests: Sequence[RolloutRequest], seed: int, scratch: str | None = None, reference: str | None = None
    ) -> dict[str, Any]:
        return self._train("pfpo", len(requests))

    def merge(
        self, folders: Sequence[str], coefficients: Sequence[float], path: str, exact: bool = False
    ) -> dict[str, Any]:
        skills = [json.loads((Path(folder) / "skill.json").read_text()) for folder in folders]
        skill = sum(c * skill for c, skill in zip(coefficients, skills, strict=True))
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "skill.json").write_text(json.dumps(skill))
        return {"skill": skill}

    def save(self, path: str) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "skill.json").write_text(json.dumps(self.skill))

    def load(self, path: str) -> None:
        self.skill = json.loads((Path(path) / "skill.json").read_text())
