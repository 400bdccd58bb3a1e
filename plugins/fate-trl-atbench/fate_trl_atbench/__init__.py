"""ATBench's two releases as fate-trl components: `atbench/atbench` and `atbench/atbench500`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from fate_trl import Component, Suite, hookimpl

from .data import Release
from .suite import ATBenchSuite

fate_trl_api = 1


def _factory(release: Release) -> Callable[..., Suite]:
    def factory(path: str | None = None, fits: Annotated[int, Field(ge=1)] | None = None) -> Suite:
        """One release of ATBench.

        Args:
            path: The release's `test.json`, or any file of the same form; None: the hub's, which is downloaded once.
            fits: Keep only trajectories whose prompt has at most this many characters (a token is about 4), so that
                a short context holds them; None keeps all.

        Raises:
            SuiteError: The data is not there, or not of the published form; `fits` leaves nothing.
        """
        return ATBenchSuite(release, path, fits)

    return factory


@hookimpl
def fate_trl_suites() -> list[Component]:
    return [
        Component(
            "atbench", _factory("ATBench"), "ATBench: judge whether 1,000 agent trajectories are safe, and say why"
        ),
        Component("atbench500", _factory("ATBench500"), "ATBench500: the first release, 500 shorter trajectories"),
    ]
