"""SIGTERM and Ctrl-C at a `fate-trl run` that is at work: it finishes its chunk, and goes on as if nothing had been."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPTED = """
import os, sys, time
from types import SimpleNamespace
from fate_trl.cli import main, run
from fate_trl.loop.assemble import assemble
from fate_trl.suites.scripted import ScriptedLearner

class Slow(ScriptedLearner):
    def _one(self, request, role):
        if request.stage == "collect":
            print("at work", flush=True)
            time.sleep(float(os.environ["PAUSE"]))
        return super()._one(request, role)

def build(recipe, directory, reporter=None, components=None):
    return assemble(recipe, directory, lambda suites, *_: Slow(suites), reporter, components)

sys.modules["fate_trl.train.build"] = SimpleNamespace(build=build)  # which would import torch
run.quiet_libraries, run._accelerators = lambda: None, lambda recipe: {}
main()
"""
"""The command line with a scripted learner, in place of a model, that takes its time while it collects."""

RECIPE = """
suites: [{name: workbench, args: {train: 9, validation: 0, test: 3}}]
rollout: {chunk: 3}
repair: {k: 2}
evaluation: {baselines: false, validation: 0}
rounds: 1
output_dir: run
"""


def start(folder, *arguments, pause=0.0):
    (folder / "scripted.py").write_text(SCRIPTED)
    (folder / "recipe.yaml").write_text(RECIPE)
    return subprocess.Popen(
        [sys.executable, "scripted.py", "run", *arguments],
        cwd=folder,
        env={**os.environ, "PAUSE": str(pause), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    finished(start(folder, "recipe.yaml"))
    return records(folder)


def records(folder):
    return {name: (folder / f"run/rounds/01/{name}.jsonl").read_bytes() for name in ("rollouts", "repairs", "buffer")}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_finishes_its_chunk_and_goes_on_the_same(number, status, tmp_path, uninterrupted):
    process = start(tmp_path, "recipe.yaml", pause=0.3)
    assert process.stdout.readline() == "at work\n"
    process.send_signal(number)
    _, screen = process.communicate(timeout=240)
    assert process.returncode == status, screen
    assert "stopping after the chunk" in screen
    assert "go on with: fate-trl run --resume run" in screen
    whole = uninterrupted["rollouts"].splitlines(keepends=True)
    assert (tmp_path / "run/rounds/01/rollouts.jsonl").read_bytes() == b"".join(whole[:3]), "the chunk in hand"
    finished(start(tmp_path, "--resume", "run"))
    assert records(tmp_path) == uninterrupted


@pytest.mark.slow
def test_a_second_signal_stops_at_once_and_loses_only_the_chunk_in_hand(tmp_path, uninterrupted):
    process = start(tmp_path, "recipe.yaml", pause=60)
    assert process.stdout.readline() == "at work\n"
    process.send_signal(signal.SIGINT)
    while "once more" not in process.stderr.readline():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, screen = process.communicate(timeout=30)
    assert process.returncode == 130, screen
    assert "go on with: fate-trl run --resume run" in screen
    assert not (tmp_path / "run/rounds/01/rollouts.jsonl").exists()
    finished(start(tmp_path, "--resume", "run"))
    assert records(tmp_path) == uninterrupted
