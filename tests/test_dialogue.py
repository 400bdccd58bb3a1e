"""Which result answers which call, in the formats that others record dialogues in."""

import pytest
from case import case

from fate_trl.errors import InterchangeError
from fate_trl.interchange import rows
from fate_trl.interchange.dialogue import paired, turns_of

SECTION = "pairing"


def call(id, name, arguments="{}"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(text, **keys):
    return {"role": "tool", "content": text, **keys}


def asks(*calls, text=None):
    return {"role": "assistant", "content": text, "tool_calls": list(calls)}


def ran(*messages):
    """(name, result, fault) of what was executed."""
    return [(call.name, call.result, call.fault) for call in paired(turns_of(messages))[1]]


def told(*messages):
    """Names of the calls and texts of the results, in the order of our messages."""
    found = []
    for message in paired(turns_of(messages))[0]:
        found += [call["function"]["name"] for call in message.get("tool_calls", ())]
        found += [message["content"]] if message["role"] == "tool" else []
    return found


PAY, READ = call("c1", "pay"), call("c2", "read")
SAID = {"role": "assistant", "content": "Done."}


@case(SECTION, "results of c2, c1 for calls c1, c2", "swapped", "each stands with its call, in the calls' order")
def test_results_in_another_order():
    turns = (asks(PAY, READ), result("text", tool_call_id="c2"), result("paid", tool_call_id="c1"), SAID)
    assert ran(*turns) == [("pay", "paid", ""), ("read", "text", "")]
    assert told(*turns) == ["pay", "read", "paid", "text"]


@case(SECTION, "calls pay, read; only read has a result", "pay counts as executed", "read alone was executed")
def test_a_missing_result_is_no_execution():
    turns = (asks(PAY, READ), result("text", tool_call_id="c2"), SAID)
    assert ran(*turns) == [("read", "text", "")]
    assert told(*turns) == ["read", "pay", "text"], "what pairs by order pairs it rightly"


@case(SECTION, "the same, with the tool's name in place of an id", "pay counts as executed", "read alone was executed")
def test_a_missing_result_by_name():
    assert ran(asks(PAY, READ), result("text", name="read"), SAID) == [("read", "text", "")]


@case(SECTION, "two calls, one result that says nothing", "pay counts as executed", "an error that asks for ids")
def test_a_missing_result_without_a_word():
    with pytest.raises(InterchangeError, match="2 calls have 1 results which do not say what they answer"):
        ran(asks(PAY, READ), result("text"), SAID)


@case(SECTION, "two calls, one result, and there the record ends", "the first was executed", "the first was executed")
def test_a_record_that_breaks_off():
    assert ran(asks(PAY, READ), result("paid")) == [("pay", "paid", "")]


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        pytest.param(
            (asks(PAY), result("x", tool_call_id="c9"), SAID),
            "id 'c9' answers no call",
            marks=case(SECTION, "a result with an id that no call has", "taken for the first call's", "an error"),
        ),
        pytest.param(
            (asks(PAY), result("x", tool_call_id="c1"), result("y", tool_call_id="c1"), SAID),
            "id 'c1' answers no call",
            marks=case(SECTION, "two results with one id", "the second is passed over", "an error"),
        ),
        pytest.param(
            (asks(PAY), result("x", name="read"), SAID),
            "result of 'read' answers no call",
            marks=case(SECTION, "a result of a tool that was not called", "taken for the first call's", "an error"),
        ),
        pytest.param(
            (result("x", tool_call_id="c1"), asks(PAY), SAID),
            "id 'c1' answers no call",
            marks=case(SECTION, "a result before its call", "passed over", "an error"),
        ),
    ],
)
def test_what_answers_no_call_is_an_error(turns, says):
    with pytest.raises(InterchangeError, match=says):
        ran(*turns)


@case(SECTION, "ids that begin anew in every turn", "paired by order", "paired with the latest call of that id")
def test_ids_that_are_used_again():
    again = (asks(PAY), result("one", tool_call_id="c1"), asks(call("c1", "read")), result("two", tool_call_id="c1"))
    assert ran(*again) == [("pay", "one", ""), ("read", "two", "")]


@case(SECTION, "a result that comes after the next message", "paired with the next call", "paired by its id")
def test_a_late_result():
    turns = (asks(PAY), asks(READ), result("text", tool_call_id="c2"), result("paid", tool_call_id="c1"), SAID)
    assert sorted(ran(*turns)) == [("pay", "paid", ""), ("read", "text", "")]


@case(SECTION, "Anthropic's tool_use and tool_result blocks", "vanish: no call, no result", "read")
def test_anthropics_blocks():
    use = [{"type": "text", "text": "I pay."}, {"type": "tool_use", "id": "t1", "name": "pay", "input": {"to": "ann"}}]
    use += [{"type": "thinking", "thinking": "Hm."}, {"type": "tool_use", "id": "t2", "name": "read", "input": {}}]
    answers = [
        {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "none"}], "is_error": True},
        {"type": "tool_result", "tool_use_id": "t1", "content": "paid"},
        {"type": "text", "text": "Go on."},
    ]
    turns = ({"role": "assistant", "content": use}, {"role": "user", "content": answers}, SAID)
    assert ran(*turns) == [("pay", "paid", ""), ("read", "none", "raised")]
    messages = paired(turns_of(turns))[0]
    assert [m["role"] for m in messages] == ["assistant", "tool", "tool", "user", "assistant"]
    assert (messages[0]["content"], messages[3]["content"]) == ("I pay.", "Go on.")


@case(SECTION, "items of OpenAI's Responses", "refused: a role that is None", "read, outputs by their call_id")
def test_openais_responses():
    items = (
        {"role": "user", "content": [{"type": "input_text", "text": "Pay Ann."}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "a", "name": "pay", "arguments": '{"to": "ann"}'},
        {"type": "function_call", "call_id": "b", "name": "read", "arguments": ""},
        {"type": "function_call_output", "call_id": "b", "output": "text"},
        {"type": "function_call_output", "call_id": "a", "output": "paid"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]},
    )
    assert ran(*items) == [("pay", "paid", ""), ("read", "text", "")]
    assert paired(turns_of(items))[0][-1] == SAID


@case(SECTION, "OpenAI's older function_call and role function", "the call vanishes", "read")
def test_openais_older_calls():
    turns = ({"role": "assistant", "function_call": {"name": "pay", "arguments": "{}"}}, {"role": "function"})
    assert ran(turns[0], {**turns[1], "name": "pay", "content": "paid"}) == [("pay", "paid", "")]


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        pytest.param(
            {"role": "assistant", "content": [{"type": "server_tool_use", "id": "s", "name": "web", "input": {}}]},
            "block of type 'server_tool_use'",
            marks=case(SECTION, "a block that may be a call", "vanishes", "refused by its name"),
        ),
        pytest.param(
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "block of type 'image_url'",
            marks=case(SECTION, "a picture in a message", "vanishes", "refused by its name"),
        ),
        pytest.param(
            {"type": "computer_call", "call_id": "a", "action": {}},
            "item of type 'computer_call'",
            marks=case(SECTION, "an item of Responses that is not read", "a role that is None", "refused by its name"),
        ),
        pytest.param(
            {"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "y"}]},
            "block of type 'tool_result'",
            marks=case(SECTION, "a tool_result in an assistant's message", "vanishes", "refused by its name"),
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(turn, says):
    with pytest.raises(InterchangeError, match=says):
        ran(turn)


@case(
    SECTION, 'a call with the arguments "null"', "malformed", "a call without arguments, as one with an empty text is"
)
def test_no_arguments():
    for none in ("null", "", None, "{}"):
        message = paired(turns_of([asks(call("a", "pay", none))]))[0][0]
        assert message["tool_calls"][0]["function"]["arguments"] == {}


@case(SECTION, "a result for a call whose arguments are no JSON", "executed without a fault", 'fault "arguments"')
def test_malformed_arguments():
    assert ran(asks(call("a", "pay", '{"to":')), result("error", tool_call_id="a")) == [("pay", "error", "arguments")]


@case(SECTION, "an answer in OpenAI's field refusal", "an empty answer", "the refusal is the answer")
def test_a_refusal_of_its_own_field():
    assert paired(turns_of([{"role": "assistant", "content": None, "refusal": "No."}]))[0][0]["content"] == "No."


@case(SECTION, "a wrong pairing in a row of JSONL", "nobody is told", "an error that names file and line")
def test_the_line_is_named():
    row = {"task": "t", "scores": {"security": 1.0}, "failed_trajectory": [asks(PAY), result("x", tool_call_id="c9")]}
    with pytest.raises(InterchangeError, match=r"^f.jsonl, line 3: .*'c9'"):
        rows.case(row, "f.jsonl, line 3")


def test_calls_in_the_text_have_results_without_a_call():
    """Hermes and others write calls as text; their results stand there, and nothing is known to have run."""
    assert ran({"role": "assistant", "content": "<tool_call>…"}, result("paid"), SAID) == []
