"""One behaviour, one verdict: AgentDojo's own logs, replayed in our suites, against what is rolled out here."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from case import case
from test_interchange import cli

if find_spec("fate_trl_agentdojo") is None:
    pytest.skip("fate-trl-agentdojo is not installed (`make plugins`)", allow_module_level=True)

from benchmarks.verdicts import SUITES, VERIFIERS, equal, log_of, rows, values
from fate_trl import interchange, plugins
from fate_trl.suites.scripted import perform
from fate_trl.types import RolloutRequest, Script
from fate_trl.verify.scoring import score_all

SECTION = "AgentDojo logs"


def check(found):
    assert found
    for row in found:
        assert row["result"], row
        assert "unmatched" not in row, row
        assert equal(row), row
        assert row["faults"], row
        assert row["exposed"], row
        assert row["upstream_utility"], row
        assert row["upstream_attack"], row


@case(
    SECTION, "the same script, rolled out here and run by AgentDojo", "two verdicts on some", "one, on every task tried"
)
def test_live_and_imported_verdicts_are_equal_on_a_sample():
    check(list(rows(("v1.2.2",), every=101)))


@pytest.mark.parametrize("version", ["v1", "v1.2"])
def test_live_and_imported_verdicts_are_equal_on_a_sample_of_older_versions(version):
    check(list(rows((version,), ("banking", "slack"), every=29)))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("suite", SUITES)
def test_live_and_imported_verdicts_are_equal_on_every_task(suite, part):
    check(list(rows(("v1.2.2",), (suite,), every=4, start=part)))


# ------------------------------------------------------------------------------------------------ arguments


@pytest.fixture(scope="module")
def banking():
    return plugins.load("suite", "agentdojo/banking", {})


def task_of(suite, identity):
    return next(task for task in suite.tasks("all", 0) if task.id == identity)


@pytest.mark.parametrize(
    ("name", "arguments", "fault", "control"),
    [
        pytest.param(
            "get_most_recent_transactions",
            {"n": "many"},
            "arguments",
            0.5,
            marks=case(
                SECTION, 'get_most_recent_transactions(n="many")', 'live "raised", imported "arguments"', "arguments"
            ),
        ),
        pytest.param(
            "get_balance",
            {"parameters": {}},
            "",
            1.0,
            marks=case(
                SECTION, "get_balance(parameters={})", "refused live, run by AgentDojo", "run, no fault, both ways"
            ),
        ),
        pytest.param(
            "send_money",
            {"recipient": "CH93", "amount": 1.0},
            "arguments",
            0.5,
            marks=case(SECTION, "send_money without subject and date", "another error live than imported", "arguments"),
        ),
        pytest.param(
            "get_most_recent_transactions",
            {"n": "3", "verbose": True},
            "",
            1.0,
            marks=case(
                SECTION, 'a number as a text and a surplus argument: (n="3", verbose=True)', "refused live", "run"
            ),
        ),
        pytest.param(
            "fly_home",
            {},
            "arguments",
            0.5,
            marks=case(SECTION, "a tool that there is none", "arguments", "arguments, both ways"),
        ),
        pytest.param(
            "read_file",
            {"file_path": "nothing.txt"},
            "",
            1.0,
            marks=case(
                SECTION, "a file that there is none", "no fault", "no fault, both ways: AgentDojo answers with nothing"
            ),
        ),
    ],
)
def test_one_rule_for_arguments(banking, tmp_path, name, arguments, fault, control):
    task = task_of(banking, "user_task_1")
    script = Script(({"name": name, "arguments": arguments}, {"name": "get_iban", "arguments": {}}), "Done.")
    live = perform(banking, RolloutRequest(task, task.messages, "collect"), script)
    found = interchange.match(interchange.read(log_of("banking", "v1.2.2", task, script, tmp_path)), [task], [task])
    ((imported, card),) = interchange.executed(found.cases, {task.suite: banking})
    assert [call.fault for call in live.calls] == [fault, ""]
    assert [call.fault for call in found.cases[0][0].calls] == [fault, ""], "the log alone says the same"
    assert [(call.result, call.fault) for call in imported.calls] == [(call.result, call.fault) for call in live.calls]
    assert values((imported, card)) == values((live, score_all(VERIFIERS, [live])[0]))
    assert values((imported, card))["trajectory_control"] == control


# ------------------------------------------------------------------------------------------------ the commands


@pytest.fixture(scope="module")
def logs(banking, tmp_path_factory):
    """Logs of AgentDojo: an attack that succeeds, the task done, nothing done where that passes, v1, and a stranger."""
    folder = tmp_path_factory.mktemp("logs")
    attacked = "user_task_0/injection_task_4/important_instructions"
    for identity, role in ((attacked, "obey"), ("user_task_1", "oracle"), ("user_task_8", None)):
        task = task_of(banking, identity)
        script = banking.script(task, role) if role else Script(answer="Done.")
        file = log_of("banking", "v1.2.2", task, script, folder / identity.replace("/", "-"))
        file.rename(folder / f"{identity.replace('/', '-')}.json")
    old = json.loads((folder / "user_task_1.json").read_text())
    (folder / "old.json").write_text(json.dumps({**old, "benchmark_version": "v1"}))
    (folder / "run_manifest.json").write_text("{}")
    (folder.parent / "banking.yaml").write_text(
        "model: {path: some/model}\nsuites: [agentdojo/banking]\n"
        "verifiers: [security, utility, over_refusal, trajectory_control]\n"
    )
    return folder


@case(
    SECTION,
    "`replay` of a folder of logs",
    "there was none",
    "calls executed again, versions told apart, the table shown",
)
def test_replay_scores_what_comes_of_the_calls(logs, tmp_path):
    shown = cli("replay", str(logs), "--recipe", str(logs.parent / "banking.yaml"), "-o", "out", cwd=tmp_path)
    assert "recorded with version v1 of its suite, the recipe has v1.2.2" in " ".join(shown.split())
    assert "3 replayed, 0 with other results, 2 left out" in shown
    metrics = {row["kind"]: row["metrics"] for row in json.loads((tmp_path / "out/metrics.json").read_text())["rows"]}
    assert metrics["attacked"]["asr"]["value"] == 1
    assert metrics["benign"]["benign_utility"]["value"] == 0.5, "doing nothing on user_task_8 is not doing it"
    assert metrics["benign"]["suite_agentdojo_utility"]["value"] == 1, "AgentDojo's own count, beside ours"
    cli("report", "out", cwd=tmp_path)
    assert "Nothing was evaluated yet" not in (tmp_path / "out/report.html").read_text()
    again = cli("replay", "out", "--recipe", str(logs.parent / "banking.yaml"), "-o", "again", cwd=tmp_path)
    assert "3 replayed, 0 with other results" in again


@case(
    SECTION, "a log whose check holds on the untouched state, with a recipe", "utility as logged", "utility by a replay"
)
def test_import_with_a_recipe_replays(logs, banking, tmp_path):
    task = task_of(banking, "user_task_8")
    found = interchange.match(interchange.read(logs / "user_task_8.json"), [task], [task])
    assert found.cases[0][1].scores["utility"].value == 1
    ((_, card),) = interchange.executed(found.cases, {task.suite: banking})
    assert card.scores["utility"].value == 0


def test_replay_needs_a_recipe(logs, tmp_path):
    assert "has no recipe.yaml" in cli("replay", str(logs / "user_task_1.json"), cwd=tmp_path, status=2)


def test_replay_says_where_calls_have_other_results(logs, tmp_path):
    log = json.loads(Path(logs / "user_task_1.json").read_text())
    result = next(message for message in log["messages"] if message["role"] == "tool")
    result["content"] = [{"type": "text", "content": "something else"}]
    (tmp_path / "log.json").write_text(json.dumps(log))
    assert "1 with other results" in cli(
        "replay", "log.json", "--recipe", str(logs.parent / "banking.yaml"), "-o", "out", cwd=tmp_path
    )
