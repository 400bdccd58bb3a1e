"""What learning.py shows of its results: means and paired differences over seeds, a page, a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.learning_methods import COMPARISONS, NAMED_SEEDS, REFERENCE, Json, Method
from fate_trl.metrics import columns
from fate_trl.suites.scripted import ROLES

METRICS = ("resolved", "objective_product", "asr", "tsr", "brr", "hcr", "benign_utility", "inert", "valid_calls")
HEADLINE = ("resolved", "objective_product")
VOLUME = "hypervolume"

# ------------------------------------------------------------------------------------------------ statistics


def interval(values: Sequence[float]) -> Json:
    """Mean and Student's 95 % interval over seeds; the ends are None below two seeds."""
    from scipy import stats

    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


Values = Mapping[int, float]


def by_seed(results: Sequence[Json], method: str, subset: str, metric: str) -> Values:
    """A method's value of a metric on each seed, at the end."""
    mine = [r for r in results if r["method"] == method]
    if metric == VOLUME:
        found = {r["seed"]: volume([c for c in r.get("cases", ()) if _within(c, subset)]) for r in mine}
        return {seed: value for seed, value in found.items() if value is not None}
    ends = {r["seed"]: r["points"][-1]["values"].get(subset, {}) for r in mine}
    return {seed: values[metric] for seed, values in ends.items() if metric in values}


def _within(case: Json, subset: str) -> bool:
    return subset == "all" or subset == case["kind"] or subset in case["tags"]


def difference(ours: Values, theirs: Values) -> Json | None:
    """Ours less theirs, on the seeds that both have; None if there are none."""
    shared = sorted(set(ours) & set(theirs))
    return interval([ours[seed] - theirs[seed] for seed in shared]) if shared else None


def volume(cases: Sequence[Json]) -> float | None:
    """Mean hypervolume of single cases: of the box between a case's scores and one half in each, by the largest.

    Over the cases of a kind, then over kinds, as `objective_product`. That one is a product of means, and hardly
    tells (1, .52) from the middle, (.72, .75); here they count .04 and .22, and a perfect case counts 1.
    """
    kinds: dict[str, list[float]] = {}
    for case in cases:
        scores = [score for score in case["scores"].values() if score is not None]
        if scores:
            kinds.setdefault(case["kind"], []).append(math.prod(max(0.0, 2 * score - 1) for score in scores))
    means = [math.fsum(found) / len(found) for found in kinds.values()]
    return math.fsum(means) / len(means) if means else None


def tests(results: Sequence[Json], present: Sequence[str]) -> dict[str, Json]:
    """p-values of the comparisons that were named, by method and metric: paired by seed, Student's, and Holm's.

    Of families that are complete, from two shared seeds on.
    """
    from scipy import stats

    told: dict[str, Json] = {}
    for family in COMPARISONS.values():
        asked = [(name, metric) for name in family if name in present for metric in HEADLINE]
        found: list[tuple[str, str, float]] = []
        for name, metric in asked:
            ours, theirs = (by_seed(results, method, "all", metric) for method in (REFERENCE, name))
            gaps = [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]
            if len(set(gaps)) > 1:
                found.append((name, metric, float(stats.ttest_1samp(gaps, 0).pvalue)))
        if len(found) < len(family) * len(HEADLINE):
            continue
        for (name, metric, p), holm in zip(found, columns.corrected([p for *_, p in found], "holm"), strict=True):
            told.setdefault(name, {})[metric] = {"p": p, "holm": holm}
    return told


def curve(results: Sequence[Json], method: str) -> list[Json]:
    """A method's mean after each round that all its seeds have, and at their ends, against its mean tokens."""
    runs = [r["points"] for r in results if r["method"] == method]
    common = min(map(len, runs)) - 1
    out = []
    for points_of_round in [*zip(*(run[:common] for run in runs), strict=True), [run[-1] for run in runs]]:
        tokens = sum(p["tokens"] for p in points_of_round) / len(runs)
        ends = {name: interval([p["values"]["all"][name] for p in points_of_round]) for name in HEADLINE}
        out.append({"round": points_of_round[0]["round"], "tokens": tokens, **ends})
    return out


def half_way(results: Sequence[Json], method: str) -> Json | None:
    """Where the reference reaches the best mean `resolved` of a method, as a share of the tokens the method took."""
    theirs, ours = curve(results, method), curve(results, REFERENCE)
    best = max(theirs, key=lambda point: point["resolved"]["mean"])
    reached = [point for point in ours if point["resolved"]["mean"] >= best["resolved"]["mean"]]
    share = reached[0]["tokens"] / best["tokens"] if reached and best["tokens"] else None
    return {"best": best["resolved"]["mean"], "tokens": best["tokens"], "share": share}


def summary(results: Sequence[Json], methods: Mapping[str, Method]) -> Json:
    """All that the page shows, as plain data."""
    present = [name for name in methods if any(r["method"] == name for r in results)]
    subsets = sorted({s for r in results for s in r["points"][-1]["values"]}, key=lambda s: (s != "all", s))
    tested = tests(results, present)
    table: Json = {}
    for name in present:
        mine = [r for r in results if r["method"] == name]
        ends = [r["points"][-1] for r in mine]
        table[name] = {
            "what": methods[name].what,
            "changes": {**methods[name].changes, **methods[name].tuned},
            "seeds": sorted(r["seed"] for r in mine),
            "tokens": interval([end["tokens"] for end in ends]),
            "seconds": interval([end["seconds"] for end in ends]),
            "rounds": interval([end["round"] for end in ends]),
            "metrics": _intervals(results, name, subsets),
            "difference": {
                s: {
                    m: difference(by_seed(results, REFERENCE, s, m), by_seed(results, name, s, m))
                    for m in (*HEADLINE, VOLUME)
                }
                for s in subsets
            },
            "tests": tested.get(name, {}),
            "cpu_seconds": interval(cpu) if (cpu := [r["cpu"] for r in mine if "cpu" in r]) else None,
            "half_way": half_way(results, name),
            "curve": curve(results, name),
            "concerns": _counted(concern["rule"] for r in mine for concern in r["concerns"]),
        }
    return {"subsets": subsets, "methods": table, "scripted": _scripted(results), "untrained": _untrained(results)}


def _intervals(results: Sequence[Json], name: str, subsets: Sequence[str]) -> Json:
    asked = (*METRICS, VOLUME)
    found = {s: {m: list(by_seed(results, name, s, m).values()) for m in asked} for s in subsets}
    return {s: {m: interval(values) for m, values in named.items() if values} for s, named in found.items()}


def _counted(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _scripted(results: Sequence[Json]) -> Json:
    played = [r["scripted"] for r in results if r["method"] == REFERENCE]
    return {role: _mean_of([p[role]["all"] for p in played if role in p]) for role in ROLES}


def _untrained(results: Sequence[Json]) -> Json:
    return _mean_of([r["points"][0]["values"]["all"] for r in results if r["method"] == REFERENCE])


def _mean_of(values: Sequence[Json]) -> Json:
    return {m: interval([v[m] for v in values]) for m in METRICS if values and all(m in v for v in values)}


# ------------------------------------------------------------------------------------------------ what is shown


def cell(value: Json | None, sign: bool = False) -> str:
    """Percent, with the interval: of a difference if it has a sign, else of a rate, which lies between 0 and 100."""
    if value is None:
        return "–"
    number = f"{100 * value['mean']:{'+' if sign else ''}.1f}"
    if value["low"] is None:
        return number
    low, high = (100 * value[end] for end in ("low", "high"))
    return f"{number} [{low:.1f}, {high:.1f}]" if sign else f"{number} [{max(low, 0):.1f}, {min(high, 100):.1f}]"


def p_cell(p: float) -> str:
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _mean_cell(value: Json | None) -> str:
    return "–" if value is None else f"{100 * value['mean']:.1f}"


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows)]


COLUMNS = ("resolved", "objective_product", VOLUME, "asr", "hcr", "brr", "tsr", "benign_utility")
METHODS_CAPTION = [
    "Test split, %, mean over seeds with Student's 95 % interval. Tokens in thousands: read, sampled, trained on.",
    f"`{VOLUME}`: of the box between a case's scores and one half in each, mean over cases.",
    "",
]
DIFFERENCES_CAPTION = [
    f"Paired differences over shared seeds, in points: above zero `{REFERENCE}` is better. *Share*: tokens in which it",
    "reached the method's best mean `resolved`, of those that the method took for it.",
    "",
]
TESTS_CAPTION = [
    f"Tests of comparisons that were named before the runs: `{REFERENCE}` less the method, in points. Student's test",
    "paired by seed: *p*, and after Holm over all comparisons of a family, both metrics.",
    f"`{VOLUME}` is not among what is tested.",
]
PLOT = "resolved and objective_product against tokens, by method"
HEADS = ("method", "what", "seeds", "k tokens", "s", *COLUMNS)


def methods_table(told: Json) -> list[str]:
    """Every method at its end, and what stands beside them: the untrained policy and the scripted ones."""
    rows: list[list[str]] = []
    for name, m in told["methods"].items():
        used = [f"{m['tokens']['mean'] / 1000:.0f}", f"{m['seconds']['mean']:.0f}"]
        values = [cell(m["metrics"]["all"].get(column)) for column in COLUMNS]
        rows.append([f"`{name}`", m["what"], str(len(m["seeds"])), *used, *values])
    beside = [("untrained", "round 0", told["untrained"])]
    beside += [(role, "scripted", values) for role, values in told["scripted"].items()]
    for name, what, found in beside:
        if found:
            values = [cell(found.get(column)) for column in COLUMNS]
            rows.append([f"`{name}`", what, str(found["resolved"]["n"]), "0", "0", *values])
    return grid(HEADS, rows)


def differences_table(told: Json) -> list[str]:
    """The reference less each method, on shared seeds; and how soon it was as good."""
    places = [(subset, metric) for subset in ("all", "attacked") for metric in HEADLINE]
    rows = []
    for name, m in told["methods"].items():
        share = m["half_way"]["share"]
        found = [cell(m["difference"].get(subset, {}).get(metric), sign=True) for subset, metric in places]
        if name != REFERENCE:
            rows.append([f"`{name}`", *found, "–" if share is None else f"{share:.2f}"])
    return grid(
        ("method", *(f"{metric}, {subset}" for subset, metric in places), "share"),
        (row for row in rows if row[0] != f"`{REFERENCE}`"),
    )


def tests_table(told: Json) -> list[str]:
    """The named comparisons with their p-values, family by family; nothing where none is complete."""
    rows = []
    for family, names in COMPARISONS.items():
        for name in names:
            m = told["methods"].get(name, {})
            if m.get("tests"):
                found = m["difference"]["all"]
                pairs = [
                    [cell(found[x], sign=True), *(p_cell(m["tests"][x][k]) for k in ("p", "holm"))] for x in HEADLINE
                ]
                rows.append([family, f"`{name}`", *pairs[0], *pairs[1], cell(found[VOLUME], sign=True)])
    heads = ("family", "method", *(h for metric in HEADLINE for h in (metric, "p", "Holm")), VOLUME)
    return [*TESTS_CAPTION, *_added_seeds(told), "", *grid(heads, rows), ""] if rows else []


def _added_seeds(told: Json) -> list[str]:
    """A line for each family with results on seeds that were not named with it."""
    lines = []
    for family, names in COMPARISONS.items():
        seeds = {seed for name in names for seed in told["methods"].get(name, {}).get("seeds", ())}
        named, added = sorted(seeds & set(NAMED_SEEDS[family])), sorted(seeds - set(NAMED_SEEDS[family]))
        if added and any(told["methods"].get(name, {}).get("tests") for name in names):
            which = f"the seeds {_listed(named)} only; {_listed(added)} were added later" if named else "other seeds"
            lines.append(f"With *{family}* were named {which}. So its *p* say less than they read.")
    return lines


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def cpu_told(methods: Json) -> str:
    """What a run took of a CPU, where runs say so."""
    known = [m["cpu_seconds"] for m in methods.values() if m["cpu_seconds"]]
    if not known:
        return "CPU seconds were not recorded."
    count = sum(found["n"] for found in known)
    mean = math.fsum(found["mean"] * found["n"] for found in known) / count
    return f"CPU seconds of a run, evaluation included: {mean:.0f}, the mean of the {count} that recorded them."


def page(told: Json, about: Json) -> str:
    """The results as Markdown; every figure is the JSON's."""
    methods = told["methods"]
    lines = [
        "# Learning: methods at equal tokens",
        "",
        "Written by `benchmarks/learning.py`, whose docstring says what is counted, and how.",
        "",
        f"    {about['command']}",
        "",
        f"{about['hardware']}; {about['versions']}. {cpu_told(methods)}",
        f"Seeds {about['seeds']}. Recipe `{about['recipe']}`, source {about['source']}.",
        f"The same as `{REFERENCE}`, as the recipe has it: {', '.join(about['same']) or 'none'}.",
        "",
        *METHODS_CAPTION,
        *methods_table(told),
        "",
        f"## `{REFERENCE}` against the others",
        "",
        *DIFFERENCES_CAPTION,
        *differences_table(told),
        "",
        *tests_table(told),
        "## `resolved` by kind and tag of task",
        "",
        "Means over seeds.",
        "",
        *grid(
            ("tasks", *(f"`{name}`" for name in methods)),
            (
                [s, *(_mean_cell(m["metrics"].get(s, {}).get("resolved")) for m in methods.values())]
                for s in told["subsets"]
            ),
        ),
        "",
        "## What the diagnosis said",
        "",
        *grid(
            ("method", "warnings over all seeds and rounds"),
            (
                [f"`{name}`", ", ".join(f"{rule} {n}" for rule, n in m["concerns"].items()) or "none"]
                for name, m in methods.items()
            ),
        ),
        "",
    ]
    return "\n".join(lines)


BEGIN, END = "<!-- written by benchmarks/learning.py: begin -->\n", "<!-- end -->\n"


def fill(text: str, told: Json, about: Json, picture: str) -> str:
    """A page whose text between the two marks is replaced by tables and plot."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the page has no place for results, between {BEGIN!r} and {END!r}")
    tables = [*METHODS_CAPTION, *methods_table(told), "", *DIFFERENCES_CAPTION, *differences_table(told)]
    lines = [f"    {about['command']}", "", *tables, "", *tests_table(told), f"![{PLOT}]({picture})", ""]
    return before + BEGIN + "\n".join(lines) + END + after


def plot(told: Json, names: Sequence[str], file: Path) -> None:
    """Mean of both headline metrics against tokens, with the interval at the end. Needs matplotlib."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharex=True)
    for axis, metric in zip(axes, HEADLINE, strict=True):
        for number, name in enumerate(names):
            points = told["methods"][name]["curve"]
            x, y = [p["tokens"] / 1000 for p in points], [100 * p[metric]["mean"] for p in points]
            mark = "osD^vP*X"[number % 8]
            axis.plot(x, y, marker=mark, markersize=4, label=name, color=f"C{number}")
            if points[-1][metric]["low"] is not None:
                ends = [[y[-1] - 100 * points[-1][metric]["low"]], [100 * points[-1][metric]["high"] - y[-1]]]
                axis.errorbar(x[-1:], y[-1:], yerr=ends, capsize=3, color=f"C{number}")
        axis.set(xlabel="thousand tokens (read, sampled, trained on)", ylabel=f"{metric}, %", ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
