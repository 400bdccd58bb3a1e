"""How runs begin and end on the command line: what is left behind, what is said, and that no report fails a run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from case import case
from scripted_run import run as run_recipe
from typer.testing import CliRunner

from fate_trl import __version__
from fate_trl.cli import app
from fate_trl.cli import run as cli_run
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.process import stop
from fate_trl.recipe.loading import find_recipe, load_recipe, make_recipe, read_values
from fate_trl.report.page import report
from fate_trl.report.reading import Run
from fate_trl.suites.scripted import ScriptedLearner


def small(**changes):
    values = read_values(find_recipe("quickstart"))
    values["suites"] = [{"name": "workbench", "args": {"train": 9, "validation": 3, "test": 3}}]
    values["rollout"] |= {"tasks": None, "chunk": 10}
    values |= {"rounds": 1}
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return make_recipe(values)


@pytest.fixture
def scripted(monkeypatch):
    """`fate-trl run` with a scripted learner in the model's place."""

    def build(recipe, run, reporter=None, components=None):
        return assemble(recipe, run, lambda suites, *_: ScriptedLearner(suites, gain=0.1), reporter, components)

    monkeypatch.setattr("fate_trl.train.build.build", build)


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "recipe.yaml").write_text(small(output_dir=str(tmp_path / "runs/first")).dump())
    return str(tmp_path / "recipe.yaml")


def invoke(*arguments):
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


# ------------------------------------------------------------------------------------------------ reports


@pytest.mark.parametrize("what", ["write_report", "write_cards"])
@pytest.mark.parametrize("error", [KeyError("rewards/over_refusal/mean"), RecursionError("deep"), OSError(28, "full")])
@case(
    "runs and reports",
    "a finished run whose report cannot be drawn",
    "KeyError after hours of training, without the table",
    "the table, exit status 0, and a warning that names the reason and what to do",
)
def test_no_report_fails_a_run(scripted, recipe_file, monkeypatch, what, error):
    def broken(*_):
        raise error

    monkeypatch.setattr(cli_run, what, broken)
    shown = invoke("run", recipe_file, "--quiet")
    assert shown.exit_code == 0
    assert shown.output.index("resolved") < shown.output.index("warning:"), "the table comes first"
    assert type(error).__name__ in shown.output
    assert "fate-trl report" in shown.output


def test_a_report_that_fails_is_null_for_a_machine(scripted, recipe_file, monkeypatch):
    monkeypatch.setattr(cli_run, "write_report", lambda _: 1 / 0)
    shown = invoke("run", recipe_file, "--json")
    assert shown.exit_code == 0
    last = json.loads(shown.stdout.splitlines()[-1])
    assert last["event"] == "finished"
    assert last["report"] is None
    assert last["rows"]


@pytest.mark.parametrize("logged", ["as NaN", "as null", "not as a mean", "in one kind"])
@case(
    "runs and reports",
    "a run of PFPO on benign tasks alone, where an objective never applies",
    "KeyError: 'rewards/security/mean', in this report and in every later one",
    "the chart of that objective is left out",
)
def test_an_objective_that_never_applied_has_no_chart(tmp_path, logged):
    recipe = small(rollout={"kinds": ["benign"]})
    run = RunDirectory(tmp_path / "run")
    run.write_text("recipe.yaml", recipe.dump())

    class Logging(ScriptedLearner):
        def pfpo(self, requests, seed, scratch=None):
            log = {"loss": 0.5, "reward": 0.5, "rewards/utility/mean": 0.5, "rewards/utility/std": 0.1, "step": 1}
            if logged.startswith("as"):
                log["rewards/security/mean"] = float("nan") if logged == "as NaN" else None
            if logged == "not as a mean":
                log["rewards/security/std"] = 0.0
            if logged == "in one kind":
                log["objective/security/attacked"] = 0.5
            return {**super().pfpo(requests, seed), "log": [log, {**log, "step": 2}], "steps": 2}

    assemble(recipe, run, lambda suites, *_: Logging(suites))()
    page = report(Run.open(run.path))
    assert "<svg" in page


# ------------------------------------------------------------------------------------------------ beginnings


@pytest.mark.parametrize("command", ["run", "eval"])
@case(
    "runs and reports",
    "a hub id that is neither cached nor reachable",
    "a traceback of 90 lines, and a run directory left behind",
    "one sentence, and no run directory",
)
def test_a_model_that_cannot_be_had_leaves_nothing_behind(tmp_path, command):
    place = tmp_path / "run"
    arguments = {
        "run": ["run", "quickstart", "--set", "model.path=nobody/nothing", "--set", f"output_dir={place}"],
        "eval": ["eval", "nobody/nothing", "--suite", "workbench", "--output", str(place)],
    }[command]
    done = subprocess.run(
        [sys.executable, "-m", "fate_trl", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.path: nobody/nothing is not in the hub's cache")
    assert len(done.stderr.splitlines()) == 1
    assert not place.exists()


def test_a_run_that_fails_before_its_first_record_is_taken_back(tmp_path, monkeypatch, recipe_file):
    def broken(*_):
        raise OSError("no such weights")

    monkeypatch.setattr("fate_trl.train.build.build", broken)
    with pytest.raises(OSError, match="no such weights"):
        invoke("run", recipe_file)
    assert not (tmp_path / "runs/first").exists()


def test_what_a_run_left_untested_is_evaluated_on_all_tasks(tmp_path, scripted, recipe_file, monkeypatch):
    monkeypatch.setattr("fate_trl.recipe.checks._check_model", lambda model: None)  # a scripted policy has no template
    invoke("run", recipe_file, "--set", "evaluation.tasks=0")
    assert not RunDirectory(tmp_path / "runs/first").cases("rounds/00/rollouts.jsonl", "eval-test")
    done = invoke("eval", str(tmp_path / "runs/first"), "--output", str(tmp_path / "tested"), "--quiet")
    assert done.exit_code == 0, done.output
    tested = RunDirectory(tmp_path / "tested").cases("rounds/00/rollouts.jsonl", "eval-test")
    assert len(tested) == load_recipe(recipe_file).suites[0].args["test"]


def test_a_run_that_has_records_is_kept(tmp_path, scripted, monkeypatch, recipe_file):
    class Failing(ScriptedLearner):
        def sft(self, *_):
            raise OSError("the disk is gone")

    monkeypatch.setattr(
        "fate_trl.train.build.build",
        lambda recipe, run, reporter, components: assemble(recipe, run, lambda suites, *_: Failing(suites), reporter),
    )
    with pytest.raises(OSError, match="the disk is gone"):
        invoke("run", recipe_file)
    assert (tmp_path / "runs/first/rounds/01/rollouts.jsonl").exists()


@case(
    "runs and reports",
    "a second run of a recipe into the same output_dir",
    "it went into …-2 without a word",
    "its first line says so",
)
def test_a_second_run_says_where_it_goes(tmp_path, scripted, recipe_file):
    first = invoke("run", recipe_file, "--quiet")
    second = invoke("run", recipe_file, "--quiet")
    assert "is there already" not in first.output
    line = second.output.splitlines()[0]
    assert line == f"{tmp_path}/runs/first is there already, so this goes into {tmp_path}/runs/first-2"
    assert (tmp_path / "runs/first-2/metrics.json").exists()


@pytest.mark.parametrize("after", [0.15, 0.4, 0.8])
@case(
    "command line",
    "Ctrl-C in the first second of a command",
    "a traceback out of the middle of an import",
    "nothing but the exit status 130",
)
def test_an_early_interrupt_prints_no_traceback(tmp_path, after):
    code = "import sys; print('up', flush=True); from fate_trl.__main__ import main; sys.argv = ['fate-trl', 'run', "
    code += "'quickstart', '--set', 'output_dir=run']; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # What was started in the background of a shell ignores Ctrl-C, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "up\n"
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert process.returncode == 130
    assert not list(tmp_path.glob("run/rounds/*/*.jsonl"))


def test_an_interrupt_that_an_import_swallowed_stops_the_run_before_it_begins(monkeypatch):
    monkeypatch.setattr(stop, "_early", [])
    with contextlib.suppress(KeyboardInterrupt):  # as code does that is called where nothing may be raised
        stop.interrupt(signal.SIGINT, None)
    with pytest.raises(stop.Stopped) as raised, stop.Stop().listening():
        pass
    assert raised.value.status == 130


# ------------------------------------------------------------------------------------------------ the command itself


def test_the_version():
    assert invoke("--version").output == f"fate-trl {__version__}\n"


@pytest.mark.parametrize("command", [[], ["--help"]])
@case("command line", "`fate-trl --help`", "said how its code is arranged", "says what it is for and where to begin")
def test_the_help_is_for_users(command):
    text = " ".join(invoke(*command).output.split())
    assert "Train a tool-using language model on its own failed trajectories" in text
    assert "fate-trl run quickstart" in text
    assert "torch is imported" not in text


def test_a_scripted_run_needs_no_report_to_be_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text(small().dump())
    rows, _ = run_recipe(tmp_path / "recipe.yaml", tmp_path / "run")
    assert Run.open(tmp_path / "run").rows == rows
