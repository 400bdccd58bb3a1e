"""The family `methods`: verifiers that run something."""

from __future__ import annotations

from fate_trl import Component, hookimpl

from .log_ratio import LogRatio
from .program import Program

fate_trl_api = 1


@hookimpl
def fate_trl_verifiers() -> list[Component]:
    return [
        Component("program", Program, "the answer's program: is there one, does it run, is what it prints right"),
        Component("log-ratio", LogRatio, "how much likelier a policy that learned makes it than the one before"),
    ]
