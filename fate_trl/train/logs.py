"""What TRL logged of a batch, put right: its own keys with its own values, and its table of completions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from trl.trainer.utils import nanstd

COLUMN = "pareto/reward"
"""Name of the selector's column in TRL's completions table, and of its mean in the log."""

SUMMED = {"reward": COLUMN, "reward_std": f"{COLUMN}_std", "frac_reward_zero_std": "pareto/frac_reward_zero_std"}
"""TRL's keys of the reward that it made advantages of, and where they go while that is the selector's column."""

Table = dict[tuple[str, ...], list[Any]]
"""Rows of the completions table by column, whose name is (name,) or (part, name), as TRL keeps them."""


def as_trl_would(
    metrics: MutableMapping[str, list[float]],
    logged: Mapping[str, Any],
    rewards_B_M: torch.Tensor,
    weights_M: torch.Tensor,
    names: Sequence[str],
    column: str,
    group: int,
    of_batch: bool,
) -> None:
    """Give TRL's keys the values that GRPOTrainer's would have, after it logged the selector's column as the reward.

    Args:
        metrics: TRL's metrics of the mode, changed in place; the column's own go to `SUMMED`.
        logged: TRL's completions table, changed in place.
        rewards_B_M: Rewards as the functions gave them, before rows were left out, over all processes.
        weights_M: The user's weights.
        names: Of the reward functions; they may repeat.
        column: What TRL knew the selector's column by.
        group: Rows of a group.
        of_batch: Rewards are scaled by the batch's standard deviation, not by their group's.
    """
    if f"rewards/{column}/mean" not in metrics:  # a subclass's step that does not log as TRL does
        return
    for theirs, ours in SUMMED.items():
        metrics[ours].append(metrics[theirs].pop())
    for name in (column, *names):
        metrics[f"rewards/{name}/mean"].pop(), metrics[f"rewards/{name}/std"].pop()
    del metrics[f"rewards/{column}/mean"], metrics[f"rewards/{column}/std"]
    for name, column_B in zip(names, rewards_B_M.T, strict=True):
        metrics[f"rewards/{name}/mean"].append(torch.nanmean(column_B).item())
        metrics[f"rewards/{name}/std"].append(nanstd(column_B).item())
    _overwrite(logged, {("rewards", name): column_B.tolist() for name, column_B in zip(names, rewards_B_M.T)})
    summed_B = (rewards_B_M * weights_M).nansum(dim=1)
    summed_B[rewards_B_M.isnan().all(dim=1)] = torch.nan
    metrics["reward"].append(torch.nanmean(summed_B).item())
    metrics["reward_std"].append(nanstd(summed_B).item())
    spread = nanstd(summed_B)[None] if of_batch else nanstd(summed_B.view(-1, group), dim=1)
    flat = torch.isclose(spread, torch.zeros_like(spread)) | torch.tensor(group == 1 and not of_batch)
    metrics["frac_reward_zero_std"].append(flat.float().mean().item())


def _columns(logged: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name in ("prompt", "completion", "advantages"):
        yield (name,), logged[name]
    for part in ("rewards", "extra"):
        for name, rows in logged[part].items():
            yield (part, name), rows


def _overwrite(logged: Mapping[str, Any], table: Table) -> None:
    """Replace the newest rows of these columns."""
    for path, new in table.items():
        rows = logged[path[0]] if len(path) == 1 else logged[path[0]][path[1]]
        for _ in range(min(len(new), len(rows))):
            rows.pop()
        rows.extend(new)


def newest(logged: Mapping[str, Any], number: int) -> Table:
    """The newest rows of the completions table; None for what a column, which a reward function may add, lacks."""
    return {path: ([None] * number + list(rows))[-number:] for path, rows in _columns(logged)}


def copy_groups(kept: Table, fresh: Table, slots: np.ndarray, gifts: np.ndarray, group: int) -> None:
    """Copy the rows of the groups `gifts` of `fresh` over those of the groups `slots`, in place."""
    within = np.arange(group)
    for path, rows in kept.items():
        new = fresh.get(path)
        for slot, gift in zip(slots, gifts, strict=True):
            for to, source in zip(slot * group + within, gift * group + within, strict=True):
                rows[to] = None if new is None else new[source]


def put_back(logged: Mapping[str, Any], kept: Table) -> None:
    """Make these rows the whole table: it has room for one generation batch, and later batches pushed them out."""
    for path, rows in _columns(logged):
        rows.clear()
        rows.extend(kept.get(path, ()))


def number(value: Any) -> Any:
    """A logged value as JSON can hold it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
