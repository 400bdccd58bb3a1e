"""Every component: its name, its arguments, and what loading it imports."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

from ... import plugins
from ...errors import RecipeError
from ...hookspecs import Component

HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "tensorflow", "jax")


def test_its_name_and_summary_can_be_listed(component: Component) -> None:
    assert re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", component.name), "lower case, words joined by '-'"
    assert component.summary.strip(), "say in one line what it is; `fate-trl plugins` shows it"
    assert "\n" not in component.summary


def test_its_arguments_are_checked(component: Component) -> None:
    """A misspelt argument is an error before anything runs, so a factory takes no **arguments."""
    with pytest.raises(RecipeError, match="does not take"):
        plugins.bind(component.factory, {"no_such_argument": 1}, component.name)
    kinds = {p.name: p.kind for p in inspect.signature(component.factory).parameters.values()}
    swallowing = [n for n, k in kinds.items() if k in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)]
    assert not swallowing, f"name the factory's arguments one by one, instead of {swallowing[0]}"


def test_loading_the_plugin_imports_nothing_heavy(request: pytest.FixtureRequest) -> None:
    """Recipes are checked before torch is imported; plugins must not be what imports it."""
    code = (
        "import sys; from fate_trl import plugins\n"
        "for type in plugins.HOOKS: plugins.components(sys.argv[1], type)\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, request.config.getoption("--fate-plugin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), "import these inside the factory"
