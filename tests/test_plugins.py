"""Plugins as their authors and users meet them: installed by pip, as one file, and in every way that goes wrong."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import third_party
import yaml
from scripted_run import run

from fate_trl import plugins
from fate_trl.errors import FateError, PluginError, RecipeError
from fate_trl.hookspecs import API_VERSION, Component
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.recipe.loading import load_recipe, load_with_components, make_recipe

PLUGINS = Path(__file__).parent / "plugins"
SMALL = {
    "suites": [{"name": "workbench", "args": {"train": 12, "validation": 6, "test": 12}}],
    "rounds": 1,
    "repair": {"k": 2},
    "evaluation": {"baselines": False},
}


def write_recipe(folder, *verifiers):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "verifiers": ["security", "utility", *verifiers]}))
    return path


# ------------------------------------------------------------------------------------------------ installed by pip


@pytest.fixture(scope="module")
def thrifty(tmp_path_factory):
    """The python of an environment of its own, with the plugin built and installed in it."""
    folder = tmp_path_factory.mktemp("third-party")
    python = third_party.environment(folder)
    third_party.install(python, shutil.copytree(PLUGINS / "fate-trl-thrift", folder / "source"))
    assert (third_party.packages(python) / "fate_trl_thrift.py").is_file()
    return python


def printed(python, *arguments, cwd, status=0, **environment):
    done = subprocess.run(
        [python, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def test_an_installed_plugin_is_used_by_name_in_a_round(thrifty, tmp_path):
    """Its objective is scored with the recipe's argument, and its observer is called; torch stays out of it."""
    recipe = write_recipe(tmp_path, {"name": "thrift/brief", "args": {"words": 4}})
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from scripted_run import run
rows, _ = run({str(recipe)!r}, "run")
print(json.dumps([rows, sys.modules["fate_trl_thrift"].ROUNDS, "torch" in sys.modules]))
"""
    rows, observed, torch = json.loads(printed(thrifty, "-c", code, cwd=tmp_path))
    assert {row["round"] for row in rows} == {0, 1}
    assert observed == [1]
    assert not torch
    records = [json.loads(line) for line in (tmp_path / "run/rounds/01/rollouts.jsonl").read_text().splitlines()]
    brevity = {
        record["trajectory"]["messages"][-1]["content"]: record["card"]["scores"]["brevity"]["value"]
        for record in records
    }
    assert brevity["Done."] == 1.0
    assert brevity["I can't help with that."] == 0.8  # 4 of its 5 words
    rows = [json.loads(line) for line in (tmp_path / "run/rounds/01/selections.jsonl").read_text().splitlines()]
    assert any("brevity" in row["failed"] for row in rows)


def test_an_installed_plugin_passes_the_contract_suite_from_the_command_line(thrifty, tmp_path):
    arguments = ("-m", "pytest", "--pyargs", "fate_trl.testing.contract", "--fate-plugin", "thrift", "-q")
    assert " passed, " in printed(thrifty, *arguments, cwd=tmp_path)


def test_an_installed_plugin_that_is_not_named_is_not_imported(thrifty, tmp_path):
    """Listed from its metadata alone; a recipe without it does not import it, one with it does."""
    code = """
import json, sys
from fate_trl import plugins
from fate_trl.recipe.loading import make_recipe
seen = [[row for row in plugins.describe() if row["plugin"] == "thrift"]]
make_recipe({"suites": ["workbench"]})
seen.append("fate_trl_thrift" in sys.modules)
make_recipe({"suites": ["workbench"], "verifiers": ["thrift/brief"]})
seen.append("fate_trl_thrift" in sys.modules)
print(json.dumps(seen))
"""
    (row,), before, after = json.loads(printed(thrifty, "-c", code, cwd=tmp_path))
    assert row == {
        "plugin": "thrift",
        "type": "not imported",
        "name": "thrift/…",
        "summary": "Thrift: few calls and short answers (fate-trl-thrift 1.2.3)",
    }
    assert (before, after) == (False, True)


def test_plugins_of_one_package_are_told_apart(tmp_path, monkeypatch):
    """Each by the first line of its docstring, which is not imported; by the package's summary where it has none."""
    sources = {
        "several/first.py": '"""Counts words.\n\nMore of it."""\nraise SystemExit("imported")\n',
        "several/second/__init__.py": '"""Counts calls."""\nraise SystemExit("imported")\n',
        "several/third.py": "raise SystemExit('imported')\n",
        "several/fourth.py": '"""Not Python."""\ndef (:\n',
        "several/__init__.py": "raise SystemExit('imported')\n",
        "alone_in_a_file.py": '"""Counts letters."""\nraise SystemExit("imported")\n',
        "several-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: several\nVersion: 1.0\nSummary: Counts.\n",
    }
    modules = ("several.first", "several.second", "several.third", "several.fourth", "several.fifth", "alone_in_a_file")
    announced = [f"counts-{module.rpartition('.')[2]} = {module}" for module in modules]
    sources["several-1.0.dist-info/entry_points.txt"] = "\n".join(["[fate_trl]", *announced])
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    told = {row["plugin"]: row["summary"] for row in plugins.describe() if row["plugin"].startswith("counts-")}
    assert told == {
        "counts-first": "Counts words. (several 1.0)",
        "counts-second": "Counts calls. (several 1.0)",
        "counts-third": "Counts. (several 1.0)",
        "counts-fourth": "Counts. (several 1.0)",
        "counts-fifth": "Counts. (several 1.0)",
        "counts-alone_in_a_file": "Counts letters. (several 1.0)",
    }


def test_a_blocked_plugin_is_listed_as_blocked_and_refused(thrifty, tmp_path):
    listed = printed(thrifty, "-m", "fate_trl.cli", "plugins", "--json", cwd=tmp_path, FATE_TRL_BLOCK="other, thrift")
    assert [row["type"] for row in json.loads(listed) if row["plugin"] == "thrift"] == ["blocked"]
    recipe = write_recipe(tmp_path, "thrift/brief")
    error = printed(
        thrifty, "-m", "fate_trl.cli", "run", recipe, cwd=tmp_path, status=2, FATE_TRL_BLOCK="other, thrift"
    )
    assert "error: plugin 'thrift' is blocked by FATE_TRL_BLOCK" in error
    assert "Traceback" not in error


# ------------------------------------------------------------------------------------------------ one file


def test_a_file_is_a_plugin(tmp_path, monkeypatch):
    """From the folder of the recipe, without packaging: named alone, used in a round, its observer called."""
    shutil.copy(PLUGINS / "polite.py", tmp_path / "my_polite.py")
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, {"name": "./my_polite.py", "args": {"words": ["Done"]}})
    rows, learner = run(recipe, "run")
    assert {row["round"] for row in rows} == {0, 1}
    assert [stage for stage, _ in learner.trained] == ["sft", "pfpo"]
    record = json.loads(Path("run/rounds/01/rollouts.jsonl").read_text().splitlines()[0])
    assert record["card"]["scores"]["politeness"]["value"] == (0 if "Done" in str(record["trajectory"]) else 1)
    module = sys.modules[plugins.find("verifier", "./my_polite.py").factory.__module__]
    assert [record["round"] for record in module.RECORDS] == [1]
    assert "accept" in module.RECORDS[0]["stages"]


def test_a_file_with_several_components_needs_the_components_name(monkeypatch):
    monkeypatch.chdir(PLUGINS)
    assert plugins.load("verifier", "./bad_verifiers.py/good").objectives == ("brevity",)
    with pytest.raises(PluginError, match=r"has 20 verifiers \(good, .*; name one as ./bad_verifiers.py/NAME"):
        plugins.load("verifier", "./bad_verifiers.py")
    with pytest.raises(PluginError, match=r"did you mean './bad_verifiers.py/constant'\?"):
        plugins.load("verifier", "./bad_verifiers.py/constnat")
    with pytest.raises(PluginError, match=r"polite.py has 0 suites \(none\)"):
        plugins.load("suite", "./polite.py")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("security", ("fate-trl", "security")),
        ("acme/tone", ("acme", "tone")),
        ("acme.pytorch/tone", ("acme.pytorch", "tone")),
        ("./tone.py", ("./tone.py", "")),
        ("tone.py/warm", ("tone.py", "warm")),
        ("/a.py.d/tone.py/warm", ("/a.py.d/tone.py", "warm")),
    ],
)
def test_names_are_split_into_plugin_and_component(name, parts):
    assert plugins.split_name(name) == parts


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import no_such_module_at_all", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module_at"),
        ("def (:", "cannot be imported: SyntaxError"),
        ("fate_trl_api = 99", f"is written for plugin API 99, this fate-trl has {API_VERSION}"),
        (
            "def fate_trl_verifiers(): return []",
            "fate_trl_verifiers is not marked; decorate it with @fate_trl",
        ),
        (
            "from fate_trl import hookimpl\n@hookimpl\ndef fate_trl_verifier(): return []",
            "there is no hook 'fate_trl_verifier'; did you mean 'fate_trl_verifiers'? The hooks are fate_trl",
        ),
        (
            "from fate_trl import hookimpl\n@hookimpl\ndef fate_trl_verifiers(recipe): return []",
            "Argument(s) {'recipe'} are declared in the hookimpl but can not be found in the hookspec",
        ),
        (
            "from fate_trl import hookimpl\n@hookimpl\ndef fate_trl_verifiers(): pass",
            "returned None; it returns a list",
        ),
        ("from fate_trl import hookimpl\n@hookimpl\ndef fate_trl_verifiers(): 1 / 0", "failed: ZeroDivisionError"),
        (
            "from fate_trl import Component, hookimpl\nclass A: pass\nclass B: pass\n"
            "@hookimpl\ndef fate_trl_verifiers(): return [Component('x', A, ''), Component('x', B, '')]",
            "registers the verifier 'x' twice: {module}.A and {module}.B. Rename one of them.",
        ),
    ],
)
def test_a_file_that_is_no_plugin(tmp_path, text, error):
    file = tmp_path / "wrong.py"
    file.write_text(text + "\n")
    with pytest.raises(PluginError) as raised:
        plugins.load("verifier", f"{file}/x")
    assert str(file) in str(raised.value)
    module = next((name for name in sys.modules if name.startswith("fate_trl_file_wrong")), "")
    assert error.replace("{module}", module) in str(raised.value)
    sys.modules.pop(module, None)


# ------------------------------------------------------------------------------------------------ metadata


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Lay down a distribution as pip would: install(distribution, plugin name, module's source) -> its folder."""
    made = []

    def lay_down(distribution, plugin, source, attribute=""):
        folder = tmp_path / distribution
        info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        module = distribution.replace("-", "_")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\nSummary: It.\n")
        (info / "entry_points.txt").write_text(f"[fate_trl]\n{plugin} = {module}{attribute}\n")
        (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        made.append(module)
        return folder

    yield lay_down
    for module in made:
        sys.modules.pop(module, None)


def source(objective="calm", api=API_VERSION):
    return f"""
from fate_trl import Component, Score, hookimpl
fate_trl_api = {api}
class Judge:
    objectives = ({objective!r},)
    def score(self, trajectories):
        return [{{{objective!r}: Score(1.0)}} for _ in trajectories]
@hookimpl
def fate_trl_verifiers():
    return [Component("judge", Judge, "judges")]
"""


BROKEN = "raise RuntimeError('imported')"


def test_two_packages_that_announce_one_name_stop_a_run_that_names_it(install):
    install("clash-one", "clash-a", source())
    install("clash-two", "clash-a", source())
    with pytest.raises(PluginError, match=r"'clash-a': clash-one 1.0 \(clash_one\) and clash-two 1.0 \(clash_two\)"):
        make_recipe({"suites": ["workbench"], "verifiers": ["clash-a/judge"]})
    assert "clash_one" not in sys.modules


def test_installing_packages_changes_and_breaks_no_recipe_that_does_not_name_them(install):
    """A clash, a broken module and a component with a built-in's name among them; all are listed, none imported."""
    names = {type: list(plugins.components(plugins.BUILTINS, type)) for type in plugins.HOOKS}
    install("clash-three", "clash-b", BROKEN)
    install("clash-four", "clash-b", BROKEN)
    install("broken-one", "broken-a", BROKEN)
    install("shadow", "fate-trl", BROKEN)
    recipe = load_recipe("quickstart")
    plugins._components_of.cache_clear()
    assert {type: list(plugins.components(plugins.BUILTINS, type)) for type in plugins.HOOKS} == names
    assert plugins.load("verifier", recipe.verifiers[0].name).objectives == ("security",)
    status = {(row["plugin"], row["type"]) for row in plugins.describe()}
    assert {("clash-b", "clash"), ("broken-a", "not imported")} <= status
    assert not {"clash_three", "clash_four", "broken_one", "shadow"} & set(sys.modules)


@pytest.mark.parametrize("order", [("first-one", "second-one"), ("second-one", "first-one")])
def test_components_go_by_name_in_whatever_order_packages_were_installed(install, order):
    for distribution in order:
        install(distribution, f"{distribution}-plugin", source(distribution))
    plugins._manager_of.cache_clear()
    plugins._components_of.cache_clear()
    assert [name for name in plugins.installed() if name.endswith("-one-plugin")] == sorted(
        f"{n}-plugin" for n in order
    )
    for distribution in order:
        assert plugins.load("verifier", f"{distribution}-plugin/judge").objectives == (distribution,)
    assert plugins.load("verifier", "security").objectives == ("security",)


@pytest.mark.parametrize(
    ("plugin", "text", "attribute", "error"),
    [
        ("old", source(api=0), "", "is written for plugin API 0, this fate-trl has 1. Install a matching version"),
        (
            "dateless",
            "x = 1",
            "",
            "is written for plugin API None, this fate-trl has 1. Set fate_trl_api in the plugin",
        ),
        ("raising", BROKEN, "", "(from {home}) cannot be imported: RuntimeError: imported. Reinstall {name}"),
        ("missing", "x = 1", ":thing", "cannot be imported: AttributeError"),
        ("object", "x = 1", ":x", "is no module; announce the module"),
    ],
)
def test_an_installed_plugin_that_does_not_load(install, plugin, text, attribute, error):
    name = f"not-loading-{plugin}"
    install(name, plugin, text, attribute)
    with pytest.raises(PluginError) as raised:
        plugins.load("verifier", f"{plugin}/judge")
    assert f"plugin {plugin!r}" in str(raised.value)
    assert error.format(home=f"{name} 1.0", name=name) in str(raised.value)


def test_a_component_that_is_not_there_is_an_error_with_the_nearest_name(install):
    install("near-one", "near", source())
    install("far-one", "far", source().replace('"judge"', '"jury"'))
    with pytest.raises(PluginError, match=r"no plugin 'naer' is installed; did you mean 'near'\?"):
        plugins.load("verifier", "naer/judge")
    with pytest.raises(PluginError, match=r"no verifier 'near/jugde'; did you mean 'near/judge'\? There are: near"):
        plugins.load("verifier", "near/jugde")
    with pytest.raises(PluginError, match=r"no verifier 'near/xyz'\. There are: near/judge"):
        plugins.load("verifier", "near/xyz")
    with pytest.raises(PluginError, match=r"no suite 'near/judge'\. There are: none"):
        plugins.load("suite", "near/judge")
    with pytest.raises(
        PluginError, match=r"no verifier 'jury'; did you mean 'far/jury'\? A plugin's component is named"
    ):
        plugins.load("verifier", "jury")
    with pytest.raises(PluginError, match=r"'utilty'; did you mean 'utility'\?.* Installed plugins: .*near"):
        plugins.load("verifier", "utilty")


def test_one_package_under_two_paths_is_no_clash(install, monkeypatch):
    folder = install("twice-one", "twice", source())
    copy = shutil.copytree(folder, folder.with_name("copy"))
    monkeypatch.syspath_prepend(copy)
    assert plugins.load("verifier", "twice/judge").objectives == ("calm",)


def test_metadata_that_lists_a_name_twice_is_a_clash(install):
    folder = install("double-one", "double", source())
    entries = next(folder.glob("*.dist-info")) / "entry_points.txt"
    entries.write_text("[fate_trl]\ndouble = double_one\ndouble = other_module\n")
    importlib.invalidate_caches()
    with pytest.raises(PluginError, match=r"'double': double-one 1.0 \(double_one\) and .* \(other_module\)"):
        plugins.load("verifier", "double/judge")


# ------------------------------------------------------------------------------------------------ arguments


def takes(size: int = 1, *rest: int, mode: str = "a", **more: int):
    return size, mode


def needs(path: str):
    return path


def breaks():
    raise ImportError("no module named heavy")


def refuses():
    raise RecipeError("size must be even")


def hidden(size: "NotImportedHere" = 1):  # noqa: F821 (as under TYPE_CHECKING)
    return size


@pytest.fixture
def components(monkeypatch):
    """The functions above as built-in selectors."""
    made = {f.__name__: Component(f.__name__, f, "") for f in (takes, needs, breaks, refuses, hidden)}
    monkeypatch.setattr(plugins, "components", lambda plugin, type: made)


@pytest.mark.parametrize(
    ("name", "arguments", "type", "error"),
    [
        ("takes", {"sise": 1}, RecipeError, "does not take 'sise'; did you mean 'size'? It takes: size, mode."),
        ("takes", {"rest": 1}, RecipeError, "does not take 'rest'"),
        ("takes", {"more": 1}, RecipeError, "does not take 'more'"),
        ("takes", {"size": "many"}, RecipeError, "argument 'size': Input should be a valid integer"),
        ("needs", {}, RecipeError, "needs the argument 'path'. It takes: path."),
        ("breaks", {}, PluginError, "selector 'breaks' cannot be made: ImportError: no module named heavy."),
        ("refuses", {}, RecipeError, "size must be even"),
        ("hidden", {}, PluginError, "an annotation of its arguments cannot be read"),
    ],
)
def test_arguments_that_do_not_fit(components, name, arguments, type, error):
    with pytest.raises(FateError) as raised:
        plugins.load("selector", name, arguments)
    assert isinstance(raised.value, type)
    assert error in str(raised.value)


def test_arguments_are_converted_by_their_annotations(components):
    assert plugins.load("selector", "takes", {"size": "3"}) == (3, "a")
    assert plugins.load("selector", "takes") == (1, "a")


def test_observers_are_called_with_the_arguments_that_they_take(tmp_path):
    file = tmp_path / "watch.py"
    file.write_text(
        "from fate_trl import hookimpl\nSEEN = []\n@hookimpl\ndef fate_trl_round_finished(): SEEN.append(1)\n"
    )
    (observer,) = plugins.observers([str(file), plugins.BUILTINS])
    observer(record={"round": 1})
    (module,) = [module for name, module in sys.modules.items() if name.startswith("fate_trl_file_watch")]
    assert module.SEEN == [1]


COUNTED = """
from fate_trl import Component, Score, hookimpl
MADE = []
class Judge:
    objectives = ("calm",)
    def __init__(self):
        MADE.append(1)
    def score(self, trajectories):
        return [{"calm": Score(1.0)} for _ in trajectories]
@hookimpl
def fate_trl_verifiers():
    return [Component("judge", Judge, "counts how often it is made")]
"""


def test_a_run_takes_the_components_that_its_recipe_was_checked_with(tmp_path):
    (tmp_path / "judge.py").write_text(COUNTED)
    (tmp_path / "recipe.yaml").write_text(f"suites: [workbench]\nverifiers: [utility, {tmp_path}/judge.py]\n")
    recipe, components = load_with_components(tmp_path / "recipe.yaml")
    evolution = assemble(recipe, RunDirectory(tmp_path / "run"), lambda *_: None, components=components)
    made = sys.modules[type(components.verifiers[1]).__module__].MADE
    assert len(made) == 1
    assert evolution.verifiers[1] is components.verifiers[1]
    assert (evolution.selector, evolution.repair) == (components.chooser, components.repair)


@pytest.mark.parametrize(("type", "name"), [("selector", "pareto-frnt"), ("verifier", "nobody/judge")])
def test_a_name_that_nothing_has_is_an_illegal_value(type, name):
    """As in TRL, so that what catches TRL's errors catches ours."""
    with pytest.raises(ValueError, match=name.partition("/")[0]):
        plugins.find(type, name)
