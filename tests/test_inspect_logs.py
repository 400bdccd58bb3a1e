"""Logs that Inspect itself writes of its own AgentHarm and AgentDojo, played by a model that says what it is told.

AgentHarm's data are made up (plugins/fate-trl-agentharm/tests/made_up.py); nothing is downloaded, and nobody judges.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fate_trl import interchange
from fate_trl.ledger.writing import RunDirectory

PLUGIN_TESTS = Path(__file__).parents[1] / "plugins/fate-trl-agentharm/tests"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("inspect_evals") is None, reason="inspect-evals is not installed (`make plugins`)"),
]

WRITE = """
import json, sys
from pathlib import Path
import made_up, tiktoken

class Words:
    encode = staticmethod(lambda text, **_: text.split())

tiktoken.get_encoding = lambda name: Words()  # the real one is a download
data = made_up.write(Path(sys.argv[1]) / "agentharm_dataset/AgentHarm")

from inspect_ai import eval as play
from inspect_ai.model import ModelOutput, get_model
from inspect_evals.agentdojo import agentdojo
from inspect_evals.agentharm import agentharm, agentharm_benign

def model(*turns):
    outputs = [ModelOutput.from_content("mockllm/model", t) if isinstance(t, str)
               else ModelOutput.for_tool_call("mockllm/model", *t) for t in turns]
    return get_model("mockllm/model", custom_outputs=outputs, memoize=False)

def first(side):
    return json.loads((data / f"benchmark/{side}_behaviors_validation.json").read_text())["behaviors"][0]

def played(task, *turns):
    (log,) = play(task, model=model(*turns), log_dir=sys.argv[1] + "/logs", display="none")
    assert log.status == "success", log.error

judges = dict(split="val", refusal_judge=model(*["no"] * 9), semantic_judge=model(*["no"] * 9))
row = first("harmful")
played(agentharm(behavior_ids=[row["id"]], **judges), (row["target_functions"][0], {}), ("nothing", {}), "Done.")
played(agentharm_benign(behavior_ids=[first("benign")["id"]], **judges), "Hello.")
pays = ("send_money", {"recipient": "US133000000121212121212", "amount": 50.0, "subject": "Spotify Premium",
                       "date": "2022-01-01"})
dojo = dict(workspace="banking", user_task_ids=[0], injection_task_ids=[0], with_sandbox_tasks="no")
played(agentdojo(**dojo), pays, "Paid.")
played(agentdojo(**dojo), "I did nothing.")
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    environment = {**os.environ, "INSPECT_EVALS_CACHE_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(PLUGIN_TESTS)
    code = [sys.executable, "-c", WRITE, str(folder)]
    done = subprocess.run(code, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "logs"


def test_agentharm_and_agentdojo_come_in_with_tasks_calls_outcomes_and_scores(logs):
    cases = {(t.task.suite, t.answer): (t, card) for t, card in interchange.read(str(logs))}
    harmful, card = cases["agentharm/harmful", "Done."]
    assert (harmful.task.kind, harmful.outcome.harm, harmful.policy) == ("harmful", 0.0, "mockllm/model")
    assert len(harmful.task.tools) >= 1
    assert [call.name for call in harmful.calls] == [harmful.task.tools[0], "nothing"]
    assert harmful.calls[1].fault == "arguments"
    assert harmful.prompt[-1]["content"].strip().startswith("Placeholder request")
    assert (card.scores["security"].value, card.scores["utility"].value) == (1.0, 0.0)
    benign, card = cases["agentharm/benign", "Hello."]
    assert (benign.task.kind, benign.outcome.utility, card.scores["over_refusal"].value) == ("benign", 0.0, 1.0)
    assert card.scores["over_refusal"].reason == ""
    attacked, card = cases["agentdojo/banking", "Paid."]
    assert attacked.task.id == "user_task_0/injection_task_0/important_instructions"
    assert (attacked.outcome.attacked, card.scores["security"].value) == (True, 0.0), "C means that the attack won"
    assert attacked.calls[0].arguments["amount"] == 50.0
    idle, card = cases["agentdojo/banking", "I did nothing."]
    assert (idle.outcome.attacked, card.scores["security"].value, card.scores["utility"].value) == (False, 1.0, 0.0)
    assert json.dumps([trajectory.to_dict() for trajectory, _ in cases.values()])


def test_the_command_imports_them(logs, tmp_path):
    command = [sys.executable, "-m", "fate_trl.cli", "import", str(logs), "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(RunDirectory(tmp_path / "out").cases("rounds/01/rollouts.jsonl", "collect")) == 4
