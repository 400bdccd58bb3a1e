"""Two processes on pairs: the preference stage's losses, and its weights, are those of one process.

Started by pytest, this file runs itself as a script, on one process and on two that talk through gloo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LOGGED = ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["all weights", "adapter", "shared prompts", "a plugin's loss", "own samples"])
def test_two_processes_learn_from_pairs_as_one_does(tmp_path, how):
    if how == "own samples":
        pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
    found = []
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        folder = tmp_path / str(processes)
        folder.mkdir()
        subprocess.run([*command, __file__, str(folder), how], check=True, timeout=280)
        found.append([json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)])
    (alone,), (one, two) = found
    assert len(alone["log"]) == 6
    assert alone["log"][-1]["rewards/margins"] > 0
    for here, there in zip(one["log"], alone["log"], strict=True):
        assert here == pytest.approx(there, abs=1e-5)
    assert one["weights"] == two["weights"]
    assert one["weights"] == pytest.approx(alone["weights"], abs=1e-4)


def trained(folder: Path, how: str) -> dict[str, Any]:
    """Six steps on two pairs each, shared out over the processes."""
    import tiny
    import torch
    from peft import LoraConfig, get_peft_model
    from test_pair_facts import FULL
    from test_preference import LONG, PAIRS, Dpo
    from trl import DPOConfig

    from fate_trl.plugins import load
    from fate_trl.train.preference import SETTINGS, PairTrainer, rows_of
    from fate_trl.train.prefix.sharing import share_training

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = tiny.make_tokenizer()
    model = tiny.make_model(tokenizer)
    if how == "adapter":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    processes = int(os.environ["WORLD_SIZE"])
    args = DPOConfig(
        **SETTINGS,
        output_dir=str(folder),
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        ddp_backend="gloo",
        save_strategy="no",
        logging_steps=1,
        max_steps=6,
        learning_rate=1e-3,
        per_device_train_batch_size=2 // processes,
    )
    pairs = {"shared prompts": LONG, "own samples": FULL}.get(how, PAIRS)
    loss: Any = None
    if how == "a plugin's loss":
        loss = Dpo()
    elif how == "own samples":
        loss = load("pair loss", "preferences/hypo", {"kl": 1.0})
    trainer = PairTrainer(model, args, rows_of([*pairs, pairs[0]][:4], None, loss, tokenizer), tokenizer, [], loss)
    if how == "shared prompts":
        share_training(trainer, trainer.head_fields)
    trainer.train()
    trained = trainer.accelerator.unwrap_model(trainer.model)
    log = [{key: entry[key] for key in LOGGED} for entry in trainer.state.log_history if "loss" in entry]
    return {"log": log, "weights": [value.detach().double().sum().item() for value in trained.parameters()]}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / f"{os.environ['RANK']}.json").write_text(json.dumps(trained(place, sys.argv[2])))
