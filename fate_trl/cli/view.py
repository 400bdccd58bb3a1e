"""`fate-trl view`: a run's trajectories in the browser."""

from __future__ import annotations

import contextlib
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import RecipeError
from .console import counted, out, visible


def view_run(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="A run directory; several stand side by side.")],
    port: Annotated[int, typer.Option(help="Port on this machine; 0 for any free one.")] = 7575,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    export_to: Annotated[
        Path | None, typer.Option("--export", metavar="DIR", help="Write the viewer as a static folder instead.")
    ] = None,
) -> None:
    """Look at a run's trajectories, failures and repairs in the browser; only this machine can open the page."""
    from ..report.viewer import Site, SiteServer, export

    if len({run.resolve() for run in runs}) < len(runs):
        raise RecipeError("a run is given twice; give each once.")
    site = Site(*runs, keep=export_to is None)
    if export_to is not None:
        export(site, export_to)
        out.print(f"{counted(len(site), 'trajectories')}: open {_name(export_to / 'index.html')}", soft_wrap=True)
        return
    with SiteServer(site, port) as server, contextlib.suppress(KeyboardInterrupt):
        out.print(
            f"{counted(len(site), 'trajectories')} of {', '.join(map(_name, runs))}: {server.url}  (Ctrl-C stops)",
            soft_wrap=True,
        )
        if browser:
            webbrowser.open(server.url)
        server.serve_forever()


def _name(path: Path) -> str:
    return escape(visible(str(path)))
