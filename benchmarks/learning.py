"""Does it learn better than what a user would otherwise run, and which rule deserves to be the default?

    python benchmarks/learning.py [--methods headline] [--seeds 0-7] [--jobs 2]    the comparison; writes the results
    python benchmarks/learning.py --quick                                          a smaller one, in under 8 minutes
    python benchmarks/learning.py --tune [--methods grpo-sum]                      tries settings, on seeds 100 and 101

Methods are recipes a key or two apart (`METHODS`); all go through the same rollouts and verifiers. Runs are independent
processes of one thread each. A finished run is kept under `--runs` by the hash of its recipe (seed and budget included)
and of the package's source, so an interrupted comparison goes on where it was, and another one takes what it shares.

Equal budgets. The reference, full FATE as the recipe has it, runs first on each seed. Every other method then gets the
tokens that the reference took on that seed, as `token_budget`: it runs whole rounds, as many as come closest to them.
Tokens are all that training took: read (prompts, repair prompts, tool results), sampled (groups that were re-drawn
included), and trained on, once for each pass; and validation, since it decides what is accepted. Evaluation on the test
split is not counted. What was really used stands in the table, in tokens and in seconds.

What is measured is the policy that a user would have in hand after each round (the last accepted one), on the test
split, by the recipe's verifiers, or by the held-out one of an objective where the recipe has one: a method that trains
on other verifiers is measured as all others. Intervals are Student's, over seeds; differences are paired by seed.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fate_trl
from fate_trl import diagnosis, evaluate
from fate_trl.evolution import Evolution, tokens_of_round
from fate_trl.ledger import Case, RunDirectory, round_dir
from fate_trl.recipe import Recipe, find_recipe, make_recipe, override, read_values
from fate_trl.testing.scripted import ROLES
from fate_trl.types import KINDS, ScoreCard, stable_hash

Json = dict[str, Any]

# ------------------------------------------------------------------------------------------------ what is compared


@dataclass(frozen=True)
class Method:
    """How a method differs from the recipe, which is full FATE.

    Attributes:
        what: In a few words.
        changes: Recipe keys and their values; "=key" stands for the recipe's own value of that key.
        tried: Settings that were tuned, on seeds of their own; at most four.
        tuned: The one that was best.
        rounds: Rounds to run, whatever they take; None for the reference's tokens.
    """

    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    tried: Sequence[Mapping[str, Any]] = ()
    tuned: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None


REFERENCE = "fate"
RL = {"repair": None, "sft": None}
"""Policy optimisation alone: nothing is collected, repaired or learned from repairs."""
RATES = tuple({"pfpo.learning_rate": rate} for rate in (3e-5, 1e-4, 3e-4, 1e-3))
SFT = {"pfpo": None}
"""Learning from repairs alone."""
SUM, GDPO = "weighted-sum", "gdpo"
NO_REDRAW = {"pfpo.redraw_rounds": 0}
"""GDPO normalises over the batch that was drawn first, so it has no re-draw."""


def front(**args: Any) -> Json:
    return {"name": "pareto-front", "args": args}


def rank(**args: Any) -> Json:
    return {"name": "pareto-rank", "args": args}


BASELINES = {
    REFERENCE: Method("full FATE: Pareto selection and reward", tried=RATES),
    "fate-sum": Method("full FATE: sum selection and reward", {"selector": SUM}, tried=RATES),
    "grpo-sum": Method("GRPO, summed rewards", {**RL, "selector": SUM}, tried=RATES),
    "gdpo": Method("GDPO", {**RL, "selector": GDPO, **NO_REDRAW}, tried=RATES),
    "sft-repairs": Method("SFT on repairs only", SFT),
    "pfpo": Method("PFPO only", RL, tried=RATES),
    "product": Method("GRPO, security × utility", {**RL, "selector": "product"}, tried=RATES),
    "rank": Method("GRPO, Pareto-rank advantages", {**RL, "selector": rank()}, tried=RATES),
    "resampling": Method("rejection sampling + SFT", {**SFT, "repair.strategy": "resample"}),
}

ABLATIONS = {
    "no-repair-prompt": Method("failures are resampled", {"repair.strategy": "resample"}),
    "no-rescoring": Method("a random candidate", {"repair.accept": "random"}),
    "no-over-refusal": Method(
        "without the over-refusal objective",
        {"verifiers": ["security", "utility", "trajectory_control"], "evaluation.verifiers": ["over_refusal"]},
    ),
    "sum-selection": Method("sum selection, Pareto reward", {"repair.selector": SUM}),
    "sum-reward": Method("Pareto selection, sum reward", {"selector": SUM, "repair.selector": "=selector"}),
    "accept-resolves": Method("repairs that resolve", {"repair.accept": "resolves"}),
    "accept-dominates": Method("repairs that dominate", {"repair.accept": "dominates"}),
    "accept-floors": Method("repairs above floors", {"repair.accept": "floors", "repair.floors": {"security": 0.7}}),
    "no-pfpo": Method("without PFPO", {"pfpo": None}),
    "no-sft": Method("without SFT", {"sft": None}),
    "target-repair": Method("SFT on the repair prompt", {"repair.target": "repair"}),
    "target-plain": Method("SFT on the plain task", {"repair.target": "plain"}),
    "target-both": Method("SFT on both", {"repair.target": "both"}),
    "prompts-plain": Method("PFPO on plain tasks", {"pfpo.prompts": "plain"}),
    "prompts-repair": Method("PFPO on repair prompts", {"pfpo.prompts": "repair"}),
    "prompts-mixed": Method("PFPO on both", {"pfpo.prompts": "mixed"}),
    **{f"k-{k}": Method(f"K = {k}", {"repair.k": k}) for k in (1, 2, 4, 8)},
    "rounds-4": Method("four rounds, with the curve", rounds=4),
}

COLLAPSE = {
    "no-redraw": Method("groups without signal stay", NO_REDRAW),
    "no-kl": Method("without the KL term", {"pfpo.beta": 0.0}),
    "kl": Method("KL term of .04", {"pfpo.beta": 0.04}),
    "no-benign": Method("attacked and harmful tasks only", {"rollout.kinds": ["attacked", "harmful"]}),
    "no-anchors": Method("without anchors", {"repair.anchors": 0}),
    "no-replay": Method("without earlier rounds' rows", {"repair.replay": False}),
    "no-gate": Method("every round is accepted", {"evaluation.validation": 0}),
    "gamed": Method(
        "trained on what is announced",
        {
            "verifiers": ["security", "announced_utility", "over_refusal", "trajectory_control"],
            "evaluation.verifiers": ["utility"],
        },
    ),
}

REWARDS = {
    "front": Method("non-dominated indicator", {"selector": front(epsilon=0.0)}),
    "front-mean": Method("front, then mean", {"selector": front()}),
    "front-scaled": Method("front, then mean by range", {"selector": front(tie_break="scaled")}),
    "front-worst": Method("front, then lowest", {"selector": front(tie_break="worst")}),
    "front-product": Method("front, then box volume", {"selector": front(tie_break="product")}),
    "front-crowding": Method("front, then crowding", {"selector": front(tie_break="crowding")}),
    "front-rank": Method("rank", {"selector": rank(epsilon=0.0)}),
    "rank-mean": Method("rank, then mean", {"selector": rank()}),
    "rank-scaled": Method("rank, then mean by range", {"selector": rank(tie_break="scaled")}),
    "box": Method("hypervolume of the box", {"selector": "product"}),
    "constraint": Method(
        "mean, security at least 1", {"selector": {"name": "constraint", "args": {"floors": {"security": 1.0}}}}
    ),
    "count": Method("dominance count", {"selector": "dominance-count"}),
    "chebyshev": Method("distance to the ideal", {"selector": "chebyshev"}),
    "sum": Method("weighted sum", {"selector": SUM}),
    "normalised": Method("GDPO's normalised sum", {"selector": GDPO, **NO_REDRAW}),
}

GROUPS: dict[str, dict[str, Method]] = {
    "headline": {name: BASELINES[name] for name in list(BASELINES)[:5]},
    "baselines": BASELINES,
    "ablations": ABLATIONS,
    "collapse": COLLAPSE,
    "rewards": REWARDS,
}
METHODS = {name: method for group in GROUPS.values() for name, method in group.items()}
ROUNDS = 60
"""More than any budget pays for."""

QUICK = {"evaluation.tasks": 200, "evaluation.validation": 60}
TUNING_SEEDS = (100, 101)
METRICS = ("resolved", "objective_product", "asr", "tsr", "brr", "hcr", "benign_utility", "inert", "valid_calls")
HEADLINE = ("resolved", "objective_product")


def chosen(names: Iterable[str]) -> dict[str, Method]:
    """Methods by name or by group, the reference first. Exits on a name that there is not."""
    wanted = {REFERENCE: METHODS[REFERENCE]}
    for name in names:
        if name not in GROUPS and name not in METHODS:
            sys.exit(f"no method {name!r}. Groups: {', '.join(GROUPS)}. Methods: {', '.join(METHODS)}.")
        wanted |= GROUPS.get(name) or {name: METHODS[name]}
    return wanted


def variants(methods: Mapping[str, Method]) -> dict[str, Method]:
    """The settings that are tried, each as a method of its own; the reference is as the recipe has it."""
    out = {REFERENCE: METHODS[REFERENCE]}
    for name, method in methods.items():
        for setting in method.tried:
            label = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in setting.items())
            out[f"{name} {label}"] = Method(method.what, method.changes, tuned=setting)
    return out


def recipe_of(values: Json, method: Method, seed: int, budget: int | None) -> Recipe:
    """The recipe's values with a method's changes: checked, and ready to run."""
    made = copy.deepcopy(values)
    for key, value in {**method.changes, **method.tuned}.items():
        own = isinstance(value, str) and value.startswith("=")
        put(made, key, values.get(value[1:], "pareto-front") if own else value)
    put(made, "seed", seed)
    put(made, "evaluation.baselines", budget is None)
    if method.rounds is not None:
        put(made, "rounds", method.rounds)
    elif budget is not None:
        made |= {"rounds": ROUNDS, "token_budget": budget}
    return make_recipe(made)


def put(values: Json, key: str, value: Any) -> None:
    override(values, f"{key}={json.dumps(value)}")


# ------------------------------------------------------------------------------------------------ one run


@dataclass(frozen=True)
class Job:
    """One run: a method on a seed."""

    method: str
    seed: int
    recipe: Json
    runs: str

    @property
    def folder(self) -> Path:
        return Path(self.runs) / f"{stable_hash(self.recipe, source_hash()):016x}"

    @property
    def result(self) -> Json | None:
        """What came out of it, if it is finished."""
        found: Json | None = RunDirectory(self.folder).read_json("result.json") if self.folder.is_dir() else None
        return found


def source_hash() -> str:
    """Of all that a run may depend on in this package: its source, its policies, not what only shows results."""
    package = Path(fate_trl.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*")):
        part = file.relative_to(package)
        if file.is_file() and part.parts[0] not in ("report", "cli") and "__pycache__" not in part.parts:
            digest.update(str(part).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def worker(job: Job) -> Json:
    """Run a job on torch."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging

    from fate_trl.stages import build

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return run(job, build)


def run(job: Job, build: Callable[[Recipe, RunDirectory], Evolution]) -> Json:
    """Run a job, or go on with it; its records are removed once the result is kept."""
    evaluate.rows = lambda *_, **__: []  # type: ignore[assignment]  # intervals over cases are not asked for
    started = time.perf_counter()
    recipe = make_recipe(job.recipe)
    directory = RunDirectory(job.folder / "run")
    with directory.lock():
        share_round_zero(recipe, directory, Path(job.runs), take=True)
        evolution = build(recipe, directory)
        evolution()
        share_round_zero(recipe, directory, Path(job.runs), take=False)
    result = {
        "method": job.method,
        "seed": job.seed,
        "points": list(points(directory)),
        "scripted": scripted(directory),
        "concerns": concerns(directory),
        "wall": time.perf_counter() - started,
    }
    RunDirectory(job.folder).write_json("result.json", result)
    shutil.rmtree(directory.path)
    return result


def share_round_zero(recipe: Recipe, directory: RunDirectory, runs: Path, take: bool) -> None:
    """Evaluate the untrained policy once per seed, not once per method: round 0 depends on these sections alone."""
    whole = recipe.model_dump(mode="json")
    evaluation = {key: value for key, value in whole["evaluation"].items() if key != "baselines"}
    sampling = {key: value for key, value in whole["rollout"].items() if key not in ("tasks", "kinds")}
    parts = [whole[key] for key in ("model", "suites", "verifiers", "objectives", "warm_start", "seed")]
    shared = runs / f"zero-{stable_hash(*parts, evaluation, sampling, source_hash()):016x}"
    own = directory.path / round_dir(0)
    source, target = (shared, own) if take else (own, shared)
    if source.is_dir() and not target.exists():
        fresh = target.with_name(f".{target.name}-{os.getpid()}")
        shutil.copytree(source, fresh)
        try:
            fresh.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(fresh)


def rounds_of(directory: RunDirectory) -> Iterator[tuple[int, dict[str, Json]]]:
    """The rounds that were finished, with their stages by name."""
    for folder in sorted((directory.path / "rounds").iterdir()):
        stages = {record["stage"]: record for record in directory.read(f"rounds/{folder.name}/stages.jsonl")}
        if folder.name == "00" or "accept" in stages:
            yield int(folder.name), stages


def points(directory: RunDirectory) -> Iterator[Json]:
    """After each round: what was used so far, and how good the policy is that one then has."""
    tokens, seconds, values = 0, 0.0, {}
    for number, stages in rounds_of(directory):
        accepted = stages.get("accept", {"accepted": True})["accepted"]
        if number:
            tokens += tokens_of_round(stages)
            seconds += sum(record["seconds"] for name, record in stages.items() if not name.startswith("eval-test"))
        if accepted:
            values = measured(directory.cases(f"{round_dir(number)}/rollouts.jsonl", "eval-test"))
        yield {"round": number, "accepted": accepted, "tokens": tokens, "seconds": seconds, "values": values}


def scripted(directory: RunDirectory) -> Json:
    """What the scripted policies get, where the run played them."""
    name = f"{round_dir(0)}/rollouts.jsonl"
    played = {role: directory.cases(name, f"eval-test-{role}") for role in ROLES}
    return {role: measured(cases) for role, cases in played.items() if cases}


def concerns(directory: RunDirectory) -> list[Json]:
    """What the diagnosis says of the run, of its first and its last policy."""
    rounds = dict(rounds_of(directory))
    rows = []
    for number in sorted({min(rounds), max(rounds)}):
        cases = directory.cases(f"{round_dir(number)}/rollouts.jsonl", "eval-test")
        head = {"round": number, "split": "test", "suite": "all", "kind": "all", "accepted": True}
        rows.append({**head, "policy": f"round-{number}", **evaluate.summarize(cases)})
    return [concern.to_dict() for concern in diagnosis.diagnose(rows, rounds)]


def measured(cases: Sequence[Case]) -> Json:
    """Values of the metrics by subset: all cases, those of each kind, those of each tag."""
    judged = [(t, ScoreCard({**card.scores, **card.held_out})) for t, card in cases]
    subsets: dict[str, list[Case]] = {"all": judged}
    for case in judged:
        for name in (case[0].task.kind, *case[0].task.tags):
            subsets.setdefault(name, []).append(case)
    table = {metric.name: metric for metric in evaluate.METRICS}
    values = {s: {name: value(table[name], cases) for name in METRICS} for s, cases in subsets.items()}
    return {s: {name: v for name, v in named.items() if v is not None} for s, named in values.items()}


def value(metric: evaluate.Metric, cases: Sequence[Case]) -> float | None:
    """A metric's value, without its interval; None where no case has one."""
    if metric.factors:
        factors = [value(factor, cases) for factor in metric.factors]
        return None if None in factors else math.prod(f for f in factors if f is not None)
    sound = [(t, card) for t, card in cases if not evaluate.is_error((t, card)) and metric.applies(t.task)]
    said = [(t.task.kind if metric.by_kind else "", metric.value(t, card)) for t, card in sound]
    kinds = [[v for kind, v in said if kind == k and v is not None] for k in ("", *KINDS)]
    means = [sum(values) / len(values) for values in kinds if values]
    return sum(means) / len(means) if means else None


# ------------------------------------------------------------------------------------------------ all runs


def all_runs(values: Json, methods: Mapping[str, Method], seeds: Sequence[int], runs: str, jobs: int) -> list[Json]:
    """Results of all methods on all seeds: those that are kept, and those that are run now."""
    results: list[Json] = []
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=10) as pool:
        going: dict[Future[Json], Job] = {}

        def begin(name: str, seed: int, budget: int | None) -> None:
            recipe = recipe_of(values, methods[name], seed, budget).model_dump(mode="json")
            job = Job(name, seed, recipe, runs)
            kept = job.result
            if kept is None:
                going[pool.submit(worker, job)] = job
            else:
                end({**kept, "method": name})

        def end(result: Json) -> None:
            results.append(result)
            told(result)
            if result["method"] == REFERENCE:
                for name in methods:
                    if name != REFERENCE:
                        begin(name, result["seed"], result["points"][-1]["tokens"])

        for seed in seeds:
            begin(REFERENCE, seed, None)
        while going:
            done, _ = wait(going, return_when=FIRST_COMPLETED)
            for future in done:
                job = going.pop(future)
                error = future.exception()
                if error is None:
                    end(future.result())
                else:
                    print(f"{job.method}, seed {job.seed}: {error}", file=sys.stderr, flush=True)
    return results


def told(result: Json) -> None:
    last = result["points"][-1]
    said = ", ".join(f"{name} {100 * last['values']['all'].get(name, math.nan):.1f}" for name in HEADLINE)
    rounds, tokens = last["round"], last["tokens"] / 1000
    print(
        f"{result['method']}, seed {result['seed']}: {said}; {rounds} rounds, {tokens:.0f} k tokens, "
        f"{last['seconds']:.0f} s of {result['wall']:.0f} s",
        flush=True,
    )


def projected(methods: Mapping[str, Method], seeds: Sequence[int], runs: str, jobs: int) -> str:
    """What is to come, judged by the runs that are kept, of whatever comparison."""
    took = [json.loads(file.read_text())["wall"] for file in Path(runs).glob("*/result.json")]
    each, known = (sum(took) / len(took), f"the mean of {len(took)} kept runs") if took else (150.0, "a guess")
    count = len(methods) * len(seeds)
    return (
        f"{len(methods)} methods x {len(seeds)} seeds = {count} runs of about {each:.0f} s ({known}), "
        f"on {jobs} processes: at most {count * each / jobs / 60:.0f} minutes, less what is kept"
    )


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
    ends = {r["seed"]: r["points"][-1]["values"].get(subset, {}) for r in results if r["method"] == method}
    return {seed: values[metric] for seed, values in ends.items() if metric in values}


def difference(ours: Values, theirs: Values) -> Json | None:
    """Ours less theirs, on the seeds that both have; None if there are none."""
    shared = sorted(set(ours) & set(theirs))
    return interval([ours[seed] - theirs[seed] for seed in shared]) if shared else None


def curve(results: Sequence[Json], method: str) -> list[Json]:
    """A method's mean after each round that all its seeds have, against its mean tokens."""
    runs = [r["points"] for r in results if r["method"] == method]
    out = []
    for points_of_round in zip(*runs, strict=False):
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
                s: {m: difference(by_seed(results, REFERENCE, s, m), by_seed(results, name, s, m)) for m in HEADLINE}
                for s in subsets
            },
            "half_way": half_way(results, name),
            "curve": curve(results, name),
            "concerns": _counted(concern["rule"] for r in mine for concern in r["concerns"]),
        }
    return {"subsets": subsets, "methods": table, "scripted": _scripted(results), "untrained": _untrained(results)}


def _intervals(results: Sequence[Json], name: str, subsets: Sequence[str]) -> Json:
    found = {s: {m: list(by_seed(results, name, s, m).values()) for m in METRICS} for s in subsets}
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
    """Percent, with the interval."""
    if value is None:
        return "–"
    number = f"{100 * value['mean']:{'+' if sign else ''}.1f}"
    return number if value["low"] is None else f"{number} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _mean_cell(value: Json | None) -> str:
    return "–" if value is None else f"{100 * value['mean']:.1f}"


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows)]


def page(told: Json, about: Json) -> str:
    """The results as Markdown; every figure is the JSON's."""
    methods, scripted = told["methods"], told["scripted"]
    columns = ("resolved", "objective_product", "asr", "hcr", "brr", "tsr", "benign_utility")
    rows = [
        [
            f"`{name}`",
            m["what"],
            str(len(m["seeds"])),
            f"{m['tokens']['mean'] / 1000:.0f}",
            f"{m['seconds']['mean']:.0f}",
            *(cell(m["metrics"]["all"].get(c)) for c in columns),
        ]
        for name, m in methods.items()
    ]
    rows += [
        [f"`{role}`", "scripted", str(values["resolved"]["n"]), "0", "0", *(cell(values.get(c)) for c in columns)]
        for role, values in {"untrained": told["untrained"], **scripted}.items()
        if values
    ]
    lines = [
        "# Learning: methods at equal tokens",
        "",
        "Written by `benchmarks/learning.py`, whose docstring says what is counted, and how.",
        "",
        f"    {about['command']}",
        "",
        f"{about['hardware']}. Seeds {about['seeds']}. Recipe `{about['recipe']}`, source {about['source']}.",
        "",
        "Test split, %, mean over seeds with Student's 95 % interval. Tokens in thousands: read, sampled, trained on.",
        "",
        *grid(("method", "what", "seeds", "k tokens", "s", *columns), rows),
        "",
        f"## `{REFERENCE}` against the others",
        "",
        f"Paired differences over shared seeds, in points: above zero `{REFERENCE}` is better. *Share*: tokens in",
        "which it reached the method's best mean `resolved`, of those that the method took for it.",
        "",
        *grid(
            ("method", *(f"{m}, {s}" for s in ("all", "attacked") for m in HEADLINE), "share"),
            (
                [
                    f"`{name}`",
                    *(cell(m["difference"].get(s, {}).get(h), True) for s in ("all", "attacked") for h in HEADLINE),
                    "–" if not m["half_way"] or m["half_way"]["share"] is None else f"{m['half_way']['share']:.2f}",
                ]
                for name, m in methods.items()
                if name != REFERENCE
            ),
        ),
        "",
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


# ------------------------------------------------------------------------------------------------ the command line


def numbers(text: str) -> list[int]:
    """ "0-3,7" as [0, 1, 2, 3, 7]."""
    out: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart", help="full FATE")
    parser.add_argument("--methods", nargs="+", default=["headline"], help=f"names, or {', '.join(GROUPS)}")
    parser.add_argument("--seeds", type=numbers, help="such as 0-7 or 0,3")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all methods")
    parser.add_argument("--quick", action="store_true", help="two seeds, fewer test tasks")
    parser.add_argument("--tune", action="store_true", help="try each method's settings, on seeds of their own")
    parser.add_argument("--runs", default="runs/learning", help="where finished runs are kept")
    parser.add_argument("--output", type=Path, help="results go to this name with .json, .md and .svg")
    given = parser.parse_args()

    methods = chosen(given.methods)
    methods = variants(methods) if given.tune else methods
    seeds = given.seeds or (list(TUNING_SEEDS) if given.tune else [0, 1] if given.quick else [0, 1, 2])
    values = read_values(find_recipe(given.recipe))
    for key, setting in QUICK.items() if given.quick else ():
        put(values, key, setting)
    for text in given.set:
        override(values, text)
    for method in methods.values():
        recipe_of(values, method, 0, 1)  # what is wrong with one is said before the first run
    print(projected(methods, seeds, given.runs, given.jobs), flush=True)
    results = all_runs(values, methods, seeds, given.runs, given.jobs)
    told = summary(results, methods)
    about = {
        "command": "python benchmarks/learning.py " + " ".join(sys.argv[1:]),
        "recipe": given.recipe,
        "hardware": f"{os.cpu_count()} CPU cores, {given.jobs} processes of one thread",
        "seeds": ", ".join(map(str, seeds)),
        "source": source_hash(),
    }
    text = page(told, about)
    print(text)
    if given.output:
        given.output.with_suffix(".json").write_text(json.dumps({**about, **told}, indent=1, sort_keys=True) + "\n")
        given.output.with_suffix(".md").write_text(text)
        plot(told, list(told["methods"])[:8], given.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
