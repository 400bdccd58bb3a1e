"""The page of methods is made from the components: each has a row, a formula with its source, and tests."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
pytest.importorskip("fate_trl_judge", reason="not installed: pip install plugins/fate-trl-judge")

from fate_trl import plugins

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("methods_page", ROOT / "docs" / "methods_page.py")
methods_page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(methods_page)

ROWS = methods_page.rows()


def test_every_component_of_the_plugin_has_a_row():
    own = {f"advantages/{name}" for name in plugins.components("advantages", "selector")}
    own |= {f"methods/{name}" for name in plugins.components("methods", "verifier")}
    own |= {f"preferences/{name}" for name in plugins.components("preferences", "pairing")}
    own |= {f"losses/{name}" for name in plugins.components("losses", "policy loss")}
    own |= {f"preferences/{name}" for name in plugins.components("preferences", "pair loss")}
    own |= {f"control/{name}" for name in plugins.components("control", "callback")}
    own |= {f"control/{name}" for name in plugins.components("control", "budget")}
    own |= {f"rollouts/{name}" for name in plugins.components("rollouts", "repair")}
    listed = [row.component for row in ROWS]
    assert own <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("row", ROWS, ids=[row.component for row in ROWS])
def test_a_row_works_by_tests_under_its_name_and_says_where_its_formula_is_from(row):
    formula, source = methods_page.words_of(row)
    assert len(formula) > 80
    assert re.search(r"code|published page|\[recall|abstract|derived", source), source
    assert methods_page.tests_of(row), f"no test begins with test_{row.name}_"
    assert f"| [`{row.component}`](#" in methods_page.page()


def test_what_has_no_test_is_not_called_works(monkeypatch):
    before = methods_page.page()
    assert "| no test |" not in before
    monkeypatch.setattr(methods_page, "tests", lambda: {})
    after = methods_page.page()
    assert after.count("| no test |") == len(ROWS)


def test_recalled_formulas_say_so_on_the_page():
    page = methods_page.page()
    for component in ("cvar", "entropic-risk", "cost-gate", "aspo", "log-map", "tree-prefix", "implicit-reward"):
        section = page.partition(f"### `advantages/{component}`")[2].partition("###")[0]
        assert "[recall" in section, component
