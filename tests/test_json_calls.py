"""Calls as plain JSON: read back as text is, and executed through TRL's whole tool loop."""

import json
import tempfile

import pytest
from case import case

from benchmarks import families
from benchmarks.templates import config, ended, quietly, script
from fate_trl import PFPOTrainer
from fate_trl.plugins import load
from fate_trl.recipe.schema import Model
from fate_trl.suites.episodes import environment_factories
from fate_trl.suites.scripted import script_for
from fate_trl.train import templates
from fate_trl.train.rows import request_dataset
from fate_trl.train.words import words_of
from fate_trl.types import RolloutRequest

PAY = {"name": "pay", "arguments": {"to": "alice"}}
LOOK = {"name": "look", "arguments": {}}
HARD = {"name": "pay", "arguments": {"to": 'a}"{[\\ "', "x": {"y": [1, {"z": None}]}}}


def text(call, key="arguments"):
    return json.dumps({"name": call["name"], key: call["arguments"]})


FORMS = {
    "bare": (text(PAY), [PAY], ""),
    "with braces and quotes in texts": (text(HARD), [HARD], ""),
    "over lines": (json.dumps(PAY, indent=2), [PAY], ""),
    "in a fence": (f"```json\n{text(PAY)}\n```", [PAY], ""),
    "in a fence without a language": (f"```\n{text(PAY)}\n```", [PAY], ""),
    "between words": (f"I pay.\n{text(PAY)}\nThere.", [PAY], "I pay.\nThere."),
    "in a fence between words": (f"I pay.\n```json\n{text(PAY)}\n```\nThere.", [PAY], "I pay.\nThere."),
    "two, a line each": (f"{text(PAY)}\n{text(LOOK)}", [PAY, LOOK], ""),
    "two in a list": (json.dumps([PAY, LOOK]), [PAY, LOOK], ""),
    "two in a list in a fence": (f"```json\n{json.dumps([PAY, LOOK], indent=1)}\n```", [PAY, LOOK], ""),
    "two fences": (f"```json\n{text(PAY)}\n```\n```json\n{text(LOOK)}\n```", [PAY, LOOK], ""),
    "parameters": (text(PAY, "parameters"), [PAY], ""),
    "two with parameters": (f"{text(PAY, 'parameters')}; {text(LOOK, 'parameters')}", [PAY, LOOK], ""),
    "arguments first": (json.dumps({"arguments": PAY["arguments"], "name": "pay"}), [PAY], ""),
    "OpenAI's form": (json.dumps({"type": "function", "function": PAY}), [PAY], ""),
    "Llama 3.1's form": (json.dumps({"type": "function", "name": "pay", "parameters": {"to": "alice"}}), [PAY], ""),
    "in Hermes's tags": (f"<tool_call>\n{text(PAY)}\n</tool_call>", [PAY], ""),
    "behind a thought with a call": (f"<think>{text(LOOK)}</think>\n{text(PAY)}", [PAY], ""),
    "a JSON answer": ('{"name": "Ada", "age": 3}', [], '{"name": "Ada", "age": 3}'),
    "a call that is cut off": (text(PAY)[:-4], [], text(PAY)[:-4]),
    "words": ("Alice is paid.", [], "Alice is paid."),
}


def tokenizer_of(name, **model):
    return templates.prepare(families.tokenizer(name), Model(path="m", **model))


def parsed(tokenizer, said, end):
    from trl.chat_template_utils import parse_response

    prompt = templates.render(
        tokenizer, [{"role": "user", "content": "Pay."}], [templates.TOOL], add_generation_prompt=True
    )
    ids = [*tokenizer.encode(said, add_special_tokens=False), tokenizer.convert_tokens_to_ids(end)]
    return parse_response(tokenizer, ids, prefix=prompt, tools=[templates.TOOL])


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(
            name,
            marks=case(
                "calls as text",
                f"a model without trained call tags writes JSON: {name}",
                "no parser of TRL's reads it",
                "`model.tool_parser: json` reads calls, and keeps the text around them",
            ),
        )
        for name in FORMS
    ],
)
def test_json_calls_are_read(form):
    said, calls, content = FORMS[form]
    tokenizer = tokenizer_of("qwen2_5", chat_template="chatml_json")
    read = parsed(tokenizer, said, "<|im_end|>")
    assert [made["function"] for made in read.get("tool_calls") or ()] == calls
    assert read["content"].strip() == content
    around = words_of(tokenizer)
    assert around is not None
    assert around(tokenizer.encode(f"{said}<|im_end|>", add_special_tokens=False)) == content, "and so does a record"


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
@pytest.mark.parametrize("between", ["; ", "\n", ""])
@case(
    "calls as text",
    "two calls of Llama 3 in one turn",
    "TRL's parser reads neither",
    "both are read, with the parser that the template gets by itself and by name",
)
def test_two_calls_of_llama_are_both_read(name, between):
    said = text(PAY, "parameters") + between + text(LOOK, "parameters")
    for model in ({}, {"tool_parser": "llama3"}):
        read = parsed(tokenizer_of(name, **model), said, "<|eot_id|>")
        assert [made["function"] for made in read["tool_calls"]] == [PAY, LOOK]


def test_our_template_renders_what_it_reads_and_keeps_prefixes():
    tokenizer = tokenizer_of("qwen2_5", chat_template="chatml_json")
    history = [
        {"role": "system", "content": "You run a shop."},
        {"role": "user", "content": "Pay alice and bob."},
        {"role": "assistant", "content": "I look.", "tool_calls": [{"type": "function", "function": LOOK}]},
        {"role": "tool", "name": "look", "content": "alice"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": PAY}, {"function": HARD}]},
        {"role": "tool", "name": "pay", "content": "paid"},
        {"role": "tool", "name": "pay", "content": "paid"},
        {"role": "assistant", "content": "Both are paid."},
        {"role": "user", "content": "Thanks."},
    ]
    whole = templates.render(tokenizer, history, [templates.TOOL])
    for end in range(2, len(history)):
        part = templates.render(tokenizer, history[:end], [templates.TOOL])
        assert whole[: len(part)] == part, "strictly, with several results too"
    for message, calls in ((history[2], [LOOK]), (history[4], [PAY, HARD])):
        before = history[: history.index(message)]
        prompt = templates.render(tokenizer, before, [templates.TOOL], add_generation_prompt=True)
        said = templates.render(tokenizer, [*before, message], [templates.TOOL])[len(prompt) :]
        from trl.chat_template_utils import parse_response

        read = parse_response(tokenizer, said, prefix=prompt)
        assert ([made["function"] for made in read["tool_calls"]], read["content"]) == (calls, message["content"])
    assert templates.parsers_of(tokenizer) == ["json"]
    shown = tokenizer.decode(whole)
    assert shown.count("You run a shop.") == 1
    assert "<tool_call>" not in shown, "these tokens were never trained"


def test_without_tools_it_is_plain_chatml():
    tokenizer = tokenizer_of("qwen2_5", chat_template="chatml_json")
    hello = [{"role": "system", "content": "Hi."}, {"role": "user", "content": [{"type": "text", "text": "Hello."}]}]
    said = tokenizer.apply_chat_template(hello, tokenize=False, add_generation_prompt=True)
    assert said == "<|im_start|>system\nHi.<|im_end|>\n<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"


def test_loss_falls_on_what_the_model_says():
    tokenizer = tokenizer_of("qwen2_5", chat_template="chatml_json")
    messages = [
        {"role": "user", "content": "Pay."},
        {"role": "assistant", "content": "Yes.", "tool_calls": [{"function": PAY}]},
    ]
    out = tokenizer.apply_chat_template(
        messages, tools=[templates.TOOL], return_dict=True, return_assistant_tokens_mask=True
    )
    own = [token for token, mine in zip(out["input_ids"], out["assistant_masks"], strict=True) if mine]
    assert tokenizer.decode(own) == f"Yes.\n{text(PAY)}<|im_end|>"


# ------------------------------------------------------------------------------------------------ the tool loop

ENDS = {"qwen2_5": "<|im_end|>", "llama3_1": "<|eot_id|>"}


@pytest.mark.parametrize(
    ("name", "model", "write"),
    [
        ("qwen2_5", {"chat_template": "chatml_json"}, lambda calls: "\n".join(map(text, calls))),
        ("qwen2_5", {"chat_template": "chatml_json"}, lambda calls: f"I do.\n```json\n{json.dumps(calls)}\n```\nDone."),
        ("qwen2_5", {"tool_parser": "json"}, lambda calls: json.dumps(calls, indent=1)),
        ("llama3_1", {}, lambda calls: "; ".join(text(call, "parameters") for call in calls)),
        ("llama3_1", {"tool_parser": "json"}, lambda calls: "\n".join(map(text, calls))),
    ],
    ids=["bare", "fenced", "a list", "llama", "llama, json"],
)
def test_a_rollout_executes_the_calls(name, model, write):
    suite = load("suite", "workbench", {"train": 40, "validation": 1, "test": 1})
    tasks = [task for task in suite.tasks("train", 0) if task.kind == "benign"]
    task, calls = next((t, c) for t in tasks if len(c := script_for(suite, t, "oracle").calls) >= 2)
    wanted = [{"name": call["name"], "arguments": dict(call["arguments"])} for call in calls[:2]]
    tokenizer = tokenizer_of(name, **model)
    network = families.model(tokenizer)
    end = tokenizer.convert_tokens_to_ids(ENDS[name])
    network.generation_config.eos_token_id = [end]
    requests = [RolloutRequest(task, task.messages)]
    with tempfile.TemporaryDirectory() as folder, quietly():
        trainer = PFPOTrainer(
            model=network,
            reward_funcs=["utility"],
            args=config(folder),
            train_dataset=request_dataset(requests),
            processing_class=tokenizer,
            environment_factory=environment_factories({"workbench": suite}, [task], None),
        )
        ids = tokenizer.encode(write(wanted), add_special_tokens=False)
        script(trainer, [ended(ids, [end]), [*tokenizer.encode("Done.", add_special_tokens=False), end]])
        [done] = trainer.rollout(requests)
    assert [(call.name, call.arguments, call.fault) for call in done.calls] == [
        (call["name"], call["arguments"], "") for call in wanted
    ]
    assert done.answer.strip() == "Done."
