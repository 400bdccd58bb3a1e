"""Selectors that learn, and that are told facts about rows: in the trainer, its checkpoints, and beside the policy."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tiny
import torch
from test_checkpoints import PFPO, At, Killed
from test_stages import PAY, folder, learner, requests  # noqa: F401
from test_trainer import Table, advantages, length, make

from fate_trl.errors import LedgerError, PluginError, RecipeError
from fate_trl.hookspecs import Choice
from fate_trl.ledger.components import read_states, restore, states_of
from fate_trl.suites.episodes import environment_factories
from fate_trl.suites.scripted import perform
from fate_trl.train import learner as torch_learner
from fate_trl.train.config import PFPOConfig
from fate_trl.train.facts import fact_of, rows_of, turns_of
from fate_trl.train.rows import request_dataset
from fate_trl.train.trainer import PFPOTrainer


class Pull:
    """Pulls towards a running mean that it learns; keeps what it was told."""

    def __init__(self, mean=0.0):
        self.mean, self.asked, self.rows = mean, 0, []

    def choose(self, scores_K_M, *, objectives, rng):
        return Choice(0, (0,), "only") if len(scores_K_M) else None

    def advantages(self, scores_G_N_M, *, objectives, valid_G_N):
        self.asked += 1
        return np.nansum(scores_G_N_M, axis=2) - self.mean

    def learn(self, scores_G_N_M, *, objectives, valid_G_N, rows):
        self.mean += 0.25 * (float(np.nansum(scores_G_N_M, axis=2).mean()) - self.mean)
        self.rows.append(rows)

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]

    def metrics(self):
        return {"mean": self.mean}


# ------------------------------------------------------------------------------------------------ learning


def test_it_learns_once_per_generation_and_not_in_evaluation(tmp_path):
    selector = Pull()
    trainer = make(tmp_path, [length], more={"selector": selector}, num_iterations=2, max_steps=4)
    trainer.train()
    assert len(selector.rows) == 2, "two iterations on each of two generations"
    assert trainer._selector is selector, "one with state is not copied: what it learned is its user's to see"
    logged = [entry["selector/mean"] for entry in trainer.state.log_history if "selector/mean" in entry]
    assert logged[-1] == selector.mean
    before = selector.mean
    trainer.model.eval()
    trainer._generate_and_score_completions([dict(trainer.train_dataset[0])] * 4)
    assert selector.mean == before
    assert len(selector.rows) == 2


def test_it_is_asked_about_redrawn_groups_and_does_not_learn_from_them(tmp_path):
    selector = Pull()
    dull, telling = [0.0] * 4 + [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]
    trainer = make(
        tmp_path, [Table("a", dull, telling)], more={"selector": selector}, redraw_rounds=1, num_generations=4
    )
    trainer.model.train()
    advantages(trainer)
    assert selector.asked == 2
    assert len(selector.rows) == 1
    assert selector.mean == 0.25 * 10 / 8


def test_a_selector_that_compares_groups_is_not_redrawn(tmp_path):
    class Whole(Pull):
        whole_batch = True

    with pytest.raises(RecipeError, match=r"redraw_rounds=1.*Whole compares"):
        make(tmp_path, [length], more={"selector": Whole()}, redraw_rounds=1)


def test_an_objective_that_a_selector_needs_must_be_there(tmp_path):
    class Needs(Pull):
        needs = ("securty",)

    with pytest.raises(RecipeError, match=r"needs the objective 'securty'.*did you mean 'security'"):
        make(tmp_path, [Table("security")], more={"selector": Needs()})


# ------------------------------------------------------------------------------------------------ shapes and facts


def test_a_wrong_number_of_tokens_is_an_error_that_names_the_selector(tmp_path):
    class Wide(Pull):
        def advantages(self, scores_G_N_M, *, objectives, valid_G_N, rows):
            return np.zeros((*valid_G_N.shape, rows.turn_G_N_T.shape[2] + 1))

    class Blind(Pull):
        def advantages(self, scores_G_N_M, *, objectives, valid_G_N):
            return np.zeros((*valid_G_N.shape, 99))

    class Flat(Pull):
        def advantages(self, scores_G_N_M, *, objectives, valid_G_N):
            return np.zeros(valid_G_N.size)

    for selector, message in ((Wide(), "must be"), (Blind(), "99 tokens wide"), (Flat(), "must be")):
        trainer = make(tmp_path, [length], more={"selector": selector})
        with pytest.raises(PluginError, match=rf"selector {type(selector).__name__}.*{message}"):
            advantages(trainer)


def test_advantages_by_token_are_trained_on_and_padding_gets_none(tmp_path):
    class ByToken(Pull):
        def advantages(self, scores_G_N_M, *, objectives, valid_G_N, rows):
            return np.where(rows.turn_G_N_T >= 0, np.arange(1.0, rows.turn_G_N_T.shape[2] + 1), 0.0)

    trainer = make(tmp_path, [length], more={"selector": ByToken()}, pad_to_multiple_of=8, max_completion_length=6)
    trainer.model.train()
    out = trainer._generate_and_score_completions([dict(trainer.train_dataset[0])] * 4)
    own, said = out["completion_mask"].bool(), out["advantages"]
    assert said.shape == out["completion_ids"].shape
    assert (said[~own] == 0).all()
    assert (said == torch.arange(1.0, said.size(1) + 1))[own].all()
    trainer.train()


def test_turns_are_runs_of_the_policys_tokens():
    assert turns_of([1, 1, 0, 0, 1, 0, 1]).tolist() == [0, 0, -1, -1, 1, -1, 2]
    assert turns_of([0, 1]).tolist() == [-1, 0]
    assert turns_of([]).tolist() == []


def test_facts_of_real_episodes_reach_the_selector(tmp_path):
    """A model that calls tools, on the till: what was called, in which turn, from which state."""
    selector = Pull()
    suite, task = tiny.TillSuite(), tiny.make_task(1)
    tokenizer = tiny.make_tokenizer()
    trainer = PFPOTrainer(
        tiny.acting_model(tokenizer),
        ["security", "utility"],
        tiny.config(PFPOConfig, tmp_path, max_completion_length=64, num_generations=4),
        request_dataset(tiny.requests_for([task], "pfpo")),
        processing_class=tokenizer,
        environment_factory=environment_factories({"till": suite}, [task]),
        selector=selector,
    )
    look, pay = tiny.call("look"), tiny.call("pay", to="alice")
    tiny.say(trainer, [[look, pay, "done<|end|>"], [look + "", "done<|end|>"], [pay, "done<|end|>"], ["done"]])
    trainer.model.train()
    trainer._generate_and_score_completions([trainer.train_dataset[0] for _ in range(4)])
    (rows,) = selector.rows
    assert rows.task_G_N.tolist() == [[f"till/{task.id}"] * 4]
    assert rows.kind_G_N.tolist() == [["benign"] * 4]
    assert rows.calls_G_N.tolist() == [[("look", "pay"), ("look",), ("pay",), ()]]
    assert rows.call_turns_G_N.tolist() == [[(0, 1), (0,), (0,), ()]]
    assert rows.path_G_N[0, 0][:1] == rows.path_G_N[0, 1] != rows.path_G_N[0, 2]
    assert rows.path_G_N[0, 0][1] != rows.path_G_N[0, 2][0], "paying after a look is another state"
    assert rows.prefix_G_N.tolist() == [[0] * 4]
    assert rows.resolved_G_N.tolist() == [[True, False, True, False]]
    assert rows.stop_G_N.tolist() == [["answer", "answer", "answer", "length"]]
    assert (rows.turn_G_N_T.max(axis=2) + 1).tolist() == [[3, 2, 2, 1]]
    written = [sum(len(tokenizer.tokenize(text)) for text in texts) for texts in ([look, pay, "done<|end|>"], ["done"])]
    assert rows.length_G_N[0, [0, 3]].tolist() == written
    assert np.isnan(rows.spread_G_N_M).all()
    assert rows.prompt_ids_G_N is None, "it does not ask for tokens"


def test_a_replayed_call_is_nobodys_turn():
    task = tiny.make_task(1)
    played = perform(tiny.TillSuite(), tiny.requests_for([task])[0], PAY)
    own = fact_of(played, [0.5, None], True)
    resumed = fact_of(dataclasses.replace(played, replayed=1, messages=played.messages[2:]), [None, None], False)
    rows = rows_of([own, resumed], np.array([[[0.5, 1.0], [1.0, np.nan]]]), np.ones((1, 2), bool), ["a", "b"])
    assert rows.call_turns_G_N.tolist() == [[(0, 1), (-1, 0)]]
    assert rows.prefix_G_N.tolist() == [[0, 1]]
    assert rows.path_G_N[0, 0] == rows.path_G_N[0, 1], "the same calls, the same states"
    assert rows.resolved_G_N.tolist() == [[False, True]], "what does not apply is not failed"
    assert rows.spread_G_N_M[0, 0, 0] == 0.5
    assert np.isnan(rows.spread_G_N_M[0, 0, 1])


# ------------------------------------------------------------------------------------------------ state


def pulled(folder, selector):  # noqa: F811
    made = learner(folder, pfpo=PFPO | {"redraw_rounds": 0})
    made.selector = selector
    made.keep_states_of({"selector": selector})
    return made


def test_killed_and_resumed_it_has_the_state_and_the_losses_of_a_run_that_was_not(folder, tmp_path, monkeypatch):  # noqa: F811
    def losses(summary):
        return [(e["loss"], e["selector/mean"]) for e in summary["log"] if "loss" in e]

    whole = pulled(folder, Pull())
    unbroken = whole.pfpo(requests(whole, "pfpo"), 3, str(tmp_path / "whole"))

    def kill():
        raise Killed

    first = pulled(folder, Pull())
    monkeypatch.setattr(torch_learner, "_Steps", lambda reporter: At(5, kill))
    with pytest.raises(Killed):
        first.pfpo(requests(first, "pfpo"), 3, str(tmp_path / "part"))
    monkeypatch.undo()
    last = pulled(folder, Pull())
    resumed = last.pfpo(requests(last, "pfpo"), 3, str(tmp_path / "part"))
    assert losses(resumed) == losses(unbroken)
    assert last.selector.mean == whole.selector.mean
    assert len(last.selector.rows) < len(whole.selector.rows), "it did not start again"
    assert resumed["selector"] == {"mean": last.selector.mean}
    assert len({mean for _, mean in losses(resumed)}) > 2


def test_a_policy_takes_its_selectors_state_along(folder, tmp_path):  # noqa: F811
    """What a round that is rolled back does: the state is that of the policy that is loaded."""
    made = pulled(folder, Pull())
    made.save(str(tmp_path / "base"))
    made.pfpo(requests(made, "pfpo")[:2], 3)
    learned = made.selector.mean
    assert learned != 0
    made.save(str(tmp_path / "one"))
    assert json.loads((tmp_path / "one" / "components.json").read_text())["selector"] == {"mean": learned}
    made.load(str(tmp_path / "base"))
    assert made.selector.mean == 0
    made.load(str(tmp_path / "one"))
    assert made.selector.mean == learned
    (tmp_path / "one" / "components.json").unlink()
    made.load(str(tmp_path / "one"))
    assert made.selector.mean == 0, "a policy without a state is one that nothing was learned with"


def test_a_state_that_is_damaged_or_of_another_component_is_said(tmp_path):
    (tmp_path / "components.json").write_text("{")
    with pytest.raises(LedgerError, match="cannot be read"):
        read_states(tmp_path)
    with pytest.raises(PluginError, match=r"selector Pull cannot go on .*KeyError"):
        restore({"selector": Pull()}, {"selector": {"other": 1}})

    class Odd(Pull):
        def state_dict(self):
            return {"mean": object()}

    with pytest.raises(PluginError, match="JSON"):
        states_of({"selector": Odd()})
