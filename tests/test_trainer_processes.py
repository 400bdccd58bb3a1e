"""Two processes: rollouts are shared out, errors and re-draws are decided alike, and training keeps them in step.

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
@pytest.mark.parametrize("layout", ["whole", "spanning"])
def test_two_processes(tmp_path, layout):
    """`whole`: each process holds whole groups; `spanning`: one group lies on both."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*command, __file__, str(tmp_path), layout], check=True, timeout=280)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["rollout"] == two["rollout"]
    assert [task for task, *_ in one["rollout"]] == [f"benign-{i}" for i in range(19)]
    assert one["opened"] + two["opened"] == 20, "19 requests, and one more to even the shares out"
    assert one["redrawn"] == two["redrawn"] == [1.0]
    if layout == "whole":
        assert one["advantages"] == two["advantages"] == [-1.5, -0.5, 0.5, 1.5]
    else:
        assert one["advantages"] + two["advantages"] == [-1.5, -0.5, 0.5, 1.5]
    assert one["items"] == two["items"] == one["own_items"] + two["own_items"]
    assert one["errors"] == two["errors"] == 0.125
    assert one["weights"] == two["weights"]
    assert one["learned"] == two["learned"]
    assert one["learned"][0] == 2, "once per generation"
    assert one["asked"] == two["asked"], "both see the rows of both, and say the same of them"
    assert one["widths"] != [] != two["widths"], "each takes its own rows, as wide as its own completions"


def rolled_out(folder: Path) -> dict[str, Any]:
    """19 requests over the processes."""
    import tiny

    from fate_trl.suites.episodes import environment_factories
    from fate_trl.train.config import PFPOConfig
    from fate_trl.train.rows import request_dataset
    from fate_trl.train.trainer import PFPOTrainer

    tokenizer, suite, tasks = tiny.make_tokenizer(), tiny.TillSuite(), [tiny.make_task(i) for i in range(19)]
    trainer = PFPOTrainer(
        tiny.acting_model(tokenizer),
        "utility",
        tiny.config(PFPOConfig, folder, ddp_backend="gloo", max_completion_length=48),
        request_dataset(tiny.requests_for(tasks)),
        processing_class=tokenizer,
        environment_factory=environment_factories({"till": suite}, tasks),
    )
    made = trainer.rollout(tiny.requests_for(tasks))
    return {
        "rollout": [(t.task.id, t.completion_ids, [c.to_dict() for c in t.calls], t.outcome.utility) for t in made],
        "opened": suite.opened,
    }


def make(folder: Path, rewards: list[Any], selector: Any = "product", **changes: Any) -> Any:
    import tiny
    from datasets import Dataset

    from fate_trl.train.config import PFPOConfig
    from fate_trl.train.trainer import PFPOTrainer

    tokenizer = tiny.make_tokenizer()
    return PFPOTrainer(
        tiny.make_model(tokenizer),
        rewards,
        tiny.config(PFPOConfig, folder, ddp_backend="gloo", scale_rewards="none", **changes),
        Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in ("pay alice", "pay bob")] * 4),
        processing_class=tokenizer,
        selector=selector,
    )


def scored(folder: Path, layout: str) -> dict[str, Any]:
    """One batch, of rewards 0 to 3 in a group; "pay alice" gets none, and is drawn anew."""
    whole = layout == "whole"

    def points(prompts: list[Any], **_: Any) -> list[float]:
        place = [trainer.accelerator.process_index * len(prompts) + i for i in range(len(prompts))]
        dull = [prompt[0]["content"] == "pay alice" for prompt in prompts]
        return [0.0 if d else float(p % 4) for d, p in zip(dull, place, strict=True)]

    trainer = make(folder, [points], per_device_train_batch_size=4 if whole else 2, redraw_rounds=8)
    trainer.model.train()
    text = "pay bob" if whole and trainer.accelerator.process_index == 1 else "pay alice"
    rows = [{"prompt": [{"role": "user", "content": text}]} for _ in range(4 if whole else 2)]
    out = trainer._generate_and_score_completions(rows)
    return {
        "advantages": out["advantages"].tolist(),
        "items": int(out["num_items_in_batch"]),
        "own_items": int(out["completion_mask"].sum()),
        "redrawn": trainer._metrics["train"]["pareto/redrawn_groups"],
    }


def trained(folder: Path) -> dict[str, Any]:
    """Two steps, with a verifier that fails on one row of the second process."""
    from fate_trl.types import Score

    class Judge:
        objectives = ("luck",)

        def score(self, trajectories):
            scores = [Score(i / len(trajectories)) for i in range(len(trajectories))]
            if trainer.accelerator.process_index == 1:
                scores[0] = Score.error("the judge is down")
            return [{"luck": score} for score in scores]

    trainer = make(folder, [Judge()], per_device_train_batch_size=4, redraw_rounds=1)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "errors": trainer.state.log_history[0]["errors/rows"],
        "weights": [value.detach().double().sum().item() for value in model.parameters()],
    }


def learned(folder: Path, layout: str) -> dict[str, Any]:
    """Two steps with a selector that learns from facts about rows, and gives advantages by token."""
    import numpy as np

    class Taught:
        def __init__(self) -> None:
            self.count, self.seen, self.said = 0, 0.0, []

        def advantages(self, scores_G_N_M, *, objectives, valid_G_N, rows):
            said = np.where(rows.turn_G_N_T >= 0, scores_G_N_M - self.seen, 0.0)
            self.said.append([rows.length_G_N.tolist(), float(said.sum())])
            return said

        def learn(self, scores_G_N_M, *, objectives, valid_G_N, rows):
            self.count += 1
            self.seen += float((rows.length_G_N * scores_G_N_M[:, :, 0]).mean())

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    def first(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(ids[0] % 5) for ids in completion_ids]

    taught, widths = Taught(), []
    batch = 4 if layout == "whole" else 2
    trainer = make(folder, [first], taught, per_device_train_batch_size=batch, max_steps=2)
    scored = trainer._generate_and_score_completions

    def watched(inputs: Any) -> Any:
        out = scored(inputs)
        assert out["advantages"].shape == out["completion_ids"].shape
        widths.append(out["advantages"].size(1))
        return out

    trainer._generate_and_score_completions = watched
    trainer.train()
    return {"learned": [taught.count, taught.seen], "asked": taught.said, "widths": widths}


def main(folder: Path, layout: str) -> None:
    import torch

    result = {**rolled_out(folder), **scored(folder, layout), **trained(folder), **learned(folder, layout)}
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
