"""The house: imports point down only, and torch is imported in two files, so most of the library is light to load."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fate_trl

ROOT = Path(fate_trl.__file__).parent

LEVELS = (
    {"types", "pareto"},
    {"hookspecs", "bounded", "chat", "refusals"},
    {"verifiers", "repairs", "selectors", "environments", "plugins", "ledger", "stop", "processes"},
    {
        "workbench",
        "jsonl",
        "ensembles",
        "judged_refusals",
        "costs",
        "rules",
        "evaluate",
        "recipe",
        "testing",
        "scores",
        "verifier_process",
    },
    {"diagnosis"},
    {"interchange"},
    {"evolution"},
    {"trainer", "endpoint", "fsck", "trackers"},
    {"smollm2", "templates", "memory"},
    {"stages"},
    {"report", "card", "check"},
    {"cli"},
)
"""Rooms by level, the lowest first; a folder is one room."""

HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "tokenizers", "gguf", "vllm"}
HEAVY_ON_TOP = {"trainer", "stages"}
HEAVY_IN_FUNCTIONS = {
    ("check", "torch"),  # the GPU that is here
    ("check", "transformers"),  # configuration and tokenizer
    ("memory", "peft"),  # the model's modules are played, on tensors without content
    ("memory", "torch"),
    ("memory", "transformers"),
    ("templates", "trl"),  # its response templates, and what its tool loop asks of a chat template
    ("cli/run", "torch"),  # the manifest states threads and GPUs
    ("cli/run", "transformers"),  # its bars and notes are kept off the screen
    ("endpoint", "transformers"),  # its reader of docstrings, which needs no torch
    ("processes", "accelerate"),  # only where there are several
    ("processes", "torch"),
    ("smollm2", "transformers"),
    ("smollm2", "trl"),
    ("trackers", "transformers"),  # its tracker callbacks
    ("workbench/build", "tokenizers"),
    ("workbench/build", "torch"),
    ("workbench/build", "transformers"),
}
"""Every import of a heavy package inside a function, by file: what is added here must be worth it."""


def files():
    """(name, tree) of every module of the package but its face, `fate_trl/__init__.py`."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        if name != "__init__":
            found.append((name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def level(room):
    return next(number for number, rooms in enumerate(LEVELS) if room in rooms)


def imported_rooms(name, tree):
    """(room, line) of every import from this package, wherever in the file it stands."""
    depth = name.count("/")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = ["fate_trl", *name.split("/")[:-1]][: depth + 2 - node.level]
            modules = [".".join([*parents, *filter(None, [node.module]), alias.name]) for alias in node.names]
        else:
            continue
        for module in modules:
            package, *rest = module.split(".")
            if package == "fate_trl" and rest and rest[0] != "__version__":
                yield rest[0], node.lineno


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


def test_every_file_has_its_level():
    rooms = {name.split("/")[0] for name, _ in files()}
    assert rooms <= set().union(*LEVELS), "give the new file a level here and in the design"


def test_imports_point_down_only():
    wrong = [
        f"fate_trl/{name}.py:{line} imports {room}"
        for name, tree in files()
        for room, line in imported_rooms(name, tree)
        if room != name.split("/")[0] and level(room) >= level(name.split("/")[0])
    ]
    assert wrong == []


def test_the_reader_of_imports_sees_every_form():
    text = """
import fate_trl.cli
from fate_trl import stages
from fate_trl.trainer import PFPOTrainer
from . import evaluate
from .recipe import Recipe
from ..types import Task
def late():
    from .. import jsonl
"""
    rooms = [room for room, _ in imported_rooms("workbench/suite", ast.parse(text))]
    # `from .` inside a folder is that folder itself
    assert sorted(rooms) == ["cli", "jsonl", "stages", "trainer", "types", "workbench", "workbench"]
    top = [room for room, _ in imported_rooms("cli", ast.parse("from . import evaluate\nfrom .recipe import Recipe"))]
    assert sorted(top) == ["evaluate", "recipe"]


def test_torch_and_trl_are_imported_on_top_of_two_files_only():
    on_top = {name for name, tree in files() for _, inside in heavy_imports(tree) if not inside}
    assert on_top == HEAVY_ON_TOP


def test_heavy_imports_in_functions_are_the_listed_ones():
    found = {(name, package) for name, tree in files() for package, inside in heavy_imports(tree) if inside}
    assert {pair for pair in found if pair[0] not in HEAVY_ON_TOP} == HEAVY_IN_FUNCTIONS


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
    light = [name for name in fate_trl.__all__ if not name.startswith("PFPO")]
    code = f"""
import json, sys
import fate_trl
for name in {light}:
    getattr(fate_trl, name)
print(json.dumps(sorted(sys.modules)))
"""
    assert not set(run(code)) & (HEAVY | {"numpy", "pydantic"})


def test_everything_below_the_trainer_runs_without_torch():
    below = set().union(*LEVELS[: level("trainer")]) | {"report", "card", "cli"}
    names = sorted(
        "fate_trl." + name.replace("/", ".").removesuffix(".__init__")
        for name, _ in files()
        if name.split("/")[0] in below and not name.endswith("__main__")
    )
    code = f"""
import importlib, json, sys
for name in {names}:
    importlib.import_module(name)
print(json.dumps(sorted({HEAVY} & set(sys.modules))))
"""
    assert run(code) == []


def test_a_public_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Trajektory"):
        _ = fate_trl.Trajektory
    assert set(fate_trl.__all__) == set(fate_trl._HOMES)
