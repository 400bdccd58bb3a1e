"""Facts about the rows of a generation, for selectors that ask for them: made on each process, then put in shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..choose.turns import call_paths, call_turns, turns_of
from ..hookspecs import Rows
from ..types import Trajectory, pass_mark
from .sources import Objective


@dataclass(frozen=True)
class Fact:
    """What one row tells; see hookspecs.Rows. `ids` are its prompt's and its completion's tokens, if asked for."""

    task: str
    kind: str
    attempt: int
    stop: str
    calls: tuple[str, ...]
    call_turns: tuple[int, ...]
    path: tuple[int, ...]
    prefix: int
    spreads: tuple[float, ...]
    mask: tuple[int, ...]
    ids: tuple[tuple[int, ...], tuple[int, ...]] | None
    weights: Mapping[str, float] = field(default_factory=dict)


def facts_of(trajectories: Sequence[Trajectory], reward_funcs: Sequence[Any], selector: Any) -> list[Fact]:
    """What a selector is told of one process's rows; verifiers' columns know the spread of their scores."""
    none = [None] * len(trajectories)
    spreads = zip(*(f.spreads if isinstance(f, Objective) else none for f in reward_funcs), strict=True)
    with_ids = getattr(selector, "reads_tokens", False)
    return [fact_of(t, of_t, with_ids) for t, of_t in zip(trajectories, spreads, strict=True)]


def fact_of(trajectory: Trajectory, spreads: Sequence[float | None], with_ids: bool) -> Fact:
    """Of a trajectory, and of the spread of each of its scores."""
    task = trajectory.task
    return Fact(
        task=f"{task.suite}/{task.id}",
        kind=task.kind,
        attempt=trajectory.attempt,
        stop=trajectory.stop,
        calls=tuple(call.name for call in trajectory.calls),
        call_turns=call_turns(trajectory),
        path=call_paths(trajectory),
        prefix=trajectory.replayed,
        spreads=tuple(np.nan if spread is None else spread for spread in spreads),
        mask=trajectory.policy_mask,
        ids=(trajectory.prompt_ids, trajectory.completion_ids) if with_ids else None,
        weights=trajectory.data.get("weights", {}),
    )


def rows_of(facts: Sequence[Fact], scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, names: Sequence[str]) -> Rows:
    """The facts of all processes, in the order of the rows, as arrays over the groups."""
    shape = valid_G_N.shape
    width = max((len(fact.mask) for fact in facts), default=0)
    turn_B_T = np.full((len(facts), width), -1)
    for turn_T, fact in zip(turn_B_T, facts, strict=True):
        turn_T[: len(fact.mask)] = turns_of(fact.mask)
    known_G_N_M = ~np.isnan(scores_G_N_M)
    passed_G_N_M = ~known_G_N_M | (np.nan_to_num(scores_G_N_M) >= [pass_mark(name) for name in names])
    with_ids = all(fact.ids is not None for fact in facts)
    return Rows(
        task_G_N=np.array([fact.task for fact in facts]).reshape(shape),
        kind_G_N=np.array([fact.kind for fact in facts]).reshape(shape),
        attempt_G_N=np.array([fact.attempt for fact in facts]).reshape(shape),
        resolved_G_N=valid_G_N & known_G_N_M.any(axis=2) & passed_G_N_M.all(axis=2),
        stop_G_N=np.array([fact.stop for fact in facts]).reshape(shape),
        calls_G_N=_objects([fact.calls for fact in facts], shape),
        call_turns_G_N=_objects([fact.call_turns for fact in facts], shape),
        path_G_N=_objects([fact.path for fact in facts], shape),
        prefix_G_N=np.array([fact.prefix for fact in facts]).reshape(shape),
        spread_G_N_M=np.array([fact.spreads for fact in facts], float).reshape(scores_G_N_M.shape),
        turn_G_N_T=turn_B_T.reshape(*shape, width),
        weights_G_N_M=np.array([[fact.weights.get(name, np.nan) for name in names] for fact in facts], float).reshape(
            scores_G_N_M.shape
        ),
        prompt_ids_G_N=_objects([fact.ids and fact.ids[0] for fact in facts], shape) if with_ids else None,
        completion_ids_G_N=_objects([fact.ids and fact.ids[1] for fact in facts], shape) if with_ids else None,
    )


def _objects(values: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    out_B = np.empty(len(values), dtype=object)
    out_B[:] = list(values)
    return out_B.reshape(shape)
