"""What does selection alone buy: the best of K tries of the untrained policy, chosen at test time by the verifiers?

    python benchmarks/best_of.py --methods headline --seeds 310-319 --runs runs/learning --output docs/results/best-of

No user has this: the verifiers read what was really done, which nobody knows before it is done. So it is the ceiling of
selection without training. Each test task is tried K times, and the recipe's selector chooses as it chooses repairs.
K tries cost K times the tokens for ever; training costs them once. Tasks and seeds are those of learning.py's runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.attack import asked, quiet
from benchmarks.learning import Json, case_of, measured, source_hash, versions
from benchmarks.learning_page import COLUMNS, VOLUME, cell, grid, interval, volume
from benchmarks.policies import Player, kept_policies, opened
from fate_trl.loop.counts import tokens
from fate_trl.types import Case

KS = (1, 2, 4, 8)


def chosen_of(player: Player, tries: Sequence[Sequence[Case]], rng: np.random.Generator) -> list[Case]:
    """For each task one of its tries, as the recipe's selector chooses among candidates."""
    objectives = player.evolution.objectives
    out = []
    for cases in tries:
        sound = [case for case in cases if not case[1].errors] or list(cases)
        scores = np.array([card.vector(objectives) for _, card in sound])
        choice = player.evolution.selector.choose(scores, objectives=objectives, rng=rng)
        out.append(sound[choice.index if choice else 0])
    return out


def best_of(player: Player, count: int | None, seed: int) -> dict[str, Json]:
    """Metrics by K, and the tokens that the tries took for each task."""
    tasks = player.tasks(count, seed)
    cases = player.score(player.play([task for _ in range(max(KS)) for task in tasks], seed))
    tries = [[cases[n + k * len(tasks)] for k in range(max(KS))] for n in range(len(tasks))]
    rng = np.random.default_rng(seed)
    out = {}
    for k in KS:
        some = [found[:k] for found in tries]
        best = chosen_of(player, some, rng)
        used = tokens(case for found in some for case in found)
        values = {**measured(best)["all"], VOLUME: volume([case_of(*case) for case in best])}
        out[str(k)] = {"values": values, "tokens_a_task": sum(used.values()) / len(tasks)}
    return out


PAGE = """# Best of K, chosen by the verifiers

Written by `benchmarks/best_of.py`, whose docstring says what it is the ceiling of.

    {command}

{hardware}, {cpu:.0f} s of CPU time. Seeds {seeds}, recipe `{recipe}`, source {source}.

The untrained policy; test split, %, mean over seeds with Student's 95 % interval.

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given, values, methods = asked(parser)
    quiet()
    found: dict[int, Mapping[str, Json]] = {}
    cpu = 0.0
    for policy in kept_policies(values, methods, given.seeds, str(given.runs)):
        if policy.method != "untrained":
            continue
        file = given.runs / f"best-of-{policy.seed}-{source_hash()}.json"
        if not file.is_file():
            started = time.process_time()
            with opened(policy.recipe, policy.path) as player:
                made = best_of(player, policy.recipe["evaluation"]["tasks"], policy.seed)
            file.write_text(json.dumps({"by_k": made, "cpu": time.process_time() - started}))
        kept = json.loads(file.read_text())
        found[policy.seed] = kept["by_k"]
        cpu += kept["cpu"]
        print(f"seed {policy.seed}: {kept['cpu']:.0f} s of CPU", flush=True)
    if not found:
        sys.exit(f"no seed of {given.seeds} has all of {', '.join(methods)} finished under {given.runs}")
    told = {
        str(k): {
            **{m: interval([by_k[str(k)]["values"][m] for by_k in found.values()]) for m in COLUMNS},
            "tokens_a_task": interval([by_k[str(k)]["tokens_a_task"] for by_k in found.values()]),
        }
        for k in KS
    }
    about = {
        "command": "python benchmarks/best_of.py " + " ".join(sys.argv[1:]),
        "hardware": f"{os.cpu_count()} CPU cores, one process of one thread; {versions()}",
        "recipe": given.recipe,
        "seeds": ", ".join(map(str, sorted(found))),
        "source": source_hash(),
        "cpu": cpu,
    }
    rows = [[str(k), f"{m['tokens_a_task']['mean']:.0f}", *(cell(m[c]) for c in COLUMNS)] for k, m in told.items()]
    text = PAGE.format(**about, table="\n".join(grid(("K", "tokens a task", *COLUMNS), rows)))
    print(text)
    if given.output:
        written = {**about, "k": told, "by_seed": {str(seed): by_k for seed, by_k in found.items()}}
        given.output.with_suffix(".json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
        given.output.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
