"""Does it learn better than what a user would otherwise run, and which rule deserves to be the default?

    python benchmarks/learning.py [--methods headline] [--seeds 0-7] [--jobs 2]    the comparison; writes the results
    python benchmarks/learning.py --quick                                          a smaller one, in under 8 minutes
    python benchmarks/learning.py --tune [--methods grpo-sum]                      tries settings, on seeds 100 and 101

Methods are recipes a key or two apart (learning_methods.py); all go through the same rollouts and verifiers. Runs are
processes of one thread each. A finished run is kept under `--runs` by the hash of its recipe (seed and budget included)
and of the package's source, with its last policy and what that scored on each task, so an
interrupted comparison goes on where it was, and another one takes what it shares. Seeds are run one after the other;
`--kept` runs nothing, and shows the seeds that are whole.

Equal budgets. The reference, full FATE as the recipe has it, runs first on each seed. Every other method then gets the
tokens that the reference took on that seed, as `token_budget`: it runs whole rounds, as many as come closest to them.
Tokens are all that training took: read (prompts, repair prompts, tool results), sampled (groups that were re-drawn
included), and trained on, once for each pass; and validation, since it decides what is accepted. Evaluation on the test
split is not counted. What was really used stands in the table, in tokens and in seconds.

What is measured is the policy that a user would have in hand after each round (`kept_round`), on the test
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
import platform
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import fate_trl
from benchmarks.learning_methods import GROUPS, METHODS, REFERENCE, Json, Method
from benchmarks.learning_page import HEADLINE, METRICS, fill, page, plot, summary
from fate_trl import metrics
from fate_trl.ledger.layout import kept_round, round_dir
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.counts import tokens_of_round
from fate_trl.loop.rounds import Evolution
from fate_trl.metrics import concerns as diagnosis
from fate_trl.recipe.loading import find_recipe, make_recipe, override, read_values
from fate_trl.recipe.schema import Recipe
from fate_trl.record import stable_hash
from fate_trl.suites.scripted import ROLES
from fate_trl.types import KINDS, Case, ScoreCard, Trajectory

ROUNDS = 60
"""More than any budget pays for."""

QUICK = {"rounds": 2, "rollout.tasks": 160, "evaluation.tasks": 120, "evaluation.validation": 60}
TUNING_SEEDS = (100, 101)


# ------------------------------------------------------------------------------------------------ recipes


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


def untuned(method: Method, keys: Iterable[str]) -> Method:
    """The method without its tuned values of these keys: what is set for all methods holds for it too."""
    return replace(method, tuned={key: value for key, value in method.tuned.items() if key not in keys})


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


def apart(values: Json, methods: Mapping[str, Method]) -> dict[str, Method]:
    """The methods that differ from the reference with these values; the others are the reference."""
    reference = recipe_of(values, METHODS[REFERENCE], 0, 1)
    return {n: m for n, m in methods.items() if n == REFERENCE or recipe_of(values, m, 0, 1) != reference}


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


@cache
def source_hash() -> str:
    """Of all that a run may depend on here: the package's source and policies, not what only shows results, and the
    plugin of methods."""
    package = Path(fate_trl.__file__).parent
    methods = package.parent / "plugins/fate-trl-methods/fate_trl_methods"
    digest = hashlib.sha256()
    for file in [*sorted(package.rglob("*")), *sorted(methods.rglob("*"))]:
        part = file.relative_to(package.parent)
        if file.is_file() and part.parts[1] not in ("report", "cli") and "__pycache__" not in part.parts:
            digest.update(str(part).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def worker(job: Job) -> Json:
    """Run a job on torch."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging

    from fate_trl.train.build import build

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return run(job, build)


def run(job: Job, build: Callable[[Recipe, RunDirectory], Evolution]) -> Json:
    """Run a job, or go on with it; its records are removed once the result is kept."""
    metrics.rows = lambda *_, **__: []  # type: ignore[assignment]  # intervals over cases are not asked for
    started, spent = time.perf_counter(), time.process_time()
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
        "cases": ends(directory),
        "wall": time.perf_counter() - started,
        "cpu": time.process_time() - spent,
    }
    if policy := last_policy(directory):
        shutil.copytree(policy, job.folder / "policy", dirs_exist_ok=True)
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
    tokens, seconds, seen = 0, 0.0, {}
    for number, stages in rounds_of(directory):
        seen[number] = stages
        accepted = stages.get("accept", {"accepted": True})["accepted"]
        if number:
            tokens += tokens_of_round(stages)
            seconds += sum(record["seconds"] for name, record in stages.items() if not name.startswith("eval-test"))
        values = measured(directory.cases(f"{round_dir(kept_round(seen) or 0)}/rollouts.jsonl", "eval-test"))
        yield {"round": number, "accepted": accepted, "tokens": tokens, "seconds": seconds, "values": values}


def last_kept(directory: RunDirectory) -> int:
    """The round whose policy one has in hand at the end."""
    return kept_round(dict(rounds_of(directory))) or 0


def last_policy(directory: RunDirectory) -> Path | None:
    """Where the policy lies that one has at the end; None if it is the untrained one."""
    last = last_kept(directory)
    return directory.path / round_dir(last) / "policy" if last else None


def ends(directory: RunDirectory) -> list[Json]:
    """What that policy scores on each test task, so that any metric can be computed later on."""
    last = f"{round_dir(last_kept(directory))}/rollouts.jsonl"
    return [case_of(*case) for case in directory.cases(last, "eval-test")]


def case_of(trajectory: Trajectory, card: ScoreCard) -> Json:
    """A case as results keep it."""
    return {
        "task": trajectory.task.id,
        "kind": trajectory.task.kind,
        "tags": list(trajectory.task.tags),
        "scores": {name: score.value for name, score in {**card.scores, **card.held_out}.items()},
    }


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
        rows.append({**head, "policy": f"round-{number}", **metrics.summarize(cases)})
    return [concern.to_dict() for concern in diagnosis.diagnose(rows, rounds)]


def measured(cases: Sequence[Case]) -> Json:
    """Values of the metrics by subset: all cases, those of each kind, those of each tag."""
    judged = [(t, ScoreCard({**card.scores, **card.held_out})) for t, card in cases]
    subsets: dict[str, list[Case]] = {"all": judged}
    for case in judged:
        for name in (case[0].task.kind, *case[0].task.tags):
            subsets.setdefault(name, []).append(case)
    table = {metric.name: metric for metric in metrics.METRICS}
    values = {s: {name: value(table[name], cases) for name in METRICS} for s, cases in subsets.items()}
    return {s: {name: v for name, v in named.items() if v is not None} for s, named in values.items()}


def value(metric: metrics.Metric, cases: Sequence[Case]) -> float | None:
    """A metric's value, without its interval; None where no case has one."""
    if metric.factors:
        factors = [value(factor, cases) for factor in metric.factors]
        return None if None in factors else math.prod(f for f in factors if f is not None)
    sound = [(t, card) for t, card in cases if not metrics.is_error((t, card)) and metric.applies(t.task)]
    said = [(t.task.kind if metric.by_kind else "", metric.value(t, card)) for t, card in sound]
    kinds = [[v for kind, v in said if kind == k and v is not None] for k in ("", *KINDS)]
    means = [sum(values) / len(values) for values in kinds if values]
    return sum(means) / len(means) if means else None


# ------------------------------------------------------------------------------------------------ all runs


def all_runs(values: Json, methods: Mapping[str, Method], seeds: Sequence[int], runs: str, jobs: int) -> list[Json]:
    """Results of all methods on all seeds: those that are kept, and those that are run now, seed by seed."""
    results: list[Json] = []
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:  # max_tasks_per_child hangs, see python/cpython#115634
        waiting: list[Job] = []
        going: dict[Future[Json], Job] = {}

        def ask(name: str, seed: int, budget: int | None) -> None:
            job = job_of(values, name, methods[name], seed, budget, runs)
            found = job.result
            if found is None:
                waiting.append(job)
            else:
                end({**found, "method": name})

        def end(result: Json) -> None:
            results.append(result)
            told(result)
            if result["method"] == REFERENCE:
                for name in methods:
                    if name != REFERENCE:
                        ask(name, result["seed"], result["points"][-1]["tokens"])

        for seed in seeds:
            ask(REFERENCE, seed, None)
        try:
            while waiting or going:
                waiting.sort(key=lambda job: seeds.index(job.seed))  # within a seed the order stays
                while waiting and len(going) < jobs:
                    job = waiting.pop(0)
                    going[pool.submit(worker, job)] = job
                done, _ = wait(going, return_when=FIRST_COMPLETED)
                for future in done:
                    job = going.pop(future)
                    error = future.exception()
                    if error is None:
                        end(future.result())
                    else:
                        print(f"{job.method}, seed {job.seed}: {error}", file=sys.stderr, flush=True)
        except BaseException:  # a pool waits for its workers otherwise, for minutes or for ever
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return results


def job_of(values: Json, name: str, method: Method, seed: int, budget: int | None, runs: str) -> Job:
    return Job(name, seed, recipe_of(values, method, seed, budget).model_dump(mode="json"), runs)


def kept(values: Json, methods: Mapping[str, Method], seeds: Sequence[int], runs: str) -> Iterator[tuple[Job, Json]]:
    """Finished runs with their results, of the seeds on which every method is finished."""
    for seed in seeds:
        found: list[tuple[Job, Json]] = []
        budget = None
        for name, method in methods.items():
            job = job_of(values, name, method, seed, budget, runs)
            if (result := job.result) is None:
                break
            if name == REFERENCE:
                budget = result["points"][-1]["tokens"]
            found.append((job, {**result, "method": name}))
        if len(found) == len(methods):
            yield from found


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


# ------------------------------------------------------------------------------------------------ the command line


def numbers(text: str) -> list[int]:
    """ "0-3,7" as [0, 1, 2, 3, 7]."""
    out: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
        if int(last or first) < int(first):
            raise argparse.ArgumentTypeError(f"{part!r} runs backwards; give the least first, such as 0-2")
    return out


def versions() -> str:
    """Of what the figures depend on."""
    named = ("fate-trl", "torch", "transformers", "trl")
    return ", ".join([f"Python {platform.python_version()}", *(f"{n} {metadata.version(n)}" for n in named)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tradeoffs", help="full FATE")
    parser.add_argument("--methods", nargs="+", default=["headline"], help=f"names, or {', '.join(GROUPS)}")
    parser.add_argument("--seeds", type=numbers, help="such as 0-7 or 0,3")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all methods, tuned or not")
    parser.add_argument("--quick", action="store_true", help="two seeds, two rounds, fewer tasks")
    parser.add_argument("--tune", action="store_true", help="try each method's settings, on seeds of their own")
    parser.add_argument("--kept", action="store_true", help="run nothing; show the seeds that are whole")
    parser.add_argument("--runs", default="runs/learning", help="where finished runs are kept")
    parser.add_argument("--output", type=Path, help="results go to this name with .json, .md and .svg")
    parser.add_argument("--fill", type=Path, help="a page with a place for results, such as docs/evidence-worlds.md")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated; finished runs are kept"))

    methods = chosen(given.methods)
    methods = variants(methods) if given.tune else methods
    seeds = given.seeds or (list(TUNING_SEEDS) if given.tune else [0, 1] if given.quick else [0, 1, 2])
    values = read_values(find_recipe(given.recipe))
    for key, setting in QUICK.items() if given.quick else ():
        put(values, key, setting)
    for text in given.set:
        override(values, text)
    by_hand = {text.partition("=")[0].strip() for text in given.set}
    methods = {name: untuned(method, by_hand) for name, method in methods.items()}
    same = set(methods)
    methods = apart(values, methods)  # and what is wrong with one is said before the first run
    same -= set(methods)
    if given.kept:
        results = [result for _, result in kept(values, methods, seeds, given.runs)]
        seeds = sorted({result["seed"] for result in results})
    else:
        print(projected(methods, seeds, given.runs, given.jobs), flush=True)
        results = all_runs(values, methods, seeds, given.runs, given.jobs)
    told = summary(results, methods)
    about = {
        "command": "python benchmarks/learning.py " + " ".join(sys.argv[1:]),
        "recipe": given.recipe,
        "hardware": f"{os.cpu_count()} CPU cores, {given.jobs} processes of one thread",
        "versions": versions(),
        "seeds": ", ".join(map(str, seeds)),
        "source": source_hash(),
        "same": sorted(same),
    }
    text = page(told, about)
    print(text)
    if given.output:
        given.output.with_suffix(".json").write_text(json.dumps({**about, **told}, indent=1, sort_keys=True) + "\n")
        given.output.with_suffix(".md").write_text(text)
        plot(told, list(told["methods"])[:8], given.output.with_suffix(".svg"))
    if given.output and given.fill:
        picture = os.path.relpath(given.output.with_suffix(".svg"), given.fill.parent)
        given.fill.write_text(fill(given.fill.read_text(), told, about, picture))


if __name__ == "__main__":
    main()
