"""All 24 cases: opened, played by scripts, and scored as the benchmark's own scorer scores the same dialogue."""

import asyncio
import json
from collections import Counter

import pytest

pytest.importorskip("inspect_evals.agent_threat_bench")
pytest.importorskip(
    "fate_trl_agent_threat_bench", reason="not installed: pip install plugins/fate-trl-agent-threat-bench"
)

from fate_trl_agent_threat_bench import TASKS

from fate_trl import plugins
from fate_trl.errors import SuiteError
from fate_trl.suites.checking import check_suite
from fate_trl.types import Task

SUITES = {name: plugins.load("suite", f"agent-threat-bench/{name}") for name in TASKS}
CASES = [(name, task) for name, suite in SUITES.items() for task in suite.tasks("test", 0)]


def test_there_are_24_cases_and_three_are_baselines_without_an_attack():
    assert Counter(name for name, _ in CASES) == {"memory_poison": 10, "autonomy_hijack": 6, "data_exfil": 8}
    assert sum(task.kind == "benign" for _, task in CASES) == 3
    assert all(list(suite.tasks(split, 0)) == [] for suite in SUITES.values() for split in ("train", "validation"))


@pytest.mark.parametrize("name", TASKS)
def test_the_suite_has_no_defect(name):
    found = check_suite(SUITES[name])
    assert not found["defects"]
    assert found["roles"]["oracle"]["attacked"]["resolved"] == found["tasks"]["attacked"]
    assert found["roles"]["do-nothing"]["attacked"]["resolved"] == 0
    json.dumps(SUITES[name].describe())
    assert "evaluation_only" in SUITES[name].describe()


@pytest.mark.parametrize(("name", "task"), CASES, ids=[task.id for _, task in CASES])
@pytest.mark.parametrize("role", ["oracle", "obey", "nothing"])
def test_verdicts_are_the_benchmarks_own(name, task, role):
    """The same calls and answer in a TaskState as Inspect itself would have it."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelName, ModelOutput
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState
    from inspect_ai.tool import ToolCall
    from inspect_evals.agent_threat_bench.dataset import load_agent_threat_bench_dataset
    from inspect_evals.agent_threat_bench.scorer import agent_threat_bench_scorer

    suite = SUITES[name]
    script = None if role == "nothing" else suite.script(task, role)
    if role == "obey" and script is None:
        assert task.kind == "benign"
        return
    calls, answer = (script.calls, script.answer) if script else ((), "")
    episode = suite.open(task)
    results = [episode.execute(call["name"], call["arguments"]) for call in calls]
    made = tuple(_call(call, result) for call, result in zip(calls, results, strict=True))
    outcome = episode.outcome(made, ({"role": "assistant", "content": answer},))

    sample = next(s for s in load_agent_threat_bench_dataset(task_name=name) if s.id == task.id)
    said = [ChatMessageUser(content=sample.input)]
    said += [
        ChatMessageAssistant(content="", tool_calls=[ToolCall(id=str(i), function=c["name"], arguments=c["arguments"])])
        for i, c in enumerate(calls)
    ]
    state = TaskState(
        model=ModelName("mockllm/model"),
        sample_id=task.id,
        epoch=1,
        input=sample.input,
        messages=said,
        metadata=sample.metadata,
        output=ModelOutput.from_content("m", answer),
    )
    theirs = asyncio.run(agent_threat_bench_scorer()(state, Target(""))).value
    assert outcome.utility == (theirs["utility"] == "C")
    if task.kind == "attacked":
        assert outcome.attacked == (theirs["security"] == "I")
        assert outcome.exposed == (role != "nothing")
    expected = {"oracle": ("C", "C"), "obey": ("C", "I"), "nothing": ("I", "C")}[role]
    assert (theirs["utility"], theirs["security"]) == expected


def _call(call, result):
    from fate_trl.types import ToolCall

    return ToolCall(call["name"], call["arguments"], result)


def test_episodes_share_no_state():
    task = next(task for task in SUITES["memory_poison"].tasks("test", 0))
    one, other = SUITES["memory_poison"].open(task), SUITES["memory_poison"].open(task)
    one.execute("memory_write", {"key": "new", "value": "text"})
    assert one.execute("memory_read", {"key": "new"}) == "text"
    assert "No entry" in other.execute("memory_read", {"key": "new"})


def test_what_never_ran_is_not_scored():
    from fate_trl.types import ToolCall

    task = next(task for task in SUITES["data_exfil"].tasks("test", 0))
    leak = SUITES["data_exfil"].script(task, "obey").calls[-1]
    refused = ToolCall(leak["name"], leak["arguments"], "refused", fault="arguments")
    assert SUITES["data_exfil"].open(task).outcome((refused,), ()).attacked is False


def test_a_task_of_another_suite_is_refused():
    with pytest.raises(SuiteError, match="has no task 'x'"):
        SUITES["data_exfil"].open(Task("x", "s", "benign", ()))
    with pytest.raises(SuiteError, match="has no split 'dev'"):
        list(SUITES["data_exfil"].tasks("dev", 0))
