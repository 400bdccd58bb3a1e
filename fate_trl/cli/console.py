"""What every command prints with, and the options that commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from ..messages import counted as counted
from ..messages import visible as visible

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

Sets = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as pfpo.max_steps=5.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing until the end.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))
