"""Groups with the policy's greedy answer: one row of each, decoded greedily, compared with, and not trained on."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from test_checkpoints import At, Killed, losses
from test_stages import folder, learner, requests  # noqa: F401 (a fixture)

from fate_trl.errors import RecipeError
from fate_trl.recipe.loading import make_recipe
from fate_trl.suites.episodes import environment_factories
from fate_trl.train import learner as torch_learner
from fate_trl.train.config import PFPOConfig
from fate_trl.train.prefix.rollouts import Greedy
from fate_trl.train.rows import request_dataset
from fate_trl.train.trainer import PFPOTrainer
from fate_trl.verify.scoring import Security, Utility

torch.set_num_threads(1)

TEXTS = ["look who is owed", "pay alice", "steal from bob", "who is alice"]
WAYS = pytest.mark.parametrize("shared", [False, True], ids=["each by itself", "shared prefixes"])


class LessGreedy:
    """R less the greedy row's, as ReMax; of several objectives the sum."""

    greedy_row = True
    bounded = True

    def __init__(self):
        self.asked = []

    def choose(self, scores_K_M, *, objectives, rng): ...

    def advantages(self, scores_G_N_M, *, objectives, valid_G_N):
        self.asked.append(scores_G_N_M.copy())
        reward_G_N = np.nan_to_num(scores_G_N_M).sum(axis=2)
        return np.where(valid_G_N & valid_G_N[:, :1], reward_G_N - reward_G_N[:, :1], 0.0)


def ids_of(trainer, out, mask="completion_mask"):
    """Prompt and completion of each row, the latter by what was generated, masks aside."""
    prompts = [ids[kept.bool()].tolist() for ids, kept in zip(out["prompt_ids"], out["prompt_mask"], strict=True)]
    pad = trainer.processing_class.pad_token_id
    completions = [[token for token in ids.tolist() if token != pad] for ids in out["completion_ids"]]
    return list(zip(prompts, completions, strict=True))


def length(completion_ids, **_):
    """Scores that differ from row to row."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def make(where, shared=False, reward=length, selector=None, **changes):
    tokenizer = tiny.make_tokenizer()
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in TEXTS])
    keys = {"share_prefixes": shared, "temperature": 1.5, "loss_type": "dapo", **changes}
    config = tiny.config(PFPOConfig, where, **keys)
    chosen = LessGreedy() if selector is None else selector
    tiny.make_model(tokenizer).save_pretrained(where / "model")
    model = str(where / "model")  # TRL loads the reference from there
    return PFPOTrainer(model, [reward], config, data, processing_class=tokenizer, selector=chosen)


def step(trainer, texts=TEXTS[:2]):
    trainer.model.train()
    size = trainer.num_generations
    return trainer._generate_and_score_completions(
        [{"prompt": [{"role": "user", "content": text}]} for text in texts for _ in range(size)]
    )


def greedy_of(model, prompt, width, ends):
    """What a model says greedily, token by token."""
    ids, model = list(prompt), model.eval()
    while len(ids) < len(prompt) + width:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    model.train()
    return ids[len(prompt) :]


@WAYS
def test_exactly_one_row_of_each_group_is_the_greedy_decode(tmp_path, shared):
    trainer = make(tmp_path, shared)
    out = step(trainer)
    assert (trainer.sharing is not None) == shared
    for group in range(2):
        rows = ids_of(trainer, out)[4 * group : 4 * group + 4]
        wanted = greedy_of(trainer.model, rows[0][0], trainer.max_completion_length, trainer.eos_token_ids)
        assert [said == wanted for _, said in rows] == [True, False, False, False]


@WAYS
def test_the_greedy_row_gets_no_loss_and_the_others_their_advantage_exactly(tmp_path, shared):
    trainer = make(tmp_path, shared)
    out = step(trainer)
    (scores_G_N_M,) = trainer._selector.asked
    reward_G_N = scores_G_N_M[:, :, 0]
    assert np.allclose(out["advantages"].reshape(2, 4).numpy(), reward_G_N - reward_G_N[:, :1])
    rows = out["completion_mask"].reshape(2, 4, -1).sum(dim=2)
    assert (rows[:, 0] == 0).all()
    assert (rows[:, 1:] > 0).all()
    assert out["num_items_in_batch"] == out["completion_mask"].sum()


def gradient_of(trainer, out):
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    inputs = {key: value for key, value in out.items() if key != "row"}
    trainer._compute_loss(trainer.model, inputs).backward()
    return {name: values.grad.clone() for name, values in trainer.model.named_parameters() if values.grad is not None}


@WAYS
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_what_the_greedy_row_says_changes_no_gradient(tmp_path, shared, beta):
    """With packed rows, too, and with a KL term, which needs no advantage."""
    trainer = make(tmp_path, shared, beta=beta)
    out = step(trainer)
    before = gradient_of(trainer, out)
    spoilt = {**out, "completion_ids": out["completion_ids"].clone()}
    spoilt["completion_ids"][[0, 4]] = 9
    if beta:
        spoilt["ref_per_token_logps"] = out["ref_per_token_logps"].clone()
        spoilt["ref_per_token_logps"][[0, 4]] = -3.0
    after = gradient_of(trainer, spoilt)
    assert any(values.abs().max() > 0 for values in before.values())
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


@WAYS
def test_a_constant_added_to_the_rewards_changes_nothing(tmp_path, shared):
    def raised(**told):
        return [score + 5 for score in length(**told)]

    outs = []
    for reward in (length, raised):
        trainer = make(tmp_path, shared, reward)
        torch.manual_seed(3)
        outs.append(step(trainer))
    assert torch.equal(outs[0]["completion_ids"], outs[1]["completion_ids"])
    assert torch.allclose(outs[0]["advantages"], outs[1]["advantages"])


@WAYS
def test_groups_that_are_drawn_again_have_a_greedy_row_too(tmp_path, shared):
    def dull(prompts, completion_ids, **_):
        return [
            0.0 if "alice" in p[0]["content"] else float(sum(i) % 7)
            for p, i in zip(prompts, completion_ids, strict=True)
        ]

    trainer = make(tmp_path, shared, dull, redraw_rounds=4)
    out = step(trainer, ["pay alice", "look who is owed"])
    assert trainer._metrics["train"]["pareto/redrawn_groups"] == [1.0]
    for first in (0, 4):
        prompt, said = ids_of(trainer, out)[first]
        assert said == greedy_of(trainer.model, prompt, trainer.max_completion_length, trainer.eos_token_ids)
    rows = out["completion_mask"].reshape(2, 4, -1).sum(dim=2)
    assert (rows[:, 0] == 0).all()
    assert (rows[:, 1:] > 0).all()
    assert out["num_items_in_batch"] == out["completion_mask"].sum()


@WAYS
def test_a_greedy_row_that_calls_tools_stays_greedy_after_their_results(tmp_path, shared):
    """Each turn of it is what a greedy decode says behind all that came before, tools' results included."""
    tokenizer, suite = tiny.make_tokenizer(), tiny.TillSuite()
    tasks = list(suite.tasks("train", 0))
    keys = {"max_completion_length": 40, "max_tool_calling_iterations": 3, "temperature": 1.0, "share_prefixes": shared}
    made = PFPOTrainer(
        tiny.acting_model(tokenizer),
        [Security(), Utility()],
        tiny.config(PFPOConfig, tmp_path, **keys),
        request_dataset(tiny.requests_for(tasks[:2])),
        processing_class=tokenizer,
        environment_factory=environment_factories({"till": suite}, tasks),
        selector=LessGreedy(),
    )
    made.model.train()
    rows = [row for row in made.train_dataset for _ in range(4)]
    called = 0
    with made._in_step() as record:
        made._scored(rows)
        prompts, completions, masks, _ = record.generated
    for first in (0, 4):
        ids, mask = list(completions[first]), list(masks[first])
        context = list(prompts[first])
        called += 0 in mask
        for at, own in enumerate(mask):
            if own:
                with torch.no_grad():
                    logits = made.model.eval()(torch.tensor([[*context, *ids[:at]]])).logits[0, -1]
                assert logits[ids[at]] >= logits.max() - 1e-4, at
    assert called, "a tool was called by a greedy row"


def test_what_is_appended_to_a_marked_prompt_leaves_it_marked():
    followed = Greedy([1]).__add__([2]) + [3]  # noqa: RUF005 (a new list would have no mark)
    assert isinstance(followed, Greedy)
    assert followed == [1, 2, 3]


def test_evaluation_and_rollouts_have_no_greedy_row(tmp_path):
    trainer = make(tmp_path)
    trainer.model.eval()
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in TEXTS[:2] for _ in range(4)]
    out = trainer._generate_and_score_completions(rows)
    assert (out["completion_mask"].sum(dim=1) > 0).all()
    with trainer._in_step():
        assert not any(trainer._greedy_rows(8))


class Watches:
    """A policy loss that keeps which rows were told to it as valid."""

    def __init__(self):
        self.seen = []

    def columns(self, scores_G_N_M, *, reward_G_N, objectives, valid_G_N):
        self.seen.append((valid_G_N.copy(), reward_G_N.copy()))
        return {"mean": np.where(valid_G_N, np.nanmean(reward_G_N, axis=1, keepdims=True), 0.0)}

    def __call__(self, batch):
        self.valid_B = batch.valid_B
        return batch.mean(batch.logps_B_T)


def test_policy_losses_are_not_told_of_the_greedy_row(tmp_path):
    tokenizer, loss = tiny.make_tokenizer(), Watches()
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in TEXTS])
    trainer = PFPOTrainer(
        tiny.make_model(tokenizer),
        [length],
        tiny.config(PFPOConfig, tmp_path),
        data,
        processing_class=tokenizer,
        selector=LessGreedy(),
        loss=loss,
    )
    out = step(trainer)
    trainer.current_gradient_accumulation_steps = 1
    ((valid_G_N, reward_G_N),) = loss.seen
    assert valid_G_N.tolist() == [[False, True, True, True]] * 2
    assert np.isnan(reward_G_N[:, 0]).all()
    trainer._compute_loss(trainer.model, out)
    assert loss.valid_B.tolist() == [False, True, True, True] * 2


def trained(folder, scratch=None, shared=False):  # noqa: F811
    made = learner(folder, pfpo={"max_steps": 4, "save_steps": 1, "use_cpu": True, "beta": 0.0})
    made.selector = LessGreedy()
    made.recipe.share_prefixes = shared
    return made, made.pfpo(requests(made, "pfpo"), 3, scratch)


@WAYS
def test_killed_and_resumed_it_ends_with_the_same_weights(folder, tmp_path, monkeypatch, shared):  # noqa: F811
    def kill():
        raise Killed

    whole, unbroken = trained(folder, str(tmp_path / "whole"), shared)
    monkeypatch.setattr(torch_learner, "_Steps", lambda reporter: At(2, kill))
    with pytest.raises(Killed):
        trained(folder, str(tmp_path / "part"), shared)
    monkeypatch.undo()
    last, resumed = trained(folder, str(tmp_path / "part"), shared)
    assert losses(resumed) == losses(unbroken)
    after, wanted = tiny.state(last.model), tiny.state(whole.model)
    assert all(torch.equal(after[key], wanted[key]) for key in wanted)


SELECTOR = """
from fate_trl import Component, hookimpl
class Compares:
    greedy_row = True
    def choose(self, scores_K_M, *, objectives, rng): ...
    def advantages(self, scores_G_N_M, *, objectives, valid_G_N): ...
@hookimpl
def fate_trl_selectors():
    return [Component("compares", Compares, "compares with the greedy row")]
"""


@pytest.mark.parametrize("section", ["pfpo", "rollout"])
@pytest.mark.parametrize("engine", ["use_vllm", "use_transformers_continuous_batching"])
def test_engines_that_sample_all_rows_alike_are_refused_before_a_model_loads(tmp_path, engine, section):
    file = tmp_path / "compares.py"
    file.write_text(SELECTOR)
    keys = {"suites": ["workbench"], "selector": str(file)}
    with pytest.raises(RecipeError, match=f"Compares compares with a greedy row of each group, and with {engine}"):
        make_recipe({**keys, section: {engine: True}})
    make_recipe(keys)


def test_a_group_of_one_and_engines_of_its_own_are_refused_by_the_trainer(tmp_path):
    with pytest.raises(RecipeError, match="a group needs at least 2 completions"):
        make(tmp_path, num_generations=1)
    tokenizer = tiny.make_tokenizer()
    data = Dataset.from_list([{"prompt": text} for text in TEXTS])
    with pytest.raises(RecipeError, match="and with rollout_func all rows are sampled alike"):
        PFPOTrainer(
            tiny.make_model(tokenizer),
            [length],
            tiny.config(PFPOConfig, tmp_path),
            data,
            processing_class=tokenizer,
            selector=LessGreedy(),
            rollout_func=lambda prompts, trainer: {},
        )
