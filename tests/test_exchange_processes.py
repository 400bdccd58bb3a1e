"""Two processes: a group that lies on both and fails gets one success, on the process that holds its last row.

Started by pytest, this file runs itself as a script on two processes that talk through gloo.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_exchange_one_row_of_a_group_that_lies_on_both(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*command, __file__, str(tmp_path)], check=True, timeout=280)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["said"] + two["said"] == [False, False, False, True]
    assert one["exchanged"] == two["exchanged"] == [1.0]
    assert two["advantages"][1] > 0 > max(one["advantages"] + two["advantages"][:1])
    assert sum(one["advantages"] + two["advantages"]) == pytest.approx(0, abs=1e-5)
    assert one["items"] == two["items"] == one["own_items"] + two["own_items"]


def main(folder: Path) -> None:
    import torch
    from test_exchange import TASKS, asked, completion, make, success_of

    torch.set_num_threads(1)
    changes = {"ddp_backend": "gloo", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    trainer = make(folder, asked(success_of(TASKS[0])), **changes)
    trainer.model.train()
    torch.manual_seed(trainer.accelerator.process_index)
    out = trainer._generate_and_score_completions([trainer.train_dataset[0] for _ in range(2)])
    result = {
        "said": [completion(out, row) == [20, 21, 22, 23, 1] for row in range(2)],
        "exchanged": trainer._metrics["train"]["exchanged_groups"],
        "advantages": out["advantages"].tolist(),
        "items": int(out["num_items_in_batch"]),
        "own_items": int((out["completion_mask"] * out["tool_mask"]).sum()),
    }
    (folder / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
