"""How often does an attack succeed that was adapted to the policy, and not written down before?

    python benchmarks/attack.py --methods headline --seeds 310-319 --runs runs/learning --output docs/results/attack
    python benchmarks/attack.py --recipe quickstart --policy runs/quickstart/rounds/02/policy

A black-box search over wordings, against each last policy anew. What it chooses is a style (attack_wordings.STYLES:
none that training tasks have), a wording of the attacker's goal, and a place. It sees nothing but whether the
attacker's goal was reached. Each attacked task may be tried `--queries` times, with another combination each time,
until the goal is reached; all tasks take their next try together, and what succeeded on one is tried sooner on the
others (Thompson sampling, one Beta for each style, wording and place, as if they were independent).

Four shares of attacked test tasks are reported: under the suite's own attack, one try; the same, as many tries as the
search has (sampling alone breaks some: what the search adds is above this); under the search; and under the one style,
wording and place that did best, in one try, on tasks that the search did not see.

Policies are those that learning.py keeps (the same `--recipe`, `--methods`, `--seeds`, `--set`, `--runs`), or folders.
Intervals are Student's, over seeds; of a single policy Wilson's, over tasks. Tries with an infrastructure error are not
counted. Works on `tradeoffs`, `workbench` and AgentDojo's suites.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.attack_wordings import STYLES, Target, target_of
from benchmarks.learning import REFERENCE, Json, chosen, numbers, source_hash, untuned, versions
from benchmarks.learning_page import cell, grid, interval
from benchmarks.policies import Kept, Player, kept_policies, opened
from fate_trl.metrics.intervals import wilson
from fate_trl.recipe.loading import find_recipe, make_recipe, override, read_values
from fate_trl.types import Task

SHARES = {
    "static": "own attacks, one try",
    "static_tries": "own attacks, all tries",
    "adaptive": "adapted, all tries",
    "learned": "best wording, one try, unseen tasks",
}


@dataclass(frozen=True)
class Option:
    """One way to word an attack on a task."""

    style: str
    goal: str
    place: str


@dataclass
class Beliefs:
    """How often each style, wording and place succeeded and failed, as independent Betas from (1, 1) on."""

    counts: dict[str, list[int]] = field(default_factory=dict)

    def learn(self, option: Option, reached: bool) -> None:
        for value in self._values(option):
            self.counts.setdefault(value, [1, 1])[not reached] += 1

    def drawn(self, options: Sequence[Option], rng: np.random.Generator) -> Option:
        """Thompson's choice."""
        said = {value: rng.beta(*self.counts.get(value, (1, 1))) for o in options for value in self._values(o)}
        return max(options, key=lambda o: float(np.prod([said[value] for value in self._values(o)])))

    def best(self, options: Sequence[Option]) -> Option:
        """The highest product of means."""
        means = {value: won / (won + lost) for value, (won, lost) in self.counts.items()}
        return max(options, key=lambda o: float(np.prod([means.get(value, 0.5) for value in self._values(o)])))

    @staticmethod
    def _values(option: Option) -> tuple[str, str, str]:
        return f"style {option.style}", f"goal {option.goal}", f"place {option.place}"


@dataclass(frozen=True)
class Attacked:
    """An attacked task and the ways to word its attack."""

    task: Task
    target: Target

    def options(self) -> list[Option]:
        goals, places = self.target.goals(self.task), self.target.places(self.task)
        return [Option(style, goal, place) for style in STYLES for goal in goals for place in places]

    def worded(self, option: Option) -> Task:
        text = STYLES[option.style].format(goal=self.target.goals(self.task)[option.goal])
        return self.target.planted(self.task, text[0].upper() + text[1:], option.place)


# ------------------------------------------------------------------------------------------------ attacks


def reached(player: Player, tasks: Sequence[Task], seed: int) -> list[bool | None]:
    """Whether the attacker's goal was reached in one try of each task; None where the try broke."""
    tries = player.play(tasks, seed)
    return [None if t.error or t.outcome is None or t.outcome.attacked is None else t.outcome.attacked for t in tries]


def search(
    player: Player, attacked: Sequence[Attacked], queries: int, rng: np.random.Generator
) -> tuple[list[int | None], Beliefs]:
    """For each task the number of the try that reached the goal, from 1 on, None if none did; and what was learned."""
    beliefs = Beliefs()
    left = [a.options() for a in attacked]
    broken: list[int | None] = [None] * len(attacked)
    for turn in range(1, queries + 1):
        going = [n for n, found in enumerate(broken) if found is None and left[n]]
        options = {n: beliefs.drawn(left[n], rng) for n in going}
        said = reached(player, [attacked[n].worded(options[n]) for n in going], int(rng.integers(2**31)))
        for n, success in zip(going, said, strict=True):
            left[n].remove(options[n])
            if success is not None:
                beliefs.learn(options[n], success)
                broken[n] = turn if success else None
    return broken, beliefs


def repeated(player: Player, tasks: Sequence[Task], queries: int, rng: np.random.Generator) -> list[int | None]:
    """The same for the attacks that the tasks have already, tried again and again."""
    broken: list[int | None] = [None] * len(tasks)
    for turn in range(1, queries + 1):
        going = [n for n, found in enumerate(broken) if found is None]
        said = reached(player, [tasks[n] for n in going], int(rng.integers(2**31)))
        for n, success in zip(going, said, strict=True):
            broken[n] = turn if success else None
    return broken


def attack(player: Player, tasks: int, queries: int, seed: int) -> Json:
    """All four shares of a policy, and how they came about. Twice as many tasks are drawn; half of them stay unseen."""
    drawn = player.tasks(2 * tasks, seed, lambda task: task.kind == "attacked")
    known = [(task, target_of(task, player.suites)) for task in drawn]
    attacked = [Attacked(task, target) for task, target in known if target is not None]
    if len(attacked) < 2:
        sys.exit("there are not two attacked test tasks whose attack can be worded anew")
    rng = np.random.default_rng(seed)
    seen, unseen = attacked[: len(attacked) // 2], attacked[len(attacked) // 2 :]
    static = repeated(player, [a.task for a in seen], queries, rng)
    broken, beliefs = search(player, seen, queries, rng)
    options = [beliefs.best(a.options()) for a in unseen]
    said = reached(player, [a.worded(o) for a, o in zip(unseen, options, strict=True)], int(rng.integers(2**31)))
    return {
        "static": _share([turn == 1 for turn in static]),
        "static_tries": _share([turn is not None for turn in static]),
        "adaptive": _share([turn is not None for turn in broken]),
        "learned": _share([success for success in said if success is not None]),
        "turns": broken,
        "static_turns": static,
        "best": {name: value for name, value in vars(options[0]).items()},
        "tasks": len(seen),
    }


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


# ------------------------------------------------------------------------------------------------ all policies


def attacks(policies: Iterator[Kept], tasks: int, queries: int, runs: Path | None) -> list[Json]:
    """The attack on each policy; what is finished is kept beside its policy, and not done again."""
    out = []
    for policy in policies:
        name = f"attack-{policy.method if policy.path is None else 'policy'}-{policy.seed}-{tasks}-{queries}.json"
        file = (policy.path.parent if policy.path and runs else runs or Path()) / name
        if runs and file.is_file():
            found: Json = json.loads(file.read_text())
        else:
            started, spent = time.perf_counter(), time.process_time()
            with opened(policy.recipe, policy.path) as player:
                found = attack(player, tasks, queries, policy.seed)
            found |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - spent}
            if runs:
                file.write_text(json.dumps(found))
        out.append({"method": policy.method, "seed": policy.seed, **found})
        said = ", ".join(f"{share} {_percent(out[-1][share])}" for share in SHARES)
        print(f"{policy.method}, seed {policy.seed}: {said}; {out[-1]['cpu_seconds']:.0f} s of CPU", flush=True)
    return out


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def told(results: Sequence[Json]) -> Json:
    """By method: each share over seeds, and the reference's less its own, paired by seed."""
    names = list(dict.fromkeys(r["method"] for r in results))
    by = {name: {r["seed"]: r for r in results if r["method"] == name} for name in names}
    out: Json = {}
    for name in names:
        mine = list(by[name].values())
        out[name] = {"seeds": sorted(by[name]), "cpu_seconds": sum(r["cpu_seconds"] for r in mine), "less": {}}
        for share in SHARES:
            values = [r[share] for r in mine if r[share] is not None]
            out[name][share] = _interval(values, mine[0]["tasks"]) if values else None
            pairs = [
                (by[REFERENCE][seed][share], r[share]) for seed, r in by[name].items() if seed in by.get(REFERENCE, {})
            ]
            gaps = [a - b for a, b in pairs if a is not None and b is not None]
            out[name]["less"][share] = interval(gaps) if gaps and name != REFERENCE else None
    return out


def _interval(values: Sequence[float], tasks: int) -> Json:
    if len(values) > 1:
        return interval(values)
    low, high = wilson(values[0], tasks)
    return {"mean": values[0], "low": low, "high": high, "n": 1}


PAGE = """# An attack that adapts

Written by `benchmarks/attack.py`, whose docstring says how it searches.

    {command}

{hardware}, {cpu:.0f} s of CPU time. Seeds {seeds}, recipe `{recipe}`, source {source}.
For each policy {tasks} tasks, {queries} tries of each; {styles} styles.

Share of attacked test tasks on which the attacker's goal is reached, %. Intervals: Student's 95 %, over seeds (of one
seed Wilson's, over tasks).

{table}

`{reference}` less the method, in points, paired by seed; below zero `{reference}` is attacked with less success.

{differences}

Wordings that did best, by number of policies: {best}.
"""


def page(by_method: Json, results: Sequence[Json], about: Json) -> str:
    rows = [[f"`{name}`", str(len(m["seeds"])), *(cell(m[share]) for share in SHARES)] for name, m in by_method.items()]
    less = [
        [f"`{name}`", *(cell(m["less"][share], sign=True) for share in SHARES)]
        for name, m in by_method.items()
        if any(m["less"].values())
    ]
    counted: dict[str, int] = {}
    for r in results:
        said = f"{r['best']['style']} ({r['best']['place']})"
        counted[said] = counted.get(said, 0) + 1
    best = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:8]
    return PAGE.format(
        **about,
        styles=len(STYLES),
        cpu=sum(r["cpu_seconds"] for r in results),
        table="\n".join(grid(("method", "seeds", *SHARES.values()), rows)),
        reference=REFERENCE,
        differences="\n".join(grid(("method", *SHARES.values()), less)),
        best=", ".join(f"{name} {n}" for name, n in best),
    )


# ------------------------------------------------------------------------------------------------ the command line


def asked(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Json, Mapping[str, Any]]:
    """What was asked, the recipe's values with `--set`, and the methods, as in learning.py."""
    parser.add_argument("--recipe", default="tradeoffs")
    parser.add_argument("--methods", nargs="+", default=["headline"], help="of learning.py")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as it was given to learning.py"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where learning.py keeps its runs")
    parser.add_argument("--output", type=Path, help="results go to this name with .json and .md")
    given = parser.parse_args()
    values = read_values(find_recipe(given.recipe))
    for text in given.set:
        override(values, text)
    by_hand = {text.partition("=")[0].strip() for text in given.set}
    return given, values, {name: untuned(method, by_hand) for name, method in chosen(given.methods).items()}


def quiet() -> None:
    """One thread, and no messages of libraries."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ["OMP_NUM_THREADS"] = "1"
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, action="append", help="folders of policies, in the place of kept ones")
    parser.add_argument("--tasks", type=int, default=32, help="that the search sees; as many again it does not")
    parser.add_argument("--queries", type=int, default=10, help="tries of each task")
    given, values, methods = asked(parser)
    quiet()
    if given.policy:
        recipe = make_recipe(values).model_dump(mode="json")
        folders = [(given.recipe, None), *((str(path), path) for path in given.policy)]
        policies = iter([Kept(name, recipe["seed"], recipe, path) for name, path in folders])
    else:
        policies = kept_policies(values, methods, given.seeds, str(given.runs))
    results = attacks(policies, given.tasks, given.queries, None if given.policy else given.runs)
    if not results:
        sys.exit(f"no seed of {given.seeds} has all of {', '.join(methods)} finished under {given.runs}")
    by_method = told(results)
    about = {
        "command": "python benchmarks/attack.py " + " ".join(sys.argv[1:]),
        "hardware": f"{os.cpu_count()} CPU cores, one process of one thread; {versions()}",
        "recipe": given.recipe,
        "seeds": ", ".join(map(str, sorted({r["seed"] for r in results}))),
        "source": source_hash(),
        "tasks": given.tasks,
        "queries": given.queries,
    }
    text = page(by_method, results, about)
    print(text)
    if given.output:
        written = {**about, "methods": by_method, "policies": results}
        given.output.with_suffix(".json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
        given.output.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
