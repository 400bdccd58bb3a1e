"""Two processes: a pair loss learns from the pairs of both, with further sequences, and they stay alike.

Started by pytest, this file runs itself as a script on two processes that talk through gloo.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_learn_from_the_pairs_of_both(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*command, __file__, str(tmp_path)], check=True, timeout=200)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["own"] + two["own"] == [2, 2, 2, 2], "each is told the losses of its own pairs"
    assert one["seen"] == two["seen"] == dict.fromkeys(one["keys"], 2), "and learns from those of both, in both epochs"
    assert one["weights"] == two["weights"]
    assert one["asked"] == two["asked"] == ["failed", "own", "rationale", "repaired"]


def main(folder: Path) -> None:
    import tiny
    import torch
    from test_pair_facts import FULL, Counts, trainer_of

    from fate_trl.train.pair_facts import key_of

    torch.set_num_threads(1)

    class Told(Counts):
        needs = ("rationale", "repair_prompt", "own")

        def __init__(self):
            self.seen, self.own, self.asked = {}, [], set()

        def __call__(self, batch):
            self.own.append(len(batch.key_B))
            further = {name: getattr(batch, name) for name in ("rationale", "repaired", "failed", "own")}
            self.asked |= {name for name, side in further.items() if side.logps_B_T.requires_grad}
            return super().__call__(batch) - 0.01 * sum(side.log_ratio_B.mean() for side in further.values())

    loss = Told()
    keys = {"per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": 1e-2, "ddp_backend": "gloo"}
    trainer = trainer_of(loss, folder, **keys)
    trainer.train()
    weights = sum(values.double().abs().sum().item() for values in tiny.state(trainer.model).values())
    told = {"own": loss.own, "seen": loss.seen, "asked": sorted(loss.asked), "weights": weights}
    told["keys"] = [str(key_of(pair)) for pair in FULL]
    (folder / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(Path(sys.argv[1]))
