"""ReMax: by its formula on given scores, and in trainings of tiny models."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
pytest.importorskip("tiny")

import torch
from test_greedy_row import WAYS, greedy_of, ids_of, length, make, step
from test_stages import folder, learner, requests  # noqa: F401 (a fixture)

from fate_trl import plugins
from fate_trl.errors import RecipeError
from fate_trl.recipe.loading import make_recipe

torch.set_num_threads(1)

NAMES = ["security", "utility"]


def load(**arguments):
    return plugins.load("selector", "advantages/remax", arguments)


def ask(scores, valid=None, **arguments):
    scores_G_N_M = np.asarray(scores, float)
    valid_G_N = np.ones(scores_G_N_M.shape[:2], bool) if valid is None else np.asarray(valid)
    return load(**arguments).advantages(scores_G_N_M, objectives=NAMES[: scores_G_N_M.shape[2]], valid_G_N=valid_G_N)


def test_remax_is_the_reward_less_the_greedy_rows():
    scores = [[[0.5], [1.0], [0.0], [0.5]], [[1.0], [0.2], [1.0], [0.3]]]
    assert ask(scores).tolist() == [[0.0, 0.5, -0.5, 0.0], [0.0, -0.8, 0.0, -0.7]]


def test_remax_a_constant_added_to_the_rewards_changes_nothing_and_a_factor_scales():
    scores = np.random.default_rng(0).random((3, 4, 2))
    assert np.allclose(ask(scores + 7), ask(scores))
    assert np.allclose(ask(3 * scores), 3 * ask(scores)), "there is no division by a deviation"


def test_remax_groups_whose_greedy_row_broke_have_no_baseline():
    scores = np.array([[[np.nan], [1.0], [0.0]], [[0.5], [np.nan], [1.0]]])
    assert ask(scores, ~np.isnan(scores[:, :, 0])).tolist() == [[0, 0, 0], [0, 0, 0.5]]


def test_remax_objectives_count_by_their_weights_or_by_a_base():
    scores = [[[0.5, 0.0], [1.0, 0.5]]]
    assert ask(scores, weights={"utility": 3.0}).tolist() == [[0.0, 0.5]]
    assert ask([[[0.5, 1.0], [1.0, 0.0]]], weights={"utility": 3.0})[0, 1] == pytest.approx(0.125 - 0.75)
    assert ask([[[0.5, 0.5], [1.0, 0.5]]], base="product").tolist() == [[0.0, 0.25]]
    with pytest.raises(RecipeError, match="base: advantages/adora sets advantages, and remax needs rewards"):
        load(base="advantages/adora")


def test_remax_as_a_base_brings_its_greedy_row_along():
    assert load().greedy_row
    assert plugins.load("selector", "advantages/aspo", {"base": "advantages/remax"}).greedy_row
    assert not plugins.load("selector", "advantages/aspo", {}).greedy_row


@WAYS
def test_remax_of_a_training_compares_with_exactly_one_greedy_decode(tmp_path, shared):
    trainer = make(tmp_path, shared, selector=load())
    out = step(trainer)
    said = ids_of(trainer, out)
    reward_B = torch.tensor(length([ids for _, ids in said]))
    for first in (0, 4):
        wanted = greedy_of(trainer.model, said[first][0], trainer.max_completion_length, trainer.eos_token_ids)
        group = slice(first, first + 4)
        assert [ids == wanted for _, ids in said[group]] == [True, False, False, False]
        assert torch.allclose(out["advantages"][group], reward_B[group] - reward_B[first])
        assert not out["completion_mask"][first].any(), "it gets no gradient"


@pytest.mark.parametrize("keys", [{}, {"share_prefixes": True}], ids=["plain", "shared prefixes"])
def test_remax_trains_a_stage_with_the_one_key(folder, keys):  # noqa: F811
    made = learner(folder, pfpo={"max_steps": 2, "use_cpu": True})
    made.recipe.share_prefixes = bool(keys)
    made.selector = load()
    told = made.pfpo(requests(made, "pfpo"), 3)
    assert told["steps"] == 2
    assert all(np.isfinite(entry["loss"]) for entry in told["log"] if "loss" in entry)


def test_remax_is_refused_where_all_rows_are_sampled_alike():
    with pytest.raises(RecipeError, match="ReMax compares with a greedy row"):
        make_recipe({"suites": ["workbench"], "selector": "advantages/remax", "rollout": {"use_vllm": True}})
