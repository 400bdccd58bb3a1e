"""A user's own environment, a class as TRL takes it: found in a file, its tools listed and described as in TRL.

TRL makes one instance, lists the functions of its class, and has transformers make a JSON schema of each when the first
prompt is rendered. Here the schemas are made at once, by the same function, so that what TRL would refuse after a model
is loaded is refused before, with class, method and argument.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import SuiteError
from ..plugins import import_file

NO_TOOLS = ("reset", "get_reward")


def load_environment(reference: str) -> tuple[Callable[[], Any], type]:
    """The factory behind `file.py:Class` or `file.py:function`, and the class of what it makes.

    A function is called once, to learn the class. Raises SuiteError, in one line.
    """
    path, name = check_reference(reference)
    try:
        module = import_file(path)
    except (Exception, SystemExit) as error:
        raise SuiteError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not inspect.isclass(found) and not inspect.isfunction(found):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise SuiteError(f"{path} has no class {name!r}; it has {', '.join(classes) or 'none'}.")
    environment = found if inspect.isclass(found) else _class_of(found, f"{path}:{name}")
    if not callable(getattr(environment, "reset", None)):
        raise SuiteError(f"{environment.__name__} has no method reset; a TRL environment needs one.")
    return found, environment


def check_reference(reference: str) -> tuple[Path, str]:
    """The file and the name in `file.py:Class`. Raises SuiteError if it is none, or there is no such file."""
    file, _, name = reference.rpartition(":")
    path = Path(file).expanduser()
    if not file or not name or not path.is_file():
        raise SuiteError(f"environment is file.py:Class; there is no file {file or reference!r} here.")
    return path, name


def _class_of(factory: Callable[[], Any], where: str) -> type:
    try:
        return type(factory())
    except Exception as error:
        raise SuiteError(f"{where}, called without arguments, raises {type(error).__name__}: {error}") from error


# ------------------------------------------------------------------------------------------------ tools


def functions_of(environment: type) -> dict[str, Callable[..., Any]]:
    """What TRL takes for tools, by name: the class's public functions but `reset` and `get_reward`.

    Inherited, asynchronous and static ones are among them; class methods and properties are not.
    """
    listed = inspect.getmembers(environment, predicate=inspect.isfunction)
    return {name: function for name, function in listed if not name.startswith("_") and name not in NO_TOOLS}


def tools_of(environment: type) -> dict[str, Callable[..., Any]]:
    """Prototypes of the class's tools. Raises SuiteError for one that TRL could not describe to a model."""
    functions = functions_of(environment)
    if not functions:
        raise SuiteError(f"{environment.__name__} has no tools; every public method but reset is one.")
    prototypes = {name: prototype_of(environment, name) for name in functions}
    for prototype in prototypes.values():
        schema_of(prototype, environment.__name__)
    return prototypes


def prototype_of(environment: type, name: str) -> Callable[..., Any]:
    """A tool without `self`, to be described by. Raises SuiteError if an annotation names what is not there."""

    def prototype(**arguments: Any) -> str:
        raise NotImplementedError("a prototype describes a tool; the episode executes it")

    function = getattr(environment, name)
    bound = not isinstance(inspect.getattr_static(environment, name), staticmethod)
    try:
        signature = inspect.signature(function, eval_str=True)
        annotations = inspect.get_annotations(function, eval_str=True)
    except Exception as error:  # an annotation is any code
        raise SuiteError(
            f"{environment.__name__}.{name}: its annotations cannot be read ({type(error).__name__}: {error}); "
            "the types must be importable when the tool is described, not for type checkers only."
        ) from None
    parameters = list(signature.parameters.values())[1 if bound else 0 :]
    prototype.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    prototype.__name__ = prototype.__qualname__ = name
    prototype.__doc__ = inspect.getdoc(function)
    prototype.__annotations__ = annotations
    return prototype


# ------------------------------------------------------------------------------------------------ schemas


def schema_of(tool: Callable[..., Any], owner: str) -> dict[str, Any]:
    """A prototype as a JSON schema, made by the function that TRL's prompts are made with.

    Raises:
        SuiteError: TRL would refuse the tool; names `owner`, the tool and, where it is one, the argument.
    """
    with _without_torch():
        from transformers.utils.chat_template_utils import get_json_schema

        try:
            return get_json_schema(tool)
        except Exception as error:
            raise SuiteError(f"{owner}.{tool.__name__}: {_refusal(tool, error, get_json_schema)}") from None


@contextmanager
def _without_torch() -> Iterator[None]:
    """transformers imports torch to know a tensor among the annotations; where none was imported, there is none."""
    from transformers.utils import chat_template_utils

    known: Any = vars(chat_template_utils)
    asked = known["is_torch_available"]
    if "torch" not in sys.modules:
        known["is_torch_available"] = lambda: False
    try:
        yield
    finally:
        known["is_torch_available"] = asked


def _refusal(tool: Callable[..., Any], error: Exception, schema: Callable[..., Any]) -> str:
    """Why TRL refuses a tool, in a line, and what to write instead."""
    doc = inspect.getdoc(tool) or ""
    if not doc:
        return "it has no docstring; write a sentence, and a line per argument below 'Args:'."
    for parameter in inspect.signature(tool).parameters.values():
        name, hint = parameter.name, parameter.annotation
        if hint is parameter.empty:
            return f"argument {name!r} has no type; annotate it."
        alone = _alone(name, hint)
        try:
            schema(alone)
        except Exception:
            return (
                f"argument {name!r} has the type {_type_name(hint)}, which has no JSON schema in transformers; take "
                "str, int, float, bool, Enum (which arrives as its value), Literal, list, tuple, dict or a union of "
                "these, and convert it inside."
            )
        if f"the argument '{name}'" in str(error):
            return f"argument {name!r} is not described in its docstring; {_style(doc, name)}"
    return " ".join(f"{type(error).__name__}: {error}".split())


def _alone(name: str, hint: Any) -> Callable[..., Any]:
    """A tool with this argument and no other."""

    def tool(**arguments: Any) -> None: ...

    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint)
    tool.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    tool.__annotations__ = {name: hint}
    tool.__doc__ = f"Take it.\n\nArgs:\n    {name}: The argument."
    return tool


def _type_name(hint: Any) -> str:
    if not isinstance(hint, type):
        return str(hint)
    return hint.__name__ if hint.__module__ == "builtins" else f"{hint.__module__.rpartition('.')[2]}.{hint.__name__}"


def _style(doc: str, name: str) -> str:
    """How to write it instead."""
    wanted = f"below 'Args:' write '{name}: …'"
    if re.search(r"^\s*Parameters\s*\n\s*-{3,}", doc, re.MULTILINE):
        return f"transformers does not read NumPy style: {wanted}."
    if re.search(rf"^\s*:param\b.*\b{name}:", doc, re.MULTILINE):
        return f"transformers does not read Sphinx style: {wanted}."
    if re.search(rf"^\s*{name}\s*\(.*?\)\s*:", doc, re.MULTILINE):
        return f"{wanted} without the type in brackets."
    return f"{wanted}."
