"""The report's pictures: scales and marks in Python, drawn as inline SVG by templates/charts.html.

Hand-written SVG and not Matplotlib's: its colours are the page's CSS variables, so that one picture serves by day, in
the dark and in print; its text is text; every picture has a title and a description, every mark a tooltip; and it is
small. What differs by colour differs by mark or dash too. The colours follow Okabe and Ito (2008), for colour-blind
readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..choose import pareto
from ..types import KINDS
from .front import axes
from .words import TILES, arrow, label, percent, signed, signed_interval

Json = dict[str, Any]

MARKS = {
    "circle": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
    "square": "M-3.6,-3.6h7.2v7.2h-7.2z",
    "triangle": "M0,-4.6L4.4,3.4H-4.4z",
    "diamond": "M0,-5L5,0L0,5L-5,0z",
    "cross": "M-3.6,-3.6L3.6,3.6M3.6,-3.6L-3.6,3.6",
    "star": "M0,-5.5L1.5,-1.7 5.4,-1.6 2.3,0.8 3.4,4.6 0,2.4 -3.4,4.6 -2.3,0.8 -5.4,-1.6 -1.5,-1.7z",
}
BASELINES = {"oracle": "star", "refuse-all": "triangle", "do-nothing": "square", "obey": "cross"}
LOOKS = (("c1", "circle", ""), ("c2", "square", "6 3"), ("c3", "triangle", "2 3"))
"""Colour, mark and dash of a picture's first, second and third series; a kind of task always has the same."""
KIND_LOOKS: dict[str, tuple[str, str, str]] = dict(zip(KINDS, LOOKS, strict=True))
MANY = 40
"""A line through more points than this has no marks."""


@dataclass(frozen=True)
class Point:
    """A mark, its interval on either axis, and what it says when pointed at. All in the axes' units."""

    x: float
    y: float
    tip: str = ""
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None
    hollow: bool = False
    tag: str = ""


@dataclass(frozen=True)
class Series:
    """Points that belong together, with their look; joined by a line if `line`."""

    name: str
    points: Sequence[Point]
    colour: str = "c1"
    mark: str = "circle"
    dash: str = ""
    line: bool = True


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, with labelled ticks."""

    name: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Chart:
    """A picture of series over two axes.

    Attributes:
        title, desc: What it shows, and the numbers in words, for those who do not see it.
        x, y: The axes.
        series: What is drawn, the later on top.
        steps: Fronts as (name, corners, dash): stairs below and left of the corners.
        rows: Whether y is a list of names, which need room on the left and thin lines.
        height: In the picture's units; the width is 340.
    """

    title: str
    desc: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    steps: Sequence[tuple[str, Sequence[tuple[float, float]], str]] = ()
    rows: bool = False
    height: int = 240

    width = 340
    top = 20

    @property
    def left(self) -> int:
        return 14 + max((round(5.9 * len(text)) for _, text in self.y.ticks), default=0) if self.rows else 44

    @property
    def right(self) -> int:
        return self.width - 14

    @property
    def bottom(self) -> int:
        return self.height - (40 if self.x.name else 24)

    def at_x(self, value: float) -> float:
        span = self.x.high - self.x.low or 1.0
        return round(self.left + (value - self.x.low) / span * (self.right - self.left), 1)

    def at_y(self, value: float) -> float:
        span = self.y.high - self.y.low or 1.0
        return round(self.bottom - (value - self.y.low) / span * (self.bottom - self.top), 1)

    def line(self, points: Iterable[Point]) -> str:
        """Coordinates of a line through points."""
        return " ".join(f"{self.at_x(point.x)},{self.at_y(point.y)}" for point in points)

    def stairs(self, corners: Sequence[tuple[float, float]]) -> str:
        """Path around what the corners dominate; they are sorted by rising x, so by falling y."""
        path = f"M{self.left},{self.at_y(corners[0][1])}"
        for right, top in corners:
            path += f"V{self.at_y(top)}H{self.at_x(right)}"
        return path + f"V{self.bottom}"

    def tags(self) -> list[tuple[float, float, str, str]]:
        """Names beside marks, (x, y, anchor, name): the first place around the mark where no other name or mark is."""
        named = [point for series in self.series for point in series.points if point.tag]
        taken = [(self.at_x(point.x), self.at_y(point.y) + 4, 8.0) for point in named]  # middle, foot, width
        placed = []
        for point in named:
            x, y, width = self.at_x(point.x), self.at_y(point.y), 7.0 * len(point.tag)
            places = [(x + side * 8, y + drop, side) for drop in (-7, 16, -19, 28) for side in (1, -1)]
            free = [p for p in places if self._is_free(p[0] + p[2] * width / 2, p[1], width, taken)]
            at, foot, side = (free or places)[0]
            taken.append((at + side * width / 2, foot, width))
            placed.append((round(at, 1), round(foot, 1), "start" if side > 0 else "end", point.tag))
        return placed

    def _is_free(self, x: float, y: float, width: float, taken: Sequence[tuple[float, float, float]]) -> bool:
        inside = self.left < x - width / 2 and x + width / 2 < self.width and 9 < y < self.bottom
        return inside and all(abs(x - at) > (width + wide) / 2 or abs(y - foot) > 10 for at, foot, wide in taken)


SHARE = tuple((tick / 100, f"{tick}") for tick in (0, 25, 50, 75, 100))


def _share(name: str) -> Axis:
    return Axis(f"{name}, %" if name else "", 0.0, 1.0, SHARE)


def _ends(metric: Json) -> tuple[float, float]:
    return metric["low"], metric["high"]


def _said(metric: Json) -> str:
    return f"{percent(metric['value'])} % [{percent(metric['low'])}, {percent(metric['high'])}]"


def _words(objective: str) -> str:
    return {"over_refusal": "not refused"}.get(objective, objective.replace("_", " "))


# ------------------------------------------------------------------------------------------------ what is drawn


def fronts(summary: Json) -> list[Chart]:
    """Per kind of task security against utility: a mark per policy, and the front that each round had reached."""
    return [_front(part) for part in summary["fronts"]]


def _front(part: Json) -> Chart:
    learned = [p for p in part["points"] if p["policy"] not in BASELINES]
    marks = [_mark(part, p, tag=p["policy"].replace("round-", "r")) for p in learned]
    series = [
        Series(p["policy"], [_mark(part, p)], "grey", BASELINES[p["policy"]], line=False)
        for p in part["points"]
        if p["policy"] in BASELINES
    ]
    shown = part["fronts"] if len(part["fronts"]) <= 4 else [*part["fronts"][:1], *part["fronts"][-3:]]
    dashes = ("2 3", "6 3", "8 3 2 3", "")[-len(shown) :] if shown else ()
    steps = [
        (f"front after round {f['round']}: area {f['area']:.2f}", f["corners"], dash)
        for f, dash in zip(shown, dashes, strict=True)
    ]
    desc = "; ".join(f"{point.tip}" for point in marks)
    areas = ", ".join(f"{f['area']:.2f} after round {f['round']}" for f in part["fronts"])
    return Chart(
        title=f"{part['kind']} tasks: {_words(part['y'])} against {_words(part['x'])}",
        desc=f"{desc}. Area under the front: {areas}.",
        x=_share(_words(part["x"])),
        y=_share(_words(part["y"])),
        series=[*series, Series("rounds", marks)],
        steps=steps,
        height=290,
    )


def _mark(part: Json, point: Json, tag: str = "") -> Point:
    x, y = point["x"], point["y"]
    rolled_back = "" if point["accepted"] is not False else " (rolled back)"
    tip = f"{point['policy']}{rolled_back}: {_words(part['x'])} {_said(x)}, {_words(part['y'])} {_said(y)}"
    x_ends, y_ends = (_ends(x), _ends(y)) if tag else (None, None)
    hollow = point["accepted"] is False or point["round"] == 0
    return Point(x["value"], y["value"], tip, x_ends, y_ends, hollow, tag)


def archive(found: Json) -> Chart | None:
    """The policies of several runs over two objectives: those on the front filled, the dominated hollow.

    The stairs are the front of what is drawn: with more than two objectives a member of the whole front may lie behind.
    None where there is but one objective.
    """
    names = axes(found["objectives"])
    if len(names) < 2:
        return None
    many = len({row["run"] for row in found["policies"]}) > 1
    kept = [row for row in found["policies"] if row["on_front"]]
    behind = [row for row in found["policies"] if not row["on_front"]]
    marks = [_placed(row, names, many) for row in kept]
    corners_N_2 = np.array([[point.x, point.y] for point in marks])
    corners_N_2 = corners_N_2[pareto.first_front(corners_N_2[None])[0]]
    series = [Series("dominated", [_placed(row, names, many) for row in behind], "grey", line=False)] if behind else []
    return Chart(
        title=f"validation tasks: {_words(names[1])} against {_words(names[0])}",
        desc="; ".join(point.tip for point in marks),
        x=_share(_words(names[0])),
        y=_share(_words(names[1])),
        series=[*series, Series("on the front", marks, line=False)],
        steps=[("front in these two objectives", sorted({(float(x), float(y)) for x, y in corners_N_2}), "")],
        height=290,
    )


def _placed(row: Json, names: Sequence[str], many: bool) -> Point:
    x, y = (row["validation"][name] for name in names)
    told = "" if row["on_front"] else ", dominated"
    tip = f"{row['policy']}{told}: {_words(names[0])} {_said(x)}, {_words(names[1])} {_said(y)}"
    tag = f"{Path(row['run']).name}@{row['round']}" if many else f"r{row['round']}"
    if not row["on_front"]:
        return Point(x["value"], y["value"], tip, hollow=True)
    return Point(x["value"], y["value"], tip, _ends(x), _ends(y), tag=tag)


def curves(summary: Json) -> list[Chart]:
    """The metrics that a decision rests on, round by round, on test and validation tasks, with their intervals."""
    names = [policy["name"] for policy in summary["policies"] if not policy["scripted"]]
    if len(names) < 2:
        return []
    x = Axis("", -0.3, len(names) - 0.7, [(i, name.replace("round-", "r")) for i, name in enumerate(names)])
    out = []
    for metric in TILES:
        series = []
        for (split, policies), (colour, mark, dash) in zip(_by_split(summary), LOOKS, strict=False):
            points = [
                Point(i, m["value"], f"{name}, {split}: {_said(m)}", y_ends=_ends(m), hollow=name in _undone(summary))
                for i, name in enumerate(names)
                if (m := policies.get(name, {}).get(metric))
            ]
            series += [Series(split, points, colour, mark, dash)] if points else []
        if series:
            desc = "; ".join(point.tip for s in series for point in s.points)
            out.append(Chart(f"{label(metric)} {arrow(metric)}", desc, x, _share(""), series, height=190))
    return out


def _by_split(summary: Json) -> list[tuple[str, Json]]:
    return [(split, summary["metrics"][split]) for split in ("test", "validation") if split in summary["metrics"]]


def _undone(summary: Json) -> set[str]:
    return {policy["name"] for policy in summary["policies"] if policy["accepted"] is False}


def scores(summary: Json) -> list[Chart]:
    """Per kind each objective's mean before training (hollow) and of the policy that is handed over (filled)."""
    return [
        _dumbbells(
            f"{part['kind']} tasks",
            [(o["objective"], o["before"], o["after"]) for o in part["objectives"]],
            (summary["before"], summary["after"]),
        )
        for part in summary["scores"]
    ]


def repaired_scores(summary: Json) -> list[Chart]:
    """Per round each objective's mean in the failures (hollow) and in the repairs that were chosen (filled)."""
    return [
        _dumbbells(
            f"round {part['round']}: {part['repaired']} repaired failures",
            [
                (s["objective"], {"value": s["failure"]}, {"value": s["chosen"]})
                for s in part["scores"]
                if "chosen" in s
            ],
            ("failure", "chosen repair"),
        )
        for part in summary["repairs"]
        if part["scores"]
    ]


def _dumbbells(title: str, rows: Sequence[tuple[str, Json, Json]], names: tuple[str, str]) -> Chart:
    ticks, series = [], []
    for row, (objective, *sides) in enumerate(rows):
        y = len(rows) - 1 - row
        ticks.append((y, _words(objective)))
        points = [
            Point(
                side["value"],
                y,
                f"{_words(objective)}, {name}: {_said(side) if 'low' in side else percent(side['value']) + ' %'}",
                x_ends=_ends(side) if "low" in side else None,
                hollow=name == names[0],
            )
            for name, side in zip(names, sides, strict=True)
        ]
        series.append(Series(objective, points))
    desc = "; ".join(point.tip for s in series for point in s.points)
    y_axis = Axis("", -0.6, len(rows) - 0.4, ticks)
    return Chart(title, desc, _share("mean score"), y_axis, series, rows=True, height=70 + 30 * len(rows))


def acceptance(summary: Json) -> list[Chart]:
    """Per round the share of the failures that were repaired, by the objective that failed and the kind of task."""
    out = []
    for part in summary["repairs"]:
        causes = part["causes"]
        ticks = [(len(causes) - 1 - i, f"{_words(c['objective'])}, {c['kind']}") for i, c in enumerate(causes)]
        series = [
            Series(
                kind,
                [
                    Point(c["share"]["value"], y, _repaired(c), x_ends=_ends(c["share"]))
                    for c, (y, _) in zip(causes, ticks, strict=True)
                    if c["kind"] == kind
                ],
                *look[:2],
                line=False,
            )
            for kind, look in KIND_LOOKS.items()
        ]
        desc = "; ".join(_repaired(c) for c in causes)
        y_axis = Axis("", -0.6, len(causes) - 0.4, ticks)
        title = f"round {part['round']}: failures repaired"
        out.append(
            Chart(title, desc, _share("repaired"), y_axis, series, rows=True, height=70 + 24 * max(1, len(causes)))
        )
    return out


def _repaired(cause: Json) -> str:
    share = _said(cause["share"])
    return f"{_words(cause['objective'])} on {cause['kind']} tasks: {cause['repaired']} of {cause['failures']}, {share}"


def training(summary: Json) -> list[Chart]:
    """Over the steps of all rounds: each objective's mean by kind, and what PFPO could learn from."""
    pfpo, sft = summary["training"]["pfpo"], summary["training"]["sft"]
    out = []
    for objective in summary["training"]["objectives"]:
        by_kind = {str(kind): pfpo.get(f"objective/{objective}/{kind}") for kind in KINDS}
        named = [(kind, points) for kind, points in by_kind.items() if points]
        named = named or [("all", pfpo[key]) for key in [f"rewards/{objective}/mean"] if key in pfpo]
        if not named:  # it applied to no task that was sampled on
            continue
        out.append(
            _over_steps(f"PFPO: {_words(objective)}", named, share=all(0 <= v <= 1 for _, p in named for _, v in p))
        )
    groups = [
        (name, pfpo[f"pareto/{key}"])
        for name, key in (("no signal", "zero_signal_share"), ("tie-break decides", "tie_break_share"))
        if f"pareto/{key}" in pfpo
    ]
    clipped = [("cut off", pfpo["completions/clipped_ratio"])] if "completions/clipped_ratio" in pfpo else []
    out += (
        [_over_steps("PFPO: shares of groups, and completions cut off", groups + clipped, share=True)] if groups else []
    )
    out += [_over_steps("PFPO: KL to the reference", [("kl", pfpo["kl"])])] if "kl" in pfpo else []
    out += _own(pfpo, "selector", "PFPO: the selector's")
    pairs = summary["training"].get("preference", {})
    ahead = [("accuracy", pairs["rewards/accuracies"])] if "rewards/accuracies" in pairs else []
    out += [_over_steps("Preference: pairs in which the chosen side is ahead", ahead, share=True)] if ahead else []
    margins = [("margin", pairs["rewards/margins"])] if "rewards/margins" in pairs else []
    out += [_over_steps("Preference: margin between the sides", margins)] if margins else []
    out += _own(pairs, "loss", "Preference: the pair loss's")
    taught = summary["training"].get("distillation", {})
    apart = [("divergence", taught["loss"])] if "loss" in taught else []
    out += [_over_steps("Distillation: divergence from hindsight, nats per token", apart)] if apart else []
    out += [_over_steps("SFT: loss", [("loss", sft["loss"])])] if "loss" in sft else []
    return out


def _own(log: Json, prefix: str, title: str) -> list[Chart]:
    """What a component logs of itself, `<prefix>/<name>` or `<prefix>/<name>/<which>`: a chart per name, or more, as
    one has as many lines as can be told apart."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for key, points in log.items():
        if key.startswith(f"{prefix}/"):
            name, _, which = key.removeprefix(f"{prefix}/").partition("/")
            found.setdefault(_words(name), []).append((which or name, points))
    return [
        _over_steps(f"{title} {name}", named[start : start + len(LOOKS)])
        for name, named in found.items()
        for start in range(0, len(named), len(LOOKS))
    ]


def _over_steps(title: str, named: Sequence[tuple[str, Sequence[Sequence[float]]]], share: bool = False) -> Chart:
    steps = [step for _, points in named for step, _ in points]
    values = [value for _, points in named for _, value in points]
    first, last = min(steps), max(steps)
    x = Axis("step", first, last, [(tick, str(round(tick))) for tick in sorted({first, (first + last) // 2, last})])
    y = _share("") if share else _scale(min(0.0, *values), max(values))
    series = [
        Series(name, [Point(s, v, f"{name}, step {s:g}: {v:.3g}") for s, v in points], *KIND_LOOKS.get(name, LOOKS[i]))
        for i, (name, points) in enumerate(named)
    ]
    ends = [f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in named]
    return Chart(title, f"{'; '.join(ends)}, over {last:g} steps", x, y, series, height=200)


def _scale(low: float, high: float) -> Axis:
    high = high if high > low else low + 1.0
    return Axis("", low, high, [(tick, f"{tick:.2g}") for tick in (low, (low + high) / 2, high)])


def forest(part: Json) -> Chart:
    """Paired differences of the headline metrics of a comparison, with their intervals, around 0."""
    names = [name for name in TILES if name in part["metrics"]]
    changes = [part["metrics"][name]["change"] for name in names]
    ticks = [(len(names) - 1 - i, f"{label(name)} {arrow(name)}") for i, name in enumerate(names)]
    points = [
        Point(c["value"], y, f"{text}: {signed(c['value'])} {signed_interval(c)}", x_ends=_ends(c))
        for c, (y, text) in zip(changes, ticks, strict=True)
    ]
    edge = max([0.1, *(abs(end) for c in changes for end in _ends(c))])
    x = Axis("b − a, points", -edge, edge, [(-edge, signed(-edge)), (0.0, "0"), (edge, signed(edge))])
    desc = "; ".join(point.tip for point in points)
    y_axis = Axis("", -0.6, len(names) - 0.4, ticks)
    series = [Series("difference", points, line=False)]
    return Chart("Paired differences", desc, x, y_axis, series, rows=True, height=70 + 28 * len(names))
