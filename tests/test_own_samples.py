"""Samples of the policy's own for pair losses: a stage of its own, its chunks, its tokens, and what becomes of them."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext

import pytest
import tiny
import torch
from test_checkpoints import Killed
from test_pair_facts import FULL, Asks
from test_preference import FAILED, KEYS, RUN, TASK, Tokens, run_in
from test_stages import folder, learner, requests  # noqa: F401 (a fixture)

from fate_trl.errors import FateError, RecipeError
from fate_trl.ledger import fsck
from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.loop.counts import tokens_of_round
from fate_trl.loop.own import own_requests, own_summary, with_own
from fate_trl.recipe.loading import make_recipe
from fate_trl.report.reading import Run
from fate_trl.report.summary import summarise
from fate_trl.train.preference import rows_of, tokens_in
from fate_trl.types import ScoreCard

torch.set_num_threads(1)

ASKS = """
from fate_trl import Component, hookimpl
class Asks:
    needs = ("own",)
    def __call__(self, batch): ...
@hookimpl
def fate_trl_pair_losses():
    return [Component("asks", Asks, "asks for own samples")]
"""


@pytest.fixture
def asks(tmp_path):
    """The recipe's `preference` with a loss that asks for own samples."""
    file = tmp_path / "asks.py"
    file.write_text(ASKS)
    return {"loss": str(file)}


def own_of(run, round=1):
    return RunReader.open(run).cases(f"rounds/{round:02}/rollouts.jsonl", "own")


def test_own_samples_stand_in_the_run_and_with_their_pairs(tmp_path, asks):
    evolution = run_in(tmp_path / "run", preference=asks)
    stages = list(RunReader.open(tmp_path / "run").stages(1))
    assert stages.index("pairs") < stages.index("own") < stages.index("preference")
    seen, cases = evolution.learner.seen, own_of(tmp_path / "run")
    assert len(seen) == len(cases) > 0
    for pair, (trajectory, card) in zip(seen, cases, strict=True):
        assert (pair.suite, pair.task) == (trajectory.task.suite, trajectory.task.id)
        assert (pair.own_ids, pair.own_mask) == (trajectory.completion_ids, trajectory.policy_mask)
        assert trajectory.prompt == trajectory.task.messages, "the plain prompt"
        assert card == ScoreCard({}), "nothing asks how good it is"
    written = RunReader.open(tmp_path / "run").read("rounds/01/pairs.jsonl")
    assert not any("own_ids" in record for record in written), "pairs are made before it"


def test_own_samples_cost_nothing_where_none_are_asked_for(tmp_path):
    evolution = run_in(tmp_path / "run", preference={})
    assert "own" not in RunReader.open(tmp_path / "run").stages(1)
    assert own_of(tmp_path / "run") == []
    assert all(pair.own_ids == () for pair in evolution.learner.seen)


def test_own_samples_are_fresh_in_each_round(tmp_path, asks):
    class Drawn(Tokens):
        def rollout(self, requests, seed):
            return [dataclasses.replace(t, completion_ids=(seed % 97, 4, 5)) for t in super().rollout(requests, seed)]

    recipe, run = make_recipe({**RUN, "rounds": 2, "preference": asks}), RunDirectory(tmp_path / "run")
    run.write_text("recipe.yaml", recipe.dump())
    assemble(recipe, run, lambda suites, *_: Drawn(suites, gain=0.0))()
    first, second = ({t.completion_ids for t, _ in own_of(tmp_path / "run", n)} for n in (1, 2))
    assert first
    assert second
    assert first.isdisjoint(second)


def test_own_samples_are_counted_in_tokens(tmp_path, asks):
    run_in(tmp_path / "run", preference=asks)
    stages = RunReader.open(tmp_path / "run").stages(1)
    own = stages["own"]
    assert own["trajectories"] == stages["pairs"]["pairs"]
    assert own["sampled_tokens"] == 2 * own["trajectories"], "of each three, one of which a tool said"
    assert own["prompt_tokens"] == 3 * own["trajectories"]
    without = tokens_of_round({name: record for name, record in stages.items() if name != "own"})
    assert tokens_of_round(stages) == without + 5 * own["trajectories"]
    rows = [rows_of(FULL[:1], None, Asks(*needs), tiny.make_tokenizer())[0] for needs in ((), ("own",))]
    assert tokens_in(rows[1]) - tokens_in(rows[0]) == len(FULL[0].prompt_ids + FULL[0].own_ids)


class Dies(Tokens):
    """Is killed in its n-th call of `rollout` for own samples."""

    left = 0

    def rollout(self, requests, seed):
        if requests[0].stage == "own":
            if not self.left:
                raise Killed
            self.left -= 1
        return super().rollout(requests, seed)


@pytest.mark.parametrize("after", [0, 1])
def test_own_samples_of_a_run_that_was_killed_are_the_same(tmp_path, asks, after):
    """In the first chunk, and in the second; the chunk that was committed is not done again."""
    changes = {"preference": asks, "rollout": {"chunk": 2}}
    whole = run_in(tmp_path / "whole", **changes).learner.seen
    recipe, run = make_recipe({**RUN, **changes}), RunDirectory(tmp_path / "part")
    run.write_text("recipe.yaml", recipe.dump())

    def dying(suites, *_):
        made = Dies(suites)
        made.left = after
        return made

    with pytest.raises(Killed):
        assemble(recipe, run, dying)()
    assert len(own_of(tmp_path / "part")) == 2 * after
    resumed = run_in(tmp_path / "part", **changes).learner.seen
    assert resumed == whole
    for name in ("rollouts", "pairs"):
        files = [(tmp_path / which / f"rounds/01/{name}.jsonl").read_bytes() for which in ("whole", "part")]
        assert files[0] == files[1]


def test_own_samples_that_are_there_are_not_drawn_again(tmp_path, asks):
    """The run is killed in the training that follows."""
    with pytest.raises(Killed):
        run_in(tmp_path / "run", deadly=True, preference=asks)
    before = (tmp_path / "run/rounds/01/rollouts.jsonl").read_bytes()
    evolution = run_in(tmp_path / "run", preference=asks)
    assert (tmp_path / "run/rounds/01/rollouts.jsonl").read_bytes().startswith(before)
    assert [pair.own_ids for pair in evolution.learner.seen] == [t.completion_ids for t, _ in own_of(tmp_path / "run")]


@pytest.mark.parametrize("deadly", [True, False], ids=["before they are learned from", "afterwards"])
def test_own_samples_that_are_damaged_are_drawn_again_while_the_policy_is_the_same(tmp_path, asks, deadly):
    with pytest.raises(Killed) if deadly else nullcontext():
        run_in(tmp_path / "run", deadly=deadly, preference=asks)
    file, good = tmp_path / "run/rounds/01/rollouts.jsonl", own_of(tmp_path / "run")
    lines = file.read_bytes().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if json.loads(line)["stage"] == "own")
    file.write_bytes(b"".join([*lines[:at], b"{]\n", *lines[at + 1 :]]))
    (damage,) = fsck.repair(RunDirectory(tmp_path / "run"))
    assert damage.again == {"own"}
    run_in(tmp_path / "run", preference=asks)
    assert own_of(tmp_path / "run") == (good if deadly else [])


def test_own_samples_that_broke_or_answer_another_prompt_are_left_out():
    one, other = (dataclasses.replace(pair, own_ids=(), own_mask=()) for pair in FULL[:2])
    sampled = dataclasses.replace(FAILED, prompt_ids=one.prompt_ids, completion_ids=(5, 6), policy_mask=(1, 1))
    broken = dataclasses.replace(sampled, error="no room", cause="tool_failed")
    cases = [(trajectory, ScoreCard({})) for trajectory in (sampled, broken, sampled)]
    given = with_own([one, one, other], cases)
    assert [pair.own_ids for pair in given] == [(5, 6), (), ()]
    assert len(rows_of(given, None, Asks("own"), tiny.make_tokenizer())) == 1
    told = own_summary([one, one, other], cases)
    assert (told["trajectories"], told["own_left_out"], told["errors"]) == (3, 2, 1)


def test_own_samples_of_pairs_of_one_task_are_numbered():
    pairs = [dataclasses.replace(FULL[0], task=name) for name in ("t", "u", "t", "t")]
    tasks = [dataclasses.replace(TASK, id=name) for name in ("u", "t")]
    asked = own_requests(pairs, tasks)
    assert [(r.task.id, r.stage, r.attempt) for r in asked] == [
        ("t", "own", 0),
        ("u", "own", 0),
        ("t", "own", 1),
        ("t", "own", 2),
    ]


@pytest.mark.parametrize("shared", [False, True], ids=["each by itself", "shared prefixes"])
def test_own_samples_of_a_model_stand_under_the_pairs_prompt_and_are_learned_from(folder, shared):  # noqa: F811
    """The engine that collects samples them; what it wrote gets a gradient, and what tools said none."""
    made = learner(folder, preference={**KEYS, "max_steps": 2})
    made.recipe.share_prefixes = shared
    collected = made.rollout(requests(made), 1)
    pairs = [
        dataclasses.replace(
            FULL[0], suite=t.task.suite, task=t.task.id, prompt_ids=t.prompt_ids, repair=n, own_ids=(), own_mask=()
        )
        for n, t in enumerate(collected)
    ]
    own = made.rollout(own_requests(pairs, made.tasks), 2)
    given = with_own(pairs, [(trajectory, ScoreCard({})) for trajectory in own])
    assert all(any(pair.own_mask) for pair in given)
    made.pair_loss = Own()
    told = made.preference(given, 3)
    assert told["rows"] == len(pairs)
    assert made.pair_loss.moved > 0


class Own(Asks):
    """Raises what the policy wrote by itself."""

    def __init__(self):
        super().__init__("own")
        self.moved = 0.0

    def __call__(self, batch):
        self.moved += float(batch.own.logps_B_T.detach().abs().sum())
        return super().__call__(batch) - batch.own.log_ratio_B.mean()


def test_own_samples_stand_in_the_report(tmp_path, asks):
    run_in(tmp_path / "run", preference=asks)
    (row,) = [row for row in summarise(Run.open(tmp_path / "run"))["cost"] if row["stage"] == "own"]
    assert row["sampled_tokens"] > 0


def test_own_samples_of_no_pair_at_all_are_an_error(folder):  # noqa: F811
    made = learner(folder, preference=KEYS)
    made.pair_loss = Asks("own")
    with pytest.raises(FateError, match="Asks needs a sample of the policy's own on the pair's prompt, and none of 4"):
        made.preference([dataclasses.replace(pair, own_ids=(), own_mask=()) for pair in FULL], 3)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"repair": None, "sft": None}, "preference has no pairs to learn from"),
        ({"model": {"path": "m", "endpoint": {"url": "http://127.0.0.1:1/v1"}}}, "cannot be trained"),
    ],
    ids=["no repairs", "behind an endpoint"],
)
def test_own_samples_of_what_cannot_be_sampled_are_refused_before_a_model_loads(asks, keys, said):
    with pytest.raises(RecipeError, match=said):
        make_recipe({"suites": ["workbench"], "preference": asks, **keys})
