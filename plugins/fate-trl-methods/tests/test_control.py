"""The family `control`: each callback by what shows that it works; those that steer, on tiny models."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tiny")
import fate_trl_methods.control as family
import tiny
import torch
from fate_trl_methods.gradients import last_block, shortest
from test_trainer import Table, length, make
from transformers import LlamaForCausalLM, TrainerCallback

from fate_trl import plugins
from fate_trl.errors import RecipeError


def load(name, **arguments):
    return plugins.load("callback", f"{family.__file__}/{name}", arguments)


class World:
    """A trainer, as far as callbacks see it: what it measured, beta, weights."""

    def __init__(self, beta=0.05, objectives=("a", "b", "c"), weights=None):
        self.beta, self.objectives = beta, objectives
        self.reward_weights = torch.tensor(weights or [1.0] * len(objectives))
        self.accelerator = SimpleNamespace(reduce=lambda tensor, reduction: tensor, device="cpu")
        self.measured = {}


def steps(callback, world, measured):
    """Betas after each step."""
    out = []
    for kl in measured:
        world.measured = {"kl": kl, "entropy": 1.0}
        callback.on_step_end(None, None, None)
        out.append(world.beta)
    return out


def again(callback, made):
    """Another one, with the state of the first, through JSON."""
    made.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    return made


# ------------------------------------------------------------------------------------------------ divergence


def test_kl_pid_raises_beta_after_a_spike_and_recovers():
    callback, world = load("kl-pid"), World()
    callback.attach(world)
    betas = steps(callback, world, [0.01] * 3 + [8.0] * 2 + [0.01] * 40)
    assert betas[:3] == [0.05] * 3
    assert betas[4] > betas[3] > 0.05, "within a step of the spike"
    assert betas[-1] == 0.05
    falling = betas[4:]
    assert falling == sorted(falling, reverse=True)


def test_kl_pid_goes_on_after_a_resume():
    callback, world = load("kl-pid"), World()
    callback.attach(world)
    callback.learn(np.full((1, 4, 1), 0.5), objectives=["a"], valid_G_N=np.ones((1, 4), bool))
    steps(callback, world, [8.0] * 3)
    other = World()
    resumed = load("kl-pid")
    resumed.attach(other)
    assert other.beta == 0.05
    again(callback, resumed)
    assert other.beta == world.beta > 0.05
    assert steps(resumed, other, [3.0, 0.1]) == steps(callback, world, [3.0, 0.1])


def test_kl_pid_bears_more_while_the_reward_grows():
    thresholds = {}
    for name, means in {"grows": [0.1, 0.5, 0.9], "falls": [0.9, 0.5, 0.1], "leaps": [-5.0, 5.0, 15.0]}.items():
        callback = load("kl-pid")
        for mean in means:
            callback.learn(np.full((2, 4, 2), mean), objectives=["a", "b"], valid_G_N=np.ones((2, 4), bool))
        thresholds[name] = callback.metrics()["kl-pid/threshold"]
    assert 0.1 <= thresholds["falls"] < 0.3 < thresholds["grows"] < thresholds["leaps"] == 0.6


def folder_of(path):
    tokenizer = tiny.make_tokenizer()
    tiny.make_model(tokenizer).save_pretrained(path)
    return path


def test_kl_pid_steers_a_trainer(tmp_path):
    """A large rate moves a tiny policy away; beta follows, within the training and its log."""
    callback = load("kl-pid", base=0.01, low=0.001, high=0.02)
    model = LlamaForCausalLM.from_pretrained(folder_of(tmp_path))
    rewards = Table("a", *[[1.0, 0.0, 0.5, 0.25] * 2] * 8)
    more = {"callbacks": [callback], "selector": "product"}
    trainer = make(tmp_path, [rewards], model=model, more=more, beta=0.01, learning_rate=0.1, max_steps=8)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "callback/kl-pid/beta" in entry]
    assert len(log) == 8
    assert log[0]["callback/kl-pid/beta"] == 0.01
    assert trainer.beta > 0.01
    assert callback.trainer is None, "the trainer is let go"


@pytest.mark.parametrize("since", ["start", "sampled"])
def test_kl_stop_takes_no_step_after_a_large_one(tmp_path, since):
    """The second of four updates on the same samples finds the policy too far away: planted by a huge rate."""
    model = LlamaForCausalLM.from_pretrained(folder_of(tmp_path))
    callback = load("kl-stop", limit=0.05, since=since)
    settings = {"learning_rate": 0.5, "num_iterations": 4, "max_steps": 4, "lr_scheduler_type": "constant"}
    beta = {"beta": 1e-6} if since == "start" else {}
    rewards = Table("a", [1.0, 0.0, 0.5, 0.25] * 2, [1.0, 0.0, 0.5, 0.25] * 2)
    more = {"callbacks": [callback], "selector": "product"}
    trainer = make(tmp_path, [rewards], model=model, more=more, **settings, **beta)
    states = []
    trainer.add_callback(At(lambda: states.append(tiny.state(trainer.model))))
    trainer.train()
    assert not torch.equal(states[0]["lm_head.weight"], states[1]["lm_head.weight"]), "the planted step"
    assert all(torch.equal(states[1][name], states[-1][name]) for name in states[1])
    assert len(states) == (2 + 1 if since == "start" else 4 + 1)
    assert trainer.state.global_step == (2 if since == "start" else 4)
    assert callback.metrics()["kl-stop/dropped"] == (1 if since == "start" else 3)
    assert callback.metrics()["kl-stop/kl"] > 0.05


class At(TrainerCallback):
    """Looks at the weights before the first step and after each."""

    def __init__(self, look):
        self.look = look

    def on_train_begin(self, *_, **__):
        self.look()

    def on_step_end(self, *_, **__):
        self.look()


def test_kl_stop_within_the_limit_changes_nothing(tmp_path):
    def end(*callbacks):
        rewards = Table("a", *[[1.0, 0.0, 0.5, 0.25] * 2] * 3)
        more = {"callbacks": list(callbacks), "selector": "product"}
        trainer = make(tmp_path, [rewards], more=more, max_steps=3, num_iterations=2)
        trainer.train()
        return tiny.state(trainer.model)

    with_, without = end(load("kl-stop", limit=1e3, since="sampled")), end()
    assert all(torch.equal(with_[name], without[name]) for name in with_)


# ------------------------------------------------------------------------------------------------ hypervolume


def learn(callback, *means):
    callback.learn(np.array(means, float)[None, None, :], objectives=["a", "b"], valid_G_N=np.ones((1, 1), bool))
    return callback.metrics()


def test_hypervolume_weights_never_let_the_volume_fall():
    callback, rng = load("hypervolume-weights"), np.random.default_rng(0)
    volumes = []
    for a, b in rng.uniform(0, 1, (40, 2)):
        told = learn(callback, a, b)
        volumes.append(told["hypervolume-weights/volume"])
        assert 0.5 <= told["hypervolume-weights/factor"] < 2
    assert volumes == sorted(volumes)
    assert volumes[-1] > volumes[0] > 0
    assert len(callback.state_dict()["front"]) < 12, "only points that extend the front are kept"


def test_hypervolume_weights_are_those_of_the_gain():
    callback = load("hypervolume-weights")
    assert learn(callback, 0.5, 0.5)["hypervolume-weights/factor"] == pytest.approx(0.5 + 1.5 * np.tanh(0.25))
    assert learn(callback, 0.4, 0.4)["hypervolume-weights/factor"] == 0.5, "dominated: it adds nothing"
    resumed = again(callback, load("hypervolume-weights"))
    assert learn(resumed, 0.9, 0.2) == learn(callback, 0.9, 0.2)
    assert learn(callback, np.nan, 0.9)["hypervolume-weights/factor"] == 1.0


@pytest.mark.parametrize("scale_rewards", ["group", "none"])
def test_hypervolume_weights_act_on_the_advantages_where_groups_are_scaled_too(tmp_path, scale_rewards):
    """A factor on the rewards would cancel there: all advantages of both generations are as large with it."""
    batches = [[1.0, 0.0, 0.5, 0.25] * 2, [0.5, 0.0, 0.25, 0.125] * 2]
    seen = {}
    for callbacks in ((), (load("hypervolume-weights"),)):
        more = {"callbacks": list(callbacks), "selector": "product"}
        trainer = make(tmp_path, [Table("a", *batches)], more=more, scale_rewards=scale_rewards)
        trainer.model.train()
        rows = [dict(trainer.train_dataset[i]) for i in (0, 1) for _ in range(4)]
        seen[len(callbacks)] = [trainer._generate_and_score_completions(rows)["advantages"] for _ in batches]
    factor = 0.5 + 1.5 * np.tanh(0.4375)
    assert torch.allclose(seen[1][0], factor * seen[0][0])
    assert torch.allclose(seen[1][1], 0.5 * seen[0][1]), "the second generation is worse in all"


# ------------------------------------------------------------------------------------------------ gradients


class Pulled(World):
    """A model of one layer whose objectives pull where they are told to; `watch` is given a batch of it."""

    def __init__(self, pulls, **more):
        super().__init__(objectives=tuple("abcdef"[: len(pulls)]), **more)
        self.pulls = torch.tensor(pulls)
        self.model = torch.nn.Linear(self.pulls.size(1), 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)

    def batch(self):
        """Each objective's loss is minus its pull times the weights: rows are objectives, its own column is 1."""
        ratio_B_T = 1 + self.pulls @ self.model.weight.T
        columns = {name: torch.eye(len(self.pulls))[i] for i, name in enumerate(self.objectives)}
        return SimpleNamespace(ratio_B_T=ratio_B_T, columns=columns, mean=lambda values: values.sum())


def weighed(callback, world, count):
    callback.attach(world)
    for _ in range(count):
        callback.watch(world.batch())
        callback.on_step_end(None, None, None)
        weights = list(callback._weights.values())
        assert sum(weights) == pytest.approx(1)
        assert min(weights) >= 0
    return np.array(weights)


def test_gradient_weights_converge_to_the_aligned_objective():
    """Two that agree, the first of them more, and one that pulls against both."""
    world = Pulled([[1.0, 0.2], [0.8, 0.1], [-0.5, 0.3]])
    weights = weighed(load("gradient-weights", rate=0.2), world, 60)
    assert weights.argmax() == 0
    assert weights[0] > 0.7
    assert weights[2] < 0.01
    assert world.reward_weights.tolist() == pytest.approx((3 * weights).tolist(), abs=1e-6)


def test_gradient_weights_are_averaged_over_steps_and_go_on_after_a_resume():
    one, other = Pulled([[1.0, 0.0], [-0.4, 1.0]]), Pulled([[1.0, 0.0], [-0.4, 1.0]])
    callback = load("gradient-weights", every=3)
    before = weighed(callback, one, 2)
    assert before.tolist() == [0.5, 0.5], "nothing moves before the window is full"
    resumed = load("gradient-weights", every=3)
    resumed.attach(other)
    again(callback, resumed)
    for each, world in ((callback, one), (resumed, other)):
        each.watch(world.batch())
        each.on_step_end(None, None, None)
    assert callback._weights == resumed._weights != {"a": 0.5, "b": 0.5}
    assert torch.equal(one.reward_weights, other.reward_weights)


def test_min_norm_finds_the_shortest_of_the_hull():
    world = Pulled([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert weighed(load("min-norm", rate=1.0), world, 1) == pytest.approx([0.5, 0.5, 0.0], abs=1e-2)
    assert shortest(np.array([[4.0, 0.0], [0.0, 1.0]])) == pytest.approx([0.2, 0.8], abs=1e-3)
    assert shortest(np.array([[1.0, 2.0], [2.0, 9.0]])).tolist() == [1.0, 0.0], "one is shortest itself"


def test_min_norm_gives_a_step_that_helps_all():
    pulls = np.array([[3.0, 1.0], [-0.5, 1.0], [0.2, 0.4]])
    weights = weighed(load("min-norm", rate=1.0), Pulled(pulls.tolist()), 1)
    unit = pulls / np.linalg.norm(pulls, axis=1, keepdims=True)
    assert (unit @ (weights @ unit) > 0).all()


@pytest.mark.parametrize("name", ["gradient-weights", "min-norm"])
@pytest.mark.parametrize("share", [False, True], ids=["TRL's way", "shared prefixes"])
def test_weights_by_gradients_steer_a_trainer(tmp_path, name, share):
    """Two objectives that are one, and its opposite: the opposite loses weight, in the trainer that weighs."""
    values = [1.0, 0.0, 0.5, 0.25] * 2
    opposite = [1 - value for value in values]
    rewards = [Table("a", *[values] * 4), Table("b", *[values] * 4), Table("c", *[opposite] * 4)]
    callback = load(name)
    sharing = {"share_prefixes": True, "pack_tokens": 32} if share else {}
    more = {"callbacks": [callback], "selector": "weighted-sum"}
    trainer = make(tmp_path, rewards, more=more, max_steps=4, **sharing)
    trainer.train()
    assert sum(callback._weights.values()) == pytest.approx(1)
    assert trainer.reward_weights.tolist() == pytest.approx([3 * w for w in callback._weights.values()], abs=1e-6)
    if name == "gradient-weights":
        assert callback._weights["c"] < 1 / 3 < callback._weights["a"]
    logged = [entry for entry in trainer.state.log_history if f"callback/{name}/c" in entry]
    assert len(logged) == 4
    assert logged[0][f"callback/{name}/c"] == pytest.approx(1 / 3)


def test_gradients_are_those_of_the_last_block():
    model = tiny.make_model(tiny.make_tokenizer())
    names = {name for name, p in model.named_parameters() if any(p is each for each in last_block(model))}
    assert names
    assert all(name.startswith("model.layers.1.") for name in names)
    assert len(last_block(torch.nn.Linear(2, 1))) == 2


def test_gradient_weights_need_a_selector_that_weighs_and_weights_above_0(tmp_path):
    with pytest.raises(RecipeError, match=r"GradientWeights sets the objectives' weights.*ParetoFront does not weigh"):
        make(tmp_path, [length], model="no/such-model", more={"callbacks": [load("gradient-weights")]})
    more = {"callbacks": [load("gradient-weights")], "selector": "weighted-sum"}
    with pytest.raises(RecipeError, match=r"a weight of an objective is -1"):
        make(tmp_path, [length], more=more, reward_weights=[-1.0])


def test_kl_pid_and_kl_stop_need_a_reference(tmp_path):
    for name in ("kl-pid", "kl-stop"):
        with pytest.raises(RecipeError, match=r"compares with the reference.*beta above 0"):
            make(tmp_path, [length], model="no/such-model", more={"callbacks": [load(name)]})
