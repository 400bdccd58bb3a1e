"""Budgets in the rounds: who gets how many tries, what they are told, and that they are killed and rolled back well."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from test_evolution import GATE, TINY, Killed, files, merged, planned, stages
from test_evolution import make as make_plain

from fate_trl import metrics, plugins
from fate_trl.errors import PluginError, RecipeError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.budgets import Budgets
from fate_trl.loop.policies import load_policy
from fate_trl.loop.reporter import Silent
from fate_trl.recipe.loading import make_recipe
from fate_trl.recipe.schema import budgets_in
from fate_trl.report.summary import _items
from fate_trl.suites.scripted import ScriptedLearner

FILE = str(Path(__file__).parent / "budget_plugins.py")
FLAT, HARDEST = f"{FILE}/flat", f"{FILE}/hardest"
PLACES = {
    "collect": ("rollout", "budget"),
    "repair": ("repair", "budget"),
    "buffer": ("repair", "keep"),
    "pfpo": ("pfpo", "budget"),
}


def everywhere(name, **more):
    changes = {}
    for section, key in PLACES.values():
        changes.setdefault(section, {})[key] = {"name": name, **more}
    return changes


@pytest.fixture(autouse=True)
def no_intervals(monkeypatch):
    monkeypatch.setattr(metrics, "rows", lambda *_, **__: [])


class Counting(ScriptedLearner):
    """Says what each prompt of PFPO came to: a group of four, of which as many resolve as its id's hash has it."""

    def pfpo(self, requests, seed, scratch=None):
        drawn = Counter(f"{r.task.suite}/{r.task.id}" for r in requests)
        self.drawn = [*getattr(self, "drawn", []), drawn]
        tried = {key: [4 * count, len(key) % 5] for key, count in drawn.items()}
        return {**super().pfpo(requests, seed), "tried": tried}


def slow(suites):
    return Counting(suites, skill=0.3, repair_skill=0.4, gain=0.05)


def make(path, *changes, learner=slow, **parts):
    evolution = make_plain(path, TINY, *changes, learner=learner, **parts)
    references = budgets_in(evolution.recipe)
    made = {stage: plugins.load("budget", ref.name, ref.args) for stage, (ref, _) in references.items()}
    evolution.budgets = Budgets.of(evolution.recipe, made)
    return evolution


def without_budgets(found):
    for name, data in found.items():
        if name.endswith("stages.jsonl"):
            found[name] = [{key: value for key, value in record.items() if key != "budget"} for record in data]
    return found


def test_equal_shares_leave_the_ledger_as_it_is_without_budgets(tmp_path):
    make(tmp_path / "none", {"preference": {}})()
    make(tmp_path / "flat", {"preference": {}}, everywhere(FLAT))()
    assert without_budgets(files(tmp_path / "flat")) == without_budgets(files(tmp_path / "none"))
    told = {name: record["budget"] for name, record in stages(RunDirectory(tmp_path / "flat"), 1).items()
            if "budget" in record}  # fmt: skip
    assert told.keys() == {"collect", "repair", "pfpo"}
    assert told["collect"] == {"items": 9, "tries": 9, "none": 0, "least": 1, "most": 1}
    assert told["repair"]["least"] == told["repair"]["most"] == 2


def test_what_it_was_told_changes_the_next_round_and_the_sums_are_exact(tmp_path):
    run = make(tmp_path, everywhere(HARDEST), {"rounds": 3})
    run()
    for round in (1, 2, 3):
        done = stages(run.run, round)
        failures = done["collect"]["failures"]
        assert done["collect"]["budget"]["tries"] == done["collect"]["trajectories"] == 9
        assert done["repair"]["candidates"] == done["repair"]["budget"]["tries"] == 2 * failures
        assert done["pfpo"]["budget"]["tries"] == 9
    of_task = [Counter(t.task.id for t, _ in run.run.cases(f"rounds/0{r}/rollouts.jsonl", "collect")) for r in (1, 2)]
    assert len(of_task[1]) < 9, "some task gets more, so some gets none"
    failed = {t.task.id for t, card in run.run.cases("rounds/01/rollouts.jsonl", "collect") if card.failed}
    assert set(of_task[1]) - (of_task[0].keys() - failed), "what was seen to fail, or was not tried, comes first"
    assert run.learner.drawn[0] != run.learner.drawn[1]
    assert all(sum(drawn.values()) == 9 for drawn in run.learner.drawn)


def test_keeping_half_of_the_repairs(tmp_path):
    run = make(tmp_path, {"repair": {"keep": {"name": FLAT, "share": 0.5}, "anchors": 0, "target": "repair"}})
    run()
    done = stages(run.run, 1)
    repaired = done["repair"]["repaired"]
    assert repaired > 1
    assert done["buffer"]["repair_rows"] == int(repaired / 2 + 0.5)


@pytest.mark.parametrize("moment", ["start", "finish"])
def test_killed_at_every_stage_boundary_and_resumed(tmp_path, moment):
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

    make(tmp_path / "whole", everywhere(HARDEST))()
    kills = 0
    while True:
        try:
            make(tmp_path / "killed", everywhere(HARDEST), reporter=Killer())()
            break
        except Killed:
            kills += 1
    assert kills > 12
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert (tmp_path / "whole/rounds/02/policy/budgets.json").is_file()


def test_a_round_that_is_rolled_back_takes_the_state_along(tmp_path):
    planning = merged(GATE, everywhere(HARDEST), {"rounds": 1})
    rejected = make_plain(tmp_path, planning, learner=planned(0.0, skill=1.0))
    references = budgets_in(rejected.recipe)
    rejected.budgets = Budgets.of(
        rejected.recipe, {stage: plugins.load("budget", ref.name) for stage, (ref, _) in references.items()}
    )
    rejected()
    assert not stages(rejected.run, 1)["accept"]["accepted"]
    collecting = rejected.budgets.made["collect"]
    assert collecting.seen, "it was told"

    load_policy(rejected.learner, rejected.run, 0, rejected.budgets)
    assert collecting.seen == {}
    load_policy(rejected.learner, rejected.run, 1, rejected.budgets)
    assert collecting.seen


@pytest.mark.parametrize(
    ("how", "said"),
    [
        *((how, "one whole number") for how in ("few", "half", "nan", "infinite", "texts", "none")),
        ("sum", "add up"),
        ("high", "bounds"),
    ],
)
def test_a_budget_that_does_not_add_up_is_stopped_before_anything_is_rolled_out(tmp_path, how, said):
    run = make(tmp_path, {"rollout": {"budget": {"name": f"{FILE}/wrong", "args": {"how": how}}}})
    with pytest.raises(PluginError, match=said):
        run()
    assert not (tmp_path / "rounds/01/rollouts.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"repair": {"k": 4, "budget": {"name": FLAT, "low": 5}}}, "repair.budget: one item gets 4 tries on average"),
        ({"repair": {"k": 4, "budget": {"name": FLAT, "high": 3}}}, "repair.budget"),
        ({"repair": {"keep": {"name": FLAT, "share": 2}}}, "repair.keep"),
        ({"pfpo": {"budget": {"name": FLAT, "low": 2}}}, "pfpo.budget"),
        ({"repair": None, "sft": None, "rollout": {"budget": FLAT}}, "rollout.budget has no rollouts"),
        ({"rollout": {"budget": {"name": FLAT, "share": 0}}}, "greater than 0"),
        ({"rollout": {"budget": {"name": FLAT, "lowest": 0}}}, "lowest"),
        ({"rollout": {"budget": {"name": f"{FILE}/flattest"}}}, "flat"),
    ],
)
def test_bounds_that_cannot_be_kept_are_said_before_a_model_loads(changes, said):
    with pytest.raises((RecipeError, PluginError), match=said):
        make_recipe(merged({"suites": ["workbench"]}, changes))


def test_the_report_says_how_tries_were_shared_out(tmp_path):
    run = make(tmp_path, everywhere(HARDEST), {"rounds": 2})
    run()
    done = stages(run.run, 2)
    said = _items(done["repair"])
    budget = done["repair"]["budget"]
    assert f"budget: {budget['tries']} tries over {budget['items']} items" in said
    assert f"known {budget['known']:.3g}" in said
    steps = {"candidates": 6, "asked": [{"failures": 3, "candidates": 6, "repaired": 1}]}
    assert _items(steps) == "6 candidates, repaired step by step: 1 of 3"
