"""The reference, made from the code while the site is built, so that it cannot go stale; a hook of mkdocs.

`PAGES` maps a page to the function that writes it. README and the other texts of the repository's top folder become
pages as well (`TEXTS`), so that each of them is kept in one place.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import typer

import fate_trl
from fate_trl import errors, hookspecs, plugins, types
from fate_trl.cli import COMMANDS, load
from fate_trl.metrics import comparing, definitions, intervals
from fate_trl.recipe.schema import BudgetRef, ComponentRef, Recipe

ROOT = Path(__file__).parent.parent

# ------------------------------------------------------------------------------------------------ docstrings

_SECTIONS = {"Args:": "Arguments", "Attributes:": "Attributes", "Returns:": "Returns", "Raises:": "Raises"}


def prose(thing: Any) -> str:
    """A docstring as Markdown: its Google-style sections become lists."""
    out: list[str] = []
    inside = False
    for line in (inspect.cleandoc(thing) if isinstance(thing, str) else inspect.getdoc(thing) or "").split("\n"):
        item = re.match(r"    (\S[^:]*): (.*)", line)
        if line in _SECTIONS:
            out += [f"**{_SECTIONS[line]}**", ""]
            inside = True
        elif inside and item:
            out.append(f"- `{item[1]}`: {item[2]}")
        elif inside and line.startswith("    "):
            out.append(f"    {line.strip()}")
        else:
            inside = inside and not line
            out.append(line)
    return "\n".join(out)


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    heads = list(head)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


# ------------------------------------------------------------------------------------------------ recipe keys

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def type_of(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return {"ComponentRef": "component", "BudgetRef": "budget"}.get(name, "section")
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(type_of, schema["anyOf"])))
    if "enum" in schema:
        return " · ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {type_of(schema['items'])}s" if schema.get("items") else "list"
    if schema.get("type") == "object":
        return "mapping"
    bounds = [f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([_TYPES.get(schema.get("type", ""), "any value"), ", ".join(bounds)]).strip()


def _default(key: str, schema: Mapping[str, Any], section: Mapping[str, Any]) -> str:
    if key in section.get("required", ()):
        return "*required*"
    value = schema.get("default", {})
    if isinstance(value, list):
        return f"`[{', '.join(item['name'] for item in value)}]`"
    if isinstance(value, dict):
        return f"`{value['name']}`" if "name" in value else "`{}`" if schema.get("type") == "object" else "as below"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def sections(model: type[pydantic.BaseModel] = Recipe, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place in a recipe, model) of every section, the whole recipe first."""
    yield place, model
    for key, field in model.model_fields.items():
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel) and not issubclass(kind, ComponentRef):
                yield from sections(kind, f"{place}.{key}".lstrip("."))


def recipe_page() -> str:
    parts = [
        "# Recipe keys",
        "A recipe is a YAML file. `fate-trl recipes copy NAME` writes one to start from; `--set section.key=value` "
        "changes one key for one run. Unknown keys and values that cannot work are errors before a model is loaded. "
        "Every default number is ours.",
    ]
    for place, model in (*sections(), ("a component", ComponentRef), ("a budget", BudgetRef)):
        schema = model.model_json_schema()
        rows = [
            (f"`{key}`", model.model_fields[key].description or "", type_of(field), _default(key, field, schema))
            for key, field in schema.get("properties", {}).items()
        ]
        parts += [f"## `{place}`" if " " not in place and place else "## A component" if place else "", prose(model)]
        parts += [table(("key", "meaning", "type", "default"), rows)] if rows else []
    return "\n\n".join(filter(None, parts))


# ------------------------------------------------------------------------------------------------ components, metrics

_WHAT = {
    "verifier": "Verifiers judge trajectories; in a recipe under `verifiers`.",
    "repair": "Repair strategies word the prompts that repair failures; under `repair.strategy`.",
    "selector": "Pareto selectors choose among candidates and reward groups; under `selector`.",
    "pairing": "Pairings say which trajectories are learned from as pairs; under `preference.pairing`.",
    "pair loss": "Pair losses are what the preference stage minimises; under `preference.loss`.",
    "policy loss": "Policy losses are what PFPO minimises; under `pfpo.loss`.",
    "callback": "Callbacks watch PFPO and steer it; under `pfpo.callbacks`.",
    "budget": "Budgets share tries out; under `rollout.budget`, `repair.budget`, `repair.keep` and `pfpo.budget`.",
    "merge": "Merges say which shares policies have of a merged one; under `merge`, and for `fate-trl merge`.",
    "suite": "Suites bring tasks and the environments behind them; under `suites`.",
}


def arguments(factory: Callable[..., Any]) -> list[tuple[str, str, str]]:
    """(name, type, default) of a component's arguments."""
    hints = inspect.get_annotations(factory.__init__ if inspect.isclass(factory) else factory, eval_str=True)
    fields = dataclasses.fields(factory) if dataclasses.is_dataclass(factory) else ()
    made = {f.name: f.default_factory for f in fields if f.default_factory is not dataclasses.MISSING}
    rows = []
    for name, parameter in inspect.signature(factory).parameters.items():
        kind = type_of(pydantic.TypeAdapter(hints.get(name, Any)).json_schema())
        value = made.get(name, lambda given=parameter.default: given)()
        default = "*required*" if parameter.default is parameter.empty else f"`{json.dumps(value)}`"
        rows.append((f"`{name}`", kind, default))
    return rows


def components_page() -> str:
    parts = ["# Components", "What a recipe can name. `fate-trl plugins` lists what is installed where you are."]
    for type, what in _WHAT.items():
        plural = f"{type.capitalize()}es" if type.endswith("s") else f"{type.capitalize()}s"
        head = "Repair strategies" if type == "repair" else plural
        parts += [f"## {head}", what]
        for plugin in (plugins.BUILTINS, *plugins.installed()):
            for name, component in plugins.components(plugin, type).items():
                full = name if plugin == plugins.BUILTINS else f"{plugin}/{name}"
                parts += [f"### `{full}`", f"*{component.summary}*", prose(component.factory)]
                rows = arguments(component.factory)
                parts += [table(("argument", "type", "default"), rows)] if rows else []
    return "\n\n".join(parts)


def metrics_page() -> str:
    return "\n\n".join(["# Metrics", *(prose(module.__doc__) for module in (definitions, intervals, comparing))])


# ------------------------------------------------------------------------------------------------ the command line


def commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """(full name, function) of everything that can be typed."""
    for name in COMMANDS:
        found = load(name)
        if not isinstance(found, typer.Typer):
            yield f"fate-trl {name}", found
            continue
        whole = found.registered_callback
        inner = [(f" {command.name}", command.callback) for command in found.registered_commands]
        for more, function in [("", whole and whole.callback), *inner]:
            if function is not None:
                yield f"fate-trl {name}{more}", function


def parameters(command: Callable[..., Any]) -> list[tuple[str, str]]:
    """(how it is typed, what it means) of a command's arguments and options."""
    rows = []
    hints = typing.get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        hint, *infos = typing.get_args(hints[name]) if hasattr(hints[name], "__metadata__") else [hints[name]]
        if hint is typer.Context:
            continue
        info = infos[0] if infos else typer.Option()
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        meaning = [info.help or "", f"One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""]
        if parameter.default not in (parameter.empty, "", 0, [], None, Path()):
            meaning.append(f"Default: `{parameter.default}`.")
        rows.append((f"`{_typed(name, hint, info)}`", " ".join(filter(None, meaning))))
    return rows


def _typed(name: str, hint: Any, info: Any) -> str:
    if isinstance(info, typer.models.ArgumentInfo):
        return (info.metavar or name).upper()
    given = (info.default, *(info.param_decls or ()))  # in Annotated, typer keeps the first name as the default
    named = [word for word in given if isinstance(word, str) and word.startswith("--")]
    option = (named or [f"--{name.replace('_', '-')}"])[0].partition("/")[0]
    return option if hint is bool else f"{option} {info.metavar or 'VALUE'}"


def commands_page() -> str:
    parts = [
        "# Command line",
        "`--help` after any command says the same.",
    ]
    for name, command in commands():
        parts += [f"## `{name}`", prose(command)]
        parts += [table(("", "meaning"), rows)] if (rows := parameters(command)) else []
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------ contracts, records


def _signature(name: str, function: Callable[..., Any]) -> str:
    return f"```python\ndef {name}{str(inspect.signature(function)).replace(chr(39), '')}\n```"


def _own(module: Any) -> Iterator[tuple[str, Any]]:
    """Public classes and functions of a module, in its order."""
    for name, member in vars(module).items():
        if not name.startswith("_") and getattr(member, "__module__", "") == module.__name__ and callable(member):
            yield name, member


def _fields(record: Any) -> str:
    lines = []
    for field in dataclasses.fields(record):
        made = "{}" if field.default_factory is not dataclasses.MISSING else None
        default = made or (None if field.default is dataclasses.MISSING else repr(field.default))
        lines.append(f"{field.name}: {field.type}" + (f" = {default}" if default else ""))
    return "```python\n" + "\n".join(lines) + "\n```"


def _class(name: str, member: type, level: str = "##") -> list[str]:
    parts = [f"{level} `{name}`", *([_fields(member)] if dataclasses.is_dataclass(member) else []), prose(member)]
    for inner, function in vars(member).items():
        if inspect.isfunction(function) and not inner.startswith("_"):
            parts += [_signature(inner, function), prose(function) if function.__doc__ else ""]
        elif isinstance(function, property):
            parts += [f"`.{inner}`: {prose(function)}"]
    return parts


def public_names() -> list[str]:
    """What a plugin may import, by the module that defines it."""
    kinds = {home: ", ".join(f"`{name}`" for name in names.split()) for home, names in fate_trl._NAMES.items()}
    told = "A plugin imports from `fate_trl` itself, and for its tests from `fate_trl.testing`. These names stay:"
    return ["## Stable names", told, table(("from", "names"), [(f"`{home}`", names) for home, names in kinds.items()])]


def contracts_page() -> str:
    parts = ["# Hooks and contracts", prose(hookspecs.__doc__), *public_names()]
    for name, member in _own(hookspecs):
        if inspect.isclass(member):
            parts += _class(name, member)
        elif name.startswith("fate_trl_"):
            parts += [f"## `{name}`", _signature(name, member), prose(member)]
    return "\n\n".join(filter(None, parts))


def records_page() -> str:
    parts = ["# Records", prose(types.__doc__)]
    members = [(name, member) for name, member in _own(types) if inspect.isclass(member)]
    for name, member in members:
        parts += _class(name, member)
    parts += ["## Errors", *(f"- `{name}`: {prose(member)}" for name, member in _own(errors))]
    return "\n\n".join(filter(None, parts))


def trainer_page() -> str:
    """Read from the source text: importing the trainer would import torch."""
    tree = ast.parse((ROOT / "fate_trl" / "train" / "trainer.py").read_text(encoding="utf-8"))
    parts = ["# PFPOTrainer", prose(ast.get_docstring(tree) or "").partition("\n\n")[0]]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in ("PFPOConfig", "PFPOTrainer"):
            parts += [f"## `{node.name}`", prose(ast.get_docstring(node) or "")]
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------ pages


def methods_page() -> str:
    """Made by methods_page.py, which needs the plugins that hold the methods."""
    spec = importlib.util.spec_from_file_location("methods_page", ROOT / "docs" / "methods_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return re.sub(r"\]\(\.\./(plugins/[\w-]+)\)", r"](\1.md)", str(module.page()))


PAGES: dict[str, Callable[[], str]] = {
    "methods.md": methods_page,
    "reference/recipe.md": recipe_page,
    "reference/components.md": components_page,
    "reference/metrics.md": metrics_page,
    "reference/commands.md": commands_page,
    "reference/trainer.md": trainer_page,
    "reference/contracts.md": contracts_page,
    "reference/records.md": records_page,
}

TEXTS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Texts of the top folder, and their pages."""


def texts() -> dict[str, str]:
    """Page -> Markdown of `TEXTS` and the plugins' READMEs, links turned from the repository's places to the site's."""
    named = {ROOT / source: page for source, page in TEXTS.items()}
    named |= {file: f"plugins/{file.parent.name}.md" for file in sorted(ROOT.glob("plugins/*/README.md"))}
    pages = {}
    for file, page in named.items():
        text = file.read_text(encoding="utf-8").replace("](../../docs/", "](../").replace("](docs/", "](")
        text = re.sub(r"\]\((plugins/[\w-]+)\)", r"](\1.md)", text)
        for source, target in TEXTS.items():
            text = text.replace(f"]({source}", f"]({target}")
        pages[page] = text
    return pages


def made_sections() -> dict[str, list[str]]:
    """Sections of the navigation that list whatever there is."""
    results = sorted(path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/results/*.md"))
    results.sort(key=lambda page: page != "results/index.md")  # the list of all results comes first
    return {"Results": results, "Plugins": ["plugins.md", *(page for page in texts() if page.startswith("plugins/"))]}


def on_config(config: Any) -> Any:
    """mkdocs' hook: fills these sections, which are empty in mkdocs.yml."""
    for entry in config.nav:
        for section in made_sections().keys() & entry.keys():
            entry[section] = made_sections()[section]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs' hook: what a guide links in the top folder is a page beside it."""
    for source, target in TEXTS.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
    return re.sub(r"\]\(\.\./(plugins/[\w-]+)\)", r"](\1.md)", markdown)


def on_files(files: Any, config: Any) -> Any:
    """mkdocs' hook: adds the pages that are made."""
    from mkdocs.structure.files import File

    for page, text in {**{name: write() for name, write in PAGES.items()}, **texts()}.items():
        files.append(File.generated(config, page, content=text))
    return files
