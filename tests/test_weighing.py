"""Prompts that carry weights: in PFPO's prompts and in evaluation's, and what a selector is told of them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tiny
from test_evolution import TINY, make, stages, watched
from test_stages import learner, requests

from fate_trl import metrics
from fate_trl.choose.selectors import ParetoFront
from fate_trl.errors import RecipeError
from fate_trl.loop.weighing import drawn, equal, sentence, weighed
from fate_trl.recipe.loading import make_recipe
from fate_trl.types import OBJECTIVES, RolloutRequest, Task


@pytest.fixture(autouse=True)
def no_intervals(monkeypatch):
    monkeypatch.setattr(metrics, "rows", lambda *_, **__: [])


def request(*messages):
    return RolloutRequest(Task("t", "s", "benign", messages), messages, "pfpo")


WEIGHTS = {"security": 0.7, "utility": 0.3}


def test_weights_stand_in_the_system_message():
    user = {"role": "user", "content": "Pay the bill."}
    assert sentence(WEIGHTS) == "Weights: security 0.70, utility 0.30."
    alone = weighed(request(user), WEIGHTS)
    assert alone.messages == ({"role": "system", "content": sentence(WEIGHTS)}, user)
    added = weighed(request({"role": "system", "content": "Be kind."}, user), WEIGHTS)
    assert added.messages[0]["content"] == f"Be kind.\n\n{sentence(WEIGHTS)}"
    assert len(added.messages) == 2
    assert alone.weights == added.weights == WEIGHTS


def test_weights_are_drawn_on_the_simplex_and_told_as_they_are_read():
    asked = [request({"role": "user", "content": "Pay."})] * 2000
    given = drawn(asked, OBJECTIVES, 1.0, np.random.default_rng(0))
    table = np.array([[each.weights[name] for name in OBJECTIVES] for each in given])
    assert np.allclose(table.sum(axis=1), 1.0, atol=0.021)
    assert np.allclose(table.mean(axis=0), 0.25, atol=0.02)
    assert all(each.messages[0]["content"] == sentence(each.weights) for each in given)
    narrow = drawn(asked, OBJECTIVES, 50.0, np.random.default_rng(0))
    assert np.std([each.weights["security"] for each in narrow]) < 0.05 < table[:, 0].std()


def test_pfpo_gets_weights_of_its_own_for_each_prompt_and_evaluation_the_same(tmp_path):
    run = make(tmp_path, TINY, {"prompt_weights": {"evaluate": {"security": 1.0, "utility": 0.0}}}, learner=watched())
    run()
    said = [each.weights for each in run.learner.prompts[0]]
    assert len({tuple(weights.values()) for weights in said}) == len(said) > 1
    assert all(list(weights) == list(OBJECTIVES) for weights in said)
    evaluated = run.run.cases("rounds/01/rollouts.jsonl", "eval-test")
    assert {t.prompt[0]["content"].rpartition("\n")[2] for t, _ in evaluated} == {
        "Weights: security 1.00, utility 0.00."
    }
    collected = run.run.cases("rounds/01/rollouts.jsonl", "collect")
    assert not any(re.search("Weights:", str(t.prompt)) for t, _ in collected)
    again = make(tmp_path / "again", TINY, {"prompt_weights": {}}, learner=watched())
    again()
    assert [each.weights for each in again.learner.prompts[0]] == said, "by the run's seed"
    assert stages(again.run, 1)["pfpo"]


def test_without_the_key_prompts_are_as_they_were(tmp_path):
    run = make(tmp_path, TINY, learner=watched())
    run()
    assert all(each.weights == {} and each.messages == each.task.messages for each in run.learner.prompts[0])


class Looks(ParetoFront):
    """Keeps what it is told of the rows."""

    def reward(self, scores_G_N_M, *, objectives, valid_G_N, rows):
        self.seen = [*getattr(self, "seen", []), (rows.weights_G_N_M, list(objectives))]
        return super().reward(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)


def test_a_selector_is_told_the_weights_of_each_row(tmp_path):
    tokenizer = tiny.make_tokenizer()
    tiny.acting_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made = learner(tmp_path, pfpo={"max_steps": 1})
    made.selector = selector = Looks()
    selector.state_dict, selector.load_state_dict = dict, lambda state: None  # one with state is not copied
    asked = [weighed(each, WEIGHTS) for each in requests(made, "pfpo")]
    made.pfpo(asked, 3)
    (told, objectives), *_ = selector.seen
    assert np.array_equal(told[..., objectives.index("security")], np.full(told.shape[:2], 0.7))
    assert np.isnan(told[..., objectives.index("over_refusal")]).all()
    assert equal(OBJECTIVES) == dict.fromkeys(OBJECTIVES, 0.25)


def test_weights_of_an_objective_that_nothing_scores_are_refused():
    with pytest.raises(RecipeError, match="securety"):
        make_recipe({"suites": ["workbench"], "prompt_weights": {"evaluate": {"securety": 1.0}}})
    with pytest.raises(RecipeError):
        make_recipe({"suites": ["workbench"], "prompt_weights": {"alpha": 0}})
