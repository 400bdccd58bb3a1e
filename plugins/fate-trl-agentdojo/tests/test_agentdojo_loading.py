"""Environments are equal to AgentDojo's own, before and after the oracle's calls."""

from __future__ import annotations

from typing import Any

import pytest
from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement
from agentdojo.attacks import load_attack
from agentdojo.functions_runtime import FunctionsRuntime
from agentdojo.task_suite.load_suites import get_suite
from fate_trl_agentdojo.loading import template

NAMES = ("workspace", "banking", "slack", "travel")
STAMPS = ("timestamp", "last_modified")


class Target(BasePipelineElement):
    name = "local"

    def query(self, *args, **kwargs):
        raise NotImplementedError


def without_stamps(value: Any) -> Any:
    """AgentDojo stamps what tools make with the wall clock, we with the episode's; its guests come out of a set."""
    if isinstance(value, dict):
        kept = {key: without_stamps(item) for key, item in value.items() if key not in STAMPS}
        return kept | {key: sorted(value[key]) for key in kept if key == "participants"}
    return [without_stamps(item) for item in value] if isinstance(value, list) else value


def check_pair(suite, theirs, attack, task) -> None:
    """One pair: the same injected text, the same state before, and after the user's ground truth."""
    user = theirs.user_tasks[task.data["user"]]
    injection = theirs.injection_tasks[task.data.get("injection") or next(iter(theirs.injection_tasks))]
    expected = user.init_environment(theirs.load_and_inject_default_environment(attack.attack(user, injection)))
    episode = suite.open(task)
    assert episode.environment == expected, task.id
    assert episode.environment.model_dump() == expected.model_dump(), task.id
    runtime = FunctionsRuntime(theirs.tools)
    for call in user.ground_truth(expected):
        runtime.run_function(expected, call.function, call.args, raise_on_error=True)
        episode.execute(call.function, call.args)
    assert without_stamps(episode.environment.model_dump()) == without_stamps(expected.model_dump()), task.id


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", ["v1", "v1.1.1", "v1.2.2"])
def test_default_environment(name, version):
    theirs = get_suite(version, name).load_and_inject_default_environment({})
    ours = template(version, name).load({})
    assert ours == theirs
    assert ours.model_dump() == theirs.model_dump()


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_of_pairs(load, name):
    suite, theirs = load(name), get_suite("v1.2.2", name)
    attack = load_attack("important_instructions", theirs, Target())
    pairs = [task for task in suite.tasks("all", 0) if task.kind == "attacked"]
    for task in pairs[:12]:
        check_pair(suite, theirs, attack, task)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attack", ["important_instructions", "tool_knowledge", "injecagent", "captcha_dos"])
def test_all_pairs(load, name, attack):
    suite, theirs = load(name, attacks=[attack]), get_suite("v1.2.2", name)
    upstream = load_attack(attack, theirs, Target())
    pairs = [task for task in suite.tasks("all", 0) if task.kind == "attacked"]
    goals = 1 if upstream.is_dos_attack else len(theirs.injection_tasks)
    assert len(pairs) == len(theirs.user_tasks) * goals
    for task in pairs:
        check_pair(suite, theirs, upstream, task)


def test_text_that_yaml_reads_its_own_way():
    """Folded line breaks, escapes, single quotes, colons, hashes, and the double quote that ends a scalar."""
    theirs, ours = get_suite("v1.2.2", "banking"), template("v1.2.2", "banking")
    for text in ("a\nb\n\n\nc", "tab\\tand \\u00e9", "it's: # no - comment", "trailing  \n  ", "\n\n\n<X>\n", "ünï"):
        injections = {"injection_landloard_notice": text, "injection_incoming_transaction": text}
        assert ours.load(injections) == theirs.load_and_inject_default_environment(injections), repr(text)
    quoted = {"injection_landloard_notice": 'say "yes"'}
    with pytest.raises(Exception) as their_error:
        theirs.load_and_inject_default_environment(quoted)
    with pytest.raises(type(their_error.value)):
        ours.load(quoted)
    with pytest.raises(ValueError, match="subset"):
        ours.load({"no_such_vector": "x"})


def test_copies_are_independent():
    ours = template("v1.2.2", "workspace")
    one, other = ours.load({}), ours.load({})
    one.inbox.delete_email("1")
    one.cloud_drive.append_to_file("3", "more")
    assert other == ours.load({})
    assert one != other


def test_a_file_keeps_its_place_in_list_and_index():
    injected = template("v1.2.2", "workspace").load({"drive_recipe_injection": "x" * 1000})
    drive = injected.cloud_drive
    assert all(drive.files[file.id_] is file and file.size == len(file.content) for file in drive.initial_files)
