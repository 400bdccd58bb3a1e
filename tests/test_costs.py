"""The cost of tool calls as an objective."""

import pytest

from fate_trl import plugins
from fate_trl.errors import RecipeError
from fate_trl.types import Task, ToolCall, Trajectory

TASK = Task("t", "s", "benign", (), tools=("look", "pay"))


def cost(*names, replayed=0, **arguments):
    calls = tuple(ToolCall(name) for name in names)
    verifier = plugins.load("verifier", "tool_cost", arguments)
    return verifier.score([Trajectory(TASK, calls=calls, replayed=replayed)])[0]["tool_cost"]


def test_it_falls_evenly_from_free_to_budget():
    values = [cost(*["look"] * n, budget=6, free=2).value for n in range(8)]
    assert values == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]


def test_prices_and_replayed_calls():
    assert cost("pay", "look", budget=10, free=0, prices={"pay": 4}).value == 0.5
    assert cost("pay", "look", budget=10, free=0, prices={"pay": 4}, replayed=1).value == 0.9
    assert cost(*["look"] * 9, free=0, budget=1, prices={"look": 0}).value == 1


def test_it_says_what_to_do():
    score = cost(*["look"] * 4, budget=6, free=2)
    assert score.reason == "4 calls cost 4, of 6"
    assert score.feedback


@pytest.mark.parametrize("arguments", [{"free": 16}, {"budget": 0}, {"prices": {"pay": -1}}])
def test_what_cannot_work_is_said(arguments):
    with pytest.raises(RecipeError):
        plugins.load("verifier", "tool_cost", arguments)
