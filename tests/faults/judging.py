"""Faults of verifiers, in this process and in their own: each costs one typed error on the record, none is ever a 0."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time

from fate_trl.types import Score
from fate_trl.verify.loading import load as load_verifier

from . import SECONDS, Bench, Mine, Ran, fault

FOREVER = 20 * SECONDS
GOOD = {"mine": Score(1.0)}


def raising(error):
    def answer(_):
        raise error

    return answer


def forged(value):
    score = Score(0.5)
    object.__setattr__(score, "value", value)
    return {"mine": score}


# ------------------------------------------------------------------------------------------------ on single records


def on_record(injected: str, cause: str, answer, **settings):
    """A row: `answer` is what the verifier says, or does, about each target."""

    @fault("verifier", injected, f"those records are excluded as {cause}, all others are scored")
    def _(bench: Bench) -> Ran:
        return bench.verifier(answer, **settings).excludes(cause, bench.targets)


class Odd(BaseException):
    """No Exception: most handlers let it through."""


on_record("raises", "verifier_raised", raising(KeyError("judge")))
on_record("runs out of memory", "verifier_raised", raising(MemoryError()))
on_record("leaves the program", "verifier_raised", lambda _: sys.exit(3))
on_record("is interrupted from inside", "verifier_raised", raising(KeyboardInterrupt()))
on_record("raises what is no Exception", "verifier_raised", raising(Odd()))
on_record("recurses without end", "verifier_raised", lambda t: (lambda f: f(f))(lambda f: f(f)))
on_record("hangs", "verifier_timeout", lambda _: time.sleep(FOREVER), quick=True)
on_record("scores NaN", "verifier_out_of_range", lambda _: {"mine": Score(math.nan)})
on_record("scores infinity", "verifier_out_of_range", lambda _: {"mine": Score(math.inf)})
on_record("scores 1.5", "verifier_out_of_range", lambda _: {"mine": Score(1.5)})
on_record("scores -0.5", "verifier_out_of_range", lambda _: {"mine": Score(-0.5)})
on_record("forges a score of NaN", "verifier_out_of_range", lambda _: forged(math.nan))
on_record("forges a score of 7", "verifier_out_of_range", lambda _: forged(7.0))
on_record("scores a text", "verifier_out_of_range", lambda _: {"mine": Score("1.0")})  # type: ignore[arg-type]
on_record("has a status of its own", "verifier_raised", lambda _: {"mine": Score(status="unsure")})  # type: ignore[arg-type]
on_record("gives a reason that is no text", "verifier_raised", lambda _: {"mine": Score(1.0, reason=7)})  # type: ignore[arg-type]
on_record("returns a bare number", "verifier_wrong_shape", lambda _: {"mine": 1.0})
on_record("returns no dict", "verifier_wrong_shape", lambda _: Score(1.0))
on_record("returns None", "verifier_wrong_shape", lambda _: None)
on_record("leaves its objective out", "verifier_wrong_shape", lambda _: {})
on_record("scores one objective more", "verifier_wrong_shape", lambda _: {**GOOD, "more": Score(1.0)})
on_record("misspells its objective", "verifier_wrong_shape", lambda _: {"Mine": Score(1.0)})
on_record("says that it cannot tell", "no_verdict", lambda _: {"mine": Score.error("the judge is down")})


def spoil(what):
    def answer(trajectory):
        what(trajectory)
        return GOOD

    return answer


on_record("changes messages", "verifier_mutated", spoil(lambda t: t.messages[-1].update(content="spoilt")))
on_record("changes the task", "verifier_mutated", spoil(lambda t: t.task.data.clear()))
on_record("changes the outcome", "verifier_mutated", spoil(lambda t: object.__setattr__(t.outcome, "utility", 0.0)))
on_record("takes calls away", "verifier_mutated", spoil(lambda t: object.__setattr__(t, "calls", ())))


@fault("verifier", "changes its input after its time", "excluded as verifier_timeout; the record is as it was")
def _(bench: Bench) -> Ran:
    late, spoilt = threading.Event(), []

    def answer(trajectory):
        late.wait(FOREVER)
        trajectory.messages[-1]["content"] = "spoilt"
        spoilt.append(trajectory)
        return GOOD

    ran = bench.verifier(answer, quick=True).excludes("verifier_timeout", bench.targets)
    late.set()
    while not spoilt:
        time.sleep(0.01)
    assert not any(message["content"] == "spoilt" for t, _ in ran.collected for message in t.messages)
    return ran


# ------------------------------------------------------------------------------------------------ on batches


def on_batch(injected: str, returned, **settings):
    """A row: what happens to a batch only, and not when it is asked about one by one."""

    @fault("verifier", injected, "asked again record by record; nothing is excluded")
    def _(bench: Bench) -> Ran:
        class Batch(Mine):
            def score(self, trajectories):
                return [GOOD] if len(trajectories) == 1 else returned(trajectories)

        return bench.run(verifiers=(Batch(bench.targets, None),), **settings).bears()


on_batch("raises on a batch only", raising(TimeoutError()))
on_batch("hangs on a batch only", lambda _: time.sleep(FOREVER), quick=True)
on_batch("returns too few scores for a batch", lambda _: [GOOD])
on_batch("returns too many scores for a batch", lambda made: [GOOD] * (len(made) + 1))
on_batch("returns no list for a batch", lambda made: (GOOD,) * len(made))
on_batch("returns nothing for a batch", lambda _: None)


def never(injected: str, cause: str, score, slow: bool = False, **settings):
    """A row: a verifier that never works stops the run; without it, the run goes on."""

    @fault("verifier", injected, f"the run stops with a table that counts {cause}; once repaired, it goes on", slow)
    def _(bench: Bench) -> Ran:
        class Never(Mine):
            def score(self, trajectories):
                return score(trajectories)

        stopped = bench.run(verifiers=(Never(bench.targets, None),), **settings).stopped
        assert cause in str(stopped)
        return bench.run(verifiers=(Mine(bench.targets, lambda _: GOOD),)).bears()


never("is down", "verifier_raised", raising(ConnectionError("refused")))
never("always hangs", "verifier_timeout", lambda _: time.sleep(FOREVER), slow=True, quick=True)
never("always returns two scores for one record", "verifier_wrong_shape", lambda _: [GOOD, GOOD])


# ------------------------------------------------------------------------------------------------ that wait


def waiting(injected: str, cause: str, answer, slow: bool = False):
    """A row: a verifier with `score_one`, and what it awaits on each target."""

    @fault("waiting verifier", injected, f"those records are excluded as {cause}, all others are scored", slow)
    def _(bench: Bench) -> Ran:
        class Waiting:
            objectives = ("mine",)

            async def score_one(self, trajectory):
                return await answer() if trajectory.task.id in bench.targets else GOOD

        return bench.run(verifiers=(Waiting(),), quick=True).excludes(cause, bench.targets)


async def refused():
    raise ConnectionError("refused")


async def blocked():
    time.sleep(2 + FOREVER)


async def stubborn():
    end = time.monotonic() + 2 + FOREVER
    while time.monotonic() < end:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue


async def cancelled():
    raise asyncio.CancelledError


waiting("raises", "verifier_raised", refused)
waiting("hangs", "verifier_timeout", lambda: asyncio.sleep(FOREVER))
waiting("hangs and blocks the loop", "verifier_timeout", blocked, slow=True)
waiting("hangs and will not be cancelled", "verifier_timeout", stubborn, slow=True)
waiting("cancels itself", "verifier_raised", cancelled)


# ------------------------------------------------------------------------------------------------ in a process

PLUGIN = """
import ctypes, os, subprocess, sys, time
from fate_trl import Component, Score, hookimpl

class Mine:
    objectives = ("mine",)
    isolated = True

    def __init__(self, parent: int, targets: list[str], harm: str):
        self.targets, self.harm = targets, harm
        if harm == "start" and os.getpid() != parent:
            raise OSError("no GPU left")

    def score(self, trajectories):
        print("a verifier may print")
        for trajectory in trajectories:
            if trajectory.task.id in self.targets:
                exec(self.harm)
        return [{"mine": Score(1.0)} for _ in trajectories]

@hookimpl
def fate_trl_verifiers():
    return [Component("mine", Mine, "does harm")]
"""


def isolated(injected: str, cause: str, harm: str, quick: bool = False, slow: bool = True):
    """A row: a verifier in a process of its own, and the code that it runs for each target."""

    @fault("isolated verifier", injected, f"those records are excluded as {cause}; the process is started again", slow)
    def _(bench: Bench) -> Ran:
        verifier = load(bench, harm)
        ran = bench.run(verifiers=(verifier,), quick=quick).excludes(cause, bench.targets)
        verifier.process.close()
        return ran


def load(bench: Bench, harm: str):
    file = bench.path.with_name(f"{bench.path.name}.py")
    file.write_text(PLUGIN, encoding="utf-8")
    arguments = {"parent": os.getpid(), "targets": sorted(bench.targets), "harm": harm}
    return load_verifier(str(file), arguments)


isolated("raises", "verifier_raised", "raise KeyError('judge')", slow=False)
isolated("leaves the program", "verifier_raised", "sys.exit(3)")
isolated("ends its process", "verifier_died", "os._exit(7)")
isolated("is killed", "verifier_died", "os.kill(os.getpid(), 9)")
isolated("reads memory that is not its own", "verifier_died", "ctypes.string_at(0)")
isolated("hangs, and holds the interpreter", "verifier_timeout", "ctypes.PyDLL(None).sleep(60)", quick=True, slow=False)
isolated("changes its input", "verifier_mutated", "trajectory.messages[-1]['content'] = 'spoilt'")
isolated("scores NaN", "verifier_out_of_range", "Score(float('nan'))")


@fault("isolated verifier", "writes to its standard output", "that is no answer; nothing is excluded", slow=True)
def _(bench: Bench) -> Ran:
    verifier = load(bench, "os.write(1, b'{}\\n')")
    ran = bench.run(verifiers=(verifier,)).bears()
    verifier.process.close()
    return ran


@fault(
    "isolated verifier", "does not start", "the run stops with a table that says why; without it, it goes on", slow=True
)
def _(bench: Bench) -> Ran:
    stopped = bench.run(verifiers=(load(bench, "start"),)).stopped
    assert "verifier_died" in str(stopped)
    assert "no GPU left" in str(stopped)
    return bench.run(verifiers=(Mine(bench.targets, lambda _: GOOD),)).bears()
