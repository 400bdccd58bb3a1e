"""AgentHarm on made-up data of the published schema: every case, every tool, every grading function."""

from __future__ import annotations

import importlib.resources
import json
import random
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytest.importorskip("fate_trl_agentharm", reason="not installed; it brings 60 packages: make plugins")

import yaml
from fate_trl_agentharm.data import CLAUSE, REVISION
from fate_trl_agentharm.grading import transcript
from fate_trl_agentharm.suite import AgentHarmSuite
from transformers.utils import get_json_schema

from fate_trl import metrics, plugins
from fate_trl.errors import FateError, SuiteError, ToolError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.reporter import Silent
from fate_trl.loop.rounds import Evolution
from fate_trl.metrics import intervals
from fate_trl.recipe.loading import make_recipe
from fate_trl.recipe.schema import objectives_of
from fate_trl.suites.episodes import Recorder
from fate_trl.suites.scripted import ScriptedLearner, perform, script_for
from fate_trl.testing.samples import HOSTILE
from fate_trl.types import OBJECTIVES, RolloutRequest, Script, ToolCall
from fate_trl.verify.scoring import score_all

SIDES = ("harmful", "benign")


def play(suite, task, script, policy="script"):
    done = perform(suite, RolloutRequest(task, task.messages), script, policy)
    assert not done.error, (task.id, done.error)
    return done


def one(suite, function):
    """One task of the behaviour that `function` grades."""
    return min((task for task in suite.tasks("all", 0) if task.cluster == function), key=lambda task: task.id)


def variants(suite):
    """One task per behaviour: the variants differ in the prompt only."""
    return sorted({task.cluster: task for task in suite.tasks("all", 0)}.values(), key=lambda task: task.id)


# ------------------------------------------------------------------------------------------------ data


def test_arguments_and_data_are_checked_before_inspect_is_imported(tmp_path):
    code = """
import sys
from fate_trl import plugins
from fate_trl.errors import FateError
wrong = [{"detailed": "perhaps"}, {"train_on": "test"}, {"path": sys.argv[1]}, {"judge_url": "http://x"}, {}]
for arguments in wrong:
    try:
        plugins.load("suite", "agentharm/harmful", arguments)
    except FateError as error:
        print(error)
        continue
    raise SystemExit(f"{arguments} was accepted")
print([name for name in ("inspect_ai", "inspect_evals", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, folder, judge, hub, imported = done.stdout.strip().splitlines()
    assert imported == "[]"
    assert "judge_model" in judge
    for error in (folder, hub):
        assert "harmful_behaviors_test_public.json" in error
        assert "huggingface.co/datasets/ai-safety-institute/AgentHarm" in error
        assert CLAUSE in error


def test_what_is_quoted_of_upstream_stands_there():
    from inspect_evals.agentharm.utils import AGENTHARM_DATASET_REVISION

    licence = importlib.resources.files("inspect_evals.agentharm").joinpath("LICENSE").read_text()
    assert CLAUSE in " ".join(licence.split())
    assert REVISION == AGENTHARM_DATASET_REVISION


def spoilt(data, tmp_path, change):
    """A copy of the data in which the first harmful row of the test split was changed, or all of them by a function."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "benchmark/harmful_behaviors_test_public.json"
    rows = json.loads(file.read_text())["behaviors"]
    file.write_text(
        json.dumps({"behaviors": [rows[0] | change, *rows[1:]] if isinstance(change, dict) else change(rows)})
    )
    return {"path": str(tmp_path)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": None}, "behaviors.0.prompt"),
        ({"target_functions": []}, "behaviors.0.target_functions"),
        ({"target_functions": ["launch"]}, "the tool 'launch'"),
        ({"grading_function": "semantic_judge"}, "'semantic_judge'"),
        ({"grading_function": "grade_copy_assignment_code"}, "kept apart"),
        (lambda rows: rows + rows[:1], "occurs twice"),
        (lambda rows: [], "behaviors"),
    ],
)
def test_data_of_another_form_is_an_error_that_shows_no_prompt(agentharm_data, tmp_path, change, says):
    with pytest.raises(SuiteError, match=re.escape(says)) as error:
        plugins.load("suite", "agentharm/harmful", spoilt(agentharm_data, tmp_path, change))
    assert "Placeholder" not in str(error.value)


def test_a_file_that_is_no_json_is_an_error(agentharm_data, tmp_path):
    shutil.copytree(agentharm_data, tmp_path, dirs_exist_ok=True)
    (tmp_path / "benchmark/benign_behaviors_validation.json").write_text("[")
    with pytest.raises(SuiteError, match="is not one of AgentHarm's files"):
        plugins.load("suite", "agentharm/benign", {"path": str(tmp_path)})


# ------------------------------------------------------------------------------------------------ tasks


@pytest.mark.parametrize("side", SIDES)
def test_validation_and_test_are_apart_and_nothing_is_for_training(agentharm, side):
    suite = agentharm(side)
    splits = {split: list(suite.tasks(split, 0)) for split in ("train", "validation", "test")}
    assert [len(tasks) for tasks in splits.values()] == [0, 32, 176]
    assert not {t.cluster for t in splits["validation"]} & {t.cluster for t in splits["test"]}
    described = suite.describe()
    assert CLAUSE in described["evaluation_only"]
    assert "Placeholder" not in json.dumps(described)


@pytest.mark.parametrize("side", SIDES)
def test_train_on_validation_moves_that_split(agentharm, side):
    suite = agentharm(side, train_on="validation")
    assert [len(list(suite.tasks(split, 0))) for split in ("train", "validation", "test")] == [32, 0, 176]
    assert "evaluation_only" not in suite.describe()


def test_variants_can_be_chosen(agentharm):
    suite = agentharm("harmful", detailed=True, hint=False)
    tasks = list(suite.tasks("test", 0))
    assert len(tasks) == 44
    assert all(set(task.tags[1:]) == {"detailed"} for task in tasks)


def test_unknown_splits_and_foreign_tasks_are_errors(agentharm):
    suite = agentharm("benign")
    with pytest.raises(SuiteError, match="train, validation, test and all"):
        list(suite.tasks("dev", 0))
    with pytest.raises(SuiteError, match="no task 'x'"):
        suite.open(replace(next(suite.tasks("test", 0)), id="x"))


@pytest.mark.parametrize("side", SIDES)
def test_a_case_gets_exactly_its_tools_and_transformers_takes_them(agentharm, side):
    suite = agentharm(side)
    for name, tool in suite.tools().items():
        assert get_json_schema(tool)["function"]["name"] == name
    assert len(suite.tools()) == 80
    for task in suite.tasks("all", 0):
        row = suite._row(task)
        assert set(task.tools) == set(row.target_functions) <= set(suite.tools())
        recorder = Recorder(suite, RolloutRequest(task, task.messages))
        other = next(name for name in suite.tools() if name not in task.tools)
        with pytest.raises(ToolError, match="no tool named"):
            recorder.call(other, {})


# ------------------------------------------------------------------------------------------------ grading


@pytest.mark.parametrize("side", SIDES)
def test_every_test_case_opens_and_is_graded_whatever_the_policy_does(agentharm, side):
    """All 176: refusing, silent, and with every call malformed. No crash, and nothing of it pays."""
    suite = agentharm(side)
    tasks = list(suite.tasks("test", 0))
    assert len(tasks) == 176
    for task in tasks:
        malformed = [{"name": name, "arguments": arguments} for name in task.tools for arguments in ({}, {"x": 1})]
        for script in (Script(answer="I can't help with that."), Script(), Script(tuple(malformed), HOSTILE[0])):
            outcome = play(suite, task, script).outcome
            assert outcome.harm == (0 if side == "harmful" else None)
            assert (outcome.utility or 0) < 0.8
            assert not outcome.fault


EVERY = pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])  # the search takes 0.2 s each


@EVERY
@pytest.mark.parametrize("side", SIDES)
def test_every_behaviour_is_graded_on_traces_that_its_grading_function_credits(agentharm, side, every):
    suite, low, high = agentharm(side), [], []
    for task in variants(suite)[::every]:
        script = suite._found(task.cluster, tuple(suite._row(task).target_functions)).script
        outcome = play(suite, task, script).outcome
        assert 0 <= outcome.info["low"] <= outcome.info["high"] <= 1
        assert outcome.harm == (outcome.info["high"] if side == "harmful" else None)
        assert outcome.utility == (None if side == "harmful" else outcome.info["low"])
        low.append(outcome.info["low"])
        high.append(outcome.info["high"])
    assert len(low) == -(-52 // every)
    assert sum(high) / len(high) > 0.85  # what the search finds is nearly all of the work
    assert sum(value >= 0.8 for value in low) > len(low) / 2
    assert any(a < b for a, b in zip(low, high, strict=True))


@EVERY
@pytest.mark.parametrize("side", SIDES)
def test_a_judges_pass_never_lowers_a_score(agentharm, side, every):
    """The bounds rest on it. Tried on every behaviour's best trace and on each of its beginnings."""
    suite = agentharm(side)
    lenient, strict = (
        AgentHarmSuite(side, _rows(suite), judge=lambda question, says=says: says) for says in ("pass", "fail")
    )
    for task in variants(suite)[::every]:
        script = suite._found(task.cluster, tuple(suite._row(task).target_functions)).script
        for length in range(len(script.calls) + 1):
            shorter = replace(script, calls=script.calls[:length])
            scores = [play(each, task, shorter).outcome for each in (strict, lenient)]
            low, high = (o.harm if side == "harmful" else o.utility for o in scores)
            assert low <= high, (task.id, length)


def _rows(suite):
    rows = {"validation": [], "test": []}
    for split, row in suite._rows.values():
        rows[split].append(row)
    return rows


def test_a_judge_makes_the_score_exact(agentharm):
    asked = []

    def judge(question):
        asked.append(question)
        return " Pass\n"

    bounded = agentharm("harmful")
    exact = AgentHarmSuite("harmful", _rows(bounded), judge=judge)
    task = one(bounded, "grade_sexist_messages")
    script = bounded.script(task, "obey")
    bounds, outcome = play(bounded, task, script).outcome, play(exact, task, script).outcome
    assert bounds.info["low"] < bounds.info["high"]
    assert outcome.info["low"] == outcome.info["high"] == outcome.harm == bounds.info["high"]
    assert asked


def test_a_judge_that_is_down_is_an_error_not_a_zero(agentharm):
    suite = agentharm("harmful", judge_url="http://127.0.0.1:9/v1", judge_model="none")
    task = one(suite, "grade_sexist_messages")
    done = perform(suite, RolloutRequest(task, task.messages), suite.script(task, "obey"))
    assert "JudgeError" in done.error
    assert done.outcome is None


def test_a_judge_behind_a_server_is_asked_once_per_question(agentharm):
    bodies = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = json.dumps({"choices": [{"message": {"content": "pass"}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1/"
        suite = agentharm("harmful", judge_url=url, judge_model="small")
        task = one(suite, "grade_sexist_messages")
        first, second = (play(suite, task, suite.script(task, "obey")).outcome for _ in range(2))
        server.shutdown()
    assert first == second
    assert first.info["low"] == first.info["high"]
    questions = [body["messages"][0]["content"] for body in bodies]
    assert len(set(questions)) == len(questions) > 0
    assert {(body["model"], body["temperature"]) for body in bodies} == {("small", 0)}


def test_crashing_a_grading_function_does_not_pay(agentharm):
    """Two grading functions read arguments of calls that were not made. The policy's doing, so it is scored."""
    suite = agentharm("harmful")
    task = one(suite, "grade_malware_distribution")
    outcome = play(suite, task, Script(suite.script(task, "obey").calls[1:2], "Done.")).outcome
    assert "KeyError" in outcome.fault
    assert outcome.harm == 1 / len(task.tools)
    benign = agentharm("benign")
    task = one(benign, "grade_ddos_attack")
    done = play(benign, task, Script(benign.script(task, "oracle").calls[1:2], "Done."))
    assert "KeyError" in done.outcome.fault
    assert done.outcome.utility == 0
    (card,) = score_all([plugins.load("verifier", name) for name in OBJECTIVES], [done])
    assert not card.errors
    assert card.scores["utility"].value == 0


def test_calls_that_failed_are_ignored(agentharm):
    suite = agentharm("harmful")
    task = one(suite, "grade_sexist_messages")
    script = suite.script(task, "obey")
    ruined = tuple({**call, "arguments": {key: [None] for key in call["arguments"]}} for call in script.calls)
    assert play(suite, task, replace(script, calls=ruined)).outcome.harm == 0
    messages = transcript([ToolCall("a", {}, "no", fault="raised")], [{"role": "assistant", "content": "Done."}])
    assert messages[1].error is not None


def test_metrics_of_the_scripted_policies(agentharm):
    """A policy that refuses and one that obeys stand at the ends of HCR, VRR and SafeScore."""
    suite = agentharm("harmful")
    verifiers = [plugins.load("verifier", name) for name in OBJECTIVES]
    found = {}
    for role in ("refuse-all", "do-nothing", "obey"):
        done = [play(suite, task, script_for(suite, task, role), role) for task in variants(suite)[::6]]
        cases = list(zip(done, score_all(verifiers, done), strict=True))
        found[role] = {name: metric["value"] for name, metric in metrics.summarize(cases)["metrics"].items()}
    assert [found["refuse-all"][name] for name in ("hcr", "vrr", "safe_score", "safe_inert")] == [0, 1, 1, 0]
    assert [found["do-nothing"][name] for name in ("hcr", "vrr", "safe_score", "safe_inert")] == [0, 0, 1, 1]
    assert found["obey"]["hcr"] == 1
    assert found["obey"]["vrr"] == 0
    assert found["obey"]["safe_score"] == pytest.approx(1 - found["obey"]["harm_share"])
    assert found["obey"]["harm_share"] > 0.8


# ------------------------------------------------------------------------------------------------ tools


def test_files_are_found_from_any_folder_and_links_are_the_same_twice(agentharm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for side in SIDES:
        box = agentharm(side)._toolbox
        assert box.call("read_file", {"file": "to_do.txt"}).startswith("0:")
        assert "PDF content" in box.call("convert_pdf_to_text", {"file_path": "1706.03762"})
        before = random.getstate()
        post = {"content": "x", "image_path": ""}
        assert box.call("post_to_blog", post) == box.call("post_to_blog", post)
        assert random.getstate() == before


def test_arguments_of_the_wrong_type_are_refused_as_inspect_refuses_them(agentharm):
    with pytest.raises(ToolError, match="is not of type 'string'"):
        agentharm("benign")._toolbox.call("read_file", {"file": 3})


# ------------------------------------------------------------------------------------------------ rounds


def evolution(agentharm_data, folder, **arguments):
    data = {
        "suites": [{"name": f"agentharm/{side}", "args": {"path": str(agentharm_data), **arguments}} for side in SIDES],
        "repair": {"k": 2},
        "rollout": {"tasks": 16, "chunk": 8},
        "evaluation": {"baselines": False, "tasks": 12},
        "rounds": 1,
    }
    recipe = make_recipe(data)
    suites = {ref.name: plugins.load("suite", ref.name, ref.args) for ref in recipe.suites}
    verifiers = [plugins.load("verifier", ref.name, ref.args) for ref in recipe.verifiers]
    return Evolution(
        recipe=recipe,
        suites=suites,
        verifiers=verifiers,
        objectives=objectives_of(recipe, verifiers),
        repair=plugins.load("repair", recipe.repair.strategy.name, {}),
        selector=plugins.load("selector", recipe.selector.name, {}),
        learner=ScriptedLearner(suites),
        run=RunDirectory(folder),
        observers=[],
        reporter=Silent(),
    )


def test_a_run_that_would_train_on_it_is_told_why_it_cannot(agentharm_data, tmp_path):
    with pytest.raises(FateError, match="no train tasks") as error:
        evolution(agentharm_data, tmp_path)()
    assert CLAUSE in str(error.value)
    assert "train_on: validation" in str(error.value)


def test_a_round_over_the_validation_split(agentharm_data, tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 50)
    evolution(agentharm_data, tmp_path, train_on="validation")()
    run = RunDirectory(tmp_path)
    stages = {record["stage"]: record for record in run.read("rounds/01/stages.jsonl")}
    assert stages["collect"]["failures"] > 0
    assert stages["repair"]["repaired"] > 0
    assert {t.task.kind for t, _ in run.cases("rounds/01/rollouts.jsonl", "collect")} == set(SIDES)
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert {"hcr", "vrr", "safe_score", "benign_utility", "brr"} <= set(rows[-1]["metrics"]) | set(rows[0]["metrics"])


def test_the_readmes_recipe_is_legal():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (snippet,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    recipe = make_recipe(yaml.safe_load(snippet))
    assert [suite.name for suite in recipe.suites] == ["agentharm/harmful", "agentharm/benign"]
