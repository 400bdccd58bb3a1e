"""The house: imports point down only, and torch is imported on top in train/ only, so the rest is light to load."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fate_trl

ROOT = Path(fate_trl.__file__).parent

ORDER = (
    "errors",
    "record",
    "messages",
    "types",
    "hookspecs",
    "process",
    "choose",
    "plugins",
    "verify",
    "suites",
    "recipe",
    "metrics",
    "ledger",
    "interchange",
    "loop",
    "train",
    "serve",
    "preflight",
    "report",
    "testing",
    "cli",
)
"""Rooms from the lowest up: a room imports from those before it, and from itself without a circle."""

HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "tokenizers", "gguf", "vllm"}
HEAVY_IN_FUNCTIONS = {
    ("preflight/findings", "torch"),  # the GPU that is here
    ("preflight/findings", "transformers"),  # configuration and tokenizer
    ("preflight/stepping", "torch"),  # the GPU, and what it held
    ("preflight/memory", "peft"),  # the model's modules are played, on tensors without content
    ("preflight/memory", "torch"),
    ("preflight/memory", "transformers"),
    ("train/json_calls", "transformers"),  # whether its response templates join texts
    ("train/templates", "trl"),  # its response templates, and what its tool loop asks of a chat template
    ("cli/run", "torch"),  # the manifest states threads and GPUs
    ("cli/run", "transformers"),  # its bars and notes are kept off the screen
    ("serve/endpoint", "transformers"),  # its reader of docstrings, which needs no torch
    ("process/team", "accelerate"),  # only where there are several
    ("process/team", "torch"),
    ("train/gguf", "transformers"),
    ("train/gguf", "torch"),
    ("preflight/untrained", "safetensors"),  # the rows of a few tokens
    ("loop/trackers", "transformers"),  # its tracker callbacks
    ("suites/environment", "transformers"),  # its schemas of tools, kept from importing torch
    ("suites/workbench/build", "tokenizers"),
    ("suites/workbench/build", "torch"),
    ("suites/workbench/build", "transformers"),
}
"""Every import of a heavy package inside a function, by file: what is added here must be worth it."""


TOUCHING = {
    *("train/trainer", "train/policy_loss", "train/greedy", "train/exchange"),
    *("train/prefix/trainer", "train/prefix/sharing"),
}
"""The trainer, and what beneath it reads shared prefixes once: nothing else touches TRL's private names."""

LINES = 500
LONGER = {"train/trainer": 750}
"""Lines that a file may have. The trainer alone touches TRL's private methods, which is worth its length."""


def files():
    """(name, tree) of every module of the package but its face, `fate_trl/__init__.py`."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        if name != "__init__":
            found.append((name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def modules():
    """Path of every module of the package by its dotted name, `fate_trl` itself included."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["fate_trl", *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name, tree):
    """(module, line) of every import of a module of this package, and of every module that is started by its name."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        wanted = []
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            wanted = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in MODULES:
            wanted = [node.value]
        for module in wanted:
            while module and module not in MODULES:
                module = module.rpartition(".")[0]
            if module:
                yield module, node.lineno


def room(module):
    """The room that a module stands in; "" for the package's face and its command."""
    return f"{module}.".split(".")[1].replace("__main__", "")


def tree_of(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def heavy_imports(tree):
    """(package, whether inside a function) of every import of a heavy package."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for name in names:
            if name.split(".")[0] in HEAVY:
                yield name.split(".")[0], id(node) in inside


def run(code):
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_room_has_its_place():
    assert {room(name) for name in MODULES} - {""} == set(ORDER), "give the new room a place here and in the design"


def test_the_page_lists_the_same_rooms():
    page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == ORDER


def test_imports_point_down_only():
    wrong = [
        f"{name}:{line} imports {module}"
        for name in MODULES
        for module, line in imported(name, tree_of(name))
        if room(name) and room(module) and room(module) != room(name)
        if ORDER.index(room(module)) > ORDER.index(room(name))
    ]
    assert wrong == []


def test_no_circle_inside_a_room():
    inside = {
        name: {m for m, _ in imported(name, tree_of(name)) if m != name and room(m) == room(name)} for name in MODULES
    }
    inside = {name: targets for name, targets in inside.items() if room(name)}
    # A module imported from within its own room's face, or the face from within, is a circle like any other.
    while leaves := [name for name, targets in inside.items() if not targets & set(inside)]:
        for name in leaves:
            del inside[name]
    assert inside == {}, "these import one another in a circle"


def test_the_reader_of_imports_sees_every_form():
    text = """
import fate_trl.cli
from fate_trl.train import learner
from fate_trl.train.trainer import PFPOTrainer
from . import traces
from ...recipe.schema import Recipe
from ...types import Task
STARTED = "fate_trl.verify.isolated_main"
def late():
    from .. import jsonl
"""
    seen = {module for module, _ in imported("fate_trl.suites.workbench.suite", ast.parse(text))}
    assert seen == {
        "fate_trl.cli",
        "fate_trl.train.learner",
        "fate_trl.train.trainer",
        "fate_trl.suites.workbench.traces",
        "fate_trl.recipe.schema",
        "fate_trl.types",
        "fate_trl.verify.isolated_main",
        "fate_trl.suites.jsonl",
    }
    face = {module for module, _ in imported("fate_trl.suites.workbench", ast.parse("from . import suite"))}
    assert face == {"fate_trl.suites.workbench.suite"}


def test_every_room_says_what_it_is():
    silent = [
        name for name, path in MODULES.items() if path.name == "__init__.py" and not ast.get_docstring(tree_of(name))
    ]
    assert silent == []


def of_a_trainer(node):
    """Whether an attribute is one of a trainer, or of what a class extends."""
    owner = node.value
    if isinstance(owner, ast.Call):
        return isinstance(owner.func, ast.Name) and owner.func.id == "super"
    name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
    return "trainer" in name.lower()


def test_the_private_methods_of_trl_are_touched_where_listed():
    touching = {
        name
        for name, tree in files()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if of_a_trainer(node)
    }
    assert touching == TOUCHING


def test_files_are_short():
    lengths = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in MODULES.values()}
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in lengths.items()}
    assert {name: length for name, length in lengths.items() if length > LONGER.get(name, LINES)} == {}


def test_torch_and_trl_are_imported_on_top_in_train_only():
    on_top = {name.split("/")[0] for name, tree in files() for _, inside in heavy_imports(tree) if not inside}
    assert on_top == {"train"}


def test_heavy_imports_in_functions_are_the_listed_ones():
    found = {(name, package) for name, tree in files() for package, inside in heavy_imports(tree) if inside}
    assert found == HEAVY_IN_FUNCTIONS


def test_importing_the_package_loads_nothing_heavy():
    code = """
import json, sys
before = set(sys.modules)
import fate_trl
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
    loaded = set(run(code))
    assert not loaded & (HEAVY | {"numpy", "pydantic", "yaml", "typer", "rich", "pluggy"})


def test_public_records_and_contracts_load_no_torch():
    homes = ("errors", "record", "messages", "types", "hookspecs")
    records = [name for name in fate_trl.__all__ if fate_trl._HOMES[name] in homes]
    assert not loaded_by(records) & (HEAVY | {"numpy", "pydantic"})
    others = [name for name in fate_trl.__all__ if not name.startswith("PFPO")]
    assert not loaded_by(others) & HEAVY


def loaded_by(names):
    """What a fresh interpreter has loaded once it looked these public names up."""
    code = f"""
import json, sys
import fate_trl
for name in {names}:
    getattr(fate_trl, name)
print(json.dumps(sorted(sys.modules)))
"""
    return set(run(code))


def test_our_plugins_import_public_names_only():
    """What they need is what other people's plugins need, and only this is promised to stay."""
    wrong = []
    for path in sorted(ROOT.parent.glob("plugins/*/fate_trl_*/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wrong += [(path.name, alias.name) for alias in node.names if alias.name.split(".")[0] == "fate_trl"]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fate_trl":
                public = node.module.startswith("fate_trl.testing")
                names = {alias.name for alias in node.names}
                if not public and (node.module != "fate_trl" or names - set(fate_trl.__all__)):
                    wrong.append((path.name, node.module, sorted(names)))
    assert wrong == []


def test_everything_outside_train_loads_without_torch():
    names = sorted(name for name in MODULES if room(name) != "train" and not name.endswith("__main__"))
    code = f"""
import importlib, json, sys
for name in {names}:
    importlib.import_module(name)
print(json.dumps(sorted({HEAVY} & set(sys.modules))))
"""
    assert run(code) == []


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--help"], {"numpy", "pydantic", "yaml", "pluggy", "jinja2", "asyncio", "fate_trl.types"}),
        (["--version"], {"numpy", "pydantic", "yaml", "pluggy", "jinja2", "asyncio", "fate_trl.types"}),
        (["plugins"], {"jinja2", "rich.progress", "fate_trl.ledger.reading", "fate_trl.metrics"}),
        (["suites"], {"jinja2", "rich.progress", "fate_trl.ledger.reading", "fate_trl.metrics"}),
        (["recipes"], {"numpy", "jinja2", "rich.progress", "fate_trl.ledger.reading", "fate_trl.metrics"}),
        (
            ["compare", "a.csv", "b.csv"],
            {"jinja2", "yaml", "fate_trl.recipe", "fate_trl.loop", "fate_trl.ledger.reading"},
        ),
        (["compare", "--help"], {"jinja2", "yaml", "fate_trl.recipe", "fate_trl.loop", "fate_trl.ledger.reading"}),
        (["view", "--help"], {"numpy", "jinja2", "yaml", "fate_trl.recipe", "fate_trl.report"}),
        (["report", "--help"], {"numpy", "jinja2", "yaml", "fate_trl.recipe", "fate_trl.report"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_command_loads_only_what_it_needs(arguments, left, tmp_path):
    """What is loaded decides how long a command takes to start; benchmarks/startup.py has the seconds."""
    for file in ("a.csv", "b.csv"):
        (tmp_path / file).write_text("case,score\none,1\ntwo,0\nthree,1\n")
    code = f"""
import contextlib, io, json, os, sys
os.chdir({str(tmp_path)!r})
sys.argv = ["fate-trl", *{arguments}]
from fate_trl.__main__ import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print(json.dumps(sorted(sys.modules)))
"""
    loaded = set(run(code))
    assert "fate_trl.cli" in loaded
    assert not loaded & (HEAVY | {"scipy", "matplotlib"} | left)


def test_a_public_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Trajektory"):
        _ = fate_trl.Trajektory
    assert set(fate_trl.__all__) == set(fate_trl._HOMES)
