"""What real_model.py shows of its results: rates and paired differences with intervals, a page, a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from benchmarks.learning import value
from benchmarks.learning_methods import REFERENCE
from benchmarks.learning_page import cell, grid, interval
from fate_trl import FateError, metrics
from fate_trl.metrics import columns
from fate_trl.types import Case

Json = dict[str, Any]
START = "start"
SHOWN = ("resolved", "benign_utility", "tsr", "asr", "brr", "hcr")
COMPARED = ("resolved", "asr", "tsr", "brr")
BY_SEED = 3
"""From so many seeds on intervals are Student's, over seeds."""


@dataclass(frozen=True)
class Measured:
    """A method on a seed: what `result.json` says, its cases on the test tasks, the adaptive attack's shares, and the
    cases on familiar tasks."""

    method: str
    seed: int
    result: Json
    cases: Sequence[Case]
    attack: Json | None = None
    familiar: Sequence[Case] = ()


# ------------------------------------------------------------------------------------------------ statistics


def rates(tested: Sequence[Measured], by_seed: bool = True) -> dict[str, Json]:
    """A method's metrics: over seeds where there are enough, else over tasks; those without a case are left out."""
    if len(tested) < BY_SEED or not by_seed:
        measured = metrics.summarize(pooled(tested))["metrics"]
        said = {name: measured[name] for name in SHOWN if name in measured}
        return {name: {"mean": m["value"], **{key: m[key] for key in ("low", "high", "n")}} for name, m in said.items()}
    found = {m.name: [value(m, t.cases) for t in tested] for m in metrics.METRICS if m.name in SHOWN}
    known = {name: [v for v in values if v is not None] for name, values in found.items()}
    return {name: interval(values) for name, values in known.items() if values}


def pooled(tested: Sequence[Measured]) -> list[Case]:
    """The cases of all seeds; a case's attempt is its seed, so that cases are paired by seed and task."""
    return [(replace(t, attempt=each.seed), card) for each in tested for t, card in each.cases]


def difference(ours: Sequence[Measured], theirs: Sequence[Measured], name: str) -> Json | None:
    """Ours less theirs over all seeds that both have: paired by seed and task, bootstrap over clusters of tasks."""
    shared = {t.seed for t in ours} & {t.seed for t in theirs}
    sides = [pooled([t for t in side if t.seed in shared]) for side in (theirs, ours)]
    try:
        found = metrics.paired(*sides, name, max_error_rate=1.0)
    except FateError:  # no case has a value on both sides
        return None
    return {"mean": found["value"], "seeds": sorted(shared), **{k: v for k, v in found.items() if k != "value"}}


def own_count(tested: Sequence[Measured]) -> Json:
    """AgentDojo's figures as its scripts count them: utility, utility under attack, attacks that succeed; {} elsewhere.

    Its check of utility may hold on the untouched state; ours also asks for the calls.
    """
    outcomes = [(t.task.kind, t.outcome) for each in tested for t, _ in each.cases if t.outcome is not None]
    said = [(kind, o) for kind, o in outcomes if "upstream_utility" in o.info]
    done = {kind: [o.info["upstream_utility"] for k, o in said if k == kind] for kind in ("benign", "attacked")}
    reached = [float(o.attacked) for kind, o in said if kind == "attacked" and o.attacked is not None]
    named = {"utility": done["benign"], "utility_under_attack": done["attacked"], "attack_success": reached}
    return {name: {"mean": sum(v) / len(v), "n": len(v)} for name, v in named.items() if v}


def _attacked(tested: Sequence[Measured]) -> Json | None:
    """Success of the adaptive attack."""
    said = [t.attack for t in tested if t.attack is not None and t.attack["adaptive"] is not None]
    if not said:
        return None
    if len(said) >= BY_SEED:
        return interval([found["adaptive"] for found in said])
    count = sum(found["tasks"] for found in said)
    share = sum(found["adaptive"] * found["tasks"] for found in said) / count
    low, high = metrics.wilson(share, count)
    return {"mean": share, "low": low, "high": high, "n": count}


def summary(tested: Sequence[Measured], what: Mapping[str, str]) -> Json:
    """All that the page shows, by method, as plain data."""
    by = {name: [t for t in tested if t.method == name] for name in what}
    by = {name: mine for name, mine in by.items() if mine}
    told: Json = {}
    for name, mine in by.items():
        told[name] = {
            "what": what[name],
            "seeds": [t.seed for t in mine],
            "results": [t.result for t in mine],
            "tokens": sum(t.result["tokens"] for t in mine) / len(mine),
            "cpu_seconds": sum(t.result["cpu_seconds"] for t in mine) / len(mine),
            "interrupted": sum(t.result["interrupted"] for t in mine),
            "cases": sum(len(t.cases) for t in mine),
            "errors": sum(metrics.is_error(case) for t in mine for case in t.cases),
            "metrics": rates(mine),
            "adaptive": _attacked(mine),
            "own_count": own_count(mine),
            "familiar": _familiar(mine, by.get(START, [])),
            "less_start": _differences(mine, by.get(START, []), name != START),
            "reference_less": _differences(by.get(REFERENCE, []), mine, name != REFERENCE),
            "tasks": {t.seed: _by_task(t.cases) for t in mine},
        }
    _correct(told)
    return told


def _differences(ours: Sequence[Measured], theirs: Sequence[Measured], asked: bool) -> Json:
    if not (asked and ours and theirs):
        return {}
    return {metric: difference(ours, theirs, metric) for metric in COMPARED}


def _familiar(mine: Sequence[Measured], start: Sequence[Measured]) -> Json:
    """On familiar tasks: rates over tasks, and what is gained over the start; {} where none were tried."""
    mine, start = ([replace(t, cases=t.familiar) for t in side if t.familiar] for side in (mine, start))
    if not mine:
        return {}
    return {
        "seeds": [t.seed for t in mine],
        "cases": sum(len(t.cases) for t in mine),
        "metrics": rates(mine, by_seed=False),
        "less_start": _differences(mine, start, mine[0].method != START),
        "tasks": {t.seed: _by_task(t.cases) for t in mine},
    }


def _correct(told: Json) -> None:
    """Holm's correction of the exact tests of `resolved`, over the reference's comparisons with all other methods."""
    found = [m["reference_less"]["resolved"] for m in told.values() if m["reference_less"].get("resolved")]
    found = [f for f in found if "p" in f]
    for each, p in zip(found, columns.corrected([f["p"] for f in found], "holm"), strict=True):
        each["holm"] = p


def _by_task(cases: Sequence[Case]) -> dict[str, list[float | None]]:
    """By task: whether it was resolved, and whether the attacker's goal was reached."""
    return {
        f"{t.task.suite}/{t.task.id}": [float(card.resolved), None if t.outcome is None else t.outcome.attacked]
        for t, card in cases
    }


# ------------------------------------------------------------------------------------------------ what is shown

PAGE = """# A real model: methods at equal tokens

Written by `benchmarks/real_model.py`, whose docstring says what is compared, and how.

    {command}

Recipe `{recipe}` ({recipe_hash}), model `{model}`, seeds {seeds}. {machine}.
Made with {versions}.
{left}
Held-out tasks, and attacks that no training task has where the recipe holds some back. %, with 95 % intervals: {how}
Tokens (read, sampled, trained on; in thousands) and CPU seconds are means of a seed. CPU seconds include the test, and
are a method's own: what it takes from the runs before it is not counted again.

{methods}

Paired differences in points, over all seeds together: bootstrap over user tasks, by seed and task. *p*: exact sign test
of `resolved`, after Holm over all rows. Where an interval of `resolved` leaves out zero it is bold.

## Less the start

{less_start}

## Full FATE less the method

{reference_less}
{familiar}{own}
## What was chosen

{chosen}
"""


def page(told: Json, about: Json) -> str:
    """The results as Markdown; every figure is the JSON's."""
    few = any(len(m["seeds"]) < BY_SEED for m in told.values())
    how = "over tasks (Wilson's, or bootstrap over user tasks)" if few else "Student's, over seeds"
    attacked = any(m["adaptive"] for m in told.values())
    heads = ["method", "what", "seeds", "k tokens", "CPU s", *SHOWN, *(["asr, adapted"] if attacked else [])]
    rows = [
        [
            f"`{name}`",
            m["what"],
            str(len(m["seeds"])),
            f"{m['tokens'] / 1000:.0f}",
            f"{m['cpu_seconds']:.0f}{'*' if m['interrupted'] else ''}",
            *(cell(m["metrics"].get(metric)) for metric in SHOWN),
            *([cell(m["adaptive"])] if attacked else []),
        ]
        for name, m in told.items()
    ]
    starred = (
        " `*`: without what was lost when a run was killed." if any(m["interrupted"] for m in told.values()) else ""
    )
    return PAGE.format(
        **{**about, "left": f"\n{about['left']}\n" if about["left"] else ""},
        how=f"{how}{' where a method has fewer than 3 seeds, else over seeds' if few else ''}.{starred}",
        methods="\n".join(grid(heads, rows)),
        less_start="\n".join(_differences_table(told, "less_start")),
        reference_less="\n".join(_differences_table(told, "reference_less")),
        familiar="\n".join(_familiar_table(told)),
        own="\n".join(_own_table(told)),
        chosen="\n".join(_chosen(told)),
    )


def _differences_table(told: Json, key: str) -> list[str]:
    rows = []
    for name, m in told.items():
        if m[key]:
            first, *others = (m[key][metric] for metric in COMPARED)
            said = _bold(first)
            p = _p(first.get("holm", first.get("p")) if first else None)
            rows.append([f"`{name}`", said, p, *(cell(other, sign=True) for other in others)])
    head = "p" if key == "less_start" else "p, Holm"
    return grid(("method", "resolved", head, *COMPARED[1:]), rows)


FAMILIAR = """
## Requests that training had

Attacked tasks whose user's request stands in the training split, with a goal and an attack that no training task has:
what an agent meets that is trained on the requests of its own users. Rates and differences as above, over user tasks.
"""


def _familiar_table(told: Json) -> list[str]:
    """Familiar tasks, where they were tried."""
    tried = {name: m["familiar"] for name, m in told.items() if m["familiar"]}
    if not tried:
        return []
    rows = []
    for name, m in tried.items():
        less = m["less_start"].get("resolved")
        rows.append(
            [
                f"`{name}`",
                str(len(m["seeds"])),
                str(m["cases"]),
                *(cell(m["metrics"].get(metric)) for metric in ("resolved", "tsr", "asr")),
                _bold(less),
                _p(less["p"] if less else None),
                cell(m["less_start"].get("asr"), sign=True),
            ]
        )
    heads = ("method", "seeds", "tasks", "resolved", "tsr", "asr", "resolved less start", "p", "asr less start")
    return [FAMILIAR, *grid(heads, rows), ""]


def _bold(difference: Json | None) -> str:
    """A difference in points, bold where its interval leaves out zero."""
    said = cell(difference, sign=True)
    return f"**{said}**" if difference and (difference["low"] > 0 or difference["high"] < 0) else said


def _p(p: float | None) -> str:
    return "–" if p is None else "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _own_table(told: Json) -> Iterable[str]:
    """AgentDojo's own count, where there is one."""
    if not any(m["own_count"] for m in told.values()):
        return []
    names = ("utility", "utility_under_attack", "attack_success")
    rows = [
        [f"`{name}`", *(f"{100 * m['own_count'][n]['mean']:.1f}" if n in m["own_count"] else "–" for n in names)]
        for name, m in told.items()
    ]
    said = "As AgentDojo's scripts count, %: its utility may hold where nothing was done."
    heads = ("method", "utility", "utility under attack", "targeted attack success")
    return ["", "## AgentDojo's own count", "", said, "", *grid(heads, rows), ""]


def _chosen(told: Json) -> Iterable[str]:
    """Which words each seed chose, and what training had to learn from."""
    for name, m in told.items():
        for result in m["results"]:
            seed = f"- `{name}`, seed {result['seed']}: "
            if "validation" in result:
                said = ", ".join(f"{wording} {100 * v[0]:.0f} %" for wording, v in result["validation"].items())
                yield f"{seed}`{result['defence']['name']}` (resolved on validation: {said})."
            if "proposals" in result:
                kept = sum(proposal["kept"] for proposal in result["proposals"])
                words = " ".join(result["defence"]["system"].split())[:300]
                yield f"{seed}{kept} of {len(result['proposals'])} proposals kept{f': “{words}”' if words else '.'}"
            if repairs := result.get("repairs"):
                found = "; ".join(f"{r['repaired']} of {r['failures']} failures" for r in repairs)
                yield f"{seed}repaired in {len(repairs)} rounds: {found}. Policy of round {result['kept']}."


# ------------------------------------------------------------------------------------------------ the picture

BARS = {"resolved": "#0072b2", "tsr": "#009e73", "asr": "#d55e00"}


def picture(told: Json) -> str:
    """SVG: `resolved`, `tsr` and `asr` of each method as bars with their intervals."""
    width, left, bar, gap = 760, 150, 11, 12
    height = 50 + len(told) * (len(BARS) * bar + gap) + 24

    def at(share: float) -> float:
        return round(left + share * (width - left - 20), 1)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">']
    out += [f"<title>{', '.join(BARS)} by method, %</title>", f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for n, (metric, colour) in enumerate(BARS.items()):
        out.append(f'<rect x="{left + 120 * n}" y="12" width="10" height="10" fill="{colour}"/>')
        out.append(f'<text x="{left + 120 * n + 15}" y="21" font-size="12">{metric}</text>')
    for tick in (0, 25, 50, 75, 100):
        x = at(tick / 100)
        out.append(f'<line x1="{x}" y1="34" x2="{x}" y2="{height - 22}" stroke="#ddd"/>')
        out.append(f'<text x="{x}" y="{height - 8}" font-size="11" text-anchor="middle">{tick}</text>')
    y = 42
    for name, m in told.items():
        middle = y + len(BARS) * bar / 2 + 4
        out.append(f'<text x="{left - 8}" y="{middle}" font-size="12" text-anchor="end">{escape(name)}</text>')
        for metric, colour in BARS.items():
            if (found := m["metrics"].get(metric)) is not None:
                out += _bar(at, y, bar - 2, found, colour)
            y += bar
        y += gap
    return "\n".join([*out, "</svg>"]) + "\n"


def _bar(at: Any, y: float, height: int, found: Json, colour: str) -> list[str]:
    start, end, middle = at(0.0), at(found["mean"]), y + height / 2
    drawn = [f'<rect x="{start}" y="{y}" width="{round(end - start, 1)}" height="{height}" fill="{colour}"/>']
    if found["low"] is not None:
        low, high = (at(min(max(found[key], 0.0), 1.0)) for key in ("low", "high"))
        drawn.append(f'<line x1="{low}" y1="{middle}" x2="{high}" y2="{middle}" stroke="#000"/>')
    return drawn
