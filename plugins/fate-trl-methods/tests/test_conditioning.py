"""Weights in the prompt: what a row is rewarded by, and that one policy follows them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

import worlds

from fate_trl import RecipeError, pareto
from fate_trl.recipe.loading import make_recipe

NAMES = ("security", "utility")
ANGLES = np.linspace(0.0, np.pi / 2, 7)
FRONT_R_M = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
"""Seven ways to answer, none of which dominates another."""


def with_weights(weights_G_N_M):
    shape = np.shape(weights_G_N_M)[:2]
    return dataclasses.replace(worlds.row_facts(resolved=np.zeros(shape, bool)), weights_G_N_M=np.array(weights_G_N_M))


def ask(scores, weights, **arguments):
    selector = worlds.make("preference-conditioned", **arguments)
    return worlds.ask(selector, np.array(scores, float), NAMES, rows=with_weights(weights))


def test_preference_conditioned_rewards_each_row_by_the_weights_in_its_prompt():
    scores = [[[1, 0], [0, 1]], [[1, 0], [0, 1]]]
    said = ask(scores, [[[0.8, 0.2]] * 2, [[0.1, 0.9]] * 2])
    assert said == pytest.approx(np.array([[0.3, -0.3], [-0.4, 0.4]]))


def test_preference_conditioned_counts_alike_where_a_prompt_says_nothing_and_leaves_out_what_does_not_apply():
    nothing = [[[np.nan, np.nan]] * 2]
    assert ask([[[1, 0.5], [0, 0.5]]], nothing) == pytest.approx(np.array([[0.25, -0.25]]))
    assert ask([[[1, np.nan], [0, np.nan]]], [[[0.3, 0.7]] * 2]) == pytest.approx(np.array([[0.5, -0.5]]))


def test_preference_conditioned_by_the_angle_prefers_what_points_along_the_weights():
    scores = [[[0.5, 0.5], [1.0, 0.0]]]
    weights = [[[0.5, 0.5]] * 2]
    assert ask(scores, weights)[0, 0] == pytest.approx(0.0)
    assert ask(scores, weights, align=1.0)[0, 0] > 0.1


def trained(draw, steps=600, seed=0):
    """Logits over the ways to answer, linear in the weights of the prompt (and a constant), (3, R)."""
    rng, theta = np.random.default_rng(seed), np.zeros((3, len(FRONT_R_M)))
    for _ in range(steps):
        weights_G_M = draw(rng)
        input_G_3 = np.column_stack([np.ones(len(weights_G_M)), weights_G_M])
        share_G_R = shares(theta, input_G_3)
        roles_G_N = np.array([rng.choice(len(FRONT_R_M), 8, p=share_R) for share_R in share_G_R])
        said = ask(FRONT_R_M[roles_G_N], np.repeat(weights_G_M[:, None], 8, axis=1))
        picked_G_N_R = roles_G_N[:, :, None] == np.arange(len(FRONT_R_M))
        step_G_R = (said[:, :, None] * (picked_G_N_R - share_G_R[:, None])).mean(axis=1)
        theta = theta + 3.0 * input_G_3.T @ step_G_R / len(weights_G_M)
    return theta


def shares(theta, input_G_3):
    odds_G_R = np.exp(input_G_3 @ theta - (input_G_3 @ theta).max(axis=1, keepdims=True))
    return odds_G_R / odds_G_R.sum(axis=1, keepdims=True)


def swept(theta):
    """Mean scores of the policy as the first weight goes from 1 to 0, (11, M)."""
    weights = np.linspace(1, 0, 11)
    return shares(theta, np.column_stack([np.ones(11), weights, 1 - weights])) @ FRONT_R_M


def test_preference_conditioned_policy_traces_a_front_when_the_weights_are_swept():
    conditioned = swept(trained(lambda rng: rng.dirichlet([1.0, 1.0], 6)))
    fixed = swept(trained(lambda rng: np.full((6, 2), 0.5)))
    assert (np.diff(conditioned[:, 0]) < 0).all(), "the less security counts, the less there is of it"
    assert (np.diff(conditioned[:, 1]) > 0).all()
    assert conditioned[0, 0] > 0.8
    assert conditioned[-1, 1] > 0.8
    volumes = [pareto.hypervolume(points, np.zeros(2)) for points in (conditioned, fixed)]
    assert volumes[0] > volumes[1] + 0.1


def test_preference_conditioned_needs_prompts_that_say_weights():
    values = {"suites": ["workbench"], "selector": "advantages/preference-conditioned"}
    with pytest.raises(RecipeError, match="prompt_weights"):
        make_recipe(values)
    assert make_recipe({**values, "prompt_weights": {}}).prompt_weights.alpha == 1.0
