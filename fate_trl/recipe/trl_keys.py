"""TRL's configuration keys and their defaults, read from its installed source text: to import TRL takes seconds."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import RecipeError

_CLASSES = re.compile(r"SFTConfig|GRPOConfig|DPOConfig|_BaseConfig|TrainingArguments")
_NO_DEFAULT = object()


@cache
def trl_keys(config: str) -> dict[str, str]:
    """Keys of a TRL configuration class and its bases, each with its annotation.

    Args:
        config: The module of the class: "sft_config", "grpo_config" or "dpo_config", or transformers' "training_args".
    """
    return {key: annotation for key, (annotation, _) in _fields(config).items()}


@cache
def trl_defaults(config: str) -> dict[str, Any]:
    """Defaults of these keys, of those that have a plain value; what TRL makes of them later is not in it."""
    return {key: default for key, (_, default) in _fields(config).items() if default is not _NO_DEFAULT}


def group_size(settings: Mapping[str, Any]) -> int:
    """`num_generations` of PFPO's keys of TRL's, or TRL's default."""
    return int(settings.get("num_generations") or trl_defaults("grpo_config").get("num_generations", 8))


def _fields(config: str) -> dict[str, tuple[str, Any]]:
    """(annotation, default) by key; those of the class itself go before its bases'."""
    fields: dict[str, tuple[str, Any]] = {}
    for package, file in (
        ("transformers", "training_args.py"),
        ("trl", "trainer/base_config.py"),
        ("trl", f"trainer/{config}.py"),
    ):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise RecipeError(f"{package} is not installed: pip install {package}")
        source = Path(spec.origin).parent / file
        body = ast.parse(source.read_text(encoding="utf-8")).body if source.exists() else []
        for node in body:
            if isinstance(node, ast.ClassDef) and _CLASSES.fullmatch(node.name):
                fields |= {
                    line.target.id: (ast.unparse(line.annotation), _default(line.value))
                    for line in node.body
                    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
                }
    return fields


def _default(value: ast.expr | None) -> Any:
    """The default that a field's right-hand side gives, where it is written as a plain value."""
    if isinstance(value, ast.Call):
        value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
    try:
        return _NO_DEFAULT if value is None else ast.literal_eval(value)
    except ValueError:
        return _NO_DEFAULT


@cache
def dpo_values(name: str) -> tuple[str, ...]:
    """What TRL's DPOTrainer compares `loss_type` or `f_divergence_type` with, by its source text; () if unknown."""
    spec = importlib.util.find_spec("trl")
    source = Path(spec.origin).parent / "trainer/dpo_trainer.py" if spec is not None and spec.origin else Path()
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    return tuple(dict.fromkeys(re.findall(rf'\b{name} == "(\w+)"', text)))


TEMPLATES = Path(__file__).parents[1] / "train" / "chat_templates"
"""Our own chat templates; all of them write calls as plain JSON."""


def template_text(name: str) -> str:
    """A chat template from a file, or TRL's or ours of that name. Raises RecipeError where there is none."""
    spec = importlib.util.find_spec("trl")
    theirs = Path(spec.origin).parent / "chat_templates" if spec is not None and spec.origin else Path()
    for file in (Path(name).expanduser(), theirs / f"{name}.jinja", TEMPLATES / f"{name}.jinja"):
        if file.is_file():
            return file.read_text(encoding="utf-8")
    names = sorted(file.stem for folder in (theirs, TEMPLATES) for file in folder.glob("*.jinja"))
    raise RecipeError(
        f"model.chat_template: no file {name!r}, and TRL ships none of that name{plugins.nearest(name, names)} "
        f"There are {', '.join(names)}."
    )
