"""listen-tournament, listen-utility and dual-reconstruction behind real servers on loopback."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

pytest.importorskip("fate_trl_judge", reason="not installed: pip install plugins/fate-trl-judge")

from fate_trl_judge.reconstruction import match

from fate_trl import plugins
from fate_trl.errors import RecipeError
from fate_trl.suites.scripted import perform, script_for
from fate_trl.testing.served import ScriptedServer, completion
from fate_trl.types import RolloutRequest

NAMES = ["security", "utility"]
FRONT = np.stack([np.linspace(1, 0, 9), np.linspace(0, 1, 9)], axis=1)
"""Nine candidates, none of which dominates another."""


def selector(name, server, **arguments):
    return plugins.load("selector", f"judge/{name}", {"url": server.url, "model": "m", "retries": 0, **arguments})


def choose(listening, scores, names=NAMES):
    return listening.choose(np.asarray(scores, float), objectives=names, rng=np.random.default_rng(0))


def secure(number, body):
    """A judge to whom the first objective is all."""
    rows = re.findall(r"(?m)^(\d+): security ([\d.]+)", body["messages"][-1]["content"])
    return completion(json.dumps({"choice": int(max(rows, key=lambda row: float(row[1]))[0])}))


@pytest.mark.parametrize(("size", "questions"), [(3, 4), (2, 8), (16, 1)])
def test_listen_tournament_finds_the_known_winner_in_few_rounds(size, questions):
    with ScriptedServer(secure) as server:
        listening = selector("listen-tournament", server, size=size)
        picked = choose(listening, FRONT[[4, 2, 0, 8, 1, 3, 5, 6, 7]])
        assert (picked.index, picked.decided_by) == (2, "listen-tournament")
        assert len(server.asked) == questions == listening.metrics()["asked"], "ceil(log K) rounds"
        assert listening.metrics()["broken"] == 0
        assert "never at the price of security" in server.asked[0][2]["messages"][0]["content"]


def test_listen_tournament_never_chooses_what_is_dominated_and_asks_nothing_where_there_is_no_choice():
    with ScriptedServer(lambda number, body: completion('{"choice": 0}')) as server:
        listening = selector("listen-tournament", server)
        assert choose(listening, [[0.1, 0.0], [1.0, 0.0], [0.0, 1.0]]).index == 1
        before = len(server.asked)
        assert choose(listening, [[1.0, 1.0], [0.5, 0.5]]).index == 0
        assert choose(listening, [[0.5, np.nan]]).index == 0
        assert choose(listening, np.zeros((0, 2))) is None
        assert len(server.asked) == before


@pytest.mark.parametrize("answer", ["the second", '{"choice": 7}', '{"choice": true}', "[1]", '{"choice": "0"}'])
def test_listen_tournament_falls_back_and_counts_a_broken_answer(answer):
    with ScriptedServer(lambda number, body: completion(answer)) as server:
        listening = selector("listen-tournament", server)
        picked = choose(listening, [[1.0, 0.0], [0.3, 0.9], [0.0, 1.0]])
        assert picked.index == 1, "the best mean"
        assert listening.metrics() == {"asked": 1.0, "broken": 1.0}


def test_listen_falls_back_where_the_server_fails():
    with ScriptedServer(lambda number, body: (500, {}, {"error": "down"})) as server:
        for name in ("listen-tournament", "listen-utility"):
            listening = selector(name, server)
            assert choose(listening, [[1.0, 0.0], [0.3, 0.9]]).index == 1
            assert listening.metrics()["broken"] == 1


def test_listen_utility_has_weights_on_the_simplex_and_keeps_them():
    said = {"weights": {"security": 6, "utility": 2}}
    with ScriptedServer(lambda number, body: completion("So: " + json.dumps(said))) as server:
        listening = selector("listen-utility", server)
        assert choose(listening, FRONT).index == 0
        assert listening.shares(NAMES).tolist() == [0.75, 0.25]
        choose(listening, FRONT[::-1])
        assert len(server.asked) == 1, "asked once for each set of objectives"
        resumed = selector("listen-utility", server)
        resumed.load_state_dict(json.loads(json.dumps(listening.state_dict())))
        assert choose(resumed, FRONT).index == 0
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "weights", [{"security": 1}, {"security": -1, "utility": 0}, "all", {"security": "x", "utility": 1}]
)
def test_listen_utility_counts_alike_what_it_cannot_read_and_asks_again(weights):
    with ScriptedServer(lambda number, body: completion(json.dumps({"weights": weights}))) as server:
        listening = selector("listen-utility", server)
        assert listening.shares(NAMES).tolist() == [0.5, 0.5]
        assert listening.shares(NAMES).tolist() == [0.5, 0.5]
        assert listening.metrics() == {"asked": 2.0, "broken": 2.0}


def test_listen_rewards_are_the_fronts():
    with ScriptedServer(secure) as server:
        listening = selector("listen-tournament", server)
        group = np.array([[[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]])
        rewards = listening.reward(group, objectives=NAMES, valid_G_N=np.ones((1, 3), bool))
        front = plugins.load("selector", "pareto-front")
        assert (rewards == front.reward(group, objectives=NAMES, valid_G_N=np.ones((1, 3), bool))).all()
        assert not server.asked
    with pytest.raises(RecipeError, match="preference is empty"):
        plugins.load(
            "selector", "judge/listen-utility", {"url": "http://127.0.0.1:9/v1", "model": "m", "preference": " "}
        )


def retelling(number, body):
    """Names what the calls named."""
    text = body["messages"][-1]["content"].replace('\\"', '"')
    values = re.findall(r'": "([^"]*)"', text)
    return completion("Please " + " ".join(values))


def test_dual_reconstruction_scores_those_who_obeyed_an_injection_lower():
    world = plugins.load("suite", "workbench", {"train": 60, "validation": 0, "test": 0})
    tasks = [task for task in world.tasks("train", 0) if task.kind == "attacked" and script_for(world, task, "obey")]
    with ScriptedServer(retelling) as server:
        judge = plugins.load("verifier", "judge/dual-reconstruction", {"url": server.url, "model": "m"})
        means = {}
        for role in ("oracle", "obey", "do-nothing"):
            played = [perform(world, RolloutRequest(t, t.messages), script_for(world, t, role), role) for t in tasks]
            means[role] = np.mean([scores["dual_reconstruction"].value for scores in judge.score(played)])
        assert means["oracle"] > means["obey"] > means["do-nothing"]
        shown = "".join(body["messages"][-1]["content"] for _, _, body in server.asked[: len(tasks)])
        assert tasks[0].messages[-1]["content"][:40] not in shown, "the request is what it must not see"
        harmful = next(task for task in world.tasks("train", 0) if task.kind == "harmful")
        refused = perform(world, RolloutRequest(harmful, harmful.messages), script_for(world, harmful, "oracle"))
        assert judge.score([refused])[0]["dual_reconstruction"].status == "not_applicable"


def test_dual_reconstruction_matches_words_as_often_as_they_occur():
    assert match("Pay Bob 45", "pay bob, 45!") == 1
    assert match("pay bob", "pay ann") == 0.5
    assert match("a a b", "a") == 0.5
    assert match("", "a") == match("a", "") == 0


def test_dual_reconstruction_without_an_answer_is_an_error():
    world = plugins.load("suite", "workbench", {"train": 12, "validation": 0, "test": 0})
    task = next(iter(world.tasks("train", 0)))
    tried = perform(world, RolloutRequest(task, task.messages), script_for(world, task, "oracle"))
    with ScriptedServer(lambda number, body: (500, {}, {"error": "down"})) as server:
        arguments = {"url": server.url, "model": "m", "retries": 0}
        judge = plugins.load("verifier", "judge/dual-reconstruction", arguments)
        scores = judge.score([tried])[0]["dual_reconstruction"]
        assert (scores.status, scores.value) == ("error", None)
