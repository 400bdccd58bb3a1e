"""Memory: what `fate-trl check` estimates, against the peak of real stages on untrained weights.

    python -m benchmarks.memory [docs/results/memory.json] [--only qlora-8b]

On a GPU: the configurations of real models (their config.json's values stand in benchmarks/families.py; nothing is
downloaded), under a cap of 24, 16, 12 or 8 GB (`torch.cuda.set_per_process_memory_fraction`). On a CPU: small shapes
of the same families, and the peak of the process. A case is one stage, in a process of its own, through the learner
that runs use:

- *generate*: the last turn of a tool conversation, which reads nearly all of it at once and writes 16 tokens;
- *sft*: two steps on rows of the full length;
- *preference*: two steps on pairs of the full length, by TRL's loss or one of fate-trl-methods that asks for further
  sides of each;
- *pfpo*: two steps; the completions are made up, of the full length, so that this is training alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks import families
from fate_trl.loop.reporter import Silent
from fate_trl.plugins import load
from fate_trl.preflight import memory
from fate_trl.recipe.loading import make_recipe
from fate_trl.train import learner as torch_learner
from fate_trl.train import templates
from fate_trl.types import BufferRow, Pair, RolloutRequest

GIB = 2**30
LORA = {"r": 16}
SMALL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
SMALL |= {"num_key_value_heads": 3, "head_dim": 64, "vocab_size": 8192}


WRITTEN = 16
"""Tokens that the last turn writes."""


def case(
    config: str | dict,
    stage: str,
    rows: int,
    length: int,
    cap: int | None = None,
    trl: dict | None = None,
    shares: bool = False,
    loss: str | None = None,
    **model,
):
    completion = WRITTEN if stage == "generate" else length // (8 if shares else 2)
    return {
        "shares": shares,
        "config": config,
        "stage": stage,
        "rows": rows,
        "prompt": length - completion,
        "completion": completion,
        "cap": cap,
        "trl": trl or {},
        "loss": loss,
        "model": model,
    }


BIG = {"gradient_checkpointing": True, "optim": "paged_adamw_8bit"}
QLORA = {"lora": LORA, "load_in_4bit": True, "dtype": "bfloat16"}
ON_GPU = {
    f"{name}, {stage}": case(model, stage, rows, length, cap, BIG, **kind)
    for name, model, cap, length, kind in (
        ("qlora-8b", "Qwen/Qwen3-8B", 24, 5120, QLORA),
        ("qlora-llama-8b", "meta-llama/Llama-3.1-8B-Instruct", 24, 5120, QLORA),
        ("qlora-4b", "Qwen/Qwen3-4B", 16, 4608, QLORA),
        ("lora-1.7b", "Qwen/Qwen3-1.7B", 12, 3584, {"lora": LORA, "dtype": "bfloat16"}),
        ("qlora-1.7b", "Qwen/Qwen3-1.7B", 8, 3072, QLORA),
        ("qlora-0.6b", "Qwen/Qwen3-0.6B", 8, 3072, QLORA),
    )
    for stage, rows in (("generate", 4), ("sft", 1), ("pfpo", 1))
}
CHECKPOINTS = {"gradient_checkpointing": True}
ON_CPU = {
    "LoRA, generate": case(SMALL, "generate", 8, 768, lora=LORA),
    "LoRA, sft": case(SMALL, "sft", 2, 768, lora=LORA),
    "LoRA with checkpointing, sft": case(SMALL, "sft", 2, 768, trl=CHECKPOINTS, lora=LORA),
    "LoRA, pfpo": case(SMALL, "pfpo", 2, 768, lora=LORA),
    "all weights, sft": case(SMALL, "sft", 2, 512),
    "QLoRA with checkpointing, sft": case(
        SMALL, "sft", 2, 768, trl=CHECKPOINTS, lora=LORA, load_in_4bit=True, dtype="bfloat16"
    ),
    "LoRA, preference": case(SMALL, "preference", 2, 768, lora=LORA),
    "LoRA, preference, one further side": case(SMALL, "preference", 2, 768, loss="preferences/hypo", lora=LORA),
    "LoRA, preference, two further sides": case(SMALL, "preference", 2, 768, loss="preferences/srpo", lora=LORA),
    "shared, LoRA, generate": case(SMALL, "generate", 8, 768, shares=True, lora=LORA),
    "shared, LoRA, sft": case(SMALL, "sft", 2, 768, shares=True, lora=LORA),
    "shared, LoRA, preference": case(SMALL, "preference", 2, 1536, shares=True, lora=LORA),
    "shared, LoRA, preference, one further side": case(
        SMALL, "preference", 2, 1536, shares=True, loss="preferences/hypo", lora=LORA
    ),
    "shared, LoRA, preference, two further sides": case(
        SMALL, "preference", 2, 1536, shares=True, loss="preferences/srpo", lora=LORA
    ),
    "shared, LoRA, pfpo": case(SMALL, "pfpo", 8, 960, shares=True, lora=LORA),
    "shared, LoRA with checkpointing, pfpo": case(SMALL, "pfpo", 8, 960, trl=CHECKPOINTS, shares=True, lora=LORA),
    "shared, all weights, pfpo": case(SMALL, "pfpo", 8, 960, shares=True),
    "shared, QLoRA with checkpointing, pfpo": case(
        SMALL, "pfpo", 8, 960, trl=CHECKPOINTS, shares=True, lora=LORA, load_in_4bit=True, dtype="bfloat16"
    ),
}


# ------------------------------------------------------------------------------------------------ one case


def config_of(asked: dict[str, Any]) -> Any:
    if isinstance(asked["config"], str):
        return families.real_config(asked["config"])
    return families.model(families.tokenizer("qwen3"), "qwen3", **asked["config"]).config


def recipe_of(asked: dict[str, Any], gpu: bool) -> Any:
    batch = {"per_device_train_batch_size": asked["rows"], "max_steps": 2, **asked["trl"]}
    return make_recipe(
        {
            "model": {"path": "random/weights", **({} if gpu else {"threads": 1}), **asked["model"]},
            "suites": ["workbench"],
            "share_prefixes": asked["shares"],
            "rollout": {"chunk": asked["rows"], "max_completion_length": asked["completion"]},
            "sft": batch,
            "preference": {**batch, "loss": asked["loss"]},
            "pfpo": {**batch, "gradient_accumulation_steps": 2, "num_generations": asked["rows"]},
        }
    )


def measured(asked: dict[str, Any], gpu: bool) -> dict[str, float]:
    """Peak in bytes, and seconds, of a case in this process."""
    recipe, config = recipe_of(asked, gpu), config_of(asked)
    if gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, asked["cap"] * GIB / total))
    torch_learner.load_model = lambda model: (random_model(config, recipe.model, gpu), tokenizer)
    tokenizer = templates.prepare(families.tokenizer("qwen3"), recipe.model)
    suite = load("suite", "workbench", {"train": 12, "validation": 1, "test": 3})
    parts = [load("verifier", "utility")], load("selector", "product"), Silent()
    loss = load("pair loss", asked["loss"]) if asked["loss"] else None
    learner = torch_learner.TrlLearner(recipe, {"workbench": suite}, *parts, pair_loss=loss)
    learner.tasks = list(suite.tasks("train", 0))
    start = time.perf_counter()
    prompt = {"generate": generate, "sft": sft, "preference": preference, "pfpo": pfpo}[asked["stage"]](learner, asked)
    took = {"prompt": prompt, "seconds": time.perf_counter() - start}
    if gpu:
        free, total = torch.cuda.mem_get_info()
        return {**took, "bytes": torch.cuda.max_memory_reserved() + total - free - torch.cuda.memory_reserved()}
    return {**took, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def random_model(config: Any, model: Any, gpu: bool) -> Any:
    """The architecture with untrained weights, layer by layer in 4 bits where the recipe asks for it."""
    dtype = getattr(torch, model.dtype)
    with torch.device("cuda" if gpu and not model.load_in_4bit else "meta" if model.load_in_4bit else "cpu"):
        made = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if model.load_in_4bit:
        in_4bit(made, dtype, "cuda" if gpu else "cpu")
    if model.lora is not None:
        made = get_peft_model(made, LoraConfig(task_type="CAUSAL_LM", **model.lora.model_dump()))
    return made


def in_4bit(model: Any, dtype: torch.dtype, device: str) -> None:
    """Real tensors for a model on the meta device, in place: linear layers in 4 bits, all else in `dtype`."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and module is not head:
            made = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=dtype,
                quant_type="nf4",
                device="meta",
            )
            weight = torch.randn(module.weight.shape, dtype=dtype) * 0.02
            made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, made.to(device))
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(model.config)
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and old.is_meta:
                module._parameters[name] = torch.nn.Parameter(torch.randn(old.shape, dtype=dtype, device=device) * 0.02)
    model.tie_weights()
    model.to(device)
    model.is_loaded_in_4bit = True


def generate(learner: Any, asked: dict[str, Any]) -> int:
    made, prompt = request(learner, asked["prompt"])
    learner.rollout([made] * asked["rows"], 0)
    return prompt


def sft(learner: Any, asked: dict[str, Any]) -> int:
    prompt, mask = asked["prompt"], (1,) * asked["completion"]
    ids = [((7 + n,) * prompt, (9,) * len(mask)) for n in range(2 * asked["rows"])]  # no two rows begin alike
    learner.sft(
        [BufferRow("anchor", "workbench", "t", prompt_ids=p, completion_ids=c, policy_mask=mask) for p, c in ids],
        0,
        "sft",
    )
    return prompt


def preference(learner: Any, asked: dict[str, Any]) -> int:
    """No two pairs begin alike; the sides of one do, and those behind the repair's prompt begin otherwise again."""
    prompt, mask = asked["prompt"], (1,) * asked["completion"]
    chosen, rejected, own, repair = ((token,) * len(mask) for token in (9, 8, 7, 6))
    further: dict[str, Any] = {"own_ids": own, "own_mask": mask, "feedback": "the task was not done " * 10}
    pairs = [
        Pair(
            *("workbench", "t", 1, (20 + n,) * prompt, chosen, mask, rejected, mask, 0.5, 0, 0),
            repair_prompt_ids=(*repair, *(20 + n,) * (prompt - len(mask))),
            **further,
        )
        for n in range(2 * asked["rows"])
    ]
    learner.preference(pairs, 0)
    return prompt


def pfpo(learner: Any, asked: dict[str, Any]) -> int:
    def turn(trainer: Any, prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        return [torch.randint(300, 1000, (asked["completion"],)).tolist() for _ in prompt_ids], None

    torch_learner.PFPOTrainer._generate_single_turn = turn
    made, prompt = request(learner, asked["prompt"])
    learner.pfpo([made] * 4, 0)
    return prompt


def request(learner: Any, length: int) -> tuple[RolloutRequest, int]:
    """A request whose prompt has about so many tokens, and how many it has: its tools alone take some 900."""
    task = learner.tasks[0]
    prototypes = learner.suites["workbench"].tools()
    tools = [prototypes[name] for name in sorted(task.tools)]
    *before, last = task.messages

    def counted(words: int) -> tuple[tuple[Any, ...], int]:
        messages = (*before, {**last, "content": last["content"] + " the" * words})
        return messages, len(templates.render(learner.tokenizer, messages, tools, add_generation_prompt=True))

    short, each = counted(0)[1], (counted(100)[1] - counted(0)[1]) / 100
    messages, tokens = counted(max(0, int((length - short) / each)))
    return RolloutRequest(task, messages), tokens


# ------------------------------------------------------------------------------------------------ all cases


def estimated(asked: dict[str, Any], gpu: bool) -> memory.Need:
    lengths = memory.Lengths(asked["prompt"], asked["prompt"], asked["completion"])
    room = asked["cap"] * GIB if asked["cap"] else None
    needs = memory.estimate(recipe_of(asked, gpu), config_of(asked), lengths, gpu, room)
    wanted = {"generate": "collect, repair, evaluate", "pfpo": "pfpo: train"}.get(asked["stage"], asked["stage"])
    return next(need for need in needs if need.stage == wanted)


def apart(asked: dict[str, Any], gpu: bool, out: Any) -> None:
    """The case in a child process; an error is what came out of it."""
    try:
        out.send(measured(asked, gpu))
    except Exception as error:
        out.send({"error": f"{type(error).__name__}: {error}"[:300]})


def rows_of(cases: dict[str, dict[str, Any]], gpu: bool) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")  # a fork would start with pages that are counted as its parent's
    found = {}
    for name, asked in cases.items():
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=apart, args=(copy.deepcopy(asked), gpu, sender))
        child.start()
        found[name] = receiver.recv()
        child.join()
    for name, asked in cases.items():
        row = {"case": name, **asked, **found[name]}
        need = estimated(row, gpu)
        yield {**row, "estimate": need.total, "parts": need.parts}


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| case | rows × tokens | cap, GiB | estimate, GiB | measured, GiB | estimate / measured | s |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [
            row["case"],
            f"{row['rows']} × {row['prompt'] + row['completion']}",
            str(row["cap"] or "–"),
            f"{row['estimate'] / GIB:.2f}",
        ]
        if "error" in row:
            cells += [row["error"].replace("|", "\\|"), "–", "–"]
        else:
            cells += [f"{row['bytes'] / GIB:.2f}", f"{row['estimate'] / row['bytes']:.2f}", f"{row['seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    asked = parser.parse_args()
    gpu = torch.cuda.device_count() > 0  # asks no GPU anything, so that children can
    cases = {name: case for name, case in (ON_GPU if gpu else ON_CPU).items() if name.startswith(asked.only)}
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = list(rows_of(cases, gpu))
    device = "GPU" if gpu else "CPU"
    print("\n".join([f"device: {device}; a process without a model: {start / GIB:.2f} GiB", "", *table(rows)]))
    if asked.output:
        head = {"device": device, "machine": platform.machine(), "torch": torch.__version__, "process": start}
        asked.output.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
