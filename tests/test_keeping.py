"""Which policy a run hands over: the last accepted one, or the best on the validation tasks."""

import pytest
from test_evolution import Killed, accepted, files, make, stages

from benchmarks.learning import ends, last_policy, points
from fate_trl.errors import FateError, RecipeError
from fate_trl.ledger.layout import kept_round
from fate_trl.metrics.concerns import diagnose
from fate_trl.recipe.checks import check
from fate_trl.recipe.loading import make_recipe
from fate_trl.report import page, summary
from fate_trl.report.comparison import Side
from fate_trl.report.reading import Run
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.suites.workbench.suite import WorkbenchSuite


@pytest.fixture(autouse=True)
def rough(monkeypatch):
    monkeypatch.setattr("fate_trl.metrics.intervals.RESAMPLES", 100)


SMALL = {
    "suites": [{"name": "workbench", "args": {"train": 6, "validation": 10, "test": 6}}],
    "rollout": {"chunk": 10},
    "repair": {"k": 1},
    "pfpo": None,
}
BEST = {"evaluation": {"keep": "best"}}


class Planted(ScriptedLearner):
    """Resolves a planned share of the validation tasks after each round; it fails all others, and repairs them."""

    killed_in = None

    def __init__(self, suites, plan):
        super().__init__(suites, skill=plan[0])
        self.plan = plan
        self.order = [task.id for task in suites["workbench"].tasks("validation", 0)]

    def _role(self, request, seed):
        if request.stage == "eval-validation":
            if self.killed_in == self.skill:
                self.killed_in = None
                raise Killed
            return "oracle" if self.order.index(request.task.id) < self.skill * len(self.order) else "do-nothing"
        return "oracle" if request.stage == "repair" else "do-nothing"

    def _train(self, stage, amount):
        self.trained.append((stage, amount))
        self.skill = self.plan[len(self.trained)]
        return {}


def planted(path, plan, *changes, learner=Planted):
    """A run with a round for each share after the first, which is that of the policy before training."""
    evolution = make(
        path,
        SMALL,
        {"rounds": len(plan) - 1},
        *changes,
        learner=lambda suites: learner(suites, plan),
        suite=WorkbenchSuite,
    )
    evolution.run.write_text("recipe.yaml", evolution.recipe.dump())
    return evolution


def kept(evolution):
    return [stages(evolution.run, n)["accept"].get("kept") for n in range(1, evolution.recipe.rounds + 1)]


def rules(told):
    return [reason["rule"] for reason in told["decision"]["reasons"]]


@pytest.mark.parametrize(
    ("plan", "changes", "wanted"),
    [
        pytest.param((0.5, 0.8, 0.9, 0.8), {}, [1, 2, 2], id="a late fall"),
        pytest.param((0.5, 0.8, 0.7, 0.9), {}, [1, 1, 3], id="a dip that is made good"),
        pytest.param((0.5, 0.8, 0.8, 0.8), {}, [1, 2, 3], id="of equals the latest"),
        pytest.param((0.9, 0.8, 0.7, 0.8), {}, [0, 0, 0], id="worse than before training"),
        pytest.param((0.5, 0.9, 0.6, 0.8), {"margin": 0.6}, [0, 0, 0], id="better, and rolled back by the margin"),
        pytest.param((0.9, 0.8, 0.5, 0.2), {"tolerance": 1.0}, [0, 0, 0], id="no gate"),
    ],
)
def test_the_best_accepted_policy_is_kept(tmp_path, plan, changes, wanted):
    evolution = planted(tmp_path, plan, BEST, {"evaluation": changes})
    evolution()
    assert kept(evolution) == wanted
    assert accepted(evolution) == [changes.get("margin") is None] * 3


def test_a_run_hands_over_the_best_policy_and_says_so(tmp_path):
    """80, 90, 80 % on validation: the gate accepts every round, and the last one is the second best."""
    plan = (0.5, 0.8, 0.9, 0.8)
    best, last = (planted(tmp_path / name, plan, {"evaluation": {"keep": name}}) for name in ("best", "last"))
    for evolution in (best, last):
        evolution()
        assert accepted(evolution) == [True, True, True]
    assert kept(last) == [None, None, None], "the record is as it was before there was the key"
    assert (best.run.kept, last.run.kept) == (2, 3)
    assert best.run.policy_folder() == tmp_path / "best/rounds/02/policy"
    assert last.run.policy_folder() == tmp_path / "last/rounds/03/policy"
    assert best.run.policy_folder(3) == tmp_path / "best/rounds/03/policy", "every other round can be named"

    opened = {name: Run.open(tmp_path / name) for name in ("best", "last")}
    assert {name: run.policy().name for name, run in opened.items()} == {"best": "round-2", "last": "round-3"}
    assert opened["best"].policy("round-3").round == 3
    told = {name: summary.summarise(run) for name, run in opened.items()}
    assert (told["best"]["after"], told["last"]["after"]) == ("round-2", "round-3")
    reason = told["best"]["decision"]["reasons"][-1]
    assert reason["rule"] == "kept"
    assert "round-2 is kept" in reason["text"]
    assert "round 3 resolved less" in reason["text"]
    assert "kept" not in rules(told["last"])
    shown = page.report(opened["best"])
    assert "Best policy on validation: <b>round-2</b>" in shown
    assert "the policy of round 2 is kept" in shown
    assert "Last accepted policy: <b>round-3</b>" in page.report(opened["last"])


def test_training_goes_on_from_the_last_accepted_policy(tmp_path):
    class Remembering(Planted):
        def load(self, path):
            super().load(path)
            loads.append(self.skill)

    loads = []
    planted(tmp_path, (0.5, 0.9, 0.8, 0.7), BEST, learner=Remembering)()
    assert loads == [0.9, 0.8]


def test_no_round_may_be_better_than_none(tmp_path):
    evolution = planted(tmp_path, (0.9, 0.8, 0.7), BEST)
    evolution()
    assert evolution.run.policy_folder() is None, "the model as it was given"
    told = summary.summarise(Run.open(tmp_path))
    assert (told["before"], told["after"], rules(told)) == ("base", "base", ["none-better"])
    assert "No round is better on validation" in page.report(Run.open(tmp_path))


def test_a_resumed_run_keeps_the_same_policy(tmp_path):
    plan = (0.5, 0.8, 0.9, 0.7)
    whole = planted(tmp_path / "whole", plan, BEST)
    whole()

    class Stopping(Planted):
        killed_in = 0.7

    broken = planted(tmp_path / "broken", plan, BEST, learner=Stopping)
    with pytest.raises(Killed):
        broken()
    assert broken.run.kept == 2
    planted(tmp_path / "broken", plan, BEST)()
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_comparison_of_methods_measures_the_policy_that_is_kept(tmp_path):
    class Telling(Planted):
        """Its replies on the test tasks are those of its round."""

        def _role(self, request, seed):
            return "oracle" if (request.stage, self.skill) == ("eval-test", 0.9) else super()._role(request, seed)

    evolution = planted(tmp_path, (0.5, 0.8, 0.9, 0.8), BEST, learner=Telling)
    evolution()
    assert [point["values"]["all"]["resolved"] for point in points(evolution.run)] == [0, 0, 1, 1]
    assert {case["scores"]["utility"] for case in ends(evolution.run)} == {1.0}
    assert last_policy(evolution.run) == tmp_path / "rounds/02/policy"


def test_there_must_be_something_to_tell_by(tmp_path):
    values = {"suites": SMALL["suites"], "evaluation": {"keep": "best", "validation": 0}}
    with pytest.raises(RecipeError, match="keep: best has nothing to be measured on"):
        check(make_recipe(values))
    with pytest.raises(RecipeError, match=r"evaluation\.keep"):
        make_recipe({**values, "evaluation": {"keep": "first"}})
    none = {**SMALL, "suites": [{"name": "workbench", "args": {"train": 6, "validation": 0, "test": 6}}]}
    with pytest.raises(FateError, match="needs validation tasks, and the suites have none"):
        planted(tmp_path, (0.5, 0.8), none, BEST)()


def test_what_is_handed_over_while_a_run_goes_on():
    yes, no = {"accept": {"accepted": True}}, {"accept": {"accepted": False}}
    assert kept_round({}) is None
    assert kept_round({0: {}, 1: {}}) is None
    assert kept_round({0: {}, 1: no}) == 0
    assert kept_round({0: {}, 1: yes, 2: no, 3: {}}) == 1
    best = [{"accept": {"accepted": True, "kept": number}} for number in (1, 1, 3)]
    assert [kept_round(dict(enumerate(best[:count], 1))) for count in (1, 2, 3)] == [1, 1, 3]


def test_a_side_of_a_comparison_is_the_policy_that_is_kept(tmp_path):
    planted(tmp_path, (0.5, 0.8, 0.9, 0.8), BEST)()
    assert Side.open(str(tmp_path)).policy == "round-2"
    assert Side.open(f"{tmp_path}@3").policy == "round-3"


def test_a_round_that_gained_too_little_is_said_to_have_been_idle():
    told = diagnose([], {1: {"accept": {"accepted": False, "worse": [], "gained": []}}})[0]
    assert "no objective rose by evaluation.margin" in told.text
