"""One behaviour, one verdict: what is rolled out here, and what AgentDojo ran and logged, get the same scores.

    python benchmarks/verdicts.py [docs/results/verdicts] [--version v1.2.2 --version v1] [--suite banking] [--every 1]

Every task of AgentDojo's suites is played twice by the same script, no model: here, and by AgentDojo's own runner with
a pipeline element that makes the script's calls. Its log is then imported and replayed in our suite. The four scores
of both must be equal. Beside them: AgentDojo's own utility and security, and what its log alone would have given.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fate_trl import interchange, plugins
from fate_trl.metrics import wilson
from fate_trl.suites.scripted import perform
from fate_trl.types import OBJECTIVES, Case, RolloutRequest, Script, Task
from fate_trl.verify.scoring import OverRefusal, Security, TrajectoryControl, Utility, score_all

SUITES = ("workspace", "banking", "slack", "travel")
ATTACKS = ("important_instructions", "dos")
REFUSAL = "I'm sorry, but I can't help with that."
VERIFIERS = (Security(), Utility(), OverRefusal(), TrajectoryControl())


# ------------------------------------------------------------------------------------------------ behaviours


def odd_calls(suite: Any) -> tuple[dict[str, Any], ...]:
    """Calls that fit no tool, or hardly: surplus, missing and wrong arguments, lists as texts, a tool there is none."""
    fields = {tool.name: tool.parameters.model_fields for tool in suite._suite.tools}
    required = {name: [key for key, field in of.items() if field.is_required()] for name, of in fields.items()}
    free = next(name for name, keys in required.items() if not keys)
    bound = next(name for name, keys in required.items() if keys)
    calls = [(free, {"parameters": {}}), (bound, {}), (bound, {key: [[1]] for key in required[bound]}), ("fly", {})]
    for name, of in fields.items():
        for key, field in of.items():
            if field.annotation is int and required[name] in ([], [key]):
                calls += [(name, {key: "many"}), (name, {key: "3"})]
            if field.annotation == list[str] and required[name] == [key]:
                calls.append((name, {key: "['A', 'B']"}))
    return tuple({"name": name, "arguments": arguments} for name, arguments in calls[:8])


def behaviours(suite: Any, task: Task) -> dict[str, Script]:
    """The scripts that a task is played with, by name; one that the suite has no script for is left out."""
    oracle, obey = suite.script(task, "oracle"), suite.script(task, "obey")
    odd = odd_calls(suite)
    scripts = {"oracle": oracle, "obeys": obey, "refuses": Script(answer=REFUSAL), "idle": Script(answer="Done.")}
    scripts["odd calls, then refuses"] = Script(odd, REFUSAL)
    scripts["a loop"] = Script(odd[:1] * 4, "Done.")
    if oracle:
        scripts["odd calls, then the task"] = Script(odd + oracle.calls, oracle.answer)
        scripts["no answer"] = Script(oracle.calls, "")
        scripts["half, then declines"] = Script(oracle.calls[: len(oracle.calls) // 2], REFUSAL)
    return {name: script for name, script in scripts.items() if script}


# ------------------------------------------------------------------------------------------------ AgentDojo's side


def pipeline(script: Script) -> Any:
    """AgentDojo's pipeline element that makes the script's calls, each executed by AgentDojo's own executor."""
    from agentdojo.agent_pipeline.agent_pipeline import load_system_message
    from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement
    from agentdojo.agent_pipeline.tool_execution import ToolsExecutor
    from agentdojo.functions_runtime import FunctionCall
    from agentdojo.logging import Logger
    from agentdojo.types import text_content_block_from_string as block

    class Scripted(BasePipelineElement):
        name = "local"

        def query(self, query: str, runtime: Any, env: Any = None, messages: Any = (), extra_args: Any = None) -> Any:
            said: list[Any] = [{"role": "system", "content": [block(load_system_message("default"))]}]
            said.append({"role": "user", "content": [block(query)]})
            for number, call in enumerate(script.calls):
                made = FunctionCall(function=call["name"], args=dict(call["arguments"]), id=f"call_{number}")
                said.append({"role": "assistant", "content": [block("")], "tool_calls": [made]})
                _, _, env, said, _ = ToolsExecutor().query(query, runtime, env, said)
            said = [*said, {"role": "assistant", "content": [block(script.answer)], "tool_calls": None}]
            Logger.get().log(said)
            return query, runtime, env, said, {}

    return Scripted()


@cache
def _candidates(suite: str, version: str, user: str) -> Any:
    from agentdojo.attacks import load_attack
    from agentdojo.task_suite.load_suites import get_suite

    theirs = get_suite(version, suite)
    return load_attack("direct", theirs, pipeline(Script())).get_injection_candidates(theirs.user_tasks[user])


def log_of(suite: str, version: str, task: Task, script: Script, folder: Path) -> Path | None:
    """The log that AgentDojo's own runner writes of the script on a task; None if it wrote none."""
    from agentdojo.attacks import load_attack
    from agentdojo.benchmark import run_task_with_injection_tasks, run_task_without_injection_tasks
    from agentdojo.logging import OutputLogger
    from agentdojo.task_suite.load_suites import get_suite

    theirs, policy = get_suite(version, suite), pipeline(script)
    user, goal, attack = (task.data.get(key) for key in ("user", "injection", "attack"))
    for old in folder.rglob("*.json"):
        old.unlink()
    with OutputLogger(str(folder)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if attack:
                attacker = load_attack(attack, theirs, policy)
                attacker.get_injection_candidates = lambda of: _candidates(suite, version, of.ID)  # type: ignore[method-assign]
                wanted = [goal] if goal else None
                run_task_with_injection_tasks(
                    theirs, policy, theirs.user_tasks[user], attacker, folder, True, wanted, version
                )
            else:
                of = theirs.user_tasks[user] if user else theirs.injection_tasks[goal]
                run_task_without_injection_tasks(theirs, policy, of, folder, True, version)
        except Exception:
            pass  # a grader of AgentDojo's raised: its log stays without a result
    return next(folder.rglob("*.json"), None)


# ------------------------------------------------------------------------------------------------ the comparison


def values(case: Case) -> dict[str, float | str]:
    return {name: s.value if s.value is not None else s.status for name, s in case[1].scores.items()}


def compared(suite: Any, name: str, version: str, task: Task, script: Script, folder: Path) -> dict[str, Any]:
    """One task, played both ways: the scores of either, and what AgentDojo said."""
    live = perform(suite, RolloutRequest(task, task.messages, "collect"), script)
    here = (live, score_all(VERIFIERS, [live])[0])
    file = log_of(name, version, task, script, folder)
    if file is None:
        return {"result": False}
    log = json.loads(file.read_text(encoding="utf-8"))
    found = interchange.match(interchange.read(file), [task], [task])
    if found.unknown:
        return {"result": True, "live": values(here), "unmatched": found.unknown[0]}
    ((recorded, card),) = found.cases
    if recorded.error:
        return {"result": False}
    (there,) = interchange.executed(found.cases, {task.suite: suite})
    mine = there[0].outcome
    upstream = mine.info.get("upstream_utility") if mine else None
    return {
        "result": True,
        "live": values(here),
        "imported": values(there),
        "recorded": values((recorded, card)),
        "faults": [call.fault for call in live.calls] == [call.fault for call in there[0].calls],
        "exposed": mine is not None and live.outcome is not None and mine.exposed == live.outcome.exposed,
        "upstream_utility": upstream is None or bool(upstream) == log["utility"],
        "upstream_attack": mine is None
        or mine.attacked is None
        or not task.data.get("injection")
        or mine.attacked == log["security"],
    }


def rows(
    versions: Sequence[str] = ("v1.2.2",), suites: Sequence[str] = SUITES, every: int = 1, start: int = 0
) -> Iterator[dict[str, Any]]:
    """A row per task, played with one behaviour, all of them in turn; `every` nth task, from `start` on."""
    with tempfile.TemporaryDirectory() as folder:
        for version in versions:
            for name in suites:
                args = {"version": version, "attacks": list(ATTACKS), "harmful": True}
                suite = plugins.load("suite", f"agentdojo/{name}", args)
                tasks = sorted(suite.tasks("all", 0), key=lambda task: (task.kind, len(task.id), task.id))
                for number, task in list(enumerate(tasks))[start::every]:
                    scripts = list(behaviours(suite, task).items())
                    behaviour, script = scripts[number % len(scripts)]
                    row = compared(suite, name, version, task, script, Path(folder))
                    kind = "dos" if task.id.endswith("/dos") else task.kind
                    yield {
                        "version": version,
                        "suite": name,
                        "task": task.id,
                        "kind": kind,
                        "behaviour": behaviour,
                        **row,
                    }


def equal(row: dict[str, Any], way: str = "imported") -> bool:
    return row.get(way) == row["live"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--version", action="append")
    parser.add_argument("--suite", action="append")
    parser.add_argument("--every", type=int, default=1)
    asked = parser.parse_args()
    found = list(rows(asked.version or ("v1.2.2", "v1"), asked.suite or SUITES, asked.every))
    table = tabled(found)
    print("\n".join(table))
    unequal = [row for row in found if row["result"] and not equal(row)]
    for row in unequal[:20]:
        print(json.dumps(row))
    if asked.output:
        counts = summary(found)
        asked.output.with_suffix(".json").write_text(json.dumps({"rows": counts, "unequal": unequal}, indent=1) + "\n")
        asked.output.with_suffix(".md").write_text(
            PAGE.format(table="\n".join(table), behaviours=by(found, "behaviour"))
        )


def summary(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts by version, suite and kind of task."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault((row["version"], row["suite"], row["kind"]), []).append(row)
    return [
        {"version": version, "suite": suite, "kind": kind, **counts(members)}
        for (version, suite, kind), members in groups.items()
    ]


def counts(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    told = [row for row in members if row["result"]]
    same = {name: sum(row["live"][name] == row.get("imported", {}).get(name) for row in told) for name in OBJECTIVES}
    return {
        "tasks": len(members),
        "without a result": len(members) - len(told),
        "compared": len(told),
        "equal": sum(map(equal, told)),
        **same,
        "faults": sum(row.get("faults", False) for row in told),
        "exposed": sum(row.get("exposed", False) for row in told),
        "as AgentDojo: utility": sum(row.get("upstream_utility", False) for row in told),
        "as AgentDojo: attack": sum(row.get("upstream_attack", False) for row in told),
        "from the log alone": sum(equal(row, "recorded") for row in told),
    }


def tabled(found: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| version | suite | kind | tasks | no result | equal | faults | exposed | AgentDojo's utility | its attacks "
        "| log alone |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    total: Counter[str] = Counter()
    for row in summary(found):
        numbers = {key: value for key, value in row.items() if isinstance(value, int)}
        total.update(numbers)
        lines.append(_line(f"{row['version']} | {row['suite']} | {row['kind']}", numbers))
    return [*lines, _line("all | | ", total)]


def _line(head: str, n: dict[str, int]) -> str:
    low, high = wilson(n["equal"] / n["compared"], n["compared"]) if n["compared"] else (0.0, 1.0)
    cells = [n["tasks"], n["without a result"], f"{n['equal']} of {n['compared']} [{100 * low:.1f}, {100 * high:.1f}]"]
    cells += [
        n[key] for key in ("faults", "exposed", "as AgentDojo: utility", "as AgentDojo: attack", "from the log alone")
    ]
    return f"| {head} | {' | '.join(map(str, cells))} |"


def by(found: Sequence[dict[str, Any]], key: str) -> str:
    names = sorted({row[key] for row in found})
    lines = [f"| {key} | compared | equal | log alone |", "|---|---:|---:|---:|"]
    for name in names:
        n = counts([row for row in found if row[key] == name])
        lines.append(f"| {name} | {n['compared']} | {n['equal']} | {n['from the log alone']} |")
    return "\n".join(lines)


PAGE = """# One behaviour, one verdict

    python benchmarks/verdicts.py docs/results/verdicts

Claim: a trajectory gets the same four scores whether it is rolled out here, or run and logged by AgentDojo 0.1.35 and
imported with `fate-trl import --recipe` or `fate-trl replay`.

Each task is played by a script, once in our suite and once by AgentDojo's own runner, executor, graders and logger. Its
log is imported, and its calls are replayed in our suite. All tasks of each version are played: user tasks, injection
tasks as requests, every pair under `important_instructions`, and every user task under `dos`; the behaviours below in
turn.

{table}

*no result*: a grader of AgentDojo's raised, so its log has neither utility nor security; such a log is an
infrastructure error on import. *equal*: security, utility, over_refusal and trajectory_control are all the same, with
Wilson's 95 % interval in percent. *faults*, *exposed*: the calls' faults, and whether the injection was met, are the
same. *AgentDojo's utility*, *its attacks*: our count of its own check equals what its log says. *log alone*: the four
scores would be equal without a replay, from what the log says.

## By behaviour

{behaviours}

*Odd calls* are a surplus argument, missing ones, values of another type, a number and a list written as texts, and a
tool that there is none. What the log alone tells otherwise is utility on the tasks whose check holds on the untouched
state, where ours also asks for the ground truth's calls.
"""


if __name__ == "__main__":
    main()
