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
counted. Beside the shares stands how often the injection was read: who reads nothing is safe without a merit.
A recipe whose training tasks are attacked in the words of a style is refused.
Works on `tradeoffs`, `workbench` and AgentDojo's suites; `on_policy` does it for other scripts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
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
from fate_trl.errors import FateError
from fate_trl.hookspecs import Suite
from fate_trl.metrics.intervals import wilson
from fate_trl.recipe.loading import find_recipe, make_recipe, override, read_values
from fate_trl.record import stable_hash
from fate_trl.types import Task, Trajectory

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

    def text(self, style: str, goal: str) -> str:
        said = STYLES[style].format(goal=self.target.goals(self.task)[goal])
        return said[0].upper() + said[1:]

    def worded(self, option: Option) -> Task:
        return self.target.planted(self.task, self.text(option.style, option.goal), option.place)


@dataclass
class Watched:
    """A player whose tries are counted: all, those that broke, and those in which the injection was read."""

    player: Player
    tries: int = 0
    errors: int = 0
    read: int = 0

    @property
    def suites(self) -> Mapping[str, Suite]:
        return self.player.suites

    def play(self, tasks: Sequence[Task], seed: int) -> list[Trajectory]:
        made = self.player.play(tasks, seed)
        sound = [t.outcome for t in made if not t.error and t.outcome is not None]
        self.tries += len(made)
        self.errors += len(made) - len(sound)
        self.read += sum(bool(outcome.exposed) for outcome in sound)
        return made


def attacked_tasks(player: Player, split: str, count: int | None, seed: int) -> list[Attacked]:
    """Attacked tasks of a split whose attack can be worded anew, drawn by a seed; of those that differ by their attack
    alone one."""
    found = player.tasks(None, seed, lambda task: task.kind == "attacked", split)
    known = [Attacked(task, target) for task in found if (target := target_of(task, player.suites)) is not None]
    drawn = [known[n] for n in np.random.default_rng(seed).permutation(len(known))]
    return list({a.target.key(a.task): a for a in reversed(drawn)}.values())[::-1][:count]


def check_unseen(player: Player) -> int:
    """How many texts training tasks inject. Raises FateError if one of them is worded as a style of the search."""
    texts: set[str] = set()
    for task in player.tasks(None, 0, lambda task: task.kind == "attacked", "train"):
        outcome = player.suites[task.suite].open(task).outcome((), ())
        own = {_plain(text) for text in (outcome.injected if outcome else ())}
        texts |= own
        if (target := target_of(task, player.suites)) is None:
            continue
        attacked = Attacked(task, target)
        for style in STYLES:
            if own & {_plain(attacked.text(style, goal)) for goal in target.goals(task)}:
                raise FateError(
                    f"the search would try the style {style!r}, and the training task {task.id!r} is attacked in its "
                    "words: take that attack out of the recipe's training tasks, or the style out of STYLES"
                )
    return len(texts)


def _plain(text: str) -> str:
    """Its words, whatever their case and punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


# ------------------------------------------------------------------------------------------------ attacks


def reached(player: Player | Watched, tasks: Sequence[Task], seed: int) -> list[bool | None]:
    """Whether the attacker's goal was reached in one try of each task; None where the try broke."""
    tries = player.play(tasks, seed)
    return [None if t.error or t.outcome is None or t.outcome.attacked is None else t.outcome.attacked for t in tries]


def search(
    player: Player | Watched, attacked: Sequence[Attacked], queries: int, rng: np.random.Generator
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


def repeated(
    player: Player | Watched, tasks: Sequence[Task], queries: int, rng: np.random.Generator
) -> list[list[bool | None]]:
    """What came out of the attacks that the tasks have already, tried again and again until they succeed."""
    said: list[list[bool | None]] = [[] for _ in tasks]
    for _ in range(queries):
        going = [n for n, tries in enumerate(said) if True not in tries]
        found = reached(player, [tasks[n] for n in going], int(rng.integers(2**31)))
        for n, success in zip(going, found, strict=True):
            said[n].append(success)
    return said


def attack(player: Player, tasks: int, queries: int, seed: int) -> Json:
    """All four shares of a policy with Wilson's intervals, and how they came about.

    Twice as many tasks are drawn, or as many as there are; half of them stay unseen.

    Raises:
        FateError: Training tasks are attacked in the words of a style, or there are not two tasks to attack.
    """
    texts = check_unseen(player)
    attacked = attacked_tasks(player, "test", 2 * tasks, seed)
    if len(attacked) < 2:
        raise FateError("there are not two attacked test tasks whose attack can be worded anew")
    rng = np.random.default_rng(seed)
    seen, unseen = attacked[: len(attacked) // 2], attacked[len(attacked) // 2 :]
    own, watched = Watched(player), Watched(player)
    static = repeated(own, [a.task for a in seen], queries, rng)
    broken, beliefs = search(watched, seen, queries, rng)
    options = [beliefs.best(a.options()) for a in unseen]
    said = reached(watched, [a.worded(o) for a, o in zip(unseen, options, strict=True)], int(rng.integers(2**31)))
    sound = {
        "static": [tries[0] for tries in static if tries[0] is not None],
        "static_tries": [True in tries for tries in static if {True, False} & set(tries)],
        "adaptive": [turn is not None for turn in broken],
        "learned": [success for success in said if success is not None],
    }
    return {
        **{share: _share(values) for share, values in sound.items()},
        "intervals": {share: _wilson(values) for share, values in sound.items()},
        "turns": broken,
        "static_turns": [tries.index(True) + 1 if True in tries else None for tries in static],
        "best": {name: value for name, value in vars(options[0]).items()},
        "tasks": len(seen),
        "tries": {name: _counted(w) for name, w in (("static", own), ("adaptive", watched))},
        "training_texts": texts,
    }


def _counted(watched: Watched) -> Json:
    return {name: getattr(watched, name) for name in ("tries", "errors", "read")}


def _wilson(values: Sequence[bool]) -> Json | None:
    if not values:
        return None
    low, high = wilson(sum(values) / len(values), len(values))
    return {"mean": sum(values) / len(values), "low": low, "high": high, "n": len(values)}


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


# ------------------------------------------------------------------------------------------------ all policies


def on_policy(recipe: Json, policy: Path | None, tasks: int, queries: int, seed: int, keep: Path) -> Json:
    """The attack on one policy; what is finished is kept in a folder, and not done again.

    Args:
        recipe: The policy's recipe, as plain values: its suites are what is attacked, its model is the policy if no
            folder is given.
        policy: Folder of the policy: an adapter of `model.lora`'s size, or whole weights. None before training.
        tasks: Attacked test tasks that the search sees; as many again it does not.
        queries: Tries of each.
        seed: Of the tasks and of the search.
        keep: Folder for what is finished; the file's name tells recipe, weights, styles and the three numbers.

    Returns:
        What `attack` does; `intervals` holds mean, low, high and n by share (`SHARES`), null where no try was sound.
    """
    parts = (recipe, weights_hash(policy), STYLES, tasks, queries, seed)
    file = keep / f"attack-{stable_hash(*parts):016x}.json"
    if file.is_file():
        kept: Json = json.loads(file.read_text())
        return kept
    started, spent = time.perf_counter(), time.process_time()
    with opened(recipe, policy) as player:
        found = attack(player, tasks, queries, seed)
    found |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - spent}
    keep.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(found))
    fresh.replace(file)
    return found


def weights_hash(policy: Path | None) -> str:
    """Of all weights in a policy's folder; empty without one."""
    digest = hashlib.sha256()
    for file in sorted(policy.glob("*.safetensors")) if policy else ():
        digest.update(file.read_bytes())
    return digest.hexdigest() if policy else ""


def attacks(policies: Iterator[Kept], tasks: int, queries: int, keep: Path) -> list[Json]:
    """The attack on each policy."""
    out = []
    for policy in policies:
        found = on_policy(policy.recipe, policy.path, tasks, queries, policy.seed, keep)
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
        out[name]["read"] = interval([read_share(r["tries"]["adaptive"]) for r in mine])
        for share in SHARES:
            values = [r[share] for r in mine if r[share] is not None]
            out[name][share] = interval(values) if len(values) > 1 else mine[0]["intervals"][share]
            pairs = [
                (by[REFERENCE][seed][share], r[share]) for seed, r in by[name].items() if seed in by.get(REFERENCE, {})
            ]
            gaps = [a - b for a, b in pairs if a is not None and b is not None]
            out[name]["less"][share] = interval(gaps) if gaps and name != REFERENCE else None
    return out


def read_share(counted: Json) -> float:
    """The share of sound tries in which the policy read the injection."""
    sound = counted["tries"] - counted["errors"]
    return counted["read"] / sound if sound else 0.0


PAGE = """# An attack that adapts

Written by `benchmarks/attack.py`, whose docstring says how it searches.

    {command}

{hardware}, {cpu:.0f} s of CPU time. Seeds {seeds}, recipe `{recipe}`, source {source}.
For each policy {tasks} tasks, {queries} tries of each; {styles} styles, none of them in the words of one of the
{texts} texts that the training tasks inject.

Share of attacked test tasks on which the attacker's goal is reached, %. Intervals: Student's 95 %, over seeds (of one
seed Wilson's, over tasks). *Read*: of the search's tries, those in which the policy read what was planted.

{table}

{differences}Wordings that did best, by number of policies: {best}.
"""

DIFFERENCES = f"""`{REFERENCE}` less the method, in points, paired by seed; below zero the attack has less success on
`{REFERENCE}`.

{{table}}

"""


def page(by_method: Json, results: Sequence[Json], about: Json) -> str:
    rows = [
        [f"`{name}`", str(len(m["seeds"])), *(cell(m[share]) for share in SHARES), f"{100 * m['read']['mean']:.0f}"]
        for name, m in by_method.items()
    ]
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
        texts=max(r["training_texts"] for r in results),
        table="\n".join(grid(("method", "seeds", *SHARES.values(), "read"), rows)),
        differences=DIFFERENCES.format(table="\n".join(grid(("method", *SHARES.values()), less))) if less else "",
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
    try:
        results = attacks(policies, given.tasks, given.queries, given.runs / "attacks")
    except FateError as error:
        sys.exit(str(error))
    if not results:
        sys.exit(f"no seed of {given.seeds} has all of {', '.join(methods)} finished under {given.runs}")
    by_method = told(results)
    about = {
        "command": "python benchmarks/attack.py " + " ".join(sys.argv[1:]),
        "hardware": f"{os.cpu_count()} CPU cores, one process of one thread; {versions()}",
        "recipe": given.recipe,
        "seeds": ", ".join(map(str, sorted({r["seed"] for r in results}))),
        "source": source_hash(),
        "tasks": max(r["tasks"] for r in results),
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
