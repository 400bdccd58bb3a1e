"""A recipe from YAML and `--set`: read, validated and checked, before torch or a benchmark is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic import BaseModel

from .. import plugins
from ..errors import RecipeError
from .checks import TAKES_TRL, check
from .components import Components
from .schema import ComponentRef, Recipe, as_ref
from .trl_keys import trl_keys


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as text; people mean a number. It takes the last of two equal keys; people mean both."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                both = f"in lines {seen[key.value]} and {line}"
                raise RecipeError(f"the key {key.value!r} stands twice, {both}; drop one.")
            seen[str(key.value)] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file (or the name of a shipped recipe), apply `key.sub=value` overrides, and check everything.

    Raises:
        RecipeError, PluginError: What is wrong, what is possible, what to do. No torch, TRL or benchmark is imported.
    """
    return load_with_components(path, overrides)[0]


def load_with_components(path: str | Path, overrides: Iterable[str] = ()) -> tuple[Recipe, Components]:
    """The same, and the components that were made to check it, for the run to take."""
    file, overrides = find_recipe(path), list(overrides)
    data = read_values(file)
    overridden(data, overrides)
    try:
        recipe = validated(data)
        return recipe, check(recipe)
    except RecipeError as error:
        raise RecipeError(_placed(str(error), file, {text.partition("=")[0] for text in overrides})) from None


def read_values(file: Path, of: str = "") -> dict[str, Any]:
    """What a recipe file holds, unchecked. Raises RecipeError if that is no mapping `of` a recipe's keys, or others."""
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:  # ValueError: no UTF-8, or no such date
        raise RecipeError(f"{file} cannot be read as YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{file} must hold a mapping of {of or ', '.join(Recipe.model_fields)}.")
    return data


def make_recipe(data: Mapping[str, Any]) -> Recipe:
    """A checked recipe from plain values; see `load_recipe`."""
    recipe = validated(data)
    check(recipe)
    return recipe


def validated(data: Mapping[str, Any]) -> Recipe:
    """A recipe whose keys and values are legal; what they name is not looked at."""
    try:
        return Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        raise RecipeError(_explain(error)) from None


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    here = Path(__file__).parent.parent
    source = here.parent if (here.parent / "pyproject.toml").exists() else here  # a clone, or an installed package
    return {file.stem: file for file in sorted((source / "recipes").rglob("*.yaml"))}


def find_recipe(path: str | Path) -> Path:
    """The file of a recipe, given by path or by the name of a shipped one."""
    file = Path(path).expanduser()
    if file.is_file():
        return file
    names = shipped()
    if str(path) in names:
        return names[str(path)]
    if (file / "recipe.yaml").is_file():
        raise RecipeError(f"{str(path)!r} is a run directory; go on with it by --resume {path}.")
    hint = plugins.nearest(str(path), names)
    raise RecipeError(f"no recipe {str(path)!r}{hint} Give a YAML file, or one of: {', '.join(names)}.")


def overridden(data: dict[str, Any], assignments: Iterable[str]) -> None:
    """Apply `--set` options in place, one by one. Raises RecipeError if one is malformed or sets a key again."""
    seen: dict[str, str] = {}
    for assignment in assignments:
        key = assignment.partition("=")[0]
        if key in seen:
            raise RecipeError(f"--set gives {key} twice, as {seen[key]!r} and as {assignment!r}; drop one.")
        seen[key] = assignment
        override(data, assignment)


def override(data: dict[str, Any], assignment: str) -> None:
    """Apply one `key.sub=value`, in place. Raises RecipeError if it is malformed."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set takes key.sub=value, not {assignment!r}")
    names = key.split(".")
    node: Any = data
    for name, below in pairwise(names):
        node = _inner(node, name, below, key)
    last = names[-1]
    if not isinstance(node, dict):
        raise RecipeError(f"--set {key}: {last!r} cannot be set in a list; give the whole list.")
    try:
        node[last] = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        text_in_it = f"; as text it is --set '{key}=\"{text}\"'." if '"' not in text else "."
        raise RecipeError(f"--set {key}: {text!r} is not a YAML value{text_in_it}") from None


def _inner(node: Any, name: str, below: str, key: str) -> Any:
    """What `name` holds in `node`, made if missing; members of a list go by number, as in suites.0.args.path.

    A component that is written as its name alone gets the keys that it stands for, as in selector.args.tie_break.
    """
    place: Any = name
    if isinstance(node, list):
        if not (name.isascii() and name.isdigit() and int(name) < len(node)):
            raise RecipeError(f"--set {key}: {name!r} is no place in a list of {len(node)}; the first is 0.")
        place = int(name)
    if isinstance(node, dict) and node.get(place) is None:
        node[place] = {}
    if below in ComponentRef.model_fields:
        node[place] = as_ref(node[place])
    if not isinstance(node[place], (dict, list)):
        raise RecipeError(f"--set {key}: {name!r} holds {node[place]!r}, which has no keys")
    return node[place]


def _placed(text: str, file: Path, overridden: Set[str]) -> str:
    """The error with file and line before each of its lines that begins with, or quotes, a key of the file."""
    places = dict(_places(yaml.compose(file.read_text(encoding="utf-8"), Loader=_Loader)))
    out = []
    for line in text.split("\n"):
        named = re.match(r"(?:unknown recipe key ')?([\w.]+)(?=[:'\s])", line)
        key = named[1] if named else ""
        out.append(f"{file}:{places[key]}: {line}" if key in places and key not in overridden else line)
    return "\n".join(out)


def _places(node: yaml.Node | None, key: str = "") -> Iterator[tuple[str, int]]:
    """(dotted key, line) of every key below a node of YAML."""
    members: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        members = [(str(name.value), name, value) for name, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        members = [(str(index), value, value) for index, value in enumerate(node.value)]
    for name, place, value in members:
        yield f"{key}{name}", place.start_mark.line + 1
        yield from _places(value, f"{key}{name}.")


def _explain(error: pydantic.ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            parent, _, key = where.rpartition(".")
            known = _keys_at(item["loc"][:-1])
            hint = plugins.nearest(key, known)
            sections = "" if parent else _sections_of(key)
            if sections:
                lines.append(f"unknown recipe key {where!r}: that is a key of TRL's; put it under {sections}.")
                continue
            lines.append(
                f"unknown recipe key {where!r}{hint} Keys {'of ' + parent if parent else 'there'}: {', '.join(known)}."
            )
        elif item["type"] == "missing":
            lines.append(f"the recipe needs the key {where!r}.")
        else:
            named = "Ref" in item.get("ctx", {}).get("class_name", "")
            either = "name, or a mapping of name and args" if named else "mapping of keys to values"
            message = re.sub(r"valid dictionary( or instance of \w+)?", either, item["msg"])
            lines.append(f"{where}: {message}, not {item['input']!r}.")
    return "\n".join(lines)


def _sections_of(key: str) -> str:
    """The sections that take a key of TRL's configurations, in words; "" if it is none."""
    if key in ("model_name_or_path", "model_name"):
        return "model, as model.path"
    if key in ("dataset_name", "dataset", "dataset_config", "dataset_mixture"):
        return "suites, whose tasks stand in a dataset's place"
    stages = {section: config for section, config in TAKES_TRL.items() if section != "rollout"}
    taking = [section for section, config in stages.items() if key in trl_keys(config)]
    return " or ".join(taking)


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """Keys of the section at a location of the schema."""
    section: Any = Recipe
    for part in location:
        if isinstance(part, int):
            section = ComponentRef
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), ComponentRef)
    return list(section.model_fields)
