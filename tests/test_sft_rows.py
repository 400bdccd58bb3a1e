"""Rows for SFT that are learned from messages, where the chat template cannot render what was recorded."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import tiny
from case import case

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import families
from fate_trl.errors import FateError
from fate_trl.recipe.schema import Model, Recipe, Rollout
from fate_trl.train import templates
from fate_trl.train.examples import Unrenderable, split_calls, tokens_of
from fate_trl.train.learner import TrlLearner
from fate_trl.types import BufferRow, RolloutRequest

SECTION = "chat templates and recorded calls"
USER = {"role": "user", "content": "Who are Ada and Bob?"}


def call(name, **extra):
    return {"type": "function", "function": {"name": "look_up", "arguments": {"name": name}}, **extra}


def result(text, **extra):
    return {"role": "tool", "name": "look_up", "content": text, **extra}


def says(text, *calls):
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {})}


TWO = [USER, says("", call("Ada"), call("Bob")), result("countess"), result("builder"), says("Both are known.")]
TEXT_ARGUMENTS = {"type": "function", "function": {"name": "look_up", "arguments": "name: Ada"}}
MALFORMED = [USER, says("", TEXT_ARGUMENTS), result("error: no object"), says("Nobody.")]


def row_of(messages, loss_from=1):
    return BufferRow(
        source="anchor",
        suite="any",
        task="t",
        messages=tuple(messages),
        loss_from=loss_from,
        tools=("look_up",),
    )


def tokenizer_of(name):
    made = families.tokenizer(name)
    return templates.prepare(made, Model()) if name != "gemma4" else made


def texts(row, name):
    """(the whole row, what of it is learned) as text."""
    tokenizer = tokenizer_of(name)
    example = tokens_of(row, tokenizer, [templates.TOOL])
    own = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != -100]
    return tokenizer.decode(example["input_ids"]), tokenizer.decode(own)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=case(SECTION, f"an SFT row with two calls in one message, {label}'s template", before, now),
        )
        for name, label, before, now in [
            ("llama3_1", "Llama 3.1", "a bare jinja2 TemplateError", "one call per message, each with its result"),
            ("llama3_2", "Llama 3.2", "a bare jinja2 TemplateError", "one call per message, each with its result"),
            ("gptoss", "gpt-oss", "the second call is lost without a word", "both calls are learned, one per message"),
        ]
    ]
    + ["qwen3", "glm4moe"],
)
def test_two_calls_in_one_message_are_both_learned(name):
    whole, own = texts(row_of(TWO), name)
    assert own.count("Ada") == own.count("Bob") == 1
    assert whole.index("countess") < whole.index("builder")
    assert "countess" not in own
    assert "Both are known." in own
    if name in ("llama3_1", "llama3_2", "gptoss"):
        assert whole.index("countess") < whole.rindex("Bob"), "each result follows its own call"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=case(
                SECTION,
                f"an SFT row with a call whose arguments are a text, {label}'s template",
                "a bare TemplateError or TypeError",
                "{} stands in their place",
            ),
        )
        for name, label in [("lfm2_2_5", "LFM2.5"), ("glm4moe", "GLM 4")]
    ]
    + ["qwen3", "llama3_1", "gemma4"],
)
def test_malformed_arguments_are_rendered(name):
    tokenizer = tokenizer_of(name)
    example = tokens_of(row_of(MALFORMED), tokenizer, [templates.TOOL])
    text = tokenizer.decode(example["input_ids"])
    assert "look_up" in text
    assert "Nobody." in text
    assert ("name: Ada" in text) is ("text arguments" not in templates.missing(tokenizer))


def test_both_in_one_row_and_in_what_stands_before_the_loss():
    messages = [USER, says("", call("Ada"), TEXT_ARGUMENTS), result("countess"), result("error"), says("One."), USER]
    whole, own = texts(row_of([*messages, says("Fine.")], loss_from=6), "llama3_1")
    assert whole.count("<|eot_id|>") > 6
    assert "Fine." in own
    assert "Ada" not in own


@case(
    SECTION,
    "two calls in one message of which one has no result, Llama 3.1's template",
    "a bare jinja2 TemplateError",
    "the row is left out, by a named error",
)
@pytest.mark.parametrize("results", [[], [result("countess")], [result("a"), result("b"), result("c")]])
def test_calls_without_their_results_cannot_be_split(results):
    with pytest.raises(Unrenderable, match="2 calls has"):
        texts(row_of([USER, says("", call("Ada"), call("Bob")), *results, says("Done.")]), "llama3_1")
    assert "Done." in texts(row_of([USER, says("", call("Ada"), call("Bob")), *results, says("Done.")]), "qwen3")[1]


def test_results_follow_their_calls_by_id():
    calls = [call("Ada", id="a"), call("Bob", id="b")]
    results = [result("builder", tool_call_id="b"), result("countess", tool_call_id="a")]
    split = split_calls([USER, says("Two.", *calls), *results])
    assert [message.get("content") for message in split] == [USER["content"], "Two.", "countess", "", "builder"]
    assert [message["tool_calls"][0]["id"] for message in split if "tool_calls" in message] == ["a", "b"]
    unnamed = split_calls([USER, says("Two.", *calls), result("first"), result("second")])
    assert [message["content"] for message in unnamed[2::2]] == ["first", "second"]


def test_a_template_that_raises_anyway_leaves_the_row_out():
    tokenizer = tokenizer_of("qwen3")
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(Unrenderable, match="never"):
        tokens_of(row_of(TWO), tokenizer, [templates.TOOL])


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("llama3_1", ["several calls"]),
        ("gptoss", ["several calls"]),
        ("qwen3", []),
        ("lfm2_2_5", ["text arguments"]),
        ("glm4moe", ["text arguments"]),
    ],
)
def test_what_a_template_cannot_render_is_found(name, missing):
    assert set(missing) <= set(templates.missing(tokenizer_of(name)))
    assert set(templates.missing(tokenizer_of(name))) <= {"several calls", "text arguments"}
    if not missing:
        assert templates.missing(tokenizer_of(name)) == []


def test_rows_that_cannot_be_rendered_are_left_out_of_sft_and_counted(caplog):
    made = object.__new__(TrlLearner)
    made.tokenizer, made.suites = tokenizer_of("llama3_1"), {}
    broken = [USER, says("", call("Ada"), call("Bob")), says("Done.")]
    good, bad = (dataclasses.replace(row_of(messages), tools=()) for messages in (TWO, broken))
    assert len(made._examples([good, bad, good], {})) == 2
    assert "1 of 3 rows left out of SFT" in caplog.text
    with pytest.raises(FateError, match="all 2 rows"):
        made._examples([bad, bad], {})


@pytest.mark.parametrize(("name", "turns"), [("llama3_1", 2), ("qwen3", 1)])
def test_a_history_to_go_on_from_is_rendered_in_the_rollout_too(name, turns):
    made = object.__new__(TrlLearner)
    made.tokenizer, made.recipe = tokenizer_of(name), Recipe.model_construct(rollout=Rollout())
    made.suites = {"till": tiny.TillSuite()}
    request = RolloutRequest(tiny.make_task(), tuple(TWO[:-1]), "repair")
    messages = made._readable(request).messages
    assert len([message for message in messages if message.get("tool_calls")]) == turns
    text = made.tokenizer.apply_chat_template(list(messages), tokenize=False)
    assert all(word in text for word in ("Ada", "Bob", "countess", "builder"))
    plain = RolloutRequest(tiny.make_task(), (USER,), "collect")
    assert made._readable(plain) is plain
    cut = RolloutRequest(tiny.make_task(), tuple(TWO[:-2]), "repair")
    assert made._readable(cut).messages == cut.messages
