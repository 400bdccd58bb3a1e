"""`fate-trl fsck`: what is damaged in a run directory, and its repair."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from ..ledger import fsck
from ..ledger.reading import RunReader
from ..ledger.writing import RunDirectory
from .console import err, out, visible


def check_run(
    path: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    repair: Annotated[bool, typer.Option("--repair", help="Put aside what is damaged, so that it is redone.")] = False,
) -> None:
    """Show what is damaged in a run directory; status 1 if anything is. --repair mends it."""
    reader = RunReader.open(path)
    if repair:
        run = RunDirectory(path)
        with run.lock():
            found = fsck.repair(run)
    else:
        found = fsck.examine(reader)
    for damage in found:
        again = f"; done again: {', '.join(sorted(damage.again))}" if damage.again else ""
        out.print(f"[bold]{escape(visible(damage.file))}[/]: {escape(visible(damage.reason))}{again}", soft_wrap=True)
    if not found:
        out.print("no damage")
    elif repair:
        err.print(f"mended; go on with: [bold]fate-trl run --resume {escape(visible(path))}[/]", soft_wrap=True)
    else:
        err.print(f"mend it with: [bold]fate-trl fsck {escape(visible(path))} --repair[/]", soft_wrap=True)
        raise typer.Exit(1)
