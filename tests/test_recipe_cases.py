"""Recipes and commands as people write them: what is wrong is said at once, with its place and what to do."""

import json
import os
import subprocess
import sys

import pytest
from case import case
from typer.testing import CliRunner

from fate_trl import plugins
from fate_trl.cli import app
from fate_trl.cli.progress import Lines
from fate_trl.errors import FateError, RecipeError
from fate_trl.recipe.loading import load_recipe
from fate_trl.recipe.pfpo_checks import check_pfpo
from fate_trl.recipe.schema import Model, hub_id

TRL_YAML = """\
model_name_or_path: Qwen/Qwen3-0.6B
dataset_name: trl-lib/tldr
learning_rate: 1.0e-5
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
num_generations: 8
gradient_checkpointing: true
max_completion_length: 128
suites: [workbench]
"""


@pytest.fixture
def refused(tmp_path):
    """What is said of a recipe's text; the lines of the error."""

    def say(text, *sets):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        with pytest.raises(RecipeError) as error:
            load_recipe(file, sets)
        return str(error.value).replace(str(tmp_path) + "/", "").splitlines()

    return say


@case(
    "recipes",
    "a public YAML of TRL's GRPO script, as it is",
    "its keys were refused one at a time: 7 to 19 rounds",
    "all at once, each with file and line and the section that takes it",
)
def test_all_keys_of_a_trl_yaml_are_refused_at_once(refused):
    lines = refused(TRL_YAML)
    assert [line.split(":")[1] for line in lines] == [str(number) for number in range(1, 9)]
    assert all(line.startswith("mine.yaml:") for line in lines)
    assert "model.path" in lines[0]
    assert "suites" in lines[1]
    assert "put it under sft or warm_start or distillation or preference or pfpo" in lines[2]
    assert "put it under pfpo" in lines[5]


@case("recipes", "learning_rate at the top of a recipe", "no word of sft and pfpo", "both are named")
def test_a_key_of_trls_is_pointed_to_its_sections(refused):
    (line,) = refused("suites: [workbench]\nlearning_rate: 1e-5\n")
    assert line.startswith("mine.yaml:2: unknown recipe key 'learning_rate': that is a key of TRL's; put it under sft")
    assert line.endswith("pfpo.")


def test_all_wrong_keys_of_the_sections_are_told_at_once(refused):
    text = "suites: [workbench]\npfpo:\n  learning_rat: 1.0e-5\n  seed: 3\n  beta: high\nsft:\n  max_lenght: 4\n"
    lines = refused(text)
    assert [line.partition(": ")[0] for line in sorted(lines)] == [f"mine.yaml:{number}" for number in (3, 4, 5, 7)]


def test_what_was_set_on_the_command_line_has_no_line(refused):
    assert refused("suites: [workbench]\nrounds: 1\n", "rounds=many")[0].startswith("rounds: ")
    assert refused("suites: [workbench]\nrounds: many\n")[0].startswith("mine.yaml:2: rounds: ")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        pytest.param(
            text,
            key,
            lines,
            marks=case("recipes", f"the key {key} twice", "the second one held, silently", "refused, with both lines"),
        )
        for text, key, lines in [
            ("suites: [workbench]\nrounds: 1\nrounds: 2\n", "rounds", "2 and 3"),
            ("suites: [workbench]\npfpo:\n  beta: 0.1\n  temperature: 1\n  beta: 0.2\n", "beta", "3 and 5"),
            ("suites:\n- {name: workbench, args: {train: 4, train: 5}}\n", "train", "2 and 2"),
        ]
    ],
)
def test_a_key_that_stands_twice_is_refused(refused, text, key, lines):
    assert refused(text) == [f"mine.yaml: the key {key!r} stands twice, in lines {lines}; drop one."]


@pytest.mark.parametrize("word", ["yes", "on", "true", "no"])
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=case("recipes", f"`{key}: yes`", "taken as 1.0", "refused: a number is wanted"))
        for key in (
            "repair.anchors",
            "rollout.temperature",
            "rounds",
            "token_budget",
            "pfpo.learning_rate",
            "sft.max_steps",
        )
    ],
)
def test_a_word_of_truth_is_no_number(refused, key, word):
    (line,) = refused("suites: [workbench]\n", f"{key}={word}")
    assert key in line
    assert "YAML" in line


def test_a_word_of_truth_is_no_number_of_a_component_either():
    with pytest.raises(RecipeError, match="it is a number"):
        plugins.load("verifier", "ensemble", {"members": ["utility", "utility"], "penalty": True, "quorum": 1}) and (
            plugins.load("suite", "workbench", {"train": True})
        )
    assert plugins.load("selector", "pareto-front", {})


@pytest.mark.parametrize("path", ["gpt2", "distilgpt2", "openai-community/gpt2"])
@case("recipes", "model.path: gpt2", "no hub id", "the hub id that it is")
def test_hub_ids_without_an_owner(path):
    assert hub_id(Model(path=path)) == path


@pytest.mark.parametrize("path", ["./gpt2", "embedded", "a/b/c", "runs/../gpt2", "-x"])
def test_what_is_no_hub_id(path):
    assert hub_id(Model(path=path)) is None


@case("recipes", "two verifiers of one objective", "the error named neither", "it names both")
def test_a_clash_of_objectives_names_both_verifiers(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "suites: [workbench]\nverifiers: [security, {name: ensemble, args: {members: [security, security]}}]\n"
    )
    with pytest.raises(FateError, match="'security' is produced by security and by ensemble; name only one"):
        load_recipe(tmp_path / "mine.yaml")


# ------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize("name", ["security", "utility", "over-refusal", "politeness"])
@case(
    "command line",
    "`new-plugin security`, whose objective is a built-in's",
    "the suggested line could not work: two verifiers of one objective",
    "the suggested line leaves the built-in out",
)
def test_the_line_that_new_plugin_suggests_works(tmp_path, name):
    shown = CliRunner().invoke(app, ["new-plugin", name, "--dir", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    command = shown.output.splitlines()[-1]
    inner = command.partition("verifiers=[")[2].rpartition("]")[0].split(", ")
    file = next((tmp_path / f"fate-trl-{name}").glob("*.py"))
    (tmp_path / "mine.yaml").write_text(json.dumps({"suites": ["workbench"], "verifiers": [*inner[:-1], str(file)]}))
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert inner[-1] == f"{name}/{name}"
    assert len(recipe.verifiers) == (4 if name != "politeness" else 5)


@case(
    "command line",
    "the contract suite on a verifier that needs an argument",
    "3 passed, 11 skipped, exit status 0",
    "not passed, and the line says what to give",
)
def test_a_plugin_that_was_not_checked_has_not_passed(tmp_path):
    (tmp_path / "judge.py").write_text(
        "from fate_trl import Component, Score, hookimpl\n"
        "class Judge:\n"
        "    objectives = ('calm',)\n"
        "    def __init__(self, model: str):\n"
        "        self.model = model\n"
        "    def score(self, trajectories):\n"
        "        return [{'calm': Score(float(bool(t.calls)))} for t in trajectories]\n"
        "@hookimpl\n"
        "def fate_trl_verifiers():\n"
        "    return [Component('judge', Judge, 'needs a model')]\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "fate_trl.testing.contract"]
    done = subprocess.run(
        [*command, "--fate-plugin", str(tmp_path / "judge.py")],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1, done.stdout
    assert 'verifier judge was not checked: it needs --fate-args \'{"judge": {"model": "…"}}\'' in done.stdout


@case(
    "command line",
    "the lines of a run while scripted policies are played",
    "they read like one's own model",
    "they say baseline",
)
def test_the_lines_name_baselines_as_such(capsys):
    from rich.console import Console

    lines = Lines(Console(force_terminal=False, width=100))
    for stage in ("eval-test", "eval-test-oracle", "eval-test-do-nothing", "eval-test-base"):
        lines.start(0, stage, 3)
        lines.finish({"stage": stage, "round": 0, "seconds": 1.0, "trajectories": 3})
    shown = capsys.readouterr().out.splitlines()
    assert ["baseline: oracle" in line for line in shown] == [False, True, False, False]
    assert "baseline: do-nothing" in shown[2]
    assert "eval-test " in shown[0]


@case(
    "command line",
    "`check` of a GPU recipe where the hub cannot be reached",
    "nothing but that was said",
    "combinations, tasks, batches and licences are checked all the same, and the model is named as what was not",
)
def test_a_recipe_is_checked_without_its_model(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fate_trl", "check", "quickstart", "--set", "model.path=nobody/nothing", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
    )
    found = json.loads(done.stdout)
    checks = [finding["check"] for finding in found["findings"]]
    assert {"combinations", "tasks", "batches", "licence: workbench"} <= set(checks)
    assert found["findings"][-1]["verdict"] == "error"
    assert "nobody/nothing is not in the hub's cache" in found["findings"][-1]["reason"]
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["pfpo.beta=.nan"], "pfpo.beta is nan; numbers are finite."),
        (["sft.learning_rate=.inf"], "sft.learning_rate is inf; numbers are finite."),
        (["preference.loss_weights=[.nan]"], "preference.loss_weights is [nan]; numbers are finite."),
        (
            ["repair.selector={name: weighted-sum, args: {weights: {utility: .nan}}}"],
            "argument 'weights' is {'utility': nan}; numbers are finite.",
        ),
        (["merge={name: soup, args: {weights: [.inf, 1]}}"], "merge 'soup', argument 'weights' is [inf, 1]"),
        (["pfpo.beta=-0.1"], "pfpo.beta is -0.1; it is 0, for no KL term, or above."),
        (["pfpo.reference=start", "pfpo.beta=-0.1"], "pfpo.beta is -0.1"),
    ],
)
def test_a_number_that_is_none_is_refused_wherever_it_stands(sets, said):
    with pytest.raises(RecipeError) as error:
        load_recipe("quickstart", sets)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["pfpo.reference=soup", "pfpo.beta=0.1"], "leave pfpo.reference out"),
        (["pfpo.beta=0"], "set pfpo.beta above 0"),
        (["pfpo.beta=0.1", "model.lora={}"], "leave model.lora out"),
    ],
)
def test_a_reference_that_follows_the_policy_is_refused_where_it_cannot(sets, said):
    with pytest.raises(RecipeError, match=r"pfpo\.sync_ref_model .*or leave pfpo\.sync_ref_model out") as error:
        load_recipe("quickstart", ["pfpo.sync_ref_model=true", *sets])
    assert said in str(error.value)


@pytest.mark.parametrize("key", ["pfpo.reference", "preference.loss", "selector", "repair.budget"])
def test_what_is_no_component_is_told_that_a_name_will_do(key):
    with pytest.raises(RecipeError, match=rf"{key}: Input should be a name, or a mapping of name and args, not 3"):
        load_recipe("quickstart", [f"{key}=3"])


def test_an_engine_that_samples_all_alike_is_named_wherever_it_stands():
    class Greedy:
        greedy_row = True

    for section in ("rollout", "pfpo"):
        recipe = load_recipe("quickstart", [f"{section}.use_vllm=true"])
        with pytest.raises(RecipeError, match="with use_vllm all rows are sampled alike: leave use_vllm out"):
            check_pfpo(recipe, None, [], Greedy(), ["utility"])


@pytest.mark.parametrize("sets", [["merge"], ["pfpo.reference", "pfpo.beta=0.1"], ["preference.reference"]])
def test_a_soup_of_more_policies_than_round_1_has_is_refused_before_it(sets):
    def soup(weights):
        return [f"{sets[0]}={{name: soup, args: {{weights: {weights}}}}}", *sets[1:]]

    assert load_recipe("quickstart", soup([2, 1]))
    with pytest.raises(RecipeError, match=rf"{sets[0]}: 3 weights, and in round 1 there are two policies"):
        load_recipe("quickstart", soup([2, 1, 1]))
