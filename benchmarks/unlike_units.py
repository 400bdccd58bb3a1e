"""Claim: PFPOTrainer's default tie-break does not depend on the units of plain reward functions.

    python benchmarks/unlike_units.py --out docs/results/unlike_units

Two rewards that trade off: `share` in [0, 1] and `cost` below 0. Of the words that a model of two layers may write, a
third serve the one reward, a third the other, and a third both, at half; so many rows are on the front, and what
breaks ties decides. A completion of six tokens is worth the mean of its words. All train from the same seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiny
import torch
from datasets import Dataset

from fate_trl.train.config import PFPOConfig
from fate_trl.train.trainer import PFPOTrainer

SEEDS = tuple(range(5))
STEPS = 60
LAST = 10
"""Steps at the end whose mean counts."""

BOTH = 0.5
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "worst": {"selector_args": {"tie_break": "worst"}},
    "weighted-sum": {"selector": "weighted-sum"},
    "gdpo": {"selector": "gdpo"},
}
FACTORS = (1.0, 10.0, 1000.0)
"""The cost's range: 1 puts both rewards into like units, though of unlike sign."""


def words(ids: Sequence[int], kind: int) -> float:
    """What a completion is worth in [0, 1]: the mean over its tokens, a third of which serve each kind, or both."""
    worth = [BOTH if token % 3 == 2 else float(token % 3 == kind) for token in ids]
    return sum(worth) / 6


def share(completion_ids: Any, **_: Any) -> list[float]:
    return [words(ids, 0) for ids in completion_ids]


def cost_of(factor: float) -> Any:
    def cost(completion_ids: Any, **_: Any) -> list[float]:
        return [factor * (words(ids, 1) - 1.0) for ids in completion_ids]

    return cost


def trained(seed: int, factor: float, folder: str, **way: Any) -> tuple[dict[str, float], list[torch.Tensor]]:
    """({"share", "cost"}, both as parts of their range in [0, 1], at the end of a training; the parameters)."""
    tokenizer = tiny.make_tokenizer()
    settings = {"per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 6}
    args = tiny.config(PFPOConfig, folder, seed=seed, max_steps=STEPS, learning_rate=3e-3, **settings, **way)
    data = Dataset.from_list([{"prompt": text} for text in ("pay alice", "look", "who is owed", "steal from bob")])
    trainer = PFPOTrainer(
        tiny.make_model(tokenizer, seed), [share, cost_of(factor)], args, data, processing_class=tokenizer
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "reward" in entry][-LAST:]
    means = {name: float(np.mean([entry[f"rewards/{name}/mean"] for entry in log])) for name in ("share", "cost")}
    return {"share": means["share"], "cost": 1 + means["cost"] / factor}, list(tiny.state(trainer.model).values())


def measured() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for factor in FACTORS:
            for name, way in WAYS.items():
                ends = []
                for seed in SEEDS:
                    print(f"{name}, cost in [-{factor:g}, 0], seed {seed}", file=sys.stderr, flush=True)
                    ends.append(trained(seed, factor, folder, **way)[0])
                found[f"{name} x{factor:g}"] = {"way": name, "range": factor, "seeds": ends}
        pairs = zip(trained(0, 10.0, folder)[1], trained(0, 1000.0, folder)[1], strict=True)
        apart = max(float((one - other).abs().max()) for one, other in pairs)
    return {"steps": STEPS, "last": LAST, "both": BOTH, "ways": found, "parameters_apart": apart}


HEAD = """# The default tie-break, and the units of rewards

    python benchmarks/unlike_units.py --out docs/results/unlike_units

Two reward functions that trade off: `share` in [0, 1], and `cost` in [−1, 0], [−10, 0] or [−1000, 0]. Of the words
that a model of two layers may write, a third serve the one, a third the other, and a third both, at {both:.0%}.
Shown is what each reward reached of its range, in %, as the mean of the last {last} of {steps} steps over {n} seeds,
± their standard deviation, and the lower of the two. *default* breaks ties by `scaled` here, since rewards lie outside
[0, 1]; *worst* is the default within [0, 1], and follows the cost alone, which is always the lower.

| ranked by | cost down to | share | cost | the lower |
|---|---|---|---|---|
"""


GDPO = """Why `gdpo`, which normalises each reward, follows the larger one: on rows that trade off evenly the normalised
rewards cancel but for the 1e-4 that TRL adds to each standard deviation, and dividing by the batch's makes that whole.
"""


def page(found: dict[str, Any]) -> str:
    lines = []
    for row in found["ways"].values():
        ends = 100 * np.array([[end["share"], end["cost"]] for end in row["seeds"]])
        ends = np.column_stack([ends, ends.min(axis=1)])
        cells = [f"{mean:.0f} ± {sd:.0f}" for mean, sd in zip(ends.mean(axis=0), ends.std(axis=0, ddof=1), strict=True)]
        lines.append(f"| {row['way']} | −{row['range']:g} | {' | '.join(cells)} |")
    apart = found["parameters_apart"]
    tail = f"\n{GDPO}\nWith the default, parameters after costs of 10 and of 1000 differ by {apart:.0e} at most.\n"
    n = len(next(iter(found["ways"].values()))["seeds"])
    head = HEAD.format(both=found["both"], last=found["last"], steps=found["steps"], n=n)
    return head + "\n".join(lines) + "\n" + tail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="path of the JSON and the page, without suffix")
    out = parser.parse_args().out
    found = measured()
    out.with_suffix(".json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
