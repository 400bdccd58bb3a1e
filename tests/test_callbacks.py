"""Callbacks of plugins in PFPO's trainer and in a recipe; and losses and callbacks of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_selector_state import Pull
from test_stages import folder, learner, requests  # noqa: F401
from test_trainer import Table, length, make, same_bits, trained
from transformers import LlamaForCausalLM, TrainerCallback

from fate_trl.errors import PluginError, RecipeError
from fate_trl.recipe.components import components_of, plugins_of
from fate_trl.recipe.loading import make_recipe

REWARDS = [1.0, 0.0, 0.5, 0.25, 1.0, 0.0, 0.5, 0.25]


class Watching:
    """Takes note of what it is told."""

    def __init__(self, factor=1.0):
        self.factor, self.events, self.batches, self.seen = factor, [], [], []

    def attach(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **_):
        self.events.append("begin")

    def on_step_end(self, args, state, control, model=None, **_):
        assert model is self.trainer.model
        self.events.append(state.global_step)
        self.seen.append(self.trainer.measured)

    def columns(self, scores_G_N_M, *, reward_G_N, objectives, valid_G_N):
        return {"score": scores_G_N_M[:, :, 0]}

    def watch(self, batch):
        self.batches.append(batch)

    def reshape(self, advantages):
        return advantages * self.factor

    def metrics(self):
        return {"watching/batches": len(self.batches)}


def test_an_object_is_told_what_it_has_methods_for_and_changes_nothing_by_watching(tmp_path):
    def run(*callbacks):
        rewards = Table("a", *[REWARDS] * 3)
        return trained(tmp_path, [rewards], more={"selector": "product", "callbacks": list(callbacks)}, max_steps=3)

    callback = Watching()
    watched, plain = run(callback), run()
    assert same_bits(watched, plain)
    assert callback.events == ["begin", 1, 2, 3]
    assert len(callback.batches) == 3
    assert sorted(callback.batches[0].columns["score"].tolist()) == sorted(REWARDS)
    assert callback.batches[0].logps_B_T.requires_grad
    assert [entry["callback/watching/batches"] for entry in watched.state.log_history[:3]] == [0, 1, 2]
    assert all(set(measured) == {"entropy"} for measured in callback.seen)
    assert callback.seen[0]["entropy"] == pytest.approx(watched.state.log_history[0]["entropy"])


def test_what_trl_measured_is_the_mean_over_a_steps_micro_batches(tmp_path, folder):  # noqa: F811
    callback = Watching()
    more = {"selector": "product", "callbacks": [callback]}
    model = LlamaForCausalLM.from_pretrained(folder)
    changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "beta": 0.1}
    trainer = make(tmp_path, [Table("a", *[REWARDS] * 2)], model=model, more=more, **changes)
    trainer.train()
    for measured, entry in zip(callback.seen, trainer.state.log_history[:2], strict=True):
        assert measured["entropy"] == pytest.approx(entry["entropy"])
        assert measured["kl"] == pytest.approx(entry["kl"], abs=1e-9)


def test_it_reshapes_advantages_in_training_alone(tmp_path):
    callback = Watching(factor=3.0)
    more = {"selector": "product", "callbacks": [callback]}
    trainer = make(tmp_path, [Table("a", *[REWARDS] * 2)], more=more, scale_rewards="none")
    rows = [dict(trainer.train_dataset[i]) for i in (0, 1) for _ in range(4)]
    trainer.model.train()
    scaled = trainer._generate_and_score_completions(rows)["advantages"]
    trainer.model.eval()
    plain = trainer._generate_and_score_completions(rows)["advantages"]
    assert torch.allclose(scaled, 3 * plain)
    assert plain.abs().max() > 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda advantages: advantages.mul_(float("nan")), "must return finite advantages"),
        (lambda advantages: advantages.tolist(), "must return a tensor of shape"),
        (lambda advantages: advantages.numpy(), "must return a tensor of shape"),
    ],
    ids=["NaN in place", "a list", "an array"],
)
def test_advantages_that_cannot_be_learned_from_are_an_error_that_names_it(tmp_path, spoil, said):
    class Spoils(Watching):
        def reshape(self, advantages):
            return spoil(advantages)

    with pytest.raises(PluginError, match=f"Spoils: reshape {said}"):
        make(tmp_path, [length], more={"callbacks": [Spoils()]}).train()


@pytest.mark.parametrize("said", [None, {"a": "high"}, [1.0]], ids=str)
def test_metrics_that_are_no_numbers_are_an_error_that_names_it(tmp_path, said):
    class Odd(Watching):
        def metrics(self):
            return said

    with pytest.raises(PluginError, match="Odd: metrics must return numbers by name"):
        make(tmp_path, [length], more={"callbacks": [Odd()]}).train()


def test_advantages_of_another_shape_are_an_error_that_names_it(tmp_path):
    class Short(Watching):
        def reshape(self, advantages):
            return advantages[:1]

    with pytest.raises(PluginError, match="Short: reshape must return a tensor of shape"):
        make(tmp_path, [length], more={"callbacks": [Short()]}).train()


class Learns(Pull):
    """A callback that learns as a selector does; it has no other member of a selector that counts here."""


def test_it_learns_once_per_generation_beside_a_selector_and_keeps_its_state(tmp_path):
    callback, selector = Learns(), Pull()
    trainer = make(tmp_path, [length], more={"selector": selector, "callbacks": [callback]}, max_steps=4)
    trainer.train()
    assert callback.mean == selector.mean != 0
    assert len(callback.rows) == 4
    state = trainer.state_dict()["components"]
    assert state == {"selector": {"mean": selector.mean}, "callback-0": {"mean": callback.mean}}
    trainer.load_state_dict({"metrics": {}, "components": {"callback-0": {"mean": 0.125}}})
    assert callback.mean == 0.125


def test_a_callback_of_transformers_is_taken_as_it_is(tmp_path):
    class Own(TrainerCallback):
        steps = 0

        def on_step_end(self, *_, **__):
            self.steps += 1

    own = Own()
    trainer = make(tmp_path, [length], more={"callbacks": [own]}, max_steps=2)
    trainer.train()
    assert own.steps == 2
    assert list(trainer.components_told) == []


# ------------------------------------------------------------------------------------------------ recipes

PAGE = Path(__file__).parent.parent / "docs/method.md"


@pytest.fixture
def documented(tmp_path):
    """Files of the documentation, as they stand there, by name."""
    found = dict(re.findall(r'```python title="(\w+\.py)"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL))
    for name in ("halves.py", "taper.py"):
        (tmp_path / name).write_text(found[name])
    return tmp_path


def recipe(**pfpo):
    return make_recipe({"suites": ["workbench"], "pfpo": pfpo})


def test_the_loss_and_the_callback_of_the_documentation_train(folder, documented):  # noqa: F811
    keys = {"loss": {"name": str(documented / "halves.py"), "args": {"pull": 0.5}}, "beta": 0.04, "max_steps": 3}
    keys["callbacks"] = [{"name": str(documented / "taper.py"), "args": {"to": 0.01}}]
    made = learner(folder, pfpo=keys)
    components = components_of(recipe(**keys))
    made.policy_loss, made.callbacks = components.policy_loss, components.callbacks
    before = tiny.state(made.model)
    told = made.pfpo(requests(made, "pfpo"), 3)
    after = tiny.state(made.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    betas = [entry["callback/taper/beta"] for entry in told["log"] if "loss" in entry]
    assert betas == pytest.approx([0.04, 0.03, 0.02])
    assert made.rollout(requests(made)[:2], 1), "rollouts go without them"


def test_the_documented_loss_sees_the_side_alone(tmp_path, documented, folder):  # noqa: F811
    """Rewards ten times as far apart train the same bits, as TRL's loss does not."""

    def run(factor, loss):
        rewards = [0.5 + factor * (reward - 0.5) for reward in REWARDS]
        model = LlamaForCausalLM.from_pretrained(folder)
        more = {"loss": loss, "selector": "product"}
        settings = {"max_steps": 1, "beta": 0.04, "scale_rewards": "none"}
        return trained(tmp_path, [Table("a", rewards)], model=model, more=more, **settings)

    halves = str(documented / "halves.py")
    assert same_bits(run(1, halves), run(0.125, halves))
    assert not same_bits(run(1, None), run(0.125, None))


def test_components_of_pfpo_are_checked_with_the_recipe(documented):
    halves, taper = str(documented / "halves.py"), str(documented / "taper.py")
    made = recipe(loss=halves, callbacks=[taper], beta=0.1)
    assert plugins_of(made) == sorted(["fate-trl", halves, taper])
    assert made.pfpo.trl == {"beta": 0.1}
    assert type(components_of(made).policy_loss).__name__ == "Halves"
    for keys, said in (
        ({"loss": halves}, r"Halves compares with the reference.*set pfpo.beta above 0"),
        ({"callbacks": [taper]}, r"Taper compares with the reference"),
        ({"loss": halves, "beta": 0.1, "loss_type": "grpo"}, r"pfpo.loss_type says something of TRL's loss"),
        ({"loss": halves, "beta": 0.1, "vespo_k_pos": 1.0}, r"pfpo.vespo_k_pos says something of TRL's loss"),
        ({"loss": {"name": halves, "args": {"pul": 1}}, "beta": 0.1}, r"does not take 'pul'; did you mean 'pull'"),
    ):
        with pytest.raises(RecipeError, match=said):
            recipe(**keys)
    with pytest.raises(PluginError, match="no policy loss 'nowhere'"):
        recipe(loss="nowhere")
    with pytest.raises(PluginError, match="no callback 'nowhere'"):
        recipe(callbacks=["nowhere"])


GROUPED = """
from fate_trl import Component, hookimpl

class Grouped:
    whole_groups = True
    needs = ("securty",)
    def __call__(self, batch): ...

class Weighing:
    weighs = True

@hookimpl
def fate_trl_policy_losses():
    return [Component("grouped", Grouped, "x")]

@hookimpl
def fate_trl_callbacks():
    return [Component("weighing", Weighing, "x")]
"""


def test_whole_groups_objectives_and_weights_are_asked_for_in_the_recipe(tmp_path):
    file = tmp_path / "grouped.py"
    file.write_text(GROUPED)
    sizes = {"num_generations": 4, "gradient_accumulation_steps": 2}
    with pytest.raises(RecipeError, match=r"pfpo.per_device_train_batch_size is 6.*no multiple of num_generations = 4"):
        recipe(loss=str(file), per_device_train_batch_size=6, **sizes)
    with pytest.raises(RecipeError, match=r"the policy loss Grouped needs the objective 'securty'.*'security'"):
        recipe(loss=str(file), per_device_train_batch_size=8, **sizes)
    with pytest.raises(RecipeError, match=r"Weighing sets the objectives' weights.*ParetoFront does not weigh"):
        recipe(callbacks=[str(file)])
    weighing = {"suites": ["workbench"], "selector": "weighted-sum", "pfpo": {"callbacks": [str(file)]}}
    assert len(components_of(make_recipe(weighing)).callbacks) == 1


def test_without_pfpo_nothing_is_asked():
    assert np.size(components_of(make_recipe({"suites": ["workbench"], "pfpo": None})).callbacks) == 0
