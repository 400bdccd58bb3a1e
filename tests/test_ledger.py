"""The run directory: what is committed stays, what is half-written goes, what is damaged is named."""

import json
import multiprocessing
import os
from contextlib import nullcontext

import pytest
from case import case

from fate_trl.errors import LedgerError
from fate_trl.ledger import fsck, writing
from fate_trl.ledger.layout import round_dir, seed_of
from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.types import Score, ScoreCard, Task, Trajectory

HOSTILE = "a\nb\r\u2028\x85\x00\ud800 </script>"
RECORDS = [{"n": 1, "text": HOSTILE}, {"n": 2}, {"n": 3}]


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "deep" / "run")


def cases(*numbers):
    tasks = [Task(f"t{number}", "s", "benign", ()) for number in numbers]
    return [(Trajectory(task, stage="collect"), ScoreCard({"utility": Score(0.5)})) for task in tasks]


# ------------------------------------------------------------------------------------------------ lines


def test_what_is_appended_is_read_back_in_order(run):
    assert run.read("rounds/01/x.jsonl") == []
    run.append("rounds/01/x.jsonl", RECORDS[:1])
    run.append("rounds/01/x.jsonl", RECORDS[1:])
    assert run.read("rounds/01/x.jsonl") == RECORDS
    raw = (run.path / "rounds/01/x.jsonl").read_bytes()
    assert raw.isascii()
    assert raw.count(b"\n") == len(RECORDS), "no text in a record ends its line"


def test_keys_keep_their_order(run):
    """What is read back must word and render the same prompts as what was written."""
    run.append("x.jsonl", [{"b": {"z": 1, "a": 2}, "a": 1}])
    (record,) = run.read("x.jsonl")
    assert (list(record), list(record["b"])) == (["b", "a"], ["z", "a"])


@pytest.mark.parametrize("tail", ['{"n": 4', '{"n": 4}', "\x00\x00", '{"n": 4}\n{"n'])
def test_a_half_written_last_line_is_cut_off_and_the_next_record_follows_cleanly(run, tail):
    run.append("x.jsonl", RECORDS)
    with open(run.path / "x.jsonl", "a") as file:
        file.write(tail)
    whole = RECORDS + ([{"n": 4}] if "\n" in tail else [])
    assert run.read("x.jsonl") == whole
    resumed = RunDirectory(run.path)
    resumed.append("x.jsonl", [{"n": 5}])
    assert resumed.read("x.jsonl") == [*whole, {"n": 5}]


@pytest.mark.parametrize("locked", [True, False])
def test_a_torn_end_is_cut_by_the_holder_of_the_lock_alone(run, locked):
    run.append("x.jsonl", RECORDS)
    with open(run.path / "x.jsonl", "a") as file:
        file.write('{"n": 4')
    torn, other = (run.path / "x.jsonl").read_bytes(), RunDirectory(run.path)
    with run.lock() if locked else nullcontext():
        if locked:
            with pytest.raises(LedgerError, match="in use by another process"):
                other.append("x.jsonl", [{"n": 5}])
            assert (run.path / "x.jsonl").read_bytes() == torn
        else:
            other.append("x.jsonl", [{"n": 5}])
            assert other.read("x.jsonl") == [*RECORDS, {"n": 5}]


@pytest.mark.parametrize("half", ['{"n": 4', '{"n": 4}', "\x00"])
@case(
    "runs and reports",
    "`fate-trl eval RUN` looks at a run whose writer is half way through a line",
    "the reader cut the file, and the rest of the line then stood there as damage that stopped --resume",
    "the file is left as it is, and the writer's line is whole in the end",
)
def test_a_reader_leaves_a_line_alone_that_its_writer_is_about_to_end(run, half):
    stages = "rounds/01/stages.jsonl"
    run.append(stages, [{"stage": "accept", "accepted": True}])
    (run.path / "rounds/01/policy").mkdir()
    with open(run.path / stages, "ab", buffering=0) as live:
        live.write(half.encode())
        before = (run.path / stages).read_bytes()
        reader = RunReader(run.path)
        assert reader.policy_folder() == run.path / "rounds/01/policy"
        assert reader.stages(1) == {"accept": {"stage": "accept", "accepted": True}}
        assert (run.path / stages).read_bytes() == before


def test_reading_takes_no_lock_and_changes_nothing(run):
    run.append_chunk("rounds/01/rollouts.jsonl", "collect", 0, cases(1, 2))
    run.append_chunk("rounds/01/rollouts.jsonl", "collect", 1, cases(3, 4))
    file = run.path / "rounds/01/rollouts.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with run.lock():
        before[run.path / ".lock"] = b""
        reader = RunReader.open(run.path)
        assert reader.cases("rounds/01/rollouts.jsonl", "collect") == cases(1, 2)
        assert [record["chunk"] for record in reader.read("rounds/01/rollouts.jsonl")] == [0, 0]
        assert fsck.examine(reader) == [reader_damage_of_recipe(reader)]
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def reader_damage_of_recipe(reader):
    """This run was made without a recipe; nothing else is wrong with it."""
    (found,) = [damage for damage in fsck.examine(reader) if damage.file == "recipe.yaml"]
    return found


@pytest.mark.parametrize("line", ['{"n": ', "garbage", "", "[1]", "7", '"text"', "\udcff"])
def test_a_damaged_line_elsewhere_is_named(run, line):
    run.append("rounds/01/x.jsonl", RECORDS)
    file = run.path / "rounds/01/x.jsonl"
    lines = file.read_text().splitlines()
    lines[1] = line
    file.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    before = file.read_bytes()
    with pytest.raises(LedgerError, match=r"rounds/01/x\.jsonl, line 2 is damaged.*resume"):
        run.read("rounds/01/x.jsonl")
    assert file.read_bytes() == before, "what cannot be read is not changed"


# ------------------------------------------------------------------------------------------------ chunks


def test_chunks_come_back_whole_and_in_order(run):
    run.append_chunk("r.jsonl", "collect", 1, cases(3))
    run.append_chunk("r.jsonl", "eval-test", 0, cases(9))
    run.append_chunk("r.jsonl", "collect", 0, cases(1, 2))
    assert run.chunks("r.jsonl", "collect") == {0: cases(1, 2), 1: cases(3)}
    assert run.cases("r.jsonl", "collect") == cases(1, 2, 3)
    assert run.cases("r.jsonl", "eval-test") == cases(9)
    assert run.cases("r.jsonl", "repair") == []
    assert run.cases("absent.jsonl", "collect") == []


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_a_torn_chunk_is_dropped_from_the_file_and_can_be_redone(run, keep):
    run.append_chunk("r.jsonl", "collect", 0, cases(1, 2))
    run.append_chunk("r.jsonl", "other", 0, cases(5))
    start = (run.path / "r.jsonl").stat().st_size
    run.append_chunk("r.jsonl", "collect", 1, cases(3, 4, 6, 7))
    whole = (run.path / "r.jsonl").read_bytes()
    os.truncate(run.path / "r.jsonl", start + int(keep * (len(whole) - start)))
    torn, resumed = (run.path / "r.jsonl").read_bytes(), RunDirectory(run.path)
    assert resumed.chunks("r.jsonl", "collect") == {0: cases(1, 2)}
    assert (run.path / "r.jsonl").read_bytes() == torn, "reading changes nothing"
    resumed.append_chunk("r.jsonl", "collect", 1, cases(3, 4, 6, 7))
    assert (run.path / "r.jsonl").read_bytes() == whole


def test_a_torn_chunk_of_another_stage_goes_too(run):
    run.append_chunk("r.jsonl", "other", 0, cases(1, 2))
    lines = (run.path / "r.jsonl").read_text().splitlines(keepends=True)
    (run.path / "r.jsonl").write_text(lines[0])
    assert run.chunks("r.jsonl", "collect") == {}
    assert run.read("r.jsonl") == []


# ------------------------------------------------------------------------------------------------ whole files


def test_json_files(run):
    assert run.read_json("metrics.json") is None
    run.write_json("metrics.json", {"text": HOSTILE, "n": 1.5})
    assert run.read_json("metrics.json") == {"text": HOSTILE, "n": 1.5}
    (run.path / "metrics.json").write_text("{")
    with pytest.raises(LedgerError, match=r"metrics\.json is damaged"):
        run.read_json("metrics.json")


def test_a_file_is_the_old_one_until_the_new_one_is_complete(run, monkeypatch):
    run.write_json("metrics.json", {"version": "old"})
    with pytest.raises(ValueError, match="JSON"):
        run.write_json("metrics.json", {"version": float("nan")})
    assert run.read_json("metrics.json") == {"version": "old"}

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(LedgerError, match=r"no space.*--resume"):
        run.write_json("metrics.json", {"version": "new"})
    assert run.read_json("metrics.json") == {"version": "old"}


def test_a_run_directory_that_cannot_be_made_says_which_key_to_set(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=r"file/run: .*Set output_dir"):
        RunDirectory(tmp_path / "file" / "run")


# ------------------------------------------------------------------------------------------------ folders


def test_a_folder_is_replaced_only_when_it_is_complete(run):
    with run.replacing("rounds/01/policy") as fresh:
        (fresh / "weights").write_text("old")
        (fresh / "extra").write_text("old")

    def stop_half_way():
        with run.replacing("rounds/01/policy") as fresh:
            (fresh / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert (run.path / "rounds/01/policy/weights").read_text() == "old"
    with run.replacing("rounds/01/policy") as fresh:
        assert list(fresh.iterdir()) == []
        (fresh / "weights").write_text("new")
    assert [file.name for file in (run.path / "rounds/01/policy").iterdir()] == ["weights"]
    assert (run.path / "rounds/01/policy/weights").read_text() == "new"
    assert [folder.name for folder in (run.path / "rounds/01").iterdir()] == ["policy"], "nothing is left lying about"


def _try_lock(path, answer):
    try:
        with RunDirectory(path).lock():
            answer.put("locked")
    except LedgerError as error:
        answer.put(str(error))


def test_a_second_process_is_kept_off(run):
    context = multiprocessing.get_context("fork")
    answer = context.Queue()

    def ask():
        process = context.Process(target=_try_lock, args=(run.path, answer))
        process.start()
        said = answer.get(timeout=30)
        process.join()
        return said

    with run.lock():
        assert "in use by another process" in ask()
    assert ask() == "locked"


# ------------------------------------------------------------------------------------------------ seeds


def test_every_stage_round_chunk_and_run_has_its_own_seed():
    stages = ("collect", "repair", "sft", "pfpo", "eval-test", "eval-validation", "tasks-train")
    parts = [
        (run, round, stage, chunk) for run in range(3) for round in range(4) for stage in stages for chunk in range(5)
    ]
    seeds = [seed_of(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == [seed_of(*part) for part in parts]
    assert seed_of(0, 1, "sft") == seed_of(0, 1, "sft", 0)


def test_rounds_sort_by_name():
    assert [round_dir(number) for number in (0, 1, 12)] == ["rounds/00", "rounds/01", "rounds/12"]


def test_records_are_readable_without_this_package(run):
    run.append_chunk("r.jsonl", "collect", 0, cases(1))
    (line,) = (run.path / "r.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "card": {"scores": {"utility": {"value": 0.5}}},
        "chunk": 0,
        "of": 1,
        "stage": "collect",
        "trajectory": {"stage": "collect", "task": {"id": "t1", "kind": "benign", "messages": [], "suite": "s"}},
    }
