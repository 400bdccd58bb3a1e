"""Faults of suites: opening, tools, grading, replay. What the policy provoked is scored, the rest is excluded."""

from __future__ import annotations

import sys
import threading
import time

from fate_trl.errors import SuiteError, ToolError
from fate_trl.suites.scripted import perform
from fate_trl.types import Outcome, Score, Script

from . import SECONDS, Bench, Learner, Ran, fault, workbench

FOREVER = 20 * SECONDS


def raising(error):
    def call(*_):
        raise error

    return call


def hanging(*_):
    time.sleep(FOREVER)


def leaving(*_):
    sys.exit(3)


# ------------------------------------------------------------------------------------------------ opening


@fault("opening", "fails once, then works", "tried again; nothing is excluded")
def _(bench: Bench) -> Ran:
    failed = set()

    def flaky(task, open):
        if task.id not in failed:
            failed.add(task.id)
            raise ConnectionError("no docker")
        return open(task)

    ran = bench.run(open=flaky).bears()
    assert failed == bench.targets
    return ran


@fault("opening", "always fails", "excluded as open_failed, after three tries")
def _(bench: Bench) -> Ran:
    tries = []

    def broken(task, open):
        tries.append(task.id)
        raise ConnectionError("no docker")

    ran = bench.run(open=broken).excludes("open_failed", bench.targets)
    assert len(tries) == 6
    return ran


@fault("opening", "the suite says that its data are wrong", "excluded as open_failed, not tried again")
def _(bench: Bench) -> Ran:
    return bench.run(open=raising(SuiteError("no such row"))).excludes("open_failed", bench.targets)


@fault("opening", "hangs", "excluded as open_timeout")
def _(bench: Bench) -> Ran:
    return bench.run(quick=True, open=hanging).excludes("open_timeout", bench.targets)


@fault("opening", "leaves the program", "excluded as open_failed; the run goes on")
def _(bench: Bench) -> Ran:
    return bench.run(open=leaving).excludes("open_failed", bench.targets)


@fault("opening", "gives no episode", "excluded as open_failed")
def _(bench: Bench) -> Ran:
    return bench.run(open=lambda *_: None).excludes("open_failed", bench.targets)


@fault("opening", "changes the task that it is given", "the recorded task is as it was")
def _(bench: Bench) -> Ran:
    def rewriting(task, open):
        opened = open(task)
        task.messages[0]["content"] = task.data["spoilt"] = "spoilt"
        return opened

    ran = bench.run(open=rewriting).bears()
    assert not any(t.task.messages[0]["content"] == "spoilt" or "spoilt" in t.task.data for t, _ in ran.collected)
    return ran


@fault("opening", "every episode fails, until it is repaired", "the run stops with a table of causes, then goes on")
def _(bench: Bench) -> Ran:
    bench.targets = frozenset(task.id for split in ("train", "test") for task in workbench().tasks(split))
    stopped = bench.run(open=raising(ConnectionError("no docker"))).stopped
    assert "open_failed" in str(stopped)
    assert "no docker" in str(stopped)
    return bench.run().bears()


# ------------------------------------------------------------------------------------------------ tools


@fault("tool", "raises", "the episode is closed, and excluded as tool_failed")
def _(bench: Bench) -> Ran:
    return bench.run(execute=raising(ZeroDivisionError("boom"))).excludes("tool_failed", bench.targets)


@fault("tool", "runs out of memory", "excluded as tool_failed")
def _(bench: Bench) -> Ran:
    return bench.run(execute=raising(MemoryError())).excludes("tool_failed", bench.targets)


@fault("tool", "recurses without end", "excluded as tool_failed")
def _(bench: Bench) -> Ran:
    def deep(*given):
        return deep(*given)

    return bench.run(execute=deep).excludes("tool_failed", bench.targets)


@fault("tool", "leaves the program", "excluded as tool_failed; the run goes on")
def _(bench: Bench) -> Ran:
    return bench.run(execute=leaving).excludes("tool_failed", bench.targets)


@fault("tool", "is interrupted from inside", "excluded as tool_failed; the run goes on")
def _(bench: Bench) -> Ran:
    return bench.run(execute=raising(KeyboardInterrupt())).excludes("tool_failed", bench.targets)


@fault("tool", "hangs", "the episode is closed, and excluded as tool_timeout")
def _(bench: Bench) -> Ran:
    return bench.run(quick=True, execute=hanging).excludes("tool_timeout", bench.targets)


@fault("tool", "returns after its time, having changed the state", "its call and its state are not recorded")
def _(bench: Bench) -> Ran:
    late = threading.Event()
    returned = []

    def slow(episode, name, arguments):
        late.wait(FOREVER)
        result = episode.execute(name, arguments)
        arguments.clear()
        returned.append(result)
        return result

    ran = bench.run(quick=True, execute=slow)
    before = [t for t, _ in ran.collected]
    late.set()
    while len(returned) < len(bench.targets):
        time.sleep(0.01)
    ran.excludes("tool_timeout", bench.targets)
    after = [t for t, _ in bench.run().collected]  # read back
    assert before == after
    assert all(t.calls == () and t.outcome is None for t in after if t.task.id in bench.targets)
    return ran


@fault("tool", "returns nothing", "excluded as tool_failed")
def _(bench: Bench) -> Ran:
    return bench.run(execute=lambda *_: None).excludes("tool_failed", bench.targets)


@fault("tool", "returns a megabyte", "cut, and said to be cut; scored")
def _(bench: Bench) -> Ran:
    ran = bench.run(execute=lambda *_: "x" * 1_000_000).bears()
    results = [call.result for t, _ in ran.collected if t.task.id in bench.targets for call in t.calls]
    assert results
    assert all(len(result) < 21_000 and result.endswith("more characters]") for result in results)
    return ran


@fault("tool", "returns what no tokenizer takes", "replaced; scored")
def _(bench: Bench) -> Ran:
    return bench.run(execute=lambda *_: "\ud800\x00").bears()


@fault("tool", "changes the arguments that it is given, then and later", "the recorded call is as it was made")
def _(bench: Bench) -> Ran:
    kept = []

    def keeping(episode, name, arguments):
        result = episode.execute(name, arguments)
        kept.append(arguments)
        arguments["spoilt"] = True
        return result

    ran = bench.run(execute=keeping).bears()
    assert kept
    assert not any("spoilt" in call.arguments for t, _ in ran.collected for call in t.calls)
    return ran


@fault("tool", "refuses what the policy asks", "the policy reads why; scored")
def _(bench: Bench) -> Ran:
    ran = bench.run(execute=raising(ToolError("no such file"))).bears()
    assert {call.fault for t, _ in ran.collected if t.task.id in bench.targets for call in t.calls} == {"raised"}
    return ran


@fault("tool", "crashes on arguments of the wrong type", "the policy's fault: scored, so that crashing does not pay")
def _(bench: Bench) -> Ran:
    class Careless(Learner):
        def _one(self, request, role):
            if request.task.id not in self.targets:
                return super()._one(request, role)
            script = Script(({"name": "read_file", "arguments": {"path": {"a": 1}}},), "Done.")
            return perform(self.suites["workbench"], request, script, self.name, self.limits)

    ran = bench.run(learner=Careless, execute=lambda episode, name, arguments: arguments["path"].lower()).bears()
    hit = [(t, card) for t, card in ran.collected if t.task.id in bench.targets]
    assert {call.fault for t, _ in hit for call in t.calls} == {"arguments"}
    assert all(card.scores["trajectory_control"].value == 0 for _, card in hit)
    return ran


# ------------------------------------------------------------------------------------------------ grading


@fault("grading", "raises", "excluded as grading_failed")
def _(bench: Bench) -> Ran:
    return bench.run(outcome=raising(KeyError("balance"))).excludes("grading_failed", bench.targets)


@fault("grading", "hangs", "excluded as grading_timeout")
def _(bench: Bench) -> Ran:
    return bench.run(quick=True, outcome=hanging).excludes("grading_timeout", bench.targets)


@fault("grading", "leaves the program", "excluded as grading_failed; the run goes on")
def _(bench: Bench) -> Ran:
    return bench.run(outcome=leaving).excludes("grading_failed", bench.targets)


@fault(
    "grading", "stumbles over what the policy did", "the policy's fault: utility is 0, so that crashing does not pay"
)
def _(bench: Bench) -> Ran:
    ran = bench.run(outcome=lambda *_: Outcome(fault="pay without an amount")).bears()
    assert all(card.scores["utility"].value == 0 for t, card in ran.collected if t.task.id in bench.targets)
    return ran


def returning(injected: str, outcome):
    @fault("grading", f"returns {injected}", "excluded as grading_failed")
    def _(bench: Bench) -> Ran:
        return bench.run(outcome=lambda *_: outcome).excludes("grading_failed", bench.targets)


returning("nothing", None)
returning("a dict", {"utility": 1.0})
returning("a utility that is not a number", Outcome(utility=float("nan")))
returning("a utility of 2", Outcome(utility=2.0))
returning("a text for a utility", Outcome(utility="done"))  # type: ignore[arg-type]
returning("facts that are no JSON", Outcome(utility=1.0, info={"state": object()}))


@fault("grading", "changes the calls and messages that it is given", "the record is as it was")
def _(bench: Bench) -> Ran:
    def rewriting(episode, calls, messages):
        outcome = episode.outcome(calls, messages)
        for call in calls:
            call.arguments["spoilt"] = True
        for message in messages:
            message["content"] = "spoilt"
        return outcome

    ran = bench.run(outcome=rewriting).bears()
    assert not any("spoilt" in call.arguments for t, _ in ran.collected for call in t.calls)
    assert not any(message["content"] == "spoilt" for t, _ in ran.collected for message in t.messages)
    return ran


# ------------------------------------------------------------------------------------------------ replay


def replayed(bench: Bench, cause: str, execute, quick: bool = False) -> Ran:
    """A round whose targets fail at their last step, and are repaired from there, where `execute` spoils the replay."""
    opened = {}

    def open(task, open):
        opened[task.id] = opened.get(task.id, 0) + 1
        return open(task)

    def first_then_spoilt(episode, name, arguments):
        spoilt = len(opened) == len(bench.targets) and max(opened.values()) > 1
        return execute(episode, name, arguments) if spoilt else episode.execute(name, arguments)

    def at_fault(trajectory):
        return {"mine": Score(0.0, reason="no", step=len(trajectory.messages) - 1)}

    resume = {"repair": {"strategy": {"name": "resume"}}, "evaluation": {"max_error_rate": 1.0}}
    ran = bench.verifier(at_fault, changes=resume, quick=quick, open=open, execute=first_then_spoilt)
    assert ran.stopped is None, ran.stopped
    hit = [t for t, _ in ran.cases["rounds/01/repairs.jsonl", "repair"] if t.task.id in bench.targets]
    assert len(hit) == 2 * len(bench.targets)
    assert {t.cause for t in hit} == {cause}
    return ran


@fault("replay", "gives another result than the recorded one", "the candidate is excluded as replay_diverged")
def _(bench: Bench) -> Ran:
    return replayed(bench, "replay_diverged", lambda *_: "another")


@fault("replay", "raises", "the candidate is excluded as tool_failed")
def _(bench: Bench) -> Ran:
    return replayed(bench, "tool_failed", raising(OSError("gone")))


@fault("replay", "hangs", "the candidate is excluded as tool_timeout")
def _(bench: Bench) -> Ran:
    return replayed(bench, "tool_timeout", hanging, quick=True)
