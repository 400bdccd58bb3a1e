"""Progress of a run: a live line on a terminal, a line now and then in a log, or events for a machine.

Four ways to be told, one place that counts: `Tally` derives everything from the cases of each finished chunk and from
what a trainer logs, so the `Reporter` protocol stays four verbs long.

The events of `--json` are JSON lines on stdout, in this order for each stage:

    {"event": "start",  "round", "stage", "total"}                                total: 0 where it is not known yet
    {"event": "chunk",  "round", "stage", "done", "total", "seconds", "cases", "failures": {kind: n}, "resolved",
                        "errors", "tokens_per_second"}                            counts since the stage began
    {"event": "step",   "round", "stage", "done", "total", "seconds", "log": {…}} a trainer's log, as TRL names it
    {"event": "stage",  "round", "stage", "seconds", …}                           its summary, as in stages.jsonl

and {"event": "finished", "run", "rows"} at the end, with the rows of metrics.json.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..loop.counts import tokens
from ..loop.reporter import Reporter, Silent
from ..metrics import is_error
from ..metrics.concerns import empty_replies, unread_calls
from ..record import dumps
from ..suites.scripted import ROLES
from ..types import KINDS, Case
from .console import counted, err, visible

PAUSE = 30.0
"""Seconds between two lines of one stage, where there is no terminal (ours)."""

_ELSEWHERE = ("round", "stage", "seconds", "log", "decided_by", "time", "peak_memory_mb", "peak_gpu_memory_mb")
"""What a stage's line leaves to the run directory and its report."""


@contextmanager
def reporting(quiet: bool, as_json: bool) -> Iterator[Reporter]:
    """Who is told: nobody, a machine, a person at a terminal, or a log file. However it ends, the cursor comes back."""
    if quiet or as_json:
        yield Silent() if quiet else Events()
        return
    told = Live(err) if err.is_terminal else Lines(err)
    try:
        yield told
    finally:
        if isinstance(told, Live):
            told.progress.stop()


class Tally:
    """What is known of the running stage.

    Args:
        total: Units of work, trajectories or training steps; 0 while it is not known.
        clock: Seconds.

    Attributes:
        pace: Seconds for one unit, and tokens per second, of the last advance alone: on a resumed run the chunks that
            are there already take no time.
    """

    def __init__(self, total: int, clock: Callable[[], float]):
        self.total, self.clock = total, clock
        self.done = self.cases = self.resolved = self.errors = 0
        self.failures: Counter[str] = Counter()
        self.log: Mapping[str, Any] = {}
        self.pace = self.tokens_per_second = 0.0
        self.start = self.last = clock()

    @property
    def seconds(self) -> float:
        return self.clock() - self.start

    def add(self, amount: int, cases: Sequence[Case], log: Mapping[str, Any]) -> None:
        took, self.last = max(self.clock() - self.last, 1e-6), self.clock()
        made = tokens(cases)["sampled_tokens"] if cases else log.get("num_tokens", 0) - self.log.get("num_tokens", 0)
        self.pace, self.tokens_per_second = took / max(amount, 1), made / took
        self.done += amount
        self.log = log or self.log
        self.cases += len(cases)
        for trajectory, card in cases:
            broken = is_error((trajectory, card))
            self.errors += broken
            self.resolved += not broken and card.resolved
            self.failures[trajectory.task.kind] += not broken and bool(card.failed)

    def words(self) -> str:
        """What a person wants to see of it, in a few words."""
        parts = []
        if self.cases:
            failed = [f"{self.failures[kind]} {kind}" for kind in KINDS if self.failures[kind]]
            parts.append(f"failed {', '.join(failed) or 'none'}")
            parts.append(f"resolved {self.resolved / self.cases:.0%}")
        if self.errors:
            parts.append(counted(self.errors, "errors"))
        parts += [f"{key} {self.log[key]:.3g}" for key in ("loss", "reward") if isinstance(self.log.get(key), float)]
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:.0f} tokens/s")
        if self.done < self.total and self.done:
            parts.append(f"{_clock(self.pace * (self.total - self.done))} left")
        return "; ".join(parts)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _called(stage: str) -> str:
    """A stage as people are told of it: a script that is played for comparison is no policy of theirs."""
    role = stage.removeprefix("eval-test-")
    return f"baseline: {role}" if role in ROLES else stage


def _told(name: str, value: Any) -> str:
    """A fact of a stage's summary in words; nothing where there is nothing to tell."""
    if isinstance(value, bool):
        return name if value else f"not {name}"
    if isinstance(value, int):
        return counted(value, name) if value else ""
    if isinstance(value, float):
        return f"{name} {value:.3g}"
    return f"{name} {value}" if value else ""


class _Counting:
    """Keeps the tally; its children show it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock

    def start(self, round: int, stage: str, total: int) -> None:
        self.round, self.stage, self.tally = round, stage, Tally(total, self.clock)

    def expect(self, total: int) -> None:
        self.tally.total = total

    def advance(self, amount: int = 1, cases: Sequence[Case] = (), log: Mapping[str, Any] | None = None) -> None:
        self.tally.add(amount, cases, log or {})


class Events(_Counting):
    """Events for a machine, on stdout; see the top of this file."""

    def _say(self, event: str, **more: Any) -> None:
        print(dumps({"event": event, **more}), flush=True)

    def start(self, round: int, stage: str, total: int) -> None:
        super().start(round, stage, total)
        self._say("start", round=round, stage=stage, total=total)

    def advance(self, amount: int = 1, cases: Sequence[Case] = (), log: Mapping[str, Any] | None = None) -> None:
        super().advance(amount, cases, log)
        known = self.tally
        head = {"round": self.round, "stage": self.stage, "done": known.done, "total": known.total}
        head["seconds"] = known.seconds
        if cases:
            counts = {"cases": known.cases, "failures": {kind: known.failures[kind] for kind in KINDS}}
            more = {"resolved": known.resolved, "errors": known.errors, "tokens_per_second": known.tokens_per_second}
            self._say("chunk", **head, **counts, **more)
        else:
            self._say("step", **head, log=dict(log or {}))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._say("stage", **summary)


class Lines(_Counting):
    """Plain lines: one for each finished stage, and at most one in `PAUSE` seconds before that."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self.console = console

    def start(self, round: int, stage: str, total: int) -> None:
        super().start(round, stage, total)
        self.said = self.clock()

    def advance(self, amount: int = 1, cases: Sequence[Case] = (), log: Mapping[str, Any] | None = None) -> None:
        super().advance(amount, cases, log)
        if self.clock() - self.said >= PAUSE:
            self.said = self.clock()
            of = f" of {self.tally.total}" if self.tally.total else ""
            self._line(f"{self.tally.done}{of}  {self.tally.words()}", self.tally.seconds)

    def finish(self, summary: Mapping[str, Any]) -> None:
        told = [_told(key.replace("_", " "), value) for key, value in summary.items() if key not in _ELSEWHERE]
        self._line(", ".join(part for part in told if part), summary["seconds"])
        for warning in (unread_calls(self.stage, summary), empty_replies(self.stage, summary)):
            if warning:
                self.console.print(escape(visible(warning)), soft_wrap=True)

    def _line(self, text: str, seconds: float) -> None:
        head = f"round {self.round}  {_called(self.stage):<22} {seconds:7.1f} s  "
        self.console.print(escape(visible(head + text)), soft_wrap=True)


class Live(Lines):
    """A line on a terminal that is drawn anew, and one that stays for each finished stage."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        super().__init__(console, clock)
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        words = TextColumn("{task.fields[words]}")
        self.progress = Progress(*columns, words, console=console, transient=True, get_time=clock)

    def start(self, round: int, stage: str, total: int) -> None:
        super().start(round, stage, total)
        self.bar = self.progress.add_task(f"round {round}  {_called(stage)}", total=total or None, words="")
        self.progress.start()

    def expect(self, total: int) -> None:
        super().expect(total)
        self.progress.update(self.bar, total=total)

    def advance(self, amount: int = 1, cases: Sequence[Case] = (), log: Mapping[str, Any] | None = None) -> None:
        _Counting.advance(self, amount, cases, log)
        self.progress.update(self.bar, completed=self.tally.done, words=escape(visible(self.tally.words())))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.progress.remove_task(self.bar)
        self.progress.stop()
        super().finish(summary)
