"""How long real_model.py will take: seconds of a few real episodes and training steps, multiplied out.

A run of the recipe itself is made, as small as it can be: a few training tasks, one candidate for one failure, one step
of each training stage. Where a run of full FATE is kept already, its seconds are taken. What the estimate leaves out:
one episode in a full chunk is cheaper than one of a few, and methods that learn from fewer tokens than they read take
longer at equal tokens. It is of the right size, not more.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.learning import put, recipe_of
from benchmarks.learning_methods import METHODS, REFERENCE, Method
from benchmarks.real_model_runs import SHARED, Plan, alike, apart, train
from fate_trl.ledger.reading import RunReader
from fate_trl.loop.counts import tokens_of_round
from fate_trl.recipe.loading import make_recipe
from fate_trl.recipe.schema import Recipe, Training
from fate_trl.recipe.trl_keys import trl_defaults
from fate_trl.suites.opening import open_suites, tasks_of

Json = dict[str, Any]
EPISODES = 8
"""Training tasks that are timed."""
STAGES = {"warm_start": "sft_config", "sft": "sft_config", "pfpo": "grpo_config"}


def smallest(values: Json) -> Recipe:
    """The recipe with one step of each stage and a few episodes; any candidate will do."""
    made = recipe_of(copy.deepcopy(values), Method(METHODS[REFERENCE].what), 0, None)
    small = made.model_dump(mode="json")
    settings = {"rounds": 1, "rollout.tasks": EPISODES, "evaluation.tasks": 1, "evaluation.validation": 0}
    settings |= {"evaluation.baselines": False, "evaluation.margin": None, "evaluation.keep": "last"}
    if made.repair is not None:
        settings |= {"repair.max_failures": 2, "repair.k": 1, "repair.accept": "random"}
    for stage in STAGES:
        if getattr(made, stage) is not None:
            settings[f"{stage}.max_steps"] = 1
    if made.warm_start is not None:
        settings["warm_start.traces"] = EPISODES
    for key, value in settings.items():
        put(small, key, value)
    return make_recipe(small)


def timed(plan: Plan) -> Json:
    """Seconds of an episode, of a candidate, and of one step of each stage."""
    folder = plan.folder.parent / "estimate"
    recipe = smallest(plan.values)
    if not (folder / "done").exists():
        shutil.rmtree(folder / "run", ignore_errors=True)
        apart(folder, train, folder, recipe.model_dump(mode="json"), None, ())
        (folder / "done").touch()
    run = RunReader.open(folder / "run")
    stages = {**run.stages(0), **run.stages(1)}
    rolled = {name: stages[name] for name in ("collect", "repair") if name in stages}
    counts = {"collect": "trajectories", "repair": "candidates"}
    each = {name: record["seconds"] / max(1, record[counts[name]]) for name, record in rolled.items()}
    episode = each.get("collect", stages["eval-test"]["seconds"])
    steps = {name: stages[name]["seconds"] for name in STAGES if name in stages}
    return {"episode": episode, "candidate": each.get("repair", episode), "steps": steps}


def steps_of(recipe: Recipe, stage: str) -> int:
    """Optimiser steps of a stage in one round, at most."""
    section: Training | None = getattr(recipe, stage)
    if section is None:
        return 0
    keys = {**trl_defaults(STAGES[stage]), **section.trl}
    if keys["max_steps"] > 0:
        return int(keys["max_steps"])
    batch = keys["per_device_train_batch_size"] * keys["gradient_accumulation_steps"]
    tasks = recipe.rollout.tasks or 500
    rows = tasks * keys["num_generations"] if stage == "pfpo" else tasks
    if stage == "sft" and recipe.repair is not None:
        failures = min(tasks, recipe.repair.max_failures or tasks)
        rows = failures * (1 + (recipe.repair.target == "both")) * (1 + recipe.repair.anchors)
    return math.ceil(rows * keys["num_train_epochs"] / batch)


@dataclass(frozen=True)
class Spent:
    """Seconds of full FATE: of round 0, of all other rounds, and of that the stages of round 1 that others share."""

    zero: float
    rounds: float
    shared: Mapping[str, float]


def training(recipe: Recipe, cost: Json) -> Spent:
    """What full FATE would take."""
    tasks, repair = recipe.rollout.tasks or 500, recipe.repair
    each = {name: seconds * steps_of(recipe, name) for name, seconds in cost["steps"].items()}
    shared = {"collect": tasks * cost["episode"]}
    if repair is not None:
        shared["repair"] = min(tasks, repair.max_failures or tasks) * repair.k * cost["candidate"]
    validation = (recipe.evaluation.validation or 0) * cost["episode"]
    round = sum(shared.values()) + sum(each.get(name, 0.0) for name in ("sft", "pfpo")) + validation
    return Spent(each.get("warm_start", 0.0) + validation, recipe.rounds * round, shared)


def of_kept(run: Path) -> Spent | None:
    """What full FATE took, if its run is finished."""
    if not (run / "metrics.json").is_file():
        return None
    found = RunReader.open(run)
    rounds = [found.stages(number) for number in found.rounds]
    if not any(tokens_of_round(stages) for stages in rounds[1:]):
        return None
    zero, *others = (sum(record["seconds"] for record in stages.values()) for stages in rounds)
    shared = {stage: record["seconds"] for stage, record in rounds[1].items() if stage in SHARED}
    return Spent(zero, sum(others), shared)


def seconds_of(plan: Plan, name: str, fate: Spent) -> float:
    """Of a training method at equal tokens: as long as full FATE, less what it takes from there."""
    if name == REFERENCE:
        return fate.zero + fate.rounds
    stages = alike(plan.recipe(plan.methods[name], None), plan.recipe(plan.methods[REFERENCE], None))
    if stages is None:
        return fate.zero + fate.rounds
    return fate.rounds - sum(fate.shared.get(stage, 0.0) for stage in stages)


def estimate(plan: Plan, names: Sequence[str], seeds: int) -> Json:
    """Hours of the whole comparison, and how they were found."""
    recipe, cost = make_recipe({**plan.values}), timed(plan)
    fate = of_kept(plan.place(REFERENCE) / "run") or training(recipe, cost)
    found = tasks_of(open_suites(recipe.suites), "test", plan.seed)
    test = min(len(found), recipe.evaluation.tasks or len(found)) * cost["episode"]
    attack = (2 * plan.queries + 1) * plan.attacked * cost["episode"] if plan.queries else 0.0
    familiar, one = plan.familiar * cost["episode"], plan.validation * cost["episode"]
    choosing = {"prompt-only": 3 * one, "prompt-distilled": (1 + plan.proposals) * one}
    by = {name: seconds_of(plan, name, fate) if name in plan.methods else choosing.get(name, 0.0) for name in names}
    minutes = {name: (seconds + test + familiar + attack) / 60 for name, seconds in by.items()}
    return {**cost, "minutes": minutes, "hours": seeds * sum(minutes.values()) / 60}


def told(found: Mapping[str, Any], seeds: int) -> str:
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found["steps"].items())
    each = ", ".join(f"{name} {minutes:.1f}" for name, minutes in found["minutes"].items())
    return (
        f"Timed here: an episode {found['episode']:.1f} s, a candidate {found['candidate']:.1f} s; one step of "
        f"{steps or 'nothing'}.\nMinutes of a seed, at most: {each}.\n"
        f"{seeds} seeds: about {found['hours']:.1f} hours, less what is kept."
    )
