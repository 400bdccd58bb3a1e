"""A plugin's policy loss in PFPOTrainer: what it is told, equality with TRL's, whole groups, checkpoints, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from test_stages import folder, learner, requests  # noqa: F401
from test_trainer import Table, length, logged, make, prompts, same_bits, sometimes, trained
from transformers import LlamaForCausalLM

from fate_trl.errors import PluginError, RecipeError
from fate_trl.suites.episodes import environment_factories
from fate_trl.train.config import PFPOConfig
from fate_trl.train.rows import request_dataset
from fate_trl.train.trainer import PFPOTrainer


class Bnpo:
    """TRL's bnpo, as a plugin would write it, which keeps what it was given."""

    def __init__(self):
        self.batches = []

    def __call__(self, batch):
        self.batches.append(batch)
        ratio_B_T = batch.ratio_B_T
        kl_B_T = batch.kl_B_T if batch.beta else 0  # in TRL's order, as gradients add up
        clipped_B_T = ratio_B_T.clamp(1 - batch.epsilon_low, 1 + batch.epsilon_high)
        loss_B_T = -torch.min(ratio_B_T * batch.advantages_B_T, clipped_B_T * batch.advantages_B_T)
        return batch.mean(loss_B_T + batch.beta * kl_B_T)


class Grouped(Bnpo):
    """It needs whole groups, and a column."""

    whole_groups = True

    def columns(self, scores_G_N_M, *, reward_G_N, objectives, valid_G_N):
        within_G_N = np.cumsum(np.ones(valid_G_N.shape), axis=1)
        return {"within": within_G_N, "mean": np.broadcast_to(np.nanmean(reward_G_N, axis=1)[:, None], valid_G_N.shape)}


def with_reference(folder):  # noqa: F811
    """A fresh model that TRL can load once more, as the reference."""
    return LlamaForCausalLM.from_pretrained(folder)


# ------------------------------------------------------------------------------------------------ equal to TRL's


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta": 0.1, "epsilon": 0.1, "epsilon_high": 0.3},
        {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "max_steps": 4},
    ],
    ids=["plain", "reference", "iterations, accumulated"],
)
@pytest.mark.parametrize("selector", ["product", "weighted-sum"])
def test_bnpo_through_the_hook_is_trls_to_the_bit(tmp_path, folder, changes, selector):  # noqa: F811
    loss = Bnpo()
    settings = {"selector": selector, "max_steps": 3, "scale_rewards": "group", **changes}
    rewards = [length, sometimes]
    ours = trained(tmp_path, rewards, model=with_reference(folder), more={"loss": loss}, **settings)
    theirs = trained(tmp_path, rewards, model=with_reference(folder), loss_type="bnpo", **settings)
    assert loss.batches
    assert same_bits(ours, theirs)
    assert logged(ours) == logged(theirs)
    assert any(entry.get("grad_norm") for entry in logged(ours))


# ------------------------------------------------------------------------------------------------ what it is told


def test_it_is_told_the_selectors_reward_and_the_tokens_that_count(tmp_path, folder):  # noqa: F811
    """Groups of four whose rewards are known; the third row of the second group has an error."""
    loss = Grouped()
    rewards = Table("a", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, None, 8.0], [0.0] * 8)
    more = {"loss": loss, "selector": "product"}
    changes = {"max_steps": 1, "num_iterations": 1, "beta": 0.1, "temperature": 0.7}
    make(tmp_path, [rewards], model=with_reference(folder), more=more, **changes).train()
    (batch,) = loss.batches
    assert batch.reward_B.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 8.0]
    assert batch.valid_B.tolist() == [True] * 6 + [False, True]
    assert batch.group_B.tolist() == [0] * 4 + [1] * 4
    assert batch.columns["within"].tolist() == [1, 2, 3, 4, 1, 2, 0, 4]
    assert batch.columns["mean"][4:].tolist() == pytest.approx([19 / 3, 19 / 3, 0, 19 / 3])
    assert batch.advantages_B_T.shape == (8, 1)
    counts = batch.mask_B_T.bool()
    assert (batch.logps_B_T[counts] < 0).all()
    assert not batch.logps_B_T[~counts].any()
    assert torch.equal(batch.logps_B_T.detach(), batch.old_logps_B_T)
    assert batch.ref_logps_B_T[counts] == pytest.approx(batch.old_logps_B_T[counts], abs=1e-5)
    assert (batch.entropy_B_T[counts] > 0).all()
    assert not batch.entropy_B_T.requires_grad
    assert (batch.beta, batch.epsilon_low, batch.epsilon_high) == (0.1, 0.2, 0.2)
    assert batch.together_B_B.sum().item() == 4 * 4 + 3 * 3


class Mean:
    """A selector that sets advantages itself, by token."""

    def __init__(self, by_token=False):
        self.by_token = by_token

    def choose(self, scores_K_M, *, objectives, rng):
        raise AssertionError

    def advantages(self, scores_G_N_M, *, objectives, valid_G_N, rows):
        said_G_N = np.nan_to_num(scores_G_N_M[:, :, 0])
        return said_G_N[:, :, None] * np.ones(rows.turn_G_N_T.shape) if self.by_token else said_G_N


@pytest.mark.parametrize("by_token", [False, True])
def test_of_a_selector_that_sets_advantages_these_are_the_reward(tmp_path, by_token):
    loss = Grouped()
    rewards = Table("a", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    make(tmp_path, [rewards], more={"loss": loss, "selector": Mean(by_token)}, max_steps=1).train()
    assert loss.batches[0].reward_B.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert loss.batches[0].advantages_B_T.ndim == 2


def test_of_weighted_sum_the_users_sum_is_the_reward(tmp_path):
    loss = Grouped()
    one, two = Table("a", [1.0, 2.0, 3.0, 4.0] * 2), Table("b", [1.0, 0.0] * 4)
    changes = {"reward_weights": [1.0, 10.0], "selector": "weighted-sum", "max_steps": 1}
    make(tmp_path, [one, two], more={"loss": loss}, **changes).train()
    assert loss.batches[0].reward_B.tolist() == [11.0, 2.0, 13.0, 4.0] * 2


def test_logits_are_those_that_the_log_probabilities_are_of(tmp_path):
    class Reading(Bnpo):
        logits = True

    loss = Reading()
    make(tmp_path, [length], more={"loss": loss}, max_steps=1, temperature=0.7).train()
    (batch,) = loss.batches
    ids = batch.logits_B_T_V.log_softmax(dim=-1)
    entropy_B_T = -(ids.exp() * ids).sum(dim=-1)
    counts = batch.mask_B_T.bool()
    assert entropy_B_T[counts] == pytest.approx(batch.entropy_B_T[counts], abs=1e-4)
    assert not batch.logits_B_T_V.requires_grad
    assert (batch.logps_B_T[counts][:, None] - ids[counts]).abs().min(dim=1).values.max() < 1e-4


@pytest.mark.parametrize("share", [False, True], ids=["TRL's way", "shared prefixes"])
def test_each_micro_batch_holds_whole_groups(tmp_path, share):
    """Of episodes with tools, packed or not; TRL alone shuffles rows over micro-batches."""
    told = {}
    for whole in (True, False):
        loss = Grouped()
        loss.whole_groups = whole
        suite, tasks = tiny.TillSuite(), list(tiny.TillSuite().tasks("train", 0))
        tokenizer = tiny.make_tokenizer()
        changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8, "max_completion_length": 48}
        trainer = PFPOTrainer(
            tiny.acting_model(tokenizer),
            ["utility", "security"],
            tiny.config(PFPOConfig, tmp_path, share_prefixes=share, max_steps=1, **changes),
            request_dataset(tiny.requests_for(tasks)),
            processing_class=tokenizer,
            environment_factory=environment_factories({"till": suite}, tasks),
            loss=loss,
        )
        trainer.train()
        told[whole] = [batch.columns["within"].tolist() for batch in loss.batches]
        assert [batch.group_B is None for batch in loss.batches] == [not whole] * 2
        if whole:
            assert [batch.group_B.tolist() for batch in loss.batches] == [[0] * 4 + [1] * 4, [2] * 4 + [3] * 4]
    assert told[True] == [[1, 2, 3, 4] * 2] * 2
    assert share or told[False] != told[True]


def test_redrawn_groups_bring_their_own_columns(tmp_path):
    loss = Grouped()
    dull, telling = [5.0] * 4 + [1.0, 2.0, 3.0, 4.0], [6.0, 7.0, 8.0, 10.0]
    more = {"loss": loss, "selector": "product"}
    make(tmp_path, [Table("a", dull, telling)], more=more, redraw_rounds=1, max_steps=1).train()
    (batch,) = loss.batches
    assert batch.reward_B.tolist() == [6.0, 7.0, 8.0, 10.0, 1.0, 2.0, 3.0, 4.0]
    assert batch.columns["mean"].tolist() == [7.75] * 4 + [2.5] * 4
    assert batch.group_B.tolist() == [0] * 4 + [1] * 4


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "wrong",
    [0.5, None, torch.zeros(2, requires_grad=True), torch.tensor(0.5), torch.tensor(np.nan, requires_grad=True)],
)
def test_a_loss_that_returns_no_scalar_with_a_gradient_is_named(tmp_path, wrong):
    class Odd:
        def __call__(self, batch):
            return wrong

    with pytest.raises(PluginError, match="the policy loss Odd returned"):
        make(tmp_path, [length], more={"loss": Odd()}).train()


@pytest.mark.parametrize("column", [np.zeros(8), np.zeros((2, 3)), np.full((2, 4), np.inf), None, "no", [[1], [1, 2]]])
def test_a_column_that_does_not_fit_is_named(tmp_path, column):
    class Odd(Bnpo):
        def columns(self, scores_G_N_M, *, reward_G_N, objectives, valid_G_N):
            return {"odd": column}

    with pytest.raises(PluginError, match=r"Odd: column 'odd'"):
        make(tmp_path, [length], more={"loss": Odd()}).train()


class Referring(Bnpo):
    reference = True


class Needing(Bnpo):
    needs = ("securty",)


@pytest.mark.parametrize(
    ("loss", "changes", "message"),
    [
        (Referring, {}, r"Referring compares with the reference.*beta above 0"),
        (Grouped, {"per_device_train_batch_size": 2}, r"per_device_train_batch_size is 2.*num_generations = 4"),
        (Bnpo, {"loss_type": "grpo"}, "loss_type says something of TRL's loss"),
        (Bnpo, {"entropy_coef": 0.1}, "entropy_coef says something of TRL's loss"),
        (Needing, {}, "the policy loss Needing needs the objective 'securty'"),
    ],
)
def test_what_a_loss_cannot_have_is_said_before_a_model_loads(tmp_path, loss, changes, message):
    model = None if loss is Needing else "no/such-model"
    with pytest.raises(RecipeError, match=message):
        make(tmp_path, [length], model=model, more={"loss": loss()}, gradient_accumulation_steps=2, **changes)


def test_in_evaluation_groups_are_whole_too(tmp_path):
    more = {"loss": Grouped(), "eval_dataset": prompts()}
    sizes = {"num_generations_eval": 2, "per_device_eval_batch_size": 3}
    with pytest.raises(RecipeError, match=r"per_device_eval_batch_size is 3.*num_generations_eval = 2"):
        make(tmp_path, [length], more=more, **sizes)
    loss = Grouped()
    trainer = make(tmp_path, [length], more={**more, "loss": loss}, num_generations_eval=2, selector="product")
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    assert loss.batches[0].group_B.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
