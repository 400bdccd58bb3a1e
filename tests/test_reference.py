"""The reference is made from the code, so what can go wrong is that the code says nothing: each thing has its words."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fate_trl import metrics, plugins, types
from fate_trl.cli import COMMANDS, app

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


def rows(page):
    """First cell -> last cell of every table row of a page."""
    found = re.findall(r"^\| `([^`]+)`[^|]* \|.*\| (.*) \|$", page, re.MULTILINE)
    return dict(found)


def test_every_recipe_key_is_there_with_its_meaning():
    page = reference.recipe_page()
    silent = []
    for place, model in (*reference.sections(), ("a component", reference.ComponentRef)):
        assert model.__doc__
        silent += [f"{place}.{key}" for key, field in model.model_fields.items() if not field.description]
        for key in model.model_fields:
            assert re.search(rf"^\| `{key}` \| \S.* \| [^|]+ \| [^|]+ \|$", page, re.MULTILINE), f"{place}.{key}"
    assert silent == []


def test_the_sections_of_a_recipe_are_there():
    page = reference.recipe_page()
    assert {"model.lora", "repair", "warm_start", "evaluation"} <= {place for place, _ in reference.sections()}
    assert "| `k` | Candidates per failure. | whole number ≥ 1 | `4` |" in page
    assert "| `strategy` | The repair strategy, which words the prompts. | component | `reflect` |" in page


def test_every_metric_is_defined_with_its_direction():
    page = reference.metrics_page()
    arrows = {1: " ↑", -1: " ↓", 0: ""}
    for name, direction in metrics.DIRECTIONS.items():
        name = "mean_<objective>" if name.startswith("mean_") else name
        assert f"| `{name}`{arrows[direction]} |" in page, name
        assert len(rows(page)[name]) > 5


@pytest.mark.parametrize("type", list(plugins.HOOKS))
def test_every_component_is_there_with_its_arguments(type):
    page = reference.components_page()
    for name, component in plugins.components(plugins.BUILTINS, type).items():
        start = page.index(f"### `{name}`")
        part = page[start : page.find("\n### ", start)]
        assert component.summary in part
        text = component.factory.__doc__ or ""
        assert text, f"{name} has no docstring"
        assert not text.startswith(f"{component.factory.__name__}("), f"{name} has only what dataclass wrote"
        for argument, kind, default in reference.arguments(component.factory):
            assert f"| {argument} | {kind} | {default} |" in part
            assert kind != "any value", f"{name}: {argument} has no annotation"


def test_every_command_is_there_with_its_options():
    page = reference.commands_page()
    listed = dict(reference.commands())
    assert {"fate-trl run", "fate-trl eval", "fate-trl suites check", "fate-trl new-plugin"} <= set(listed)
    for name, function in listed.items():
        assert f"## `{name}`" in page
        assert function.__doc__, name
        shown = CliRunner().invoke(app, [*name.split()[1:], "--help"], terminal_width=200).output
        for typed, meaning in reference.parameters(function):
            assert meaning.strip(), f"{name} {typed} is not explained"
            assert typed.strip("`").split()[0].lower() in shown.lower(), f"{name} does not take {typed}"


def test_the_list_of_commands_says_what_each_says_of_itself():
    listed = dict(reference.commands())
    for name, (_, _, summary) in COMMANDS.items():
        told = inspect.getdoc(listed[f"fate-trl {name}"]) or ""
        assert " ".join(told.split("\n\n")[0].split()) == summary


def test_every_hook_and_record_is_there():
    contracts, records = reference.contracts_page(), reference.records_page()
    for name in (*plugins.HOOKS.values(), "fate_trl_round_finished", "Verifier", "RepairStrategy", "ParetoSelector"):
        assert f"## `{name}`" in contracts
    for name in ("Task", "Trajectory", "Score", "ScoreCard", "Failure", "Repair", "BufferRow"):
        assert f"## `{name}`" in records
    assert "- `RecipeError`: " in records
    assert types.Score.not_applicable


def test_pages_and_navigation_agree():
    """Every page is in the navigation once, and every entry has its page. A new guide is added to mkdocs.yml."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def pages(entries):
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from pages(value) if isinstance(value, list) else [value]

    listed = list(pages(config["nav"])) + [page for made in reference.made_sections().values() for page in made]
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(written | set(reference.PAGES) | set(reference.texts()))


def test_links_between_texts_lead_somewhere():
    texts = reference.texts()
    written = {path.relative_to(ROOT / "docs").as_posix(): path.read_text() for path in ROOT.glob("docs/**/*.md")}
    known = {*texts, *written, *reference.PAGES}
    for page, text in {**written, **texts}.items():
        for link in re.findall(r"\]\((?!http|#)([^)#\s]+)", text):
            target = os.path.normpath(f"{os.path.dirname(page)}/{link}".lstrip("/"))
            place = ROOT / "docs" / target
            assert target in known or place.exists(), f"{page} links {link}"
