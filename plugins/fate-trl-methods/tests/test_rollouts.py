"""Repair strategies of the family `rollouts`: on the workbench with a scripted learner that heeds some hints."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
pytest.importorskip("test_evolution")

from fate_trl_methods.rollouts import ACTIONS, Reset, Scaffold
from test_evolution import TINY, Killed, files, make, merged

from fate_trl import RecipeError, Repair, metrics, plugins, repairs
from fate_trl.loop.repairing import failures_of
from fate_trl.loop.reporter import Silent
from fate_trl.record import stable_hash
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.testing import samples

SCAFFOLD = merged(
    TINY,
    {"suites": [{"name": "workbench", "args": {"train": 18, "validation": 6, "test": 6}}]},
    {"repair": {"strategy": "rollouts/scaffold", "target": "repair"}, "rollout": {"chunk": 7}, "rounds": 1},
)
SUGGESTED = "What to do instead:"


@pytest.fixture(autouse=True)
def no_intervals(monkeypatch):
    monkeypatch.setattr(metrics, "rows", lambda *_, **__: [])


class Heeds(ScriptedLearner):
    """Fails every plain task; on a repair prompt, each task needs a hint of its own tier, or is beyond help."""

    def _role(self, request, seed):
        if request.stage != "repair":
            return "obey" if request.task.kind != "benign" else "do-nothing"
        return "oracle" if tier_of(request.messages[-1]["content"]) >= needed(request.task) else "do-nothing"


def tier_of(text):
    """Hints in a prompt: 0 for the cause alone, 2 where an action is suggested."""
    return 2 if SUGGESTED in text else 1 if "An earlier attempt failed:\nyou " in text else 0


def needed(task):
    return stable_hash(task.id) % 4


def scaffolded(path, **parts):
    evolution = make(path, SCAFFOLD, learner=lambda suites: Heeds(suites, repair_skill=0.0), **parts)
    evolution()
    return evolution


def stage(run, name, round=1):
    (record,) = [r for r in run.read(f"rounds/{round:02d}/stages.jsonl") if r["stage"] == name]
    return record


def test_scaffold_gives_the_next_hint_only_to_failures_without_a_repair_and_stops_at_the_smallest(tmp_path):
    run = scaffolded(tmp_path).run
    cases = run.cases("rounds/01/repairs.jsonl", "repair")
    failures = {f.trajectory.task.id: f for f in failures_of(run.cases("rounds/01/rollouts.jsonl", "collect"))}
    seen = {}
    for trajectory, card in cases:
        seen.setdefault(trajectory.task.id, []).append((tier_of(trajectory.prompt[-1]["content"]), card.resolved))
    assert seen.keys() == failures.keys()
    located = {name: repairs.fault(failure) is not None for name, failure in failures.items()}
    for name, tries in seen.items():
        tiers = [0, 1, 2] if located[name] else [0, 2]
        wanted = needed(failures[name].trajectory.task)
        last = next((n for n, tier in enumerate(tiers) if tier >= wanted), len(tiers) - 1)
        assert [tier for tier, _ in tries] == [tier for tier in tiers[: last + 1] for _ in range(2)], "two of each tier"
        assert not any(resolved for tier, resolved in tries if tier < wanted)
    assert {needed(f.trajectory.task) for f in failures.values()} >= {0, 2, 3}, "there is something to tell apart"
    record = stage(run, "repair")
    assert record["asked"][0]["failures"] == len(failures)
    left = [step["failures"] - step["repaired"] for step in record["asked"]]
    assert [step["failures"] for step in record["asked"][1:]] == left[:-1]
    assert sum(step["candidates"] for step in record["asked"]) == record["candidates"] == len(cases)


def test_scaffold_killed_at_every_chunk_and_resumed_equals_a_run_that_was_not(tmp_path):
    """Also between two steps, and in the middle of the second."""
    scaffolded(tmp_path / "whole")
    seen = set()

    class Killer(Silent):
        def advance(self, count=1, cases=(), log=None):
            keys = tuple(trajectory.key for trajectory, _ in cases or ())
            if keys and keys not in seen:
                seen.add(keys)
                raise Killed

    kills = 0
    while True:
        try:
            scaffolded(tmp_path / "killed", reporter=Killer())
            break
        except Killed:
            kills += 1
    assert any("repair" in key for keys in seen for key in keys)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_scaffold_hints_add_up_and_end_after_the_last():
    strategy, (failure, *_) = Scaffold(), [f for f in samples.failures() if repairs.fault(f) is not None]
    texts = [strategy.prompt(failure, strategy.tiers[: n + 1])[-1]["content"] for n in range(3)]
    assert ["What was wrong:" in text for text in texts] == [True, True, True]
    assert [tier_of(text) for text in texts] == [0, 1, 2]
    assert all(text.startswith(failure.trajectory.task.messages[-1]["content"]) for text in texts)
    assert any(ACTIONS[name] in texts[2] for name in failure.card.failed)
    repair = Repair(failure)
    assert [len(strategy.again([repair], step, 3, None)) for step in (1, 2, 3)] == [3, 3, 0]
    numbers = [r.attempt for step in (1, 2) for r in strategy.again([repair], step, 3, None)]
    numbers += [r.attempt for r in strategy.requests([failure], 3, None)]
    assert len(set(numbers)) == 9


def test_scaffold_takes_tiers_that_there_are():
    assert plugins.load("repair", "rollouts/scaffold", {"tiers": ["cause", "action"]}).tiers == ("cause", "action")
    with pytest.raises(RecipeError, match="tiers"):
        plugins.load("repair", "rollouts/scaffold", {"tiers": ["answer"]})


def long_failures():
    """Failures of several messages of the policy's own."""
    found = [f for f in samples.failures() if sum(m["role"] == "assistant" for m in f.trajectory.messages) > 2]
    assert len(found) > 3
    return found


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_reset_cuts_its_share_and_all_of_a_group_at_one_place(share):
    failures, rng = long_failures() * 200, np.random.default_rng(0)
    asked = Reset(share=share).requests(failures, 3, rng)
    groups = [asked[3 * n : 3 * n + 3] for n in range(len(failures))]
    assert all(len({len(request.messages) for request in group}) == 1 for group in groups)
    places = [len(g[0].messages) - len(f.trajectory.prompt) for g, f in zip(groups, failures, strict=True)]
    own = [[i for i, m in enumerate(f.trajectory.messages) if m["role"] == "assistant"] for f in failures]
    cut = [place > 0 for place in places]
    expected = share * np.mean([1 - 1 / len(each) for each in own])  # the first message's cut is the start itself
    assert np.mean(cut) == pytest.approx(expected, abs=0.05)
    assert all(place in (0, *each) for place, each in zip(places, own, strict=True))
    assert share < 1 or {places[n] for n in range(0, len(places), len(long_failures()))} == set(own[0])


def test_reset_starts_with_the_prefix_as_prompt_and_its_calls_replayed():
    """No loss can fall on what is prompt; an episode that replays the calls is where the failure was."""
    failures = long_failures()
    for failure, request in zip(
        failures, Reset(share=1.0).requests(failures, 1, np.random.default_rng(1)), strict=True
    ):
        own = failure.trajectory
        cut = len(request.messages) - len(own.prompt)
        assert request.messages == own.prompt + own.messages[:cut]
        assert request.replay == own.calls[: len(request.replay)]
        assert len(request.replay) == own.replayed + repairs.executed(own, cut)
        assert request.observed


def test_reset_at_the_fault_is_resume():
    failures = long_failures()
    asked = Reset(share=1.0, cut="fault").requests(failures, 2, np.random.default_rng(0))
    assert asked == repairs.Resume().requests(failures, 2, np.random.default_rng(0))


def test_reset_repairs_and_trains_in_real_episodes(tmp_path):
    """In a run: candidates replay what the failure did, none diverges, and PFPO's prompts go on from cuts too."""
    changes = {
        "repair": {"strategy": {"name": "rollouts/reset", "args": {"share": 1.0}}},
        "pfpo": {"prompts": "repair"},
    }
    prompts = []

    class Seen(ScriptedLearner):
        def _role(self, request, seed):
            return "oracle" if request.stage != "collect" else "obey"

        def pfpo(self, requests, seed, scratch=None):
            prompts.extend(requests)
            return super().pfpo(requests, seed)

    evolution = make(tmp_path, TINY, changes, learner=Seen)
    evolution()
    cases = evolution.run.cases("rounds/01/repairs.jsonl", "repair")
    assert any(trajectory.replayed for trajectory, _ in cases)
    assert not any(trajectory.error for trajectory, _ in cases)
    assert any(request.replay for request in prompts)
    assert all(request.observed for request in prompts)
