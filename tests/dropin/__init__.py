"""The drop-in matrix: what GRPOTrainer takes, each a function of its own, and how it fares with PFPOTrainer.

    @row("reward functions", "asynchronous")
    def _():
        return Setup(rewards=[slowly])

A function in any file of this folder is a row. It says how a trainer is made, and is called anew for every trainer, so
that two share no state. `tried` trains GRPOTrainer, PFPOTrainer with `weighted-sum`, which must come to the same bits
and the same log, and PFPOTrainer with `pareto-front`, whose advantages must be the selector's. tests/test_dropin.py
and benchmarks/dropin.py try the rows; the latter writes docs/results/dropin.{md,json}.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from fate_trl import plugins
from fate_trl.process.team import count
from fate_trl.train.config import PFPOConfig
from fate_trl.train.trainer import PFPOTrainer

OURS = ("pareto/", "objective/", "errors/", "tokens/", "tools/overflowed_ratio")
"""How the names of what PFPOTrainer adds to the log begin."""


def prompts(*texts: str, **columns: Any) -> Dataset:
    """Conversational prompts, four by default."""
    texts = texts or ("look who is owed", "pay alice", "steal from bob", "who is alice")
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": text}], **{name: values[i] for name, values in columns.items()}}
            for i, text in enumerate(texts)
        ]
    )


def words(completion_ids: Any, **_: Any) -> list[float]:
    """A reward function for any kind of prompt: share of distinct tokens."""
    return [len(set(ids)) / len(ids) for ids in completion_ids]


def early(completion_ids: Any, **_: Any) -> list[float]:
    """Another, that disagrees with it: how low the first token's number is."""
    return [1 - ids[0] / 60 for ids in completion_ids]


def _train(make: Callable[..., Any]) -> Any:
    trainer = make()
    trainer.train()
    return trainer


@dataclass
class Setup:
    """How a trainer is made and used.

    Attributes:
        rewards, data, more: GRPOTrainer's `reward_funcs`, `train_dataset`, and further keywords.
        model: Makes the model from the tokenizer.
        args, theirs: Keys of the configuration, and what is said to GRPOTrainer alone.
        config: The configuration's class for PFPOTrainer.
        selector: The one that must train as GRPOTrainer does.
        use: Makes trainers by `make(**args)`, uses them, and returns the last.
        differs: Why ours trains differently, where it does on purpose.
    """

    rewards: Any = field(default_factory=lambda: [words, early])
    data: Any = field(default_factory=prompts)
    more: dict[str, Any] = field(default_factory=dict)
    model: Callable[[Any], Any] = tiny.make_model
    args: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)
    config: type = PFPOConfig
    selector: str = "weighted-sum"
    use: Callable[[Callable[..., Any]], Any] = _train
    differs: str = ""


@dataclass(frozen=True)
class Row:
    """A row: what GRPOTrainer is given, and the function that sets it up.

    `fast` rows run in the default tests, and on two processes. `needs` is a package that may be missing.
    """

    area: str
    what: str
    setup: Callable[[], Setup]
    fast: bool = False
    needs: str = ""

    @property
    def name(self) -> str:
        return f"{self.area}: {self.what}"


ROWS: list[Row] = []


def row(area: str, what: str, **more: Any) -> Callable[[Callable[[], Setup]], None]:
    """Register a function that makes a `Setup` as a row of the matrix; `more` are the last fields of `Row`."""

    def register(setup: Callable[[], Setup]) -> None:
        ROWS.append(Row(area, what, setup, **more))

    return register


def rows() -> list[Row]:
    """Every row, of every file in this folder."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return ROWS


def values_of(attribute: str) -> list[str]:
    """The values that GRPOTrainer's code knows for a setting: what it compares `self.<attribute>` with, in order."""
    found: list[str] = []
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(GRPOTrainer)))):
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == f"self.{attribute}":
            constants = [leaf.value for side in node.comparators for leaf in ast.walk(side) if _is_text(leaf)]
            found += [value for value in constants if value not in found]
    return found


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# ------------------------------------------------------------------------------------------------ one row, tried


@dataclass(frozen=True)
class Tried:
    """What became of a row.

    Attributes:
        difference: Largest difference of a parameter between GRPOTrainer's model and ours with the same aggregation.
        moved: Largest change of a parameter by training; at 0 nothing was compared.
        logs: Keys of GRPOTrainer's log that are missing or different in ours.
        added: Keys of our log that are not GRPOTrainer's and do not begin as ours do.
        advantages: Largest difference of an advantage of the Pareto selector from what it should be.
        batches: Number of batches that `advantages` is over.
    """

    difference: float
    moved: float
    logs: list[str]
    added: list[str]
    advantages: float
    batches: int

    @property
    def same(self) -> bool:
        """Whether our training was GRPOTrainer's, to the last bit, and its log holds all that GRPOTrainer's does."""
        return self.difference == 0 and not self.logs and not self.added

    @property
    def sound(self) -> bool:
        """Whether something was trained, and the Pareto selector's advantages were what they should be."""
        return self.moved > 0 and self.batches > 0 and self.advantages < 1e-5


class Watched(PFPOTrainer):
    """Keeps, for every batch that is trained on, how far its advantages are from what they should be."""

    _seen: tuple[float, ...] = ()
    _outside = False

    def _select(self, step: Any, rewards_B_M: torch.Tensor, failed_B: Any) -> torch.Tensor:
        self._scores = rewards_B_M.double().numpy().copy()
        return super()._select(step, rewards_B_M, failed_B)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        out = super()._generate_and_score_completions(inputs)
        if self._mode == "train":
            own = expected(self)[self.accelerator.process_index * len(inputs) :][: len(inputs)]
            self._seen += (float(np.abs(own - out["advantages"].numpy()).max()),)
        return out


def expected(trainer: Watched) -> np.ndarray:
    """Advantages (B,) of the batch just scored: the selector's rewards, centred and scaled as the trainer's arguments
    say; 0 for a row that lacks a score that others of its group have."""
    scores_G_N_M = trainer._scores.reshape(-1, trainer.num_generations, len(trainer.objectives)).copy()
    applies_G_1_M = ~np.isnan(scores_G_N_M).all(axis=1, keepdims=True)
    valid_G_N = ~(np.isnan(scores_G_N_M) & applies_G_1_M).any(axis=2) & applies_G_1_M.any(axis=2)
    scores_G_N_M[~valid_G_N] = np.nan
    weights = dict(zip(trainer.objectives, trainer.reward_weights.tolist(), strict=True))
    trainer._outside |= bool((np.nan_to_num(scores_G_N_M) != np.nan_to_num(scores_G_N_M).clip(0, 1)).any())
    arguments = {"weights": weights, "tie_break": "scaled" if trainer._outside else "worst"}
    selector = plugins.load("selector", "pareto-front", arguments)
    rewards_G_N = selector.reward(scores_G_N_M, objectives=trainer.objectives, valid_G_N=valid_G_N)
    made_G_N = np.zeros(valid_G_N.shape)
    for made_N, rewards_N, valid_N in zip(made_G_N, rewards_G_N, valid_G_N, strict=True):
        if valid_N.any():
            spread = {"group": rewards_N[valid_N], "batch": rewards_G_N[valid_G_N]}.get(trainer.scale_rewards)
            made_N[valid_N] = rewards_N[valid_N] - rewards_N[valid_N].mean()
            if spread is not None:
                made_N /= (spread.std(ddof=1) if len(spread) > 1 else 0) + 1e-4
    return made_G_N.reshape(-1)


def used(row: Row, folder: Path, kind: type, **chosen: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """(trainer, its parameters as they were) of a row: made and used as it says, which starts random state anew."""
    setup = row.setup()
    tokenizer = tiny.make_tokenizer()
    config, own, more = (GRPOConfig, setup.theirs, {}) if kind is GRPOTrainer else (setup.config, {}, chosen)
    first: list[dict[str, torch.Tensor]] = []

    def make(**changes: Any) -> Any:
        sizes = {"max_completion_length": 6, "per_device_train_batch_size": 8 // count()}
        keys = {**sizes, **setup.args, **own, **changes}
        args = tiny.config(config, folder, **keys)
        model = setup.model(tokenizer)
        trainer = kind(model, setup.rewards, args, setup.data, processing_class=tokenizer, **setup.more, **more)
        first.append(tiny.state(trainer.model))
        return trainer

    return setup.use(make), first[0]


def tried(row: Row, folder: Path) -> Tried:
    """Train a row's three trainers and compare them. With several processes all call this with the same folder."""
    theirs, before = used(row, folder / "grpo", GRPOTrainer)
    ours, _ = used(row, folder / "pfpo", PFPOTrainer, selector=row.setup().selector)
    pareto, _ = used(row, folder / "pareto", Watched, selector="pareto-front")
    ends = tiny.state(theirs.model), tiny.state(ours.model)
    logs = logged(theirs), logged(ours)
    return Tried(
        difference=farthest(*ends),
        moved=farthest(before, ends[0]),
        logs=sorted({key for a, b in zip(*logs, strict=True) for key in a if not same_value(a[key], b.get(key))}),
        added=sorted(
            {
                key
                for a, b in zip(*logs, strict=True)
                for key in set(b) - set(a)
                if not key.removeprefix("eval_").startswith(OURS)
            }
        ),
        advantages=max(pareto._seen),
        batches=len(pareto._seen),
    )


def farthest(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference of two sets of parameters; infinity if they are not the same set."""
    if set(one) != set(other):
        return float("inf")
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def logged(trainer: Any) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    clock = ("time", "per_second")
    return [
        {key: value for key, value in entry.items() if not any(part in key for part in clock)}
        for entry in trainer.state.log_history
    ]


def same_value(one: Any, other: Any) -> bool:
    return one == other or (one != one and other != other)
