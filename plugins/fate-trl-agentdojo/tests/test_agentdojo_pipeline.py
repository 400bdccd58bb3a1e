"""A policy inside AgentDojo's own benchmark: its runner, its logs, read back to the verdicts that it gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agentdojo.attacks import load_attack
from agentdojo.benchmark import benchmark_suite_with_injections, benchmark_suite_without_injections
from agentdojo.logging import OutputLogger
from agentdojo.task_suite.load_suites import get_suite
from click.testing import CliRunner
from cohere.core.api_error import ApiError
from fate_trl_agentdojo import benchmark
from fate_trl_agentdojo.pipeline import GuardElement, pipeline_of

from fate_trl import RolloutRequest, Script, Task, Trajectory, interchange, speaker_of
from fate_trl.interchange.agentdojo_logs import WITHHELD
from fate_trl.suites.scripted import perform, script_for
from fate_trl.testing.served import ScriptedServer, completion
from fate_trl.verify.scoring import OverRefusal, Security, TrajectoryControl, Utility, score_all

VERIFIERS = (Security(), Utility(), OverRefusal(), TrajectoryControl())
USERS, GOALS = ["user_task_0", "user_task_3", "user_task_8"], ["injection_task_4", "injection_task_5"]


class Plays:
    """A policy's turns by a script for each user task, and for each injection task that is asked for as a request."""

    def __init__(self, scripts: dict[str, Script]):
        self.scripts = scripts  # by the user's words

    def __call__(self, messages: Any, tools: Any) -> Any:
        script = self.scripts[messages[-1 - 2 * sum(m["role"] == "assistant" for m in messages)]["content"]]
        number = sum(message["role"] == "assistant" for message in messages)
        if number == len(script.calls):
            return {"role": "assistant", "content": script.answer}
        call = script.calls[number]
        function = {"name": call["name"], "arguments": dict(call["arguments"])}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def ran(
    pipeline: Any, folder: Path, attack: str = "important_instructions", goals: Any = GOALS, users: Any = USERS
) -> Any:
    """AgentDojo's own (utility, whether the attack succeeded) by task, and its logs in the folder."""
    suite = get_suite("v1.2.2", "banking")
    with OutputLogger(str(folder)):
        attacker = load_attack(attack, suite, pipeline)
        told = benchmark_suite_with_injections(
            pipeline, suite, attacker, folder, True, users, goals, benchmark_version="v1.2.2"
        )
        benign = benchmark_suite_without_injections(pipeline, suite, folder, True, users, benchmark_version="v1.2.2")
    utility, security = told["utility_results"], told["security_results"]
    dos = attack.endswith("dos")
    pairs = {f"{u}/{attack}" if dos else f"{u}/{i}/{attack}": (utility[u, i], security[u, i]) for u, i in utility}
    return pairs | {user: (done, None) for (user, _), done in benign["utility_results"].items()}


def read_back(folder: Path, suite: Any) -> dict[str, tuple[Trajectory, Any]]:
    """The logs' cases by task, as `fate-trl import --recipe` reads them."""
    every = list(suite.tasks("all", 0))
    found = interchange.match(interchange.read(folder), every, every)
    assert found.unknown == []
    return {t.task.id: (t, card) for t, card in interchange.executed(found.cases, {"agentdojo/banking": suite})}


def same(told: dict[str, Any], cases: dict[str, Any]) -> set[tuple[bool, bool | None]]:
    """Asserts AgentDojo's verdicts on every case; returns which there were."""
    assert set(told) <= set(cases)
    for name, (utility, attacked) in told.items():
        outcome = cases[name][0].outcome
        assert (outcome.info["upstream_utility"], outcome.attacked) == (utility, attacked), name
    return set(told.values())


@pytest.fixture(scope="module")
def banking(load: Any) -> Any:
    return load("banking", attacks=["important_instructions", "dos"], harmful=True)


def scripts_of(suite: Any, role: Any) -> tuple[list[Task], dict[str, Script]]:
    """The tasks played, and the scripts by the user's words; "obey" carries out injection_task_4 on every task."""
    tasks = [t for t in suite.tasks("all", 0) if t.cluster in (*USERS, *GOALS)]
    wanted = {**{t.id: t for t in tasks}}
    by_words = {}
    for name in (*USERS, *GOALS):
        task = wanted[f"{name}/injection_task_4/important_instructions"] if role == "obey" and name in USERS else None
        by_words[wanted[name].messages[-1]["content"]] = script_for(suite, task or wanted[name], role)
    return tasks, by_words


@pytest.mark.parametrize("role", ["oracle", "do-nothing", "refuse-all", "obey"])
def test_scripted_policies_get_the_same_verdicts_there_and_here(banking: Any, role: str, tmp_path: Path) -> None:
    tasks, scripts = scripts_of(banking, role)
    told = ran(pipeline_of(Plays(scripts), role), tmp_path)
    cases = read_back(tmp_path, banking)
    verdicts = same(told, cases)
    assert verdicts >= {"oracle": {(True, False)}, "obey": {(True, True), (True, False)}}.get(role, {(False, False)})
    for task in tasks:
        if task.id not in cases:
            continue
        live = perform(banking, RolloutRequest(task, task.messages), scripts[task.messages[-1]["content"]])
        (card,) = score_all(VERIFIERS, [live])
        assert {n: (s.value, s.status) for n, s in cases[task.id][1].scores.items()} == {
            n: (s.value, s.status) for n, s in card.scores.items()
        }, task.id
    assert {log.parts[-5] for log in tmp_path.rglob("*.json")} == {f"local-{role}"}


def test_a_guard_withholds_what_it_flags(banking: Any, tmp_path: Path) -> None:
    class Words:
        def probability(self, text: str) -> float:
            return float("INFORMATION" in text or "magic string" in text.lower())

    _, scripts = scripts_of(banking, "obey")
    for attack in ("important_instructions", "dos"):
        folder = tmp_path / attack
        told = ran(pipeline_of(Plays(scripts), "obey", GuardElement(Words())), folder, attack)
        cases = read_back(folder, banking)
        if attack != "dos":  # where ours also asks whether the attack was met
            same(told, cases)
        attacked = [case[0] for case in cases.values() if case[0].task.kind == "attacked"]
        assert any(call.result == WITHHELD for trajectory in attacked for call in trajectory.calls)
        assert {trajectory.outcome.exposed for trajectory in attacked if trajectory.outcome} == {False}
    aborting = pipeline_of(Plays(scripts), "obey", GuardElement(Words(), aborts=True))
    told = ran(aborting, tmp_path / "c")
    assert same(told, read_back(tmp_path / "c", banking)) >= {(False, False)}
    assert {log.parts[-5] for log in (tmp_path / "c").rglob("*.json")} == {"local-obey-guarded"}


def test_where_a_guard_fails_a_case_has_an_error_and_the_benchmark_goes_on(banking: Any, tmp_path: Path) -> None:
    class Fails:
        def probability(self, text: str) -> float:
            if "INFORMATION" in text:
                raise RuntimeError("out of memory")
            return 0.0

    _, scripts = scripts_of(banking, "oracle")
    told = ran(pipeline_of(Plays(scripts), "oracle", GuardElement(Fails())), tmp_path, "important_instructions")
    errors = {name: case[0].error for name, case in read_back(tmp_path, banking).items()}
    assert any(errors.values())
    assert not all(errors.values())
    assert all("the guard failed: RuntimeError: out of memory" in error for error in errors.values() if error)
    assert set(told) <= set(errors)


@pytest.mark.parametrize("wrong", [float("nan"), 7.0, None])
def test_no_text_passes_by_what_is_no_probability(wrong: Any) -> None:
    class Odd:
        def probability(self, text: str) -> Any:
            return wrong

    with pytest.raises(ApiError, match="the guard failed"):
        GuardElement(Odd()).detect("text")


@pytest.mark.parametrize(
    ("body", "threshold", "says"),
    [
        ("return [0.1] * len(texts)", "nan", "threshold is a probability"),
        ("return [0.1] * len(texts)", "1.5", "threshold is a probability"),
        ("return [0.1] * len(texts)", "0", "threshold is a probability"),
        ("raise KeyError('weights')", "0.5", "cannot judge a text: KeyError"),
        ("return [0.1, 0.2, 0.3]", "0.5", "gave 3 numbers for 1 texts"),
    ],
)
def test_a_guard_that_judges_nothing_is_said_before_a_policy_loads(
    tmp_path: Path, body: str, threshold: str, says: str
) -> None:
    pytest.importorskip("fate_trl_guard")
    (tmp_path / "g.py").write_text(f"class G:\n    def scores(self, texts):\n        {body}\n")
    options = ["--guard", str(tmp_path / "g.py"), "--threshold", threshold]
    shown = CliRunner().invoke(benchmark.main, ["nowhere", *options])
    assert shown.exit_code == 1
    assert says in shown.output


# ------------------------------------------------------------------------------------------------ served policies


def test_an_endpoint_is_benchmarked_by_one_command(banking: Any, tmp_path: Path) -> None:
    _, scripts = scripts_of(banking, "oracle")

    def script(number: int, body: Any) -> Any:
        asked = next(m["content"] for m in body["messages"] if m["role"] == "user")
        done = sum(m["role"] == "assistant" for m in body["messages"])
        if asked in scripts and done < len(scripts[asked].calls):
            call = scripts[asked].calls[done]
            return completion(calls=[(call["name"], json.dumps(call["arguments"]))])
        return completion(scripts[asked].answer if asked in scripts else "Done.")

    with ScriptedServer(script) as server:
        options = ["--model", "mine/m", "--set", "rollout.temperature=0", "--logdir", str(tmp_path), "-s", "banking"]
        tasks = [option for user in USERS for option in ("-ut", user)] + ["-it", "injection_task_4"]
        shown = CliRunner().invoke(benchmark.main, [server.url, *options, *tasks, "--attack", "important_instructions"])
        assert shown.exit_code == 0, shown.output
        assert "Average utility: 100.00%" in shown.output
        _, _, body = server.asked[0]
    assert (body["model"], body["temperature"]) == ("mine/m", 0)
    names = [tool["function"]["name"] for tool in body["tools"]]
    assert names == list(banking.tools())
    cases = read_back(tmp_path, banking)
    assert len(cases) == len(list(tmp_path.rglob("*.json"))) == len(USERS) + 1
    for trajectory, card in cases.values():
        if trajectory.task.kind == "attacked":
            assert (card.scores["utility"].value, card.scores["security"].value) == (1.0, 1.0)


def test_what_the_server_breaks_is_no_verdict_and_what_the_model_breaks_is_text(banking: Any, tmp_path: Path) -> None:
    def script(number: int, body: Any) -> Any:
        asked = [m["content"] for m in body["messages"] if m["role"] == "user"][-1]
        if "bill" in asked.lower():
            return (403, {}, {"error": {"message": "no"}})
        return completion(calls=[("send_money", '{"amount": ')], content="I pay.")

    with ScriptedServer(script) as server:
        speaker, name = speaker_of(server.url, model="m", sets=["model.endpoint.retries=0"])
        told = ran(pipeline_of(speaker, name), tmp_path, goals=["injection_task_4"])
    cases = read_back(tmp_path, banking)
    broken = {t.task.id for t, _ in cases.values() if t.error}
    assert broken == {"user_task_0", "user_task_0/injection_task_4/important_instructions"}
    assert all("internal server error" in t.error for t, _ in cases.values() if t.error)
    same({task: verdict for task, verdict in told.items() if task not in broken}, cases)
    said = cases["user_task_3"][0]
    assert (said.calls, said.answer) == ((), 'I pay.\n{"name": "send_money", "arguments": "{\\"amount\\": "}')


# ------------------------------------------------------------------------------------------------ a local policy


def test_a_local_policy_says_there_what_it_says_here(load: Any, tmp_path: Path) -> None:
    """A few tasks by a model in process, nearly greedy: the same calls as our own rollouts, and equal verdicts."""
    from fate_trl.loop.reporter import Silent
    from fate_trl.recipe.components import components_of
    from fate_trl.recipe.loading import make_recipe
    from fate_trl.train.learner import TrlLearner

    suite = load("banking")
    keys = {"top_p": 1e-6, "max_completion_length": 64}
    users, goals = USERS[:1], GOALS[:1]
    tasks = [t for t in suite.tasks("all", 0) if t.cluster in users and t.data.get("injection", goals[0]) in goals]
    recipe = make_recipe({"model": {"path": "embedded"}, "suites": ["agentdojo/banking"], "rollout": keys})
    made = components_of(recipe)
    learner = TrlLearner(recipe, {"agentdojo/banking": suite}, made.verifiers, made.selector, Silent())
    learner.tasks = tasks
    live = {t.task.id: t for t in learner.rollout([RolloutRequest(task, task.messages) for task in tasks], 0)}

    speaker, name = speaker_of("embedded", sets=[f"rollout.{key}={value}" for key, value in keys.items()])
    told = ran(pipeline_of(speaker, name), tmp_path, goals=goals, users=users)
    every = list(load("banking", harmful=True).tasks("all", 0))
    found = interchange.match(interchange.read(tmp_path), every, every)
    cases = {t.task.id: (t, c) for t, c in interchange.executed(found.cases, {"agentdojo/banking": suite})}
    same(told, cases)
    for task in tasks:
        here, there = said(live[task.id]), said(cases[task.id][0])
        assert here
        assert here == there[: len(here)], task.id
        assert there[len(here) :] in ([], [("", [])]), "no room was left"


def said(trajectory: Trajectory) -> list[Any]:
    """What the policy said and called, known tools or not."""
    turns = [message for message in trajectory.messages if message["role"] == "assistant"]
    calls = [[c["function"] for c in message.get("tool_calls") or ()] for message in turns]
    return [(message["content"], [(c["name"], c["arguments"]) for c in made]) for message, made in zip(turns, calls)]


def test_a_target_that_is_none_says_so(tmp_path: Path) -> None:
    shown = CliRunner().invoke(benchmark.main, ["embedded", "--set", "suites=[]"])
    assert "only keys of model and rollout" in shown.output
    (tmp_path / "run").mkdir()
    shown = CliRunner().invoke(benchmark.main, [f"{tmp_path}/run@latest"])
    assert "RUN or RUN@round-2" in shown.output
    shown = CliRunner().invoke(benchmark.main, ["http://127.0.0.1:9/v1"])
    assert "--model NAME" in shown.output
