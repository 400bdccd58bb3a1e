"""Tables of metrics for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ..report import words
from ..types import OBJECTIVES
from .console import counted, visible

_SHOWN = ("resolved", "asr", "exposed", "tsr", "brr", "hcr", "vrr", "safe_score", "benign_utility", "valid_calls")
_OF_THE_FOUR = {f"mean_{name}" for name in OBJECTIVES}  # told by the other metrics; a user's own objectives are not
_SHORT = ("asr", "tsr", "brr", "hcr", "vrr")
"""Names that nobody can guess: what they mean stands below the table."""

_ARROWS = {1: " ↑", -1: " ↓", 0: ""}


def metrics_table(rows: list[dict[str, Any]]) -> Table:
    """Test metrics with 95 % intervals, a column per policy: before, after each round, and the scripted baselines."""
    from ..metrics import DIRECTIONS

    shown = [row for row in rows if row["split"] == "test" and row["suite"] == "all" and row["kind"] == "all"]
    shown.sort(key=lambda row: (row["policy"] in ("oracle", "do-nothing", "refuse-all", "obey"), row["round"]))
    cases = max((row["metrics"]["resolved"]["n"] for row in shown if "resolved" in row["metrics"]), default=0)
    table = Table(
        title=f"test split, {counted(cases, 'tasks')}, % with 95 % intervals",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("metric", no_wrap=True)
    for row in shown:
        rolled_back = "" if row["accepted"] else "\n(rolled back)"
        # Names break at their hyphens, so that seven policies fit in 80 columns.
        table.add_column(escape(visible(row["policy"])).replace("-", "-\n") + rolled_back, justify="right")
    names = {name for row in shown for name in row["metrics"]}
    own = sorted(name for name in names - _OF_THE_FOUR if name.startswith(("mean_", "suite_")))
    for name in (*_SHOWN, *own):
        if any(name in row["metrics"] for row in shown):
            label = escape(visible(name)) + _ARROWS[DIRECTIONS.get(name, 1 if name in own else 0)]
            table.add_row(label, *(_cell(row, name) for row in shown))
    excluded = [row["errors"].get("excluded", 0) for row in shown]
    if any(excluded):
        table.add_row("errors (excluded)", *map(str, excluded))
    repeatable = sum(row["errors"].get("repeatable", 0) for row in shown)
    notes = ["; ".join(f"{name} {words.label(name)}" for name in _SHORT if name in names)]
    if repeatable:
        failing = counted(repeatable, "tasks")
        notes.append(f"or: with the {failing} on which the server fails every time as the model's failures")
    table.caption = "\n".join(filter(None, notes))
    table.caption_justify = "left"
    return table


def _cell(row: Mapping[str, Any], name: str) -> str:
    metric, blamed = row["metrics"].get(name), row["errors"].get("as_the_models", {}).get(name)
    other = f"\n[dim]or {100 * blamed['value']:.0f}[/]" if blamed else ""
    if metric is None:
        return f"–{other}"
    value = f"{100 * metric['value']:.0f}"
    if row["policy"] in ("oracle", "do-nothing", "refuse-all", "obey"):
        return value
    return f"{value}\n[dim]{100 * metric['low']:.0f}–{100 * metric['high']:.0f}[/]{other}"
