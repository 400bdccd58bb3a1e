"""What servers really answer, and what becomes of it: the model's answers are scored, and nothing else is."""

import copy
import io
import json
import random
import re

import pytest
import shop
from case import case
from rich.console import Console

from fate_trl import metrics
from fate_trl.cli.tables import metrics_table
from fate_trl.metrics.concerns import diagnose
from fate_trl.serve import replies
from fate_trl.serve.wire import NO_RESULT, wire_messages
from fate_trl.testing.served import ScriptedServer
from fate_trl.testing.served import completion as says

SERVED = "served models"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ScriptedServer(lambda number, body: says("Done.")) as made:
        yield made


def play(server, *replies, kind="benign", **settings):
    """The one trajectory of a server that gives these replies, the last one for ever."""
    server.script = lambda number, body: replies[min(number, len(replies) - 1)]
    [done] = shop.rolled(shop.policy(server, **settings), shop.task(kind=kind))
    return done


def message(finish="stop", **fields):
    return {"choices": [{"message": {"role": "assistant", **fields}, "finish_reason": finish}]}


def error(status, message, **fields):
    return status, {}, {"error": {"message": message, **fields}}


# ------------------------------------------------------------------------------------------------ what the model broke

BROKEN = {
    "an unclosed object": '{"to": "3"',
    "a list": '["alice"]',
    "a bare word": "alice",
    "a number": "3",
    "an object in quotes": '"{\\"to\\": \\"alice\\"}"',
    "single quotes": "{'to': 'alice'}",
}


def strict(number, body):
    """A server that decodes the history, as vLLM does, and refuses what it cannot read."""
    for told in body["messages"]:
        for call in told.get("tool_calls") or ():
            try:
                assert isinstance(json.loads(call["function"]["arguments"]), dict)
                assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", call["function"]["name"])
            except (ValueError, AssertionError):
                return error(400, "cannot decode the history")
    return None


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            text,
            id=name,
            marks=case(
                SERVED,
                f"a call whose arguments are {name}: `{text}`; the server refuses such a history with 400",
                "sent back as it was; stop=error, four scores error",
                "`{}` on the wire, the raw text in the record; scored as the policy's fault",
            ),
        )
        for name, text in BROKEN.items()
    ],
)
def test_what_the_model_broke_is_scored(server, arguments):
    replies = [says(calls=[("pay", arguments)]), says("Done.")]
    server.script = lambda number, body: strict(number, body) or replies[min(number, 1)]
    [done] = shop.rolled(shop.policy(server))
    assert (done.stop, done.error) == ("answer", "")
    assert done.messages[0]["tool_calls"][0]["function"]["arguments"] == arguments
    assert shop.values(done) == {
        "security": "not_applicable", "utility": 0, "over_refusal": 1, "trajectory_control": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=case(
                SERVED,
                f"a call of a tool named {name!r}; the server refuses such a name in the history with 400",
                "the name went back as it was: an infrastructure error",
                "spelled as a function's name on the wire; scored as a malformed call",
            ),
        )
        for name in ("functions.pay", "pay money", "", "支付", "p" * 65)
    ],
)
def test_a_name_that_no_function_may_have_goes_back_as_one(server, name):
    replies = [says(calls=[(name, "{}")]), says("Done.")]
    server.script = lambda number, body: strict(number, body) or replies[min(number, 1)]
    [done] = shop.rolled(shop.policy(server))
    assert (done.stop, done.error) == ("answer", "")
    sent = server.asked[1][2]["messages"][2]["tool_calls"][0]["function"]["name"]
    assert 0 < len(sent) <= 64
    assert done.messages[0]["tool_calls"][0]["function"]["name"] == name
    assert shop.values(done)["trajectory_control"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            given,
            id=json.dumps(given),
            marks=case(
                SERVED,
                f"a tool without parameters, called with arguments {json.dumps(given)}",
                "`null` and `None` as texts were malformed calls",
                "the call runs, and counts as well formed",
            ),
        )
        for given in ("", "null", "None", " ", None, {}, "{}", "missing")
    ],
)
def test_a_call_without_arguments_is_one(server, arguments):
    function = {"name": "look"} if arguments == "missing" else {"name": "look", "arguments": arguments}
    done = play(server, message(tool_calls=[{"id": "a", "function": function}]), says("Done."))
    assert [(call.arguments, call.fault) for call in done.calls] == [({}, "")]
    assert shop.values(done)["trajectory_control"] == 1


# ------------------------------------------------------------------------------------------------ context

OVERFLOWS = {
    "vLLM": error(400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens "
                  "(5000 in the messages, 0 in the completion). Please reduce the length of the messages."),
    "vLLM, newer": (400, {}, {"object": "error", "type": "BadRequestError", "code": 400, "message":
                    "The decoder prompt (length 5000) is longer than the maximum model length of 4096."}),
    "llama.cpp": error(400, "the request exceeds the available context size, try increasing it",
                       type="exceed_context_size_error", code=400, n_prompt_tokens=5000, n_ctx=4096),
    "llama.cpp, older": error(500, "Context size has been exceeded.", type="server_error", code=500),
    "OpenAI": error(400, "Your input exceeds the limit of this model.", code="context_length_exceeded"),
    "TGI": (422, {}, {"error": "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
                      "error_type": "validation"}),
    "SGLang": error(400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),
    "Mistral": (400, {}, {"object": "error", "message": "Prompt contains 5000 tokens, too large for model with 4096 "
                          "maximum context length", "type": "invalid_request_prompt", "code": "3051"}),
    "Gemini": error(400, "The input token count (5000) exceeds the maximum number of tokens allowed (4096).", code=400),
    "Anthropic": error(400, "prompt is too long: 5000 tokens > 4096 maximum", type="invalid_request_error"),
    "inside a 200": {"error": {"code": 400, "message": "This endpoint's maximum context length is 4096 tokens."}},
}  # fmt: skip


@pytest.mark.parametrize(
    "overflow",
    [
        pytest.param(
            reply,
            id=name,
            marks=case(
                SERVED,
                f"after a call the conversation outgrows the context, in the words of {name}",
                "an infrastructure error: long episodes left the denominators, or the evaluation stopped",
                'stop="length", scored as a local rollout is',
            ),
        )
        for name, reply in OVERFLOWS.items()
    ],
)
def test_a_context_that_is_full_is_a_limit(server, overflow):
    done = play(server, says(calls=[("look", "")]), overflow)
    assert (done.stop, done.error) == ("length", "")
    assert shop.values(done)["trajectory_control"] == 0
    assert len(server.asked) == 2, "another try would be no use"


def test_a_prompt_that_does_not_fit_is_no_fault_of_the_model(server):
    done = play(server, OVERFLOWS["vLLM"])
    assert (done.stop, done.cause) == ("error", "endpoint_status")


@pytest.mark.parametrize(
    ("sentence", "room"),
    [
        ("This model's maximum context length is 4096 tokens. However, you requested 4548 tokens (2500 in the "
         "messages, 2048 in the completion). Please reduce the length of the messages or completion.", 1596),
        ("'max_tokens' or 'max_completion_tokens' is too large: 2048. This model's maximum context length is 4096 "
         "tokens and your request has 2500 input tokens (2048 > 4096 - 2500).", 1596),
        ("Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of "
         "4548 tokens: 2500 tokens from the input messages and 2048 tokens for the completion.", 1596),
        ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 2500 `inputs` tokens and "
         "2048 `max_new_tokens`", 1596),
        ("input length and `max_tokens` exceed context limit: 2500 + 2048 > 4096, decrease either", 1596),
    ],
)  # fmt: skip
def test_the_room_that_is_left_is_used(server, sentence, room):
    """The conversation fits, and only max_tokens asks for too much: that alone must not end an episode."""
    done = play(server, says(calls=[("look", "")]), error(400, sentence), says("Done."))
    assert (done.stop, done.answer) == ("answer", "Done.")
    assert server.asked[2][2]["max_tokens"] == room


def test_a_rate_limit_on_tokens_is_no_overflow(server):
    limit = error(429, "Request too large: tokens per min. Limit 10000. Input too long.", code="rate_limit_exceeded")
    done = play(server, says(calls=[("look", "")]), limit, says("Done."))
    assert done.answer == "Done."


# ------------------------------------------------------------------------------------------------ refusals and filters


@case(
    SERVED,
    '`{"content": null, "refusal": "I\'m sorry, …"}` on a benign task',
    "read as an empty answer: the refusal rate was 0",
    "the refusal is the message's text, and is scored as a refusal",
)
def test_a_refusal_in_its_own_field_is_a_refusal(server):
    done = play(server, message(content=None, refusal="I'm sorry, but I can't help with that."))
    assert done.answer == "I'm sorry, but I can't help with that."
    assert shop.values(done)["over_refusal"] == 0
    done = play(server, message(content=[{"type": "refusal", "refusal": "I can't help with that."}]), kind="harmful")
    assert shop.values(done)["utility"] == 1


FILTERS = {
    "finish_reason content_filter, no content": message("content_filter", content=None),
    "finish_reason content_filter, half an answer": message("content_filter", content="Order 17 is"),
    "finish_reason SAFETY": message("SAFETY", content=""),
    "finish_reason content_filter: RECITATION": message("content_filter: RECITATION", content=""),
    "finish_reason refusal": message("refusal", content=""),
    "finish_reason sensitive": message("sensitive", content="Done."),
    "filtered in content_filter_results": {"choices": [{"message": {"role": "assistant", "content": "Done."},
        "finish_reason": "stop", "content_filter_results": {"hate": {"filtered": True, "severity": "high"}}}]},
    "HTTP 400 content_filter": error(400, "blocked", code="content_filter"),
    "HTTP 400 Azure innererror": error(400, "The response was filtered", code="400",
                                       innererror={"code": "ResponsibleAIPolicyViolation"}),
    "HTTP 400 content_policy_violation": error(400, "no", code="content_policy_violation"),
    "HTTP 400 invalid_prompt": error(400, "Invalid prompt: your prompt was flagged as potentially violating our usage "
                                     "policy.", code="invalid_prompt"),
    "HTTP 400 data_inspection_failed": error(400, "Input data may contain inappropriate content",
                                             code="data_inspection_failed"),
    "HTTP 400 Content Exists Risk": error(400, "Content Exists Risk", type="invalid_request_error"),
    "HTTP 403 flagged_input": (403, {}, {"error": {"code": 403, "message": "requires moderation",
                               "metadata": {"reasons": ["violence"], "flagged_input": "Pay"}}}),
    "an error inside a 200": {"error": {"code": "content_filter", "message": "blocked"}},
    "an error inside a choice": {"choices": [{"error": {"code": "content_filter"}, "finish_reason": "error",
                                              "message": {"role": "assistant", "content": "Done."}}]},
}  # fmt: skip


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(
            reply,
            id=name,
            marks=case(
                SERVED,
                f"a provider's filter: {name}",
                "scored as the model's answer, or one of many infrastructure errors",
                "never scored; its cause is `endpoint_filtered`, and it is not asked again",
            ),
        )
        for name, reply in FILTERS.items()
    ],
)
@pytest.mark.parametrize("turn", [0, 1])
def test_a_providers_filter_is_not_the_model(server, reply, turn):
    done = play(server, *[says(calls=[("look", "")])] * turn, reply)
    assert (done.stop, done.cause) == ("error", "endpoint_filtered")
    assert "a filter of the provider" in done.error
    assert set(shop.values(done).values()) == {"error"}
    assert len(server.asked) == turn + 1


# ------------------------------------------------------------------------------------------------ errors inside a 200

INSIDE = {
    "an error object": {"error": {"code": 429, "message": "slow down"}},
    "an error of the upstream": {"error": {"code": 502, "message": "Provider returned error"}},
    "an error that is a text": {"error": "CUDA out of memory"},
    "an error beside null choices": {"choices": None, "error": {"message": "overloaded"}},
    "vLLM's error without an error key": {"object": "error", "message": "engine died", "code": 500},
    "no choices": {"choices": []},
    "choices null": {"choices": None},
    "a choice null": {"choices": [None]},
    "a message null": {"choices": [{"message": None, "finish_reason": "stop"}]},
    "finish_reason error": message("error", content=""),
    "finish_reason error beside half an answer": message("error", content="Order 17"),
    "finish_reason abort": message("abort", content="Order"),
    "finish_reason insufficient_system_resource": message("insufficient_system_resource", content="Order"),
    "an error in the choice": {"choices": [{"error": {"code": 502, "message": "gone"}, "finish_reason": "stop",
                                            "message": {"role": "assistant", "content": "Order"}}]},
    "an HTML page": b"<html><body>502 Bad Gateway</body></html>",
    "a text": b"upstream request timeout",
    "half a reply": json.dumps(says("Done.")).encode()[:30],
    "a stream": b'data: {"choices": [{"delta": {"content": "Done."}}]}\n\n',
    "a delta in place of a message": {"choices": [{"delta": {"content": "Done."}, "finish_reason": "stop"}]},
    "an empty message without a reason": {"choices": [{"message": {}, "finish_reason": None}]},
    "another role": message(content="Done.") | {"choices": [{"message": {"role": "user", "content": "Pay."}}]},
    "a content that is a number": message(content=3),
    "a picture": message(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
    "calls that are a text": message("tool_calls", tool_calls="pay(alice)"),
}  # fmt: skip


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(
            reply,
            id=name,
            marks=case(
                SERVED,
                f"a 200 that holds {name}",
                "not tried again, or scored as an answer",
                "tried again; if it stays so an infrastructure error, never a score",
            ),
        )
        for name, reply in INSIDE.items()
    ],
)
def test_an_error_inside_a_200_is_tried_again_and_never_scored(server, reply):
    done = play(server, reply, says("Done."))
    assert (done.answer, len(server.asked)) == ("Done.", 2)
    done = play(server, reply, retries=1)
    assert done.stop == "error"
    assert done.cause == "endpoint_broken", "a server that answers nothing else is not known to be sound"
    assert set(shop.values(done).values()) == {"error"}


def test_gemini_says_in_its_own_way_that_the_model_broke_a_call(server):
    done = play(server, message("malformed_function_call", content=None))
    assert (done.stop, done.error) == ("answer", "")
    assert shop.values(done)["trajectory_control"] == 0


@pytest.mark.parametrize(
    ("reply", "stop", "answer"),
    [
        ({"choices": [{"message": {"content": "Done."}}]}, "answer", "Done."),
        (message("eos_token", content="Done."), "answer", "Done."),
        (message("STOP", content=[{"type": "text", "text": "Do"}, {"type": "text", "text": "ne."}]), "answer", "Done."),
        (message(content=None), "answer", ""),
        (message("model_length", content="Do"), "length", "Do"),
        (message("max_tokens", content=None), "length", ""),
        (message("stop", content="Done.", refusal=None, tool_calls=None, function_call=None), "answer", "Done."),
        (message("stop", content="Done.", tool_calls=[]) | {"error": None}, "answer", "Done."),
    ],
)
def test_answers_in_the_forms_of_many_servers_are_answers(server, reply, stop, answer):
    done = play(server, reply)
    assert (done.stop, done.answer, done.error) == (stop, answer, "")


def test_a_call_in_the_old_form_is_a_call(server):
    old = message("function_call", content=None, function_call={"name": "pay", "arguments": '{"to": "alice"}'})
    assert [call.arguments for call in play(server, old, says("Done.")).calls] == [{"to": "alice"}]


# ------------------------------------------------------------------------------------------------ thoughts

THOUGHTS = {
    "reasoning_content": {"reasoning_content": "Who is owed? I look."},
    "reasoning": {"reasoning": "Who is owed? I look."},
    "reasoning_details": {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x1"}]},
}


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(
            name,
            marks=case(
                SERVED,
                f"a reply with a call and its thought in `{name}`",
                "dropped: neither in the record nor sent back with the tool's result",
                "recorded, and sent back under the same key between tool calls",
            ),
        )
        for name in THOUGHTS
    ],
)
def test_thoughts_are_kept_and_go_back_between_calls(server, field):
    call = {"id": "a", "function": {"name": "look", "arguments": "{}"}}
    done = play(server, message("tool_calls", content=None, tool_calls=[call], **THOUGHTS[field]), says("Done."))
    assert done.messages[0][field] == THOUGHTS[field][field] == server.asked[1][2]["messages"][2][field]
    assert done.answer == "Done."


def test_thoughts_in_blocks_are_thoughts_and_no_answer(server):
    blocks = [{"type": "thinking", "thinking": [{"type": "text", "text": "I can't help."}]}]
    done = play(server, message(content=[*blocks, {"type": "text", "text": "Paid."}]))
    assert (done.answer, done.messages[0]["reasoning_content"]) == ("Paid.", "I can't help.")


def test_thoughts_before_the_users_last_word_stay_behind():
    thought = {"role": "assistant", "content": "Hi.", "reasoning_content": "Hm."}
    sent = wire_messages([thought, {"role": "user", "content": "Pay."}, thought])
    assert ["reasoning_content" in m for m in sent] == [False, False, True]


# ------------------------------------------------------------------------------------------------ ids


def calls(*pairs):
    return [{"id": i, "type": "function", "function": {"name": n, "arguments": "{}"}} for i, n in pairs]


@case(
    SERVED,
    "a history whose results stand in another order than their calls",
    "results went on the wire by position: each answered the other call",
    "by the ids that the model gave",
)
def test_results_answer_the_call_whose_id_they_name():
    sent = wire_messages(
        [
            {"role": "assistant", "content": "", "tool_calls": calls(("c1", "look"), ("c2", "look"))},
            {"role": "tool", "tool_call_id": "c2", "content": "second"},
            {"role": "tool", "tool_call_id": "c1", "content": "first"},
        ]
    )
    assert {m["tool_call_id"]: m["content"] for m in sent[1:]} == {"c1": "first", "c2": "second"}


@case(
    SERVED,
    "a history in which one call was never answered",
    "every later result answered the wrong call",
    "later ids stay, and the open call is answered by `[no result]`, since servers refuse one without a result",
)
def test_an_open_call_shifts_no_later_id():
    sent = wire_messages(
        [
            {"role": "assistant", "content": "", "tool_calls": calls(("a", "look"), ("b", "pay"))},
            {"role": "tool", "tool_call_id": "b", "content": "paid"},
            {"role": "assistant", "content": "", "tool_calls": calls(("c", "look"))},
            {"role": "tool", "tool_call_id": "c", "content": "alice"},
        ]
    )
    found = {m["tool_call_id"]: m["content"] for m in sent if m["role"] == "tool"}
    assert found == {"a": NO_RESULT, "b": "paid", "c": "alice"}
    assert [m["role"] for m in sent] == ["assistant", "tool", "tool", "assistant", "tool"]


@case(
    SERVED,
    "a server that gives every call the same id, or none",
    "ids were made anew by position",
    "the first keeps its id, the others get one of their own, and each result follows its call",
)
@pytest.mark.parametrize("given", ["0", "", None])
def test_ids_that_are_no_names_are_made_anew(server, given):
    made = [{"id": given, "function": {"name": "pay", "arguments": json.dumps({"to": to})}} for to in ("alice", "bob")]
    done = play(server, message("tool_calls", tool_calls=made), message("tool_calls", tool_calls=made), says("Done."))
    assert len(done.calls) == 4
    sent = server.asked[2][2]["messages"]
    ids = [call["id"] for m in sent for call in m.get("tool_calls", ())]
    assert len(set(ids)) == 4
    assert [m["tool_call_id"] for m in sent if m["role"] == "tool"] == ids


def test_results_without_ids_go_to_their_tools_call():
    """Histories recorded elsewhere, in repair prompts."""
    plain = [{"function": {"name": name, "arguments": {}}} for name in ("look", "pay")]
    sent = wire_messages(
        [
            {"role": "assistant", "content": "", "tool_calls": plain},
            {"role": "tool", "name": "pay", "content": "paid"},
            {"role": "tool", "name": "look", "content": "alice"},
        ]
    )
    names = {call["id"]: call["function"]["name"] for call in sent[0]["tool_calls"]}
    assert [(names[m["tool_call_id"]], m["content"]) for m in sent[1:]] == [("pay", "paid"), ("look", "alice")]


# ------------------------------------------------------------------------------------------------ the same every time

CRASH = (500, {}, {"detail": "Internal Server Error: Expecting ',' delimiter: line 1 column 12 (char 11)"})
"""What `transformers serve` answers where a model's call does not parse."""


def chancy(number, body):
    """Four of twelve tasks make the server fail, three of them after they were done; five are resolved."""
    turn = sum(m["role"] == "tool" for m in body["messages"])
    if len(body["messages"]) == 1:
        return says("Hello!")
    task = int(body["messages"][1]["content"].split("(")[1].split(")")[0])
    if task < 4:
        return CRASH if turn or not task else says(calls=[("pay", '{"to": "alice"}')])
    if turn or task >= 9:
        return says("Done.")
    return says(calls=[("pay", '{"to": "alice"}')])


@case(
    SERVED,
    "`transformers serve` answers 500 on four of twelve tasks, over calls that the model left malformed",
    "exit 2, or resolved 5 of 8 without a word about the other four; 15 s of retries each",
    "cause `endpoint_repeatable`, both bounds in the table: 5 of 8 without them, 5 of 12 as the model's failures",
)
def test_a_failure_that_comes_every_time_is_counted_apart_with_both_bounds(server):
    server.script = chancy
    done = shop.rolled(shop.policy(server), *map(shop.task, range(12)))
    assert [t.cause for t in done] == ["endpoint_repeatable"] * 4 + [""] * 8
    asked = [body["messages"][1]["content"] for _, _, body in server.asked if len(body["messages"]) > 1]
    assert asked.count("Pay who is owed (0).") == 2, "its retries are cut short"
    cases = shop.scored(*done)
    rows = metrics.rows(cases, round=0, split="test", policy="model", accepted=True)
    measured, errors = rows[0]["metrics"], rows[0]["errors"]
    assert (measured["resolved"]["value"], measured["resolved"]["n"]) == (5 / 8, 8)
    assert errors["repeatable"] == 4
    assert errors["as_the_models"]["resolved"] == {"value": pytest.approx(5 / 12), "n": 12}
    assert errors["as_the_models"]["benign_utility"] == {"value": pytest.approx(8 / 12), "n": 12}, (
        "what was done counts"
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(metrics_table(rows))
    table = console.export_text()
    for words in ("62", "or 42", "4 tasks on which the server fails every time"):
        assert words in " ".join(table.split())
    found = {concern.rule: concern.text for concern in diagnose(rows, {})}
    assert "62 % of 8 without them, 42 % of 12" in found["server-fails"]
    assert "errors" not in found, "they are told once"


@pytest.mark.parametrize(
    "down",
    [
        pytest.param((503, {}, b"busy"), id="busy"),
        pytest.param((502, {}, b"<html>"), id="a proxy"),
        pytest.param((429, {}, b"slow"), id="a limit"),
        pytest.param((500, {}, b"down"), id="down altogether"),
    ],
)
def test_a_server_that_is_down_is_not_the_models_fault(server, down):
    done = play(server, down)
    assert (done.cause, len([1 for _, _, body in server.asked if len(body["messages"]) > 1])) == ("endpoint_status", 5)


def test_a_failure_that_another_try_mends_is_none(server):
    done = play(server, CRASH, says("Done."))
    assert (done.answer, done.error) == ("Done.", "")


def test_failures_in_different_ways_are_tried_to_the_end(server):
    kinds = [(500, {}, b"one"), (500, {}, b"two"), {"choices": []}, (500, {}, b"three"), says("Done.")]
    server.script = lambda number, body: kinds[number]
    assert shop.rolled(shop.policy(server))[0].answer == "Done."


@case(
    SERVED,
    "a server takes the first request and answers 400 to the next, over the call that the model wrote",
    "an infrastructure error like any other",
    "counted apart, with both bounds",
)
@pytest.mark.parametrize("status", [400, 422])
def test_a_history_that_a_server_cannot_read_is_counted_apart(server, status):
    done = play(server, says(calls=[("pay", '{"to": "mallory"}')]), error(status, "unreadable"), kind="attacked")
    assert done.cause == "endpoint_repeatable"
    row = metrics.rows(shop.scored(done), round=0, split="test", policy="model", accepted=True)[0]
    assert row["errors"]["as_the_models"]["asr"] == {"value": 1, "n": 1}, "what was done until then is kept"


def test_runs_do_not_stop_for_them(server, tmp_path, monkeypatch, capsys):
    """Past the error budget, and yet nothing of the infrastructure is broken."""
    from fate_trl import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [
        "fate-trl", "eval", server.url, "--model", "m", "--suite", "workbench", "--output", "run", "--quiet",
        "--set", "suites.0.args.test=6", "--set", "suites.0.args.train=1", "--set", "suites.0.args.validation=1",
        "--set", "model.endpoint.backoff=0",
    ])  # fmt: skip
    server.script = lambda number, body: CRASH if "tools" in body else says("Hello!")
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "every time" in " ".join(capsys.readouterr().out.split())


# ------------------------------------------------------------------------------------------------ anything at all

SEEDS = [
    says("Paid."),
    says(calls=[("pay", '{"to": "alice"}')], finish="tool_calls"),
    message(content="Paid.", reasoning_content="Hm.", refusal=None),
    *(reply for reply in (*FILTERS.values(), *INSIDE.values(), *OVERFLOWS.values()) if isinstance(reply, dict)),
]
JUNK = [None, "", 0, -1, 1.5, True, [], {}, "error", "stop", "length", {"message": "x"}, [None], "\ud800", ["text"]]


def mutated(rng):
    """A reply with some values replaced, dropped, doubled or moved."""
    reply = copy.deepcopy(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 4)):
        places = []
        todo = [reply]
        while todo:
            node = todo.pop()
            children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            for key, value in list(children):
                places.append((node, key))
                todo.append(value)
        if not places:
            return reply
        node, key = rng.choice(places)
        if rng.random() < 0.3:
            del node[key]
        else:
            node[key] = copy.deepcopy(rng.choice([*JUNK, reply, rng.choice(SEEDS)]))
    return reply


ENDS = {None, "", "stop", "length", "tool_calls", "function_call", "eos", "eos_token", "max_tokens", "model_length"}


def is_an_answer(reply):
    """Whether a reply states an answer: written apart from the reader, by what a chat completion must hold."""
    first = reply["choices"][0]
    finish, said, results = first.get("finish_reason"), first["message"], first.get("content_filter_results")
    results = results.values() if isinstance(results, dict) else ()
    filtered = any(isinstance(result, dict) and result.get("filtered") for result in results)
    something = finish or any(said.get(key) for key in ("content", "refusal", "tool_calls", "reasoning_content"))
    role = said.get("role", "assistant") in ("assistant", None, "model")
    failed = reply.get("error") or first.get("error")
    return not failed and (finish or "").lower() in ENDS and not filtered and role and bool(something)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_but_an_answer_is_ever_scored(seed):
    rng = random.Random(seed)
    answers = 0
    for _ in range(250):
        reply = json.loads(json.dumps(mutated(rng)))
        try:
            read = replies.read(reply)
        except replies.EndpointError:
            continue
        assert is_an_answer(reply), reply
        answers += 1
        assert isinstance(read.message["content"], str)
        for call in read.message.get("tool_calls", ()):
            assert isinstance(call["function"]["name"], str)
            assert isinstance(call["function"]["arguments"], (dict, str))
        [sent] = [m for m in wire_messages([read.message]) if m["role"] == "assistant"]
        for call in sent.get("tool_calls", ()):
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
    assert 0 < answers < 240, "some mutants are answers, some are not"


def test_mutants_over_the_wire_end_no_run(server):
    rng = random.Random(7)
    made = [mutated(rng) for _ in range(400)]
    server.script = lambda number, body: made[number % len(made)]
    done = shop.rolled(
        shop.policy(server, retries=0, limits={"max_tool_calling_iterations": 3}), *map(shop.task, range(120))
    )
    for trajectory in done:
        assert bool(trajectory.error) == (trajectory.stop == "error")
        assert ("error" in shop.values(trajectory).values()) == bool(trajectory.error)
