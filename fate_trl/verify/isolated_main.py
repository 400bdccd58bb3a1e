"""The process of a verifier that asked for one: `python -m fate_trl.verify.isolated_main`, started by bounded.Process.

The first line names the verifier and its arguments, every other one holds trajectories; each is answered by one line.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, BinaryIO

from .. import plugins
from ..record import dumps
from ..types import Trajectory
from .scoring import Fault, attempt


def main() -> None:
    """Answer until there are no more questions; then, or if the asking process is gone, end at once."""
    answers = os.fdopen(os.dup(1), "wb")  # not inherited by what the verifier starts
    os.dup2(2, 1)  # what the verifier prints is no answer
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, lines), daemon=True).start()
    verifier = None
    while True:
        question = json.loads(lines.get())
        answer: Any
        try:
            if verifier is None:
                verifier = plugins.load("verifier", question["name"], question["arguments"])
                answer = {}
            else:
                answer = _scored(verifier, question)
        except BaseException as error:  # the process is the verifier's own, and goes on
            reason = f"{type(error).__name__}: {error}"
            raised = {"cause": "verifier_raised", "reason": reason}
            answer = {"error": reason} if verifier is None else [raised] * len(question["trajectories"])
        answers.write(dumps(answer, sort=False).encode() + b"\n")
        answers.flush()


def _read(source: BinaryIO, lines: queue.SimpleQueue[bytes]) -> None:
    for line in source:
        lines.put(line)
    os._exit(0)  # also in the middle of a verifier that hangs


def _scored(verifier: Any, question: dict[str, Any]) -> list[dict[str, Any]]:
    trajectories = [Trajectory.from_dict(record) for record in question["trajectories"]]
    found = attempt(verifier, trajectories, question["seconds"])
    return [
        {"cause": answer.cause, "reason": answer.reason} if isinstance(answer, Fault) else {"scores": answer}
        for answer in found
    ]


if __name__ == "__main__":
    main()
