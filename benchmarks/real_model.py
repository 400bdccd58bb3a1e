"""The comparison of a sceptic on a real model: full FATE against whatever else one would run, by one command.

    python benchmarks/real_model.py                                    Qwen2.5-Coder-0.5B on AgentDojo, on a CPU
    python benchmarks/real_model.py --model Qwen/Qwen3-1.7B            another model, such as on a GPU
    python benchmarks/real_model.py --estimate                         how long that takes here, and no more
    python benchmarks/real_model.py --recipe quickstart --seeds 0      the same in minutes, with the embedded policy

It prints first how long it will take, timed on a few real episodes and training steps; then it runs seed after seed,
method after method. A stop costs at most a chunk or a training stage: the same command goes on. Page, JSON and picture
are written anew after every method.

Methods: `start` is the policy after the warm start, or as it comes. `prompt-only` adds words to the system prompt, the
best of three wordings on validation; `prompt-distilled` lets the model write them from its failures and the verifiers'
feedback, each kept if validation is better. Training methods are the recipe with a key or two changed
(learning_methods.py), at the recipe's own rates: none is tuned for any method, full FATE no more than the others; the
preference stage has SFT's sizes and a rate of 2e-5. `fate-prompt` is the policy of full FATE with the words that
`prompt-only` chose.

Equal tokens: full FATE runs first on each seed. Every other method gets the tokens that it took on that seed, as
learning.py counts them: as many whole rounds as come closest; `prompt-distilled` stops before it has used more. Where a
method begins as full FATE did (round 0; of round 1 what is collected and repaired), that is taken from there: the
tokens count as its own. Methods that come to one recipe are run once.

`--attack` lets an adaptive attack search against what each method ended with; `--familiar` tries that also on requests
which training had, under goals and attacks that it had not.

The test is made once, with the policy (and the words) that one has at the end, on the same tasks with the same seeds of
sampling for all. real_model_page.py says what is measured, real_model_runs.py what is kept.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.learning import numbers, put
from benchmarks.learning_methods import METHODS, REFERENCE, Method
from benchmarks.prompt_defence import NONE
from benchmarks.real_model_estimate import estimate
from benchmarks.real_model_estimate import told as estimated
from benchmarks.real_model_page import START, Measured, page, picture, summary
from benchmarks.real_model_runs import (
    Plan,
    apart,
    attack_of,
    attack_once,
    choose_wording,
    distil,
    end_of,
    familiar_cases,
    familiar_once,
    keep,
    kept,
    prompted,
    same_words,
    start_of,
    test,
    test_cases,
    trained,
)
from fate_trl.errors import FateError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.recipe.loading import find_recipe, override, read_values
from fate_trl.record import stable_hash

Json = dict[str, Any]
PROMPTS = {
    START: "round 0: nothing trained on failures",
    "prompt-only": "the best of three wordings in the system prompt",
    "prompt-distilled": "words that the model wrote from its failures",
    "fate-prompt": "full FATE, with the words of prompt-only",
}
ORDER = (START, "prompt-only", "prompt-distilled", "resampling", "sft-repairs", "preference-for-pfpo", "grpo-sum")
DEFAULT = (*ORDER, REFERENCE, "fate-prompt")
PREFERENCE_RATE = 2e-5


def methods_of(values: Json, names: Sequence[str]) -> dict[str, Method]:
    """Those that train, at the recipe's own rates. Exits on a name that there is not."""
    unknown = [name for name in names if name not in PROMPTS and name not in METHODS]
    if unknown:
        sys.exit(f"no method {unknown[0]!r}. There are: {', '.join(PROMPTS)}, {', '.join(METHODS)}.")
    found = {name: replace(METHODS[name], tuned={}) for name in names if name in METHODS}
    found = {REFERENCE: replace(METHODS[REFERENCE], tuned={}), **found}
    for name, method in found.items():
        if "preference" in method.changes:
            changes = {**method.changes, "preference": preference(values)}
            found[name] = replace(method, changes=changes)
    return found


def without_twins(plan: Plan, names: Sequence[str]) -> list[str]:
    """The names without methods that come to the same recipe as an earlier one, of which is told; a recipe may resample
    by itself."""
    kept: list[str] = []
    first = {stable_hash(plan.recipe(plan.methods[REFERENCE], 1)): REFERENCE}
    for name in names:
        if name in plan.methods:
            same = first.setdefault(stable_hash(plan.recipe(plan.methods[name], 1)), name)
            if same != name:
                print(f"{name} is {same} in this recipe, and is not run again", flush=True)
                continue
        kept.append(name)
    return kept


def on_model(values: Json, model: str) -> None:
    """Take another model: a folder has the recipe's own weights; what is named by a hub id has its own template too."""
    put(values, "model.path", model)
    if not Path(model).is_dir():
        for key in ("chat_template", "tool_parser", "train_tokens", "revision"):
            values["model"].pop(key, None)


def preference(values: Json) -> Json:
    """The preference stage: as many pairs, as often, as SFT has rows; one pair at a time, since it is two rows."""
    sft = values.get("sft") or {}
    batch = sft.get("per_device_train_batch_size", 8) * sft.get("gradient_accumulation_steps", 1)
    sizes = {key: sft[key] for key in ("max_steps", "num_train_epochs") if key in sft}
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": batch}
    return {**one, **sizes, "learning_rate": PREFERENCE_RATE}


# ------------------------------------------------------------------------------------------------ a seed


@contextmanager
def going_on(name: str, seed: int) -> Iterator[None]:
    """Within, whatever breaks in a method's process is told of, and the next method runs."""
    try:
        yield
    except Exception as error:
        print(f"{name}, seed {seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def on_seed(plan: Plan, names: Sequence[str]) -> Iterator[tuple[Path, Json]]:
    """Folder and result of each method, the reference first: without it there is nothing to compare with."""
    with going_on(REFERENCE, plan.seed):
        reference, result = trained(plan, REFERENCE, None, None)
        yield reference, result
        yield tested_start(plan, start_of(reference))
        for name in names:
            with going_on(name, plan.seed):
                yield from of_method(plan, name, reference, result)


def of_method(plan: Plan, name: str, reference: Path, result: Json) -> Iterator[tuple[Path, Json]]:
    """Folder and result of a method, on the reference's folder and result; nothing for what was run before it."""
    start = start_of(reference)
    if name == "prompt-only":
        yield prompted(plan, name, start, choose_wording)
    if name == "prompt-distilled":
        yield prompted(plan, name, start, distil, reference / "run", result["tokens"])
    if name == "fate-prompt":
        _, words = prompted(plan, "prompt-only", start, choose_wording)  # kept, where it is a method too
        yield prompted(plan, name, end_of(reference), same_words, words, result)
    if name in plan.methods and name != REFERENCE:
        yield trained(plan, name, result["tokens"], reference / "run")


def tested_start(plan: Plan, policy: Path) -> tuple[Path, Json]:
    folder = plan.place(START)
    if (found := kept(folder)) is not None:
        return folder, found
    apart(folder, test, plan, folder, policy, NONE)
    return folder, keep(plan, folder, policy, {"method": START, "tokens": 0, "rounds": 0})


def finished(plans: Sequence[Plan], names: Sequence[str]) -> Iterator[Measured]:
    """What is kept of the methods that are asked for, whoever ran them."""
    for plan in plans:
        for name in names:
            folder = plan.place(name)
            if (result := kept(folder)) is not None:
                attacked, asked = attack_of(plan, folder), familiar_cases(plan, folder)
                yield Measured(name, plan.seed, result, test_cases(folder), attacked, asked)


def say(folder: Path, result: Json) -> None:
    cases = test_cases(folder)
    said = f"{sum(card.resolved for _, card in cases)} of {len(cases)} test tasks resolved"
    used = f"{result['tokens'] / 1000:.0f} k tokens, {result['cpu_seconds']:.0f} CPU s"
    print(f"{result['method']}, seed {result['seed']}: {said}; {used}", flush=True)


# ------------------------------------------------------------------------------------------------ the command line


def count(text: str) -> int:
    """A number of tries; 0 is none."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="agentdojo-qwen2.5-coder-0.5b-cpu", help="full FATE")
    parser.add_argument("--model", help="a hub id, with its own chat template; or a folder with the recipe's weights")
    parser.add_argument("--methods", nargs="+", default=DEFAULT, help=f"default: {', '.join(DEFAULT)}")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="such as 0-2 or 0,3")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for all methods")
    parser.add_argument("--validation", type=count, default=40, help="tries of each prompt on validation tasks")
    parser.add_argument("--proposals", type=count, default=4, help="of prompts, by the model")
    parser.add_argument(
        "--attack", type=count, default=0, metavar="QUERIES", help="tries of an adaptive attack on a task"
    )
    parser.add_argument("--attacked", type=count, default=16, help="tasks that the adaptive attack sees")
    parser.add_argument(
        "--familiar", type=count, default=0, metavar="TASKS", help="with training's requests, under attacks new to it"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/real-model"), help="where runs are kept")
    parser.add_argument("--output", type=Path, default=Path("docs/results/real-model"), help="with .md, .json, .svg")
    parser.add_argument("--estimate", action="store_true", help="stop after the estimate")
    parser.add_argument("--kept", action="store_true", help="run nothing; show what is kept, whoever ran it")
    parser.add_argument("--no-estimate", action="store_true", help="start at once")
    return parser.parse_args()


def recipe_name(recipe: str) -> str:
    """Without folder and ending; a name may have dots of its own."""
    return Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")


def plan_of(given: argparse.Namespace, values: Json, methods: Mapping[str, Method], seed: int) -> Plan:
    folder = given.runs / f"{recipe_name(given.recipe)}-{stable_hash(values) % 2**32:08x}" / f"seed-{seed}"
    sizes = (given.validation, given.proposals, given.attack, given.attacked, given.familiar)
    return Plan(values, folder, seed, methods, *sizes)


def used(made: Sequence[Json]) -> dict[str, str]:
    """What results were made with, by name; where they differ, all of it."""
    return {name: " and ".join(sorted({each[name] for each in made})) for name in (made[0] if made else {})}


def write(given: argparse.Namespace, values: Json, plans: Sequence[Plan], names: Sequence[str]) -> None:
    """Page, JSON and picture of what is there, each replaced as a whole."""
    tested = list(finished(plans, names))
    if not tested:
        sys.exit(f"nothing is kept under {given.runs} for this recipe, these methods and seeds")
    told = summary(tested, {name: PROMPTS.get(name) or METHODS[name].what for name in names})
    left = len(plans) * len(names) - len(tested)
    made = used([t.result["made_with"] for t in tested])
    model = (values.get("model") or {}).get("path", "embedded")
    name = Path(model).name if Path(model).is_absolute() else model  # where a folder lies is nobody's concern
    about = {
        "command": "python benchmarks/real_model.py " + shlex.join(sys.argv[1:]).replace(model, name),
        "recipe": recipe_name(given.recipe),
        "recipe_hash": f"{stable_hash(values) % 2**32:08x}",
        "model": name,
        "seeds": ", ".join(map(str, sorted({t.seed for t in tested}))),
        "machine": made.pop("machine", ""),
        "versions": ", ".join(f"{name} {value}" for name, value in made.items()),
        "left": f"**Not finished: {left} of the runs asked for are missing.**" if left else "",
    }
    put(shown := copy.deepcopy(values), "model.path", name)
    written = {**about, "values": shown, "methods": told}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    directory, file = RunDirectory(given.output.parent), given.output.name
    directory.write_json(f"{file}.json", written)
    directory.write_text(f"{file}.svg", picture(told))
    directory.write_text(f"{file}.md", page(told, about))


def main() -> None:
    given = asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated; the same command goes on"))
    values = read_values(find_recipe(given.recipe))
    if given.model:
        on_model(values, given.model)
    for text in given.set:
        override(values, text)
    methods = methods_of(values, given.methods)
    names = list(dict.fromkeys([START, *given.methods, REFERENCE]))
    plans = [plan_of(given, values, methods, seed) for seed in given.seeds]
    names = without_twins(plans[0], names)  # what is wrong with a method is said here, before the first run
    if not (given.kept or given.no_estimate):
        found = estimate(plans[0], names, len(plans))
        print(estimated(found, len(plans)), flush=True)
    if given.estimate:
        return
    for plan in [] if given.kept else plans:
        for folder, result in on_seed(plan, names):
            say(folder, result)
            with going_on(f"familiar requests of {result['method']}", plan.seed):
                familiar_once(plan, folder, result)
            with going_on(f"attack on {result['method']}", plan.seed):
                attack_once(plan, folder, result)
            write(given, values, plans, names)
    write(given, values, plans, names)


if __name__ == "__main__":
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        main()
    except FateError as error:
        sys.exit(str(error))
