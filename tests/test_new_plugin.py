"""`fate-trl new-plugin`: what it writes is built, installed, held to the contract and used by name, for all four kinds.

Nothing that it writes is changed but the marked line, as the comment above that suggests.
"""

from __future__ import annotations

import re
import subprocess
import typing

import pytest
import third_party
import yaml
from test_contract import check
from typer.testing import CliRunner

from fate_trl import plugins
from fate_trl.cli import app
from fate_trl.cli.new_plugin import Kind
from fate_trl.errors import PluginError

KINDS = typing.get_args(Kind)
RULE = re.compile(r"# RULE: replace the next line by yours, such as: (.*)\n( +)raise NotImplementedError\(.*\)")


def generate(name, kind, folder):
    result = CliRunner().invoke(app, ["new-plugin", name, "--kind", kind, "--dir", str(folder)])
    assert result.exit_code == 0, result.output
    return folder / f"fate-trl-{name}", result.output


def module_of(package):
    (module,) = package.glob("fate_trl_*.py")
    return module


def filled_in(text):
    """The module's text with its marked line replaced by what the comment above it suggests."""
    return RULE.sub(lambda found: found[0].rpartition("\n")[0] + f"\n{found[2]}{found[1]}", text)


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_contract_but_for_its_marked_line(kind, tmp_path, capsys):
    module = module_of(generate(f"my-{kind}", kind, tmp_path)[0])
    before, after = module.read_text(), filled_in(module.read_text())
    number = 1 + before[: before.index("raise NotImplementedError")].count("\n")
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    assert [i for i, (a, b) in enumerate(pairs, 1) if a != b] == [number], "one line is changed, the marked one"

    capsys.readouterr()
    assert check(module, "-x", "-k", "not heavy", "--tb=short")[0] == 1
    said = capsys.readouterr().out
    assert f"the rule is missing: see RULE in {module.name}" in said
    if kind != "suite":  # what a suite raises is its episode's error, with the reason; others are shown in their place
        assert f"{module.name}:{number}: in " in said

    (tmp_path / "after").mkdir()
    (tmp_path / "after" / module.name).write_text(after)
    status, results = check(tmp_path / "after" / module.name)
    assert (status, results.failed) == (0, {})
    assert results.passed[f"my-{kind}"]


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """(packages by kind, python of an environment that has them installed), their rules stated."""
    folder = tmp_path_factory.mktemp("authors")
    packages = {kind: generate(f"my-{kind}", kind, folder)[0] for kind in KINDS}
    for module in map(module_of, packages.values()):
        module.write_text(filled_in(module.read_text()))
    python = third_party.environment(folder)
    third_party.install(python, *packages.values())
    return packages, python


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_installed_it_keeps_the_contract_and_passes_its_own_test(generated, kind):
    packages, python = generated
    command = [python, "-m", "pytest", "-q", "--pyargs", "fate_trl.testing.contract", "--fate-plugin", f"my-{kind}"]
    done = subprocess.run([*command, "tests"], capture_output=True, text=True, cwd=packages[kind])
    assert done.returncode == 0, done.stdout[-3000:]


def test_all_four_are_used_by_name_in_a_round(generated):
    packages, python = generated
    folder = packages["suite"].parent
    recipe = {
        "suites": ["my-suite/my-suite"],
        "verifiers": ["security", "utility", {"name": "my-verifier/my-verifier", "args": {"words": 4}}],
        "repair": {"k": 2, "strategy": "my-repair/my-repair"},
        "selector": "my-selector/my-selector",
        "rounds": 1,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = third_party.scripted(python, folder / "recipe.yaml", folder / "run")
    assert {row["round"] for row in rows} == {0, 1}
    assert any("mean_my_verifier" in row["metrics"] for row in rows)


def test_a_wheel_of_it_holds_its_module(generated, tmp_path):
    packages, python = generated
    third_party.wheel(python, packages["verifier"], tmp_path)
    assert [file.name for file in tmp_path.glob("*.whl")] == ["fate_trl_my_verifier-0.1.0-py3-none-any.whl"]


def test_it_says_what_comes_next(tmp_path):
    package, said = generate("tone", "selector", tmp_path)
    for step in (str(module_of(package)), "pip install -e", "--fate-plugin tone", "selector=tone/tone"):
        assert step in said.replace("\n", " ")
    assert "selector: tone/tone" in (package / "README.md").read_text()
    assert "$" not in "".join(file.read_text() for file in package.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("My_Plugin", "'My_Plugin' is no name for a plugin: use lower-case letters and digits, words joined by '-'."),
        ("../escape", "is no name for a plugin"),
        ("1st", "is no name for a plugin"),
        ("fate-trl-tone", "leave fate-trl out of 'fate-trl-tone'"),
    ],
)
def test_bad_names(name, says, tmp_path):
    result = CliRunner().invoke(app, ["new-plugin", name, "--dir", str(tmp_path)])
    assert isinstance(result.exception, PluginError)
    assert says in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path, monkeypatch):
    generate("tone", "verifier", tmp_path)
    (tmp_path / "fate-trl-tone/fate_trl_tone.py").write_text("mine")
    result = CliRunner().invoke(app, ["new-plugin", "tone", "--dir", str(tmp_path)])
    assert "fate-trl-tone is there already; give another name" in str(result.exception)
    assert (tmp_path / "fate-trl-tone/fate_trl_tone.py").read_text() == "mine"
    monkeypatch.setattr(plugins, "installed", lambda: {"manners": []})
    result = CliRunner().invoke(app, ["new-plugin", "manners", "--dir", str(tmp_path)])
    assert "a plugin 'manners' is installed already" in str(result.exception)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["new-plugin", "tone", "--dir", str(tmp_path / "file")])
    assert isinstance(result.exception, PluginError)
    assert "cannot write" in str(result.exception)
