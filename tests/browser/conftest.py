"""A real browser for report and viewer: Debian's chromium through Playwright (`make browser` installs both).

Every page is watched. A test fails if anything appears on the console, a dialog opens, a hostile text runs, or a
request goes anywhere but to the page's own files; such requests are blocked as well.
"""

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from looking import SCREENS, TEXTS

from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.recipe.loading import make_recipe
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.testing import samples
from fate_trl.testing.hostile import record

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def chromium():
    """The browser. Nothing is downloaded: Playwright drives the one that the system has."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make browser")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("needs a chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox refuses root
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """visit(url, screen="desktop", **context options) -> a watched page; what it was caught at fails the test."""
    caught, contexts = [], []

    def visit(url, screen="desktop", **options):
        context = chromium.new_context(**SCREENS[screen], **options)
        contexts.append(context)
        home = url.partition("#")[0].rpartition("/")[0] + "/"

        def route(route):
            if route.request.url.startswith(home):
                return route.continue_()
            caught.append(f"request to {route.request.url}")
            return route.abort()

        context.route("**/*", route)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: caught.append(f"console: {message.type}: {message.text}"))
        page.on("pageerror", lambda error: caught.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (caught.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("popup", lambda popup: caught.append(f"popup: {popup.url}"))
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.fateHostile") is None, "a hostile text ran"
            assert page.url.startswith(("http://127.0.0.1", "file://")), "the page went elsewhere"
        context.close()
    assert caught == []


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Where screenshots go; FATE_TRL_PICTURES names a folder to keep them in."""
    folder = Path(os.environ.get("FATE_TRL_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def axe():
    """axe(page) -> its serious and critical violations: (rule, elements)."""
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: make browser")

    def axe(page):
        found = module.Axe().run(page).response["violations"]
        return [
            (violation["id"], [node["html"][:200] for node in violation["nodes"]][:5])
            for violation in found
            if violation["impact"] in ("serious", "critical")
        ]

    return axe


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """Run directory of the quickstart, the embedded policy included, on a third of its tasks; half a minute."""
    folder = tmp_path_factory.mktemp("browser") / "quickstart"
    fewer = ["rollout.tasks=90", "rollout.chunk=90", "evaluation.tasks=120", "evaluation.validation=0"]
    settings = [part for setting in [*fewer, f"output_dir={folder}"] for part in ("--set", setting)]
    subprocess.run([sys.executable, "-m", "fate_trl.cli", "run", "quickstart", *settings], check=True)
    return folder


@pytest.fixture(scope="session")
def paired(tmp_path_factory):
    """A run of two rounds that learns from pairs, without a model: its trajectories have made-up tokens."""

    class Tokens(ScriptedLearner):
        def rollout(self, requests, seed):
            return [samples.with_tokens(t, t.stage, t.attempt) for t in super().rollout(requests, seed)]

    folder = tmp_path_factory.mktemp("paired") / "run"
    keys = {
        "suites": [{"name": "workbench", "args": {"train": 24, "validation": 6, "test": 6}}],
        "evaluation": {"baselines": False, "validation": 0},
        "rounds": 2,
        "preference": {},
    }
    assemble(make_recipe(keys), RunDirectory(folder), lambda suites, *_: Tokens(suites, gain=0.05))()
    return folder


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """A run of 50,000 trajectories; FATE_TRL_SYNTHETIC_RUN names one that is there already."""
    if "FATE_TRL_SYNTHETIC_RUN" in os.environ:
        return Path(os.environ["FATE_TRL_SYNTHETIC_RUN"])
    spec = importlib.util.spec_from_file_location("synthetic_run", ROOT / "benchmarks/synthetic_run.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("synthetic") / "run"
    assert script.write_run(folder) >= 50_000
    return folder


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A run in which every text is hostile: a trajectory, and a candidate for it, per text of HOSTILE."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    run = RunDirectory(folder)
    for number, text in enumerate(TEXTS):
        trajectory, card = record(text)
        outcome = dataclasses.replace(trajectory.outcome, injected=(text,))
        failure = dataclasses.replace(trajectory, outcome=outcome, error=text if number % 7 == 0 else "")
        repair = dataclasses.replace(failure, stage="repair")
        run.append_chunk("rounds/01/rollouts.jsonl", "collect", number, [(failure, card)])
        run.append_chunk("rounds/01/repairs.jsonl", "repair", number, [(repair, card)])
    selection = {"failed": ["security"], "accepted": [0], "front": [0], "chosen": 0, "decided_by": "only"}
    keys = [("workbench", text, 0) for text in TEXTS]
    run.append(
        "rounds/01/selections.jsonl",
        (selection | {"failure": ["collect", *key], "candidates": [["repair", *key]]} for key in keys),
    )
    return folder
