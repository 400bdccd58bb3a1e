"""A user's own tools in TRL's loop: what the policy reads, in what order, and what is learned of it."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import pytest
import tiny
import torch
from case import case
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import families
from fate_trl.recipe.schema import Model
from fate_trl.suites.episodes import environment_factories
from fate_trl.train import templates, tools
from fate_trl.train.config import PFPOConfig
from fate_trl.train.rows import request_dataset
from fate_trl.train.trainer import PFPOTrainer
from fate_trl.train.words import words_of
from fate_trl.types import Score

SECTION = "a user's own tools"
QUESTION = [{"role": "user", "content": "who is owed"}]


def who() -> list:
    """Say who is owed."""
    return ["alice", "bob"]


def look() -> str:
    """Look."""
    return "alice is owed"


async def pay(to: str) -> str:
    """Pay somebody.

    Args:
        to: Who is paid.
    """
    await asyncio.sleep(0)
    return f"paid {to}"


def fail() -> str:
    """Fail."""
    raise OSError("error")


class Sees:
    """A verifier that keeps what it is shown."""

    objectives = ("fine",)

    def __init__(self):
        self.seen = []

    def score(self, trajectories):
        self.seen += trajectories
        return [{"fine": Score(1.0)} for _ in trajectories]


def make(folder, given, rewards=None, cls=PFPOTrainer, config=PFPOConfig, tokenizer=None, **changes):
    tokenizer = tokenizer or tiny.make_tokenizer(tiny.WORDS + " alice bob [ ] paid fail later")
    args = tiny.config(config, folder, **{"max_completion_length": 64, "per_device_train_batch_size": 4, **changes})
    return cls(
        tiny.make_model(tokenizer),
        rewards or [lambda completions, **_: [1.0] * len(completions)],
        args,
        Dataset.from_list([{"prompt": QUESTION}] * 4),
        processing_class=tokenizer,
        tools=given,
    )


def step(trainer, turns):
    tiny.say(trainer, [turns] * 4)
    trainer.model.train()
    kept = []
    inner = trainer._calculate_rewards

    def watched(inputs, prompts, completions, ids):
        kept.append((completions, [trainer._tokenizer.decode(row) for row in ids]))
        return inner(inputs, prompts, completions, ids)

    trainer._calculate_rewards = watched
    out = trainer._generate_and_score_completions([{"prompt": QUESTION} for _ in range(4)])
    return kept[0][0][0], kept[0][1][0], out


def results(messages):
    return [(message["name"], message["content"]) for message in messages if message["role"] == "tool"]


# ------------------------------------------------------------------------------------------------ results


@case(
    SECTION,
    "a tool that returns a list, under TRL's loop",
    "the list goes to the template as content blocks: Qwen3's renders nothing, others raise",
    "the policy reads it as text",
)
def test_a_list_is_read_as_text(tmp_path):
    messages, text, _ = step(make(tmp_path, [who]), [tiny.call("who"), "done<|end|>"])
    assert results(messages) == [("who", "['alice', 'bob']")]
    assert "alice" in text.split("<|tool|>")[1]


@pytest.mark.parametrize(
    ("result", "images", "wanted"),
    [
        ([1, 2], False, "[1, 2]"),
        ([], False, "[]"),
        ([{"id": 1}], False, "[{'id': 1}]"),
        ([{"type": "paid", "id": 1}], True, "[{'type': 'paid', 'id': 1}]"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], False, "a\nb"),
        ([{"type": "text", "text": "a"}], True, [{"type": "text", "text": "a"}]),
        ([{"type": "image", "image": 0}], False, [{"type": "image", "image": 0}]),
        ({"id": 1}, False, {"id": 1}),
        ("a", False, "a"),
        (None, False, None),
    ],
)
def test_what_becomes_of_a_result(result, images, wanted):
    assert tools.as_text(result, images) == wanted


@pytest.mark.parametrize("name", ["qwen3", "qwen3_instruct_2507"])
def test_under_qwen3_a_list_as_blocks_would_be_empty_and_text_is_not(name):
    tokenizer = templates.prepare(families.tokenizer(name), Model())

    def rendered(content):
        said = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [templates.CALL]}]
        return tokenizer.apply_chat_template([*said, {"role": "tool", "content": content}], tokenize=False)

    assert "alice" not in rendered(["alice"])
    assert "alice" in rendered(tools.as_text(["alice"], False))


@case(
    SECTION,
    "calls of an async tool, a sync one and an unknown one in one turn",
    "the results of async tools stand behind all others, without ids",
    "results keep the order of the calls",
)
def test_results_keep_the_order_of_the_calls(tmp_path):
    turn = tiny.call("pay", to="bob").replace("<|end|>", "")
    turn += tiny.call("look").replace("<|end|>", "") + tiny.call("steal").replace("<|end|>", "")
    turn += tiny.call("fail").replace("<|end|>", "") + tiny.call("pay", who="bob")
    trainer = make(tmp_path, [look, pay, fail], max_completion_length=128)
    messages, _, _ = step(trainer, [turn, "done<|end|>"])
    names, contents = zip(*results(messages), strict=True)
    assert names == ("pay", "look", "steal", "fail", "pay")
    assert contents[:2] == ("paid bob", "alice is owed")
    assert "Tool steal not found" in contents[2]
    assert contents[3] == "{'error': 'error'}"
    assert "unexpected keyword" in contents[4]
    assert trainer._metrics["train"]["tools/failure_frequency"] == pytest.approx([3 / 5])
    theirs, _, _ = step(make(tmp_path, [look, pay, fail], cls=GRPOTrainer, config=GRPOConfig), [turn, "done<|end|>"])
    assert [name for name, _ in results(theirs)] != list(names), "TRL mends this itself now"


def test_async_tools_that_return_lists_and_tools_of_an_environment(tmp_path):
    async def later() -> list:
        """Say later who is owed."""
        return ["alice"]

    messages, _, _ = step(make(tmp_path, [later]), [tiny.call("later"), "done<|end|>"])
    assert results(messages) == [("later", "['alice']")]
    task = tiny.make_task()
    (environment,) = (made() for made in environment_factories({"till": tiny.TillSuite()}, [task]).values())
    own = {"look": environment.look}
    assert tools.readable(own, {}, False) == (own, {}), "episodes return text, and are left alone"


def test_the_trainer_has_the_users_tools_again(tmp_path):
    trainer = make(tmp_path, [look, pay])
    step(trainer, [tiny.call("look"), "done<|end|>"])
    assert trainer._sync_tool_dicts[0] == {"look": look}
    assert trainer._async_tool_dicts[0] == {"pay": pay}


# ------------------------------------------------------------------------------------------------ overflow


LONG = [tiny.call("look"), tiny.call("look"), "done<|end|>"]


@case(
    SECTION,
    "a tool's result that does not fit into the completion, though the tool ran",
    "the row counts as finished, and no setting takes it out of the loss",
    "`tools/overflowed_ratio` counts it, its stop is `length`, and `mask_overflowed` takes it out of the loss",
)
@pytest.mark.parametrize("mask", [False, True])
def test_a_result_that_did_not_fit(tmp_path, mask):
    sees = Sees()
    trainer = make(tmp_path, [look], [sees], max_completion_length=29, mask_overflowed=mask)
    messages, _, out = step(trainer, LONG[:2])
    assert messages[-1].get("tool_calls"), "the result was not taken back out"
    assert {trajectory.stop for trajectory in sees.seen} == {"length"}
    assert trainer._metrics["train"]["tools/overflowed_ratio"] == [1.0]
    assert trainer._metrics["train"]["completions/clipped_ratio"] == [0.0], "TRL counts it as truncated itself now"
    assert bool(out["completion_mask"].any()) is not mask
    loss = (out["completion_mask"] * out["tool_mask"]).sum()
    assert out["num_items_in_batch"] == loss
    trainer = make(tmp_path, [look], [sees], mask_overflowed=True)
    _, _, out = step(trainer, [tiny.call("look"), "done<|end|>"])
    assert out["completion_mask"].any(dim=1).all(), "what fits stays"
    assert trainer._metrics["train"]["tools/overflowed_ratio"] == [0.0]


def test_calls_past_the_rounds_did_not_overflow(tmp_path):
    trainer = make(tmp_path, [look], max_tool_calling_iterations=1, mask_overflowed=True)
    _, _, out = step(trainer, LONG[:2])
    assert trainer._metrics["train"]["tools/overflowed_ratio"] == [0.0]
    assert out["completion_mask"].any()


# ------------------------------------------------------------------------------------------------ words


@case(
    SECTION,
    '"i cannot do that" and then a call, in one turn',
    "TRL keeps the last stretch of a turn's text only: refusals, rules and judges do not see the rest",
    "a trajectory's message holds all the text around its calls",
)
def test_verifiers_read_the_text_around_calls(tmp_path):
    sees = Sees()
    before = "i cannot do that" + tiny.call("look").replace("<|end|>", "") + "paid" + tiny.call("look")
    step(make(tmp_path, [look], [sees]), [before, "done<|end|>"])
    spoken = [m["content"] for m in sees.seen[0].messages if m["role"] == "assistant"]
    assert spoken == ["i cannot do thatpaid", "done"]
    assert len(sees.seen[0].messages[0]["tool_calls"]) == 2


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [
        ("qwen3", "The code is 1.\n<tool_call>\n{}\n</tool_call>\nDone.<|im_end|>", "The code is 1.\nDone."),
        ("qwen3", "<think>\nNo.\n</think>\n\nYes. <tool_call>{}</tool_call><|im_end|>\n", "Yes."),
        ("qwen3", "a thought that the prompt began</think>Yes.<tool_call>{}</tool_call>", "Yes."),
        ("qwen3", "Yes. <tool_call>{ never closed", "Yes."),
        ("qwen3", "No call.<|im_end|>", "No call."),
        ("glm4moe", "Yes.<tool_call>look_up\n</tool_call>Fine.", "Yes.Fine."),
    ],
)
def test_words_of_a_message(name, said, words):
    tokenizer = templates.prepare(families.tokenizer(name), Model())
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    assert words_of(tokenizer)(ids) == words


def test_without_a_response_template_the_text_is_trls(tmp_path):
    tokenizer = tiny.make_tokenizer()
    tokenizer.response_template = None
    assert words_of(tokenizer) is None


# ------------------------------------------------------------------------------------------------ gaps


@case(
    SECTION,
    "None from one of two reward functions, `weighted-sum` or `gdpo`",
    "counts as 0 in the sum, without a word",
    "trains as GRPOTrainer does, and says so once",
)
@pytest.mark.parametrize("selector", ["weighted-sum", "gdpo", "pareto-front"])
def test_none_from_one_reward_function_is_told(tmp_path, caplog, selector):
    def gaps(completions, **_):
        return ([None, 1.0, 2.0, 3.0] * len(completions))[: len(completions)]

    def whole(completions, **_):
        return [float(i) for i in range(len(completions))]

    trainer = make(tmp_path, None, [gaps, whole], selector=selector, max_steps=2)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    told = [record for record in caplog.records if "counts it as 0" in record.message]
    assert len(told) == (selector != "pareto-front")


def test_a_function_that_applies_to_no_row_of_a_group_is_not_told(tmp_path, caplog):
    rewards = [lambda completions, **_: [None] * len(completions), lambda completions, **_: [1.0] * len(completions)]
    make(tmp_path, None, rewards, selector="weighted-sum").train()
    assert "counts it as 0" not in caplog.text


# ------------------------------------------------------------------------------------------------ episodes


def test_episodes_train_the_same_with_and_without_a_users_tool(tmp_path):
    """The tools of suites go through TRL's loop as they are."""
    suite, task = tiny.TillSuite(), tiny.make_task()
    tokenizer = tiny.make_tokenizer()
    trainer = PFPOTrainer(
        tiny.acting_model(tokenizer),
        ["security"],
        tiny.config(PFPOConfig, tmp_path, max_completion_length=48),
        request_dataset(tiny.requests_for([task] * 4)),
        processing_class=tokenizer,
        environment_factory=environment_factories({"till": suite}, [task]),
    )
    torch.manual_seed(0)
    trainer.train()
    assert max(row.get("tools/call_frequency", 0) for row in trainer.state.log_history) > 0
    assert "tools/overflowed_ratio" in trainer.state.log_history[0]
