"""What does twice the budget buy, and does a larger policy change who wins?

    python benchmarks/growth.py [--seeds 400,401] [--output docs/results/growth]
    python benchmarks/growth.py --kept --output docs/results/growth       runs nothing, shows what is finished

Recipe `tradeoffs`, two rounds; full FATE, FATE with sums, and GRPO with sums, at equal tokens as in learning.py, which
runs and keeps them. Two policies: the embedded one (0.36 million parameters), and one of 3 million that the same script
makes from the same traces (`suites.workbench.build tradeoffs --width 384 --steps 400`; once, into `--policies`; the
embedded one took 1,000 steps, which would be ten minutes of a core here). Three numbers of training tasks in a round:
40, 80 and 160, with PFPO's steps in proportion (2, 4, 8), so that each is about twice the budget of the one before.
Rates are the recipe's, for the larger policy in inverse proportion to its width, for all methods alike, as they are
when it is made; none was tuned for it.

Intervals are Student's 95 %, over seeds; differences are paired by seed. With one seed there are none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.learning import Job, chosen, job_of, numbers, put, source_hash, untuned, versions, worker
from benchmarks.learning_methods import REFERENCE, Json, Method
from benchmarks.learning_page import cell, grid, interval
from fate_trl.recipe.loading import find_recipe, read_values

RECIPE = "tradeoffs"
TASKS = (40, 80, 160)
TASKS_PER_STEP = 20
WIDTHS = (128, 384)
STEPS = 400
"""In which the larger policy is made."""
RATES = ("sft.learning_rate", "pfpo.learning_rate")
SETTINGS = {"rounds": 2, "evaluation.tasks": 150}
METRICS = ("resolved", "objective_product", "asr")

Values = Mapping[int, float]
"""By seed."""
Key = tuple[int, int, str]
"""Width, training tasks, method."""


def policy_of(width: int, folder: Path, make: bool) -> str | None:
    """What `model.path` says for a policy of this width; a wider one than the embedded is made if it is not there."""
    from fate_trl.suites.workbench.build import WIDTH, build

    if width == WIDTH:
        return f"embedded-{RECIPE}"
    path = folder / f"{RECIPE}-{width}"
    if not (path / "model.safetensors").is_file():
        if not make:
            return None
        print(f"makes the policy of width {width} in {path}", flush=True)
        build(path, world=RECIPE, width=width, steps=STEPS)
    return str(path)


def values_of(width: int, tasks: int, path: str) -> Json:
    """The recipe for a policy and a number of training tasks."""
    values: Json = read_values(find_recipe(RECIPE))
    changes: Json = {
        **SETTINGS,
        "model.path": path,
        "rollout.tasks": tasks,
        "pfpo.max_steps": tasks // TASKS_PER_STEP,
        **{rate: _at(values, rate) * WIDTHS[0] / width for rate in RATES},
    }
    for key, value in changes.items():
        put(values, key, value)
    return values


def _at(values: Json, key: str) -> float:
    section, name = key.split(".")
    return float(values[section][name])


def cell_jobs(values: Json, methods: Mapping[str, Method], seed: int, runs: str) -> Iterator[Job]:
    """The jobs of a cell on a seed, the reference first: the others get the tokens that it took, once it is done."""
    reference = job_of(values, REFERENCE, methods[REFERENCE], seed, None, runs)
    yield reference
    if (result := reference.result) is not None:
        for name, method in methods.items():
            if name != REFERENCE:
                yield job_of(values, name, method, seed, result["points"][-1]["tokens"], runs)


def everything(
    paths: Mapping[int, str], methods: Mapping[str, Method], seeds: Sequence[int], runs: str, do: Callable[[Job], Any]
) -> dict[Key, dict[int, Json]]:
    """Finished results by cell and seed; `do` is called on each job that is not finished. Seed by seed."""
    found: dict[Key, dict[int, Json]] = {}
    for seed in seeds:
        for width, path in paths.items():
            for tasks in TASKS:
                for job in cell_jobs(values_of(width, tasks, path), methods, seed, runs):
                    if job.result is None:
                        do(job)
                    if (result := job.result) is not None:
                        found.setdefault((width, tasks, job.method), {})[seed] = result
                        print(f"seed {seed}, width {width}, {tasks} tasks, {job.method}: {_said(result)}", flush=True)
    return found


def _said(result: Json) -> str:
    end = result["points"][-1]
    return (
        f"resolved {100 * end['values']['all']['resolved']:.1f}, {end['tokens']} tokens, {result['cpu']:.0f} s of CPU"
    )


# ------------------------------------------------------------------------------------------------ what it says


def ends(found: Mapping[Key, Mapping[int, Json]], key: Key, metric: str) -> Values:
    """A metric at the end, by seed."""
    return {seed: r["points"][-1]["values"]["all"][metric] for seed, r in found.get(key, {}).items()}


def less(ours: Values, theirs: Values) -> Values:
    """Ours less theirs, on the seeds that both have."""
    return {seed: ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))}


def mean(parts: Sequence[Values]) -> Values:
    """The mean of several values, on the seeds that have all."""
    shared = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {seed: sum(part[seed] for part in parts) / len(parts) for seed in sorted(shared)}


def over_seeds(values: Values) -> Json | None:
    return interval(list(values.values())) if values else None


def summary(found: Mapping[Key, Mapping[int, Json]], methods: Sequence[str]) -> Json:
    """All that the page shows, as plain data."""
    cells = []
    for width, tasks, name in sorted(found, key=lambda key: (key[0], key[1], methods.index(key[2]))):
        results = found[width, tasks, name]
        lasts = [r["points"][-1] for r in results.values()]
        cells.append(
            {
                "width": width,
                "tasks": tasks,
                "method": name,
                "seeds": sorted(results),
                "tokens": interval([end["tokens"] for end in lasts]),
                "cpu_seconds": interval([r["cpu"] for r in results.values()]),
                **{metric: over_seeds(ends(found, (width, tasks, name), metric)) for metric in METRICS},
            }
        )
    rivals = [name for name in methods if name != REFERENCE]
    return {
        "cells": cells,
        "untrained": {
            width: over_seeds({s: r["points"][0]["values"]["all"]["resolved"] for s, r in start.items()})
            for width in WIDTHS
            if (start := found.get((width, TASKS[0], REFERENCE)))
        },
        "leads": [lead(found, name) for name in rivals],
        "doublings": [doubled(found, width, name) for width in WIDTHS for name in methods],
    }


def lead(found: Mapping[Key, Mapping[int, Json]], name: str) -> Json:
    """The reference's lead in `resolved` by width and tasks; and the wider policy's less the other's, mean of tasks."""
    by = {
        width: {t: less(*(ends(found, (width, t, m), "resolved") for m in (REFERENCE, name))) for t in TASKS}
        for width in WIDTHS
    }
    whole = {width: mean(list(parts.values())) for width, parts in by.items()}
    return {
        "method": name,
        "by": {width: {t: over_seeds(values) for t, values in parts.items()} for width, parts in by.items()},
        "mean": {width: over_seeds(values) for width, values in whole.items()},
        "with_size": over_seeds(less(whole[WIDTHS[1]], whole[WIDTHS[0]])),
    }


def doubled(found: Mapping[Key, Mapping[int, Json]], width: int, name: str) -> Json:
    """What each doubling of the tasks adds to `resolved`, and by how much the tokens grew."""
    steps = list(pairwise(TASKS))
    gains = [less(*(ends(found, (width, t, name), "resolved") for t in (many, few))) for few, many in steps]
    grew = [
        sum(found[width, many, name][seed]["points"][-1]["tokens"] for seed in gain)
        / sum(found[width, few, name][seed]["points"][-1]["tokens"] for seed in gain)
        for (few, many), gain in zip(steps, gains, strict=True)
        if gain
    ]
    return {
        "width": width,
        "method": name,
        "gains": {f"{few} to {many}": over_seeds(gain) for (few, many), gain in zip(steps, gains, strict=True)},
        "mean": over_seeds(mean(gains)),
        "tokens": grew,
    }


PAGE = """# Growth: what twice the budget buys, and a larger policy

Written by `benchmarks/growth.py`, whose docstring says what is compared.

    {command}

{hardware}; {versions}. {cpu:.0f} s of CPU time for {runs} runs. Recipe `{recipe}`, source {source}.
Policies: {policies}.{absent}

Test split, %, mean over seeds with Student's 95 % interval; one seed has none. {few}Before training `resolved` is
{untrained}.

{cells}

![resolved against training tokens, by policy and method](growth.svg)

## What twice the budget buys

Points of `resolved` from one number of training tasks to the next, paired by seed; *mean* is of both.

{doublings}

## Does the lead grow with the policy?

`{reference}` less the method in `resolved`, points, paired by seed; *mean* is over the three budgets.
Last column: the lead with the larger policy less the lead with the smaller one.

{leads}
"""

FEW, SKETCH = 2, "One seed or two tell very large effects only: read the means as a sketch.\n"


def page(told: Json, about: Json) -> str:
    sizes = about["parameters"]

    def signed(value: Json | None) -> str:
        return cell(value, sign=True)

    cells = [
        [
            sizes[c["width"]],
            str(c["tasks"]),
            f"`{c['method']}`",
            str(len(c["seeds"])),
            f"{c['tokens']['mean'] / 1000:.0f}",
            f"{c['cpu_seconds']['mean']:.0f}",
            *(cell(c[metric]) for metric in METRICS),
        ]
        for c in told["cells"]
    ]
    doublings = [
        [
            sizes[d["width"]],
            f"`{d['method']}`",
            *(signed(gain) for gain in d["gains"].values()),
            signed(d["mean"]),
            ", ".join(f"× {ratio:.1f}" for ratio in d["tokens"]),
        ]
        for d in told["doublings"]
        if d["width"] in sizes
    ]
    leads = [
        [f"`{x['method']}`", sizes[width], *(signed(x["by"][width][t]) for t in TASKS), signed(x["mean"][width]), grew]
        for x in told["leads"]
        for width, grew in zip(WIDTHS, ("", signed(x["with_size"])), strict=True)
        if width in sizes
    ]
    steps = [f"{few} to {many}" for few, many in pairwise(TASKS)]
    heads = ("policy", "tasks", "method", "seeds", "k tokens", "CPU s", *METRICS)
    return PAGE.format(
        **about,
        few="" if min(len(c["seeds"]) for c in told["cells"]) > FEW else SKETCH,
        absent="" if len(sizes) == len(WIDTHS) else " The larger policy has not been run here yet.",
        policies="; ".join(f"{sizes[width]} {stated}" for width, stated in about["weights"].items()),
        untrained=", ".join(f"{cell(value)} ({sizes[width]})" for width, value in told["untrained"].items()),
        cells="\n".join(grid(heads, cells)),
        doublings="\n".join(grid(("policy", "method", *steps, "mean", "tokens"), doublings)),
        leads="\n".join(grid(("method", "policy", *(f"{t} tasks" for t in TASKS), "mean", "with size"), leads)),
        reference=REFERENCE,
    )


def plot(told: Json, sizes: Mapping[int, str], methods: Sequence[str], file: Path) -> None:
    """Mean `resolved` against mean tokens, a panel for each policy. Needs matplotlib."""
    from matplotlib import pyplot

    figure, grid_of = pyplot.subplots(1, len(sizes), figsize=(5 * len(sizes), 4), sharey=True, squeeze=False)
    axes = grid_of[0]
    for axis, width in zip(axes, sizes, strict=True):
        for number, name in enumerate(methods):
            mine = [c for c in told["cells"] if (c["width"], c["method"]) == (width, name)]
            x, y = [c["tokens"]["mean"] / 1000 for c in mine], [100 * c["resolved"]["mean"] for c in mine]
            axis.plot(x, y, marker="osD^"[number], markersize=5, label=name, color=f"C{number}")
        if width in told["untrained"]:
            axis.axhline(100 * told["untrained"][width]["mean"], color="grey", linestyle=":", label="untrained")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set(xlabel="thousand training tokens", title=f"{sizes[width]} parameters", ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("resolved, %")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def weights_of(path: str) -> tuple[str, str]:
    """(parameters, what is said of the weights) of a policy."""
    from safetensors import safe_open

    from fate_trl.recipe.schema import EMBEDDED
    from fate_trl.suites.workbench import POLICIES

    file = (POLICIES[EMBEDDED[path]] if path in EMBEDDED else Path(path)) / "model.safetensors"
    with safe_open(file, "numpy") as tensors:
        count = sum(tensors.get_tensor(name).size for name in tensors.keys())  # noqa: SIM118, it is no dict
    return f"{count / 1e6:.2f} M", f"`{path}`, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["fate-sum", "grpo-sum"], help=f"beside {REFERENCE}")
    parser.add_argument("--seeds", type=numbers, default=[400, 401], help="such as 400-402; run one after the other")
    parser.add_argument("--kept", action="store_true", help="run nothing; show what is finished")
    parser.add_argument("--runs", default="runs/learning", help="where learning.py keeps its runs")
    parser.add_argument("--policies", type=Path, default=Path("runs/policies"), help="where the larger policy lies")
    parser.add_argument("--output", type=Path, help="results go to this name with .json, .md and .svg")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    methods = {name: untuned(method, RATES) for name, method in chosen(given.methods).items()}
    known = {width: policy_of(width, given.policies, make=not given.kept) for width in WIDTHS}
    paths = {width: path for width, path in known.items() if path is not None}
    found = everything(paths, methods, given.seeds, given.runs, (lambda job: None) if given.kept else worker)
    if not found:
        sys.exit(f"nothing is finished under {given.runs}")
    told = summary(found, list(methods))
    stated = {width: weights_of(path) for width, path in paths.items() if any(key[0] == width for key in found)}
    results = [result for by_seed in found.values() for result in by_seed.values()]
    about: Json = {
        "command": "python benchmarks/growth.py --seeds " + ",".join(map(str, sorted({r["seed"] for r in results}))),
        "hardware": f"{os.cpu_count()} CPU cores, one process of one thread",
        "versions": versions(),
        "recipe": RECIPE,
        "source": source_hash(),
        "runs": len(results),
        "cpu": sum(r["cpu"] for r in results),
        "parameters": {width: count for width, (count, _) in stated.items()},
        "weights": {width: said for width, (_, said) in stated.items()},
    }
    text = page(told, about)
    print(text)
    if given.output:
        given.output.with_suffix(".json").write_text(json.dumps({**about, **told}, indent=1, sort_keys=True) + "\n")
        given.output.with_suffix(".md").write_text(text)
        plot(told, about["parameters"], list(methods), given.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
