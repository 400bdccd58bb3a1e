"""A user's own environments, as TRL takes them: described, opened, awaited, read by a model and graded.

The classes are in data/environments: `good` are what TRL takes, in the styles that people write; `bad` are not.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from dataclasses import replace
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import tiny
from case import case
from datasets import Dataset
from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
    get_json_schema,
)
from trl import GRPOConfig, GRPOTrainer

from fate_trl.choose.repairs import Reflect, Resample, Resume
from fate_trl.errors import SuiteError
from fate_trl.process import awaiting
from fate_trl.process.awaiting import awaited
from fate_trl.recipe.loading import make_recipe
from fate_trl.serve.endpoint import EndpointPolicy
from fate_trl.suites.environment import functions_of, load_environment, schema_of, tools_of
from fate_trl.suites.episodes import Limits, Recorder, environment_factories
from fate_trl.suites.jsonl import JsonlSuite
from fate_trl.suites.scripted import perform
from fate_trl.suites.values import as_json, rendered, same
from fate_trl.testing.served import ScriptedServer
from fate_trl.testing.served import completion as says
from fate_trl.train.rows import request_dataset
from fate_trl.train.trainer import PFPOConfig, PFPOTrainer
from fate_trl.types import Failure, RolloutRequest, Score, ScoreCard, Script

CLASSES = Path(__file__).parent / "data" / "environments"
GOOD = {
    "word_game": "WordGame",
    "browser": "Browser",
    "database": "Database",
    "diary": "Diary",
    "shell": "Shell",
    "shop": "Shop",
    "maze": "Maze",
    "web": "Web",
    "notes": "Notes",
    "bank": "Bank",
    "thermostat": "Thermostat",
    "orders": "Orders",
}
SECTION = "own environments"


def good(name):
    return f"{CLASSES}/good/{name}.py:{GOOD[name]}"


@pytest.fixture
def suite_of(tmp_path):
    """Makes a suite of these rows in the environment `file.py:Class`, or in one whose code is given."""

    def made(environment, *rows):
        if "\n" in environment:
            (tmp_path / "own.py").write_text(environment)
            environment = f"{tmp_path}/own.py:Own"
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows or [{"prompt": "Go."}])))
        return JsonlSuite(str(tmp_path / "rows.jsonl"), environment)

    return made


def request_of(suite, number=0, **changes):
    task = list(suite.tasks("all", 0))[number]
    return RolloutRequest(task, task.messages, **changes)


def play(suite, *calls, answer="Done."):
    """The trajectory of these (name, arguments) on the first row."""
    script = Script(tuple({"name": name, "arguments": arguments} for name, arguments in calls), answer)
    return perform(suite, request_of(suite), script)


def call(name, **arguments):
    return name, arguments


def wanted(name, **arguments):
    return {"name": name, "arguments": arguments}


# ------------------------------------------------------------------------------------------------ tools and schemas


@pytest.mark.parametrize("name", GOOD)
def test_tools_and_schemas_are_trls_own(name, tmp_path):
    """TRL's trainer is given the very class; what it lists and renders is what the suite does."""
    factory, environment = load_environment(good(name))
    tokenizer = tiny.make_tokenizer()
    trainer = GRPOTrainer(
        tiny.make_model(tokenizer),
        lambda completions, **row: [0.0] * len(completions),
        tiny.config(GRPOConfig, tmp_path, max_steps=1),
        Dataset.from_list([{"prompt": [{"role": "user", "content": "look"}]}] * 8),
        processing_class=tokenizer,
        environment_factory=factory,
    )
    theirs = {tool.__name__: get_json_schema(tool) for tool in trainer._env_tools[None]}
    assert {tool: schema_of(prototype, "") for tool, prototype in tools_of(environment).items()} == theirs


@case(SECTION, "a static method", "no tool of the suite's, though TRL lists it", "a tool, as in TRL")
def test_static_methods_are_tools_and_class_methods_and_properties_are_none():
    environment = load_environment(good("shop"))[1]
    assert sorted(functions_of(environment)) == ["buy", "convert"]
    assert str(inspect.signature(tools_of(environment)["convert"])) == "(amount: float, currency: str = 'USD') -> str"


REFUSED = {
    "Undocumented": (
        "a tool without a docstring",
        "Undocumented.look: it has no docstring; write a sentence, and a line per argument below 'Args:'.",
    ),
    "NumPyStyle": (
        "a docstring in NumPy style",
        "NumPyStyle.look: argument 'day' is not described in its docstring; transformers does not read NumPy style",
    ),
    "SphinxStyle": (
        "a docstring in Sphinx style",
        "SphinxStyle.look: argument 'day' is not described in its docstring; transformers does not read Sphinx style",
    ),
    "TypesInBrackets": (
        "`day (str): …` in a docstring",
        "argument 'day' is not described in its docstring; below 'Args:' write 'day: …' without the type in brackets.",
    ),
    "HalfDescribed": ("one argument of two described", "HalfDescribed.look: argument 'hour' is not described"),
    "Untyped": ("an argument without a type", "Untyped.look: argument 'day' has no type; annotate it."),
    "Dates": (
        "an argument of type datetime.date",
        "Dates.look: argument 'day' has the type datetime.date, which has no",
    ),
    "DataclassArgument": ("an argument that is a dataclass", "argument 'place' has the type"),
    "TypedDictArgument": ("an argument that is a TypedDict", "TypedDictArgument.look: argument 'place' has the type"),
    "OnlyForTypeCheckers": (
        "an annotation that is imported for type checkers only",
        "OnlyForTypeCheckers.pay: its annotations cannot be read (NameError: name 'Decimal' is not defined)",
    ),
    "BadChoices": ("(choices: …) that is no JSON", "BadChoices.drink: JSONDecodeError"),
}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param(
            name,
            says,
            marks=case(SECTION, given, "a traceback once the model is loaded", f"one line: {says}"),
        )
        for name, (given, says) in REFUSED.items()
    ],
)
def test_what_trl_refuses_is_refused_when_the_suite_is_made(suite_of, name, says):
    reference = f"{CLASSES}/bad/described.py:{name}"
    with pytest.raises(SuiteError) as refusal:
        suite_of(reference)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)
    instance = load_environment(reference)[0]()
    (tool,) = (getattr(instance, tool) for tool in functions_of(type(instance)))
    with pytest.raises((TypeHintParsingException, DocstringParsingException, NameError, json.JSONDecodeError)):
        get_json_schema(tool)


def test_a_function_that_makes_instances_will_do_too(suite_of):
    code = '''
class Counter:
    def __init__(self, start):
        self.start = start

    def reset(self, **kwargs):
        self.count = self.start

    def add(self) -> str:
        """Count."""
        self.count += 1
        return str(self.count)


def Own():
    return Counter(5)
'''
    suite = suite_of(code, {"prompt": "x", "expect": {"state": {"count": 6}}})
    assert play(suite, call("add")).outcome.utility == 1.0
    with pytest.raises(SuiteError, match=r"own.py:Own, called without arguments, raises TypeError"):
        suite_of(code.replace("def Own():", "def Own(start):"))


# ------------------------------------------------------------------------------------------------ awaited


@case(SECTION, "`async def` tools", "the model reads <coroutine object …>; nothing runs", "awaited: result and state")
def test_async_tools_are_awaited(suite_of):
    suite = suite_of(good("web"), {"prompt": "x", "expect": {"state": {"requests": ["faq"]}}})
    done = play(suite, call("put", path="a", text="b"), call("fetch", path="faq"))
    assert [c.result for c in done.calls] == ["stored", "Refunds take 3 days."]
    assert done.outcome.utility == 1.0


@case(SECTION, "an `async def` tool that raises", "no fault is recorded", "told to the model, a fault of the call")
def test_what_an_async_tool_raises_is_told(suite_of):
    done = play(suite_of(good("web")), call("fetch", path="nowhere"))
    assert [(c.fault, c.result) for c in done.calls] == [("raised", "404: nowhere")]
    assert done.error == ""


@case(SECTION, "`async def reset`", "never runs", "awaited, and its observation is read")
def test_an_async_reset_is_awaited(suite_of):
    recorder = Recorder(suite := suite_of(good("web"), {"prompt": "Look."}), request_of(suite))
    assert recorder.prompt == ({"role": "user", "content": "Look. There are 1 documents."},)


@case(SECTION, "a plain tool that returns a coroutine", "the model reads <coroutine object …>", "awaited")
def test_a_coroutine_from_a_plain_tool_is_awaited(suite_of):
    assert play(suite_of(f"{CLASSES}/bad/behaved.py:Forgotten"), call("fetch")).calls[0].result == "it"


@case(SECTION, "an `async def` tool that never ends", "the model reads <coroutine object …>", "the episode times out")
def test_an_async_tool_that_hangs_is_bounded(suite_of):
    suite = suite_of(f"{CLASSES}/bad/behaved.py:HangingAsync")
    recorder = Recorder(suite, request_of(suite), Limits(tool_seconds=0.2))
    with pytest.raises(Exception, match="wait timed out"):
        recorder.call("wait", {})
    assert recorder.cause == "tool_timeout"


def test_a_coroutine_that_blocks_the_loop_does_not_block_the_next(monkeypatch):
    monkeypatch.setattr(awaiting, "STUCK", 0.05)
    started, free = threading.Event(), threading.Event()

    async def blocking():
        started.set()
        free.wait(20)

    async def quick():
        return asyncio.get_running_loop()

    first = awaited(quick())
    threading.Thread(target=lambda: awaited(blocking()), daemon=True).start()
    assert started.wait(20)
    assert awaited(quick()) is not first
    free.set()


def test_leaving_ends_the_call_not_the_loop():
    async def leaves():
        raise SystemExit(3)

    async def stays():
        return 1

    with pytest.raises(RuntimeError, match="SystemExit 3"):
        awaited(leaves())
    assert awaited(stays()) == 1
    assert awaited(2) == 2


# ------------------------------------------------------------------------------------------------ the observation


MAZE = "\nYou stand at (0, 0); the exit is at (3, 3)."


@pytest.mark.parametrize(
    ("environment", "prompt", "content"),
    [
        pytest.param(
            good("maze"),
            "Leave the maze.",
            "Leave the maze." + MAZE,
            marks=case(SECTION, "reset returns a text", "refused", "appended to the prompt, as in TRL"),
        ),
        pytest.param(
            good("browser"),
            "Read the news. ",
            "Read the news. You are on the page home.",
            marks=case(SECTION, "reset returns text blocks", "refused", "their text is appended to the prompt"),
        ),
        pytest.param(
            good("maze"),
            [{"role": "system", "content": "Be quick."}, {"role": "user", "content": "Leave."}],
            "Leave." + MAZE,
            marks=case(SECTION, "an observation behind several messages", "refused", "appended to the last one"),
        ),
        pytest.param(
            good("maze"),
            [{"role": "user", "content": [{"type": "text", "text": "Leave."}]}],
            [{"type": "text", "text": "Leave."}, {"type": "text", "text": MAZE}],
            marks=case(SECTION, "an observation behind content blocks", "refused", "one more block, as in TRL"),
        ),
        pytest.param(good("diary"), "Enter it.", "Enter it."),
    ],
)
def test_what_reset_returns_is_appended_to_the_prompt(suite_of, environment, prompt, content):
    suite = suite_of(environment, {"prompt": prompt})
    done = play(suite)
    assert done.error == ""
    assert done.prompt[:-1] == done.task.messages[:-1]
    assert done.prompt[-1] == {"role": "user", "content": content}
    assert type(done).from_dict(json.loads(json.dumps(done.to_dict()))) == done


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        pytest.param(
            "[{'role': 'user', 'content': 'Begin.'}]",
            "Own.reset returned list; TRL appends a text",
            marks=case(SECTION, "reset returns messages", "refused as any observation", "refused: what TRL appends"),
        ),
        ("{'text': 'Begin.'}", "Own.reset returned dict"),
        ("3", "Own.reset returned int"),
        pytest.param(
            "[{'type': 'image', 'image': 'x'}]",
            "Own.reset returned a content block of type 'image'; only text is handed on",
            marks=case(SECTION, "reset returns an image", "refused as any observation", "refused by its block's type"),
        ),
    ],
)
def test_what_trl_could_not_append_is_an_error_of_the_episode(suite_of, returned, says):
    code = f'class Own:\n    def reset(self, **k):\n        return {returned}\n    def a(self):\n        """A."""\n'
    done = play(suite_of(code))
    assert done.cause == "open_failed"
    assert says in done.error


def test_reset_may_ask_for_the_prompt_as_in_trl(suite_of):
    code = """
class Own:
    def reset(self, prompt, **kwargs):
        return f" ({len(prompt[-1]['content'])} characters)"

    def a(self):
        '''A.'''
"""
    assert play(suite_of(code, {"prompt": "Go."})).prompt[-1]["content"] == "Go. (3 characters)"


def failure_of(suite):
    """A failed trajectory of two moves in a maze."""
    trajectory = replace(play(suite, call("move", direction="east"), call("move", direction="east")), stage="collect")
    return Failure(trajectory, ScoreCard({"utility": Score(0.0, step=2)}))


@pytest.mark.parametrize("strategy", [Reflect(), Resample(), Resume()], ids=lambda made: type(made).__name__)
def test_a_repair_prompt_holds_the_observation_once(suite_of, strategy):
    suite = suite_of(good("maze"), {"prompt": "Leave the maze."})
    failure = failure_of(suite)
    (request,) = strategy.requests([failure], 1, np.random.default_rng(0))
    recorder = Recorder(suite, request)
    assert recorder.error == ""
    text = "\n".join(str(message["content"]) for message in recorder.prompt)
    assert text.count(MAZE.strip()) == 1
    if isinstance(strategy, Resume):
        assert recorder.prompt == request.messages, "it goes on from a prompt that held it"
        assert [c.name for c in recorder.calls] == ["move"]
    else:
        assert recorder.prompt[-1]["content"].endswith(MAZE)


@case(SECTION, "a trajectory resumed in another maze", "went on in another world", "an error of that candidate")
def test_an_environment_that_opens_otherwise_is_not_resumed(suite_of, tmp_path):
    suite = suite_of(good("maze"), {"prompt": "Leave.", "environment": {"size": 4}})
    (request,) = Resume().requests([failure_of(suite)], 1, np.random.default_rng(0))
    other = replace(request.task, data={"environment": {"size": 5}})
    assert Recorder(suite, replace(request, task=other)).cause == "replay_diverged"


def test_a_served_model_is_given_the_observation(suite_of, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    suite = suite_of(good("maze"), {"prompt": "Leave."})
    with ScriptedServer(lambda number, body: says("No way.")) as server:
        endpoint = {"url": server.url, "retries": 0}
        model = {"path": "some/model", "endpoint": endpoint}
        recipe = make_recipe({"suites": ["workbench"], "model": model, "rounds": 0})
        (done,) = EndpointPolicy(recipe, {"jsonl": suite}).rollout([request_of(suite)], 0)
    (_, _, body) = server.asked[0]
    assert body["messages"] == [{"role": "user", "content": "Leave." + MAZE}]
    assert done.prompt == ({"role": "user", "content": "Leave." + MAZE},)


OWN = '''
class Own:
    def reset(self, prompt=None, **kwargs):
        self.paid = []
        return " alice is owed 2"

    async def pay(self, to: str) -> str:
        """Pay somebody.

        Args:
            to: Who is paid.
        """
        self.paid.append(to)
        return "done"

    def owed(self):
        """List who is owed."""
        return ["alice", "bob"]
'''


def test_rollouts_see_what_grpotrainer_sees(suite_of, tmp_path):
    """The same class under TRL's own trainer and, by its path, in the suite: the same prompt, to the token."""
    suite = suite_of(OWN, {"prompt": "pay", "expect": {"state": {"paid": ["alice"]}}})
    tokenizer, tasks = tiny.make_tokenizer(), list(suite.tasks("all", 0))
    requests = [RolloutRequest(task, task.messages) for task in tasks]
    ours = PFPOTrainer(
        tiny.make_model(tokenizer),
        ["utility"],
        tiny.config(PFPOConfig, tmp_path, max_completion_length=160),
        request_dataset(requests),
        processing_class=tokenizer,
        environment_factory=environment_factories({"jsonl": suite}, tasks),
    )
    tiny.say(ours, [[tiny.call("owed"), tiny.call("pay", to="alice"), "done<|end|>"]])
    (done,) = ours.rollout(requests)
    assert done.prompt == ({"role": "user", "content": "pay alice is owed 2"},)
    assert [c.result for c in done.calls] == ['["alice", "bob"]', "done"]
    assert done.outcome.utility == 1.0

    theirs = GRPOTrainer(
        tiny.make_model(tokenizer),
        lambda completions, **row: [0.0] * len(completions),
        tiny.config(GRPOConfig, tmp_path, max_completion_length=160),
        Dataset.from_list([{"prompt": [{"role": "user", "content": "pay"}]}] * 8),
        processing_class=tokenizer,
        environment_factory=load_environment(f"{tmp_path}/own.py:Own")[0],
    )
    tiny.say(theirs, [["done<|end|>"]] * 8)
    rows = [{"prompt": [{"role": "user", "content": "pay"}]}] * 8
    ids = theirs._generate_and_score_completions(rows)["prompt_ids"][0].tolist()
    assert ids == list(done.prompt_ids)


# ------------------------------------------------------------------------------------------------ read by a model


class Colour(Enum):
    RED = "red"


QWEN3 = (  # as Qwen3's own: a tool's content is rendered only if it is a text
    "{% for message in messages %}{% if message.content is string %}{% set content = message.content %}"
    "{% else %}{% set content = '' %}{% endif %}{% if message.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ content }}\n</tool_response><|im_end|>{% else %}{{ content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(
            ["ann", "bob"],
            '["ann", "bob"]',
            marks=case(SECTION, "a tool that returns a list", "['ann', 'bob'] here, nothing in TRL", "read as JSON"),
        ),
        pytest.param(
            {"name": "ann", "in": True, "age": None},
            '{"name": "ann", "in": true, "age": null}',
            marks=case(SECTION, "a tool that returns a dict", "read as Python's repr", "read as JSON"),
        ),
        pytest.param(
            {"b", "a", "c"},
            '["a", "b", "c"]',
            marks=case(SECTION, "a tool that returns a set", "another text in each process", "read as JSON, in order"),
        ),
        ([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}], "one two"),
        ([], "[]"),
        ((1, 2.5), "[1, 2.5]"),
        ({(1, 2): Colour.RED, 3: date(2031, 5, 17)}, '{"[1,2]": "red", "3": "2031-05-17"}'),
        ("as it is", "as it is"),
        (None, "None"),
        (True, "True"),
        (3, "3"),
        (2.5, "2.5"),
        (Decimal("0.30"), "0.30"),
        (Colour.RED, "red"),
        (np.array([1, 2]), "[1, 2]"),
        ("ä", "ä"),
        (["ä"], '["ä"]'),
    ],
)
def test_a_model_reads_every_result(value, text):
    assert rendered(value) == text
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = QWEN3
    messages = [{"role": "user", "content": "Go."}, {"role": "tool", "name": "x", "content": rendered(value)}]
    assert f"<tool_response>\n{text}\n</tool_response>" in tokenizer.apply_chat_template(messages, tokenize=False)
    if isinstance(value, list) and value:
        messages[-1]["content"] = value
        read = tokenizer.apply_chat_template(messages, tokenize=False)
        assert "<tool_response>\n\n</tool_response>" in read, "what TRL hands on is read as nothing"


def test_what_is_no_value_is_read_without_its_address():
    assert rendered(object()) == "<object object>"
    assert as_json([object()]) == ["<object object>"]


@case(
    SECTION, "a tool that returns an image", "read as the list's repr", "an error of the episode that names the block"
)
def test_an_image_is_an_error_of_the_episode(suite_of):
    done = play(suite_of(f"{CLASSES}/bad/behaved.py:Images"), call("show"))
    assert done.cause == "tool_failed"
    assert "a content block of type 'image'" in done.error


# ------------------------------------------------------------------------------------------------ conditions

LEDGER = '''
from collections import namedtuple
from enum import Enum

Pair = namedtuple("Pair", "x y")


class Size(Enum):
    SMALL = "S"


class Own:
    def reset(self, **kwargs):
        self.log, self.at, self.pair, self.sum = [], (1, 2), Pair(1, 2), 0.1 + 0.2
        self.seats, self.names, self.size, self.flag = {7: "ann", 8: "bob"}, {"bob", "ann"}, Size.SMALL, True
        self.deep = {"a": [(1, {2: {"x"}})]}

    def order(self, item: str, count: int = 1, size: Size = Size.SMALL, options: dict | None = None) -> str:
        """Order.

        Args:
            item: What.
            count: How many.
            size: How large.
            options: More.
        """
        self.log.append(item)
        return "ordered"

    @property
    def last(self):
        return self.log[-1]

    def get_reward(self):
        return len(self.log) / 2
'''


@pytest.mark.parametrize(
    ("expect", "calls", "holds"),
    [
        pytest.param(
            {"calls": [wanted("order", item="tea", count=1)]},
            [call("order", item="tea")],
            True,
            marks=case(SECTION, "an argument named at its default, left out by the model", "fails", "holds"),
        ),
        pytest.param(
            {"calls": [wanted("order", item="tea", size="S")]},
            [call("order", item="tea")],
            True,
            marks=case(SECTION, "a default that is an enum's member", "fails", "holds, by its value"),
        ),
        pytest.param(
            {"calls": [wanted("order", item="tea", count=2)]}, [call("order", item="tea")], False, id="another default"
        ),
        pytest.param(
            {"calls": [wanted("order", item="tea")] * 2},
            [call("order", item="tea")],
            False,
            marks=case(SECTION, "one call for two equal wanted ones", "satisfies both", "satisfies one"),
        ),
        pytest.param(
            {"calls": [wanted("order"), wanted("order", item="tea")]},
            [call("order", item="tea"), call("order", item="rice")],
            True,
            marks=case(SECTION, "a vague and an exact wanted call", "both by one call", "dealt out so that both hold"),
        ),
        pytest.param(
            {"calls": [wanted("order", options={"gift": {"card": "Hi"}})]},
            [call("order", item="tea", options={"gift": {"card": "Hi", "bow": True}, "fast": True})],
            True,
            marks=case(SECTION, "a wanted dict within a larger one", "compared whole, fails", "holds, at any depth"),
        ),
        pytest.param(
            {"calls": [wanted("order", options={"gift": {"card": "Hi"}})]},
            [call("order", item="tea", options={"gift": {"card": "Ho"}})],
            False,
            id="another value within",
        ),
        pytest.param(
            {"calls": [wanted("order", options={"list": [{"a": 1}]})]},
            [call("order", item="tea", options={"list": [{"a": 1, "b": 2}]})],
            True,
            id="partial within a list",
        ),
        pytest.param(
            {"state": {"at": [1, 2]}},
            [],
            True,
            marks=case(SECTION, "a tuple in the state", "never equals JSON", "equals the list"),
        ),
        pytest.param({"state": {"pair": [1, 2]}}, [], True, id="a named tuple"),
        pytest.param({"state": {"at": [1, 2, 3]}}, [], False, id="a longer list"),
        pytest.param(
            {"state": {"seats": {"7": "ann", "8": "bob"}}},
            [],
            True,
            marks=case(SECTION, "integer keys in the state", "never equal JSON", "equal the texts"),
        ),
        pytest.param({"state": {"seats": {"7": "ann"}}}, [], False, id="a state is compared whole"),
        pytest.param(
            {"state": {"names": ["bob", "ann"]}},
            [],
            True,
            marks=case(SECTION, "a set in the state", "never equals JSON", "equals the list, in any order"),
        ),
        pytest.param(
            {"state": {"sum": 0.3}},
            [],
            True,
            marks=case(SECTION, "0.1 + 0.2 in the state", "not 0.3", "0.3, to six digits"),
        ),
        pytest.param({"state": {"sum": 0.3001}}, [], False, id="not so near"),
        pytest.param(
            {"state": {"size": "S"}}, [], True, marks=case(SECTION, "an enum in the state", "never equal", "its value")
        ),
        pytest.param({"state": {"flag": 1}}, [], False, id="true is no number"),
        pytest.param({"state": {"deep": {"a": [[1, {"2": ["x"]}]]}}}, [], True, id="all of it, nested"),
        pytest.param(
            {"state": {"last": "tea"}},
            [],
            False,
            marks=case(SECTION, "a property that raises", "an infrastructure error", "a state that is not reached"),
        ),
        pytest.param({"state": {"last": "tea"}}, [call("order", item="tea")], True, id="a property"),
        pytest.param({"reward": 1}, [call("order", item="a"), call("order", item="b")], True, id="its own reward"),
        pytest.param(
            {"reward": 0.6},
            [call("order", item="a")],
            False,
            marks=case(SECTION, "an environment with get_reward", "could not be graded by it", "`expect.reward` does"),
        ),
    ],
)
def test_conditions(suite_of, expect, calls, holds):
    done = play(suite_of(LEDGER, {"prompt": "x", "expect": expect}), *calls)
    assert done.error == ""
    assert (done.outcome.utility == 1.0) is holds
    assert bool(done.outcome.info.get("unmet")) is not holds


def test_an_async_reward_counts(suite_of):
    suite = suite_of(good("web"), {"prompt": "x", "expect": {"reward": 0.5}})
    assert play(suite).outcome.utility == 0.0
    assert play(suite, call("fetch", path="faq")).outcome.utility == 1.0


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"expect": {"calls": [wanted("buy", items="tea")]}}, "buy has no argument 'items', so such a call never runs"),
        ({"forbid": {"calls": [wanted("buy", itm="tea")]}}, "it has item, count"),
        ({"expect": {"reward": 1}}, "expect.reward: Shop has no method get_reward"),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(suite_of, row, says):
    with pytest.raises(SuiteError, match=says):
        suite_of(good("shop"), {"prompt": "x", **row})


@pytest.mark.parametrize("value", [1, "a", None, True, 2.5, [1, {"a": None}], {"k": [1.5, "x"]}])
def test_every_value_is_itself(value):
    assert same(value, value)
    assert same(value, json.loads(json.dumps(value)))
    assert not same(value, [value])


def test_a_text_is_no_number_and_null_is_not_nothing():
    assert not same(1, "1")
    assert not same(None, False)
    assert not same({"a": None}, {})
    assert not same({"a": None}, {"b": 1}, partial=True)
    assert same(3, 3.0)


# ------------------------------------------------------------------------------------------------ rows from elsewhere


def test_nulls_that_datasets_fills_in_reach_no_reset(suite_of):
    """`Dataset.from_list` gives every row the keys of all others, with null for them; so does the file it writes."""

    code = """
class Own:
    def reset(self, **kwargs):
        self.given = kwargs

    def pay(self, to: str, amount: int = 1) -> str:
        '''Pay.

        Args:
            to: Whom.
            amount: How much.
        '''
        return "paid"
"""
    rows = [
        {
            "id": "a",
            "prompt": "x",
            "environment": {"accounts": {"ann": 3}, "note": "hi"},
            "expect": {"calls": [wanted("pay", to="ann")], "state": {"given": {"accounts": {"ann": 3}, "note": "hi"}}},
            "oracle": {"calls": [wanted("pay", to="ann", amount=3)], "answer": "Done."},
        },
        {
            "id": "b",
            "prompt": "y",
            "environment": {"accounts": {"bob": 4}},
            "expect": {"state": {"given": {"accounts": {"bob": 4}}}},
            "tags": ["short"],
        },
    ]
    filled = [dict(row) for row in Dataset.from_list(rows)]
    if filled[1]["environment"].get("note", "") is None:  # newer ones keep each row's own keys where they can
        assert filled[1]["environment"]["accounts"] == {"ann": None, "bob": 4}
    suite = suite_of(code, *filled)
    tasks = list(suite.tasks("all", 0))
    assert [task.data["environment"] for task in tasks] == [row["environment"] for row in rows]
    assert tasks[1].data["expect"] == rows[1]["expect"]
    assert suite.script(tasks[1], "oracle") is None


FILLED = [
    {"id": "a", "prompt": "x", "environment": {"files": {"p": "1", "q": None}, "note": "hi"}, "tags": None},
    {"id": "b", "prompt": "y", "environment": {"files": {"p": None, "q": "2"}, "note": None}, "tags": ["t"]},
]


@case(
    SECTION, "rows as `datasets` writes them", "reset gets other rows' keys, as None", "reset gets the row's own keys"
)
def test_a_file_that_datasets_wrote_is_read_without_its_nulls(suite_of):
    tasks = suite_of(good("shell"), *FILLED).tasks("all", 0)
    assert [t.data["environment"] for t in tasks] == [{"files": {"p": "1"}, "note": "hi"}, {"files": {"q": "2"}}]


@case(SECTION, "a null in a row of one's own", "reset gets None", "reset gets None, as the row says")
def test_a_null_of_the_users_own_stays(suite_of):
    mine = [{"prompt": "x", "environment": {"files": None}}, {"prompt": "y", "environment": {"files": {"a": None}}}]
    tasks = suite_of(good("shell"), *mine).tasks("all", 0)
    assert [t.data["environment"] for t in tasks] == [{"files": None}, {"files": {"a": None}}]


# ------------------------------------------------------------------------------------------------ all of it at once


SOLVED = {
    "word_game": ({"word": "mango"}, [call("guess", word="mango")], {"reward": 1}),
    "browser": ({}, [call("open", url="news"), call("back")], {"calls": [wanted("open"), wanted("back")]}),
    "database": ({}, [call("query", sql="select price from items")], {"state": {"queries": 1}}),
    "diary": (
        {"events": [["2031-05-16", "Rest", 1.0, []]]},
        [call("add", day="2031-05-17", title="Talk", guests=["bob", "ann"])],
        {"state": {"events": [["2031-05-16", "Rest", 1.0, []], ["2031-05-17", "Talk", 1.0, ["ann", "bob"]]]}},
    ),
    "shell": ({"files": {"/c": ""}}, [call("write", path="/a", text="b")], {"state": {"files": {"/a": "b", "/c": ""}}}),
    "shop": ({}, [call("buy", item="tea"), call("convert", amount=2)], {"state": {"sold": {"tea": 1}, "value": 3}}),
    "maze": (
        {"seed": 1, "size": 2},
        [call("move", direction="east"), call("move", direction="south"), call("move", direction="east")],
        {"reward": 1},
    ),
    "web": ({"documents": {"a": "b"}}, [call("fetch", path="a")], {"state": {"requests": ["a"]}}),
    "notes": (
        {},
        [call("add", text="Buy tea", tags=["b", "a"])],
        {"state": {"state": {"next": 2, "notes": {"1": {"text": "Buy tea", "tags": ["a", "b"]}}}}},
    ),
    "bank": (
        {"ann": 5},
        [call("show"), call("pay", account="ann", amount=4)],
        {"state": {"balance": {"own": 96, "ann": 9}}},
    ),
    "thermostat": ({}, [call("set", mode="heat", target=20)], {"state": {"mode": "heat", "target": 20.0}}),
    "orders": (
        {},
        [call("place", items=[{"sku": "t", "count": 2}], address={"town": "X"})],
        {"calls": [wanted("place", items=[{"sku": "t"}], window=[8, 18])]},
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_form_runs_unchanged_from_row_to_grade(suite_of, name):
    given, calls, expect = SOLVED[name]
    suite = suite_of(good(name), {"prompt": "Do it.", "environment": given, "expect": expect})
    done = play(suite, *calls)
    assert done.error == ""
    assert [c.fault for c in done.calls] == [""] * len(calls)
    assert done.outcome.utility == 1.0, done.outcome.info
    assert play(suite).outcome.utility == 0.0
