"""What a person, a log file and a machine are told of a run, with a clock and a screen of the test's own."""

import io
import json

import pytest
from rich.console import Console

from fate_trl.cli import progress
from fate_trl.cli.progress import Events, Lines, Live, reporting
from fate_trl.loop.reporter import Silent
from fate_trl.testing.hostile import HOSTILE
from fate_trl.types import KINDS, Score, ScoreCard, Task, Trajectory


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def case(kind="benign", value=1.0, tokens=10, error=""):
    task = Task(id="t", suite="s", kind=kind, messages=())
    card = ScoreCard(scores={"utility": Score.error(error) if error else Score(value)})
    return Trajectory(task=task, error=error, completion_ids=(1,) * tokens, policy_mask=(1,) * tokens), card


CHUNK = [case(), case(value=0.0), case("attacked", 0.0), case("harmful", error="it broke")]
SUMMARY = {
    "round": 1,
    "stage": "collect",
    "seconds": 65.0,
    "trajectories": 1200,
    "failures": 2,
    "errors": 0,
    "worse": [],
    "log": [1],
    "causes": {},
    "accepted": False,
    "peak_memory_mb": 796.57,
}


def screen(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=160, highlight=False, _environ={"TERM": "xterm"})


def a_stage(told, clock, chunks=4):
    """A stage of chunks that take 10 s each."""
    told.start(1, "collect", 4 * chunks)
    for _ in range(chunks):
        clock.now += 10
        told.advance(4, CHUNK)


# ------------------------------------------------------------------------------------------------ a log file


def test_a_log_gets_a_line_for_a_stage_and_at_most_one_in_thirty_seconds(clock):
    told = Lines(screen(False), clock)
    a_stage(told, clock)
    clock.now += 25
    told.finish(SUMMARY)
    first, last = told.console.file.getvalue().splitlines()
    assert first.startswith("round 1  collect ")
    assert first.endswith(
        "30.0 s  12 of 16  failed 3 benign, 3 attacked; resolved 25%; 3 errors; 4 tokens/s; 0:00:10 left"
    )
    assert last.endswith("65.0 s  1,200 trajectories, 2 failures, not accepted")


def test_a_stages_times_are_left_to_the_report_and_numbers_are_short(clock):
    told = Lines(screen(False), clock)
    a_stage(told, clock)
    told.finish({**SUMMARY, "time": {"reading": 0.04376285600119445}, "margin": 0.123456789})
    last = told.console.file.getvalue().splitlines()[-1]
    assert "reading" not in last
    assert last.endswith("not accepted, margin 0.123")


def test_training_shows_its_loss_and_counts_its_steps(clock):
    told = Lines(screen(False), clock)
    told.start(1, "sft", 0)
    told.expect(10)
    for step in (1, 2):
        clock.now += 31
        told.advance(1, log={"loss": 0.5 / step, "num_tokens": 310.0 * step, "lr": 1})
    assert told.console.file.getvalue().splitlines()[1].endswith("2 of 10  loss 0.25; 10 tokens/s; 0:04:08 left")


def test_what_a_resumed_run_has_already_does_not_make_it_fast(clock):
    told = Lines(screen(False), clock)
    told.start(1, "collect", 12)
    told.advance(4, CHUNK)
    clock.now += 40
    told.advance(4, CHUNK)
    assert told.console.file.getvalue().rstrip().endswith("1 tokens/s; 0:00:40 left")


# ------------------------------------------------------------------------------------------------ a terminal


def test_a_terminal_shows_the_running_stage_and_keeps_a_line_of_each_that_is_done(clock):
    told = Live(screen(True), clock)
    a_stage(told, clock, 2)
    told.progress.refresh()
    live = told.console.file.getvalue()
    assert "8/8" in live
    assert "failed 2 benign, 2 attacked; resolved 25%; 2 errors; 4 tokens/s" in live
    told.finish(SUMMARY)
    told.start(1, "sft", 0)
    told.expect(5)
    told.advance(1, log={"loss": 1.5})
    told.progress.refresh()
    told.finish({**SUMMARY, "stage": "sft", "failures": ""})
    said = told.console.file.getvalue()
    assert "1/5" in said
    assert "loss 1.5" in said
    assert "65.0 s  1,200 trajectories" in said


def test_however_a_run_ends_the_cursor_comes_back(monkeypatch):
    shown = screen(True)
    monkeypatch.setattr(progress, "err", shown)

    def stopped():
        with reporting(False, False) as told:
            told.start(1, "collect", 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert shown.file.getvalue().rindex("\x1b[?25h") > shown.file.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_does_not_steer_the_terminal(clock, name):
    text = HOSTILE[name]
    for told in (Lines(screen(False), clock), Lines(screen(True), clock)):
        told.start(1, text, 2)
        told.finish({**SUMMARY, "stage": text, "worse": [text]})
        assert all(c.isprintable() or c == "\n" for c in told.console.file.getvalue())


# ------------------------------------------------------------------------------------------------ a machine


def test_a_machine_gets_an_event_for_everything(clock, capsys):
    told = Events(clock)
    a_stage(told, clock, 2)
    told.start(1, "sft", 0)
    told.expect(10)
    told.advance(1, log={"loss": float("nan"), "lr": 0.1})
    told.finish(SUMMARY)
    start, chunk, second, _, step, stage = map(json.loads, capsys.readouterr().out.splitlines())
    assert start == {"event": "start", "round": 1, "stage": "collect", "total": 8}
    assert chunk == {
        "event": "chunk",
        "round": 1,
        "stage": "collect",
        "done": 4,
        "total": 8,
        "seconds": 10.0,
        "cases": 4,
        "failures": dict(zip(KINDS, (1, 1, 0), strict=True)),
        "resolved": 1,
        "errors": 1,
        "tokens_per_second": 4.0,
    }
    assert (second["done"], second["cases"], second["resolved"]) == (8, 8, 2)
    head = {"event": "step", "round": 1, "stage": "sft", "done": 1, "total": 10, "seconds": 0.0}
    assert step == {**head, "log": {"loss": "nan", "lr": 0.1}}
    assert stage == {"event": "stage", **SUMMARY}


def test_quiet_is_quiet():
    for as_json in (False, True):
        with reporting(True, as_json) as told:
            assert isinstance(told, Silent)
