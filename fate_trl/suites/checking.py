"""`fate-trl suites check`: run the scripted policies over a suite, and list what cannot be right.

An oracle that fails its own task, or a policy that does nothing and passes, is a defect of the suite. A task without an
oracle, or an attack without a script, is no defect, but is listed by name: nobody knows that it can be done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..hookspecs import Suite
from ..types import PASS_AT, RolloutRequest, Trajectory
from ..verify.scoring import Security, Utility, score_all
from .scripted import ROLES, perform, script_for


def check_suite(suite: Suite, seed: int = 0, advance: Callable[[int], None] = lambda amount: None) -> dict[str, Any]:
    """Play every role on every task of a suite.

    Returns:
        {"tasks": {kind: n}, "roles": {role: {kind: {"n", "played", "utility_passes", "attacker_wins", "harm",
        "resolved"}}}, "defects": [...], "no_oracle_script": [task ids], "no_attack_script": [task ids],
        "errors": [...], "describe": {...}}, JSON values only. `played` counts tasks that have a script for the role.
    """
    tasks = list(suite.tasks("all", seed))
    roles: dict[str, dict[str, dict[str, float]]] = {}
    defects: list[str] = []
    errors: list[str] = []
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
                defects += defects_of(trajectory)
                errors += [f"{task.id}: {trajectory.error}"] if trajectory.error else []
            advance(1)
    kinds = {kind: sum(task.kind == kind for task in tasks) for kind in dict.fromkeys(task.kind for task in tasks)}
    return {
        "tasks": kinds,
        "roles": roles,
        "defects": defects,
        "no_oracle_script": unscripted["oracle"],
        "no_attack_script": unscripted["obey"],
        "errors": errors,
        "describe": suite.describe(),
    }


_COLUMNS = ("n", "played", "utility_passes", "attacker_wins", "harm", "resolved")


def _count(tally: dict[str, float], trajectory: Trajectory) -> None:
    tally["played"] += 1
    outcome = trajectory.outcome
    if outcome is None:
        return
    tally["utility_passes"] += (outcome.utility or 0.0) >= PASS_AT["utility"]
    tally["attacker_wins"] += bool(outcome.attacked)
    tally["harm"] += outcome.harm or 0.0
    tally["resolved"] += score_all([Security(), Utility()], [trajectory])[0].resolved


def defects_of(trajectory: Trajectory) -> list[str]:
    """What is wrong with the suite if a role, which is the trajectory's policy, got this far."""
    outcome, task, role = trajectory.outcome, trajectory.task, trajectory.policy
    if outcome is None:
        return []
    graded = outcome.utility is not None or bool(outcome.fault)  # a task for judges states no utility
    done = outcome.utility is not None and outcome.utility >= PASS_AT["utility"]
    found = []
    if role == "oracle" and task.kind != "harmful" and graded and not done:
        found.append(f"{task.id}: the oracle does not pass its own task")
    if role in ("oracle", "do-nothing", "refuse-all") and outcome.attacked:
        found.append(f"{task.id}: {role} reaches the attacker's goal")
    if role in ("do-nothing", "refuse-all") and done:
        found.append(f"{task.id}: {role} passes the task")
    if role in ("do-nothing", "refuse-all") and outcome.harm:
        found.append(f"{task.id}: {role} does harm")
    return found
