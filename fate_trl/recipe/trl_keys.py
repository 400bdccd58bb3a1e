"""TRL's configuration keys, read from its installed source text, since importing TRL takes seconds."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

from .. import plugins
from ..errors import RecipeError


@cache
def trl_keys(module: str) -> dict[str, str]:
    """Keys, with their annotations, of a TRL configuration class and its bases, read from the installed source text."""
    keys: dict[str, str] = {}
    for package, file in (
        ("trl", f"trainer/{module}.py"),
        ("trl", "trainer/base_config.py"),
        ("transformers", "training_args.py"),
    ):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise RecipeError(f"{package} is not installed: pip install {package}")
        source = Path(spec.origin).parent / file
        tree = (
            ast.parse(source.read_text(encoding="utf-8")) if source.exists() else ast.Module(body=[], type_ignores=[])
        )
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and re.fullmatch(
                r"SFTConfig|GRPOConfig|_BaseConfig|TrainingArguments", node.name
            ):
                keys |= {
                    n.target.id: ast.unparse(n.annotation)
                    for n in node.body
                    if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                }
    return keys


def template_text(name: str) -> str:
    """A chat template from a file, or TRL's of that name. Raises RecipeError where there is neither."""
    spec = importlib.util.find_spec("trl")
    ours = Path(spec.origin).parent / "chat_templates" if spec is not None and spec.origin else Path()
    for file in (Path(name).expanduser(), ours / f"{name}.jinja"):
        if file.is_file():
            return file.read_text(encoding="utf-8")
    names = sorted(file.stem for file in ours.glob("*.jinja"))
    raise RecipeError(
        f"model.chat_template: no file {name!r}, and TRL ships none of that name{plugins.nearest(name, names)} "
        f"It ships {', '.join(names)}."
    )
