"""Two processes: each group has one greedy row, wherever its rows lie, and training keeps the processes in step.

Started by pytest, this file runs itself as a script on two processes that talk through gloo.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["whole", "spanning", "whole, shared prefixes"])
def test_two_processes_have_one_greedy_row_a_group(tmp_path, layout):
    """`whole`: each process holds a group; `spanning`: one group lies on both, its greedy row on the first."""
    pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*command, __file__, str(tmp_path), layout], check=True, timeout=280)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    if layout == "spanning":
        assert one["greedy"] + two["greedy"] == [True, False, False, False]
        assert one["trained"] + two["trained"] == [False, True, True, True]
        assert one["advantages"] + two["advantages"] == [0, 1, 2, 3]
    else:
        for told in (one, two):
            assert told["greedy"] == [True, False, False, False]
            assert told["trained"] == [False, True, True, True]
            assert told["advantages"] == [0, 1, 2, 3]
    assert one["items"] == two["items"] == one["own_items"] + two["own_items"]
    assert one["weights"] == two["weights"] != one["before"]


def main(folder: Path, layout: str) -> None:
    import tiny
    import torch
    from test_greedy_row import greedy_of, ids_of
    from test_trainer_processes import make

    torch.set_num_threads(1)
    rows = 2 if layout == "spanning" else 4

    def points(prompts: list[Any], **_: Any) -> list[float]:
        return [float((trainer.accelerator.process_index * len(prompts) + i) % 4) + 5 for i in range(len(prompts))]

    changes = {"temperature": 1.5, "max_steps": 2, "learning_rate": 1e-2, "share_prefixes": "shared" in layout}
    trainer = make(folder, [points], "advantages/remax", per_device_train_batch_size=rows, **changes)
    trainer.model.train()
    torch.manual_seed(trainer.accelerator.process_index)
    texts = [{"prompt": [{"role": "user", "content": "pay bob"}]} for _ in range(rows)]
    out = trainer._generate_and_score_completions(texts)
    said = ids_of(trainer, out)
    wanted = greedy_of(trainer.model, said[0][0], trainer.max_completion_length, trainer.eos_token_ids)

    def weights() -> float:
        state = tiny.state(trainer.accelerator.unwrap_model(trainer.model))
        return sum(values.double().abs().sum().item() for values in state.values())

    result = {
        "greedy": [completion == wanted for _, completion in said],
        "trained": (out["completion_mask"].sum(dim=1) > 0).tolist(),
        "advantages": out["advantages"].tolist(),
        "items": int(out["num_items_in_batch"]),
        "own_items": int(out["completion_mask"].sum()),
        "before": weights(),
    }
    trainer.train()
    result["weights"] = weights()
    (folder / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
