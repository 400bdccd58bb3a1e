"""How numbers and names are put for people, alike on every page: labels of metrics, percentages, intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..messages import counted as counted
from ..metrics import DIRECTIONS, definitions

LABELS = {
    "resolved": "resolved",
    "asr": "attack success",
    "exposed": "injection seen",
    "tsr": "done under attack",
    "tsr_graded": "done under attack, graded",
    "brr": "legitimate requests refused",
    "brr_benign": "benign requests refused",
    "brr_look_alike": "look-alikes refused",
    "brr_attacked": "refused under attack",
    "hcr": "harmful requests carried out",
    "harm_share": "share of harmful work done",
    "vrr": "harmful requests refused",
    "safe_score": "security on harmful requests",
    "safe_inert": "safe by doing nothing",
    "benign_utility": "done without attack",
    "inert": "inert",
    "valid_calls": "calls well formed",
    "objective_product": "product of the objectives",
}
PREFIXES = {"mean_": "", "spread_": "disagreement on ", "held_out_": "held-out ", "suite_": ""}
HEADLINE = ("resolved", "asr", "exposed", "tsr", "brr", "hcr", "vrr", "benign_utility", "inert", "valid_calls")
"""Metrics of the first table, in its order."""


def headline(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Rows of the first table: `HEADLINE`, then the suites' own metrics of any of the policies."""
    own = {name for of_policy in metrics.values() for name in of_policy if name.startswith("suite_")}
    return [*HEADLINE, *sorted(own)]


TILES = ("resolved", "asr", "tsr", "hcr", "brr", "benign_utility")
"""Metrics that a decision rests on first."""


def label(metric: str) -> str:
    """A metric in words; those of any objective, such as `mean_<objective>`, too."""
    if metric in LABELS:
        return LABELS[metric]
    prefix = next((prefix for prefix in PREFIXES if metric.startswith(prefix)), "")
    return PREFIXES.get(prefix, "") + metric.removeprefix(prefix).replace("_", " ")


def direction(metric: str) -> int:
    return DIRECTIONS.get(metric, -1 if metric.startswith("spread_") else 1)


def arrow(metric: str) -> str:
    """Which way is better."""
    return {1: "↑", -1: "↓", 0: ""}[direction(metric)]


def percent(share: float) -> str:
    """A share or a difference in percent or points: whole ones, with a decimal near 0."""
    points = 100 * share
    return f"{points:.0f}" if abs(points) >= 9.95 or abs(points) < 0.05 else f"{points:.1f}"


def signed(difference: float) -> str:
    """A difference in points, with its sign."""
    points = percent(abs(difference))
    return points if points == "0" else ("+" if difference > 0 else "−") + points


def interval(metric: Mapping[str, Any]) -> str:
    """A metric's interval in percent."""
    return f"[{percent(metric['low'])}, {percent(metric['high'])}]"


def signed_interval(change: Mapping[str, Any]) -> str:
    return f"[{signed(change['low'])}, {signed(change['high'])}]"


def judged(metric: str, change: Mapping[str, Any]) -> str:
    """Whether a paired change is "better" or "worse", or, where its interval holds 0, "unclear"; "" if neither is."""
    if direction(metric) == 0:
        return ""
    if change["low"] <= 0 <= change["high"]:
        return "unclear"
    return "better" if change["value"] * direction(metric) > 0 else "worse"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


CORRECTIONS = {"holm": "p (Holm)", "bh": "p (BH)", "none": "p"}
"""Heading of the corrected p-value, by the correction."""


def number(value: float) -> str:
    """A score of unknown unit, to three significant digits."""
    return f"{value:.3g}"


def signed_number(difference: float) -> str:
    """A difference of such scores, with its sign."""
    return f"{difference:+.3g}".replace("-", "−") if difference else "0"


def isolation(row: Mapping[str, Any]) -> str:
    """How isolated a policy of a front is; nothing for one that is dominated."""
    return "end" if row["at_an_end"] else "" if row["isolation"] is None else f"{row['isolation']:.2f}"


def meanings() -> list[dict[str, str]]:
    """Every metric with the cases it is defined on and what its value means, from the docstring of definitions.py."""
    lines = re.findall(r"^\| `(\S+)`.*? \| (.+?) \| (.+?) \|$", definitions.__doc__ or "", re.MULTILINE)
    return [{"metric": name, "on": on, "value": value.replace("`", "")} for name, on, value in lines]
