"""Other people's code, bounded in time: on a thread that is left behind when it hangs, or in a process that is killed.

Tools, environments and verifiers are called through here. A thread costs microseconds but cannot be stopped: what
hangs in it goes on hanging, and nobody listens any more. A process costs a start, but can be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import FateError
from ..record import dumps
from ..types import Score, Trajectory

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Bounds around an episode (ours).

    Attributes:
        tool_seconds: Time for one call, for opening and for grading; past it the episode is closed, its state never
            read again.
        tool_characters: Longest result handed to the policy; the rest is cut, and said to be cut.
    """

    tool_seconds: float = 30.0
    tool_characters: int = 20_000


GRACE = 0.5
"""Seconds more for code that keeps its limit itself: so it can say where it was when its time was over."""


class TimedOut(Exception):
    """It took longer than it may."""


class Died(Exception):
    """The process does not start, or ended in the middle of a call."""


class Thread:
    """A thread that runs functions in turn: an idle one or a new one, kept until it is closed, left behind if it hangs.

    All calls of an episode run on one thread, so what a tool opens on it (a data base, an event loop) stays usable.
    Then it serves another episode, since to start one costs more than ten calls. Code that calls `sys.exit` ends its
    own call, not the run.
    """

    _inbox: queue.SimpleQueue[Any] | None = None

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """What `function` returns or raises. Raises TimedOut after `seconds`; what comes later goes nowhere."""
        inbox, self._inbox = self._inbox or _idle_thread(), None
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        inbox.put((function, answer))
        try:
            value: T
            value, error = answer.get(timeout=seconds)
        except BaseException as stopped:  # Ctrl-C as well: nobody else may wait behind what hangs
            inbox.put(None)
            if isinstance(stopped, queue.Empty):
                raise TimedOut from None
            raise
        self._inbox = inbox
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """Let others have the thread."""
        if self._inbox is not None:
            _idle.append(self._inbox)
            self._inbox = None

    __del__ = close


_idle: list[queue.SimpleQueue[Any]] = []
os.register_at_fork(after_in_child=_idle.clear)  # threads do not live on in a child


def _idle_thread() -> queue.SimpleQueue[Any]:
    """Inbox of a thread that nobody uses."""
    with contextlib.suppress(IndexError):
        return _idle.pop()
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_serve, args=(inbox,), daemon=True, name="fate-trl-bounded").start()
    return inbox


def _serve(inbox: queue.SimpleQueue[Any]) -> None:
    for function, answer in iter(inbox.get, None):
        try:
            answer.put((function(), None))
        except Exception as error:  # handed to the caller
            answer.put((None, error))
        except BaseException as error:
            answer.put((None, RuntimeError(f"{type(error).__name__} {error}")))
        del function, answer  # nothing outlives its call


class Process:
    """A Python process that answers JSON with JSON, a line each; started when needed, killed with all its children.

    A fresh interpreter, no fork: that is safe with torch's threads in this one. The process must end itself when its
    standard input ends, which it does when this one is gone.

    Args:
        module: What it runs, as `python -m` does; it must answer each line of its standard input by one line.
        greeting: The first line, sent at every start; answered as well.
        start_seconds: Time for a start and the answer to the greeting.
        variables: Environment variables that it gets besides those of this process.
    """

    def __init__(
        self,
        module: str,
        greeting: Mapping[str, Any],
        start_seconds: float = 300.0,
        variables: Mapping[str, str] | None = None,
    ):
        self._variables = dict(variables or {})
        self._command = [sys.executable, "-P", "-m", module]
        self._greeting = greeting
        self._start_seconds = start_seconds
        self._folder = os.getcwd()
        self._running: subprocess.Popen[bytes] | None = None
        self._reader = Thread()

    def ask(self, question: Any, seconds: float) -> Any:
        """The answer. Raises TimedOut after `seconds`, or Died; then the next question starts a new process."""
        if self._running is None:
            self._start()
        return self._exchange(question, seconds)

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **self._variables}
        self._running = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self._folder,
            env=environment,
            start_new_session=True,
        )
        weakref.finalize(self, _kill, self._running)
        answer = self._exchange(self._greeting, self._start_seconds)
        if "error" in answer:
            self.close()
            raise Died(f"its process does not start: {answer['error']}")

    def _exchange(self, question: Any, seconds: float) -> Any:
        running = self._running
        assert running is not None
        assert running.stdin is not None
        assert running.stdout is not None
        given, taken = running.stdin, running.stdout

        def turn() -> bytes:
            with contextlib.suppress(BrokenPipeError):  # then there is no answer either
                given.write(dumps(question, sort=False).encode() + b"\n")
                given.flush()
            return taken.readline()

        try:
            line = self._reader.call(turn, seconds)
        except BaseException:
            self.close()
            raise
        if not line.endswith(b"\n"):
            self.close()
            raise Died(f"its process ended with status {running.returncode}")
        return json.loads(line)

    def close(self) -> None:
        """Kill the process, if it runs, and everything that it started."""
        if self._running is not None:
            _kill(self._running)
            self._running = None


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:  # afterwards its number may be another's
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


class Isolated:
    """What stands for a verifier that has its own process: the same objectives, the same `score`.

    The process makes the verifier anew, by its name and arguments as a recipe gives them; trajectories and scores
    travel as JSON. `verify.loading` makes one for a verifier that says `isolated = True`.

    Args:
        verifier: The verifier, made here to learn what it scores.
        name: Its name, as a recipe gives it.
        arguments: Its arguments, JSON values.
        module: What runs in the process.
    """

    def __init__(self, verifier: Any, name: str, arguments: Mapping[str, Any], module: str):
        self.objectives: tuple[str, ...] = verifier.objectives
        self.cached = getattr(verifier, "cached", False)
        self.name = type(verifier).__name__
        self.process = Process(module, {"name": name, "arguments": dict(arguments)})

    def ask(self, trajectories: Sequence[Trajectory], seconds: float) -> list[dict[str, Any]]:
        """Per trajectory {"scores": {objective: score}} or {"cause", "reason"}. Raises TimedOut or Died."""
        question = {"seconds": seconds, "trajectories": list(trajectories)}
        answers: list[dict[str, Any]] = self.process.ask(question, seconds + GRACE)
        return answers

    def score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]:
        """The scores of the verifier in its process; it may take a day."""
        answers = self.ask(trajectories, 86_400)
        for answer in answers:
            if "cause" in answer:
                raise FateError(answer["reason"])
        return [{name: Score.from_dict(score) for name, score in a["scores"].items()} for a in answers]
