"""The same calls give the same results in every process: guests out of a set, in an order of our own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from case import case

SCRIPT = """
import sys
from fate_trl import plugins
from fate_trl.suites.scripted import perform
from fate_trl.types import RolloutRequest, Script
suite = plugins.load("suite", "agentdojo/workspace", {"version": sys.argv[1]})
tasks = {task.id: task for task in suite.tasks("all", 0)}
for number in (4, 6, 9, 18, 20, 21):
    task = tasks[f"user_task_{number}"]
    print(perform(suite, RolloutRequest(task, task.messages), suite.script(task, "oracle")).to_dict())
task = tasks["user_task_1"]
guests = ["zoe@x.org", "ann@x.org", "emma.johnson@bluesparrowtech.com", "ann@x.org", "bob@x.org"]
event = {"title": "t", "start_time": "2024-06-01 10:00", "end_time": "2024-06-01 11:00", "participants": guests}
cancel = {"name": "cancel_calendar_event", "arguments": {"event_id": "27"}}
calls = ({"name": "create_calendar_event", "arguments": event}, cancel)
print(made := perform(suite, RolloutRequest(task, task.messages), Script(calls, "Done.")).calls)
print([line.strip("- ") for line in made[0].result.splitlines() if line.startswith("- ")], file=sys.stderr)
"""


def played(seeds: tuple[int, ...], version: str) -> list[tuple[str, str]]:
    """(what was printed, the event's guests) under each seed, at the same time."""
    code = [sys.executable, "-c", SCRIPT, version]
    environments = [{**os.environ, "PYTHONHASHSEED": str(seed)} for seed in seeds]
    running = [
        subprocess.Popen(code, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for env in environments
    ]
    done = [process.communicate(timeout=200) for process in running]
    assert [process.returncode for process in running] == [0] * len(seeds), done[0][1][-3000:]
    return [(out, err.splitlines()[-1]) for out, err in done]


@pytest.mark.parametrize(
    "version",
    [
        pytest.param(
            version,
            marks=[
                case(
                    "AgentDojo logs",
                    f"workspace {version}, calendar events under three hash seeds",
                    "other results by the seed: no replay after a restart",
                    "the same: guests in the call's order, the owner last",
                ),
                *marks,
            ],
        )
        for version, marks in (("v1.2.2", []), ("v1", [pytest.mark.slow]))
    ],
)
def test_results_do_not_depend_on_the_hash_seed(version: str) -> None:
    runs = played((0, 3, 4), version)
    assert len({out for out, _ in runs}) == 1
    guests = "['zoe@x.org', 'ann@x.org', 'bob@x.org', 'emma.johnson@bluesparrowtech.com']"
    assert {last for _, last in runs} == {guests}
