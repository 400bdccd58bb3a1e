"""Claim: a round spends its time where the engine does, in generating and in training.

One round of the quickstart's stages on the workbench and the embedded policy, part by part, against what the engine
alone needs for the same tokens:

- *collect*: time inside the engine's generation over the time of the whole stage. The rest is tools, grading and
  verifiers, the ledger, and TRL's own work between the turns.
- *collect beside GRPOTrainer*: GRPOTrainer's rollouts of the same prompts and episodes, per token sampled, over the
  whole stage. Its tools run and it renders and parses between the turns; it grades, scores and records nothing.
- *SFT*: TRL's SFTTrainer on the same token rows, over our stage, which makes the rows and the trainer too.
- *PFPO*: GRPOTrainer on the same prompts and episodes with one trivial reward function, over our stage, per token
  trained on; it grades episodes too, but asks no verifiers.

In CPU seconds of this process, all threads together, which other work on the machine disturbs less than wall time. One
thread; a model of 0.3 M parameters, so everything that is not the engine weighs more than with any model of use.

    python benchmarks/round.py --out docs/results/round
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from fate_trl.ledger.scores import Scorer
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.repairing import row_of
from fate_trl.recipe.loading import find_recipe, make_recipe, read_values
from fate_trl.suites.episodes import Recorder, environment_factories
from fate_trl.train.build import build
from fate_trl.train.examples import tokens_of
from fate_trl.train.rows import request_dataset, request_row
from fate_trl.train.trainer import PFPOTrainer

REAL = "collect, SmolLM2-135M"
BESIDE = "collect, beside GRPOTrainer's rollouts"
AIMS = {"collect": 0.85, BESIDE: 0.85, "SFT": 0.95, "PFPO": 0.95, REAL: 0.85}
PARTS = {
    "engine": (PFPOTrainer, "_generate_single_turn"),
    "tools": (Recorder, "call"),
    "grading": (Recorder, "outcome"),
    "verifiers": (Scorer, "__call__"),
    "ledger": (RunDirectory, "append_chunk"),
}
"""What is timed within a collect stage; none of these calls another."""


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """CPU seconds of each part, while it lasts."""
    before = {name: getattr(owner, method) for name, (owner, method) in PARTS.items()}

    def wrapped(name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return before[name](*args, **kwargs)
            finally:
                spent[name] += time.process_time() - start

        return run

    for name, (owner, method) in PARTS.items():
        setattr(owner, method, wrapped(name))
    try:
        yield
    finally:
        for name, (owner, method) in PARTS.items():
            setattr(owner, method, before[name])


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    done = work()
    return time.process_time() - start, done


def collected(evolution: Any) -> tuple[dict[str, Any], list[Any]]:
    spent: dict[str, float] = defaultdict(float)
    evolution._collect(1)  # to warm up; what follows is another round's
    with timed(spent):
        whole, cases = seconds(lambda: evolution._collect(2))
    tokens = evolution._done(2)["collect"]["sampled_tokens"]
    rest = {"the rest, TRL's work between turns": whole - sum(spent.values())}
    found = {"tokens": tokens, "stage": whole, "engine": spent["engine"], "parts": {**spent, **rest}}
    return {**found, "ratio": spent["engine"] / whole}, cases


class _Generated(Exception):
    """Ends TRL's step where its rollouts are done."""


def beside_grpo(evolution: Any, requests: list[Any]) -> dict[str, Any]:
    learner, rollout, rounds = evolution.learner, evolution.recipe.rollout, count(3)
    sampled = 0
    learner.fresh()
    limits = {"max_completion_length": rollout.max_completion_length}
    limits |= {"max_tool_calling_iterations": rollout.max_tool_calling_iterations}
    peer = GRPOTrainer(
        learner.model,
        lambda completions, **_: [0.0] * len(completions),
        GRPOConfig(**{**learner.settings(1), **limits, **learner.rollout_batch()}),
        request_dataset(requests),
        processing_class=learner.tokenizer,
        environment_factory=environment_factories(learner.suites, learner.tasks, rollout.limits),
    )
    generate = peer._generate

    def generated(*args: Any, **kwargs: Any) -> Any:
        nonlocal sampled
        masks = generate(*args, **kwargs)[2]
        sampled = sum(map(sum, masks))
        raise _Generated

    peer._generate = generated

    def theirs() -> float:
        learner.model.eval()
        with suppress(_Generated):
            peer._generate_and_score_completions([request_row(request) for request in requests])
        return sampled

    def ours() -> float:
        number = next(rounds)
        evolution._collect(number)
        return float(evolution._done(number)["collect"]["sampled_tokens"])

    return alternately(ours, theirs)


def supervised(learner: Any, cases: list[Any]) -> dict[str, Any]:
    rows = [row_of(trajectory, "anchor", 1) for trajectory, _ in cases]
    settings = {**learner.settings(1), "max_length": None, **learner.recipe.sft.trl}
    examples = [tokens_of(row, learner.tokenizer, learner.tools_of(row)) for row in rows]

    tokens = sum(len(example["input_ids"]) for example in examples) * settings["num_train_epochs"]

    def ours() -> float:
        learner.sft(rows, 1, "sft")
        return tokens

    def bare() -> float:
        learner.fresh()
        args = {"args": SFTConfig(**settings), "processing_class": learner.tokenizer}
        SFTTrainer(learner.model, train_dataset=Dataset.from_list(examples), **args).train()
        return tokens

    return alternately(ours, bare)


def optimised(learner: Any, requests: list[Any]) -> dict[str, Any]:
    recipe = learner.recipe
    own = {"selector", "selector_args", "redraw_rounds"}
    keys = {key: value for key, value in recipe.pfpo.trl.items() if key not in own}
    rollout = recipe.rollout
    keys |= {"max_completion_length": rollout.max_completion_length, "scale_rewards": "none"}
    keys |= {"max_tool_calling_iterations": rollout.max_tool_calling_iterations}

    def one(completions: Any, **_: Any) -> list[float]:
        return [float(i % 2) for i in range(len(completions))]

    def ours() -> float:
        return _logged(learner.pfpo(requests, 1)["log"])

    def bare() -> float:
        learner.fresh()
        trainer = GRPOTrainer(
            learner.model,
            one,
            GRPOConfig(**{**learner.settings(1), **keys}),
            request_dataset(requests),
            processing_class=learner.tokenizer,
            environment_factory=environment_factories(learner.suites, learner.tasks, rollout.limits),
        )
        trainer.train()
        return _logged(trainer.state.log_history)

    return alternately(ours, bare)


def _logged(log: list[dict[str, Any]]) -> float:
    return max(entry.get("num_tokens") or 0 for entry in log)


def alternately(ours: Callable[[], float], theirs: Callable[[], float], times: int = 3) -> dict[str, Any]:
    """Two pieces of work, each of which says its tokens, in turns, after one each that does not count.

    Tokens and CPU seconds of ours, summed over the turns, and the seconds that theirs takes for as many tokens.
    """
    ours(), theirs()
    turns = [(*seconds(ours), *seconds(theirs)) for _ in range(times)]
    stage, tokens, engine, of_theirs = (sum(column) for column in zip(*turns, strict=True))
    engine *= tokens / of_theirs
    return {"tokens": tokens, "stage": stage, "engine": engine, "ratio": engine / stage}


def measured(folder: Path) -> dict[str, Any]:
    values = read_values(find_recipe("quickstart"))
    values["suites"] = [{"name": "workbench", "args": {"train": 120, "validation": 0, "test": 6}}]
    values["rollout"] |= {"tasks": 120}
    values["sft"] |= {"num_train_epochs": 1}
    values["pfpo"] |= {"max_steps": 3, "redraw_rounds": 0}
    evolution = build(make_recipe(values), RunDirectory(folder))
    learner: Any = evolution.learner
    collect, cases = collected(evolution)
    requests = evolution._pfpo_requests(1, cases)
    return {
        "collect": collect,
        BESIDE: beside_grpo(evolution, requests),
        "SFT": supervised(learner, cases),
        "PFPO": optimised(learner, requests),
    }


def measured_real(folder: Path, adapter: Path) -> dict[str, Any]:
    """One chunk of the recipe, from the adapter that its warm start left."""
    values = read_values(find_recipe("agentdojo-smollm2-cpu"))
    values["rollout"] |= {"tasks": values["rollout"]["chunk"]}
    del values["warm_start"]
    values["model"]["adapter"] = str(adapter)
    return collected(build(make_recipe(values), RunDirectory(folder)))[0]


HEAD = """# Speed of a round

    python benchmarks/round.py{flags} --out docs/results/round

One round of the quickstart's stages on the workbench and the embedded policy (0.3 M parameters, one thread), against
what the engine alone takes for the same tokens: for collecting its generation, and GRPOTrainer's whole rollouts; for
SFT TRL's SFTTrainer on the same rows; for PFPO GRPOTrainer on the same prompts and episodes with one trivial reward.
CPU seconds, all threads together, on a machine with two cores that other work shared. A larger model makes every share
of ours smaller: `{real}` is a chunk of the recipe `agentdojo-smollm2-cpu`, in bfloat16, after its warm start.

| stage | tokens | stage, s | tokens/s | engine alone, tokens/s | ratio | aim |
|---|---:|---:|---:|---:|---:|---:|
{rows}

What TRL does between the turns (rendering, parsing, padding) does not grow with the model. Against bare generation
collecting misses its aim with a model of 0.3 M parameters, by TRL's own work; against GRPOTrainer, which works as much
between the turns, it does not. (Ratios above 1: TRL makes each tool's JSON schema anew for every prompt and reply, and
PFPOTrainer once.)

{parts}"""


def show(found: dict[str, Any]) -> str:
    lines = []
    for name, row in found.items():
        if "parts" in row:
            whole = sum(row["parts"].values())
            lines += [f"## {name[0].upper()}{name[1:]}, by part", ""]
            lines += ["| part | CPU s | share |", "|---|---:|---:|"]
            ordered = sorted(row["parts"].items(), key=lambda part: -part[1])
            lines += [f"| {part} | {spent:.3f} | {spent / whole:.1%} |" for part, spent in ordered] + [""]
    return HEAD.format(
        flags=" --real RUN/rounds/00/after-warm_start" if REAL in found else "",
        real=REAL,
        rows="\n".join(
            f"| {name} | {row['tokens']:.0f} | {row['stage']:.2f} | {row['tokens'] / row['stage']:.0f} "
            f"| {row['tokens'] / row['engine']:.0f} | {row['ratio']:.2f} | {AIMS[name]} |"
            for name, row in found.items()
        ),
        parts="\n".join(lines),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file to write, without .md and .json")
    parser.add_argument("--real", type=Path, metavar="ADAPTER", help=f"{REAL} as well: RUN/rounds/00/after-warm_start")
    arguments = parser.parse_args()
    if arguments.real is not None and not (arguments.real / "adapter_config.json").is_file():
        parser.error(f"there is no adapter in {arguments.real}; `fate-trl run agentdojo-smollm2-cpu` leaves one")
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder) / "embedded")
        if arguments.real:
            found[REAL] = measured_real(Path(folder) / "real", arguments.real)
    print(show(found))
    arguments.out.with_suffix(".md").write_text(show(found), encoding="utf-8")
    record = {"python": platform.python_version(), "stages": found}
    arguments.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
