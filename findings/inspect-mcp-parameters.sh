#!/usr/bin/env bash
# inspect_ai 0.3.285 with mcp 2.3.0: a model that is evaluated through Inspect is not told what an MCP server says of its parameters.
#
# One would guess that the model gets the schema that the server publishes. The MCP SDK writes records and enums as `$ref` into `$defs`, and a
# Literal of one value as `const`, as pydantic does. Inspect reads the schema into a model of its own, which knows neither and drops them without
# a word, with bounds such as `exclusiveMinimum`. A parameter that is a record arrives as {}: no fields, no types, nothing on which are required.
# The server still checks calls against the whole schema, so the model pays for what it was not told, and the log says that it called wrongly.
#
# Seen: four parameters, as the server publishes them (references resolved) and as they stand among the tools of the model's call in the log.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q inspect_ai==0.3.285 mcp==2.3.0
cat > "$folder/server.py" <<'PY'
from enum import Enum
from typing import Annotated, Literal

from mcp.server.mcpserver import MCPServer
from pydantic import BaseModel, Field

server = MCPServer("bank")


class Payment(BaseModel):
    euros: float


class Speed(Enum):
    FAST = "fast"
    SLOW = "slow"


@server.tool()
def pay(payments: list[Payment], speed: Speed, kind: Literal["sepa"], copies: Annotated[int, Field(gt=0)]) -> str:
    """Pay."""
    return "paid"


if __name__ == "__main__":
    server.run()
PY
cat > "$folder/show.py" <<'PY'
import json
import sys

import tiktoken


class Words:
    """In the place of an encoding that is downloaded: offline, counting tokens would fail."""

    def encode(self, text, **_):
        return text.split()


tiktoken.get_encoding = lambda name: Words()

import anyio
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import mcp_server_stdio
from mcp import Client
from server import server


def resolved(schema, defs):
    """A schema without references, titles and descriptions."""
    if isinstance(schema, list):
        return [resolved(part, defs) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(defs[schema["$ref"].rpartition("/")[2]], defs)
    return {key: resolved(value, defs) for key, value in schema.items() if key not in ("title", "description")}


async def published():
    async with Client(server) as client:
        [tool] = (await client.list_tools()).tools
        return tool.input_schema


schema = anyio.run(published)
tools = mcp_server_stdio(name="bank", command=sys.executable, args=[sys.argv[1]])
task = Task(dataset=[Sample(input="Pay.", target="x")], solver=[use_tools(tools), generate()], scorer=match())
[log] = eval(task, model="mockllm/model", log_dir=sys.argv[2], display="none")
[call] = [event for event in log.samples[0].events if event.event == "model"]
told = call.tools[0].parameters.model_dump(exclude_none=True)["properties"]
for name, parameter in schema["properties"].items():
    print(f"{name} published:", json.dumps(resolved(parameter, schema["$defs"])))
    print(f"{name} told:     ", json.dumps(resolved(told[name], {})))
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/server.py" "$folder/logs" > "$folder/seen"
cat > "$folder/said" <<'END'
payments published: {"items": {"properties": {"euros": {"type": "number"}}, "required": ["euros"], "type": "object"}, "type": "array"}
payments told:      {"type": "array", "items": {}}
speed published: {"enum": ["fast", "slow"], "type": "string"}
speed told:      {}
kind published: {"const": "sepa", "type": "string"}
kind told:      {"type": "string"}
copies published: {"exclusiveMinimum": 0, "type": "integer"}
copies told:      {"type": "integer"}
END
cat "$folder/seen"
diff "$folder/said" "$folder/seen"
echo "as described"
