"""Episodes: what is recorded, what ends them, how a state is restored, and the classes that TRL is given."""

import inspect
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from fate_trl.errors import SuiteError, ToolError
from fate_trl.suites.episodes import EpisodeEnvironment, Limits, Recorder, environment_factories, make_tool, toolset
from fate_trl.suites.workbench.suite import WorkbenchSuite
from fate_trl.types import Outcome, RolloutRequest, Task, ToolCall

QUICK = Limits(tool_seconds=0.05)
"""Given only where something waits for ever: on a busy machine any call may take this long."""
SHORT = Limits(tool_characters=40)


def add(amount: int, times: int = 1) -> str:
    """Add to the sum.

    Args:
        amount: How much.
        times: How often.
    """
    return "never called"


TOOLS = {
    "add": add,
    "echo": make_tool("echo", "Say it again.", [("text", str, "What.")]),
    **{name: make_tool(name, f"To {name}.", []) for name in ("total", "refuse", "crash", "wait", "leave", "nothing")},
}


@dataclass
class Sum:
    """An episode that adds up, with tools that fail in every way there is."""

    wait: threading.Event = field(default_factory=threading.Event)
    total: int = 0
    given: list[Any] = field(default_factory=list)

    def execute(self, name, arguments):
        self.given.append(arguments)
        match name:
            case "add":
                self.total += arguments["amount"] * arguments.get("times", 1)
                return "added"
            case "echo":
                return arguments["text"]
            case "total":
                return str(self.total)
            case "refuse":
                raise ToolError("no" * 100)
            case "crash":
                raise ZeroDivisionError("boom")
            case "leave":
                sys.exit(3)
            case "wait":
                self.wait.wait(10)
                self.total = 999
                return "too late"
            case "nothing":
                return None

    def outcome(self, calls, messages):
        return Outcome(utility=1.0, info={"total": self.total, "calls": len(calls), "messages": len(messages)})


class SumSuite:
    def __init__(self, episode=None):
        self.episode = episode or Sum()

    def tools(self):
        return TOOLS

    def open(self, task):
        return self.episode


class Broken(SumSuite):
    def open(self, task):
        raise OSError("no docker")


def request(tools=tuple(TOOLS), replay=()):
    task = Task("t", "sums", "benign", ({"role": "user", "content": "add"},), tools=tools)
    return RolloutRequest(task, task.messages, replay=replay)


@pytest.fixture
def episode():
    made = Sum()
    yield made
    made.wait.set()  # lets the thread of a timed-out tool go


# ------------------------------------------------------------------------------------------------ recording


def test_executed_calls_are_recorded_in_order():
    recorder = Recorder(SumSuite(), request())
    assert recorder.call("add", {"amount": 2, "times": 3}) == "added"
    assert recorder.call("total", {}) == "6"
    assert recorder.calls == [ToolCall("add", {"amount": 2, "times": 3}, "added"), ToolCall("total", {}, "6")]
    said = ({"role": "assistant", "content": "6"},)
    assert recorder.outcome(said) == Outcome(utility=1.0, info={"total": 6, "calls": 2, "messages": 1})
    assert recorder.error == ""


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("add", {}, "amount"),
        ("add", {"amount": 1, "colour": "red"}, "colour"),
        ("total", {"self": 1}, "self"),
        ("subtract", {"amount": 1}, "no tool named subtract; there are add"),
    ],
)
def test_arguments_that_do_not_fit_are_the_policys_fault(name, arguments, says):
    recorder = Recorder(SumSuite(), request())
    with pytest.raises(ToolError, match=says) as refusal:
        recorder.call(name, arguments)
    assert recorder.calls == [ToolCall(name, arguments, str(refusal.value), "arguments")]
    assert recorder.call("total", {}) == "0", "the episode goes on, and nothing ran"
    assert recorder.error == ""


def test_tools_may_take_any_keyword():
    """As a hand-written class may: `def find(self, **filters)`."""

    def find(**filters: str) -> str:
        """Find."""

    class Finding(SumSuite):
        def tools(self):
            return {"find": find}

    episode = Sum()
    episode.execute = lambda name, arguments: repr(arguments)
    recorder = Recorder(Finding(episode), request(("find",)))
    assert recorder.call("find", {"colour": "red"}) == "{'colour': 'red'}"
    assert recorder.calls[0].arguments == {"colour": "red"}


def test_a_tool_that_the_task_does_not_offer_is_not_there():
    recorder = Recorder(SumSuite(), request(tools=("total",)))
    with pytest.raises(ToolError, match="no tool named add; there are total"):
        recorder.call("add", {"amount": 1})
    assert recorder.call("total", {}) == "0"


def test_a_tool_may_refuse():
    recorder = Recorder(SumSuite(), request())
    with pytest.raises(ToolError, match="nono"):
        recorder.call("refuse", {})
    assert recorder.calls == [ToolCall("refuse", {}, "no" * 100, "raised")]
    assert recorder.call("total", {}) == "0"
    assert recorder.error == ""


def test_what_was_recorded_is_not_changed_by_the_tool(episode):
    recorder = Recorder(SumSuite(episode), request())
    given = {"text": ["a"]}
    with pytest.raises(ToolError):  # a list is no text: see below
        recorder.call("echo", given)
    episode.given[0]["text"].append("b")
    assert given == {"text": ["a"]}


@pytest.mark.parametrize(("tool", "reason"), [("crash", "boom"), ("leave", "SystemExit 3"), ("nothing", "NoneType")])
def test_an_infrastructure_error_closes_the_episode(tool, reason):
    recorder = Recorder(SumSuite(), request())
    recorder.call("add", {"amount": 1})
    with pytest.raises(ToolError, match=tool) as refusal:
        recorder.call(tool, {})
    assert reason not in str(refusal.value), "the policy does not read our stack"
    assert reason in recorder.error
    with pytest.raises(ToolError, match="closed"):
        recorder.call("total", {})
    assert recorder.outcome(()) is None
    assert [call.name for call in recorder.calls] == ["add"]


def test_a_time_out_closes_the_episode_and_its_later_state_is_never_read(episode):
    recorder = Recorder(SumSuite(episode), request())
    recorder.limits = QUICK
    with pytest.raises(ToolError, match="timed out"):
        recorder.call("wait", {})
    assert "wait took over 0.05 s" in recorder.error
    episode.wait.set()
    with pytest.raises(ToolError, match="closed"):
        recorder.call("total", {})
    assert recorder.outcome(()) is None
    assert recorder.calls == []


def test_grading_is_bounded_too(episode):
    episode.outcome = lambda calls, messages: episode.wait.wait(10)
    recorder = Recorder(SumSuite(episode), request())
    recorder.limits = QUICK
    assert recorder.outcome(()) is None
    assert "grading took over" in recorder.error


def test_a_grader_that_fails_is_an_infrastructure_error(episode):
    episode.outcome = lambda calls, messages: 1 / 0
    recorder = Recorder(SumSuite(episode), request())
    assert recorder.outcome(()) is None
    assert recorder.error == "grading failed: ZeroDivisionError: division by zero"


def test_long_output_is_cut_and_said_to_be_cut():
    recorder = Recorder(SumSuite(), request(), SHORT)
    assert recorder.call("echo", {"text": "x" * 40}) == "x" * 40
    assert recorder.call("echo", {"text": "x" * 47}) == "x" * 40 + " [cut: 7 more characters]"
    with pytest.raises(ToolError) as refusal:
        recorder.call("refuse", {})
    assert str(refusal.value) == "no" * 20 + " [cut: 160 more characters]"
    assert recorder.calls[-1].result == str(refusal.value)


def test_what_no_tokenizer_takes_is_replaced():
    recorder = Recorder(SumSuite(), request())
    assert recorder.call("echo", {"text": "a\ud800\U0001f600\x00"}) == "a?\U0001f600\x00"


def test_an_episode_that_does_not_open_is_data(episode):
    recorder = Recorder(Broken(), request(replay=(ToolCall("total", {}, "0"),)))
    assert recorder.error == "opening the episode failed: OSError: no docker"
    assert recorder.calls == []
    assert recorder.outcome(()) is None
    with pytest.raises(ToolError, match="closed"):
        recorder.call("total", {})


def test_opening_is_bounded(episode):
    class Slow(SumSuite):
        def open(self, task):
            episode.wait.wait(10)

    assert "opening the episode took over 0.05 s" in Recorder(Slow(), request(), QUICK).error


def test_tools_that_cannot_be_listed_are_data_too():
    class NoTools(SumSuite):
        def tools(self):
            raise RuntimeError("server down")

    assert "server down" in Recorder(NoTools(), request()).error


# ------------------------------------------------------------------------------------------------ replay


def test_replay_restores_the_state():
    first = Recorder(SumSuite(), request(), SHORT)
    first.call("add", {"amount": 5})
    for name, arguments in (("refuse", {}), ("add", {"wrong": 1})):
        with pytest.raises(ToolError):
            first.call(name, arguments)
    again = Recorder(SumSuite(), request(replay=tuple(first.calls)), SHORT)
    assert again.error == ""
    assert again.calls == first.calls, "faults are replayed as well"
    assert again.call("total", {}) == "5"


@pytest.mark.parametrize("call", [ToolCall("total", {}, "7"), ToolCall("refuse", {}, "yes", "raised")])
def test_a_replay_that_diverges_is_refused(call):
    recorder = Recorder(SumSuite(), request(replay=(ToolCall("add", {"amount": 1}, "added"), call)))
    assert recorder.error == f"replay of call 1 ({call.name}) gave another result than the recorded one"
    assert recorder.outcome(()) is None
    with pytest.raises(ToolError, match="closed"):
        recorder.call("total", {})


def test_a_crash_in_a_replay_keeps_its_own_reason():
    recorder = Recorder(SumSuite(), request(replay=(ToolCall("crash", {}, "?"), ToolCall("total", {}, "0"))))
    assert "boom" in recorder.error
    assert recorder.calls == []


# ------------------------------------------------------------------------------------------------ TRL's classes


def test_one_class_per_suite_and_set_of_tools():
    tasks = [request(tools).task for tools in (("add", "total"), ("total", "add"), ("echo",))]
    classes = environment_factories({"sums": SumSuite()}, tasks)
    assert set(classes) == {toolset(tasks[0]), toolset(tasks[2])}
    assert toolset(tasks[0]) == toolset(tasks[1])
    public = [name for name in vars(classes[toolset(tasks[0])]) if not name.startswith("_")]
    assert sorted(public) == ["add", "total"]
    assert issubclass(classes[toolset(tasks[2])], EpisodeEnvironment)


def test_methods_have_the_tools_own_signature_annotations_and_docstring():
    task = request(("add",)).task
    environment = environment_factories({"sums": SumSuite()}, [task])[toolset(task)]
    # As TRL lists and describes tools: bound methods of an instance.
    tools = {n: m for n, m in inspect.getmembers(environment(), predicate=inspect.ismethod) if not n.startswith("_")}
    assert set(tools) == {"add", "reset"}
    assert str(inspect.signature(tools["add"])) == "(amount: int, times: int = 1) -> str"
    assert tools["add"].__annotations__ == {"amount": int, "times": int, "return": str}
    assert inspect.getdoc(tools["add"]) == inspect.getdoc(add)
    assert tools["add"].__name__ == "add"


def test_an_environment_is_reset_to_a_request_and_reused():
    asked = request(("add", "total"))
    environment = environment_factories({"sums": SumSuite()}, [asked.task], SHORT)[toolset(asked.task)]()
    assert environment.reset(request=asked, prompt="ignored") is None
    assert environment.add(amount=2) == "added"
    first = environment._recorder
    environment.reset(request=asked)
    assert environment._recorder.calls == []
    assert [call.name for call in first.calls] == ["add"], "what was recorded outlives the reset"
    assert environment._recorder.limits == SHORT


@pytest.mark.parametrize("arguments", [{}, {"amount": 1, "colour": 2}, {"amount": 1, "self": 2}])
def test_wrong_keywords_reach_the_record(arguments):
    asked = request(("add",))
    environment = environment_factories({"sums": SumSuite()}, [asked.task])[toolset(asked.task)]()
    environment.reset(request=asked)
    with pytest.raises(ToolError):
        environment.add(**arguments)
    assert [(call.arguments, call.fault) for call in environment._recorder.calls] == [(arguments, "arguments")]


def test_a_task_that_offers_an_unknown_tool_stops_the_run():
    with pytest.raises(SuiteError, match="'t' offers tool 'fly', which suite 'sums' does not have"):
        environment_factories({"sums": SumSuite()}, [request(("add", "fly")).task])


def test_the_same_class_serves_every_split_of_the_workbench():
    suite = WorkbenchSuite(train=6, validation=3, test=6)
    assert len(environment_factories({"workbench": suite}, suite.tasks("all"))) == 1


# ------------------------------------------------------------------------------------------------ make_tool


def test_make_tool_describes_a_tool():
    tool = make_tool(
        "find", " Find it.\n", [("what", str, "The\n  thing."), ("n", int | None, "How many.")], {"n": None}
    )
    assert tool.__name__ == "find"
    parameters = inspect.signature(tool).parameters
    assert parameters["what"].default is inspect.Parameter.empty
    assert parameters["n"].default is None
    assert tool.__annotations__ == {"what": str, "n": int | None}
    assert inspect.getdoc(tool) == "Find it.\n\nArgs:\n    what: The thing.\n    n: How many."
    assert inspect.getdoc(make_tool("go", "Go.", [])) == "Go."
    with pytest.raises(NotImplementedError):
        tool(what="x")
