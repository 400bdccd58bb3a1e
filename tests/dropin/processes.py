"""Rows on two processes that talk through gloo, for which this file runs itself as a script, and two against one.

Sampled text depends on the process that samples it, so two processes are held against one where a `rollout_func` says
what is completed, by the prompt and the place in its group alone.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAYOUTS = {"whole groups on each process": 4, "groups that span both": 2}
"""Rows of each of two processes, by name; a group has 4."""

STEPS = 3


def on_two(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """What became of rows on two processes: the fields of `Tried` by row, and the parameters of `settled` runs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    # torch hands its own setting down, unless the environment has one
    subprocess.run([*command, str(folder), *names], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((folder / "tried.json").read_text())


def settled(folder: Path, kind: str, rows: int) -> dict[str, list[float]]:
    """Parameters after a training on completions that are settled beforehand; `rows` on each process."""
    import tiny
    from trl import GRPOConfig, GRPOTrainer

    from dropin import early, prompts, words
    from fate_trl.train.config import PFPOConfig
    from fate_trl.train.trainer import PFPOTrainer

    def rolled(asked: list[Any], trainer: Any) -> dict[str, Any]:
        ids = [trainer.processing_class.apply_chat_template(p, add_generation_prompt=True)["input_ids"] for p in asked]
        first = trainer.accelerator.process_index * len(asked)
        places = [(first + i) % 4 for i in range(len(ids))]
        made = [[20 + (place * 5 + len(row)) % 12, 20 + place % 3, 1] for place, row in zip(places, ids, strict=True)]
        return {"prompt_ids": ids, "completion_ids": made, "logprobs": [[-1.0] * 3] * len(ids)}

    cls, config = (GRPOTrainer, GRPOConfig) if kind == "GRPOTrainer" else (PFPOTrainer, PFPOConfig)
    more = {} if kind == "GRPOTrainer" else {"selector": kind}
    tokenizer = tiny.make_tokenizer()
    trainer = cls(
        tiny.make_model(tokenizer),
        [words, early],
        tiny.config(config, folder, per_device_train_batch_size=rows, max_steps=STEPS),
        prompts("look who is owed", "pay", "steal from bob", "who is alice", "1 2 3"),
        processing_class=tokenizer,
        rollout_func=rolled,
        **more,
    )
    trainer.train()
    return {name: value.reshape(-1).tolist() for name, value in tiny.state(trainer.model).items()}


KINDS = ("GRPOTrainer", "weighted-sum", "pareto-front")


def against_one(folder: Path, two: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Largest difference of a parameter on two processes from one, by layout and trainer."""
    found: dict[str, dict[str, float]] = {}
    for layout, rows in LAYOUTS.items():
        for kind in KINDS:
            alone = settled(folder, kind, 2 * rows)
            found.setdefault(layout, {})[kind] = max(
                abs(a - b) for name in alone for a, b in zip(alone[name], two[layout][kind][name], strict=True)
            )
    return found


def main(folder: Path, names: Sequence[str]) -> None:
    """On one of the processes."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch

    from dropin import rows, tried

    gc.freeze()  # TRL collects garbage after every training
    found: dict[str, Any] = {}
    for number, row in enumerate(rows()):
        if row.name in names:
            print(f"{number + 1:>3}  {row.name}", file=sys.stderr, flush=True)
            found[row.name] = dataclasses.asdict(tried(row, folder / str(number)))
    for layout, size in LAYOUTS.items():
        found[layout] = {kind: settled(folder, kind, size) for kind in KINDS}
    if torch.distributed.get_rank() == 0:
        (folder / "tried.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
