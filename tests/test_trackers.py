"""Trackers get one run and one axis over all rounds and stages; each is read back from what it really wrote."""

import contextlib
import importlib.util
import json
from dataclasses import replace

import pytest

from fate_trl.errors import RecipeError
from fate_trl.ledger.layout import round_dir
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.reporter import Silent
from fate_trl.loop.traces import LONGEST, sampled, trace_of
from fate_trl.loop.trackers import Tracking
from fate_trl.recipe.loading import make_recipe
from fate_trl.recipe.schema import Recipe
from fate_trl.testing.hostile import HOSTILE
from fate_trl.types import Score, ScoreCard, Task, Trajectory

TEXT = "".join(HOSTILE.values())[:400] + "![](http://127.0.0.1:9/x.png) <img src=x onerror=alert(1)>\n# Heading"


def case(stage, attempt=0, value=1.0):
    task = Task(id="t", suite="s", kind="benign", messages=({"role": "user", "content": TEXT},))
    call = {"type": "function", "function": {"name": "read", "arguments": {"of": "\u202e"}}}
    messages = (
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "read", "content": TEXT},
        {"role": "assistant", "content": f"{stage} {TEXT}"},
    )
    trajectory = Trajectory(task=task, messages=messages, stage=stage, attempt=attempt)
    return trajectory, ScoreCard(scores={"utility": Score(value)})


class Told(Silent):
    """What is passed on."""

    def __init__(self):
        self.stages = []

    def finish(self, summary):
        self.stages.append(summary["stage"])


def train(told, run, round, stage, steps, **logs):
    told.start(round, stage, 0)
    told.expect(steps)
    for step in range(1, steps + 1):
        told.advance(1, log={"loss": 1 / step, "text": "no number", **logs})
    summary = {"stage": stage, "steps": steps, "seconds": 1.0}
    run.append(f"{round_dir(round)}/stages.jsonl", [summary])
    told.finish({"round": round, **summary})


def roll(told, run, round, stage, cases, **summary):
    told.start(round, stage, len(cases))
    told.advance(len(cases), cases)
    summary = {"stage": stage, "seconds": 1.0, **summary}
    run.append(f"{round_dir(round)}/stages.jsonl", [summary])
    told.finish({"round": round, **summary})


def a_run(folder, tracker):
    """Two rounds as the loop reports them, in two processes' worth of trackers: it was stopped and resumed."""
    run = RunDirectory(folder)
    recipe = Recipe.model_validate({"suites": ["workbench"], "report_to": tracker})
    told = Told()
    with contextlib.closing(Tracking(recipe, run, told)) as tracking:
        roll(tracking, run, 0, "eval-test", [case("eval-test", 0), case("eval-test", 1, 0.0)], trajectories=2)
        collected, repaired = [case("collect", 0, 0.0)], [case("repair", 0), case("repair", 1)]
        run.append_chunk(f"{round_dir(1)}/rollouts.jsonl", "collect", 0, collected)
        roll(tracking, run, 1, "collect", collected, failures=1)
        run.append_chunk(f"{round_dir(1)}/repairs.jsonl", "repair", 0, repaired)
        keys = [list(trajectory.key) for trajectory, _ in repaired]
        chosen = {"failure": list(collected[0][0].key), "failed": ["utility"], "candidates": keys, "chosen": 1}
        run.append(f"{round_dir(1)}/selections.jsonl", [{**chosen, "decided_by": "only"}, {**chosen, "chosen": None}])
        roll(tracking, run, 1, "repair", repaired, repaired=1)
        train(tracking, run, 1, "sft", 3)
        train(tracking, run, 1, "pfpo", 2, reward=0.5)
    with contextlib.closing(Tracking(recipe, run, told)) as tracking:
        roll(tracking, run, 1, "eval-test", [case("eval-test", 0)], trajectories=1)
        train(tracking, run, 2, "sft", 2)
    assert told.stages == ["eval-test", "collect", "repair", "sft", "pfpo", "eval-test", "sft"]
    return run


SERIES = {
    "train/sft/loss": [(1, 1.0), (2, 0.5), (3, 1 / 3), (6, 1.0), (7, 0.5)],
    "train/pfpo/reward": [(4, 0.5), (5, 0.5)],
    "eval/test/resolved": [(0, 0.5), (5, 1.0)],
    "train/collect/failures": [(0, 1.0)],
    "train/sft/steps": [(3, 3.0), (7, 2.0)],
}
"""(step, value) of what `a_run` told, on one axis."""


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No variable of one test reaches the next, and nobody reaches the network."""
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.setenv(name, "")  # put back after the test whatever the test does
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_tensorboard_holds_one_run_on_one_axis(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    a_run(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    for name, series in SERIES.items():
        assert [(e.step, pytest.approx(e.value)) for e in events.Scalars(name)] == series, name
    assert "train/sft/text" not in events.Tags()["scalars"]
    (table,) = events.Tensors("train/repairs/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert "    chosen answer: repair " in text
    assert all(line.startswith("    ") for line in text.split("\n")), "a code block, whose text is no Markdown"
    assert all(c.isprintable() or c == "\n" for c in text)
    (asked,) = {e.tensor_proto.string_val[0] for e in events.Tensors("args/text_summary")}
    assert json.loads(asked)["report_to"] == ["tensorboard"], "the configuration is the recipe"


@pytest.fixture
def trackio_storage(tmp_path, monkeypatch):
    """trackio's own reader of its database, which lies in a folder of the test's."""
    pytest.importorskip("trackio")
    import trackio.sqlite_storage
    import trackio.utils

    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    return trackio.sqlite_storage.SQLiteStorage


def test_trackio_holds_one_run_on_one_axis(tmp_path, trackio_storage):
    storage = trackio_storage
    a_run(tmp_path / "run", "trackio")
    assert storage.get_runs("fate-trl") == ["run"]
    logs = storage.get_logs("fate-trl", "run")
    for name, series in SERIES.items():
        assert [(log["train/global_step"], pytest.approx(log[name])) for log in logs if name in log] == series, name
    (table,) = [log["train/repairs"]["_value"] for log in logs if "train/repairs" in log]
    assert table[0]["chosen answer"].startswith("repair ")
    assert all(c.isprintable() or c == "\n" for c in table[0]["asked"])


def test_trackio_holds_trajectories_and_repairs_step_by_step(tmp_path, trackio_storage):
    pytest.importorskip("trackio.trace", reason="trackio has traces from 0.25 on")
    a_run(tmp_path / "run", "trackio")
    traces = trackio_storage.get_traces("fate-trl", "run", sort="step_asc")
    about = [trace["metadata"] for trace in traces]
    where = sorted((told["round"], told["stage"], told["step"]) for told in about)
    assert where == [
        *[(0, "eval-test", 0)] * 2,
        *[(1, "collect", 0)] * 2,  # the sample of the stage, and the failure of the repair
        (1, "eval-test", 5),
        (1, "repair", 0),
    ], "on the axis of training steps"
    repair = [told for told in about if told.get("repair") == 0]
    assert {(told["is"], told["stage"], told["resolved"]) for told in repair} == {
        ("failure", "collect", False),
        ("chosen", "repair", True),
    }
    assert {told["scores"]["utility"] for told in about} == {0.0, 1.0}
    (chosen,) = [trace for trace in traces if trace["metadata"].get("is") == "chosen"]
    assert [message["role"] for message in chosen["messages"]] == ["user", "assistant", "tool", "assistant"]
    _, calling, result, answer = chosen["messages"]
    assert calling["tool_calls"][0]["function"] == {"name": "read", "arguments": '{"of": "\\x202e"}'}
    assert result["tool_call_id"] == calling["tool_calls"][0]["id"]
    assert answer["content"].startswith("repair ")
    assert all(c.isprintable() or c == "\n" for m in chosen["messages"] for c in m["content"])
    logs = trackio_storage.get_logs("fate-trl", "run")
    assert not any("trace_" in key for log in logs for key in log), "they are no metrics"


def test_samples_are_of_every_kind_and_failures_first():
    def one(kind, number, value):
        trajectory, card = case("collect", number, value)
        return replace(trajectory, task=replace(trajectory.task, kind=kind)), card

    cases = [one(kind, number, number % 2) for kind in ("benign", "attacked", "harmful") for number in range(4)]
    found = sampled([*cases, *[one("benign", n, 1.0) for n in range(4, 90)]], 6)
    assert [(t.task.kind, t.attempt) for t, _ in found] == [
        *[("attacked", 0), ("benign", 0), ("harmful", 0)],
        *[("attacked", 2), ("benign", 2), ("harmful", 2)],
    ]
    assert sampled([], 6) == []
    assert len(sampled(cases[:1], 6)) == 1


def test_a_trace_is_bounded_and_says_what_was_malformed():
    trajectory, card = case("collect")
    calls = [{"function": {"name": "a", "arguments": "{'x"}}, {"type": "function", "function": {"name": "b"}}]
    said = ({"role": "assistant", "content": "x" * 9000, "tool_calls": calls}, {"role": "tool", "content": "one"})
    messages, told = trace_of((replace(trajectory, messages=said, error="gone"), card), round=3)
    assert len(messages[1]["content"]) < LONGEST + 50
    assert [c["function"]["arguments"] for c in messages[1]["tool_calls"]] == ["{'x", "{}"]
    assert messages[2]["tool_call_id"] == "call_0"
    assert (told["round"], told["status"]) == (3, "error")
    json.dumps([messages, told])


def leveldb_records(raw):
    """Records of a log in LevelDB's format, which wandb's files have after 7 bytes of their own."""
    at, parts = 7, b""
    while at + 7 <= len(raw):
        if 2**15 - at % 2**15 < 7:  # the rest of a block is too short for a header
            at += 2**15 - at % 2**15
        length, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        parts += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


@pytest.mark.slow  # its service takes tens of seconds to start and to end
def test_wandb_holds_one_run_on_one_axis(tmp_path):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    a_run(tmp_path / "run", "wandb")
    wandb.teardown()  # which waits until everything is on the disk
    rows, names = [], set()
    for file in sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb")):
        for data in leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            names |= {record.run.run_id} - {""}
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    assert len(names) == 1
    for name, series in SERIES.items():
        assert [(row["train/global_step"], pytest.approx(row[name])) for row in rows if name in row] == series, name
    (table,) = list((tmp_path / "run/wandb").glob("offline-run-*/files/media/table/train/repairs*.json"))
    assert json.loads(table.read_text())["data"][0][5].startswith("repair ")


def test_a_tracker_says_nothing_on_stdout(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    a_run(tmp_path / "run", "tensorboard")
    assert capsys.readouterr().out == ""


def test_a_tracker_that_is_missing_is_an_error_before_a_model_loads(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *package: None if name == "wandb" else found(name, *package)
    )
    with pytest.raises(RecipeError, match=r"pip install 'fate-trl\[wandb\]'"):
        make_recipe({"suites": ["workbench"], "report_to": ["wandb"], "sft": None, "pfpo": None})


def test_trackers_are_named_in_one_place():
    for section in ("sft", "pfpo"):
        with pytest.raises(RecipeError, match=f"{section}.report_to is set by the run itself"):
            make_recipe({"suites": ["workbench"], section: {"report_to": "wandb"}})
    with pytest.raises(RecipeError, match="report_to"):
        make_recipe({"suites": ["workbench"], "report_to": ["mlfow"]})
