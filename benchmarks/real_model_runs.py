"""The runs of real_model.py: each method on each seed trained, chosen and tested once, kept, and gone on with.

RUNS/RECIPE-HASH/seed-0/METHOD-HASH/ holds what a method left on a seed: `run/` (a run directory of `fate-trl run`,
where the method trains), `played/` (what was rolled out on the validation and test tasks, chunk by chunk),
`spent.jsonl` and, once all is done, `result.json`. The hashes are of the recipe's values and of the method's changes,
not of the package's source: that moves on while runs of hours are made, so `result.json` says with which version each
was made.

Whatever loads a model runs in a process of its own, which gives all memory back; it ends when its parent does, even
where that was killed. What it had not committed is done again.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning import last_kept, last_policy, points, put, recipe_of
from benchmarks.learning_methods import REFERENCE, Method
from benchmarks.policies import Player, opened
from benchmarks.prompt_defence import NONE, WORDINGS, Defence, Quality, best, defended, distilled, quality
from fate_trl.errors import FateError
from fate_trl.ledger.layout import file_of, policy_folder, round_dir, seed_of
from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.counts import tokens
from fate_trl.loop.repairing import failures_of
from fate_trl.loop.tasks import longest_first, sample_tasks
from fate_trl.recipe.loading import make_recipe
from fate_trl.record import dumps, stable_hash
from fate_trl.types import Case, RolloutRequest, Task, Trajectory

Json = dict[str, Any]
TEST, VALIDATION, PROPOSALS = "test.jsonl", "validation.jsonl", "proposals.jsonl"
FAMILIAR = "eval-familiar"
BEFORE = {"model", "suites", "verifiers", "objectives", "warm_start", "evaluation", "rollout", "seed"}
"""Sections of a recipe that round 0 and what round 1 collects depend on."""
REPAIRING = {"repair", "selector"}
"""Those that its repairs, and the rows made of them, depend on as well."""
SHARED = {"collect": ["rollouts"], "repair": ["repairs", "selections"], "buffer": ["buffer"]}
"""Stages of round 1 that methods have in common, and the kinds of records that each leaves."""
CHOOSING = ("prompt-only", "prompt-distilled", "fate-prompt")
"""Methods that choose words."""


@dataclass(frozen=True)
class Plan:
    """What is compared, on a seed.

    Attributes:
        values: The recipe's.
        folder: Of the seed.
        seed: The seed.
        methods: Those that train, by name.
        validation: Validation tries of each prompt.
        proposals: Of prompts, by the model.
        queries: Of the adaptive attack for each task; 0 for none.
        attacked: Tasks that it sees.
        familiar: Tasks with requests that training had, at most; 0 for none.
    """

    values: Json
    folder: Path
    seed: int
    methods: Mapping[str, Method]
    validation: int = 40
    proposals: int = 4
    queries: int = 0
    attacked: int = 16
    familiar: int = 0

    def place(self, name: str) -> Path:
        """The folder of a method; what it is made of stands in its name, as a hash."""
        parts: list[Any] = [self.methods[name].changes, self.methods[name].tuned] if name in self.methods else []
        if name in CHOOSING:
            parts = [self.validation, self.proposals, [vars(wording) for wording in WORDINGS]]
        return self.folder / f"{name}-{stable_hash(*parts) % 2**32:08x}"

    def recipe(self, method: Method, budget: int | None) -> Json:
        """A training run's recipe. It measures no test tasks: tests come at the end."""
        values = recipe_of(self.values, method, self.seed, budget).model_dump(mode="json")
        put(values, "evaluation.baselines", False)
        put(values, "evaluation.tasks", 0)
        return self._settled(values)

    @property
    def asked(self) -> Json:
        """The recipe of whatever only rolls out."""
        return self._settled(make_recipe({**self.values, "seed": self.seed}).model_dump(mode="json"))

    def _settled(self, values: Json) -> Json:
        """The values with what `auto` became in the reference's run: by timing, which may say otherwise next time."""
        manifest = RunReader(self.place(REFERENCE) / "run").read_json("manifest.json") or {}
        for key, chosen in manifest.get("chosen", {}).items():
            put(values, f"model.{key}", chosen)
        return values


# ------------------------------------------------------------------------------------------------ what is kept


def kept(folder: Path) -> Json | None:
    """What came out of a method on a seed, if it is finished."""
    return RunDirectory(folder).read_json("result.json") if folder.is_dir() else None


def keep(plan: Plan, folder: Path, policy: Path, result: Json) -> Json:
    """Write down what came out of a method, the policy that was tested, and what it cost."""
    sessions = RunDirectory(folder).read("spent.jsonl")
    ended = [session for session in sessions if "cpu_seconds" in session]
    result = {
        **result,
        "seed": plan.seed,
        "policy": str(policy.relative_to(plan.folder)),
        **{key: sum(session[key] for session in ended) for key in ("cpu_seconds", "wall_seconds")},
        "interrupted": len(sessions) - 2 * len(ended),
        "made_with": made_with(),
    }
    RunDirectory(folder).write_json("result.json", result)
    return result


@cache
def test_cases(folder: Path) -> list[Case]:
    """A finished method's cases on the test tasks."""
    return RunDirectory(folder / "played").cases(TEST, "eval-test")


def made_with() -> Json:
    """Versions, the source's commit where that is a clone, and the machine."""
    named = ("fate-trl", "torch", "transformers", "trl", "peft")
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.strip()
    except OSError:
        commit = ""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in named},
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }


# ------------------------------------------------------------------------------------------------ processes


def apart(folder: Path, function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, called in a process of its own; its output goes to a log, and its cost is recorded."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_within, folder, function, args).result()


def _within(folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from fate_trl.cli.run import quiet_libraries

    quiet_libraries()
    directory, started = RunDirectory(folder), time.perf_counter()
    directory.append("spent.jsonl", [{"what": function.__name__}])
    try:
        return function(*args)
    finally:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu = sum(each.ru_utime + each.ru_stime for each in used)
        end = {"cpu_seconds": cpu, "wall_seconds": time.perf_counter() - started}
        directory.append("spent.jsonl", [{"what": function.__name__, **end}])


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a comparison that was killed leaves nothing behind that goes on."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


# ------------------------------------------------------------------------------------------------ training


def train(folder: Path, recipe: Json, reference: Path | None, stages: Sequence[str]) -> None:
    """Run a recipe, or go on with it. What a run `reference` did of round 0 and in these stages of round 1 is taken
    from there."""
    from fate_trl.cli.run import run_recipe

    directory = RunDirectory(folder / "run")
    if not (directory.path / "recipe.yaml").is_file():
        if reference is not None:
            take(RunDirectory(reference), directory, stages)
        directory.write_text("recipe.yaml", make_recipe(recipe).dump())
    run_recipe(resume=str(directory.path), quiet=True)


def take(reference: RunDirectory, directory: RunDirectory, stages: Sequence[str]) -> None:
    """Copy round 0 and stages of round 1, as far as they are there, from one run to another. Their tokens count there
    as well."""
    shutil.copytree(reference.path / round_dir(0), directory.path / round_dir(0), dirs_exist_ok=True)
    done = [record for stage, record in reference.stages(1).items() if stage in stages]
    for kind in (kind for record in done for kind in SHARED[record["stage"]]):
        directory.write_text(file_of(1, kind), (reference.path / file_of(1, kind)).read_text(encoding="utf-8"))
    if done:  # as a whole: what was stopped in its middle is copied again
        directory.write_text(file_of(1, "stages"), "".join(f"{dumps(record)}\n" for record in done))


def alike(recipe: Json, reference: Json) -> list[str] | None:
    """Stages of round 1 that two recipes do alike, with the same policy on the same seeds; None if their rounds 0 are
    none."""
    differ = {key for key, value in recipe.items() if value != reference[key]}
    if differ & BEFORE:
        return None
    if recipe["repair"] is None:
        return []
    return ["collect"] if differ & REPAIRING else list(SHARED)


def trained(plan: Plan, name: str, budget: int | None, reference: Path | None) -> tuple[Path, Json]:
    """The folder and the result of a method that trains; `reference` is the reference's run, if that is another."""
    folder, recipe = plan.place(name), plan.recipe(plan.methods[name], budget)
    if (found := kept(folder)) is not None:
        return folder, found
    stages = alike(recipe, plan.recipe(plan.methods[REFERENCE], None))
    apart(folder, train, folder, recipe, reference if stages is not None else None, stages or [])
    run = RunDirectory(folder / "run")
    policy = end_of(folder)
    apart(folder, test, plan, folder, policy, NONE)
    end = list(points(run))[-1]
    result = {"method": name, "tokens": end["tokens"], "rounds": end["round"], "repairs": _repairs(run)}
    _tidy(run)
    return folder, keep(plan, folder, policy, {**result, "kept": last_kept(run)})


def end_of(folder: Path) -> Path:
    """The policy that one has at the end of a run."""
    run = RunDirectory(folder / "run")
    return last_policy(run) or start_of(folder)


def start_of(folder: Path) -> Path:
    """The policy that a run began with: as it came, or after its warm start."""
    found = policy_folder(folder / "run", 0)
    assert found is not None, "a run saves its first policy"
    return found


def _repairs(run: RunDirectory) -> list[Json]:
    """Of each round: how many failures there were, how many candidates were accepted, and how many were repaired."""
    counted = ("failures", "candidates", "candidates_resolved", "candidates_accepted", "repaired")
    found = [run.stages(number).get("repair") for number in run.rounds]
    return [{key: record[key] for key in counted} for record in found if record]


def _tidy(run: RunDirectory) -> None:
    """Remove the policies of rounds other than the one that is kept, round 0 aside: large models fill a disk."""
    for number in set(run.rounds) - {0, last_kept(run)}:
        shutil.rmtree(run.path / round_dir(number) / "policy", ignore_errors=True)


# ------------------------------------------------------------------------------------------------ rolling out


class Defended(Player):
    """A player whose tasks all have a defence in their prompts."""

    defence: Defence = NONE

    def play(self, tasks: Sequence[Task], seed: int) -> list[Trajectory]:
        return super().play([defended(task, self.defence) for task in tasks], seed)


def played(player: Player, run: RunDirectory, file: str, stage: str, tasks: Sequence[Task], seed: int) -> list[Case]:
    """One try of each task, in order, a chunk at a time; what is committed is not played again.

    Sampling depends on the seed and the chunk alone, so that methods are paired in this as well. A task may come more
    than once.
    """
    size, committed, cases, tries = player.evolution.recipe.rollout.chunk, run.chunks(file, stage), [], {}
    requests = []
    for task in tasks:
        attempt = tries[task.suite, task.id] = tries.get((task.suite, task.id), -1) + 1
        requests.append(RolloutRequest(task, task.messages, "eval-test", attempt))
    for number, start in enumerate(range(0, len(requests), size)):
        if number not in committed:
            tried = player.evolution.learner.rollout(requests[start : start + size], seed_of(seed, 0, file, number))
            committed[number] = player.score(tried)
            run.append_chunk(file, stage, number, committed[number])
        cases += committed[number]
    return cases


def test(plan: Plan, folder: Path, policy: Path, defence: Defence) -> None:
    """Roll a policy out on the test tasks."""
    with opened(plan.asked, policy) as player:
        count = player.evolution.recipe.evaluation.tasks
        tasks = longest_first(player.tasks(count, plan.seed), player.suites)
        worded = [defended(task, defence) for task in tasks]
        played(player, RunDirectory(folder / "played"), TEST, "eval-test", worded, plan.seed)


def familiar_tasks(player: Player, count: int, seed: int) -> list[Task]:
    """Attacked tasks with requests that training tasks have, by cluster, but with neither a goal nor an attack of
    theirs: what an agent meets that is trained on its own users' requests. AgentDojo's alone have them: its split
    `all` crosses what the others keep apart, and the parts of a task's id are what it is made of."""
    training = player.evolution.tasks("train")
    requests = {(task.suite, task.cluster) for task in training}
    parts = {(task.suite, part) for task in training for part in task.id.split("/")[1:]}

    def is_familiar(task: Task) -> bool:
        new = all((task.suite, part) not in parts for part in task.id.split("/")[1:])
        return task.kind == "attacked" and new and (task.suite, task.cluster) in requests

    return longest_first(player.tasks(count, seed, is_familiar, "all"), player.suites)


def familiar(plan: Plan, folder: Path, policy: Path, defence: Defence) -> int:
    """Roll a policy out on familiar tasks; how many there are."""
    with opened(plan.asked, policy) as player:
        tasks = [defended(task, defence) for task in familiar_tasks(player, plan.familiar, plan.seed)]
        getattr(player.evolution.learner, "tasks", []).extend(tasks)  # or no environment serves them
        return len(played(player, RunDirectory(folder / "played"), _familiar_file(plan), FAMILIAR, tasks, plan.seed))


def _familiar_file(plan: Plan) -> str:
    return f"familiar-{plan.familiar}.jsonl"


def familiar_cases(plan: Plan, folder: Path) -> list[Case]:
    """A method's cases on familiar tasks, once there are all."""
    done = RunDirectory(folder).read_json(f"familiar-{plan.familiar}.json") is not None
    return RunDirectory(folder / "played").cases(_familiar_file(plan), FAMILIAR) if done else []


def familiar_once(plan: Plan, folder: Path, result: Json) -> None:
    """Try what a method ended with on familiar tasks, if that is asked for."""
    if plan.familiar and not familiar_cases(plan, folder):
        count = apart(folder, familiar, plan, folder, plan.folder / result["policy"], defence_of(result))
        RunDirectory(folder).write_json(f"familiar-{plan.familiar}.json", {"tasks": count})


def defence_of(result: Json) -> Defence:
    """The words that a method ended with; none where it chose none."""
    return Defence(**result["defence"]) if "defence" in result else NONE


def under_attack(plan: Plan, policy: Path, defence: Defence) -> Json:
    """The adaptive attack on a policy with its defence."""
    from benchmarks.attack import attack

    with opened(plan.asked, policy) as player:
        victim = Defended(player.evolution)
        victim.defence = defence
        return attack(victim, plan.attacked, plan.queries, plan.seed)


def attack_of(plan: Plan, folder: Path) -> Json | None:
    """What the adaptive attack reached, if it was run."""
    found: Json | None = RunDirectory(folder).read_json(f"attack-{plan.attacked}-{plan.queries}.json")
    return found


def attack_once(plan: Plan, folder: Path, result: Json) -> None:
    """Run the adaptive attack on what a method ended with, if that is asked for, and keep what it reached."""
    if plan.queries and attack_of(plan, folder) is None:
        found = apart(folder, under_attack, plan, plan.folder / result["policy"], defence_of(result))
        RunDirectory(folder).write_json(f"attack-{plan.attacked}-{plan.queries}.json", found)


# ------------------------------------------------------------------------------------------------ prompts


def _validation(player: Player, plan: Plan) -> list[Task]:
    """Validation tasks, again and again until there are enough tries."""
    tasks = player.evolution.tasks("validation")
    if not tasks:
        raise FateError("the suites have no validation tasks, so words cannot be chosen: leave out methods of prompts.")
    drawn = sample_tasks(tasks, plan.validation, np.random.default_rng(plan.seed))
    return longest_first(islice(cycle(drawn), plan.validation), player.suites)


def _judge(player: Player, plan: Plan, run: RunDirectory) -> Callable[[Defence], Quality]:
    tasks = _validation(player, plan)

    def judge(defence: Defence) -> Quality:
        worded = [defended(task, defence) for task in tasks]
        return quality(played(player, run, VALIDATION, f"eval-validation-{defence.name}", worded, plan.seed))

    return judge


def choose_wording(plan: Plan, folder: Path, policy: Path) -> Json:
    """The best of the three wordings on validation."""
    run = RunDirectory(folder / "played")
    with opened(plan.asked, policy) as player:
        defence, said = best(WORDINGS, _judge(player, plan, run))
    return {"defence": vars(defence), "validation": said, "tokens": spent(run)}


def distil(plan: Plan, folder: Path, policy: Path, reference: Path, budget: int) -> Json:
    """Words that the model writes from the failures of the start on training tasks, as the reference run collected
    them; these took tokens too."""
    run = RunDirectory(folder / "played")
    first = RunDirectory(reference).cases(file_of(1, "rollouts"), "collect")
    collecting, failures = sum(tokens(first).values()), failures_of(first)
    order = np.random.default_rng(plan.seed).permutation(len(failures))
    with opened(plan.asked, policy) as player:
        judge = _judge(player, plan, run)
        blank = replace(player.evolution.tasks("validation")[0], id="proposal", tools=())
        getattr(player.evolution.learner, "tasks", []).append(blank)  # or there is no environment without tools

        def propose(text: str, number: int) -> str:
            task = replace(blank, messages=({"role": "user", "content": text},))
            ((said, _),) = played(player, run, PROPOSALS, f"proposal-{number}", [task], plan.seed + number)
            return said.answer

        def affordable() -> bool:
            used = spent(run)
            judged = len({record["stage"] for record in run.read(VALIDATION)})
            return collecting + used + used / max(1, judged) <= budget

        defence, told = distilled([failures[n] for n in order], propose, judge, affordable, plan.proposals)
    return {"defence": vars(defence), "proposals": told, "failures": len(failures), "tokens": collecting + spent(run)}


def spent(run: RunDirectory) -> int:
    """Tokens of what was played to choose: validation and proposals, not the test."""
    cases = [
        case
        for file in (VALIDATION, PROPOSALS)
        for stage in {record["stage"] for record in run.read(file)}
        for case in run.cases(file, stage)
    ]
    return sum(tokens(cases).values())


def prompted(plan: Plan, name: str, policy: Path, choose: Callable[..., Json], *args: Any) -> tuple[Path, Json]:
    """The folder and the result of a method that changes the prompt alone; `choose` says to what."""
    folder = plan.place(name)
    if (found := kept(folder)) is not None:
        return folder, found
    chosen = apart(folder, choose, plan, folder, policy, *args)
    apart(folder, test, plan, folder, policy, Defence(**chosen["defence"]))
    return folder, keep(plan, folder, policy, {"method": name, "rounds": 0, **chosen})


def same_words(plan: Plan, folder: Path, policy: Path, chosen: Json, trained: Json) -> Json:
    """Words that were chosen for another policy; both took tokens."""
    return {"defence": chosen["defence"], "tokens": chosen["tokens"] + trained["tokens"], "rounds": trained["rounds"]}
