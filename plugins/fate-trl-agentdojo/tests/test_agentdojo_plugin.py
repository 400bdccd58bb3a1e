"""What a recipe's author meets: names, arguments, errors, tools; and that nothing heavy is imported too early."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from fate_trl_agentdojo import Attack
from transformers.utils import get_json_schema

from fate_trl import plugins
from fate_trl.errors import RecipeError, SuiteError
from fate_trl.types import Task

NAMES = ("workspace", "banking", "slack", "travel")


def test_arguments_are_checked_before_agentdojo_is_imported():
    code = """
import sys
from fate_trl import plugins
from fate_trl.errors import RecipeError
component = plugins.find("suite", "agentdojo/banking")
plugins.bind(component.factory, {"version": "v1", "attacks": ["dos"], "tools": "needed", "fits": 4000}, "it")
for wrong in ({"version": "v9"}, {"attacks": ["shouting"]}, {"tools": "some"}, {"atacks": ["dos"]}):
    try:
        plugins.bind(component.factory, wrong, "it")
    except RecipeError:
        continue
    raise SystemExit(f"{wrong} was accepted")
print([name for name in ("agentdojo", "torch", "transformers", "openai") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_four_suites_are_registered():
    assert tuple(plugins.components("agentdojo", "suite")) == NAMES


@pytest.mark.parametrize(
    "options",
    [{"attacks": []}, {"test_attacks": []}, {"distractors": 2}, {"fits": 0}, {"calls": 0}, {"distractors": -1}],
)
def test_options_that_cannot_work_are_errors(load, options):
    with pytest.raises(SuiteError, match="agentdojo/banking"):
        load("banking", **options)


def test_unknown_splits_and_foreign_tasks_are_errors(load):
    suite = load("banking")
    with pytest.raises(SuiteError, match="train, validation, test and all"):
        list(suite.tasks("dev", 0))
    foreign = Task(id="x", suite="agentdojo/banking", kind="benign", messages=(), data={"user": "user_task_99"})
    with pytest.raises(SuiteError, match="no task"):
        suite.open(foreign)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_takes_every_tool_and_its_schema_is_agentdojos(load, name):
    from agentdojo.task_suite.load_suites import get_suite

    tools = load(name).tools()
    for function in get_suite("v1.2.2", name).tools:
        schema = get_json_schema(tools[function.name])["function"]
        theirs = function.parameters.model_json_schema()
        assert schema["name"] == function.name
        assert "return" not in schema
        assert list(schema["parameters"]["properties"]) == list(theirs["properties"])
        assert schema["parameters"].get("required", []) == theirs.get("required", [])
        assert all(text["description"] for text in schema["parameters"]["properties"].values())


def test_an_enum_parameter_becomes_choices(load):
    schema = get_json_schema(load("workspace").tools()["share_file"])["function"]
    assert schema["parameters"]["properties"]["permission"]["enum"] == ["r", "rw"]


def test_a_recipe_error_names_the_argument():
    with pytest.raises(RecipeError, match="version"):
        plugins.load("suite", "agentdojo/slack", {"version": "v2"})


def test_every_attack_on_offer_is_one_that_agentdojo_has(load):
    from agentdojo.attacks.attack_registry import ATTACKS

    assert set(get_args(Attack)) == set(ATTACKS) - {"manual"}


def test_the_readmes_recipes(load):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    snippet, with_rules = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    verifiers = [plugins.load("verifier", name) for name in yaml.safe_load(with_rules)["verifiers"]]
    assert [objective for verifier in verifiers for objective in verifier.objectives] == [
        "utility",
        "security",
        "rules",
    ]
    first, second = yaml.safe_load(snippet)["suites"]
    assert first == "agentdojo/banking"
    suite = plugins.load("suite", second["name"], second["args"])
    tasks = list(suite.tasks("train", 0))
    assert {task.kind for task in tasks} == {"benign", "attacked"}
    assert max(len(task.tools) for task in tasks) < len(suite.tools())
