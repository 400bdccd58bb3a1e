"""Methods that learn, in real training of a tiny model: killed and resumed, and taken back with the policy."""

from __future__ import annotations

import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
pytest.importorskip("tiny")

import tiny
from test_checkpoints import PFPO, At, Killed
from test_stages import learner, requests

from fate_trl import plugins
from fate_trl.hookspecs import Stateful
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.policies import load_policy, save_policy
from fate_trl.train import learner as torch_learner

METHODS = {
    "mixed-var": {"bundle": 2},
    "lagrangian": {"thresholds": {"security": 0.9, "utility": 0.9}, "rate": 0.5},
    "value-differences": {},
}


STEERING = {
    "losses/rebel": ({"eta": 2.0}, "pareto-front", {}),
    "losses/trpa": ({}, "pareto-front", {"beta": 0.1}),
    "control/kl-pid": ({"base": 1e-3, "low": 1e-4, "high": 2e-3}, "pareto-front", {"beta": 0.1}),
    "control/hypervolume-weights": ({}, "pareto-front", {}),
    "control/gradient-weights": ({"every": 2}, "weighted-sum", {}),
    "control/min-norm": ({}, "weighted-sum", {}),
}
"""Arguments, the selector beside it, and keys of pfpo."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny.make_tokenizer()
    tiny.acting_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def made_with(folder, name):
    arguments, selector, keys = STEERING.get(name, (METHODS.get(name), f"advantages/{name}", {}))
    made = learner(folder, pfpo=PFPO | {"redraw_rounds": 0, "max_steps": 6, "learning_rate": 1e-3, **keys})
    made.selector = plugins.load("selector", selector, METHODS.get(name, {}))
    family = name.rpartition("/")[0]
    if family == "losses":
        made.policy_loss = plugins.load("policy loss", name, arguments)
    elif family == "control":
        made.callbacks = [plugins.load("callback", name, arguments)]
    made.learning = made.callbacks[0] if made.callbacks else made.selector
    made.keep_states_of({"selector": made.selector, "callback-0": made.learning})
    return made


@pytest.mark.parametrize("name", [*METHODS, *STEERING])
def test_killed_and_resumed_it_equals_a_run_that_was_not(folder, tmp_path, monkeypatch, name):
    """Losses, weights and state, to the bit."""
    whole = made_with(folder, name)
    unbroken = whole.pfpo(requests(whole, "pfpo"), 3, str(tmp_path / "whole"))

    def kill():
        raise Killed

    first = made_with(folder, name)
    monkeypatch.setattr(torch_learner, "_Steps", lambda reporter: At(4, kill))
    with pytest.raises(Killed):
        first.pfpo(requests(first, "pfpo"), 3, str(tmp_path / "part"))
    monkeypatch.undo()
    last = made_with(folder, name)
    resumed = last.pfpo(requests(last, "pfpo"), 3, str(tmp_path / "part"))
    losses = [[e["loss"] for e in summary["log"] if "loss" in e] for summary in (resumed, unbroken)]
    assert losses[0] == losses[1]
    assert any(losses[0])
    after, wanted = tiny.state(last.model), tiny.state(whole.model)
    assert all((after[key] == wanted[key]).all() for key in wanted)
    if isinstance(last.learning, Stateful):
        assert last.learning.state_dict() == whole.learning.state_dict()
        assert last.learning.state_dict() != made_with(folder, name).learning.state_dict(), "it learned something"
    if name in METHODS:
        assert resumed["selector"] == last.selector.metrics()


@pytest.mark.parametrize("name", ["control/hypervolume-weights", "control/gradient-weights", "control/kl-pid"])
def test_a_callback_goes_back_with_a_round_that_is_rolled_back(folder, tmp_path, name):
    run, made = RunDirectory(tmp_path), made_with(folder, name)
    load_policy(made, run, 0)
    before = made.learning.state_dict()
    made.pfpo(requests(made, "pfpo"), 3)
    learned = made.learning.state_dict()
    assert learned != before
    save_policy(made, run, "rounds/01/policy")
    load_policy(made, run, 0)
    assert made.learning.state_dict() == before
    load_policy(made, run, 1)
    assert made.learning.state_dict() == learned


def test_a_round_that_is_rolled_back_takes_the_state_along(folder, tmp_path):
    """As the rounds do it: the base is saved, a round is trained and saved, and the base is loaded again."""
    run, made = RunDirectory(tmp_path), made_with(folder, "lagrangian")
    load_policy(made, run, 0)
    before = made.selector.multipliers()
    made.pfpo(requests(made, "pfpo"), 3)
    learned = made.selector.multipliers()
    assert learned != before
    save_policy(made, run, "rounds/01/policy")
    load_policy(made, run, 0)
    assert made.selector.multipliers() == before
    load_policy(made, run, 1)
    assert made.selector.multipliers() == learned
