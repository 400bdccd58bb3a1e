"""The process of a verifier that asked for one: `python -m fate_trl.verify.isolated_main`, started by bounded.Process.

The first line names the verifier and its arguments; every other line holds trajectories. Each is answered by one line.
"""

from __future__ import annotations

from typing import Any

from .. import plugins
from ..process.answering import answer_lines
from ..types import Trajectory
from .scoring import Fault, attempt


class _Answering:
    """Makes the verifier of the first question, and asks it the others."""

    verifier: Any = None

    def __call__(self, question: dict[str, Any]) -> Any:
        try:
            if self.verifier is not None:
                return _scored(self.verifier, question)
            self.verifier = plugins.load("verifier", question["name"], question["arguments"])
            return {}
        except BaseException as error:  # the process is the verifier's own, and goes on
            reason = f"{type(error).__name__}: {error}"
            raised = {"cause": "verifier_raised", "reason": reason}
            return {"error": reason} if self.verifier is None else [raised] * len(question["trajectories"])


def _scored(verifier: Any, question: dict[str, Any]) -> list[dict[str, Any]]:
    trajectories = [Trajectory.from_dict(record) for record in question["trajectories"]]
    found = attempt(verifier, trajectories, question["seconds"])
    return [
        {"cause": answer.cause, "reason": answer.reason} if isinstance(answer, Fault) else {"scores": answer}
        for answer in found
    ]


if __name__ == "__main__":
    answer_lines(_Answering())
