"""The registry: finds plugins by their metadata, imports only those that a recipe names, loads components by name.

A built-in component has a bare name (`security`); a third party's is `plugin/component`; `./file.py` loads one file as
a plugin, and `./file.py/component` names a component where the file has several. Built-ins come through the same
hooks as everybody else's. So installing a package can neither change nor break an existing recipe.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pluggy
import pydantic

from . import __version__, hookspecs
from .errors import FateError, PluginError, RecipeError
from .hookspecs import API_VERSION, Component
from .record import content_hash, stable_hash

GROUP = "fate_trl"
Type = Literal[
    "verifier", "repair", "selector", "suite", "pairing", "pair loss", "policy loss", "callback", "budget", "merge"
]
HOOKS: dict[Type, str] = {
    "verifier": "fate_trl_verifiers",
    "repair": "fate_trl_repairs",
    "selector": "fate_trl_selectors",
    "suite": "fate_trl_suites",
    "pairing": "fate_trl_pairings",
    "pair loss": "fate_trl_pair_losses",
    "policy loss": "fate_trl_policy_losses",
    "callback": "fate_trl_callbacks",
    "budget": "fate_trl_budgets",
    "merge": "fate_trl_merges",
}
BUILTINS = "fate-trl"
_BUILTIN_MODULES = (
    "verify.scoring",
    "verify.ensemble",
    "verify.judged_refusals",
    "verify.tool_cost",
    "verify.rules",
    "choose.repairs",
    "choose.selectors",
    "choose.pairings",
    "choose.merges",
    "suites.workbench.suite",
    "suites.workbench.tradeoffs",
    "suites.workbench.announced",
    "suites.jsonl",
)


def nearest(word: str, words: Iterable[str], prefix: str = "") -> str:
    """End of an error's first sentence: a question with the nearest known name, or just the full stop."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {prefix + close[0]!r}?" if close else "."


# ------------------------------------------------------------------------------------------------ modules


def blocked() -> set[str]:
    """Plugins that FATE_TRL_BLOCK forbids, a comma-separated list."""
    return {name.strip() for name in os.environ.get("FATE_TRL_BLOCK", "").split(",") if name.strip()}


def installed() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """Announced plugins by name, from metadata alone; more than one entry is a clash. Nothing is imported."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        entries = found.setdefault(entry.name, [])
        if (_home(entry), entry.value) not in [(_home(other), other.value) for other in entries]:
            entries.append(entry)
    return {name: sorted(entries, key=_home) for name, entries in sorted(found.items())}


def _entry(plugin: str) -> importlib.metadata.EntryPoint:
    """The one entry point of a named plugin; a clash between plugins that nobody names stops nothing."""
    known = installed()
    if plugin not in known:
        names = ", ".join(known) or "none"
        raise PluginError(f"no plugin {plugin!r} is installed{nearest(plugin, known)} Installed plugins: {names}.")
    if len(known[plugin]) > 1:
        homes = " and ".join(f"{_home(entry)} ({entry.value})" for entry in known[plugin])
        raise PluginError(f"two installed packages announce a plugin {plugin!r}: {homes}. Uninstall one of them.")
    return known[plugin][0]


def _home(entry: importlib.metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _stamp(plugin: str) -> str:
    """Where a plugin file lies and what is in it, so that one that was edited is imported anew; "" of a package."""
    file = Path(plugin).expanduser()
    return f"{file.resolve()} {_content(file)}" if plugin.endswith(".py") and file.is_file() else ""


def _manager(plugin: str) -> pluggy.PluginManager:
    return _manager_of(plugin, _stamp(plugin))


@cache
def _manager_of(plugin: str, stamp: str) -> pluggy.PluginManager:
    """A plugin manager that holds this one plugin, checked."""
    manager = pluggy.PluginManager("fate_trl")
    manager.add_hookspecs(hookspecs)
    for module in _modules(plugin):
        _check_api(module, plugin)
        try:
            manager.register(module, name=module.__name__)
        except pluggy.PluginValidationError as error:  # a hook with arguments that it does not have
            raise PluginError(f"plugin {plugin!r}: {' '.join(str(error).split())}") from None
    return manager


def _modules(plugin: str) -> list[ModuleType]:
    if plugin == BUILTINS:
        return [importlib.import_module(f"fate_trl.{name}") for name in _BUILTIN_MODULES]
    if plugin in blocked():
        raise PluginError(
            f"plugin {plugin!r} is blocked by FATE_TRL_BLOCK; take it off that list, or out of the recipe."
        )
    if plugin.endswith(".py"):
        return [_file(plugin)]
    entry = _entry(plugin)
    try:
        module = entry.load()
    except (Exception, SystemExit) as error:
        home = _home(entry)
        raise PluginError(
            f"plugin {plugin!r} (from {home}) cannot be imported: {_explained(error)}. "
            f"Reinstall {home.split()[0]}, or set FATE_TRL_BLOCK={plugin} and take it out of the recipe."
        ) from error
    if not isinstance(module, ModuleType):
        raise PluginError(f"plugin {plugin!r} (from {_home(entry)}): {entry.value} is no module; announce the module.")
    return [module]


def _file(path: str) -> ModuleType:
    """One .py file as a plugin; it may leave out `fate_trl_api`. It is imported anew only where it was edited."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise PluginError(f"no plugin file {path}; the path is taken from the current folder, {Path.cwd()}.")
    try:
        module = import_file(file)
    except (Exception, SystemExit) as error:  # a script that ends itself must not end the run unsaid
        raise PluginError(f"plugin file {path} cannot be imported: {_explained(error)}") from error
    if not hasattr(module, "fate_trl_api"):
        module.fate_trl_api = API_VERSION  # type: ignore[attr-defined]
    return module


def import_file(file: Path) -> ModuleType:
    """Import one .py file as a module with a name of its own. Raises whatever its code raises."""
    name = f"fate_trl_file_{file.stem}_{stable_hash(str(file.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_api(module: ModuleType, plugin: str) -> None:
    version = getattr(module, "fate_trl_api", None)
    if version != API_VERSION:
        raise PluginError(
            f"plugin {plugin!r} is written for plugin API {version!r}, this fate-trl has {API_VERSION}. "
            f"{'Set fate_trl_api in the plugin' if version is None else 'Install a matching version of the plugin'}."
        )
    known = [*HOOKS.values(), "fate_trl_round_finished"]
    for name, member in vars(module).items():
        marked = inspect.isfunction(member) and hasattr(member, "fate_trl_impl")
        if inspect.isfunction(member) and name.startswith("fate_trl_") and not marked:
            raise PluginError(f"plugin {plugin!r}: {name} is not marked; decorate it with @fate_trl.hookimpl.")
        if marked and name not in known:
            hint = nearest(name, known)
            raise PluginError(f"plugin {plugin!r}: there is no hook {name!r}{hint} The hooks are {', '.join(known)}.")


# ------------------------------------------------------------------------------------------------ components


def components(plugin: str, type: Type) -> Mapping[str, Component]:
    """Components of one plugin by their name inside it.

    Raises:
        PluginError: The plugin does not load, or gives a name twice.
    """
    return _components_of(plugin, type, _stamp(plugin))


@cache
def _components_of(plugin: str, type: Type, stamp: str) -> Mapping[str, Component]:
    found: dict[str, Component] = {}
    manager = _manager(plugin)
    for implementation in getattr(manager.hook, HOOKS[type]).get_hookimpls():
        for component in _listed(implementation.function, f"plugin {plugin!r}, {HOOKS[type]}"):
            if component.name in found:
                raise PluginError(
                    f"plugin {plugin!r} registers the {type} {component.name!r} twice: "
                    f"{_where(found[component.name])} and {_where(component)}. Rename one of them."
                )
            found[component.name] = component
    return found


def _listed(hook: Callable[[], Any], what: str) -> list[Component]:
    """What a hook returns, if it is a list of components."""
    try:
        found = hook()
    except Exception as error:
        raise PluginError(f"{what} failed: {_explained(error)}") from error
    if not isinstance(found, (list, tuple)) or not all(isinstance(item, Component) for item in found):
        raise PluginError(f"{what} returned {found!r}; it returns a list of fate_trl.Component.")
    return list(found)


def _where(component: Component) -> str:
    return f"{getattr(component.factory, '__module__', '?')}.{getattr(component.factory, '__qualname__', '?')}"


def split_name(name: str) -> tuple[str, str]:
    """(plugin, component) of a name in a recipe; the component is "" where a file is named alone."""
    file = re.fullmatch(r"(.+?\.py)(?:/(.*))?", name)
    if file:
        return file[1], file[2] or ""
    plugin, _, component = name.rpartition("/")
    return (plugin or BUILTINS), component


def find(type: Type, name: str) -> Component:
    """The component that a recipe names.

    Raises:
        PluginError: No such plugin or component; the message lists what there is and the nearest name.
    """
    plugin, component = split_name(name)
    known = components(plugin, type)
    if not component and plugin != BUILTINS:
        if len(known) == 1:
            return next(iter(known.values()))
        many = f"{type}es" if type.endswith("s") else f"{type}s"
        as_one = f"{name.rstrip('/')}/NAME"
        raise PluginError(f"{name} has {len(known)} {many} ({', '.join(known) or 'none'}); name one as {as_one}.")
    if component not in known:
        prefix = "" if plugin == BUILTINS else f"{plugin}/"
        names = [prefix + n for n in known]
        hint = nearest(component, known, prefix)  # a long plugin name must not make everything look near
        elsewhere = f" Installed plugins: {', '.join(installed())}." if installed() else ""
        if name in installed():
            hint = f": that is a plugin; name a {type} of it as {name}/NAME."
        elif plugin == BUILTINS and (places := _places(type, name)):
            hint = f"; did you mean {places[0]!r}? A plugin's component is named with its plugin."
        raise PluginError(f"no {type} {name!r}{hint} There are: {', '.join(names) or 'none'}.{elsewhere}")
    return known[component]


def _places(type: Type, component: str) -> list[str]:
    """Full names of the plugins' components that are called so; plugins that do not load have none."""
    found = []
    for plugin in installed():
        with contextlib.suppress(PluginError):
            found += [f"{plugin}/{component}"] if component in components(plugin, type) else []
    return found


def named(type: Type, reference: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """Name and arguments of what a recipe says: a name, or {name: …, args: {…}}."""
    said: dict[str, Any] = {"name": reference} if isinstance(reference, str) else dict(reference)
    if set(said) - {"name", "args"} or not isinstance(said.get("name"), str):
        raise RecipeError(f"a {type} is named as a name, or as {{name: …, args: {{…}}}}, not {reference!r}.")
    return said["name"], said.get("args")


def load(type: Type, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Make a component in this process: its arguments bound and checked, its factory called.

    Verifiers are made by `verify.loading`, which gives those that ask for it a process of their own.
    """
    component = find(type, name)
    bound = bind(component.factory, arguments or {}, f"{type} {name!r}")
    try:
        return component.factory(**bound)
    except FateError:
        raise
    except Exception as error:
        raise PluginError(f"{type} {name!r} cannot be made: {_explained(error)}.") from error


def check_needs(component: Any, objectives: Sequence[str], what: Type = "selector") -> None:
    """Raise RecipeError if a component names an objective, in `needs`, that is not there."""
    for name in getattr(component, "needs", ()):
        if name not in objectives:
            raise RecipeError(
                f"the {what} {type(component).__name__} needs the objective {name!r}, which nothing scores"
                f"{nearest(name, objectives)} The objectives are {', '.join(objectives)}."
            )


def identity(name: str, arguments: Mapping[str, Any]) -> str:
    """What a component's results depend on besides its input: its name, its plugin's version, its arguments' hash.

    The version is fate-trl's for a built-in, the distribution's for a package, and the hash of a plugin's file. Where
    arguments name components, files or folders, what these are counts too; so a file that the component itself writes
    to is better named by nothing but its stem.
    """
    named = sorted(set(_named_in(arguments)))
    inner = f" {content_hash(named)}" if named else ""
    return f"{name} {_version(split_name(name)[0])} {content_hash(dict(arguments))}{inner}"


def _version(plugin: str) -> str:
    if plugin == BUILTINS:
        return __version__
    if plugin.endswith(".py"):
        return _content(Path(plugin).expanduser())
    entry = _entry(plugin)
    return entry.dist.version if entry.dist else entry.value


def _named_in(value: Any) -> Iterator[str]:
    """What each text in some arguments stands for, where it names a component's plugin, a file or a folder."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _named_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _named_in(inner)
    elif isinstance(value, str) and 0 < len(value) < 1024 and value.isprintable():
        plugin, _ = split_name(value)
        path = Path(plugin if plugin.endswith(".py") else value).expanduser()
        if path.is_file():
            yield f"{value} {_content(path)}"
        elif path.is_dir():  # of weights, say, which are too large to be read
            stats = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
            yield f"{value} {content_hash([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])}"
        elif plugin in installed():
            yield f"{value} {_version(plugin)}"


def _content(file: Path) -> str:
    """Hash of a file's content."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()[:32]


def _explained(error: BaseException) -> str:
    return f"{error.__class__.__name__}: {error}"


def bind(factory: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`arguments` checked against the factory's signature and annotations, and converted by them.

    Raises:
        RecipeError: An argument that the factory does not take, that is missing, or that has an illegal value.
    """
    parameters = inspect.signature(factory).parameters
    named = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    unknown = [name for name in arguments if name not in named]
    if unknown:
        takes = ", ".join(named) or "no arguments"
        raise RecipeError(f"{what} does not take {unknown[0]!r}{nearest(unknown[0], named)} It takes: {takes}.")
    missing = required(factory) - set(arguments)
    if missing:
        raise RecipeError(f"{what} needs the argument {min(missing)!r}. It takes: {', '.join(named)}.")
    target = factory.__init__ if inspect.isclass(factory) else factory
    try:
        hints = inspect.get_annotations(target, eval_str=True)
    except NameError as error:
        raise PluginError(
            f"{what}: an annotation of its arguments cannot be read when it is loaded: {error}."
        ) from None
    return {
        name: _convert(hints.get(name, Any), value, f"{what}, argument {name!r}") for name, value in arguments.items()
    }


def required(factory: Callable[..., Any]) -> set[str]:
    """Names of the arguments that a factory cannot do without."""
    parameters = inspect.signature(factory).parameters.items()
    return {n for n, p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def finite(value: Any) -> bool:
    """Whether all numbers in a value of a recipe, in its lists and mappings too, are finite."""
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    if isinstance(value, Mapping):
        return all(map(finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)


def _convert(hint: Any, value: Any, what: str) -> Any:
    if isinstance(value, bool) and hint in (int, float):
        raise RecipeError(f"{what} is {value!r}, which is what YAML makes of yes and no; it is a number.")
    if not finite(value):
        raise RecipeError(f"{what} is {value!r}; numbers are finite.")
    try:
        return pydantic.TypeAdapter(hint).validate_python(value)
    except pydantic.ValidationError as error:
        message = error.errors()[0]["msg"]
        raise RecipeError(f"{what}: {message}, not {value!r}.") from None


def observers(plugins: Iterable[str]) -> list[Callable[..., Any]]:
    """The `fate_trl_round_finished` hooks of the named plugins; each is called with `record=`."""
    hooks = [_manager(plugin).hook.fate_trl_round_finished for plugin in plugins]
    return [hook for hook in hooks if hook.get_hookimpls()]


def without_suites(plugin: str) -> bool:
    """Whether the source of a plugin, which is not imported, never names the hook of suites."""
    try:
        specs = [importlib.util.find_spec(entry.module.partition(".")[0]) for entry in installed().get(plugin, [])]
    except (ImportError, ValueError):
        return False  # nobody knows
    folders = [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]
    alone = [Path(spec.origin) for spec in specs if spec and spec.origin and not spec.submodule_search_locations]
    files = [*alone, *(file for folder in folders for file in folder.rglob("*.py"))]
    return bool(files) and not any(HOOKS["suite"].encode() in file.read_bytes() for file in files)


def describe() -> list[dict[str, Any]]:
    """What there is, for `fate-trl plugins`: built-ins with their components, other plugins without importing them."""
    rows: list[dict[str, Any]] = []
    for type in HOOKS:
        for name, component in components(BUILTINS, type).items():
            rows.append({"plugin": BUILTINS, "type": type, "name": name, "summary": component.summary})
    for name, entries in installed().items():
        status = "blocked" if name in blocked() else "not imported" if len(entries) == 1 else "clash"
        for entry in entries:
            summary = f"{_summary(entry)} ({_home(entry)})"
            rows.append({"plugin": name, "type": status, "name": f"{name}/…", "summary": summary})
    return rows


def _summary(entry: importlib.metadata.EntryPoint) -> str:
    """One line: its package's summary, or where that has several plugins, the first line of the module's docstring."""
    if entry.dist is None:
        return ""
    summary: str = entry.dist.metadata["Summary"] or ""
    several = sum(other.group == GROUP for other in entry.dist.entry_points) > 1
    return (_headline(entry.module) if several else "") or summary


def _headline(module: str) -> str:
    """The first line of a module's docstring, read from its source without importing it; "" where there is none."""
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        if spec is None:
            return ""
        places = [Path(folder, *below) for folder in spec.submodule_search_locations or ()]
        files = [*(place.with_suffix(".py") for place in places), *(place / "__init__.py" for place in places)]
        files += [] if below else [Path(spec.origin or "")]
        source = next((file.read_bytes() for file in files if file.is_file()), b"")
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    except (ImportError, OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return ""  # it will be said where it is imported
