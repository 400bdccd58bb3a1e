"""The options of the contract suite. pytest reads options before it imports what it is told to collect, and a
conftest.py beside an installed module is not looked for, so they come in through pytest's own entry point.

pytest imports this file in every run, so it imports nothing of fate-trl.
"""

from __future__ import annotations

import pytest

NO_COMPONENT = "no-such-component"
"""Parameter of a check whose kind of component the plugin does not have."""

NOT_CHECKED = pytest.StashKey[set[str]]()
"""What could not be checked, and what is to be given for it."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOT_CHECKED] = set()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A plugin of which a component was not checked has not passed; the built-ins have tests of their own for that."""
    if session.config.stash[NOT_CHECKED] and session.config.getoption("--fate-plugin") != "fate-trl":
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines: set[str] = config.stash[NOT_CHECKED]
    for line in sorted(lines):
        terminalreporter.write_line(line, red=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fate-trl", "fate-trl: contract suite for plugins")
    group.addoption(
        "--fate-plugin",
        metavar="NAME",
        help="plugin to check: an installed plugin's name, ./file.py, or fate-trl for the built-ins",
    )
    group.addoption(
        "--fate-args",
        metavar="JSON",
        default="{}",
        help='arguments of components by name: \'{"component": {"argument": 1}}\'',
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A plugin with verifiers only is not told forty times that it has no suite."""
    absent = {item for item in items if any(value is NO_COMPONENT for value in _parameters(item).values())}
    if absent:
        config.hook.pytest_deselected(items=list(absent))
        items[:] = [item for item in items if item not in absent]


def _parameters(item: pytest.Item) -> dict[str, object]:
    return getattr(getattr(item, "callspec", None), "params", {})
