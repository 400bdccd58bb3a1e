"""Calls that a model wrote as text are malformed calls; ordinary answers that look a little like them are answers."""

import json
import re

import pytest
from case import case

from fate_trl import cli
from fate_trl.metrics.concerns import diagnose
from fate_trl.testing.served import ScriptedServer, completion
from fate_trl.types import Outcome, Task, ToolCall, Trajectory
from fate_trl.verify.scoring import TrajectoryControl
from fate_trl.verify.written import LONGEST, written_call

TOOLS = ("look", "pay")
CALL = '{"name": "pay", "arguments": {"to": "alice"}}'

WRITTEN = {
    "bare JSON": CALL,
    "bare JSON behind words": f"Sure, I pay now.\n{CALL}",
    "bare JSON at the end of a line of words": f"Sure, I pay now. {CALL}",
    "bare JSON before words": f"{CALL}\nI have paid alice.",
    "bare JSON over lines": '{\n  "name": "pay",\n  "arguments": {\n    "to": "alice"\n  }\n}',
    "a list of JSON calls": f"[{CALL}, {CALL}]",
    "JSON in a fence": f"```json\n{CALL}\n```",
    "JSON in a fence without a language": f"I pay.\n```\n{CALL}\n```\nDone.",
    "JSON in OpenAI's form": '{"type": "function", "function": {"name": "pay", "arguments": {"to": "alice"}}}',
    "JSON with arguments first": '{"arguments": {"to": "alice"}, "name": "pay"}',
    "JSON with arguments as a text": '{"name": "pay", "arguments": "{\\"to\\": \\"alice\\"}"}',
    "JSON in LangChain's form": '{"action": "pay", "action_input": {"to": "alice"}}',
    "JSON that is cut off": '{"name": "pay", "arguments": {"to": "ali',
    "JSON with one brace too few": '{"name": "pay", "arguments": {"to": "alice"}',
    "a Python dict": "{'name': 'pay', 'arguments': {'to': 'alice'}}",
    "a tool without parameters": '{"name": "look"}',
    "Llama 3's": '{"name": "pay", "parameters": {"to": "alice"}}',
    "two of Llama 3's": '{"name": "look", "parameters": {}}; {"name": "pay", "parameters": {"to": "alice"}}',
    "Llama 3.1's": '{"type": "function", "name": "pay", "parameters": {"to": "alice"}}',
    "Llama's python tag": '<|python_tag|>pay.call(to="alice")',
    "Llama 4's list": '[pay(to="alice")]',
    "two in a list": '[look(), pay(to="alice")]',
    "a Python call": 'pay(to="alice")',
    "a Python call under words": 'I pay alice.\npay(to="alice")',
    "Hermes's, unclosed": f"<tool_call>\n{CALL}",
    "Hermes's, with an odd tag": f"<|tool_call|>{CALL}",
    "DeepSeek's": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>pay\n```json\n{}\n```",
    "gpt-oss's": '<|channel|>commentary to=functions.pay <|constrain|>json<|message|>{"to": "alice"}<|call|>',
    "gpt-oss's, without special tokens": 'analysisPay.assistantcommentary to=functions.pay json{"to": "alice"}',
    "gpt-oss's, behind a thought": '<|channel|>analysis<|message|>Pay.<|end|><|start|>assistant<|channel|>commentary '
                                   'to=functions.pay <|constrain|>json<|message|>{"to": "alice"}<|call|>',
    "Mistral's": '[TOOL_CALLS][{"name": "pay", "arguments": {"to": "alice"}}]',
    "Mistral's, newer": '[TOOL_CALLS]pay[ARGS]{"to": "alice"}',
    "Mistral's, newer, without the token": 'pay{"to": "alice"}',
    "Gemma's": '```tool_code\nprint(default_api.pay(to="alice"))\n```',
    "Gemma's in a Python fence": '```python\nresult = default_api.pay(to="alice")\n```',
    "FunctionGemma's": "<start_function_call>call:pay{to:<escape>alice<escape>}<end_function_call>",
    "Qwen3-Coder's": "<function=pay>\n<parameter=to>\nalice\n</parameter>\n</function>",
    "Claude's": '<invoke name="pay">\n<parameter name="to">alice</parameter>\n</invoke>',
    "Cline's": "<pay>\n<to>alice</to>\n</pay>",
    "Kimi's": "<|tool_calls_section_begin|><|tool_call_begin|>functions.pay:0<|tool_call_argument_begin|>{}",
    "LFM2's": '<|tool_call_start|>[pay(to="alice")]<|tool_call_end|>',
    "Phi-4's": 'functools[{"name": "pay", "arguments": {"to": "alice"}}]',
    "ReAct's": "Thought: I pay.\nAction: pay\nAction Input: alice",
    "behind a thought": f"<think>I pay.</think>\n{CALL}",
}  # fmt: skip

ORDINARY = {
    "words": "Alice is paid.",
    "nothing": "",
    "a JSON answer": '{"paid": "alice", "amount": 3}',
    "a JSON answer with a name": '{"name": "Alice", "arguments": ["rent", "food"]}',
    "a JSON answer with a tool's name and more": '{"name": "pay", "amount": 3, "arguments": {}}',
    "a JSON list": '[{"name": "Alice"}, {"name": "Bob"}]',
    "a JSON report of calls": '{"status": "done", "steps": [{"name": "pay", "arguments": {"to": "alice"}}]}',
    "a call of no tool of the task": '{"name": "refund", "arguments": {"order": "17"}}',
    "words about a call": f"I called {CALL}, and it went through.",
    "JSON in a fence": '```json\n{"total": 3, "currency": "EUR"}\n```',
    "code": "```python\ndef total(a, b):\n    return a + b\n\nprint(total(1, 2))\n```",
    "code with a tool's name as a word": "To pay (and look), open the app.",
    "words with brackets": "See [1] and (pay) for more.",
    "a call in a thought": f"<think>{CALL}</think>Alice is paid.",
    "a list of names": "[look, pay]",
    "an arrow": "pay -> alice: done",
    "HTML": "<p>Alice is <b>paid</b>.</p>",
    "an invitation": "Would you like me to pay alice? Reply with pay() in mind.",
    "maths": "f(x) = 3, so look at {x: 1}.",
}


def trajectory(text, calls=(), tools=TOOLS):
    task = Task("t", "shop", "benign", ({"role": "user", "content": "Pay alice."},), tools=tools)
    calling = [{"tool_calls": [{"function": {"name": name, "arguments": given}}]} for name, given in calls]
    made = tuple({"role": "assistant", "content": "", **fields} for fields in calling)
    ran = tuple(ToolCall(name, arguments, "ok") for name, arguments in calls)
    return Trajectory(task, messages=(*made, {"role": "assistant", "content": text}), calls=ran, outcome=Outcome(0.0))


def control(done):
    return TrajectoryControl().score([done])[0]["trajectory_control"]


KNOWN = re.compile(r"<\|?/?tool_call|\[TOOL_CALLS\]|<\|python_tag\|>|<function=|```tool_c", re.IGNORECASE)
"""Marks that were always told."""


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(
            name,
            marks=()
            if KNOWN.search(text)
            else case(
                "calls as text",
                f"an episode ends in a call that no parser read: {name}",
                "an answer like any other: trajectory_control 1, `valid_calls` near 100 %",
                "a malformed call: trajectory_control 0",
            ),
        )
        for name, text in WRITTEN.items()
    ],
)
def test_a_call_that_was_written_as_text_is_malformed(form):
    score = control(trajectory(WRITTEN[form]))
    assert score.value == 0
    assert score.step == 0 or "answer" in score.reason


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(
            name,
            marks=case(
                "calls as text",
                f"an episode ends in {name}: an answer",
                "an answer",
                "still an answer: trajectory_control 1",
            ),
        )
        for name in ORDINARY
        if name != "nothing"
    ],
)
def test_an_ordinary_answer_is_none(form):
    assert control(trajectory(ORDINARY[form])).value == 1


@pytest.mark.parametrize("form", WRITTEN)
def test_every_form_is_told_for_itself(form):
    assert written_call({"role": "assistant", "content": WRITTEN[form]}, TOOLS)


@pytest.mark.parametrize("form", ORDINARY)
def test_no_answer_is_taken_for_one(form):
    assert not written_call({"role": "assistant", "content": ORDINARY[form]}, TOOLS)


def test_it_is_one_malformed_call_among_others():
    done = trajectory(CALL, [("look", {}), ("pay", {"to": "bob"}), ("look", {"x": 1})])
    assert control(done).value == 3 / 4
    assert control(done).step == 3


def test_without_tools_only_marks_count():
    assert control(trajectory(CALL, tools=())).value == 1
    assert control(trajectory("<tool_call>x", tools=())).value == 0


@pytest.mark.timeout(30)
@pytest.mark.parametrize("part", ["[", "{", "[{", "<a>\n", '{"name": ', "pay(", "<pay><to>", "Action: pay\n"])
def test_no_text_takes_long(part):
    """Work is bounded by what is looked at."""
    assert written_call({"role": "assistant", "content": part * LONGEST}, TOOLS) in (False, True)


# ------------------------------------------------------------------------------------------------ a whole stage of them


def evaluated(tmp_path, monkeypatch, capsys, script):
    """What `fate-trl eval` prints, and the rules that its report shows, of a model that answers by the script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ScriptedServer(script) as server:
        monkeypatch.setattr("sys.argv", [
            "fate-trl", "eval", server.url, "--model", "m", "--suite", "workbench", "--output", "run",
            "--set", "suites.0.args.test=6", "--set", "suites.0.args.train=1", "--set", "suites.0.args.validation=1",
        ])  # fmt: skip
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    said = capsys.readouterr()
    stages = {record["stage"]: record for record in map(json.loads, (tmp_path / "run/rounds/00/stages.jsonl").open())}
    rows = json.loads((tmp_path / "run/metrics.json").read_text())["rows"]
    return " ".join((said.out + said.err).split()), [concern.rule for concern in diagnose(rows, {0: stages})]


def as_json(body, key="arguments"):
    tool = body["tools"][0]["function"]
    return json.dumps({"name": tool["name"], key: dict.fromkeys(tool["parameters"]["properties"], "x")})


@case(
    "calls as text",
    "a whole evaluation in which every task ends in a call as bare JSON",
    "all tasks inert with `valid_calls` near 100 %, and nothing said why",
    "the log and the report name the cause, and `model.tool_parser` as the key to set",
)
def test_a_stage_without_a_call_that_was_read_says_why(tmp_path, monkeypatch, capsys):
    said, rules = evaluated(tmp_path, monkeypatch, capsys, lambda number, body: completion(as_json(body)))
    assert "Not one call was read in eval-test, and 6 of 6 texts end in what looks like one" in said
    assert "model.tool_parser" in said
    assert "unread-calls" in rules
    assert "model.tool_parser" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize("answer", ["Done.", '{"paid": 3}', "I can't help with that."])
def test_a_stage_of_answers_says_nothing(tmp_path, monkeypatch, capsys, answer):
    said, rules = evaluated(tmp_path, monkeypatch, capsys, lambda number, body: completion(answer))
    assert "Not one call" not in said
    assert "unread-calls" not in rules


def test_nor_does_one_in_which_some_call_was_read(tmp_path, monkeypatch, capsys):
    def script(number, body):
        name = body["tools"][0]["function"]["name"]
        return completion(calls=[(name, "{}")]) if number == 0 else completion(as_json(body))

    said, rules = evaluated(tmp_path, monkeypatch, capsys, script)
    assert "Not one call" not in said
    assert "unread-calls" not in rules


def test_a_stage_of_empty_replies_says_so(tmp_path, monkeypatch, capsys):
    said, rules = evaluated(tmp_path, monkeypatch, capsys, lambda number, body: completion(""))
    assert "All 6 replies of eval-test are empty: no word and no call" in said
    assert "empty-replies" in rules


def test_one_word_in_a_stage_is_no_silence(tmp_path, monkeypatch, capsys):
    said, rules = evaluated(
        tmp_path, monkeypatch, capsys, lambda number, body: completion("Done." if number == 3 else "")
    )
    assert "are empty" not in said
    assert "empty-replies" not in rules
