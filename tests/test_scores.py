"""The score cache, and `fate-trl rescore`: scores are asked for once, errors again, and no stored record changes."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_run import run as run_recipe

from fate_trl import plugins
from fate_trl.cli.rescore import rescore as command
from fate_trl.errors import FateError, LedgerError
from fate_trl.ledger.layout import SCORES
from fate_trl.ledger.scores import Scorer
from fate_trl.ledger.writing import RunDirectory
from fate_trl.metrics import intervals
from fate_trl.types import Outcome, Score, Task, Trajectory
from fate_trl.verify.ensemble import Ensemble
from fate_trl.verify.scoring import spent

JUDGE = """
from fate_trl import Component, Score, hookimpl

class Long:
    objectives = ("utility",)
    cached = True

    def __init__(self, least: int = 4):
        self.least = least

    def score(self, trajectories):
        with open({log!r}, "a") as log:
            log.write("." * len(trajectories))
        return [dict(utility=Score(float(len(t.answer) >= self.least))) for t in trajectories]

@hookimpl
def fate_trl_verifiers():
    return [Component("long", Long, "answers are long")]
"""

RECIPE = """
suites: [{name: workbench, args: {train: 9, validation: 0, test: 6}}]
rollout: {chunk: 5}
repair: {k: 2}
evaluation: {baselines: false, validation: 0}
rounds: 1
"""


@pytest.fixture(autouse=True)
def rough_intervals(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 50)


def made(number):
    task = Task(str(number), "s", "benign", ({"role": "user", "content": "pay"},))
    return Trajectory(task, messages=({"role": "assistant", "content": f"Done {number}."},), outcome=Outcome(1.0))


MADE = [made(number) for number in range(4)]


class Judge:
    objectives = ("mine",)
    cached = True

    def __init__(self):
        self.asked = []
        self.down = False

    def score(self, trajectories):
        self.asked += [trajectory.task.id for trajectory in trajectories]
        bad = Score.error("down") if self.down else Score(0.5, feedback="more")
        return [{"mine": bad if trajectory.task.id == "1" else Score(1.0)} for trajectory in trajectories]


def test_a_score_is_asked_for_once(tmp_path):
    judge, directory = Judge(), RunDirectory(tmp_path)
    first = Scorer([judge], ["judge 1"], directory)(MADE[:3])
    assert Scorer([judge], ["judge 1"], directory)(MADE) == [*first, *Scorer([Judge()], [], directory)(MADE[3:])]
    assert judge.asked == ["0", "1", "2", "3"]
    assert first[1].scores["mine"] == Score(0.5, feedback="more")


def test_the_same_trajectory_twice_in_a_batch_is_asked_about_once(tmp_path):
    judge = Judge()
    cards = Scorer([judge], ["judge 1"], RunDirectory(tmp_path))([MADE[0], MADE[0]])
    assert judge.asked == ["0"]
    assert cards[0] == cards[1]


@pytest.mark.parametrize("change", ["identity", "trajectory"])
def test_what_a_score_depends_on_is_in_its_key(tmp_path, change):
    judge, directory = Judge(), RunDirectory(tmp_path)
    Scorer([judge], ["judge 1"], directory)(MADE[:1])
    other = Trajectory(**{**vars(MADE[0]), "outcome": Outcome(0.5)}) if change == "trajectory" else MADE[0]
    Scorer([judge], ["judge 2" if change == "identity" else "judge 1"], directory)([other])
    assert judge.asked == ["0", "0"]


def test_errors_are_asked_again(tmp_path):
    judge, directory = Judge(), RunDirectory(tmp_path)
    judge.down = True
    cards = Scorer([judge], ["judge 1"], directory)(MADE)
    assert [bool(card.errors) for card in cards] == [False, True, False, False]
    judge.down, judge.asked = False, []
    assert Scorer([judge], ["judge 1"], directory)(MADE)[1].scores["mine"].value == 0.5
    assert judge.asked == ["1"]


def test_broken_episodes_are_shown_to_nobody_and_not_kept(tmp_path):
    judge, directory = Judge(), RunDirectory(tmp_path)
    broken = Trajectory(MADE[0].task, error="no docker", cause="open_failed", stop="error")
    assert Scorer([judge], ["judge 1"], directory)([broken])[0].scores["mine"].cause == "open_failed"
    assert judge.asked == []
    assert not (tmp_path / SCORES).exists()


def test_the_built_ins_are_not_looked_up(tmp_path):
    names = ["security", "utility"]
    verifiers = [plugins.load("verifier", name) for name in names]
    cards = Scorer(verifiers, [plugins.identity(name, {}) for name in names], RunDirectory(tmp_path))(MADE)
    assert list(cards[0].scores) == names
    assert not (tmp_path / SCORES).exists()


def test_a_files_identity_follows_its_content_and_arguments(tmp_path):
    file = tmp_path / "judge.py"
    file.write_text("a = 1")
    names = [plugins.identity(str(file), {}), plugins.identity(str(file), {"least": 5})]
    file.write_text("a = 2")
    names.append(plugins.identity(str(file), {}))
    assert len(set(names)) == 3
    assert plugins.identity("utility", {}).startswith("utility 0.")


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def run(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    run_recipe(recipe, tmp_path / "run")
    (tmp_path / "judge.py").write_text(JUDGE.format(log=str(tmp_path / "log")))
    return tmp_path / "run"


def digests(folder):
    return {
        p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((folder / "rounds").rglob("*")) if p.is_file()
    }


CODE = """
import sys
from fate_trl import cli
from fate_trl.metrics import intervals
intervals.RESAMPLES = 50
sys.argv = ["fate-trl", *sys.argv[1:]]
try:
    cli.main()
finally:
    assert not {"torch", "transformers", "trl"} & set(sys.modules)
"""


def rescore(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", CODE, "rescore", str(folder), *arguments], capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_rescoring_changes_no_record_and_says_what_changed(run):
    before = digests(run)
    judge = ("--verifier", str(run.parent / "judge.py"), "--set", "least=6", "--json")
    said = json.loads(rescore(run, *judge).stdout)
    assert digests(run) == before
    stages = {(part["round"], part["stage"]): part for part in said["differences"]}
    assert set(stages) == {(0, "eval-test"), (1, "eval-test"), (1, "collect"), (1, "repair")}
    part = stages[1, "collect"]
    assert (part["cases"], part["errors"], part["causes"]) == (9, 0, {})
    utility = part["metrics"]["mean_utility"]
    change = utility["rescored"]["value"] - utility["stored"]["value"]
    assert utility["difference"]["value"] == pytest.approx(change)
    written = Path(said["written"])
    assert json.loads((written / "metrics.json").read_text())["rows"] == said["rows"]
    cards = RunDirectory(written).read("rounds/01/cards.jsonl")
    assert len(cards) == 9 + 6 + stages[1, "repair"]["cases"]
    assert set(cards[0]["card"]["scores"]) == {"security", "utility", "over_refusal", "trajectory_control"}

    asked = len((run.parent / "log").read_text())
    again = json.loads(rescore(run, *judge, "--stage", "collect", "--round", "1").stdout)
    assert [(part["round"], part["stage"]) for part in again["differences"]] == [(1, "collect")]
    assert again["written"] != said["written"]
    assert len((run.parent / "log").read_text()) == asked, "looked up, not asked again"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((["utilty"],), "no verifier 'utilty'; did you mean 'utility'"),
        ((["utility"], [], ["collct"]), "its stages are collect, eval-test, repair"),
        ((["utility", "security"], ["a=1"]), "one --verifier at a time"),
        ((["utility", "utility"],), r"produced by \w+ and by \w+"),
    ],
)
def test_rescoring_names_what_is_wrong(run, arguments, says):
    with pytest.raises(FateError, match=says):
        command(str(run), *arguments)


def test_a_run_that_is_going_on_is_not_rescored(run):
    with RunDirectory(run).lock(), pytest.raises(LedgerError, match="in use"):
        command(str(run), ["utility"])
    with pytest.raises(LedgerError, match="no run directory"):
        command(str(run.parent / "none"), ["utility"])


# ------------------------------------------------------------------------------------------------ what it costs


class Paid(Judge):
    def usage(self):
        spent, self.asked = len(self.asked), []
        return {"requests": spent}


def test_what_verifiers_spend_is_added_up_through_ensembles_and_told_once():
    one, two = Paid(), Paid()
    both = Ensemble(["security", "security"])
    both.members = [two, Judge()]
    for judge in (one, two):
        judge.score(MADE)
    assert spent([one, Judge(), both]) == {"requests": 8}
    assert not any(spent([one, both]).values())
    assert spent([Judge()]) == {}
