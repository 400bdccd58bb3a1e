"""Between its steps a PFPOTrainer is as its user made it, whatever happens in them, and whoever replaces what."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import tiny
import torch
from case import case
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from fate_trl.choose.selectors import ParetoRank
from fate_trl.errors import RecipeError
from fate_trl.train.config import PFPOConfig
from fate_trl.train.trainer import COLUMN, PFPOTrainer
from fate_trl.types import Score

SECTION = "the trainer as a drop-in"
OWN = (
    "reward_funcs",
    "reward_func_names",
    "reward_processing_classes",
    "reward_weights",
    "multi_objective_aggregation",
)
SCORES = [[1.0, 0.0, 0.5, 0.2], [0.1, 0.9, 0.4, 0.0]]


def first(completions, **_):
    return (SCORES[0] * 4)[: len(completions)]


def second(completions, **_):
    return (SCORES[1] * 4)[: len(completions)]


class Marks:
    """A verifier that keeps the trajectories that it was asked about."""

    objectives = ("brief",)

    def __init__(self):
        self.seen = []

    def score(self, trajectories):
        self.seen += trajectories
        return [{"brief": Score(1 / (1 + len(trajectory.completion_ids)))} for trajectory in trajectories]


class OwnAdvantages:
    def choose(self, scores_K_M, *, objectives, rng):
        return None

    def advantages(self, scores_G_N_M, *, objectives, valid_G_N):
        return np.zeros(valid_G_N.shape)


def make(folder, rewards=(first, second), cls=PFPOTrainer, config=PFPOConfig, more=None, **changes):
    tokenizer = tiny.make_tokenizer()
    rows = [{"prompt": [{"role": "user", "content": "pay alice"}]}] * 4
    args = tiny.config(config, folder, **changes)
    data = Dataset.from_list(rows)
    return cls(tiny.make_model(tokenizer), list(rewards), args, data, processing_class=tokenizer, **(more or {}))


def rows_of(trainer, number=8):
    trainer.model.train()
    return [dict(trainer.train_dataset[0]) for _ in range(number)]


def own(trainer):
    return {name: getattr(trainer, name) for name in OWN}


def same(trainer, before):
    assert trainer._current is None
    return all(getattr(trainer, name) is value for name, value in before.items())


# ------------------------------------------------------------------------------------------------ made by others


def test_every_attribute_of_ours_has_a_default_on_the_class(tmp_path):
    theirs = set(vars(make(tmp_path, cls=GRPOTrainer, config=GRPOConfig)))
    ours = set(vars(make(tmp_path, [first, Marks()]))) - theirs
    assert ours
    assert [name for name in sorted(ours) if not hasattr(PFPOTrainer, name)] == []


@case(
    SECTION,
    "`object.__new__(PFPOTrainer)` and a few attributes of TRL's, then `_generate`, as TRL's own tests do",
    "AttributeError: no attribute 'tokens'",
    "what TRL's `_generate` returns",
)
def test_generate_on_an_object_that_was_never_initialised():
    bare = object.__new__(PFPOTrainer)
    with patch.object(GRPOTrainer, "_generate", lambda self, prompts: ([[1]], [[2, 3]], None, prompts)):
        assert bare._generate(["pay alice"]) == ([[1]], [[2, 3]], None, ["pay alice"])
    assert bare.tokens == {}


class Keywords(GRPOTrainer):
    """Stands behind PFPOTrainer, and has an order of its own."""

    def __init__(self, *, args, model, motto, **kwargs):
        self.motto = motto
        super().__init__(model=model, args=args, **kwargs)


class Mixed(PFPOTrainer, Keywords):
    pass


@case(
    SECTION,
    "a mixin behind PFPOTrainer whose `__init__` takes keywords",
    "TypeError: it was given seven positional arguments",
    "everything reaches it by name",
)
def test_a_class_behind_ours_gets_everything_by_name(tmp_path):
    trainer = make(tmp_path, cls=Mixed, more={"motto": "by name"})
    assert trainer.motto == "by name"
    assert trainer.objectives == ("first", "second")


def test_arguments_by_position_reach_trl(tmp_path):
    tokenizer = tiny.make_tokenizer()
    data = Dataset.from_list([{"prompt": "pay alice"}] * 4)
    told = tiny.config(PFPOConfig, tmp_path)
    model = tiny.make_model(tokenizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = PFPOTrainer(model, first, told, data, None, tokenizer, None, None, (optimizer, None))
    assert trainer.optimizer is optimizer
    with pytest.raises(TypeError, match="too many positional"):
        PFPOTrainer(model, first, told, data, None, tokenizer, *[None] * 20)
    with pytest.raises(TypeError, match="callbacks"):
        PFPOTrainer(model, first, told, data, None, tokenizer, None, [], callbacks=[])


# ------------------------------------------------------------------------------------------------ outside of a step


@pytest.mark.parametrize("selector", ["pareto-front", "product", "weighted-sum", "gdpo"])
def test_after_training_and_evaluation_the_trainer_is_the_users(tmp_path, selector):
    trainer = make(tmp_path, selector=selector, more={"eval_dataset": Dataset.from_list([{"prompt": "who"}] * 4)})
    before = own(trainer)
    trainer.train()
    assert same(trainer, before)
    trainer.evaluate()
    assert same(trainer, before)


def broken(completions, **_):
    raise OSError("the reward is down")


class Stumbles(ParetoRank):
    def reward(self, *_, **__):
        raise OSError("the selector is down")


@pytest.mark.parametrize(
    ("rewards", "more"),
    [([first, broken], {}), ([broken, Marks()], {}), ([first], {"selector": Stumbles()})],
    ids=["function", "beside a verifier", "selector"],
)
def test_an_exception_in_a_step_leaves_the_trainer_whole(tmp_path, rewards, more):
    trainer = make(tmp_path, rewards, more=more)
    before = own(trainer)
    for call in (lambda: trainer._generate_and_score_completions(rows_of(trainer)), trainer.train):
        with pytest.raises(OSError, match="is down"):
            call()
        assert same(trainer, before)


def test_an_exception_behind_the_column_leaves_the_trainer_whole(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    before = own(trainer)
    monkeypatch.setattr("trl.trainer.grpo_trainer.nanstd", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert same(trainer, before)


@case(
    SECTION,
    "`_calculate_rewards` called outside of a step, with fewer rows than a group",
    "the selector's column stays in the trainer for good; fewer rows than a group raise",
    "TRL's matrix, and the trainer as it was",
)
@pytest.mark.parametrize("number", [8, 3])
@pytest.mark.parametrize("selector", ["pareto-front", "gdpo"])
def test_rewards_asked_for_outside_of_a_step(tmp_path, number, selector):
    marks = Marks()
    trainer = make(tmp_path, [first, marks], selector=selector)
    before = own(trainer)
    rows = rows_of(trainer, number)
    said = [[{"role": "assistant", "content": "done"}]] * number
    matrix = trainer._calculate_rewards(rows, [row["prompt"] for row in rows], said, [[5, 6, 7]] * number)
    assert matrix.shape == (number, 2)
    assert matrix[:3, 0].tolist() == pytest.approx(SCORES[0][:3])
    assert set(matrix[:, 1].tolist()) == {0.25}
    assert marks.seen[0].messages[0]["content"] == "done"
    assert same(trainer, before)
    trainer.train()
    assert same(trainer, before)


# ------------------------------------------------------------------------------------------------ subclasses


class Replaces(PFPOTrainer):
    """Makes a step of its own, as those do that copied TRL's method."""

    def _generate_and_score_completions(self, inputs):
        self.made = GRPOTrainer._generate_and_score_completions(self, inputs)
        return self.made


class AsksTwice(PFPOTrainer):
    def _calculate_rewards(self, *args):
        super()._calculate_rewards(*args)
        return super()._calculate_rewards(*args)


@case(
    SECTION,
    "a subclass that replaces `_generate_and_score_completions`",
    "ValueError at its second step: the column was still there",
    "it trains on the selector's rewards, and its log is as ever",
)
def test_a_subclass_with_a_step_of_its_own(tmp_path):
    trainer = make(tmp_path, cls=Replaces, max_steps=3)
    before = own(trainer)
    trainer.train()
    assert same(trainer, before)
    plain = make(tmp_path)
    wanted = plain._generate_and_score_completions(rows_of(plain))["advantages"]
    assert torch.equal(trainer.made["advantages"], wanted)
    log = trainer.state.log_history[2]
    assert {COLUMN, f"{COLUMN}_std", "tokens/sampled"} <= set(log)
    assert f"rewards/{COLUMN}/mean" not in log
    assert log["reward"] == pytest.approx(np.sum(SCORES) / 4)


def test_a_subclass_with_a_step_of_its_own_and_a_selector_that_sets_advantages(tmp_path):
    with pytest.raises(RecipeError, match="Replaces replaces _generate_and_score_completions"):
        make(tmp_path, cls=Replaces, more={"selector": OwnAdvantages()}).train()


def test_a_subclass_that_asks_twice_in_a_step(tmp_path):
    trainer = make(tmp_path, cls=AsksTwice)
    before = own(trainer)
    out = trainer._generate_and_score_completions(rows_of(trainer))
    plain = make(tmp_path)
    assert torch.equal(out["advantages"], plain._generate_and_score_completions(rows_of(plain))["advantages"])
    assert same(trainer, before)
