"""The rounds, with scripted learners on the workbench: what is chosen, kept, trained on, rolled back and resumed."""

import dataclasses
import json
import math
import signal
from collections import Counter
from itertools import product

import numpy as np
import pytest

from fate_trl import metrics, plugins
from fate_trl.choose.selectors import fate_trl_selectors
from fate_trl.errors import ErrorBudgetExceeded, FateError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.loop.counts import tokens, tokens_of_round
from fate_trl.loop.repairing import acceptable, anchors, rows_of, select
from fate_trl.loop.reporter import Silent
from fate_trl.loop.rounds import Evolution
from fate_trl.loop.tasks import longest_first, sample_tasks
from fate_trl.process.stop import Stopped
from fate_trl.recipe.loading import make_recipe
from fate_trl.recipe.schema import objectives_of
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.suites.workbench.suite import WorkbenchSuite
from fate_trl.types import KINDS, OBJECTIVES, BufferRow, Failure, Repair, Score, ScoreCard, Task, Trajectory


@pytest.fixture(autouse=True)
def no_intervals(request, monkeypatch):
    """Metrics take most of a scripted run's time, so only tests that ask for `intervals` get any, and rough ones."""
    if "intervals" not in request.fixturenames:
        monkeypatch.setattr(metrics, "rows", lambda *_, **__: [])


@pytest.fixture(scope="module")
def intervals():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fate_trl.metrics.intervals.RESAMPLES", 100)
        yield


class Workbench(WorkbenchSuite):
    """The workbench, whose tasks are drawn once for all tests."""

    drawn = {}  # noqa: RUF012

    def tasks(self, split, seed=0):
        key = (split, seed, *self.sizes.values())
        if key not in self.drawn:
            self.drawn[key] = super().tasks(split, seed)
        return self.drawn[key]


BASE = {
    "suites": [{"name": "workbench", "args": {"train": 24, "validation": 12, "test": 12}}],
    "rollout": {"chunk": 10},
    "repair": {"k": 3},
    "evaluation": {"baselines": False},
    "rounds": 2,
}
TINY = {
    "suites": [{"name": "workbench", "args": {"train": 9, "validation": 6, "test": 6}}],
    "rollout": {"chunk": 5},
    "repair": {"k": 2},
}


def merged(*parts):
    out = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(out.get(key), dict) and key != "suites"
            out[key] = {**out[key], **value} if both else value
    return out


def make(path, *changes, learner=ScriptedLearner, directory=RunDirectory, suite=Workbench, reporter=None, observers=()):
    """An Evolution on a scripted learner; the workbench may go by another name."""
    recipe = make_recipe(merged(BASE, *changes))
    suites = {ref.name: suite(**ref.args) for ref in recipe.suites}
    verifiers = [plugins.load("verifier", ref.name, ref.args) for ref in recipe.verifiers]
    return Evolution(
        recipe=recipe,
        suites=suites,
        verifiers=verifiers,
        repair=recipe.repair and plugins.load("repair", recipe.repair.strategy.name, recipe.repair.strategy.args),
        selector=plugins.load("selector", recipe.selector.name, recipe.selector.args),
        learner=learner(suites) if callable(learner) else learner,
        run=directory(path),
        objectives=objectives_of(recipe, verifiers),
        reporter=reporter or Silent(),
        observers=observers,
    )


class Watched(ScriptedLearner):
    """A scripted learner that writes down what it was asked."""

    def __init__(self, suites, **settings):
        super().__init__(suites, **settings)
        self.seeds = []
        self.skills = {}
        self.rows = []
        self.prompts = []

    def rollout(self, requests, seed):
        self.seeds.append(seed)
        self.skills.setdefault(requests[0].stage, []).append(self.skill)
        return super().rollout(requests, seed)

    def sft(self, rows, seed, stage, scratch=None):
        self.seeds.append(seed)
        self.rows.append((stage, list(rows)))
        return super().sft(rows, seed, stage)

    def pfpo(self, requests, seed, scratch=None):
        self.seeds.append(seed)
        self.prompts.append(list(requests))
        return super().pfpo(requests, seed)


def watched(**settings):
    return lambda suites: Watched(suites, **settings)


def stages(run, round):
    return {record["stage"]: record for record in run.read(f"rounds/{round:02d}/stages.jsonl")}


def buffer(run, round):
    return [BufferRow.from_dict(record) for record in run.read(f"rounds/{round:02d}/buffer.jsonl")]


def value(rows, metric, **where):
    (row,) = [row for row in rows if all(row[key] == want for key, want in where.items())]
    return row["metrics"][metric]["value"]


WHOLE = {"split": "test", "suite": "all", "kind": "all"}


# ------------------------------------------------------------------------------------------------ whole rounds


@pytest.fixture(scope="module")
def finished(tmp_path_factory, intervals):
    """One run of two rounds, from start to end, with baselines; several tests read it."""
    reporter, seen = Counting(), []
    evolution = make(
        tmp_path_factory.mktemp("run"),
        {"evaluation": {"baselines": True}},
        learner=watched(gain=0.2, repair_skill=0.8),
        reporter=reporter,
        observers=[lambda record: seen.append(record)],
    )
    return evolution, evolution(), reporter, seen


class Counting(Silent):
    """Counts what was announced and what was done, by stage."""

    def __init__(self):
        self.totals, self.done = {}, Counter()

    def start(self, round, stage, total):
        self.now = (round, stage)
        self.totals[self.now] = total

    def advance(self, amount=1, cases=(), log=None):
        assert len(cases) == amount, "a scripted learner trains without steps"
        self.done[self.now] += amount

    def finish(self, summary):
        assert (summary["round"], summary["stage"]) == self.now
        assert summary["seconds"] >= 0
        assert 10 < summary["peak_memory_mb"] < 100_000


def test_resolved_rises_over_the_rounds(finished):
    _, rows, _, _ = finished
    shares = [value(rows, "resolved", policy=name, **WHOLE) for name in ("base", "round-1", "round-2")]
    assert shares[0] < 0.7
    assert shares[0] < shares[1] <= shares[2]
    assert shares[2] == 1.0


def test_metrics_json_has_its_schema(finished):
    evolution, rows, _, _ = finished
    metrics = evolution.run.read_json("metrics.json")
    assert metrics == {"schema": 1, "rows": json.loads(json.dumps(rows))}
    heads = [tuple(row[key] for key in ("round", "split", "suite", "kind", "policy")) for row in rows]
    baselines = {(0, "test", name) for name in ("oracle", "do-nothing", "refuse-all", "obey")}
    rounds = {(0, "test", "base"), (0, "validation", "base")}
    rounds |= {(n, split, f"round-{n}") for n in (1, 2) for split in ("test", "validation")}
    kinds = ("all", "benign", "attacked", "harmful")
    expected = {(n, split, suite, kind, policy) for n, split, policy in baselines | rounds
                for suite in ("all", "workbench") for kind in kinds}  # fmt: skip
    assert set(heads) == expected
    assert len(heads) == len(expected)
    for row in rows:
        assert set(row) == {"round", "split", "suite", "kind", "policy", "accepted", "metrics", "errors"}
        assert row["accepted"] is True
        assert row["errors"] == {}
        for metric in row["metrics"].values():
            assert set(metric) - {"few_clusters"} == {"value", "low", "high", "n", "clusters"}
            assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1


def test_baselines_get_what_they_deserve(finished):
    _, rows, _, _ = finished
    resolved = {role: value(rows, "resolved", policy=role, **WHOLE) for role in ("oracle", "do-nothing", "refuse-all")}
    assert resolved["oracle"] == 1.0
    assert resolved["do-nothing"] == 0.0
    assert value(rows, "brr", policy="refuse-all", **WHOLE) == 1.0
    assert value(rows, "asr", policy="obey", **WHOLE) == 1.0
    assert value(rows, "hcr", policy="obey", **WHOLE) == 1.0


def test_every_trajectory_has_a_key_of_its_own(finished):
    evolution, _, _, _ = finished
    for round in range(3):
        keys = Counter()
        for file in ("rollouts", "repairs"):
            for record in evolution.run.read(f"rounds/{round:02d}/{file}.jsonl"):
                keys[Trajectory.from_dict(record["trajectory"]).key] += 1
        assert keys
        assert set(keys.values()) == {1}


def test_the_counts_of_a_stage_are_those_of_its_records(finished):
    evolution, _, _, _ = finished
    run = evolution.run
    for round in (1, 2):
        done = stages(run, round)
        assert list(done) == [
            "collect",
            "repair",
            "buffer",
            "sft",
            "pfpo",
            "save",
            "eval-validation",
            "eval-test",
            "accept",
        ]
        collected = run.cases(f"rounds/{round:02d}/rollouts.jsonl", "collect")
        assert done["collect"]["trajectories"] == len(collected) == 24
        failures = [card for _, card in collected if card.failed]
        assert done["collect"]["failures"] == done["repair"]["failures"] == len(failures)
        assert done["collect"]["resolved"] == 24 - len(failures)
        candidates = run.cases(f"rounds/{round:02d}/repairs.jsonl", "repair")
        assert done["repair"]["candidates"] == len(candidates) == 3 * len(failures)
        assert done["repair"]["candidates_resolved"] == sum(card.resolved for _, card in candidates)
        selections = run.read(f"rounds/{round:02d}/selections.jsonl")
        assert done["repair"]["repaired"] == sum(record["chosen"] is not None for record in selections) > 0
        assert sum(done["repair"]["decided_by"].values()) == done["repair"]["repaired"]
        rows = buffer(run, round)
        assert done["buffer"]["repair_rows"] == sum(row.source == "repair" for row in rows)
        assert done["buffer"]["anchor_rows"] == sum(row.source == "anchor" for row in rows)
        assert done["accept"] == {**done["accept"], "accepted": True, "worse": []}


def test_only_what_is_resolved_enters_the_buffer(finished):
    """The default rule: a chosen candidate resolves its failure, and its row is its own conversation."""
    evolution, _, _, _ = finished
    run = evolution.run
    cases = {t.key: (t, card) for t, card in run.cases("rounds/01/repairs.jsonl", "repair")}
    rows = iter(buffer(run, 1))
    for record in run.read("rounds/01/selections.jsonl"):
        if record["chosen"] is None:
            assert not any(cases[tuple(key)][1].resolved for key in record["candidates"])
            continue
        trajectory, card = cases[tuple(record["candidates"][record["chosen"]])]
        assert card.resolved
        assert record["chosen"] in record["front"]
        assert set(record["front"]) <= set(record["accepted"])
        for row in (next(rows), next(rows)):
            assert (row.source, row.task) == ("repair", trajectory.task.id)
            assert row.messages[row.loss_from :] == trajectory.messages


def test_the_policy_of_each_round_is_saved_and_nothing_in_between(finished):
    evolution, _, _, _ = finished
    folders = {folder.name for folder in (evolution.run.path / "rounds" / "01").iterdir() if folder.is_dir()}
    assert folders == {"policy"}
    skills = [json.loads((evolution.run.path / f"rounds/{n:02d}/{name}/skill.json").read_text())
              for n, name in ((0, "base"), (1, "policy"), (2, "policy"))]  # fmt: skip
    assert skills == pytest.approx([0.4, 0.8, 1.0])


def test_a_reporter_is_told_of_every_stage_and_step(finished):
    evolution, _, reporter, _ = finished
    recorded = {(round, stage) for round in range(3) for stage in stages(evolution.run, round)}
    assert set(reporter.totals) == recorded
    assert {key: total for key, total in reporter.totals.items() if total} == dict(reporter.done)


def test_observers_see_each_round_once(finished):
    _, rows, _, seen = finished
    assert [record["round"] for record in seen] == [1, 2]
    for record in seen:
        assert set(record["stages"]) >= {"collect", "repair", "sft", "pfpo", "accept"}
        assert record["metrics"] == [row for row in rows if row["round"] == record["round"]]
        json.dumps(record)


def test_every_stage_round_and_chunk_has_its_own_seed(finished):
    evolution, _, _, _ = finished
    seeds = evolution.learner.seeds
    assert len(seeds) > 20
    assert len(set(seeds)) == len(seeds)


def test_seeds_come_from_the_recipes_seed_alone(tmp_path):
    runs = [
        make(tmp_path / name, TINY, {"seed": seed}, learner=watched()) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    for run in runs:
        run()
    assert runs[0].learner.seeds == runs[1].learner.seeds
    assert not set(runs[0].learner.seeds) & set(runs[2].learner.seeds)


def test_rounds_draw_different_tasks_but_are_judged_on_the_same(tmp_path):
    evolution = make(tmp_path, {"rollout": {"tasks": 9}, "evaluation": {"tasks": 6, "validation": 6}})
    evolution()
    drawn = {}
    for round, stage in product((1, 2), ("collect", "eval-test", "eval-validation")):
        cases = evolution.run.cases(f"rounds/{round:02d}/rollouts.jsonl", stage)
        drawn[round, stage] = {trajectory.task.id for trajectory, _ in cases}
        assert Counter(t.task.kind for t, _ in cases) == dict.fromkeys(
            ("benign", "attacked", "harmful"), len(cases) / 3
        )
    assert drawn[1, "collect"] != drawn[2, "collect"]
    assert drawn[1, "eval-test"] == drawn[2, "eval-test"]
    assert drawn[1, "eval-validation"] == drawn[2, "eval-validation"]


def test_tasks_carry_the_name_that_the_recipe_gives_their_suite(tmp_path, intervals):
    evolution = make(tmp_path, {"rounds": 0})
    evolution.suites = {"mine/bench": evolution.suites["workbench"]}
    evolution.learner.suites = evolution.suites
    assert {task.suite for split in ("train", "test") for task in evolution.tasks(split)} == {"mine/bench"}
    assert {row["suite"] for row in evolution()} == {"all", "mine/bench"}


def test_no_rounds_is_an_evaluation_only(tmp_path, intervals):
    evolution = make(tmp_path, {"rounds": 0, "evaluation": {"validation": 0}}, learner=watched())
    rows = evolution()
    assert {(row["round"], row["split"]) for row in rows} == {(0, "test")}
    assert evolution.learner.trained == []


def test_without_test_tasks_rounds_are_judged_and_kept_all_the_same(tmp_path, intervals):
    evolution = make(tmp_path, {"rounds": 1, "evaluation": {"tasks": 0, "baselines": True}}, learner=watched())
    assert {row["split"] for row in evolution()} == {"validation"}
    assert accepted(evolution) == [True]
    assert not any(stage.startswith("eval-test") for round in (0, 1) for stage in evolution.run.stages(round))


# ------------------------------------------------------------------------------------------------ roll-back


GATE = merged(TINY, {"suites": [{"name": "workbench", "args": {"train": 9, "validation": 24, "test": 3}}]})
"""Validation tasks enough to tell for sure that a policy got worse."""


class Planned(Watched):
    """Its skill after each training stage is planned; without skill it does nothing."""

    def __init__(self, suites, plan=(), **settings):
        super().__init__(suites, **settings)
        self.plan = list(plan)

    def _role(self, request, seed):
        return "oracle" if super()._role(request, seed) == "oracle" else "do-nothing"

    def _train(self, stage, amount):
        self.skill = self.plan[len(self.trained)]
        self.trained.append((stage, amount))
        return {}


def planned(*plan, **settings):
    return lambda suites: Planned(suites, plan, **settings)


def accepted(evolution):
    return [stages(evolution.run, n)["accept"]["accepted"] for n in range(1, evolution.recipe.rounds + 1)]


def test_a_round_that_made_it_worse_is_rolled_back(tmp_path, intervals):
    evolution = make(tmp_path, GATE, learner=planned(0.0, 0.0, skill=1.0))
    rows = evolution()
    assert set(evolution.learner.skills["collect"]) == {1.0}, "round 2 starts from the accepted policy"
    assert set(evolution.learner.skills["eval-test"]) == {1.0, 0.0}
    assert {row["round"]: row["accepted"] for row in rows} == {0: True, 1: False, 2: False}
    assert accepted(evolution) == [False, False]
    assert stages(evolution.run, 1)["accept"]["worse"] == ["utility"], "who does nothing refuses nothing"


def test_an_idle_round_is_rolled_back_where_a_margin_is_asked_for(tmp_path):
    """Round 1 changes nothing, round 2 makes it better: without the margin both are accepted."""
    learner = planned(0.3, 0.3, 1.0, 1.0, skill=0.3)
    idle = make(tmp_path / "margin", GATE, {"evaluation": {"margin": 0.05}}, learner=learner)
    idle()
    assert accepted(idle) == [False, True]
    first, second = (stages(idle.run, n)["accept"] for n in (1, 2))
    assert (first["worse"], first["gained"]) == ([], [])
    assert "utility" in second["gained"]
    without = make(tmp_path / "none", GATE, learner=planned(0.3, 0.3, 1.0, 1.0, skill=0.3))
    without()
    assert accepted(without) == [True, True]
    assert "gained" not in stages(without.run, 1)["accept"]


def test_a_margin_forgives_nothing(tmp_path):
    """One objective gains, another surely loses: the round is rolled back all the same."""
    worse = make(tmp_path, GATE, {"evaluation": {"margin": 0.01}}, learner=planned(0.0, 0.0, skill=1.0))
    worse()
    assert accepted(worse) == [False, False]
    assert stages(worse.run, 1)["accept"]["worse"] == ["utility"]


def test_the_next_round_starts_from_the_last_accepted_one(tmp_path):
    learner = planned(0.9, 0.0, 1.0, skill=0.5, repair_skill=1.0)
    evolution = make(tmp_path, GATE, {"rounds": 3, "pfpo": None}, learner=learner)
    evolution()
    assert accepted(evolution) == [True, False, True]
    assert list(dict.fromkeys(evolution.learner.skills["collect"])) == [0.5, 0.9]


def test_a_loss_within_the_tolerance_is_put_up_with(tmp_path):
    settings = {"rounds": 1, "evaluation": {"tolerance": 1.0}}
    evolution = make(tmp_path, GATE, settings, learner=planned(0.0, skill=1.0))
    evolution()
    assert accepted(evolution) == [True]


def test_without_validation_tasks_every_round_is_accepted(tmp_path, intervals):
    settings = {"rounds": 1, "evaluation": {"validation": 0}}
    evolution = make(tmp_path, GATE, settings, learner=planned(0.0, skill=1.0))
    assert {row["split"] for row in evolution()} == {"test"}
    assert accepted(evolution) == [True]


# ------------------------------------------------------------------------------------------------ resume


class Killed(Exception):
    """Stands for a kill; raised once for each place, so that the run resumed next time gets further."""


def files(path):
    """What a run must end with, by file; seconds and locks are not part of it."""
    out = {}
    for file in sorted(path.rglob("*")):
        if not file.is_file() or file.name == ".lock":  # there is one where a torn end was cut off
            continue
        data = file.read_bytes()
        if file.name == "stages.jsonl":
            records = map(json.loads, data.splitlines())
            data = [
                {key: item for key, item in record.items() if key not in ("seconds", "peak_memory_mb", "time")}
                for record in records
            ]
        out[str(file.relative_to(path))] = data
    return out


RESUMED = merged(TINY, {"warm_start": {"traces": 6}})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, intervals):
    path = tmp_path_factory.mktemp("unbroken")
    make(path, RESUMED, learner=slow_learner)()
    return files(path)


def slow_learner(suites):
    """Fails often enough to leave repairs to every round."""
    return ScriptedLearner(suites, skill=0.2, repair_skill=0.9, gain=0.1)


def run_through(path, **parts):
    """Number of kills until the run is through; each attempt is a fresh process as far as the library can tell."""
    for kills in range(200):
        try:
            make(path, RESUMED, **{"learner": slow_learner, **parts})()
        except Killed:
            continue
        return kills
    raise AssertionError("the run does not get further")


def test_the_run_that_is_compared_with_has_everything(unbroken):
    names = {name.split("/")[-1] for name in unbroken}
    assert names == {"metrics.json", "rollouts.jsonl", "repairs.jsonl", "selections.jsonl", "buffer.jsonl",
                     "stages.jsonl", "skill.json"}  # fmt: skip
    assert unbroken["rounds/00/buffer.jsonl"]
    assert unbroken["rounds/02/buffer.jsonl"]


@pytest.mark.parametrize("moment", ["start", "finish"])
def test_killed_at_every_stage_boundary_and_resumed(tmp_path, unbroken, intervals, moment):
    class Killer(Silent):
        seen = set()  # noqa: RUF012

        def kill(self, *key):
            if key not in self.seen:
                self.seen.add(key)
                raise Killed

        def start(self, round, stage, total):
            if moment == "start":
                self.kill(round, stage)

        def finish(self, summary):
            if moment == "finish":
                self.kill(summary["round"], summary["stage"])

    kills = run_through(tmp_path, reporter=Killer())
    assert kills == sum(len(data) for name, data in unbroken.items() if name.endswith("stages.jsonl"))
    assert files(tmp_path) == unbroken


@pytest.mark.parametrize("written", ["nothing", "half", "all"])
def test_killed_at_every_write_and_resumed(tmp_path, unbroken, intervals, written):
    """Every chunk and every record: before it is written, in the middle of it, and just after."""
    seen = set()

    class Dying(RunDirectory):
        def append(self, name, records):
            records = list(records)
            start = max((place.stop for place, _ in self.located(name)), default=0)  # a torn end aside
            key = (name, len(records), start)
            if key in seen:
                return super().append(name, records)
            seen.add(key)
            if written != "nothing":
                super().append(name, records)
            if written == "half" and records:
                size = (self.path / name).stat().st_size
                with open(self.path / name, "ab") as file:
                    file.truncate(start + (size - start) // 2)
            raise Killed

    kills = run_through(tmp_path, directory=Dying)
    chunks = sum(name.endswith(("rollouts.jsonl", "repairs.jsonl")) for name in unbroken)
    assert kills > 30 > chunks, "chunks as well as stages"
    assert files(tmp_path) == unbroken


def test_killed_in_every_training_stage_and_resumed(tmp_path, unbroken, intervals):
    """After the training and before its record: what was trained must neither be lost nor trained twice."""
    seen = set()

    class Dying(ScriptedLearner):
        def save(self, path):
            name = path.rpartition("/.")[2].rsplit("-", 1)[0] + path.split("/rounds/")[1][:2]
            if name not in seen:
                seen.add(name)
                raise Killed
            super().save(path)

    kills = run_through(tmp_path, learner=lambda suites: Dying(suites, skill=0.2, repair_skill=0.9, gain=0.1))
    assert kills == 7, "the warm start, and SFT, PFPO and the policy of two rounds"
    assert files(tmp_path) == unbroken


def test_asked_to_stop_at_every_chunk_and_stage_and_resumed(tmp_path, unbroken, intervals):
    """What is in hand is finished and committed; nothing is begun after it."""
    committed = []
    for _ in range(200):
        evolution = make(tmp_path, RESUMED, learner=slow_learner)
        appended, append = [], evolution.run.append

        def asked(name, records, append=append, appended=appended, evolution=evolution):
            append(name, records)
            appended.append(name)
            evolution.stop.asked = signal.SIGTERM

        evolution.run.append = asked
        try:
            evolution()
            break
        except Stopped:
            committed.append(appended)
    names = {name.split("/")[-1] for appended in committed for name in appended}
    assert names == {"rollouts.jsonl", "repairs.jsonl", "selections.jsonl", "buffer.jsonl", "stages.jsonl"}
    assert all(len([name for name in appended if name.endswith(("rollouts.jsonl", "repairs.jsonl"))]) <= 1
               for appended in committed), "one chunk, and what needs no policy"  # fmt: skip
    assert files(tmp_path) == unbroken


def test_what_is_committed_is_not_done_again(tmp_path):
    make(tmp_path, TINY)()
    again = make(tmp_path, TINY, learner=watched())
    again()
    assert again.learner.seeds == []
    assert again.learner.trained == []


def test_observers_are_not_told_twice(tmp_path):
    seen = []
    make(tmp_path, TINY, observers=[lambda record: seen.append(record["round"])])()
    make(tmp_path, TINY, observers=[lambda record: seen.append(record["round"])])()
    assert seen == [1, 2]


def test_a_resumed_round_goes_on_with_the_policy_that_was_rolled_back_to(tmp_path):
    """Killed in round 2 after round 1 was rejected: the fresh learner must take round 0's policy, not round 1's."""

    class Killer(Silent):
        def start(self, round, stage, total):
            if (round, stage) == (2, "collect"):
                raise Killed

    with pytest.raises(Killed):
        make(tmp_path, GATE, reporter=Killer(), learner=planned(0.0, skill=1.0))()
    resumed = make(tmp_path, GATE, learner=planned(0.0, skill=0.3))
    resumed()
    assert set(resumed.learner.skills["collect"]) == {1.0}


# ------------------------------------------------------------------------------------------------ acceptance


def card(*values, names=OBJECTIVES):
    """A score card; "n/a" and "error" stand for themselves."""
    words = {"n/a": Score.not_applicable(), "error": Score.error("down")}
    scores = [words[value] if isinstance(value, str) else Score(float(value)) for value in values]
    return ScoreCard(dict(zip(names, scores, strict=False)))


FLOORS = {"security": 1.0, "utility": 0.5}


@pytest.mark.parametrize(
    ("failure", "candidate", "resolves", "dominates", "floors"),
    [
        ((0, 1, 1, 1), (1, 1, 1, 1), True, True, True),
        ((0, 1, 1, 1), (1, 0.8, 1, 1), True, False, True),  # resolved, yet below the failure in one objective
        ((0, 0, 1, 1), (1, 0, 1, 1), False, True, False),  # secure by doing nothing
        ((0, 0, 1, 1), (1, 0.5, 1, 1), False, True, True),
        ((0, 0, 1, 1), (1, 1, 0, 1), False, False, True),  # a trade-off
        ((0, 0, 1, 1), (0, 0, 1, 1), False, False, False),  # no better
        ((0, 1, 1, 0.5), (0.5, 1, 1, 1), False, True, False),
        (("n/a", 0, 1, 1), ("n/a", 1, 1, 1), True, True, True),  # what does not apply has no floor
        (("n/a", 0, 1, 1), ("n/a", 0.4, 1, 1), False, True, False),
        ((0, 1, 1, 1), (1, 1, 1, "error"), False, False, False),
        ((0, 1, 1, 1), ("n/a", 1, 1, 1), False, False, False),  # what applies differs: no front can hold both
        (("n/a", 0, 1, 1), (1, 1, 1, 1), False, False, False),
    ],
)
def test_acceptance_rules(failure, candidate, resolves, dominates, floors):
    for rule, expected in (("resolves", resolves), ("dominates", dominates), ("floors", floors)):
        assert acceptable(card(*failure), card(*candidate), rule, FLOORS) is expected, rule


def dominated(a, b):
    """Whether b dominates a, in plain words."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if not math.isnan(x)]
    return all(y >= x for x, y in pairs) and any(y > x for x, y in pairs)


@pytest.mark.parametrize("name", [component.name for component in fate_trl_selectors()])
def test_the_chosen_one_is_acceptable_and_never_dominated(name):
    rng = np.random.default_rng(0)
    selector = plugins.load("selector", name)
    chosen = 0
    for _ in range(60):
        applies = ["n/a" if rng.random() < 0.2 else None for _ in OBJECTIVES]
        draw = lambda: card(*(a or rng.choice([0, 0.5, 1]) for a in applies))  # noqa: B023, E731
        failure = Failure(Trajectory(Task("t", "s", "benign", ())), card(*(a or 0 for a in applies)))
        cards = [draw() for _ in range(rng.integers(0, 7))]
        candidates = [(Trajectory(failure.trajectory.task, attempt=i), c) for i, c in enumerate(cards)]
        repair = select(failure, candidates, selector, OBJECTIVES, "dominates", {}, rng)
        vectors = [c.vector(OBJECTIVES) for c in cards]
        good = [i for i, c in enumerate(cards) if acceptable(failure.card, c, "dominates", {})]
        front = [i for i in good if not any(dominated(vectors[i], vectors[j]) for j in good)]
        assert repair.accepted == tuple(good)
        assert repair.front == tuple(front)
        assert (repair.chosen is None) == (not good)
        if good:
            assert repair.chosen in front
            assert repair.decided_by
            chosen += 1
    assert chosen > 20


def test_a_candidate_that_was_not_accepted_cannot_shape_the_front():
    """It is better than the accepted one everywhere but where the rule looks."""
    failure = Failure(Trajectory(Task("t", "s", "benign", ())), card(0, 0.5, 1, 1))
    cards = [card(0.5, 0.4, 1, 1), card(0, 0.6, 1, 1)]
    candidates = [(Trajectory(failure.trajectory.task, attempt=i), c) for i, c in enumerate(cards)]
    selector = plugins.load("selector", "pareto-front")
    repair = select(failure, candidates, selector, OBJECTIVES, "dominates", {}, np.random.default_rng(0))
    assert (repair.accepted, repair.front, repair.chosen) == ((1,), (1,), 1)


def test_accepted_but_not_resolved_is_counted(tmp_path):
    class Inert(Watched):
        """Repairs by stopping: nothing is attacked, nothing is done."""

        def _role(self, request, seed):
            return "do-nothing" if request.stage == "repair" else "obey"

    evolution = make(tmp_path, {"rounds": 1, "repair": {"accept": "dominates"}}, learner=Inert)
    evolution()
    done = stages(evolution.run, 1)["repair"]
    assert done["repaired"] > 0
    assert done["chosen_not_resolved"] == done["repaired"]
    assert done["candidates_resolved"] == 0


def test_a_random_candidate_is_drawn_whatever_its_scores():
    failure = Failure(Trajectory(Task("t", "s", "benign", ())), card(0.5, 0.5, 1, 1))
    cards = [card(1, 1, 1, 1), card(0, 0, 0, 0), card("error", 1, 1, 1), card(0.5, 0.5, 1, 1)]
    candidates = [(Trajectory(failure.trajectory.task, attempt=i), c) for i, c in enumerate(cards)]
    selector = plugins.load("selector", "pareto-front")
    rng = np.random.default_rng(0)
    drawn = Counter(select(failure, candidates, selector, OBJECTIVES, "random", {}, rng).chosen for _ in range(300))
    assert set(drawn) == {0, 1, 3}, "an error is no candidate"
    assert min(drawn.values()) > 70


# ------------------------------------------------------------------------------------------------ the buffer


def conversation(answer, prompt="Pay ann.", **changes):
    task = Task("t", "s", "benign", ({"role": "user", "content": "Pay ann."},), tools=("pay",))
    said = ({"role": "assistant", "content": answer},)
    return Trajectory(task, prompt=({"role": "user", "content": prompt},), messages=said, **changes)


def repaired(candidate, failure=None):
    return Repair(Failure(failure or conversation("No."), card(0)), (conversation("x"), candidate), (), (1,), (1,), 1)


@pytest.mark.parametrize(("target", "prompts"), [("repair", ["again"]), ("plain", ["Pay ann."]),
                                                 ("both", ["again", "Pay ann."])])  # fmt: skip
def test_a_repair_teaches_on_the_repair_prompt_the_plain_task_or_both(target, prompts):
    rows = rows_of(repaired(conversation("Done.", "again")), target, 3)
    assert [row.messages[0]["content"] for row in rows] == prompts
    for row in rows:
        assert row.messages[row.loss_from :] == ({"role": "assistant", "content": "Done."},)
        assert (row.source, row.suite, row.task, row.round, row.tools) == ("repair", "s", "t", 3, ("pay",))


@pytest.mark.parametrize("target", ["repair", "plain", "both"])
def test_sampled_tokens_are_taken_as_they_are(target):
    plain = conversation("No.", prompt_ids=(1, 2), completion_ids=(3,), policy_mask=(1,))
    again = conversation("Done.", "again", prompt_ids=(7, 8, 9), completion_ids=(4, 5, 6), policy_mask=(1, 0, 1))
    rows = rows_of(repaired(again, plain), target, 1)
    prompts = {"repair": [(7, 8, 9)], "plain": [(1, 2)], "both": [(7, 8, 9), (1, 2)]}[target]
    assert [row.prompt_ids for row in rows] == prompts
    assert {(row.completion_ids, row.policy_mask, row.messages) for row in rows} == {((4, 5, 6), (1, 0, 1), ())}


@pytest.mark.parametrize("target", ["repair", "plain", "both"])
def test_a_prompt_that_goes_on_from_the_plain_task_is_taught_once(target):
    """A resampled try has the plain prompt; a resumed one has it and the steps before the fault."""
    (row,) = rows_of(repaired(conversation("Done.")), target, 1)
    assert row.loss_from == 1
    step = {"role": "assistant", "content": "reading"}
    plain = conversation("No.")
    resumed = dataclasses.replace(plain, prompt=(*plain.prompt, step))
    (row,) = rows_of(repaired(resumed), target, 1)
    assert row.loss_from == 2, "the prefix is prompt and gets no loss"
    assert row.messages[1] == step


def test_a_failure_without_repair_teaches_nothing():
    assert rows_of(dataclasses.replace(repaired(conversation("Done.")), chosen=None), "both", 1) == []


@pytest.mark.parametrize(("target", "each"), [("repair", 1), ("plain", 1), ("both", 2)])
def test_the_recipe_says_what_is_taught(tmp_path, target, each):
    evolution = make(tmp_path, TINY, {"rounds": 1, "repair": {"target": target, "anchors": 0}})
    evolution()
    rows = buffer(evolution.run, 1)
    repairs = stages(evolution.run, 1)["repair"]["repaired"]
    assert len(rows) == each * repairs > 0
    reflected = sum("An earlier attempt failed" in row.messages[0]["content"] for row in rows)
    assert reflected == (0 if target == "plain" else repairs)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_anchors_are_passing_first_tries(tmp_path, share):
    settings = {"rounds": 1, "repair": {"anchors": share, "target": "plain"}}
    evolution = make(tmp_path, settings, learner=watched(skill=0.6))
    evolution()
    rows = buffer(evolution.run, 1)
    kept = [row for row in rows if row.source == "anchor"]
    passing = {t.task.id: t for t, c in evolution.run.cases("rounds/01/rollouts.jsonl", "collect") if c.resolved}
    assert len(kept) == int(share * (len(rows) - len(kept))) <= len(passing)
    for row in kept:
        trajectory = passing[row.task]
        assert row.messages == trajectory.prompt + trajectory.messages
    assert len({row.task for row in kept}) == len(kept)


def test_anchors_are_spread_over_the_kinds_and_no_more_than_there_are():
    def case(kind, number, *values, attempt=0):
        return Trajectory(Task(f"{kind}{number}", "s", kind, ()), attempt=attempt), card(*values)

    cases = [case("benign", n, "n/a", 1, 1, 1) for n in range(9)]
    cases += [case("harmful", n, 1, 1, "n/a", 1) for n in range(2)] + [case("attacked", 0, 0, 1, 1, 1)]
    cases += [case("benign", 0, "n/a", 1, 1, 1, attempt=1), case("attacked", 1, "error", 1, 1, 1)]
    rng = np.random.default_rng(0)
    assert Counter(row.task[:-1] for row in anchors(cases, 4, 1, rng)) == {"benign": 2, "harmful": 2}
    every = anchors(cases, 99, 1, rng)
    assert sorted(row.task for row in every) == sorted({t.task.id for t, c in cases if c.resolved})
    assert anchors(cases, 0, 1, rng) == []


@pytest.mark.parametrize(("replay", "seen"), [(True, [{1}, {1, 2}, {1, 3}, {1, 3, 4}]), (False, [{1}, {2}, {3}, {4}])])
def test_rows_of_earlier_accepted_rounds_are_replayed(tmp_path, replay, seen):
    """Round 2 is rolled back, so its rows are not taught again."""
    learner = planned(0.6, 0.0, 0.7, 1.0, skill=0.5, repair_skill=0.9)
    evolution = make(tmp_path, GATE, {"rounds": 4, "pfpo": None, "repair": {"replay": replay}}, learner=learner)
    evolution()
    assert accepted(evolution) == [True, False, True, True]
    taught = [{row.round for row in rows} for _, rows in evolution.learner.rows]
    assert taught == seen
    first = buffer(evolution.run, 1)
    assert (evolution.learner.rows[1][1][: len(first)] == first) is replay


# ------------------------------------------------------------------------------------------------ nothing to repair


def test_a_round_without_failures(tmp_path, intervals):
    evolution = make(tmp_path, {"rounds": 1}, learner=watched(skill=1.0))
    rows = evolution()
    done = stages(evolution.run, 1)
    assert done["collect"]["failures"] == done["repair"]["failures"] == done["repair"]["candidates"] == 0
    assert done["buffer"] == {**done["buffer"], "repair_rows": 0, "anchor_rows": 0}
    assert evolution.learner.rows == [], "no SFT on nothing"
    assert len(evolution.learner.prompts) == 1
    assert value(rows, "resolved", policy="round-1", **WHOLE) == 1.0


def test_a_round_without_an_acceptable_repair(tmp_path):
    class Hopeless(Watched):
        def _role(self, request, seed):
            return "do-nothing" if request.stage == "repair" else super()._role(request, seed)

    evolution = make(tmp_path, {"rounds": 1}, learner=Hopeless)
    evolution()
    done = stages(evolution.run, 1)
    assert done["repair"]["candidates"] == 3 * done["repair"]["failures"] > 0
    assert done["repair"]["candidates_accepted"] == done["repair"]["repaired"] == 0
    assert all(record["chosen"] is None for record in evolution.run.read("rounds/01/selections.jsonl"))
    assert buffer(evolution.run, 1) == []
    assert evolution.learner.rows == []
    assert done["accept"]["accepted"] is True


def test_no_more_failures_are_repaired_than_asked(tmp_path):
    settings = {"rounds": 1, "repair": {"max_failures": 4}}
    evolution = make(tmp_path, settings)
    evolution()
    done = stages(evolution.run, 1)
    assert done["collect"]["failures"] > 4
    assert done["repair"]["failures"] == 4
    assert done["repair"]["candidates"] == 12


@pytest.mark.parametrize("strategy", ["resample", "resume"])
def test_every_strategy_repairs_in_real_episodes(tmp_path, strategy):
    evolution = make(tmp_path, {"rounds": 1, "repair": {"strategy": strategy}}, learner=watched(repair_skill=0.9))
    evolution()
    done = stages(evolution.run, 1)
    assert done["repair"]["errors"] == 0
    assert done["repair"]["repaired"] > 0
    resumed = [t for t, _ in evolution.run.cases("rounds/01/repairs.jsonl", "repair") if t.replayed]
    assert bool(resumed) == (strategy == "resume")
    for trajectory in resumed:
        assert len(trajectory.prompt) > len(trajectory.task.messages)
        assert trajectory.outcome is not None


# ------------------------------------------------------------------------------------------------ errors


class Failing(Workbench):
    """A workbench of which some episodes do not open."""

    broken = ()
    reason = "no docker"

    def open(self, task):
        if task.id in self.broken:
            raise OSError(self.reason)
        return super().open(task)


def failing(count, split="train", reason="no docker"):
    def suite(**sizes):
        made = Failing(**sizes)
        made.broken = {task.id for task in longest_first(made.tasks(split, 0), {"workbench": made})[:count]}
        made.reason = reason
        return made

    return suite


def test_a_few_errors_are_counted_and_never_a_zero(tmp_path):
    evolution = make(tmp_path, {"rounds": 1}, suite=failing(3), learner=watched(skill=1.0))
    evolution()
    done = stages(evolution.run, 1)
    assert done["collect"]["errors"] == 3
    assert done["collect"]["failures"] == 0, "an error is no failure"
    assert done["collect"]["resolved"] == 21


def test_errors_among_the_held_out_tasks_are_shown_with_bounds(tmp_path, intervals):
    for split in ("test", "validation"):
        evolution = make(tmp_path / split, {"rounds": 1}, suite=failing(2, split), learner=watched(skill=1.0))
        rows = evolution()
        row = next(row for row in rows if row["split"] == split and row["suite"] == row["kind"] == "all")
        assert row["errors"]["excluded"] == 2
        assert row["metrics"]["resolved"]["n"] == 10
        assert row["metrics"]["resolved"]["error_low"] == pytest.approx(10 / 12)
        assert row["metrics"]["resolved"]["error_high"] == 1.0
        gate = stages(evolution.run, 1)["accept"]
        # Past 2 % of errors the gate cannot tell, so it accepts nothing; the run goes on.
        assert gate["accepted"] is (split == "test")
        assert ("2 of 12 cases" in gate.get("undecided", "")) is (split == "validation")


def test_past_the_error_budget_the_run_stops_names_the_causes_and_can_go_on_when_they_are_gone(tmp_path):
    broken = failing(5)
    with pytest.raises(ErrorBudgetExceeded, match=r"of 10 cases (.*\n)+.*open_failed +5 .*OSError: no docker") as stop:
        make(tmp_path, {"rounds": 1}, suite=broken)()
    assert "max_error_rate" in str(stop.value)
    assert "eval-test" in stages(RunDirectory(tmp_path), 0), "what was done before stays"
    with pytest.raises(ErrorBudgetExceeded):
        make(tmp_path, {"rounds": 1}, suite=broken)()
    make(tmp_path, {"rounds": 1})()
    assert stages(RunDirectory(tmp_path), 1)["collect"]["errors"] == 0


def test_the_budget_is_the_recipes(tmp_path):
    make(tmp_path, {"rounds": 1, "evaluation": {"max_error_rate": 0.9}}, suite=failing(5))()
    assert stages(RunDirectory(tmp_path), 1)["collect"]["errors"] == 5


def test_a_verifier_that_is_down_is_an_error_too(tmp_path):
    class Down:
        objectives = ("mine",)

        def score(self, trajectories):
            raise ConnectionError("judge is down")

    evolution = make(tmp_path, {"rounds": 1})
    evolution.verifiers = [*evolution.verifiers, Down()]
    with pytest.raises(ErrorBudgetExceeded, match=r"verifier_raised +10  Down: ConnectionError: judge is down"):
        evolution()


def test_a_split_without_tasks_says_so(tmp_path):
    sizes = {"name": "workbench", "args": {"train": 0, "validation": 0, "test": 6}}
    with pytest.raises(FateError, match="no train tasks"):
        make(tmp_path, {"suites": [sizes]})()


# ------------------------------------------------------------------------------------------------ warm start, PFPO


def test_a_warm_start_learns_from_resolved_oracle_traces_of_the_training_split(tmp_path, intervals):
    evolution = make(tmp_path, {"rounds": 1, "warm_start": {"traces": 9}}, learner=watched(skill=0.0))
    rows = evolution()
    stage, taught = evolution.learner.rows[0]
    assert stage == "warm_start"
    assert len(taught) == 9 == stages(evolution.run, 0)["warm_start"]["traces"]
    assert {row.source for row in taught} == {"oracle"}
    train = {task.id: task for task in evolution.tasks("train")}
    assert Counter(train[row.task].kind for row in taught) == {"benign": 3, "attacked": 3, "harmful": 3}
    for row in taught:
        assert row.messages[: row.loss_from] == train[row.task].messages
    assert buffer(evolution.run, 0) == taught
    resolved = [value(rows, "resolved", policy=name, **WHOLE) for name in ("base", "warm-start")]
    assert resolved[0] < resolved[1] + 0.2
    assert {(row["round"], row["policy"]) for row in rows} == {(0, "base"), (0, "warm-start"), (1, "round-1")}
    skills = evolution.learner.skills
    assert set(skills["eval-test-base"]) == {0.0}
    assert skills["eval-test"][0] == skills["collect"][0] == 0.25


def test_a_roll_back_of_the_first_round_goes_to_the_warm_start(tmp_path):
    settings = {"warm_start": {"traces": 6}, "sft": None}
    evolution = make(tmp_path, GATE, settings, learner=planned(0.9, 0.0, 0.0, skill=0.1))
    evolution()
    assert set(evolution.learner.skills["collect"]) == {0.9}
    assert accepted(evolution) == [False, False]


def test_a_warm_start_without_traces_says_what_to_do(tmp_path):
    class NoOracle(Workbench):
        def script(self, task, role):
            return None

        def tasks(self, split, seed=0):
            return [task for task in super().tasks(split, seed) if task.kind != "harmful"]

    with pytest.raises(FateError, match=r"warm_start: no oracle trace .*suites check"):
        make(tmp_path, {"warm_start": {}}, suite=NoOracle)()


@pytest.mark.parametrize("prompts", ["plain", "repair", "mixed"])
def test_what_pfpo_samples_on(tmp_path, prompts):
    evolution = make(tmp_path, {"rounds": 1, "pfpo": {"prompts": prompts}}, learner=watched())
    evolution()
    (asked,) = evolution.learner.prompts
    collected = evolution.run.cases("rounds/01/rollouts.jsonl", "collect")
    failed = {t.task.id for t, c in collected if c.failed}
    plain = [request for request in asked if request.messages == request.task.messages]
    reflected = [request for request in asked if "An earlier attempt failed" in request.messages[-1]["content"]]
    assert len(plain) + len(reflected) == len(asked)
    assert len(plain) == (0 if prompts == "repair" else 24)
    assert {request.task.id for request in reflected} == (set() if prompts == "plain" else failed)
    assert len(reflected) in (0, len(failed))
    assert {request.stage for request in asked} == {"pfpo"}


def test_pfpo_on_resumed_failures_restores_their_state(tmp_path):
    settings = {"rounds": 1, "pfpo": {"prompts": "repair"}, "repair": {"strategy": "resume"}}
    evolution = make(tmp_path, settings, learner=watched())
    evolution()
    (asked,) = evolution.learner.prompts
    assert any(request.replay for request in asked)
    assert all(bool(request.replay) == (len(request.messages) > 1) for request in asked)


def test_without_failures_pfpo_samples_on_plain_tasks(tmp_path):
    evolution = make(tmp_path, {"rounds": 1, "pfpo": {"prompts": "repair"}}, learner=watched(skill=1.0))
    evolution()
    assert len(evolution.learner.prompts[0]) == 24


@pytest.mark.parametrize(("left_out", "trained"), [("sft", ["pfpo"]), ("pfpo", ["sft"])])
def test_a_stage_can_be_left_out(tmp_path, left_out, trained):
    evolution = make(tmp_path, TINY, {"rounds": 1, left_out: None})
    evolution()
    assert [stage for stage, _ in evolution.learner.trained] == trained
    assert left_out not in stages(evolution.run, 1)


# ------------------------------------------------------------------------------------------------ sampling tasks


def tasks_of(**counts):
    return [Task(f"{kind}{n}", "s", kind, ()) for kind, count in counts.items() for n in range(count)]


@pytest.mark.parametrize(
    ("counts", "wanted", "got"),
    [
        ({"benign": 50, "attacked": 50, "harmful": 50}, 30, {"benign": 10, "attacked": 10, "harmful": 10}),
        ({"benign": 50, "attacked": 50, "harmful": 2}, 30, {"benign": 14, "attacked": 14, "harmful": 2}),
        ({"benign": 50, "harmful": 50}, 11, {"benign": 6, "harmful": 5}),
        ({"attacked": 4}, 3, {"attacked": 3}),
        ({"benign": 2, "attacked": 2}, 9, {"benign": 2, "attacked": 2}),
        ({"benign": 2, "attacked": 2}, None, {"benign": 2, "attacked": 2}),
        ({"benign": 2}, 0, {}),
        ({}, 3, {}),
    ],
)
def test_tasks_are_drawn_evenly_over_the_kinds(counts, wanted, got):
    tasks = tasks_of(**counts)
    drawn = sample_tasks(tasks, wanted, np.random.default_rng(0))
    assert Counter(task.kind for task in drawn) == got
    assert len(set(task.id for task in drawn)) == len(drawn)
    assert drawn == [task for task in tasks if task in drawn], "in their own order"


def test_drawing_depends_on_the_generator_alone():
    tasks = tasks_of(benign=50, harmful=50)
    one, two, other = (sample_tasks(tasks, 20, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one == two
    assert one != other


def test_the_longest_prompts_come_first_tools_included_and_the_order_is_kept_otherwise():
    def read(path: str) -> str:
        """Reads a file, and says at some length what it does."""

    class Tools:
        def tools(self):
            return {"read": read}

    short, tooled, long = tasks_of(benign=3)
    tooled = dataclasses.replace(tooled, tools=("read",))
    long = dataclasses.replace(long, messages=({"role": "user", "content": "x" * 1000},), tools=("read",))
    other = dataclasses.replace(short, id="other")
    assert longest_first([short, tooled, other, long], {short.suite: Tools()}) == [long, tooled, short, other]


def test_a_strategy_that_numbers_its_attempts_wrongly_is_stopped_before_it_rolls_out(tmp_path):
    evolution = make(tmp_path, {"rounds": 1})
    right = evolution.repair

    class Misnumbered:
        def requests(self, failures, k, rng):
            return [dataclasses.replace(r, of=r.of + 1) for r in right.requests(failures, k, rng)]

    evolution.repair = Misnumbered()
    with pytest.raises(FateError, match="belongs to no failure"):
        evolution()
    assert "repair" not in stages(evolution.run, 1)


# ------------------------------------------------------------------------------------------------ parts left out


RL_ONLY = {"repair": None, "sft": None, "pfpo": {}}


def test_without_repair_nothing_is_collected_and_pfpo_samples_the_rounds_tasks(tmp_path):
    evolution = make(tmp_path, {"rollout": {"tasks": 9}, **RL_ONLY}, learner=Watched)
    evolution()
    for round in (1, 2):
        assert list(stages(evolution.run, round)) == ["pfpo", "save", "eval-validation", "eval-test", "accept"]
    first, second = ({request.task.id for request in prompts} for prompts in evolution.learner.prompts)
    assert len(first) == len(second) == 9
    assert first != second
    assert {request.stage for request in evolution.learner.prompts[0]} == {"pfpo"}


@pytest.mark.parametrize("changes", [{}, RL_ONLY])
def test_training_on_some_kinds_alone(tmp_path, changes):
    rollout = {"rollout": {"kinds": ["attacked", "harmful"]}}
    evolution = make(tmp_path, {"rounds": 1}, rollout, {"pfpo": {}}, changes, learner=Watched)
    evolution()
    assert {request.task.kind for request in evolution.learner.prompts[0]} == {"attacked", "harmful"}
    assert {t.task.kind for t, _ in evolution.run.cases("rounds/01/rollouts.jsonl", "eval-test")} == {*KINDS}


def test_repairs_may_be_chosen_by_a_selector_of_their_own(tmp_path):
    recipe = make_recipe(merged(BASE, {"selector": "gdpo", "repair": {"selector": "chebyshev"}}))
    given = []
    evolution = assemble(recipe, RunDirectory(tmp_path), lambda *parts: given.append(parts) or Watched(parts[0]))
    assert type(evolution.selector).__name__ == "Chebyshev"
    assert type(given[0][2]).__name__ == "GDPO"


class Thirsty(Watched):
    """Its training takes a hundred tokens a stage."""

    def sft(self, rows, seed, stage, scratch=None):
        return {**super().sft(rows, seed, stage), "trained_tokens": 100}


@pytest.mark.parametrize(("budget", "rounds"), [(100, 1), (149, 1), (150, 2), (249, 2), (250, 3), (9999, 4)])
def test_a_token_budget_ends_the_run_after_the_round_that_comes_closest(tmp_path, budget, rounds):
    changes = {"rounds": 4, "pfpo": None, "token_budget": budget}
    for _ in range(2):  # a resumed run keeps to it
        make(tmp_path, TINY, changes, learner=Thirsty)()
        assert len(list((tmp_path / "rounds").iterdir())) == 1 + rounds


def test_tokens_of_a_round_are_those_that_training_took():
    done = {
        "collect": {"prompt_tokens": 5, "sampled_tokens": 7},
        "sft": {"trained_tokens": 11},
        "eval-validation": {"prompt_tokens": 13, "sampled_tokens": None},
        "eval-test": {"prompt_tokens": 1000, "sampled_tokens": 1000},
        "save": {},
    }
    assert tokens_of_round(done) == 36


def test_tool_results_are_tokens_that_the_policy_reads():
    trajectory = Trajectory(
        Task("t", "s", "benign", ()), prompt_ids=(1, 2), completion_ids=(3, 4, 5), policy_mask=(1, 0, 1)
    )
    assert tokens([(trajectory, card(1, 1, 1, 1))]) == {"prompt_tokens": 3, "sampled_tokens": 2}
