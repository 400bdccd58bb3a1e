#!/usr/bin/env bash
# inspect_ai 0.3.285: what a model leaves out of a record arrives as the text "None" and as False, not as the field's default.
#
# One would guess that a tool with a dataclass or a TypedDict among its parameters gets the defaults of the fields that a call leaves out: the
# schema says that they may be left out, and a parameter outside of a record gets its default. Inspect fills each missing field with None and turns
# that into the field's type: str(None) is "None", bool(None) is False. So `dry_run: bool = True` is False when the model does not mention it, and
# the tool does what it was to do only when asked. A missing int or float without None in its type is an error, which the log calls the model's.
# A pydantic model is built from what was given, and is right.
#
# Seen: the schema requires no field; one call with an empty record, and what three tools with the same fields got.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q inspect_ai==0.3.285
cat > "$folder/show.py" <<'PY'
import sys
from dataclasses import dataclass
from typing import TypedDict

import tiktoken


class Words:
    """In the place of an encoding that is downloaded: offline, counting tokens would fail."""

    def encode(self, text, **_):
        return text.split()


tiktoken.get_encoding = lambda name: Words()

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import ToolDef, tool
from pydantic import BaseModel


@dataclass
class Plain:
    note: str = "no note"
    dry_run: bool = True
    limit: int | None = 100


class Keys(TypedDict, total=False):
    note: str
    dry_run: bool
    limit: int | None


class Model(BaseModel):
    note: str = "no note"
    dry_run: bool = True
    limit: int | None = 100


@tool
def pay_plain():
    async def execute(to: str, options: Plain) -> str:
        """Pay somebody.

        Args:
            to: Whom.
            options: How.
        """
        return str(options)

    return execute


@tool
def pay_keys():
    async def execute(to: str, options: Keys) -> str:
        """Pay somebody.

        Args:
            to: Whom.
            options: How.
        """
        return str(options)

    return execute


@tool
def pay_model():
    async def execute(to: str, options: Model) -> str:
        """Pay somebody.

        Args:
            to: Whom.
            options: How.
        """
        return repr(options)

    return execute


for made in (pay_plain(), pay_keys(), pay_model()):
    name = ToolDef(made).name
    options = ToolDef(made).parameters.properties["options"]
    call = ModelOutput.for_tool_call("mockllm/model", name, {"to": "bob", "options": {}})
    model = get_model("mockllm/model", custom_outputs=[call, ModelOutput.from_content("mockllm/model", "Done.")])
    task = Task(dataset=[Sample(input="Pay bob.", target="x")], solver=[use_tools(made), generate()], scorer=match())
    [log] = eval(task, model=model, log_dir=sys.argv[1], display="none")
    [result] = [message for message in log.samples[0].messages if message.role == "tool"]
    print(f"{name}: required {options.required or []}, got {result.text}")
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/logs" > "$folder/seen"
cat > "$folder/said" <<'END'
pay_plain: required [], got Plain(note='None', dry_run=False, limit=None)
pay_keys: required [], got {'note': 'None', 'dry_run': False, 'limit': None}
pay_model: required [], got Model(note='no note', dry_run=True, limit=100)
END
cat "$folder/seen"
diff "$folder/said" "$folder/seen"
echo "as described"
