"""Every policy loss of the family in PFPO's stage: a tiny policy with tools, from a recipe's key to moved weights."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
pytest.importorskip("tiny")

import tiny
import torch
from test_losses import FILE
from test_stages import learner, requests
from test_trainer import Table, make
from transformers import LlamaForCausalLM

from fate_trl import plugins
from fate_trl.errors import RecipeError
from fate_trl.recipe.components import components_of
from fate_trl.recipe.loading import make_recipe

LOSSES = {
    "gbpo": {},
    "rebel": {},
    "p3o": {},
    "dro": {},
    "a-star-po": {},
    "exo": {},
    "trpa": {},
    "hapo-clip": {},
    "dcpo": {},
    "kl-by-kind": {"factors": {"attacked": 2.0}},
    "kl-by-spread": {},
    "positive-nll": {},
}
PFPO = {"max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "num_generations": 4, "beta": 0.05}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny.make_tokenizer()
    tiny.acting_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def stage(name, **pfpo):
    return {**PFPO, "loss": {"name": f"{FILE}/{name}", "args": LOSSES[name]}, **pfpo}


def trained(folder, name, **more):
    """(log, weights before, weights after) of two steps."""
    keys = stage(name, num_iterations=2, **more)
    made = learner(folder, pfpo=keys)
    made.policy_loss = components_of(make_recipe({"suites": ["workbench"], "pfpo": keys})).policy_loss
    before = tiny.state(made.model)
    told = made.pfpo(requests(made, "pfpo"), 3)
    return [entry for entry in told["log"] if "loss" in entry], before, tiny.state(made.model)


@pytest.mark.parametrize("name", LOSSES)
def test_it_trains(folder, name):
    log, before, after = trained(folder, name)
    assert len(log) == 2
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in log)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(value.isfinite().all() for value in after.values())


def test_every_loss_of_the_family_is_tried():
    assert set(LOSSES) == set(plugins.components(str(FILE), "policy loss"))


@pytest.mark.parametrize("name", ["rebel", "exo", "dcpo"])
def test_on_packed_groups_loss_and_gradient_are_the_same_to_rounding(folder, tmp_path, name):
    """On one generation: rows that begin alike share their prefixes, in several calls of the model."""
    loss = plugins.load("policy loss", f"{FILE}/{name}", LOSSES[name])
    found = []
    for sharing in ({}, {"share_prefixes": True, "pack_tokens": 24}):
        rewards = Table("a", [1.0, 0.0, 0.5, 0.25, 0.0, 0.0, 1.0, 0.5])
        model = LlamaForCausalLM.from_pretrained(folder)
        more = {"loss": loss, "selector": "product"}
        trainer = make(tmp_path, [rewards], model=model, more=more, beta=0.05, **sharing)
        trainer.model.train()
        if not found:
            rows = [dict(trainer.train_dataset[i]) for i in (0, 1) for _ in range(4)]
            inputs = trainer._generate_and_score_completions(rows)
            inputs["old_per_token_logps"] = inputs["ref_per_token_logps"] - 0.1
        assert (trainer.sharing is not None) == bool(sharing)
        trainer.current_gradient_accumulation_steps = 1
        value = trainer._compute_loss(trainer.model, dict(inputs))
        value.backward()
        found.append((value.item(), torch.cat([p.grad.reshape(-1) for p in trainer.model.parameters()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
    assert found[0][1].abs().max() > 1e-3


@pytest.mark.parametrize("name", ["rebel", "p3o", "dro", "exo", "trpa"])
def test_groups_that_do_not_fit_a_micro_batch_are_refused_with_the_recipe(name):
    keys = stage(name, per_device_train_batch_size=6, gradient_accumulation_steps=2)
    with pytest.raises(RecipeError, match=r"pfpo.per_device_train_batch_size is 6, which is no multiple"):
        make_recipe({"suites": ["workbench"], "pfpo": keys})


@pytest.mark.parametrize("name", ["dro", "a-star-po", "exo", "trpa", "kl-by-kind", "kl-by-spread"])
def test_without_a_reference_it_is_refused_with_the_recipe(name):
    with pytest.raises(RecipeError, match=r"compares with the reference.*set pfpo.beta above 0"):
        make_recipe({"suites": ["workbench"], "pfpo": stage(name, beta=0.0)})
