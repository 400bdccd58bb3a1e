"""`fate-trl new-plugin`: a small installable package with one component, from the templates beside this file.

It passes the contract suite but for one line, marked RULE, in which its author states what the component is for.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import typer
from rich.markup import escape

from .. import __version__, plugins
from ..errors import PluginError
from ..types import OBJECTIVES
from .console import out, visible

_TEMPLATES = Path(__file__).parent / "templates"
Kind = Literal["verifier", "repair", "selector", "suite"]
"""What there are templates of."""
_USE: dict[Kind, tuple[str, str]] = {
    "verifier": ("verifiers: [FOUR, NAME]", "fate-trl run quickstart --set 'verifiers=[FOUR, NAME]'"),
    "repair": ("repair: {strategy: NAME}", "fate-trl run quickstart --set repair.strategy=NAME"),
    "selector": ("selector: NAME", "fate-trl run quickstart --set selector=NAME"),
    "suite": ("suites: [NAME]", "fate-trl suites check NAME"),
}
"""How a recipe names a component of each kind, and a command that uses it."""


def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of the plugin: lower case, words joined by '-'.")],
    kind: Annotated[Kind, typer.Option(help="What it brings.")] = "verifier",
    parent: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where its folder is made.")] = Path(),
) -> None:
    """Write a plugin package with a test and one marked line to fill in."""
    _check_name(name)
    folder = parent.expanduser() / f"fate-trl-{name}"
    if folder.exists():
        raise PluginError(f"{folder} is there already; give another name, or another place with --dir.")
    values = _values(name, kind)
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "LICENSE": "LICENSE",
        f"{values['module']}.py": f"{kind}.py",
        f"tests/test_{values['module']}.py": f"test_{kind}.py",
    }
    try:
        for file, template in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            text = Template((_TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(values)
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise PluginError(f"cannot write {folder}: {error.strerror}; give another place with --dir.") from None
    _show(folder, values)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise PluginError(f"{name!r} is no name for a plugin: use lower-case letters and digits, words joined by '-'.")
    if name == "fate-trl" or name.startswith("fate-trl-"):
        raise PluginError(f"leave fate-trl out of {name!r}; the package will be called fate-trl-NAME.")
    if name in plugins.installed():
        raise PluginError(f"a plugin {name!r} is installed already; give another name.")


def _values(name: str, kind: Kind) -> dict[str, str]:
    words = name.split("-")
    others = ", ".join(built_in for built_in in OBJECTIVES if built_in != "_".join(words))  # which it stands for
    recipe, command = (text.replace("FOUR", others).replace("NAME", f"{name}/{name}") for text in _USE[kind])
    major, minor = map(int, __version__.split(".")[:2])
    return {
        "name": name,
        "kind": "repair strategy" if kind == "repair" else kind,
        "module": "_".join(["fate_trl", *words]),
        "class_name": "".join(word.capitalize() for word in words) + kind.capitalize(),
        "objective": "_".join(words),
        "recipe": recipe,
        "command": command,
        "low": f"{major}.{minor}",
        "high": f"{major}.{minor + 1}",
    }


def _show(folder: Path, values: dict[str, str]) -> None:
    """What was written, and what comes next, as commands to copy."""
    place, name = escape(visible(str(folder))), values["name"]
    out.print(f"wrote {place}. What comes next:", soft_wrap=True)
    out.print(f"  1. state the rule: the line under RULE in {place}/{values['module']}.py", soft_wrap=True)
    out.print(f"  2. pip install -e {place}", soft_wrap=True)
    out.print(f"  3. pytest --pyargs fate_trl.testing.contract --fate-plugin {name}", soft_wrap=True)
    out.print(f"  4. {escape(values['command'])}", soft_wrap=True)
