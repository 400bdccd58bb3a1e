"""An ensemble: every reducer against its formula, errors and quorums, disagreement kept."""

import math

import numpy as np
import pytest

from fate_trl import metrics, plugins
from fate_trl.errors import FateError, RecipeError
from fate_trl.types import ScoreCard, Task, Trajectory
from fate_trl.verify.scoring import score_all

MEMBERS = '''
from fate_trl import Component, Score, hookimpl


class Fixed:
    """Gives `value`, or what else it is told to do."""

    objectives = ("calm",)

    def __init__(self, value: float = 1.0, does: str = "score", feedback: str = ""):
        self.value, self.does, self.feedback = value, does, feedback

    def score(self, trajectories):
        if self.does == "raise":
            raise ValueError("down")
        if self.does == "not_applicable":
            return [{"calm": Score.not_applicable()} for _ in trajectories]
        return [{"calm": Score(self.value, feedback=self.feedback, step=0)} for _ in trajectories]


class Other(Fixed):
    objectives = ("other",)


@hookimpl
def fate_trl_verifiers():
    return [Component("fixed", Fixed, "a fixed value"), Component("other", Other, "another objective")]
'''
TRIED = [Trajectory(Task(f"t{i}", "s", "benign", ())) for i in range(3)]


@pytest.fixture
def member(tmp_path):
    """Makes a reference to a member."""
    file = tmp_path / "members.py"
    file.write_text(MEMBERS)
    return lambda name="fixed", **args: {"name": f"{file}/{name}", "args": args}


def judged(members, **arguments):
    """The one score that an ensemble gives to every trajectory."""
    ensemble = plugins.load("verifier", "ensemble", {"members": members, **arguments})
    scores = [card.scores["calm"] for card in score_all([ensemble], TRIED)]
    assert scores[0] == scores[1] == scores[2]
    return scores[0]


VALUES = [0.2, 0.9, 1.0, 0.1]
WEIGHTS = [math.exp(-value / 0.1) for value in VALUES]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 0.55),
        ({"reduce": "median"}, 0.55),
        ({"reduce": "majority"}, 0.0),
        ({"reduce": "min"}, 0.1),
        ({"reduce": "uwo", "penalty": 2.0}, 0.55 - 2 * np.var(VALUES)),
        ({"reduce": "uwo", "penalty": 50}, 0.0),
        ({"reduce": "soft-min"}, np.dot(WEIGHTS, VALUES) / sum(WEIGHTS)),
        ({"reduce": "soft-min", "temperature": 1e-6}, 0.1),
        ({"reduce": "soft-min", "temperature": 1e6}, 0.55),
    ],
)
def test_reducers(member, arguments, expected):
    score = judged([member(value=value) for value in VALUES], **arguments)
    assert score.value == pytest.approx(expected, abs=1e-5)
    assert score.spread == pytest.approx(np.std(VALUES))


def test_more_than_half_is_a_majority(member):
    assert judged([member(value=v) for v in (0.5, 1, 0)], reduce="majority").value == 1
    assert judged([member(value=v) for v in (1, 0)], reduce="majority").value == 0


def test_the_sternest_member_gives_the_feedback(member):
    given = [member(value=0.5, feedback="mild"), member(value=0.0, feedback="stern"), member(value=0.0)]
    assert judged(given).feedback == "stern"


def test_an_error_is_never_averaged(member):
    broken = member(does="raise")
    assert judged([member(), broken]).status == "error"
    assert "down" in judged([member(), broken]).reason
    assert judged([member(), member(value=0.5), broken], quorum=2).value == 0.75
    assert judged([member(), broken, broken], quorum=2).status == "error"


def test_what_applies_is_not_for_a_vote(member):
    silent = member(does="not_applicable")
    assert judged([silent, silent]).status == "not_applicable"
    assert judged([member(), silent]).status == "error"
    assert judged([member(), silent]).reason == "1 of 2 members say that the objective applies, the rest not"


def test_disagreement_becomes_a_metric(member):
    ensemble = plugins.load("verifier", "ensemble", {"members": [member(value=0.0), member(value=1.0)]})
    cases = list(zip(TRIED, score_all([ensemble], TRIED), strict=True))
    measured = metrics.rows(cases, round=0, split="test", policy="p", accepted=True, seed=0)[0]["metrics"]
    assert measured["spread_calm"]["value"] == 0.5
    assert measured["mean_calm"]["value"] == 0.5
    assert ScoreCard.from_dict(cases[0][1].to_dict()) == cases[0][1]


@pytest.mark.parametrize(
    ("members", "more", "says"),
    [
        ([{}], {}, "at least two members"),
        ([{}, {"name": "other"}], {}, "scores calm, and Other other"),
        ([{}, {}], {"quorum": 3}, "cannot be met by 2"),
        ([{}, {}], {"reduce": "product"}, "reduce"),
    ],
)
def test_what_cannot_work_is_said(member, members, more, says):
    with pytest.raises(RecipeError, match=says):
        plugins.load("verifier", "ensemble", {"members": [member(**kind) for kind in members], **more})


@pytest.mark.parametrize("reference", [{"args": {}}, {"name": "security", "arg": {}}, {"name": "securty"}])
def test_a_member_is_named_as_in_a_recipe(reference):
    with pytest.raises(FateError):
        plugins.load("verifier", "ensemble", {"members": ["security", reference]})


def test_built_ins_can_be_members():
    ensemble = plugins.load("verifier", "ensemble", {"members": ["over_refusal", "over_refusal"], "reduce": "min"})
    assert ensemble.objectives == ("over_refusal",)
    assert score_all([ensemble], TRIED)[0].scores["over_refusal"].value == 1
