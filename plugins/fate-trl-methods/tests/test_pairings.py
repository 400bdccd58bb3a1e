"""The pairings of the family `preferences`: each by what shows that it works, on executed episodes where it matters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from fate_trl_methods.pairings import cross_verify

from fate_trl import plugins
from fate_trl.errors import RecipeError
from fate_trl.hookspecs import Tried
from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.loop.pairing import pairs_of
from fate_trl.recipe.loading import make_recipe
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.testing import samples
from fate_trl.train.preference import PairCollator, rows_of
from fate_trl.types import Failure, Pair, Repair, Score, ScoreCard, Task, ToolCall, Trajectory

torch.set_num_threads(1)


def load(name, **arguments):
    return plugins.load("pairing", f"preferences/{name}", arguments)


def card(**values):
    return ScoreCard({name: Score(value) for name, value in values.items()})


TASK = Task("t", "till", "benign", ({"role": "user", "content": "pay"},))


def tried_once(number, *calls, stage="repair", task=TASK):
    """A try that calls tools one after the other and answers, its tokens those of samples."""
    messages = []
    for name in calls:
        call = {"type": "function", "function": {"name": name, "arguments": {}}}
        messages += [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "ok"}]
    messages.append({"role": "assistant", "content": f"Done, {number}."})
    made = tuple(ToolCall(name) for name in calls)
    return samples.with_tokens(Trajectory(task, task.messages, tuple(messages), made), stage, number)


def repair(utilities, chosen=0, failed=0.0, calls=("read",), failure_calls=("read",)):
    """A failure and candidates of these utilities."""
    failure = Failure(tried_once(0, *failure_calls, stage="collect"), card(utility=failed, security=1.0))
    candidates = tuple(tried_once(n, *calls) for n in range(len(utilities)))
    cards = tuple(card(utility=value, security=1.0) for value in utilities)
    return Repair(failure, candidates, cards, chosen=chosen)


# ------------------------------------------------------------------------------------------------ margin-filter


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.25, 0.45])
@pytest.mark.parametrize("beside", ["failure", "all"])
def test_margin_filter_keeps_only_pairs_over_the_margin_and_all_of_them(margin, beside):
    utilities = [1.0, 0.8, 0.3, 0.0]
    pairing = load("margin-filter", margin=margin, beside=beside)
    made, counts = pairs_of(pairing, Tried(1, [repair(utilities)]))
    worse = [0.0, *(utilities if beside == "all" else ())]
    gaps = [(a - b) / 2 for a in utilities for b in worse if (a - b) / 2 > margin]
    assert sorted(pair.score_gap for pair in made) == pytest.approx(sorted(gaps))
    assert counts["pairing"]["kept"] == len(made) == len(gaps)
    assert counts["pairing"]["considered"] > len(made)


def test_margin_filter_on_scores_of_played_roles():
    tried = samples.tried()
    wide, all_of_them = (pairs_of(load("margin-filter", margin=m), tried)[0] for m in (0.4, 0.0))
    assert 0 < len(wide) < len(all_of_them)
    assert all(pair.score_gap > 0.4 for pair in wide)
    assert {pair.rejected_stage for pair in all_of_them} == {"collect", "repair"}


def test_margin_filter_takes_the_widest_of_a_failure():
    (made,), _ = pairs_of(load("margin-filter", margin=0.1, most=1), Tried(1, [repair([0.5, 1.0, 0.7])]))
    assert (made.repair, made.score_gap) == (1, 0.5)


def test_margin_filter_leaves_out_candidates_with_an_error():
    broken = repair([1.0])
    broken = replace(broken, cards=(ScoreCard({"utility": Score.error("the judge was away")}),))
    assert pairs_of(load("margin-filter", margin=0.0), Tried(1, [broken]))[0] == []


# ------------------------------------------------------------------------------------------------ step-pairs


def turns_with_loss(mask, trajectory):
    """Numbers of the messages whose tokens have loss."""
    at, out = 0, []
    for number, message in enumerate(trajectory.messages):
        said = samples.dumps(message)
        if any(mask[at : at + 2 + len(said) % 3]):
            out.append(number)
        at += 2 + len(said) % 3
    return out


@pytest.mark.parametrize(
    ("chosen", "failed", "ends", "steps"),
    [
        (("read", "pay"), ("read", "send"), ([2, 4], [2, 4]), ([2], [2])),
        (("read", "look", "pay"), ("read", "look", "send"), ([4, 6], [4, 6]), ([4], [4])),
        (("pay",), ("send", "pay"), ([0, 2], [0, 2, 4]), ([0], [0])),
        (("read", "pay"), ("read",), ([2, 4], [2]), ([2], [2])),
        (("read",), ("read",), ([2], [2]), ([2], [2])),
        ((), ("send",), ([0], [0, 2]), ([0], [0])),
    ],
    ids=["second call", "third call", "first call", "one stops", "answers only", "no call"],
)
def test_step_pairs_begin_at_the_first_call_that_differs(chosen, failed, ends, steps):
    tried = Tried(1, [repair([1.0], calls=chosen, failure_calls=failed)])
    sides = tried.repairs[0].candidates[0], tried.repairs[0].failure.trajectory
    for until, expected in (("end", ends), ("step", steps)):
        (pair,), counts = pairs_of(load("step-pairs", until=until), tried)
        masks = zip((pair.chosen_mask, pair.rejected_mask), sides, strict=True)
        assert tuple(turns_with_loss(*side) for side in masks) == expected
    assert counts["pairing"] == {"alike_calls_mean": steps[0][0] / 2}


def test_step_pairs_tell_calls_apart_by_their_arguments():
    made = repair([1.0], calls=("pay",), failure_calls=("pay",))
    failure = made.failure.trajectory
    other = replace(failure, calls=(replace(failure.calls[0], arguments={"amount": 9}),))
    (pair,), _ = pairs_of(
        load("step-pairs"), Tried(1, [replace(made, failure=replace(made.failure, trajectory=other))])
    )
    assert turns_with_loss(pair.rejected_mask, other) == [0, 2]


def test_step_pairs_of_a_repair_that_went_on_from_a_turn():
    """Its given turns are the failure's; loss begins after them, where it is the first to differ."""
    failed = tried_once(0, "read", "look", "send", stage="collect")
    width = sum(2 + len(samples.dumps(message)) % 3 for message in failed.messages[:2])
    whole = tried_once(1, "read", "look", "pay")
    went_on = replace(
        whole,
        prompt=(*TASK.messages, *failed.messages[:2]),
        messages=whole.messages[2:],
        replayed=1,
        prompt_ids=failed.prompt_ids + failed.completion_ids[:width],
        completion_ids=whole.completion_ids[width:],
        policy_mask=whole.policy_mask[width:],
    )
    made = Repair(Failure(failed, card(utility=0.0)), (went_on,), (card(utility=1.0),), chosen=0)
    (pair,), _ = pairs_of(load("step-pairs"), Tried(1, [made]))
    assert turns_with_loss(pair.chosen_mask, whole) == [4, 6]
    assert turns_with_loss(pair.rejected_mask, failed) == [4, 6]


def test_step_pairs_give_a_shared_prefix_no_gradient():
    """On a tiny model, at each place of the last layer: only what is behind the first difference moves."""
    tokenizer = tiny.make_tokenizer()
    model = tiny.make_model(tokenizer)
    tried = Tried(1, [repair([1.0], calls=("read", "pay"), failure_calls=("read", "send"))])
    (made,), _ = pairs_of(load("step-pairs"), tried)
    size = len(tokenizer)
    small = {
        name: tuple(i % size for i in getattr(made, name)) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    }
    batch = PairCollator(0)(rows_of([replace(made, **small)], None))
    hidden = []

    def keep(module, _, output):
        output.retain_grad()
        hidden.append(output)

    model.model.norm.register_forward_hook(keep)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    chosen, rejected = (logps * batch["completion_mask"][:, 1:]).sum(dim=1).chunk(2)
    (-torch.nn.functional.logsigmoid(chosen - rejected)).sum().backward()
    moving = hidden[0].grad.abs().sum(dim=-1)[:, :-1] > 0
    assert torch.equal(moving, batch["completion_mask"][:, 1:].bool())
    alike = len(made.prompt_ids) + made.chosen_mask.index(1)
    assert alike > len(made.prompt_ids) + 3
    assert not moving[:, : alike - 1].any()


# ------------------------------------------------------------------------------------------------ cross-verified


@pytest.mark.parametrize("seed", range(8))
def test_cross_verified_ranks_planted_good_repairs_and_checks_on_top_within_ten_iterations(seed):
    rng = np.random.default_rng(seed)
    good_N, good_M = np.arange(12) < 4, np.arange(20) < 10
    chance_N_M = np.where(good_M, np.where(good_N[:, None], 0.95, 0.15), 0.3)  # bad checks tell nothing apart
    order_N, order_M = rng.permutation(12), rng.permutation(20)
    passed_N_M = (rng.random((12, 20)) < chance_N_M)[order_N][:, order_M].astype(float)
    score_N, score_M = cross_verify(passed_N_M, iterations=10)
    assert (score_N.sum(), score_M.sum()) == pytest.approx((1, 1))
    assert set(order_N[np.argsort(-score_N)[:4]]) == {0, 1, 2, 3}
    assert good_M[order_M][np.argsort(-score_M)[:5]].all()


def test_cross_verified_pairs_the_top_with_the_bottom():
    made = repair([0.4, 1.0, 0.1, 0.7], chosen=3, failed=0.2)
    (pair,), counts = pairs_of(load("cross-verified"), Tried(1, [made]))
    assert (pair.repair, pair.failure, pair.rejected_stage) == (1, 2, "repair")
    assert counts["pairing"]["rank_gap_mean"] > 0
    alike = repair([0.5, 0.5], failed=0.5)
    assert pairs_of(load("cross-verified"), Tried(1, [alike]))[0] == []


def test_cross_verified_on_scores_of_played_roles():
    tried = samples.tried()
    made, _ = pairs_of(load("cross-verified"), tried)
    resolved = {
        (r.candidates[r.chosen].task.id, r.candidates[r.chosen].attempt) for r in tried.repairs if r.chosen is not None
    }
    assert len(made) == len(tried.repairs)
    ours = [(pair.task, pair.repair) in resolved for pair in made if pair.task in {task for task, _ in resolved}]
    assert sum(ours) / len(ours) > 0.9, "what resolves all objectives is on top"


# ------------------------------------------------------------------------------------------------ earlier-policy


def test_earlier_policy_pairs_with_the_latest_earlier_try_that_is_worse():
    made = repair([1.0])
    older, newer, as_good = (tried_once(n, "send", stage="collect") for n in (1, 2, 3))
    bad, good = card(utility=0.2, security=1.0), card(utility=1.0, security=1.0)

    def asked(earlier, **arguments):
        return pairs_of(load("earlier-policy", **arguments), Tried(4, [made], earlier=lambda: earlier))

    (pair,), counts = asked([(3, (newer, bad)), (1, (older, bad))])
    assert (pair.rejected_round, pair.failure, pair.rejected_ids) == (3, 2, newer.completion_ids)
    assert pair.score_gap == pytest.approx(0.4)
    assert counts["pairing"] == {"earlier": 1, "failures": 0}
    assert asked([(3, (as_good, good)), (1, (older, bad))])[0] == []
    (pair,), counts = asked([])
    assert (pair.rejected_round, pair.rejected_ids) == (0, made.failure.trajectory.completion_ids)
    assert counts["pairing"] == {"earlier": 0, "failures": 1}
    assert asked([], otherwise="nothing")[0] == []


class Tokens(ScriptedLearner):
    """A scripted learner whose trajectories have tokens."""

    def rollout(self, requests, seed):
        return [samples.with_tokens(t, t.stage, t.attempt) for t in super().rollout(requests, seed)]


def test_earlier_policy_in_a_run_of_two_rounds(tmp_path):
    keys = {
        "suites": [{"name": "workbench", "args": {"train": 24, "validation": 6, "test": 6}}],
        "evaluation": {"baselines": False, "validation": 0},
        "repair": {"k": 3},
        "rounds": 2,
        "preference": {"pairing": "preferences/earlier-policy"},
    }
    assemble(make_recipe(keys), RunDirectory(tmp_path), lambda suites, *_: Tokens(suites, gain=0.03))()
    reader = RunReader.open(tmp_path)
    first, second = ([Pair.from_dict(r) for r in reader.read(f"rounds/0{n}/pairs.jsonl")] for n in (1, 2))
    assert first
    assert {pair.rejected_round for pair in first} == {0}
    assert reader.stages(1)["pairs"]["pairing"] == {"earlier": 0.0, "failures": len(first)}
    assert second
    assert {pair.rejected_round for pair in second} == {1}
    tries = {t.task.id: t.completion_ids for t, _ in reader.cases("rounds/01/rollouts.jsonl", "collect")}
    assert all(pair.rejected_ids == tries[pair.task] for pair in second)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("margin-filter", {"margin": 2}, "margin"),
        ("margin-filter", {"beside": "none"}, "beside"),
        ("step-pairs", {"until": "never"}, "until"),
        ("cross-verified", {"iterations": 0}, "iterations"),
        ("earlier-policy", {"otherwise": "x"}, "otherwise"),
    ],
)
def test_arguments_of_pairings_are_checked(name, arguments, said):
    with pytest.raises(RecipeError, match=said):
        load(name, **arguments)
