"""Several processes: the main one leads, one ledger, and the same results as with one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fate_trl.errors import FateError, RecipeError
from fate_trl.process.stop import Stop, Stopped
from fate_trl.process.team import Led, Team, follow, require_one
from fate_trl.recipe.loading import make_recipe

# ------------------------------------------------------------------------------------------------ who does what


class Wire(Team):
    """What the main process says, written down for the others."""

    def __init__(self):
        super().__init__()
        self.said = []

    def agreed(self, value=None):
        self.said.append(value)
        return value


class Heard(Team):
    def __init__(self, said):
        super().__init__()
        self.said = list(said)

    def agreed(self, value=None):
        return self.said.pop(0)


class Learner:
    name = "mine"

    def __init__(self):
        self.called = []

    def __getattr__(self, verb):
        return lambda *args: self.called.append((verb, args)) or f"{verb} done"


def test_what_needs_the_model_is_done_by_all_and_the_rest_by_the_main_one():
    ours, theirs, wire = Learner(), Learner(), Wire()
    led = Led(ours, wire)
    assert led.name == "mine"
    assert led.rollout(["a task"], 7) == "rollout done"
    led.sft(["row"], 8, "sft", "scratch")
    led.pfpo(["request"], 9, None)
    led.save("folder")
    led.load("folder")
    led._dismiss()
    follow(theirs, Heard(wire.said))
    assert theirs.called == [call for call in ours.called if call[0] != "save"]
    assert [verb for verb, _ in ours.called] == ["rollout", "sft", "pfpo", "save", "load"]


def test_others_that_are_in_the_middle_of_something_are_told_nothing():
    class Failing(Learner):
        def rollout(self, requests, seed):
            raise FateError("a verb that fails")

    wire = Wire()
    led = Led(Failing(), wire)
    with pytest.raises(FateError):
        led.rollout([], 1)
    led._dismiss()
    assert [said[0] for said in wire.said] == ["rollout"]


def test_one_process_is_a_team_too():
    team = Team()
    assert (team.size, team.leads, team.agreed(5)) == (1, True, 5)
    team.wait()
    require_one("anything")


def test_what_one_process_does_is_refused_on_several(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FateError, match=r"`?this command`? runs in one process, and 2 were started"):
        require_one("this command")
    ran = subprocess.run([sys.executable, "-m", "fate_trl.cli", "plugins"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "start it without a launcher" in ran.stderr


def test_a_group_may_span_processes_but_not_generations(monkeypatch):
    sizes = {"per_device_train_batch_size": 4, "num_generations": 8}
    with pytest.raises(RecipeError, match=r"generation batch of 4 .*× processes"):
        make_recipe({"suites": ["workbench"], "pfpo": sizes})
    monkeypatch.setenv("WORLD_SIZE", "2")
    make_recipe({"suites": ["workbench"], "pfpo": sizes})


def test_a_signal_that_a_launcher_passes_on_is_the_same_request():
    stop = Stop()
    stop.echo = 60.0
    stop._note(signal.SIGINT, None)
    stop._note(signal.SIGTERM, None)
    assert stop.asked == signal.SIGINT
    stop.echo = 0.0
    with pytest.raises(Stopped):
        stop._note(signal.SIGINT, None)


# ------------------------------------------------------------------------------------------------ the whole loop

RECIPE = {
    "suites": [{"name": "workbench", "args": {"train": 14, "validation": 6, "test": 9}}],
    "model": {"path": "embedded", "threads": 1},
    "rollout": {"chunk": 5, "max_completion_length": 256, "max_tool_calling_iterations": 8},
    "repair": {"k": 2, "target": "both", "anchors": 1.0},
    "sft": {"max_steps": 2, "per_device_train_batch_size": 2},
    "pfpo": {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 8, "redraw_rounds": 1},
    "evaluation": {"baselines": False, "validation": 6},
    "rounds": 2,
}
HALF = ["--set", "pfpo.per_device_train_batch_size=4", "--set", "sft.per_device_train_batch_size=1"]
"""For two processes: as many rows in all, so that a group of PFPO spans both."""
PLAYBACK = Path(__file__).parent / "playback.py"
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def command(folder, several, *more, changes=None):
    file = folder / "recipe.json"  # JSON is YAML
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**RECIPE, **(changes or {}), "output_dir": str(folder / "run")}))
    launcher = LAUNCHER if several else []
    return [sys.executable, *launcher, str(PLAYBACK), "run", *(more or (str(file),))]


def records(run):
    """Everything that a run recorded, without clocks, memory, and what training logged."""
    found = {}
    for path in sorted((run / "rounds").rglob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines if path.name == "stages.jsonl" else ():
            for key in ("seconds", "time", "peak_memory_mb", "peak_gpu_memory_mb", "log"):
                line.pop(key, None)
        found[path.relative_to(run).as_posix()] = lines
    return {**found, "metrics": json.loads((run / "metrics.json").read_text())}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run on one process."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run(command(folder, several=False), check=True, env=ENVIRONMENT)
    return folder / "run"


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_record_what_one_does(alone, tmp_path):
    asked = [*command(tmp_path, True), *HALF]
    ran = subprocess.run(asked, check=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert records(tmp_path / "run") == records(alone)
    assert ran.stderr.count("round 2  save") == 1, "progress is shown once"
    assert ran.stdout.count("run directory:") == 1
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["hardware"]["processes"] == 2
    assert len(records(alone)["rounds/01/selections.jsonl"]) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_two_processes_stops_when_asked_and_goes_on(alone, tmp_path):
    run = tmp_path / "run"
    asked = [*command(tmp_path, True), *HALF]
    launched = subprocess.Popen(asked, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    waits = time.monotonic() + 500
    while not (run / "rounds/01/rollouts.jsonl").exists():
        assert time.monotonic() < waits
        assert launched.poll() is None
        time.sleep(0.2)
    launched.send_signal(signal.SIGTERM)
    _, said = launched.communicate(timeout=100)
    assert launched.returncode != 0
    assert "stopping after the chunk or training step in hand" in said
    assert f"go on with: fate-trl run --resume {run}" in said
    before = records_of(run, "rounds/01/rollouts.jsonl")
    assert not (run / "rounds/02").exists()
    subprocess.run(command(tmp_path, True, "--resume", str(run)), check=True, env=ENVIRONMENT)
    assert records(run) == records(alone)
    assert records_of(run, "rounds/01/rollouts.jsonl")[: len(before)] == before


def records_of(run, name):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_goes_wrong_ends_both(tmp_path):
    """A stage that fails on the main process: the error is shown once, and nobody waits for ever."""
    late = ["--set", "rollout.tool_seconds=1e-9", "--set", "evaluation.max_error_rate=0.01"]
    asked = [*command(tmp_path, True), *late]
    ran = subprocess.run(asked, env=ENVIRONMENT, capture_output=True, text=True, timeout=800)
    assert ran.returncode != 0
    assert ran.stderr.count("error:") == 1


SOUP = {"name": "soup", "args": {"weights": [2, 1]}}
KNAPSACK = {"name": "control/knapsack", "args": {"value": "success"}}
STEERED = {
    "merge": SOUP,
    "rollout": {**RECIPE["rollout"], "budget": KNAPSACK},
    "repair": {**RECIPE["repair"], "budget": {**KNAPSACK, "low": 1}},
    "preference": {"reference": SOUP, "max_steps": 2, "per_device_train_batch_size": 2},
    "pfpo": {
        **RECIPE["pfpo"],
        "learning_rate": 1e-4,
        "beta": 0.05,
        "reference": SOUP,
        "budget": KNAPSACK,
        "callbacks": ["control/kl-pid"],
    },
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["all weights", "adapter"])
def test_two_processes_merge_share_out_and_steer_as_one_does(tmp_path, lora):
    """With a merge after each round, references by a merge, budgets that learn, and a callback that sets beta."""
    pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
    changes = {**STEERED, "model": {**RECIPE["model"], "lora": lora}}
    folders = [tmp_path / name for name in ("one", "two")]
    half = [*HALF, "--set", "preference.per_device_train_batch_size=1"]
    for folder, several in zip(folders, (False, True), strict=True):
        asked = [*command(folder, several, changes=changes), *(half if several else ())]
        subprocess.run(asked, check=True, env=ENVIRONMENT, capture_output=True)
    one, two = (records(folder / "run") for folder in folders)
    assert near(one, two)
    stages = {record["stage"]: record for record in one["rounds/02/stages.jsonl"]}
    assert stages["merge"]["policies"] == 3
    for stage in ("preference", "pfpo"):
        assert stages[stage]["reference"]["coefficients"] == pytest.approx([2 / 3, 1 / 3, 0])
    assert stages["pfpo"]["budget"]["tries"] == stages["pfpo"]["prompts"]
    assert stages["collect"]["budget"]["tries"] == stages["collect"]["trajectories"]
    assert stages["repair"]["budget"]["least"] >= 1
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    for place in ("01/trained", "02/policy"):
        here, there = (load_file(folder / "run/rounds" / place / name) for folder in folders)
        gaps = [float((here[key] - there[key]).abs().max()) for key in here]
        assert max(gaps) < 1e-3


def near(one, two):
    """Whether two records say the same, but for what two processes add up in another order."""
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(near(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return isinstance(two, list) and len(one) == len(two) and all(map(near, one, two))
    return two == (pytest.approx(one, rel=1e-4, abs=1e-5) if isinstance(one, float) else one)
