"""Which components the contract suite checks: those of the plugin that `--fate-plugin` names."""

from __future__ import annotations

from typing import Any

import pytest

from ... import plugins
from ...errors import FateError
from ...hookspecs import Component, Suite
from ..pytest_plugin import NO_COMPONENT
from .helpers import arguments_of, make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One check per component of the plugin; deselected where it has none of the kind."""
    plugin = metafunc.config.getoption("--fate-plugin")
    if not plugin:
        raise pytest.UsageError("name the plugin to check: --fate-plugin NAME, ./file.py, or fate-trl (built-ins)")
    try:
        known = {type: list(plugins.components(plugin, type)) for type in plugins.HOOKS}
    except FateError as error:
        raise pytest.UsageError(str(error)) from None
    if not any(known.values()):
        raise pytest.UsageError(f"plugin {plugin!r} registers no component, so there is nothing to check")
    for type, names in known.items():
        if (fixture := _fixture_of(type)) in metafunc.fixturenames:
            metafunc.parametrize(fixture, names or [NO_COMPONENT], indirect=True, scope="module")
    if "component" in metafunc.fixturenames:
        every = [(type, name) for type, names in known.items() for name in names]
        metafunc.parametrize("component", every, ids=[f"{type}-{name}" for type, name in every], indirect=True)


def _fixture_of(type: plugins.Type) -> str:
    return type.replace(" ", "_")


def _making(type: plugins.Type) -> Any:
    """The fixture of a kind of component: one that is made, whose name is the parameter."""

    @pytest.fixture(scope="module", name=_fixture_of(type))
    def made(request: pytest.FixtureRequest) -> Any:
        return make(request.config, type, request.param)

    return made


globals().update({_fixture_of(type): _making(type) for type in plugins.HOOKS})


@pytest.fixture
def component(request: pytest.FixtureRequest) -> Component:
    type, name = request.param
    return plugins.components(request.config.getoption("--fate-plugin"), type)[name]


@pytest.fixture(scope="session")
def own_suites(request: pytest.FixtureRequest) -> list[Suite]:
    """The plugin's own suites, as far as they need no arguments: its verifiers may be about their tasks."""
    plugin, config = request.config.getoption("--fate-plugin"), request.config
    known = {} if plugin == plugins.BUILTINS else plugins.components(plugin, "suite")
    ready = [n for n, c in known.items() if plugins.required(c.factory) <= set(arguments_of(config, n))]
    return [make(config, "suite", name) for name in ready]
