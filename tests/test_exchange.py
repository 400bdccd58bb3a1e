"""A success in groups of PFPO whose rows all fail: one row is exchanged for the repair, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from test_checkpoints import At, Killed, losses
from test_pair_facts import own_logps
from test_stages import PAY, folder, learner  # noqa: F401 (a fixture)

from fate_trl.choose.selectors import ParetoFront
from fate_trl.errors import RecipeError
from fate_trl.loop.successes import with_successes
from fate_trl.recipe.loading import make_recipe
from fate_trl.suites.episodes import environment_factories
from fate_trl.suites.scripted import perform
from fate_trl.train import learner as torch_learner
from fate_trl.train.config import PFPOConfig
from fate_trl.train.rows import request_dataset
from fate_trl.train.trainer import PFPOTrainer
from fate_trl.types import Failure, Repair, RolloutRequest, Score, ScoreCard, Script
from fate_trl.verify.scoring import Security, Utility

torch.set_num_threads(1)

WAYS = pytest.mark.parametrize("shared", [False, True], ids=["each by itself", "shared prefixes"])
SUITE = tiny.TillSuite()
TASKS = list(SUITE.tasks("train", 0))
IDLE = Script((), "done")


def success_of(task, script=PAY):
    """A trajectory that was executed for real, with tokens as a policy would have written them."""
    done = perform(SUITE, RolloutRequest(task, ({"role": "user", "content": "a hint"},), "repair"), script)
    return dataclasses.replace(done, completion_ids=(20, 21, 22, 23, 1), policy_mask=(1, 1, 0, 1, 1), stage="repair")


def make(where, requests, shared=False, **changes):
    tokenizer = tiny.make_tokenizer()
    keys = {"max_completion_length": 24, "max_tool_calling_iterations": 3, "share_prefixes": shared, **changes}
    made = PFPOTrainer(
        tiny.make_model(tokenizer),
        [Security(), Utility()],
        tiny.config(PFPOConfig, where, **keys),
        request_dataset(requests),
        processing_class=tokenizer,
        environment_factory=environment_factories({"till": SUITE}, TASKS),
        selector=ParetoFront(),
    )
    made.exchanges = True
    return made


def asked(*successes):
    """A plain request for each of the first tasks, with what it brings along."""
    return [
        RolloutRequest(task, task.messages, "pfpo", success=success)
        for task, success in zip(TASKS, successes, strict=False)
    ]


def step(trainer):
    trainer.model.train()
    return trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(4)])


def completion(out, row):
    kept = out["completion_mask"][row].bool()
    return out["completion_ids"][row][kept].tolist()


@WAYS
def test_a_group_that_fails_gets_one_success_behind_the_plain_prompt(tmp_path, shared):
    """The other group, that brings none along, and the failed group's other rows are as they would have been."""
    outs = []
    for success in (None, success_of(TASKS[0])):
        torch.manual_seed(5)
        trainer = make(tmp_path, asked(success, None), shared)
        outs.append(step(trainer))
        exchanged = trainer._metrics["train"]["exchanged_groups"]
    without, given = outs
    assert exchanged == [1.0]
    assert completion(given, 3) == [20, 21, 22, 23, 1]
    assert given["tool_mask"][3][:5].tolist() == [1, 1, 0, 1, 1]
    for row in (0, 1, 2, 4, 5, 6, 7):
        assert completion(given, row) == completion(without, row)
        prompts = [out["prompt_ids"][row][out["prompt_mask"][row].bool()].tolist() for out in outs]
        assert prompts[0] == prompts[1]
    assert (given["prompt_ids"][3] == given["prompt_ids"][0]).all(), "the plain prompt, without the hint"
    assert (without["advantages"][:4].std() == 0) or without["advantages"][3] <= 0
    assert given["advantages"][3] > 0 > given["advantages"][:3].max()
    assert given["advantages"][:4].std() > 0
    assert torch.equal(given["advantages"][4:], without["advantages"][4:])
    assert given["num_items_in_batch"] == (given["completion_mask"] * given["tool_mask"]).sum()


def test_log_probabilities_are_of_the_success_behind_the_plain_prompt(tmp_path):
    """Those of the policy that is trained; computed anew, since it did not sample that row."""
    keys = {"num_iterations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 4, "temperature": 1.0}
    trainer = make(tmp_path, asked(success_of(TASKS[0]), None), **keys)
    out = step(trainer)
    old = out["old_per_token_logps"][3] * out["completion_mask"][3] * out["tool_mask"][3]
    prompt = out["prompt_ids"][3][out["prompt_mask"][3].bool()].tolist()
    trainer.model.eval()
    assert old.sum().item() == pytest.approx(
        own_logps(trainer.model, prompt, (20, 21, 22, 23, 1), (1, 1, 0, 1, 1)), abs=1e-3
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"completion_ids": (20,) * 30, "policy_mask": (1,) * 30},
        {"outcome": None},
    ],
    ids=["too long", "does not resolve here"],
)
def test_what_does_not_fit_or_does_not_resolve_is_no_success(tmp_path, wrong):
    trainer = make(tmp_path, asked(dataclasses.replace(success_of(TASKS[0]), **wrong), None))
    out = step(trainer)
    assert trainer._metrics["train"]["exchanged_groups"] == [0.0]
    assert 20 not in out["completion_ids"][3].tolist()[:1]


def test_a_group_with_a_success_of_its_own_is_left_alone(tmp_path):
    """Its verifiers say so, of a row that pays."""
    trainer = make(tmp_path, asked(success_of(TASKS[0]), success_of(TASKS[1])), max_completion_length=60)
    pays = [tiny.call("look"), tiny.call("pay", to="alice"), "done<|end|>"]
    tiny.say(trainer, [pays, *[["done<|end|>"]] * 7])
    step(trainer)
    assert trainer._metrics["train"]["exchanged_groups"] == [1.0], "the second group alone"


def test_without_the_key_nothing_is_exchanged(tmp_path):
    trainer = make(tmp_path, asked(success_of(TASKS[0]), None))
    trainer.exchanges = False
    step(trainer)
    assert "exchanged_groups" not in trainer._metrics["train"]


def repair_of(chosen, resolved=True, task=TASKS[0]):
    failed = dataclasses.replace(perform(SUITE, RolloutRequest(task, task.messages, "collect"), IDLE), stage="collect")
    card = ScoreCard({"utility": Score(1.0 if resolved else 0.0)})
    return Repair(Failure(failed, ScoreCard({"utility": Score(0.0)})), (chosen,), (card,), (0,), (0,), 0, "only")


def test_requests_bring_the_rounds_chosen_repair_along():
    success = success_of(TASKS[0])
    plain = [RolloutRequest(task, task.messages, "pfpo") for task in TASKS[:2]]
    hinted = dataclasses.replace(plain[0], of=0)
    found = with_successes([*plain, hinted], [repair_of(success)])
    assert [request.success for request in found] == [success, None, None]
    for other in (
        repair_of(success, resolved=False),
        repair_of(dataclasses.replace(success, replayed=1)),
        repair_of(dataclasses.replace(success, completion_ids=(), policy_mask=())),
        dataclasses.replace(repair_of(success), chosen=None),
    ):
        assert with_successes(plain, [other]) == plain


def test_a_round_hands_them_to_the_learner(tmp_path):
    from test_preference import RUN, Tokens

    from fate_trl.ledger.writing import RunDirectory
    from fate_trl.loop.assemble import assemble

    class Asked(Tokens):
        def pfpo(self, requests, seed, scratch=None):
            self.asked = requests
            return super().pfpo(requests, seed, scratch)

    found = {}
    for exchange in (False, True):
        recipe, run = make_recipe({**RUN, "pfpo": {"exchange": exchange}}), RunDirectory(tmp_path / str(exchange))
        evolution = assemble(recipe, run, lambda suites, *_: Asked(suites))
        evolution()
        found[exchange] = [request.success for request in evolution.learner.asked]
    assert not any(found[False])
    given = [success for success in found[True] if success is not None]
    assert given
    assert all(success.stage == "repair" for success in given)


def trained(folder, scratch):  # noqa: F811
    made = learner(folder, pfpo={"max_steps": 4, "save_steps": 1, "use_cpu": True, "exchange": True})
    return made, made.pfpo(asked(*map(success_of, TASKS)), 3, scratch)


def test_killed_and_resumed_it_ends_with_the_same_weights(folder, tmp_path, monkeypatch):  # noqa: F811
    def kill():
        raise Killed

    whole, unbroken = trained(folder, str(tmp_path / "whole"))
    monkeypatch.setattr(torch_learner, "_Steps", lambda reporter: At(2, kill))
    with pytest.raises(Killed):
        trained(folder, str(tmp_path / "part"))
    monkeypatch.undo()
    last, resumed = trained(folder, str(tmp_path / "part"))
    assert losses(resumed) == losses(unbroken)
    assert sum(entry.get("exchanged_groups", 0) for entry in unbroken["log"]) > 0
    after, wanted = tiny.state(last.model), tiny.state(whole.model)
    assert all(torch.equal(after[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"repair": None, "sft": None}, "pfpo.exchange puts repairs into groups, and repair is null"),
        ({"pfpo": {"exchange": True, "prompts": "repair"}}, "and pfpo.prompts is repair"),
        ({"rollout": {"use_vllm": True}}, "rows into groups that vLLM did not sample"),
    ],
    ids=["no repairs", "no plain prompts", "vllm"],
)
def test_where_nothing_can_be_exchanged_the_recipe_is_refused(keys, said):
    with pytest.raises(RecipeError, match=said):
        make_recipe({"suites": ["workbench"], "pfpo": {"exchange": True}, **keys})
