"""The other end of `bounded.Process`: a process that answers each line of its standard input by one line."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from ..record import dumps


def answer_lines(answer: Callable[[Any], Any]) -> None:
    """Answer until there are no more questions; then, or if the asking process is gone, end at once.

    Args:
        answer: From a question to its answer, both JSON values; it must not raise.
    """
    answers = os.fdopen(os.dup(1), "wb")  # not inherited by what is started from here
    os.dup2(2, 1)  # what others' code prints is no answer
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, lines), daemon=True).start()
    while True:
        answers.write(dumps(answer(json.loads(lines.get())), sort=False).encode() + b"\n")
        answers.flush()


def _read(source: BinaryIO, lines: queue.SimpleQueue[bytes]) -> None:
    for line in source:
        lines.put(line)
    os._exit(0)  # also in the middle of what hangs
