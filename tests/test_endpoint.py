"""Any served model can be evaluated: a real HTTP server on loopback, which behaves, misbehaves and falls silent."""

import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Literal

import pytest
import shop
from shop import Suite, rolled, task
from transformers.utils import get_json_schema

from fate_trl import cli, plugins
from fate_trl.errors import RecipeError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.recipe.loading import make_recipe
from fate_trl.serve import completions
from fate_trl.serve.endpoint import tool_schema
from fate_trl.testing.hostile import HOSTILE
from fate_trl.testing.served import ScriptedServer
from fate_trl.testing.served import completion as says
from fate_trl.types import Outcome
from fate_trl.verify.scoring import TrajectoryControl

KEY = "sk-secret-0123456789"


GOOD = [
    says(calls=[("look", "")]),
    says(calls=[("pay", '{"to": "alice"}')], usage=(30, 6)),
    says("Paid.", usage=(50, 2)),
]


@pytest.fixture
def server():
    with ScriptedServer(lambda number, body: GOOD[number]) as made:
        yield made


@pytest.fixture
def policy(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    return lambda *given, **named: shop.policy(server, *given, **{"retries": 2, **named})


# ------------------------------------------------------------------------------------------------ the conversation


def test_a_model_that_is_served_speaks_and_acts(server, policy, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    (done,) = rolled(policy())
    assert done.error == ""
    assert (done.stop, done.answer, done.outcome) == ("answer", "Paid.", Outcome(utility=1.0))
    assert [(c.name, c.arguments, c.result, c.fault) for c in done.calls] == [
        ("look", {}, "alice is owed", ""),
        ("pay", {"to": "alice"}, "paid", ""),
    ]
    assert [m["role"] for m in done.messages] == ["assistant", "tool", "assistant", "tool", "assistant"]
    assert done.data["usage"] == {"prompt_tokens": 90, "completion_tokens": 13}
    assert (done.prompt_ids, done.policy) == ((), "model")
    path, headers, body = server.asked[-1]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "m"
    assert body["tools"][1]["function"]["parameters"]["properties"] == {
        "to": {"type": "string", "description": "Who is paid."}
    }
    assert body["messages"][:2] == list(task().messages)
    assert [m.get("tool_call_id") for m in body["messages"] if m["role"] == "tool"] == ["x0", "call00001"]
    assert body["messages"][4]["tool_calls"][0]["function"] == {"name": "pay", "arguments": '{"to": "alice"}'}
    assert server.asked[0][2]["max_tokens"] == 2048
    assert body["max_tokens"] == 2048 - (30 + 6 - 10), "what followed the prompt counts, tool results included"


def odd(a: int, title: list[str], c: Literal["x", "y"] = "x", d: dict[str, float] | None = None) -> str:
    """
    Do something.

    Args:
        a: A number.
        title: Words.
        c: A letter.
        d: More.
    """


def test_tools_are_described_as_to_a_local_model():
    for tool in (*Suite().tools().values(), *plugins.load("suite", "workbench", {}).tools().values()):
        theirs = get_json_schema(tool)["function"]
        ours = tool_schema(tool)["function"]
        assert {key: ours[key] for key in ("name", "description")} == {k: theirs[k] for k in ("name", "description")}
        assert ours["parameters"]["properties"] == theirs["parameters"]["properties"]
        assert ours["parameters"].get("required", []) == theirs["parameters"].get("required", [])
    described = tool_schema(odd)["function"]["parameters"]
    assert described["required"] == ["a", "title"]
    assert described["properties"]["title"] == {"type": "array", "items": {"type": "string"}, "description": "Words."}
    assert described["properties"]["c"]["enum"] == ["x", "y"]
    assert [kind["type"] for kind in described["properties"]["d"]["anyOf"]] == ["object", "null"]


def test_requests_have_seeds_of_their_own_and_the_recipes_keys(server, policy):
    server.script = lambda number, body: says("Done.")
    made = policy(body={"seed": None, "top_k": 5}, limits={"temperature": 0})
    rolled(made)
    assert "seed" not in server.asked[0][2]
    assert (server.asked[0][2]["top_k"], server.asked[0][2]["temperature"]) == (5, 0)
    for seed in (1, 1, 2):
        rolled(policy(), seed=seed)
    seeds = [body["seed"] for _, _, body in server.asked[1:]]
    assert seeds[0] == seeds[1] != seeds[2]


def test_episodes_run_beside_each_other_up_to_the_limit_and_come_back_in_order(server, policy):
    everyone = threading.Barrier(3)

    def script(number, body):
        everyone.wait(10)  # nobody is answered before three ask at once
        return says(body["messages"][1]["content"])

    server.script = script
    done = rolled(policy(concurrency=3), *map(task, range(6)))
    assert [t.answer for t in done] == [f"Pay who is owed ({i})." for i in range(6)]
    assert server.most == 3


@pytest.mark.parametrize(
    ("replies", "limits", "stop", "calls"),
    [
        ([says(calls=[("look", "{}")])] * 9, {"max_tool_calling_iterations": 2}, "calls", 2),
        ([says("I am", finish="length")], {}, "length", 0),
        (
            [says(calls=[("look", "{}")], usage=(10, 5)), says(calls=[("look", "{}")], usage=(90, 30))] * 2,
            {"max_completion_length": 100},
            "length",
            2,
        ),
    ],
)
def test_limits_hold_and_are_no_errors(server, policy, replies, limits, stop, calls):
    server.script = lambda number, body: replies[number]
    (done,) = rolled(policy(limits=limits))
    assert (done.stop, len(done.calls), done.error) == (stop, calls, "")


# ------------------------------------------------------------------------------------------------ the model's faults


@pytest.mark.parametrize("arguments", ['{"to": "ali', "[1]", "alice", '"alice"', "{" * 3000, "1" * 9000])
def test_a_call_whose_arguments_are_no_json_is_the_policys_fault(server, policy, arguments):
    server.script = lambda number, body: says(calls=[("pay", arguments)]) if number == 0 else says("Oh.")
    (done,) = rolled(policy())
    assert done.error == ""
    assert [(c.name, c.arguments, c.fault) for c in done.calls] == [("pay", {}, "arguments")]
    assert "no JSON object" in json.loads(done.messages[1]["content"])["error"]
    assert done.messages[0]["tool_calls"][0]["function"]["arguments"] == arguments, "the record has what was written"
    assert server.asked[1][2]["messages"][2]["tool_calls"][0]["function"]["arguments"] == "{}", "the server an object"
    assert TrajectoryControl().score([done])[0]["trajectory_control"].value == 0


@pytest.mark.parametrize("call", [("pay", '{"whom": "alice"}'), ("steal", "{}")])
def test_a_call_that_fits_no_tool_is_the_policys_fault(server, policy, call):
    server.script = lambda number, body: says(calls=[call]) if number == 0 else says("Oh.")
    (done,) = rolled(policy())
    assert (done.error, done.calls[0].fault) == ("", "arguments")


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_model_writes_is_kept_and_sent_back(server, policy, tmp_path, name):
    text = HOSTILE[name]
    replies = [says(text, [("pay", json.dumps({"to": text})), (text, "{}")]), says(text)]
    server.script = lambda number, body: replies[number]
    (done,) = rolled(policy())
    assert done.error == ""
    assert done.calls[0].arguments == {"to": text}
    assert server.asked[1][2]["messages"][2]["content"] == text
    run = RunDirectory(tmp_path)
    run.append("x.jsonl", [done.to_dict()])
    assert type(done).from_dict(run.read("x.jsonl")[0]) == done


# ------------------------------------------------------------------------------------------------ the server's faults


OTHER = "endpoint: the reply is no chat completion: "


@pytest.mark.parametrize(
    ("trouble", "says_so"),
    [
        ((429, {}, {"error": "slow down"}), "endpoint: HTTP 429: "),
        ((500, {}, b"<html>oops"), "endpoint: HTTP 500: <html>oops"),
        ((503, {"Retry-After": "0"}, b""), "endpoint: HTTP 503"),
        (None, "endpoint: no reply within 0.2 s"),
        (b"garbage", "endpoint: the reply is no JSON: 'garbage'"),
        (json.dumps(GOOD[0]).encode()[:40], "endpoint: the reply is no JSON: "),
        (b"[" * 100_000, "endpoint: the reply is no JSON: "),
        (b"[1]", "endpoint: the reply is no JSON object"),
        (b"{}", OTHER),
        ({"choices": [{"message": {"tool_calls": [{"function": {"name": 3}}]}}]}, OTHER),
        ({"choices": [{"message": {"content": [{"text": 3}]}}]}, OTHER),
        ((200, {"Content-Length": "9999"}, b"{}"), "endpoint: "),  # hangs up in the middle
    ],
)  # fmt: skip
def test_a_servers_trouble_is_tried_again_and_then_an_error_of_that_record_only(server, policy, trouble, says_so):
    """Task 1 alone meets the trouble: once, and gets over it; always, and has an error."""
    trouble = trouble if isinstance(trouble, tuple) else (200, {}, trouble)
    met = []

    def script(number, body):
        if "(1)" in body["messages"][-1]["content"] and len(met) < most:
            met.append(number)
            return trouble
        return says("Done.")

    server.script = script
    whole = "Content-Length" not in trouble[1]
    repeatable = trouble[2] is not None and trouble[0] in (200, 500) and whole
    for most, tries in ((1, 1), (99, 2 if repeatable else 3)):
        met.clear()
        done = rolled(policy(seconds=0.2 if trouble[2] is None else 20), *map(task, range(3)))
        assert [bool(t.error) for t in done] == [False, most > 1, False]
        assert len(met) == tries
    assert done[1].stop == "error"
    if repeatable:  # the same twice, and others are answered: a third try is no use
        assert done[1].error.replace("every time: ", "").startswith(says_so)
        assert (done[1].cause, done[1].outcome) == ("endpoint_repeatable", Outcome(utility=0.0))
    else:
        assert done[1].error.startswith(says_so)
        assert done[1].cause in ("endpoint_status", "endpoint_timeout", "endpoint_broken")
        assert done[1].outcome is None


@pytest.mark.parametrize("status", [400, 401, 404, 307])
def test_what_a_retry_cannot_help_is_not_retried(server, policy, status):
    server.script = lambda number, body: (status, {"Location": "/elsewhere"}, b"no")
    (done,) = rolled(policy())
    assert done.error == f"endpoint: HTTP {status}: no"
    assert len(server.asked) == 1


def test_pauses_grow_and_the_servers_word_goes_first(server, policy, monkeypatch):
    pauses = []
    made = policy(retries=3, backoff=2)
    monkeypatch.setattr(made._stopped, "wait", lambda seconds: pauses.append(seconds))
    server.script = lambda number, body: (429, {"Retry-After": "9999"} if number == 1 else {}, b"")
    rolled(made)
    assert pauses == [2, 60, 8], "2 s, then what the server asked for within reason, then 2·2² s"


def test_a_reply_has_a_time_limit_and_a_size_limit_as_a_whole(server, policy, monkeypatch):
    """Each piece comes in time; the reply would not."""
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(completions, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert rolled(policy(seconds=20, retries=0))[0].error == "endpoint: no whole reply within 20 s"
    monkeypatch.setattr(completions, "_LONGEST_REPLY", 10)
    assert rolled(policy())[0].error == "endpoint: the reply is too long"


def test_a_stop_does_not_wait_for_retries(server, policy):
    """Ctrl-C in the middle of a chunk: the pause of 60 s that another episode is in ends, and nothing more is asked."""
    made = policy(backoff=60, concurrency=2)
    server.script = lambda number, body: (500, {}, b"")
    episode = made._episode

    def interrupted(request, seed):
        if request.task.id == "t0":
            return episode(request, seed)
        while not server.asked:
            time.sleep(0.01)
        raise KeyboardInterrupt

    made._episode = interrupted
    with pytest.raises(KeyboardInterrupt):
        rolled(made, task(1), task(0))
    assert len(server.asked) == 1


def test_an_episode_that_does_not_open_asks_nothing(server, policy):
    class Shut(Suite):
        def open(self, task):
            raise RuntimeError("shut")

    (done,) = rolled(policy(Shut()))
    assert done.error == "opening the episode failed: RuntimeError: shut"
    assert server.asked == []


# ------------------------------------------------------------------------------------------------ the key


def test_a_server_that_repeats_the_key_gets_it_into_no_record(server, policy, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    made = policy(key_env="MY_KEY")
    server.script = lambda number, body: (401, {}, f"bad key {KEY}".encode())
    assert rolled(made)[0].error == "endpoint: HTTP 401: bad key [key]"
    server.script = lambda number, body: says(f"Your key is {KEY}.")
    assert rolled(made)[0].answer == "Your key is [key]."


def test_a_key_that_no_header_may_hold_is_refused_without_being_told(policy, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX: y")
    with pytest.raises(RecipeError, match="OPENAI_API_KEY holds characters") as error:
        policy()
    assert KEY not in str(error.value)


# ------------------------------------------------------------------------------------------------ the recipe


@pytest.mark.parametrize(
    ("changes", "says_so"),
    [
        ({"url": "ftp://x"}, "stands before /chat/completions"),
        ({"url": "http://"}, "stands before /chat/completions"),
        ({"url": "http://x/v1?key=1"}, "stands before /chat/completions"),
        ({"url": "http://me:pw@x/v1"}, "put the key into the environment variable OPENAI_API_KEY"),
        ({"retrys": 1}, "did you mean 'retries'?"),
    ],
)
def test_a_wrong_endpoint_is_an_error_in_words(changes, says_so):
    data = {"model": {"path": "m", "endpoint": {"url": "http://x/v1", **changes}}, "suites": ["workbench"], "rounds": 0}
    with pytest.raises(RecipeError) as error:
        make_recipe(data)
    assert says_so in str(error.value)


def test_an_endpoint_cannot_be_trained():
    data = {"model": {"path": "m", "endpoint": {"url": "http://x/v1"}}, "suites": ["workbench"], "rounds": 1}
    with pytest.raises(RecipeError, match="cannot be trained"):
        make_recipe(data)
    with pytest.raises(RecipeError, match="sampling needs more"):
        make_recipe({"suites": ["workbench"], "rollout": {"temperature": 0}})


# ------------------------------------------------------------------------------------------------ the command

RESUME = """
import json, sys
from fate_trl import cli
sys.argv = ["fate-trl", "eval", "--resume", "run", "--json"]
cli.app(standalone_mode=False)
print(json.dumps(sorted({"torch", "trl", "peft"} & set(sys.modules))))
"""


def test_an_endpoint_is_evaluated_stopped_and_resumed_without_torch(server, tmp_path, monkeypatch, capsys):
    """The second chunk meets a server that has had enough; what the first one cost is not paid again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    refusal = says("I can't help with that.")
    server.script = lambda number, body: refusal if number < 4 else (401, {}, KEY.encode())
    sets = ["suites.0.args.test=8", "suites.0.args.train=1", "suites.0.args.validation=1", "rollout.chunk=4"]
    sets = [word for text in sets for word in ("--set", text)]
    command = ["fate-trl", "eval", server.url, "--model", "m", "--suite", "workbench", "--output", "run", *sets]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 2
    assert "HTTP 401: [key]" in said.err
    assert "go on with: fate-trl eval --resume run" in said.err
    asked = len(server.asked)
    server.script = lambda number, body: refusal
    done = subprocess.run([sys.executable, "-c", RESUME], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *_, finished, heavy = map(json.loads, done.stdout.splitlines())
    assert heavy == [], "torch was not loaded"
    assert len(server.asked) == asked + 4
    rows = {
        row["kind"]: row["metrics"] for row in finished["rows"] if (row["policy"], row["suite"]) == ("model", "all")
    }
    assert rows["harmful"]["vrr"]["value"] == 1
    assert rows["all"]["resolved"]["n"] == 8
    assert KEY not in said.out + said.err + done.stdout + done.stderr
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and KEY in f.read_text()], "the key is nowhere"
