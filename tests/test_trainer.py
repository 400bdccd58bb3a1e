"""PFPOTrainer against GRPOTrainer: what must be equal is equal to the last bit, what must differ differs as stated."""

from __future__ import annotations

import copy
import json
import logging
import math

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, HfArgumentParser, LlamaForSequenceClassification
from trl import GRPOConfig, GRPOTrainer

from fate_trl import plugins
from fate_trl.errors import ErrorBudgetExceeded, FateError, PluginError, RecipeError
from fate_trl.suites.episodes import environment_factories
from fate_trl.train.config import PFPOConfig
from fate_trl.train.rows import request_dataset
from fate_trl.train.trainer import COLUMN, PFPOTrainer
from fate_trl.types import Score

COLUMN_SELECTORS = ["pareto-front", "pareto-rank", "product"]


def prompts(**columns):
    rows = ["look who is owed", "pay alice", "steal from bob", "who is alice"]
    data = {"prompt": [[{"role": "user", "content": text}] for text in rows]}
    return Dataset.from_dict({**data, **{name: list(values) for name, values in columns.items()}})


def length(completions, **_):
    """A reward function: share of distinct words, as text lengths would be at this size."""
    return [len(set(c[0]["content"].split())) / 4 for c in completions]


def mentions_good(completions, **_):
    return [float("good" in c[0]["content"]) for c in completions]


def sometimes(completion_ids, **_):
    """Does not apply to the rows whose first token is even."""
    return [None if ids[0] % 2 == 0 else ids[0] / 40 for ids in completion_ids]


def never(completions, **_):
    return [None] * len(completions)


async def slowly(completions, **_):
    return [float(len(c[0]["content"])) for c in completions]


class Table:
    """A reward function that says what a test wrote down, batch after batch."""

    def __init__(self, name, *batches):
        self.__name__ = name
        self.batches = [list(batch) for batch in batches]

    def __call__(self, **_):
        return self.batches.pop(0)


class Marks:
    """A verifier of two objectives: how long the answer is, and whether it says good. Counts its calls."""

    objectives = ("brief", "kind")

    def __init__(self, broken=()):
        self.broken, self.batches = set(broken), []

    def score(self, trajectories):
        self.batches.append(list(trajectories))
        return [self._one(i, trajectory) for i, trajectory in enumerate(trajectories)]

    def _one(self, i, trajectory):
        if i in self.broken:
            return {"brief": Score.error("the judge is down"), "kind": Score(1.0)}
        return {"brief": Score(1 / (1 + len(trajectory.completion_ids))), "kind": Score.not_applicable()}


def make(folder, rewards, cls=PFPOTrainer, config=PFPOConfig, data=None, model=None, more=None, **changes):
    tokenizer = tiny.make_tokenizer()
    model = tiny.make_model(tokenizer) if model is None else model
    args = tiny.config(config, folder, **changes)
    data = prompts() if data is None else data
    return cls(model, rewards, args, data, processing_class=tokenizer, **(more or {}))


def advantages(trainer, data=None, group=4):
    """Advantages (G, N) of one scored batch: the data set's first two prompts."""
    rows = data or [trainer.train_dataset[i] for i in range(2)]
    trainer.model.train()
    out = trainer._generate_and_score_completions([dict(row) for row in rows for _ in range(group)])
    return out["advantages"].reshape(-1, group).numpy()


def trained(*args, **kwargs):
    """A trainer, made and trained: random state starts when one is made, so a second is made after that."""
    trainer = make(*args, **kwargs)
    trainer.train()
    return trainer


def same_bits(one, other):
    states = tiny.state(one.model), tiny.state(other.model)
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def logged(trainer):
    """The log without what depends on the clock."""
    return [
        {k: v for k, v in row.items() if "time" not in k and "per_second" not in k} for row in trainer.state.log_history
    ]


# ------------------------------------------------------------------------------------------------ equal to TRL


@pytest.mark.parametrize(
    ("selector", "aggregation"), [("weighted-sum", "sum_then_normalize"), ("gdpo", "normalize_then_sum")]
)
def test_trl_aggregations_train_the_same_bits(tmp_path, selector, aggregation):
    common = {"reward_weights": [1.0, 0.3, 2.0], "max_steps": 3}
    rewards = [length, sometimes, mentions_good]
    theirs = trained(
        tmp_path, list(rewards), GRPOTrainer, GRPOConfig, multi_objective_aggregation=aggregation, **common
    )
    ours = trained(tmp_path, list(rewards), selector=selector, **common)
    assert same_bits(theirs, ours)
    assert not same_bits(ours, make(tmp_path, list(rewards), selector=selector, **common)), "nothing was trained"
    for mine, other in zip(logged(ours), logged(theirs), strict=True):
        assert {key: mine.get(key) for key in other} == other


def test_weighted_sum_trains_the_same_bits_with_tools_and_episodes(tmp_path):
    suite = tiny.TillSuite()
    tasks = list(suite.tasks("train", 0))

    def paid(environments, **_):
        return [float(len(environment._recorder.calls)) for environment in environments]

    trainers = []
    for cls, config, extra in ((GRPOTrainer, GRPOConfig, {}), (PFPOTrainer, PFPOConfig, {"selector": "weighted-sum"})):
        trainer = trained(
            tmp_path,
            [paid, sometimes],
            cls,
            config,
            data=request_dataset(tiny.requests_for(tasks)),
            model=tiny.acting_model(tiny.make_tokenizer()),
            more={"environment_factory": environment_factories({"till": suite}, tasks)},
            max_completion_length=48,
            learning_rate=1e-3,
            **extra,
        )
        trainers.append(trainer)
    theirs, ours = map(logged, trainers)
    assert max(row.get("tools/call_frequency", 0) for row in theirs) > 0, "no tool was called"
    assert same_bits(*trainers)
    assert all(mine[key] == other[key] for mine, other in zip(ours, theirs, strict=True) for key in other)


def test_weights_in_the_selectors_arguments_are_reward_weights(tmp_path):
    theirs = trained(tmp_path, [length, slowly], GRPOTrainer, GRPOConfig, reward_weights=[1.0, 0.25])
    ours = trained(tmp_path, [length, slowly], selector="weighted-sum", selector_args={"weights": {"slowly": 0.25}})
    assert same_bits(theirs, ours)


@pytest.mark.parametrize(("tie", "said"), [("worst", True), ("mean", False)])
def test_weights_that_do_not_count_are_told(tmp_path, caplog, tie, said):
    make(tmp_path, [length, slowly], selector_args={"tie_break": tie, "weights": {"slowly": 0.25}})
    assert ("does not weigh" in caplog.text) is said
    caplog.clear()
    make(tmp_path, [length, slowly], selector_args={"tie_break": tie}, reward_weights=[1.0, -1.0])
    assert "does not weigh" not in caplog.text


@pytest.mark.parametrize("selector", COLUMN_SELECTORS)
def test_outside_a_step_the_trainer_is_the_users_own(tmp_path, selector):
    trainer = make(tmp_path, [length, sometimes], selector=selector, reward_weights=[2.0, 0.5])
    own = {name: getattr(trainer, name) for name in ("reward_funcs", "reward_func_names", "reward_processing_classes")}
    trainer.train()
    assert all(getattr(trainer, name) is value for name, value in own.items())
    assert trainer.reward_weights.tolist() == [2.0, 0.5]
    assert len(trainer.reward_funcs) == 2


def test_a_failing_reward_function_leaves_the_trainer_whole(tmp_path, monkeypatch):
    trainer = make(tmp_path, [length])
    monkeypatch.setattr("trl.trainer.grpo_trainer.nanstd", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        advantages(trainer)
    assert trainer.reward_func_names == ["length"]
    assert trainer.reward_weights.tolist() == [1.0]


def test_log_keeps_trls_reward_and_names_the_column(tmp_path):
    common = {"reward_weights": [2.0, 0.5], "max_steps": 1}
    theirs = trained(tmp_path, [length, mentions_good], GRPOTrainer, GRPOConfig, **common)
    ours = trained(tmp_path, [length, mentions_good], **common)
    mine, other = logged(ours)[0], logged(theirs)[0]
    new = {
        "pareto/reward",
        "pareto/reward_std",
        "pareto/frac_reward_zero_std",
        "errors/rows",
        "pareto/front_size",
        "pareto/tie_break_share",
        "pareto/zero_signal_share",
        "pareto/all_front_unequal_share",
        "tokens/prompt",
        "tokens/sampled",
        "tokens/trained",
    }
    assert set(mine) == set(other) | new
    assert mine["tokens/prompt"] + mine["tokens/sampled"] == mine["tokens/trained"] == other["num_tokens"]
    for key in other:
        if key.startswith(("reward", "completions", "num_tokens")):
            assert mine[key] == pytest.approx(other[key], rel=1e-5), key


# ------------------------------------------------------------------------------------------------ order, direction


@pytest.mark.parametrize("selector", [*COLUMN_SELECTORS, "weighted-sum", "gdpo"])
@pytest.mark.parametrize("scale", ["none", "group"])
def test_one_objective_never_reverses_the_order(tmp_path, selector, scale):
    rng = np.random.default_rng(0)
    draws = [rng.choice([-3.0, 0.0, 0.25, 1.0, 7.5], size=8) for _ in range(4)] + [rng.normal(size=8) for _ in range(4)]
    trainer = make(tmp_path, [Table("only", *draws)], selector=selector, scale_rewards=scale, max_completion_length=1)
    for draw in draws:
        values, made = draw.reshape(2, 4), advantages(trainer)
        higher = values[:, :, None] > values[:, None]
        gap = made[:, :, None] - made[:, None]
        assert (gap[higher] >= 0).all()
        if selector in ("pareto-rank", "product", "weighted-sum", "gdpo"):
            assert (gap[higher] > 0).all()
        assert np.allclose(gap[values[:, :, None] == values[:, None]], 0, atol=1e-6)


def test_the_dominated_get_less_than_the_front(tmp_path):
    # Group 1: rows 0 and 1 trade off, 2 is dominated by 0, 3 by all. Group 2: all equal.
    a = [1.0, 0.2, 0.9, 0.1, 1, 1, 1, 1]
    b = [0.2, 1.0, 0.2, 0.1, 1, 1, 1, 1]
    made = advantages(make(tmp_path, [Table("a", a), Table("b", b)]))
    assert min(made[0, :2]) > 0 > max(made[0, 2:])
    assert np.allclose(made[1], 0, atol=1e-6)
    assert np.allclose(made.sum(axis=1), 0, atol=1e-6)


@pytest.mark.parametrize("selector", COLUMN_SELECTORS)
def test_advantages_are_the_selectors_rewards_less_their_groups_mean(tmp_path, selector):
    scores_G_N_M = np.random.default_rng(1).choice([0.0, 0.25, 0.75, 1.0], size=(2, 4, 3))
    columns = [Table(name, scores_G_N_M[:, :, m].reshape(-1)) for m, name in enumerate("abc")]
    weights = {"a": 2.0, "b": 1.0, "c": 0.5}
    given = {"reward_weights": list(weights.values()), "scale_rewards": "none"}
    made = advantages(make(tmp_path, columns, selector=selector, **given))
    rewards_G_N = plugins.load("selector", selector, {"weights": weights}).reward(
        scores_G_N_M, objectives=list("abc"), valid_G_N=np.ones((2, 4), bool)
    )
    assert np.allclose(made, rewards_G_N - rewards_G_N.mean(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("selector", COLUMN_SELECTORS)
def test_training_raises_the_better_answer(tmp_path, selector):
    def says_good(completion_ids, **_):
        return [float(ids[0] == good) for ids in completion_ids]

    def half_good(completion_ids, **_):
        return [1.0 if ids[0] == good else 0.5 * (ids[0] < 20) for ids in completion_ids]

    data = prompts().select([0])
    trainer = make(
        tmp_path,
        [says_good, half_good],
        data=Dataset.from_list([data[0]] * 4),
        selector=selector,
        per_device_train_batch_size=64,
        num_generations=32,
        max_completion_length=1,
        max_steps=6,
    )
    tokenizer = trainer.processing_class
    good = tokenizer.convert_tokens_to_ids("good")
    ids = tokenizer.apply_chat_template(data[0]["prompt"], add_generation_prompt=True, return_tensors="pt")["input_ids"]

    def log_prob():
        with torch.no_grad():
            return torch.log_softmax(trainer.model(input_ids=ids).logits[0, -1], dim=-1)[good].item()

    before = log_prob()
    trainer.train()
    assert log_prob() > before + 0.1


# ------------------------------------------------------------------------------------------------ errors, gaps


def test_error_rows_get_nothing_and_shift_nothing(tmp_path):
    verifier = Marks(broken={2})
    trainer = make(tmp_path, [verifier, Table("points", [1, 0, 9, 0.5, 1, 0, 1, 0])], max_completion_length=1)
    made = advantages(trainer)
    assert made[0, 2] == 0
    assert made[0].sum() == pytest.approx(0, abs=1e-6)
    assert np.argmax(made[0]) == 0
    metrics = trainer._metrics["train"]
    assert metrics["errors/rows"] == metrics["errors/brief"] == [1 / 8]
    assert metrics["errors/kind"] == metrics["errors/episode"] == [0]
    assert metrics["rewards/points/mean"] == [pytest.approx(3.5 / 7)]  # the broken row's 9 is in no mean


def test_past_the_error_budget_the_training_stops_with_a_table_of_causes(tmp_path):
    trainer = make(tmp_path, [Marks(broken=range(4))], max_completion_length=1, max_error_rate=0.1)
    with pytest.raises(ErrorBudgetExceeded, match=r"4 of 8 cases(.*\n)+.*no_verdict +4  the judge is down"):
        advantages(trainer)
    bears = make(tmp_path / "b", [Marks(broken=range(3))], max_completion_length=1, max_error_rate=0.1)
    assert advantages(bears)[0, 0] == 0, "three errors never stop it"


@pytest.mark.parametrize("selector", ["weighted-sum", "gdpo"])
def test_error_rows_are_left_out_of_trls_own_aggregations_too(tmp_path, selector):
    trainer = make(
        tmp_path,
        [Marks(broken={2}), Table("points", [1, 0, 9, 0, 1, 0, 1, 0])],
        selector=selector,
        max_completion_length=1,
    )
    made = advantages(trainer)
    assert made[0, 2] == 0
    assert made[0, 0] > 0 > made[0, 1] == made[0, 3]


def test_a_row_without_a_score_that_others_have_is_left_out(tmp_path):
    a = Table("a", [1.0, 0.0, 0.5, 0.0, None, None, None, None])
    b = Table("b", [1.0, 0.0, None, 0.0, 0.0, 1.0, math.inf, 0.0])
    trainer = make(tmp_path, [a, b], selector="pareto-rank")
    made = advantages(trainer)
    assert made[0, 2] == made[1, 2] == 0
    assert made[0, 0] > 0 > made[0, 1] == made[0, 3]
    assert made[1, 1] > 0 > made[1, 0] == made[1, 3]  # `a` does not apply to the second group


def test_a_batch_where_nothing_applies_trains_nothing(tmp_path, caplog):
    trainer = make(tmp_path, [never])
    assert (advantages(trainer) == 0).all()
    assert trainer._metrics["train"]["pareto/zero_signal_share"] == [1.0]


def test_a_broken_verifier_raises_nothing_and_trl_prints_no_row(tmp_path, caplog):
    class Broken:
        objectives = ("sense",)

        def score(self, trajectories):
            raise OSError("no route to the judge")

    trainer = make(tmp_path, [Broken()])
    with caplog.at_level(logging.WARNING):
        assert (advantages(trainer) == 0).all()
    assert "8 of 8 rows left out" in caplog.text
    assert "no route to the judge" in caplog.text
    assert "returned None for the following kwargs" not in caplog.text


# ------------------------------------------------------------------------------------------------ reward sources


def test_verifiers_functions_and_names_mix(tmp_path):
    verifier = Marks()
    given = [length, verifier, "trajectory_control", slowly]
    kept = list(given)
    trainer = make(tmp_path, given, reward_weights=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert given == kept
    assert trainer.objectives == ("length", "brief", "kind", "trajectory_control", "slowly")
    trainer.train()
    assert len(verifier.batches) == trainer.args.max_steps, "a verifier is called once per batch"
    log = logged(trainer)[0]
    assert {f"rewards/{name}/mean" for name in trainer.objectives} <= set(log)
    assert math.isfinite(log["objective/brief/benign"])
    assert "objective/kind/benign" not in log, "an objective that never applies has no mean"


def test_trajectories_of_plain_rows_carry_the_task(tmp_path):
    verifier = Marks()
    data = prompts(kind=["harmful", "benign", "attacked", "benign"], answer=["1", "2", "3", "4"])
    trainer = make(tmp_path, [verifier, length], data=data)
    advantages(trainer)
    (batch,) = verifier.batches
    assert [t.task.kind for t in batch] == ["harmful"] * 4 + ["benign"] * 4
    assert batch[0].task.data == {"answer": "1"}
    assert batch[0].prompt == batch[0].task.messages == ({"role": "user", "content": "look who is owed"},)
    assert all(t.completion_ids and len(t.policy_mask) == len(t.completion_ids) for t in batch)
    assert {t.stop for t in batch} <= {"answer", "length"}
    assert {"objective/length/harmful", "objective/length/benign"} <= set(trainer._metrics["train"])


def test_text_prompts_reach_verifiers_as_messages(tmp_path):
    verifier = Marks()
    trainer = make(tmp_path, [verifier], data=Dataset.from_dict({"prompt": ["pay alice"] * 4}))
    advantages(trainer)
    assert verifier.batches[0][0].prompt == ({"role": "user", "content": "pay alice"},)
    assert verifier.batches[0][0].messages[0]["role"] == "assistant"


def test_kinds_are_logged_for_plain_functions_with_a_kind_column_only(tmp_path):
    with_kind = make(tmp_path, [length], data=prompts(kind=["easy", "hard", "easy", "hard"]))
    without = make(tmp_path, [length])
    for trainer in (with_kind, without):
        advantages(trainer)
    assert {"objective/length/easy", "objective/length/hard"} <= set(with_kind._metrics["train"])
    assert not any(name.startswith("objective/") for name in without._metrics["train"])


def test_reward_model_and_environment_reward_are_objectives(tmp_path):
    class Room:
        def reset(self, **_):
            return None

        def wait(self) -> str:
            """Wait."""
            return "done"

        def get_reward(self) -> float:
            return 1.0

    tokenizer = tiny.make_tokenizer()
    torch.manual_seed(1)
    judge = LlamaForSequenceClassification(copy.deepcopy(tiny.make_model(tokenizer).config))
    judge.config.num_labels, judge.config._name_or_path = 1, "somebody/judge"
    trainer = make(
        tmp_path,
        [judge, length],
        more={"reward_processing_classes": [tokenizer, None], "environment_factory": Room},
    )
    assert trainer.objectives == ("judge", "length", "Room")
    trainer.train()
    assert trainer.reward_weights.tolist() == [1.0, 1.0, 1.0]
    assert logged(trainer)[0]["rewards/Room/mean"] == 1.0


def test_names_that_clash(tmp_path):
    like_ours = Table(COLUMN, [5.0] * 8)
    trainer = make(tmp_path, [like_ours, lambda completions, **_: [0.0] * 8, lambda completions, **_: [1.0] * 8])
    assert trainer.objectives == (COLUMN, "<lambda>", "<lambda>-2")
    advantages(trainer)
    assert trainer._metrics["train"][f"rewards/{COLUMN}/mean"] == [5.0]
    assert trainer._metrics["train"][COLUMN][0] != 5.0
    with pytest.raises(FateError, match="brief"):
        make(tmp_path, [Marks(), Marks()])


def test_one_reward_source_needs_no_list(tmp_path):
    assert make(tmp_path, length).objectives == ("length",)
    assert make(tmp_path, "security").objectives == ("security",)
    assert make(tmp_path, Marks()).objectives == ("brief", "kind")


def test_processing_classes_must_match(tmp_path):
    with pytest.raises(RecipeError, match="reward_processing_classes"):
        make(tmp_path, [Marks(), length], more={"reward_processing_classes": [None]})


# ------------------------------------------------------------------------------------------------ selectors


class OwnAdvantages:
    """A selector that sets advantages itself."""

    def __init__(self, shape=()):
        self.shape = shape

    def choose(self, scores_K_M, *, objectives, rng):
        return None

    def advantages(self, scores_G_N_M, *, objectives, valid_G_N):
        made = np.arange(valid_G_N.size, dtype=float).reshape(valid_G_N.shape)
        return made.reshape(*made.shape, *self.shape)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_selectors_own_advantages_replace_trls(tmp_path, shape):
    trainer = make(tmp_path, [Marks(broken={3})], more={"selector": OwnAdvantages(shape)}, max_completion_length=1)
    made = advantages(trainer).reshape(-1)
    assert made.tolist() == [0, 1, 2, 0, 4, 5, 6, 7]
    assert list(trainer._logs["advantages"]) == made.tolist()
    trainer.train()


@pytest.mark.parametrize(("said", "message"), [([[0.0] * 3] * 2, "shape"), ([[math.nan] * 4] * 2, "NaN")])
def test_a_selector_that_answers_nonsense_stops_the_run(tmp_path, said, message):
    class Nonsense:
        def reward(self, scores_G_N_M, *, objectives, valid_G_N):
            return said

    trainer = make(tmp_path, [length], more={"selector": Nonsense()})
    with pytest.raises(PluginError, match=message):
        advantages(trainer)


def test_weights_reach_the_selector_and_may_change_on_the_way(tmp_path):
    class Watcher:
        weights = None
        seen: list = []  # noqa: RUF012

        def reward(self, scores_G_N_M, *, objectives, valid_G_N):
            self.seen.append(dict(self.weights))
            return np.zeros(valid_G_N.shape)

    mine = Watcher()
    trainer = make(tmp_path, [length, mentions_good], more={"selector": mine}, reward_weights=[2.0, 0.0])
    advantages(trainer)
    trainer.reward_weights = torch.tensor([1.0, 3.0])
    advantages(trainer)
    assert Watcher.seen == [{"length": 2.0, "mentions_good": 0.0}, {"length": 1.0, "mentions_good": 3.0}]
    assert mine.weights is None, "the user's instance is not written to"


def test_an_objective_of_weight_0_is_only_logged(tmp_path):
    a, b = [1.0, 0.0, 0.5, 0.0] * 2, [0.0, 1.0, None, 1.0] * 2
    made = advantages(make(tmp_path, [Table("a", a), Table("b", b)], reward_weights=[1.0, 0.0], selector="pareto-rank"))
    assert (made.argmax(axis=1) == 0).all()
    assert (made[:, 2] != 0).all()


def test_selector_keyword_wins_over_the_configuration(tmp_path):
    trainer = make(
        tmp_path, [length], selector="gdpo", more={"selector": "product", "selector_args": {"weights": None}}
    )
    assert type(trainer._selector).__name__ == "Product"
    assert trainer.scale_rewards == "group"


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"selector": "pareto-front", "multi_objective_aggregation": "normalize_then_sum"}, {}, "gdpo"),
        ({"selector": "weighted-sum", "multi_objective_aggregation": "normalize_then_sum"}, {}, "gdpo"),
        ({"selector_args": {"epsilon": 7}}, {}, "epsilon"),
        ({"selector_args": {"weights": {"lenght": 2.0}}}, {}, "did you mean 'length'"),
        ({"selector_args": {"weights": {"length": 2.0}}, "reward_weights": [1.0]}, {}, "both"),
        ({}, {"selector": OwnAdvantages(), "selector_args": {"a": 1}}, "instance"),
        ({}, {"selector": object()}, "no selector"),
        ({"redraw_rounds": -1}, {}, "redraw_rounds"),
        ({"num_generations": 1}, {}, "num_generations"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, changes, more, message):
    with pytest.raises(RecipeError, match=message):
        make(tmp_path, [length], more=more, **changes)


def test_unknown_selector_is_a_plugin_error(tmp_path):
    with pytest.raises(PluginError, match="pareto-front"):
        make(tmp_path, [length], selector="pareto-frnt")


# ------------------------------------------------------------------------------------------------ drop-in


def test_plain_grpo_config_works_and_is_not_written_to(tmp_path, caplog):
    args = tiny.config(GRPOConfig, tmp_path)
    before = copy.deepcopy(args.to_dict())
    tokenizer = tiny.make_tokenizer()
    for _ in range(2):  # a configuration serves a second trainer
        trainer = PFPOTrainer(tiny.make_model(tokenizer), [length], args, prompts(), processing_class=tokenizer)
        trainer.train()
    assert args.to_dict() == before
    assert trainer.scale_rewards == "group"
    assert "becomes a full advantage" in caplog.text


def test_pfpo_config_is_not_written_to_and_defaults_by_selector(tmp_path):
    args = tiny.config(PFPOConfig, tmp_path)
    before = copy.deepcopy(args.to_dict())
    tokenizer = tiny.make_tokenizer()
    scales = []
    for selector in ("pareto-front", "weighted-sum", "gdpo", "product"):
        trainer = PFPOTrainer(
            tiny.make_model(tokenizer), [length], args, prompts(), processing_class=tokenizer, selector=selector
        )
        scales.append(trainer.scale_rewards)
    assert scales == ["none", "group", "group", "group"]
    assert args.to_dict() == before


def test_configuration_parses_from_a_command_line(tmp_path):
    parser = HfArgumentParser(PFPOConfig)
    words = [
        "--output_dir",
        str(tmp_path),
        "--selector",
        "product",
        "--selector_args",
        json.dumps({"weights": {"a": 2}}),
    ]
    (args,) = parser.parse_args_into_dataclasses([*words, "--redraw_rounds", "2", "--use_cpu", "--bf16", "false"])
    assert (args.selector, args.selector_args, args.redraw_rounds) == ("product", {"weights": {"a": 2}}, 2)
    assert args.scale_rewards is None


def test_without_a_configuration_there_is_a_pfpo_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class OnCpu(PFPOConfig):
        def __init__(self, output_dir):
            super().__init__(output_dir, use_cpu=True, bf16=False, report_to="none")

    monkeypatch.setattr("fate_trl.train.trainer.PFPOConfig", OnCpu)
    tokenizer = tiny.make_tokenizer()
    model = tiny.make_model(tokenizer)
    model.config._name_or_path = "somebody/tiny"
    trainer = PFPOTrainer(model, length, train_dataset=prompts(), processing_class=tokenizer)
    assert trainer.args.output_dir == "tiny-PFPO"


@pytest.mark.parametrize("fresh", [False, True], ids=["no peft_config", "a peft_config"])
def test_an_adapter_that_transformers_loaded_is_refused(tmp_path, fresh):
    """TRL would train nothing of it, or begin without it; peft's own class goes on from it."""
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    tiny.make_model(tiny.make_tokenizer()).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    more = {"peft_config": lora} if fresh else {}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with pytest.raises(RecipeError, match=r"AutoPeftModelForCausalLM\.from_pretrained"):
        make(tmp_path, length, model=loaded, more=more)
    learning = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", is_trainable=True)
    assert any(weights.requires_grad for weights in make(tmp_path, length, model=learning).model.parameters())


def test_a_training_that_could_change_nothing_is_refused(tmp_path):
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    frozen = get_peft_model(tiny.make_model(tiny.make_tokenizer()), lora).requires_grad_(False)
    with pytest.raises(RecipeError, match="all are frozen"):
        make(tmp_path, length, model=frozen).train()


def test_rollout_func(tmp_path):
    """Its mask and its extra fields reach verifiers and reward functions; new prompts do not inherit the fields."""

    def roll(prompts, trainer):
        ids = trainer.processing_class("done do", add_special_tokens=False)["input_ids"]
        rows = [
            trainer.processing_class.apply_chat_template(p, add_generation_prompt=True)["input_ids"] for p in prompts
        ]
        out = {"prompt_ids": rows, "completion_ids": [[*ids, i % 4 + 20] for i in range(len(rows))]}
        return {
            **out,
            "logprobs": [[0.0] * 4] * len(rows),
            "env_mask": [[1, 0, 1, 1]] * len(rows),
            "luck": [1.0] * len(rows),
        }

    def luck(luck, **_):
        return luck

    verifier = Marks()
    trainer = make(tmp_path, [verifier, luck], more={"rollout_func": roll}, redraw_rounds=1)
    trainer.train()
    assert {trajectory.policy_mask for trajectory in verifier.batches[0]} == {(1, 0, 1, 1)}
    assert logged(trainer)[0]["rewards/luck/mean"] == 1.0
    assert len(verifier.batches) > trainer.args.max_steps, "nothing was drawn anew"


def test_lora(tmp_path):
    peft = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make(tmp_path, [length, slowly], more={"peft_config": peft}, beta=0.1)
    before = tiny.state(trainer.model)
    trainer.train()
    after = tiny.state(trainer.model)
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_checkpoint_and_resume(tmp_path):
    make(tmp_path, [length, Marks()], save_strategy="steps", save_steps=1, max_steps=2).train()
    assert "PFPO" in (tmp_path / "README.md").read_text()
    again = make(tmp_path, [length, Marks()], save_strategy="steps", save_steps=1, max_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 3
    assert [row["step"] for row in again.state.log_history if "reward" in row] == [1, 2, 3]


def test_evaluation_with_groups_of_one(tmp_path):
    trainer = make(
        tmp_path,
        [length, Marks()],
        num_generations_eval=1,
        per_device_eval_batch_size=2,
        more={"eval_dataset": prompts()},
    )
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_reward"])
    assert math.isfinite(metrics["eval_objective/length/benign"])
    assert "eval_pareto/front_size" not in metrics, "a group of one has no front to speak of"
    assert trainer.state.global_step == 0


def test_completions_table_shows_the_column(tmp_path, monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.print_prompt_completions_sample", lambda *a, **k: None)
    trainer = trained(tmp_path, [length], log_completions=True, max_steps=1)
    assert len(trainer._logs["rewards"][COLUMN]) == 8
    assert list((tmp_path / "completions").glob("*.parquet"))
