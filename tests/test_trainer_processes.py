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
    pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
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
    assert one["lost"] == two["lost"], "weights, what a callback learned, and its sums over both"
    if layout == "whole":
        assert [sorted(row["place"]) for row in one["told"] + two["told"]] == [[0, 1, 2, 3]] * 4
        assert [row["mean"] for row in one["told"] + two["told"]] == [[1.5] * 4] * 4
    else:
        pairs = zip(one["told"], two["told"], strict=True)
        assert [sorted(a["place"] + b["place"]) for a, b in pairs] == [[0, 1, 2, 3]] * 2
        assert [row["mean"] for row in one["told"] + two["told"]] == [[1.5] * 2] * 4
        assert one["refused"] == two["refused"] == "Widely"


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


def make(folder: Path, rewards: list[Any], selector: Any = "product", more: Any = None, **changes: Any) -> Any:
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
        **(more or {}),
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


def lost(folder: Path, layout: str) -> dict[str, Any]:
    """Two steps with a policy loss of a plugin, over whole groups where they lie on one process, and a callback."""
    import numpy as np
    from fate_trl_methods.control import HypervolumeWeights, KlStop
    from fate_trl_methods.gradients import GradientWeights

    from fate_trl.errors import RecipeError

    whole, told = layout == "whole", []

    class Regression:
        whole_groups = whole

        def columns(self, scores_G_N_M, *, reward_G_N, objectives, valid_G_N):
            place_G_N = np.broadcast_to(np.arange(4), valid_G_N.shape)
            return {"place": place_G_N, "mean": np.broadcast_to(reward_G_N.mean(axis=1)[:, None], valid_G_N.shape)}

        def __call__(self, batch):
            told.append({name: values.tolist() for name, values in batch.columns.items()})
            assert not whole or batch.together_B_B.all()
            return ((batch.log_ratio_B - batch.reward_B + batch.columns["mean"]) ** 2).mean()

    class Widely(Regression):
        whole_groups = True

    def points(prompts: list[Any], **_: Any) -> list[float]:
        return [float((trainer.accelerator.process_index * len(prompts) + i) % 4) for i in range(len(prompts))]

    stop, volume, weights = KlStop(since="sampled"), HypervolumeWeights(), GradientWeights()
    size = {"per_device_train_batch_size": 4 if whole else 2, "max_steps": 2}
    more = {"loss": Regression(), "callbacks": [stop, volume, weights]}
    trainer = make(folder, [points], "weighted-sum", more, **size)
    trainer.train()
    refused = ""
    if not whole:
        try:
            make(folder, [points], "weighted-sum", {"loss": Widely()}, **size)
        except RecipeError as error:
            refused = str(error).split()[0]
    model = trainer.accelerator.unwrap_model(trainer.model)
    sums = [value.detach().double().sum().item() for value in model.parameters()]
    states = [each.state_dict() for each in (stop, volume, weights)]
    return {"told": told, "lost": [sums, *states], "refused": refused}


def main(folder: Path, layout: str) -> None:
    import torch

    result = {**rolled_out(folder), **scored(folder, layout), **trained(folder), **learned(folder, layout)}
    result |= lost(folder, layout)
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
