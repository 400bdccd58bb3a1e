"""Losses of one pair each, by what shows that they work, on log-probabilities that are given."""

from __future__ import annotations

import pytest
import torch

from fate_trl import plugins
from fate_trl.errors import RecipeError
from fate_trl.hookspecs import PairBatch, PairSide


def load(name, **arguments):
    return plugins.load("pair loss", f"preferences/{name}", arguments)


def side(ratios, turns):
    """One pair's side with these log-ratios to a reference of 0."""
    logps = torch.tensor([ratios], requires_grad=True)
    return PairSide(logps, torch.zeros_like(logps), torch.tensor([turns]))


def batch(chosen=(0.5, 0.0, 0.7), rejected=(-0.2, 0.0, 0.4), turns=(0, -1, 1), gap=0.5, beta=0.5):
    return PairBatch(side(chosen, turns), side(rejected, turns), torch.tensor([gap]), beta)


def dpo(given):
    margin = given.chosen.log_ratio_B - given.rejected.log_ratio_B
    return -torch.nn.functional.logsigmoid(given.beta * margin).mean()


def gradient(loss, given):
    loss(given).backward()
    return given.chosen.logps_B_T.grad[0].tolist(), given.rejected.logps_B_T.grad[0].tolist()


def test_dmpo_weighs_early_turns_more():
    given = batch((0.1, 0.1, 0.1, 0.1), (0.0,) * 4, (0, 1, 2, 3))
    chosen, _ = gradient(load("dmpo"), given)
    assert [value / chosen[0] for value in chosen] == pytest.approx([1, 0.605, 0.329, 0.135], abs=1e-3)
    evenly, _ = gradient(load("dmpo", gamma=1.0), batch((0.1,) * 4, (0.0,) * 4, (0, 1, 2, 3)))
    assert [value / evenly[0] for value in evenly] == pytest.approx([1, 0.75, 0.5, 0.25], abs=1e-6)


@pytest.mark.parametrize("gamma", [0.7, 1.0])
def test_dmpo_is_dpo_on_one_turn(gamma):
    given = batch(turns=(0, -1, 0))
    assert load("dmpo", gamma=gamma)(given).item() == pytest.approx(dpo(given).item(), abs=1e-6)


def test_mappo_pushes_the_rejected_side_down_by_the_gap():
    assert load("mappo")(batch(gap=1.0)).item() == pytest.approx(dpo(batch()).item(), abs=1e-6)
    for gap in (0.25, 0.5):
        chosen, rejected = gradient(load("mappo"), batch(gap=gap))
        assert -rejected[0] / chosen[0] == pytest.approx(gap)
    assert not any(gradient(load("mappo"), batch(gap=-0.5))[1])


@pytest.mark.parametrize("distance", ["squared", "backward-kl", "forward-kl"])
def test_reward_aware_is_at_rest_where_the_margin_is_the_gap(distance):
    loss = load("reward-aware", distance=distance, scale=2.0)

    def slope(margin):
        return gradient(loss, batch((margin / 0.5, 0.0, 0.0), (0.0, 0.0, 0.0), gap=0.3))[0][0]

    assert slope(0.6) == pytest.approx(0, abs=1e-6)
    assert slope(0.5) < 0 < slope(0.7), "below its target the margin rises, above it falls"
    assert loss(batch((1.2, 0.0, 0.0), (0.0,) * 3, gap=0.3)).item() == pytest.approx(0, abs=1e-6)


def test_arguments_are_checked():
    with pytest.raises(RecipeError, match="distance"):
        load("reward-aware", distance="cubed")
    with pytest.raises(RecipeError, match="gamma"):
        load("dmpo", gamma=0.0)
