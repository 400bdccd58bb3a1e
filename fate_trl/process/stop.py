"""SIGTERM and Ctrl-C: the first asks a run to finish what it has in hand, a second stops it where it is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


ECHO = 3.0
"""Seconds in which a launcher passes on the signal that a terminal has sent to all its processes already."""


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, by the signal of this number."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number
        """What a shell expects as exit status."""


_early: list[int] = []


def interrupt(number: int, frame: Any) -> None:
    """Ctrl-C while a command starts: KeyboardInterrupt, and noted, since an import may swallow that."""
    _early.append(number)
    raise KeyboardInterrupt


class Stop:
    """Whether a run has been asked to stop. It looks here between chunks, stages and generation windows.

    Attributes:
        asked: The signal that asked.
        echo: Seconds after the first signal in which another one is the same request.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.echo = 0.0
        self._since = 0.0

    def check(self) -> None:
        """Raise Stopped if a stop was asked for; call it where nothing is in hand."""
        if self.asked is not None:
            raise Stopped(self.asked)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it the first signal is noted and a second one raises Stopped; afterwards the old handlers are back.

        Raises:
            Stopped: Ctrl-C came while the command started, and was swallowed.
        """
        if _early:
            raise Stopped(_early[0])
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked is not None and time.monotonic() - self._since < self.echo:
            return
        self.check()
        self.asked, self._since = number, time.monotonic()
        # Not through a stream: a signal may arrive in the middle of a write to it.
        os.write(2, b"\nstopping after the chunk or training step in hand; once more to stop at once\n")
