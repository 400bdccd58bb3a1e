"""Suites are made once per session: importing AgentDojo takes seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

# As in CI: nothing here may ask the network for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from fate_trl import plugins
from fate_trl.errors import ToolError
from fate_trl.record import dumps
from fate_trl.suites.episodes import Recorder
from fate_trl.types import Outcome, RolloutRequest, Script, Task

NAMES = ("workspace", "banking", "slack", "travel")


@cache
def _load(name: str, options: str) -> Any:
    import json

    return plugins.load("suite", f"agentdojo/{name}", json.loads(options))


@pytest.fixture(scope="session")
def load() -> Callable[..., Any]:
    """load(name, **options): a suite, as a recipe would get it."""
    return lambda name, **options: _load(name, dumps(options))


@pytest.fixture(scope="session")
def play() -> Callable[[Any, Task, Script], tuple[Outcome, Recorder]]:
    """play(suite, task, script): the script's outcome, and the recorder that ran it."""

    def run(suite: Any, task: Task, script: Script) -> tuple[Outcome, Recorder]:
        recorder = Recorder(suite, RolloutRequest(task=task, messages=task.messages))
        for call in script.calls:
            try:
                recorder.call(call["name"], call["arguments"])
            except ToolError:
                continue  # a policy reads the error and goes on
        outcome = recorder.outcome([{"role": "assistant", "content": script.answer}])
        assert not recorder.error, (task.id, recorder.error)
        assert outcome is not None
        return outcome, recorder

    return run
