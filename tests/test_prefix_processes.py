"""Shared prefixes on two processes: the same rollouts and the same updates as TRL's way, and as one process.

Started by pytest, this file runs itself as a script on one or two processes, which talk through gloo.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

KINDS = ("all weights", "LoRA", "LoRA, checkpointing", "LoRA on 4 bits, checkpointing")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one and two processes found, with sharing and without: results by (processes, shared)."""
    folder, out = tmp_path_factory.mktemp("prefixes"), {}
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        subprocess.run([*command, __file__, str(folder), str(processes)], check=True, timeout=500)
        for rank in range(processes):
            out[processes, rank] = torch.load(folder / f"{processes}-{rank}.pt")
    return out


@pytest.mark.slow
def test_rollouts_are_the_same_however_they_are_made(found):
    expected = found[1, 0]["rollouts", False]
    assert any(calls for *_, calls in expected)
    for key, results in found.items():
        for shared in (False, True):
            assert results["rollouts", shared] == expected, (key, shared)
    assert found[2, 0]["spared"] > 0 < found[2, 1]["spared"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_updates_are_the_same_however_they_are_made(found, kind):
    if kind not in found[1, 0]:
        pytest.skip("bitsandbytes is not installed")
    expected = found[1, 0][kind, False] - found[1, 0][kind]
    assert expected.norm() > 0
    for key, results in found.items():
        for shared in (False, True):
            step = results[kind, shared] - results[kind]
            assert (step - expected).norm() < 1e-3 * expected.norm(), (key, shared)


# ------------------------------------------------------------------------------------------------ in each process


def model_of(kind: str, tokenizer: Any) -> Any:
    import tiny
    from peft import LoraConfig, get_peft_model

    from benchmarks.memory import in_4bit

    model = tiny.make_model(tokenizer, hidden=64)
    if "4 bits" in kind:
        with torch.device("meta"):
            model = type(model)(model.config)
        torch.manual_seed(0)
        in_4bit(model, torch.float32, "cpu")
        for name, weights in model.named_parameters():
            if "norm" in name:
                weights.data.fill_(1.0)
    if "LoRA" in kind:
        torch.manual_seed(1)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    return model


def trained(folder: Path, kind: str, shared: bool, processes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All trained weights before and after two steps on given completions, with a KL term to the first adapter."""
    import random

    import tiny
    from datasets import Dataset

    from fate_trl.train.config import PFPOConfig
    from fate_trl.train.trainer import PFPOTrainer

    tokenizer = tiny.make_tokenizer()

    def lengths(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(len(ids) + ids[0] % 3) for ids in completion_ids]

    def said(prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        first = trainer.accelerator.process_index * len(prompt_ids)
        draws = [random.Random(f"{trainer.state.global_step} {first + i}") for i in range(len(prompt_ids))]
        return [[draw.randrange(5, 40) for _ in range(draw.randrange(1, 9))] for draw in draws], None

    texts = ["pay alice", "pay bob", "pay alice and bob", "read the till"] * 2
    trainer = PFPOTrainer(
        model_of(kind, tokenizer),
        [lengths],
        tiny.config(
            PFPOConfig,
            folder,
            ddp_backend="gloo",
            share_prefixes=shared,
            per_device_train_batch_size=8 // processes,
            gradient_checkpointing="checkpointing" in kind,
            max_completion_length=8,
            scale_rewards="none",
            loss_type="grpo",
            # Without an adapter TRL loads the reference from a hub, and on 4 bits it is an adapter in bfloat16.
            beta=0.1 if kind.startswith("LoRA") and "4 bits" not in kind else 0.0,
            optim="sgd",
            learning_rate=0.1,
        ),
        Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in texts]),
        processing_class=tokenizer,
    )
    assert (trainer.sharing is not None) == shared
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = [value for value in model.parameters() if value.requires_grad]
    for value in weights:
        value.data = value.data.float()  # on 4 bits TRL makes them bfloat16, whose rounding hides a step
    trainer._generate_single_turn = said
    before = torch.cat([value.detach().double().flatten() for value in weights])
    trainer.train()
    return before, torch.cat([value.detach().double().flatten() for value in weights])


def rolled_out(folder: Path, shared: bool) -> tuple[list[Any], int]:
    """Six requests, with tools, and how many tokens did not have to be read."""
    import tiny

    from fate_trl.suites.episodes import environment_factories
    from fate_trl.train.config import PFPOConfig
    from fate_trl.train.rows import request_dataset
    from fate_trl.train.trainer import PFPOTrainer

    tokenizer, suite, tasks = tiny.make_tokenizer(), tiny.TillSuite(), [tiny.make_task(i) for i in range(6)]
    settings = {"max_completion_length": 48, "generation_kwargs": {"do_sample": False}}
    trainer = PFPOTrainer(
        tiny.acting_model(tokenizer),
        "utility",
        tiny.config(PFPOConfig, folder, ddp_backend="gloo", share_prefixes=shared, **settings),
        request_dataset(tiny.requests_for(tasks)),
        processing_class=tokenizer,
        environment_factory=environment_factories({"till": suite}, tasks),
    )
    made = trainer.rollout(tiny.requests_for(tasks))
    tokens = trainer.spent.tokens
    return [(t.task.id, t.completion_ids, [c.to_dict() for c in t.calls]) for t in made], tokens["asked"] - tokens[
        "read"
    ]


def main(folder: Path, processes: int) -> None:
    import importlib.util
    import os

    torch.set_num_threads(1)
    out: dict[Any, Any] = {}
    for shared in (False, True):
        out["rollouts", shared], out["spared"] = rolled_out(folder, shared)
        for kind in KINDS:
            if "4 bits" not in kind or importlib.util.find_spec("bitsandbytes"):
                out[kind], out[kind, shared] = trained(folder, kind, shared, processes)
    torch.save(out, folder / f"{processes}-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    main(Path(sys.argv[1]), int(sys.argv[2]))
