"""Judges inside wrappers: their limit in time, their cached scores, and what those depend on."""

import itertools

import pytest
from case import case

from fate_trl import plugins
from fate_trl.ledger.scores import Scorer
from fate_trl.ledger.writing import RunDirectory
from fate_trl.types import Outcome, Task, Trajectory
from fate_trl.verify.loading import load
from fate_trl.verify.scoring import score_all

TRAJECTORIES = [
    Trajectory(
        Task(f"t{number}", "s", "benign", ({"role": "user", "content": "Pay it."},)),
        messages=({"role": "assistant", "content": "Hm."},),
        outcome=Outcome(0.0),
    )
    for number in range(3)
]

JUDGE = """
import pathlib
import time

from fate_trl import Component, Score, hookimpl


class Judge:
    objectives = ({objective!r},)
    cached = True

    def __init__(self, notes: str = "", seconds: float = 0.0, down: bool = False):
        self.notes, self.seconds, self.down = notes, seconds, down

    def score(self, trajectories):
        time.sleep(self.seconds)
        if self.down:
            raise OSError("the judge is down")
        if self.notes:
            with open(self.notes + ".log", "a") as file:
                file.writelines(f"{{t.task.id}}\\n" for t in trajectories)
        return [{{{objective!r}: Score({value})}} for _ in trajectories]


@hookimpl
def fate_trl_verifiers():
    return [Component("judge", Judge, "a judge")]
"""


@pytest.fixture
def judge(tmp_path):
    """Writes a judge of an objective that gives a value; returns its name in a recipe."""

    def write(value, objective="refused", name="judge"):
        file = tmp_path / f"{name}.py"
        file.write_text(JUDGE.format(objective=objective, value=value))
        return str(file)

    return write


def scored(directory, name, arguments, seconds=30.0):
    """The cards of the trajectories, by a verifier as a fresh process would make and ask it."""
    verifier = load(name, arguments)
    return Scorer([verifier], [plugins.identity(name, arguments)], directory, seconds)(TRAJECTORIES)


WRAPPERS = {
    "judged-refusals": lambda judge: ("judged-refusals", {"judge": judge}),
    "an ensemble": lambda judge: ("ensemble", {"members": [judge, judge]}),
    "judged-refusals in an ensemble": lambda judge: (
        "ensemble",
        {"members": [{"name": "judged-refusals", "args": {"judge": judge}}] * 2},
    ),
}


@pytest.mark.parametrize(
    "wrapper",
    [
        pytest.param(
            name,
            marks=case(
                "runs and reports",
                f"{name} around a cached ./judge.py; judge.py is edited, and the run resumed",
                "the scores of the judge as it was",
                "the edited judge is asked, and its scores stand",
            ),
        )
        for name in WRAPPERS
    ],
)
def test_a_judge_that_was_edited_is_asked_again(tmp_path, judge, wrapper):
    name, arguments = WRAPPERS[wrapper](judge(1.0))
    directory = RunDirectory(tmp_path / "run")
    first = scored(directory, name, arguments)
    assert scored(directory, name, arguments) == first
    judge(0.0)
    second = scored(directory, name, arguments)
    changed = "over_refusal" if "judged" in wrapper else "refused"
    assert {card.scores[changed].value for card in first} != {card.scores[changed].value for card in second}
    judge(1.0)
    assert scored(directory, name, arguments) == first


def test_a_plain_file_judge_that_was_edited_is_asked_again(tmp_path, judge):
    directory = RunDirectory(tmp_path / "run")
    assert {card.scores["refused"].value for card in scored(directory, judge(1.0), {})} == {1.0}
    assert {card.scores["refused"].value for card in scored(directory, judge(0.25), {})} == {0.25}


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("a file that an argument names", lambda folder: {"path": str(folder / "rules.jsonl")}),
        ("a file in a list", lambda folder: {"files": ["other", str(folder / "rules.jsonl")]}),
        ("a file of a component", lambda folder: {"judge": {"name": "x", "args": {"at": str(folder / "rules.jsonl")}}}),
        ("a folder", lambda folder: {"model": str(folder)}),
    ],
)
def test_what_an_argument_names_is_part_of_the_identity(tmp_path, what, arguments):
    (tmp_path / "rules.jsonl").write_text("one")
    before = plugins.identity("utility", arguments(tmp_path))
    assert plugins.identity("utility", arguments(tmp_path)) == before
    (tmp_path / "rules.jsonl").write_text("one and two")
    assert plugins.identity("utility", arguments(tmp_path)) != before, what


def test_arguments_that_name_nothing_leave_the_identity_as_it_was():
    for odd in ("no such file", "a\nb", "x" * 5000, "", "\0", "https://host/v1", "~nobody/x"):
        assert len(plugins.identity("utility", {"text": odd}).split()) == 3


@pytest.mark.parametrize(
    "wrapper",
    [
        pytest.param(
            name,
            marks=case(
                "runs and reports",
                f"rollout.verifier_seconds: 0.3, and {name} around a judge that hangs",
                "the judge had its default of 300 s, or took its wrapper's other judges with it",
                "the judge is cut at 0.3 s, and named in the error",
            ),
        )
        for name in ("judged-refusals", "an ensemble")
    ],
)
def test_the_limit_in_time_holds_for_wrapped_judges(judge, wrapper):
    name, arguments = WRAPPERS[wrapper]({"name": judge(1.0), "args": {"seconds": 2.0}})
    [card] = score_all([load(name, arguments)], TRAJECTORIES[:1], 0.3)
    reasons = set(card.errors.values())
    assert reasons == {"Judge: took over 0.3 s"}
    assert {score.cause for score in card.scores.values() if score.status == "error"} == {"verifier_timeout"}


def test_each_member_of_an_ensemble_has_the_whole_time(judge):
    """Two judges of 0.4 s each, and a limit of 0.6 s for one call: together they take longer, each alone does not."""
    members = [{"name": judge(1.0), "args": {"seconds": 0.4}}] * 2
    [card] = score_all([load("ensemble", {"members": members})], TRAJECTORIES[:1], 0.6)
    assert card.scores["refused"].value == 1.0


def test_one_member_that_hangs_costs_a_quorum_nothing(judge):
    members = [judge(1.0), {"name": judge(1.0), "args": {"seconds": 5.0}}]
    [card] = score_all([load("ensemble", {"members": members, "quorum": 1})], TRAJECTORIES[:1], 0.5)
    assert card.scores["refused"].value == 1.0


@case(
    "runs and reports",
    "an ensemble of two paid judges, and a run that is resumed",
    "both judges were paid again for every trajectory that they had judged",
    "each judge is asked once",
)
def test_the_judges_of_an_ensemble_are_asked_once_across_resumes(tmp_path, judge):
    members = [
        {"name": judge(0.5, name=f"judge{number}"), "args": {"notes": str(tmp_path / f"asked{number}")}}
        for number in range(2)
    ]
    directory, arguments = RunDirectory(tmp_path / "run"), {"members": members}
    assert load("ensemble", arguments).cached
    first = scored(directory, "ensemble", arguments)
    assert scored(directory, "ensemble", arguments) == first
    for number in range(2):
        assert (tmp_path / f"asked{number}.log").read_text().split() == ["t0", "t1", "t2"]


def test_what_one_judge_said_stands_though_another_was_down(tmp_path, judge):
    paid = {"name": judge(0.5), "args": {"notes": str(tmp_path / "asked")}}
    broken = {"name": judge(0.5, name="other"), "args": {"down": True}}
    directory = RunDirectory(tmp_path / "run")
    assert all(card.errors for card in scored(directory, "ensemble", {"members": [paid, broken]}))
    cards = scored(directory, "ensemble", {"members": [paid, {**broken, "args": {}}]})
    assert [card.scores["refused"].value for card in cards] == [0.5] * 3
    assert (tmp_path / "asked.log").read_text().split() == ["t0", "t1", "t2"]


def test_an_ensemble_of_the_built_ins_keeps_nothing(tmp_path):
    directory, arguments = RunDirectory(tmp_path / "run"), {"members": ["over_refusal", "over_refusal"]}
    assert not load("ensemble", arguments).cached
    scored(directory, "ensemble", arguments)
    assert list(directory.path.iterdir()) == []


def test_a_member_is_asked_the_same_way_in_every_ensemble(tmp_path, judge):
    """Its scores are its own: another ensemble around the same judge pays nothing for them."""
    paid = {"name": judge(0.5), "args": {"notes": str(tmp_path / "asked")}}
    directory = RunDirectory(tmp_path / "run")
    for reduce in ("mean", "min", "median"):
        scored(directory, "ensemble", {"members": [paid, judge(0.5)], "reduce": reduce})
    asked = (tmp_path / "asked.log").read_text().split()
    assert [name for name, _ in itertools.groupby(asked)] == ["t0", "t1", "t2"]
