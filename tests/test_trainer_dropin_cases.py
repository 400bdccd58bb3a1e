"""What a GRPO script does that it also does with PFPOTrainer: its settings, its log, its table, its checkpoints."""

from __future__ import annotations

import ast
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from case import case
from datasets import Dataset
from torch.overrides import TorchFunctionMode
from trl import GRPOConfig, GRPOTrainer

import fate_trl
from fate_trl.choose.selectors import ParetoFront
from fate_trl.errors import FateError, RecipeError
from fate_trl.train import counts
from fate_trl.train.config import PFPOConfig
from fate_trl.train.trainer import STATE, PFPOTrainer
from fate_trl.types import Score

SECTION = "the trainer as a drop-in"


class Table:
    """A reward function that says what a test wrote down, again and again."""

    def __init__(self, name, *values):
        self.__name__ = name
        self.values = list(values)

    def __call__(self, completions, **_):
        return (self.values * len(completions))[: len(completions)]


class Marks:
    objectives = ("brief",)

    def __init__(self, broken=()):
        self.broken, self.seen = broken, 0

    def score(self, trajectories):
        self.seen += len(trajectories)
        first = self.seen - len(trajectories)
        return [
            {"brief": Score.error("down") if first + i in self.broken else Score(1 / (1 + len(t.completion_ids)))}
            for i, t in enumerate(trajectories)
        ]


def first_token(completion_ids, **_):
    return [ids[0] / 40 for ids in completion_ids]


def variety(completion_ids, **_):
    return [len(set(ids)) / 4 for ids in completion_ids]


def make(folder, rewards, cls=PFPOTrainer, config=PFPOConfig, data=None, more=None, **changes):
    tokenizer = tiny.make_tokenizer()
    texts = ["look who is owed", "pay alice", "steal from bob", "who is alice"]
    more_columns = data if callable(data) else lambda text: data or {}
    rows = [{"prompt": [{"role": "user", "content": text}], **more_columns(text)} for text in texts]
    args = tiny.config(config, folder, **changes)
    given = {"processing_class": tokenizer, **(more or {})}
    return cls(tiny.make_model(tokenizer), rewards, args, Dataset.from_list(rows), **given)


def step(trainer, rows=8):
    trainer.model.train()
    prompts = [trainer.train_dataset[i // 4] for i in range(rows)]
    return trainer._generate_and_score_completions([dict(row) for row in prompts])


def states(trainer):
    return [value for _, value in sorted(tiny.state(trainer.model).items())]


# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"num_generations": 1},
            marks=case(SECTION, "`num_generations=1`", "RecipeError, which is no ValueError", "it is a ValueError too"),
        ),
        {"redraw_rounds": -1},
        {"selector": "pareto-front", "multi_objective_aggregation": "normalize_then_sum"},
        {"selector": "product", "multi_objective_aggregation": "normalize_then_sum"},
        {"selector_args": {"tie_break": "none of these"}},
    ],
    ids=str,
)
def test_a_configuration_that_cannot_work_is_a_value_error_too(tmp_path, settings):
    with pytest.raises(ValueError, match=r"\w") as raised:
        make(tmp_path, [first_token], **settings)
    assert isinstance(raised.value, FateError)


@case(
    SECTION,
    '`multi_objective_aggregation="normalize_then_sum"` and no selector',
    "refused: no default selector works with it",
    "it means gdpo, trains GRPOTrainer's bits, and says so once",
)
@pytest.mark.parametrize("config", [PFPOConfig, GRPOConfig])
def test_normalize_then_sum_without_a_selector_is_gdpo(tmp_path, caplog, config):
    settings = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.3]}
    theirs = make(tmp_path, [first_token, variety], GRPOTrainer, GRPOConfig, **settings)
    theirs.train()
    caplog.clear()
    ours = make(tmp_path, [first_token, variety], config=config, **settings)
    ours.train()
    assert all(torch.equal(*pair) for pair in zip(states(theirs), states(ours), strict=True))
    assert [r.message for r in caplog.records if "gdpo" in r.message] == [caplog.records[0].message]
    assert ours.args.multi_objective_aggregation == "normalize_then_sum"


def test_a_named_selector_still_refuses_normalize_then_sum(tmp_path):
    settings = {"multi_objective_aggregation": "normalize_then_sum"}
    for more in ({"selector": "pareto-rank"}, {"selector": ParetoFront()}, {"selector": "weighted-sum"}):
        with pytest.raises(RecipeError, match="leave the selector out"):
            make(tmp_path, [first_token], more=more, **settings)
    assert make(tmp_path, [first_token], more={"selector": "gdpo"}, **settings)._aggregation == "normalize_then_sum"


@case(
    SECTION,
    "selector `product` on rewards of 0 to 100",
    "advantages of 45 where GRPO's are 1.3: nothing scaled them",
    "scaled by the group, as GRPO's are; between verifiers' scores in [0, 1] not",
)
@pytest.mark.parametrize("selector", ["product", "constraint"])
def test_rewards_without_bounds_are_scaled_by_the_group(tmp_path, selector):
    given = {"selector": selector}
    if selector == "constraint":
        given["selector_args"] = {"floors": {"points": 50.0}}
    trainer = make(tmp_path, [Table("points", 0.0, 100.0, 30.0, 60.0)], **given)
    made = step(trainer)["advantages"].abs().max().item()
    peer = step(make(tmp_path, [Table("points", 0.0, 100.0, 30.0, 60.0)], GRPOTrainer, GRPOConfig))
    assert trainer.scale_rewards == "group"
    assert made < 1.2 * peer["advantages"].abs().max().item()
    assert make(tmp_path, [Marks()], selector="product").scale_rewards == "none"
    assert make(tmp_path, [first_token], selector="product", scale_rewards="none").scale_rewards == "none"
    assert make(tmp_path, [first_token], selector="pareto-front").scale_rewards == "none"


# ------------------------------------------------------------------------------------------------ the log


GAPS = {"firsts": [1.0, None, 4.0, 2.0, None, None, None, None], "seconds": [3.0, 3.0, None, 1.0, 2.0, 0.0, 5.0, 1.0]}


@case(
    SECTION,
    "plain reward functions, some of whose rewards are None",
    "rows left out changed TRL's keys (`rewards/firsts/mean` 2.5 to 0, `reward` 5.5 to 4.0), and no key counted them",
    "TRL's keys hold GRPOTrainer's values; `errors/rows` is the share left out",
)
@pytest.mark.parametrize("values", [GAPS, {**GAPS, "firsts": [math.nan, 1.0, 2.0, 3.0] * 2}], ids=["none", "nan"])
@pytest.mark.parametrize("selector", ["pareto-front", "product", "pareto-rank"])
def test_trls_keys_keep_trls_values_where_rows_are_left_out(tmp_path, values, selector):
    rewards = [Table(name, *column) for name, column in values.items()]
    ours = make(tmp_path, rewards, selector=selector, reward_weights=[2.0, 0.5])
    theirs = make(tmp_path, rewards, GRPOTrainer, GRPOConfig, reward_weights=[2.0, 0.5])
    for trainer in (theirs, ours):
        step(trainer)
    mine, other = ours._metrics["train"], theirs._metrics["train"]
    for key in other:
        if key.startswith(("reward", "frac_reward")):
            assert mine[key] == pytest.approx(other[key], rel=1e-6, nan_ok=True), key
    for name in values:
        assert list(ours._logs["rewards"][name]) == pytest.approx(list(theirs._logs["rewards"][name]), nan_ok=True)
    complete = ~np.isnan(np.array([values["firsts"], values["seconds"]], dtype=float)).T.reshape(2, 4, 2)
    applies = complete.any(axis=1, keepdims=True)
    assert mine["errors/rows"] == [(~(complete | ~applies)).any(axis=2).mean()]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_frac_reward_zero_std_is_trls(tmp_path, scale):
    rewards = [Table("a", 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0), Table("b", 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0)]
    ours = make(tmp_path, rewards, scale_rewards=scale)
    theirs = make(tmp_path, rewards, GRPOTrainer, GRPOConfig, scale_rewards=scale)
    for trainer in (theirs, ours):
        step(trainer)
    mine, other = ours._metrics["train"], theirs._metrics["train"]
    assert mine["frac_reward_zero_std"] == other["frac_reward_zero_std"] == [1.0]
    assert mine["pareto/zero_signal_share"] == [0.5], "the sums are equal, the vectors are not"


def test_two_functions_of_one_name_keep_their_values(tmp_path):
    rewards = [Table("same", 1.0, None, 3.0, 4.0), Table("same", 5.0, 6.0, 7.0, 8.0)]
    ours, theirs = make(tmp_path, rewards), make(tmp_path, rewards, GRPOTrainer, GRPOConfig)
    for trainer in (theirs, ours):
        step(trainer)
    assert ours._metrics["train"]["rewards/same/mean"] == theirs._metrics["train"]["rewards/same/mean"]


@case(
    SECTION,
    "a column `kind` that holds a free text per row",
    "a key in the log per text",
    "no keys by kind, said once",
)
@pytest.mark.parametrize(
    "texts",
    [[f"text {i}" for i in range(counts.KINDS_LOGGED + 1)], ["a" * (counts.KIND_LENGTH + 1)]],
    ids=["many", "long"],
)
def test_free_text_in_the_column_kind_makes_no_keys(texts, caplog):
    counted = counts.Counts()
    assert counted.few_kinds(["easy", "hard"])
    assert [counted.few_kinds(texts), counted.few_kinds(["easy"])] == [False, False]
    assert len([r for r in caplog.records if "kind" in r.message]) == 1


def test_a_column_of_kinds_is_logged_and_free_text_is_not(tmp_path):
    def rows(end):
        return lambda text: {"kind": text + end}

    few = make(tmp_path, [first_token], data=rows(""))
    step(few)
    assert "objective/first_token/pay alice" in few._metrics["train"]
    free = make(tmp_path, [first_token], data=rows(" " * counts.KIND_LENGTH))
    step(free)
    assert not any(key.startswith("objective/") for key in free._metrics["train"])


# ------------------------------------------------------------------------------------------------ the table


def tables(folder):
    return {path.name: pd.read_parquet(path) for path in sorted((Path(folder) / "completions").glob("*.parquet"))}


class Told(PFPOTrainer):
    """Keeps what it trains on."""

    def _generate_and_score_completions(self, inputs):
        out = super()._generate_and_score_completions(inputs)
        pairs = zip(out["completion_ids"], out["completion_mask"], strict=True)
        self.told = ([str(ids[mask.bool()].tolist()) for ids, mask in pairs], out["advantages"].tolist())
        return out


def needs_luck(completions, **_):
    """Groups without a "good" have no signal."""
    return [float(c[0]["content"].count("good")) for c in completions]


def shows_ids(completion_ids, log_extra, **_):
    """Adds a column to the table, and applies nowhere."""
    log_extra("ids", [str(ids) for ids in completion_ids])
    return [None] * len(completion_ids)


@case(
    SECTION,
    "`redraw_rounds` and `log_completions`",
    "4 of 16 rows of the completions table a step were not trained on, also where nothing was replaced",
    "the table is what was trained on",
)
@pytest.mark.parametrize("reward", [needs_luck, Table("flat", 1.0), variety], ids=["some", "none", "few"])
def test_the_completions_table_is_what_was_trained_on(tmp_path, monkeypatch, reward):
    monkeypatch.setattr("trl.trainer.grpo_trainer.print_prompt_completions_sample", lambda *_, **__: None)
    settings = {"redraw_rounds": 2, "per_device_train_batch_size": 16, "max_steps": 1}
    trainer = make(tmp_path, [reward, shows_ids], Told, log_completions=True, **settings)
    trainer.train()
    (table,) = tables(tmp_path).values()
    ids, advantages = trainer.told
    assert table["ids"].tolist() == ids
    assert table["advantage"].tolist() == pytest.approx(advantages)
    if reward is needs_luck:
        texts = [message[0]["content"] for message in table["completion"]]
        assert table["needs_luck"].tolist() == [float(text.count("good")) for text in texts]
        assert trainer.state.log_history[0]["pareto/redrawn_groups"] > 0


# ------------------------------------------------------------------------------------------------ checkpoints


def untimed(log):
    return [{k: v for k, v in row.items() if not any(word in k for word in ("time", "second", "loss"))} for row in log]


@case(
    SECTION,
    "resume from a checkpoint with `logging_steps` above 1",
    "`tokens/*` 336/203/539 where the whole training's are 496/297/793",
    "every count, every logged mean and every table of completions is the whole training's",
)
@pytest.mark.parametrize(("logging_steps", "save_steps"), [(1, 2), (3, 2), (4, 3), (100, 1)])
def test_counts_are_exact_after_a_resume(tmp_path, monkeypatch, logging_steps, save_steps):
    monkeypatch.setattr("trl.trainer.grpo_trainer.print_prompt_completions_sample", lambda *_, **__: None)
    settings: dict[str, Any] = {"logging_steps": logging_steps, "save_strategy": "steps", "save_steps": save_steps}
    settings |= {"max_steps": 4, "max_error_rate": 0.9, "log_completions": True}

    def trainer(name):
        return make(tmp_path / name, [variety, Marks(broken={1, 9, 17})], data={"kind": "easy"}, **settings)

    whole = trainer("whole")
    whole.train()
    again = trainer("again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{save_steps}"))
    assert again.tokens == whole.tokens
    assert set(again.tokens) == {"prompt", "sampled", "trained"}
    assert again._counts.seen == whole._counts.seen == 32
    assert again._counts.excluded >= 1
    assert {k: v for k, v in again.state_dict()["counts"].items() if k in ("tokens", "kinds")} == {
        k: v for k, v in whole.state_dict()["counts"].items() if k in ("tokens", "kinds")
    }
    for name, table in tables(tmp_path / "again").items():
        assert table["completion"].tolist() == tables(tmp_path / "whole")[name]["completion"].tolist()
    for mine, other in zip(untimed(again.state.log_history), untimed(whole.state.log_history), strict=True):
        keys = [key for key in other if key.startswith(("tokens", "completions", "num_tokens", "rewards/variety"))]
        assert {key: mine[key] for key in keys} == {key: other[key] for key in keys}


def test_the_state_is_json_and_holds_the_selectors(tmp_path):
    class Counting(ParetoFront):
        calls = 0

        def reward(self, scores_G_N_M, *, objectives, valid_G_N):
            self.calls += 1
            return super().reward(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    settings = {"save_strategy": "steps", "save_steps": 1, "max_error_rate": 0.5, "max_steps": 3}
    trainer = make(tmp_path, [Marks(broken={2})], more={"selector": Counting()}, **settings)
    trainer.train()
    kept = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["stateful_callbacks"][STATE]
    assert kept["components"]["selector"] == {"calls": 2}
    assert kept["counts"]["rows"] == [16, 1]
    again = make(tmp_path, [Marks()], more={"selector": Counting()}, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again._selector.calls == 3
    assert again._counts.cases[0][1].errors == {"brief": "down"}
    assert again.tokens == trainer.tokens


@case(
    SECTION,
    "`train()` and then a resume on the same object",
    "the batch that was generated last is trained on again",
    "a new batch is generated, and counts start anew",
)
def test_training_twice_on_one_object_generates_anew(tmp_path):
    settings = {"num_iterations": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    trainer = make(tmp_path, [variety], Told, **settings)
    trainer.train()
    sampled = trainer.tokens["sampled"]
    before = trainer.told
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.told is not before
    assert trainer.tokens["sampled"] == sampled
    trainer.train()
    assert trainer._step == 3


# ------------------------------------------------------------------------------------------------ float64


class Host(torch.Tensor):
    """What `.cpu()` returned, and what is made of it: not on the device."""


class Device(TorchFunctionMode):
    """Every tensor counts as on a device without float64, until `.cpu()` takes it off.

    It sees calls of torch from Python, TRL's included, not what happens inside of kernels.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            return out.detach().clone().as_subclass(Host)
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64 and not isinstance(out, Host):
            raise TypeError(f"{func}: float64 on the device")
        return out


@case(
    SECTION,
    "training on a device without float64, such as Apple's MPS",
    "TypeError: the scores became float64 before they left the device",
    "float64 is made on the CPU only",
)
@pytest.mark.parametrize("selector", ["pareto-front", "product", "gdpo"])
def test_no_float64_on_the_device(tmp_path, selector):
    trainer = make(tmp_path, [variety, Marks()], data={"kind": "easy"}, selector=selector, redraw_rounds=0)
    trainer.model.train()
    with Device():
        step(trainer)
    with pytest.raises(TypeError, match="float64 on the device"), Device():
        torch.ones(2).double()


def test_no_double_in_front_of_cpu_anywhere():
    """Over all of train/ and choose/: float64 tensors are made of what is on the CPU, or by `batches.widest`."""
    found = []
    on_the_cpu = ("batches.py", "widest"), ("rollouts.py", "_row")
    for room in ("train", "choose"):
        for path in sorted((Path(fate_trl.__file__).parent / room).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            fine = {
                id(node)
                for function in ast.walk(tree)
                if isinstance(function, ast.FunctionDef) and (path.name, function.name) in on_the_cpu
                for node in ast.walk(function)
            }
            for node in ast.walk(tree):
                if not isinstance(node, ast.Attribute) or id(node) in fine:
                    continue
                inner = node.value.func if isinstance(node.value, ast.Call) else None
                off_the_device = isinstance(inner, ast.Attribute) and inner.attr == "cpu"
                if ast.unparse(node) in ("torch.float64", "torch.double") or (
                    node.attr == "double" and not off_the_device
                ):
                    found.append(f"{path.name}:{node.lineno}")
    assert found == []


# ------------------------------------------------------------------------------------------------ ties


UNLIKE = [Table("share", 0.9, 0.1, 0.6, 0.2), Table("cost", -10.0, -1.0, -2.0, -9.0)]


@case(
    SECTION,
    "one reward in [0, 1] and one in [-10, 0], and the default tie-break",
    "the second alone decides every tie, since the lowest objective is always the cost",
    "ties go by each objective's range in the group, chosen and said once",
)
def test_the_default_tie_break_is_free_of_units_outside_0_to_1(tmp_path, caplog):
    trainer = make(tmp_path, UNLIKE)
    with caplog.at_level(logging.WARNING):
        first, second = step(trainer)["advantages"][:4], step(trainer)["advantages"][:4]
    assert torch.equal(first, second)
    assert first.argmax() == 2, "good at both"
    assert len([r for r in caplog.records if "tie_break='scaled'" in r.message]) == 1
    rescaled = [Table("share", *(100 * value for value in UNLIKE[0].values)), UNLIKE[1]]
    assert torch.allclose(step(make(tmp_path, rescaled))["advantages"][:4], first, atol=1e-6)
    named = step(make(tmp_path, UNLIKE, selector_args={"tie_break": "worst"}))["advantages"][:4]
    assert named.argmax() == 1


@pytest.mark.parametrize("rewards", [[Table("a", 0.0, 1.0, 0.4, 0.6), Table("b", 1.0, 0.0, 0.5, 0.2)], [Marks()]])
def test_rewards_within_0_to_1_keep_the_tie_break(tmp_path, caplog, rewards):
    by_default, named = make(tmp_path, rewards), make(tmp_path, rewards, selector_args={"tie_break": "worst"})
    torch.manual_seed(0)
    first = step(by_default)["advantages"]
    torch.manual_seed(0)
    assert torch.equal(first, step(named)["advantages"])
    assert by_default._selector.tie_break == "worst"
    assert "scaled" not in caplog.text


def test_an_objective_that_does_not_count_changes_no_tie_break(tmp_path):
    trainer = make(tmp_path, [Table("a", 0.0, 1.0, 0.5, 0.6), UNLIKE[1]], reward_weights=[1.0, 0.0])
    step(trainer)
    assert trainer._selector.tie_break == "worst"
    negative = make(tmp_path, [Table("a", 0.0, 1.0, 0.5, 0.6)], reward_weights=[-1.0])
    step(negative)
    assert negative._selector.tie_break == "worst"


def test_the_choice_of_a_tie_break_is_in_the_checkpoint(tmp_path, caplog):
    make(tmp_path, UNLIKE, save_strategy="steps", save_steps=1, max_steps=1).train()
    caplog.clear()
    within = [Table("share", 0.9, 0.1, 0.6, 0.2), Table("cost", 0.1, 0.9, 0.8, 0.2)]
    again = make(tmp_path, within, max_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert again._selector.tie_break == "scaled"
    assert "scaled" not in caplog.text


def test_a_selector_that_was_made_by_hand_is_left_alone(tmp_path):
    trainer = make(tmp_path, UNLIKE, more={"selector": ParetoFront()})
    step(trainer)
    assert trainer._selector.tie_break == "worst"
