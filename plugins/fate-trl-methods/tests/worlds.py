"""What the tests of the methods share: real scores of scripted roles, a bandit on them, and rows with made-up facts."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fate_trl import plugins
from fate_trl.hookspecs import Rows, takes_rows
from fate_trl.suites.scripted import perform, script_for
from fate_trl.train.facts import fact_of, rows_of
from fate_trl.types import OBJECTIVES, RolloutRequest, Trajectory
from fate_trl.verify.scoring import score_all


@cache
def played(suite: str, roles: tuple[str, ...], kind: str | None = None) -> tuple[list[list[Trajectory]], np.ndarray]:
    """Trajectories and scores (tasks, roles, 4) of scripted roles on a built-in suite's tasks, by its own verifiers."""
    world = plugins.load("suite", suite, {"train": 40, "validation": 0, "test": 0})
    tasks = [task for task in world.tasks("train", 0) if kind in (None, task.kind)]
    rows = []
    for task in tasks:
        scripts = [script_for(world, task, role) for role in roles]
        if all(script is not None for script in scripts):
            rows.append(
                [
                    perform(world, RolloutRequest(task, task.messages), script, role)
                    for script, role in zip(scripts, roles, strict=True)
                ]
            )
    cards = score_all([plugins.load("verifier", name) for name in OBJECTIVES], [t for row in rows for t in row])
    scores = np.array([card.vector(OBJECTIVES) for card in cards]).reshape(len(rows), len(roles), len(OBJECTIVES))
    return rows, scores


def facts(trajectories: list[list[Trajectory]], scores_G_N_M: np.ndarray) -> Rows:
    """What a trainer would tell of these trajectories."""
    told = [fact_of(t, [None] * scores_G_N_M.shape[2], False) for row in trajectories for t in row]
    return rows_of(told, scores_G_N_M, np.ones(scores_G_N_M.shape[:2], bool), OBJECTIVES)


def make(name: str, **arguments: Any) -> Any:
    return plugins.load("selector", f"advantages/{name}", arguments)


def ask(selector: Any, scores: Any, objectives: Any = None, valid: Any = None, rows: Rows | None = None) -> np.ndarray:
    """Advantages of scores (G, N) of one objective, or (G, N, M)."""
    scores_G_N_M = np.asarray(scores, float)
    if scores_G_N_M.ndim == 2:
        scores_G_N_M = scores_G_N_M[:, :, None]
    names = list(objectives or OBJECTIVES[: scores_G_N_M.shape[2]])
    valid_G_N = np.ones(scores_G_N_M.shape[:2], bool) if valid is None else np.asarray(valid, bool)
    more = {"rows": rows} if takes_rows(selector.advantages) else {}
    return selector.advantages(scores_G_N_M, objectives=names, valid_G_N=valid_G_N, **more)


def teach(selector: Any, scores: Any, objectives: Any = None, rows: Rows | None = None) -> None:
    scores_G_N_M = np.asarray(scores, float)
    if scores_G_N_M.ndim == 2:
        scores_G_N_M = scores_G_N_M[:, :, None]
    names = list(objectives or OBJECTIVES[: scores_G_N_M.shape[2]])
    more = {"rows": rows} if takes_rows(selector.learn) else {}
    selector.learn(scores_G_N_M, objectives=names, valid_G_N=np.ones(scores_G_N_M.shape[:2], bool), **more)


def row_facts(calls: Any = None, resolved: Any = None, stop: Any = None, turns: Any = None, **more: Any) -> Rows:
    """Facts of made-up rows (G, N): tool names, whether resolved, how ended, and tokens' turns (G, N, T).

    A row makes one call a turn, in order; without `turns` each turn is two tokens and a tool's token.
    """
    shape = np.shape(resolved if resolved is not None else stop)
    calls = calls or [[()] * shape[1]] * shape[0]
    prefix = np.array(more.get("prefix", np.zeros(shape, int)))
    boxed, paths, whose = (np.empty(shape, object) for _ in range(3))
    for g, n in np.ndindex(*shape):
        boxed[g, n] = tuple(calls[g][n])
        paths[g, n] = tuple(hash(tuple(calls[g][n][: i + 1])) for i in range(len(calls[g][n])))
        whose[g, n] = tuple(range(-int(prefix[g, n]), len(calls[g][n]) - int(prefix[g, n])))
        whose[g, n] = tuple(max(turn, -1) for turn in whose[g, n])
    if turns is None:
        longest = 3 * (1 + max(len(boxed[i]) for i in np.ndindex(*shape)))
        turns = np.full((*shape, longest), -1)
        for g, n in np.ndindex(*shape):
            for turn in range(1 + len(boxed[g, n]) - int(prefix[g, n])):
                turns[g, n, 3 * turn : 3 * turn + 2] = turn
    turns = np.asarray(turns)
    return Rows(
        task_G_N=np.array(more.get("task", [[f"t{g}"] * shape[1] for g in range(shape[0])])),
        kind_G_N=np.full(shape, "attacked"),
        attempt_G_N=np.zeros(shape, int),
        resolved_G_N=np.zeros(shape, bool) if resolved is None else np.array(resolved, bool),
        stop_G_N=np.full(shape, "answer") if stop is None else np.array(stop),
        calls_G_N=boxed,
        call_turns_G_N=whose,
        path_G_N=paths,
        prefix_G_N=prefix,
        spread_G_N_M=np.full((*shape, 1), np.nan),
        turn_G_N_T=turns,
    )


def bandit(selector: Any, table_T_R_M: np.ndarray, steps: int = 300, seed: int = 0, lr: float = 0.3) -> np.ndarray:
    """A policy over roles, trained by a selector's advantages on real scores of tasks; the shares of roles by step."""
    rng = np.random.default_rng(seed)
    logits_R = np.zeros(table_T_R_M.shape[1])
    shares = []
    for _ in range(steps):
        share_R = np.exp(logits_R - logits_R.max())
        share_R /= share_R.sum()
        shares.append(share_R)
        tasks_G, roles_G_N = rng.integers(len(table_T_R_M), size=5), rng.choice(len(share_R), (5, 8), p=share_R)
        scores_G_N_M = table_T_R_M[tasks_G[:, None], roles_G_N]
        advantages_G_N = ask(selector, scores_G_N_M)
        if hasattr(selector, "learn"):
            teach(selector, scores_G_N_M)
        gradient_R = np.zeros_like(logits_R)
        for role in range(len(share_R)):
            gradient_R[role] = (advantages_G_N * ((roles_G_N == role) - share_R[role])).mean()
        logits_R = logits_R + lr * gradient_R
    return np.array(shares)
