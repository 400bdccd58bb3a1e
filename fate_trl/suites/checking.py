"""`fate-trl suites check`: run the scripted policies over a suite, and list what cannot be right.

An oracle that fails its own task, or a policy that does nothing and passes, is a defect of the suite. A task without an
oracle, or an attack without a script, is no defect, but is listed by name: nobody knows whether it can be done.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..hookspecs import Suite
from ..record import dumps
from ..types import Outcome, RolloutRequest, Trajectory, pass_mark
from ..verify.scoring import Security, Utility, score_all
from .scripted import ROLES, perform, script_for


def check_suite(suite: Suite, seed: int = 0, advance: Callable[[int], None] = lambda amount: None) -> dict[str, Any]:
    """Play every role on every task of a suite.

    Returns:
        {"tasks": {kind: n}, "tools": [{"name", "signature"}], "roles": {role: {kind: {"n", "played", "utility_passes",
        "attacker_wins", "harm", "resolved"}}}, "defects": [...], "errors": [...], "causes": [{"level", "what",
        "detail", "tasks"}], "no_oracle_script": [ids], "no_attack_script": [ids], "describe": {...}}, JSON values only.
        `played` counts tasks that have a script for the role; `causes` are the defects and errors again, each cause
        once with its tasks, and the first one's details.
    """
    tasks = list(suite.tasks("all", seed))
    roles: dict[str, dict[str, dict[str, float]]] = {}
    defects: list[Defect] = []
    errors: list[Defect] = []
    unscripted: dict[str, list[str]] = {"oracle": [], "obey": []}
    for role in ROLES:
        for task in tasks:
            tally = roles.setdefault(role, {}).setdefault(task.kind, dict.fromkeys(_COLUMNS, 0))
            tally["n"] += 1
            script = script_for(suite, task, role)
            if script is None:
                unscripted[role] += [task.id] if role == "oracle" or task.kind != "benign" else []
            else:
                trajectory = perform(suite, RolloutRequest(task, task.messages), script, role)
                _count(tally, trajectory)
                defects += _defects(trajectory)
                errors += [Defect(task.id, trajectory.error)] if trajectory.error else []
            advance(1)
    kinds = {kind: sum(task.kind == kind for task in tasks) for kind in dict.fromkeys(task.kind for task in tasks)}
    return {
        "tasks": kinds,
        "tools": [{"name": name, "signature": f"{name}{inspect.signature(t)}"} for name, t in suite.tools().items()],
        "roles": roles,
        "defects": list(map(str, defects)),
        "errors": list(map(str, errors)),
        "causes": [*_causes("defect", defects), *_causes("error", errors)],
        "no_oracle_script": unscripted["oracle"],
        "no_attack_script": unscripted["obey"],
        "describe": suite.describe(),
    }


_COLUMNS = ("n", "played", "utility_passes", "attacker_wins", "harm", "resolved")


def _count(tally: dict[str, float], trajectory: Trajectory) -> None:
    tally["played"] += 1
    outcome = trajectory.outcome
    if outcome is None:
        return
    tally["utility_passes"] += (outcome.utility or 0.0) >= pass_mark("utility")
    tally["attacker_wins"] += bool(outcome.attacked)
    tally["harm"] += outcome.harm or 0.0
    tally["resolved"] += score_all([Security(), Utility()], [trajectory])[0].resolved


@dataclass(frozen=True)
class Defect:
    """What is wrong with a task: the cause, which others may share, and what is this task's own."""

    task: str
    what: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.task}: {self.what}" + (f"; {self.detail}" if self.detail else "")


def _causes(level: str, defects: Sequence[Defect]) -> list[dict[str, Any]]:
    """Each cause once, in the order of the first task that has it."""
    alike: dict[str, list[Defect]] = {}
    for defect in defects:
        alike.setdefault(defect.what, []).append(defect)
    return [
        {"level": level, "what": what, "detail": same[0].detail, "tasks": list(dict.fromkeys(d.task for d in same))}
        for what, same in alike.items()
    ]


def defects_of(trajectory: Trajectory) -> list[str]:
    """What is wrong with the suite if a role, which is the trajectory's policy, got this far."""
    return list(map(str, _defects(trajectory)))


def _defects(trajectory: Trajectory) -> list[Defect]:
    outcome, task, role = trajectory.outcome, trajectory.task, trajectory.policy
    if outcome is None:
        return []
    graded = outcome.utility is not None or bool(outcome.fault)  # a task for judges states no utility
    done = outcome.utility is not None and outcome.utility >= pass_mark("utility")
    found = []
    if role == "oracle" and task.kind != "harmful" and graded and not done:
        found.append(_oracle(trajectory, outcome))
    if role in ("oracle", "do-nothing", "refuse-all") and outcome.attacked:
        found.append(Defect(task.id, f"{role} reaches the attacker's goal"))
    if role in ("do-nothing", "refuse-all") and done:
        found.append(Defect(task.id, f"{role} passes the task"))
    if role in ("do-nothing", "refuse-all") and outcome.harm:
        found.append(Defect(task.id, f"{role} does harm"))
    return found


def _oracle(trajectory: Trajectory, outcome: Outcome) -> Defect:
    """Which conditions an oracle leaves unmet, where the suite says so, and which of its calls did not run."""
    unmet = outcome.info.get("unmet", [])
    failed = [call for call in trajectory.calls if call.fault]
    names = [text.partition(": ")[0] for text in unmet] + [f"{call.name} fails" for call in failed]
    told = [*unmet, *(f"{call.name}({dumps(call.arguments, sort=False)}): {call.result}" for call in failed)]
    what = "the oracle does not pass its own task"
    return Defect(trajectory.task.id, f"{what} ({', '.join(dict.fromkeys(names))})" if names else what, "; ".join(told))
