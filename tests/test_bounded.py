"""Bounded calls: a thread that is reused until something hangs in it, a process that is killed with all it started."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fate_trl.errors import FateError
from fate_trl.process.bounded import Died, Process, Thread, TimedOut
from fate_trl.types import Score, Task, Trajectory
from fate_trl.verify.loading import load as load_verifier
from fate_trl.verify.scoring import score_all

LONG = 30.0
SHORT = 0.1


def test_calls_share_a_thread_until_one_hangs():
    thread, released = Thread(), threading.Event()
    first = thread.call(threading.get_ident, LONG)
    assert thread.call(threading.get_ident, LONG) == first != threading.get_ident()
    with pytest.raises(TimedOut):
        thread.call(lambda: released.wait(LONG), SHORT)
    assert thread.call(threading.get_ident, LONG) != first
    released.set()
    assert thread.call(lambda: "mine", LONG) == "mine", "the late answer goes nowhere"


@pytest.mark.parametrize(
    ("error", "raised"),
    [(KeyError("x"), KeyError), (SystemExit(3), RuntimeError), (KeyboardInterrupt(), RuntimeError)],
)
def test_what_a_call_raises_is_raised_here_and_ends_nothing(error, raised):
    def call():
        raise error

    thread = Thread()
    with pytest.raises(raised):
        thread.call(call, LONG)
    assert thread.call(lambda: 1, LONG) == 1


def test_a_thread_that_is_done_serves_the_next_and_one_that_hangs_serves_nobody():
    done, hangs, released = Thread(), Thread(), threading.Event()
    ended, left = (thread.call(threading.get_ident, LONG) for thread in (done, hangs))
    with pytest.raises(TimedOut):
        hangs.call(lambda: released.wait(LONG), SHORT)
    done.close()
    del hangs
    owners = [Thread() for _ in range(3)]
    served = [owner.call(threading.get_ident, LONG) for owner in owners]
    assert ended in served
    assert left not in served
    assert len(set(served)) == 3, "each has one of its own"
    released.set()
    end = time.monotonic() + LONG
    while any(one.ident == left for one in threading.enumerate()):
        assert time.monotonic() < end, "it ends when what hung in it is over"
        time.sleep(0.01)


@pytest.fixture
def interruptible():
    """Python's own handler: in the background of a script, a shell has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_caller_that_is_interrupted_leaves_the_thread_behind(interruptible):
    thread, released = Thread(), threading.Event()
    busy = thread.call(threading.get_ident, LONG)
    threading.Timer(SHORT, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        thread.call(lambda: released.wait(LONG), LONG)
    assert thread.call(threading.get_ident, LONG) != busy
    released.set()


# ------------------------------------------------------------------------------------------------ processes

ECHO = """
import json, os, subprocess, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    if asked == "hang":
        child = subprocess.Popen(["sleep", "60"])
        open({file!r}, "w").write(str(child.pid))
        time.sleep(60)
    if asked == "die":
        os._exit(7)
    print(json.dumps([os.getpid(), asked] if asked != "hello" else {{}}), flush=True)
"""


@pytest.fixture
def process(tmp_path, monkeypatch):
    (tmp_path / "echo_for_test.py").write_text(ECHO.format(file=str(tmp_path / "child")))
    monkeypatch.syspath_prepend(tmp_path)
    made = Process("echo_for_test", "hello")
    yield made
    made.close()


def gone(pid):
    """Whether a process has ended, or waits for its parent to hear of it; a killed one may need a moment for that."""
    for _ in range(600):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] in "ZX":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_process_answers_until_it_dies_and_is_started_again(process):
    first, answer = process.ask({"a": 1}, LONG)
    assert answer == {"a": 1}
    assert process.ask(2, LONG) == [first, 2]
    with pytest.raises(Died, match="status 7"):
        process.ask("die", LONG)
    assert process.ask(3, LONG)[0] != first


def test_a_process_that_hangs_is_killed_with_what_it_started(process, tmp_path):
    pid, _ = process.ask(1, LONG)
    with pytest.raises(TimedOut):
        process.ask("hang", 3.0)
    assert gone(pid)
    assert gone(int((tmp_path / "child").read_text()))


VERIFIER = """
import os
from fate_trl import Component, Score, hookimpl

class Mine:
    objectives = ("mine",)
    isolated = True

    def score(self, trajectories):
        return [{"mine": Score(0.5, feedback=str(os.getpid()), step=1)} for _ in trajectories]

@hookimpl
def fate_trl_verifiers():
    return [Component("mine", Mine, "half")]
"""

MADE = Trajectory(Task("t", "s", "benign", ({"role": "user", "content": "\ud800 pay"},)))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(VERIFIER)
    return path


def test_an_isolated_verifier_is_made_again_in_its_process_by_name(file):
    verifier = load_verifier(str(file))
    [card] = score_all([verifier], [MADE])
    score = card.scores["mine"]
    assert (score.value, score.step) == (0.5, 1)
    assert int(score.feedback) != os.getpid()
    assert verifier.score([MADE]) == [{"mine": Score(0.5, feedback=score.feedback, step=1)}], "the same process"
    file.write_text("nothing")
    verifier.process.close()
    with pytest.raises(Died, match="NameError"):
        verifier.score([MADE])


def test_its_process_ends_with_the_one_that_asked(file):
    code = f"""
import os
from fate_trl.types import Task, Trajectory
from fate_trl.verify.loading import load as load_verifier
verifier = load_verifier({str(file)!r})
print(verifier.score([Trajectory(Task("t", "s", "benign", ()))])[0]["mine"].feedback, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    end = time.monotonic() + LONG
    while not gone(int(done.stdout)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_one_that_is_wrong_raises_when_it_is_asked_directly(file):
    file.write_text(VERIFIER.replace('"mine": Score', '"other": Score'))
    with pytest.raises(FateError, match="a Score for each of"):
        load_verifier(str(file)).score([MADE])
