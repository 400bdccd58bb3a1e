"""Exports: OpenAI's chat format and NeMo Gym's rollouts there and back, preference sets through TRL's trainer."""

import json
import shutil
from pathlib import Path

import pytest
import scripted_run
import yaml
from typer.testing import CliRunner

from fate_trl import interchange
from fate_trl.cli import app
from fate_trl.errors import FateError, InterchangeError
from fate_trl.interchange import exports
from fate_trl.testing.hostile import HOSTILE, record
from fate_trl.types import Score, ScoreCard

TOOL = {"type": "function", "function": {"name": "pay", "description": "Pay.", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two rounds with a scripted learner, whose failures have repairs."""
    folder = tmp_path_factory.mktemp("exports")
    suites = [{"name": "workbench", "args": {"train": 24, "validation": 3, "test": 3}}]
    asked = {"suites": suites, "rounds": 2, "evaluation": {"tasks": 3, "baselines": False}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(asked))
    scripted_run.run(folder / "recipe.yaml", folder / "run")
    shutil.copy(folder / "recipe.yaml", folder / "run")
    return folder / "run"


@pytest.fixture
def export(run, tmp_path):
    """The lines of an export, and the file."""

    def export(format, *options):
        file = tmp_path / f"{format}.jsonl"
        done = CliRunner().invoke(app, ["export", str(run), "-o", str(file), "--format", format, *options])
        if done.exception is not None:
            raise done.exception
        return [json.loads(line) for line in file.read_text().splitlines()], file

    return export


def cases_of(run, stage="collect"):
    return [case for _, case in interchange.run_cases(run, None, stage)]


def without_row(case):
    record = case[0].to_dict()
    record.get("data", {}).pop("row", None)
    if not record.get("data"):
        record.pop("data", None)
    return record, case[1].to_dict()


@pytest.mark.parametrize("command", ["export", "report"])
@pytest.mark.parametrize("name", ["rounds/01/rollouts.jsonl", "rounds/02/new.jsonl", "recipe.yaml", "metrics.json"])
def test_no_record_of_a_run_is_written_over(run, tmp_path, command, name):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / name
    before = file.read_bytes() if file.exists() else None
    (tmp_path / "link").symlink_to(file)
    for place in (file, tmp_path / "link"):
        done = CliRunner().invoke(app, [command, str(run), "-o", str(place)])
        assert isinstance(done.exception, FateError)
        assert "is a record of a run" in str(done.exception)
        assert (file.read_bytes() if file.exists() else None) == before


def test_an_export_that_fails_leaves_the_file_that_was_there(run, tmp_path, monkeypatch):
    file = tmp_path / "failures.jsonl"
    file.write_text("what was there")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fate_trl.cli.files.os.replace", full)
    done = CliRunner().invoke(app, ["export", str(run), "-o", str(file)])
    assert isinstance(done.exception, InterchangeError)
    assert "No space left on device; give another place" in str(done.exception)
    assert [each.name for each in tmp_path.iterdir()] == ["failures.jsonl"]
    assert file.read_text() == "what was there"


def test_an_export_goes_into_a_pipe_as_it_is(run, tmp_path):
    done = CliRunner().invoke(app, ["export", str(run), "-o", "/dev/null"])
    assert done.exit_code == 0
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("format", ["openai", "nemo-gym"])
def test_trajectories_come_back_as_they_were(run, export, format):
    lines, file = export(format)
    wanted = cases_of(run)
    assert len(lines) == len(wanted) > 20
    back = interchange.read(file)
    assert [without_row(case) for case in back] == [without_row(case) for case in wanted]
    assert {interchange.round_of(case) for case in back} == {1, 2}
    row = {"openai": exports.openai_row, "nemo-gym": exports.gym_row}[format]
    tools = [line["tools"] if format == "openai" else None for line in lines]
    for case, line, listed in zip(back, lines, tools, strict=True):
        again = row(case, interchange.round_of(case), listed or [])
        assert again["fate_trl"] == line["fate_trl"]


def test_openais_format_names_calls_and_their_results(export):
    lines, _ = export("openai", "--stage", "eval-test")
    called = [line for line in lines if any(message.get("tool_calls") for message in line["messages"])]
    assert called
    for line in called:
        offered = {tool["function"]["name"] for tool in line["tools"]}
        ids = []
        for message in line["messages"]:
            for call in message.get("tool_calls", ()):
                assert isinstance(json.loads(call["function"]["arguments"]), dict)
                assert call["function"]["name"] in offered
                ids.append(call["id"])
            if message["role"] == "tool":
                assert message["tool_call_id"] in ids
        assert len(ids) == len(set(ids))
        assert set(line["scores"]) == {"security", "utility", "over_refusal", "trajectory_control"}


def test_a_rollout_of_nemo_gym_has_its_components_and_their_sum(run, export):
    lines, _ = export("nemo-gym", "--round", "1")
    for line, (_, card) in zip(lines, cases_of(run), strict=False):
        applying = {name: score.value for name, score in card.scores.items() if score.value is not None}
        assert line["reward_components"] == applying
        assert line["reward"] == pytest.approx(sum(applying.values()))
        assert {name: line[name] for name in applying} == applying
        kinds = [item["type"] for item in line["response"]["output"]]
        assert kinds.count("function_call") >= kinds.count("function_call_output")
        assert line["responses_create_params"]["tools"][0]["name"]


def test_a_broken_trajectory_has_no_reward(run, export, monkeypatch):
    def broken(path, round=None, stage="collect"):
        for number, (trajectory, card) in found:
            yield number, (trajectory, ScoreCard({**card.scores, "utility": Score.error("the judge is down")}))

    found = [(1, case) for case in cases_of(run)[:2]]
    monkeypatch.setattr(interchange, "run_cases", broken)
    assert export("nemo-gym")[0] == []
    assert len(export("openai")[0]) == 2


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_text_comes_back_from_openais_format(name, tmp_path):
    trajectory, card = record(HOSTILE[name])
    row = json.loads(json.dumps(exports.openai_row((trajectory, card), 3, [TOOL])))
    assert exports.is_export(row)
    again, other = exports.case(row, "here")
    assert (again.prompt, again.messages, again.calls) == (trajectory.prompt, trajectory.messages, trajectory.calls)
    assert other == card


def test_arguments_that_are_no_json_stay_as_they_were_written():
    message = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "pay"}}]}
    message["tool_calls"][0]["function"]["arguments"] = '{"to": '
    (said,) = exports.with_ids([message])
    assert said["tool_calls"][0]["function"]["arguments"] == '{"to": '
    assert exports._without_ids(said) == message


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row["fate_trl"].pop("card"),
        lambda row: row["fate_trl"].update(round="one"),
        lambda row: row["messages"].append(1),
    ],
)
def test_a_damaged_line_is_named(run, tmp_path, change):
    row = exports.openai_row(cases_of(run)[0], 1, [])
    change(row)
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(InterchangeError, match="line 1"):
        interchange.read(tmp_path / "x.jsonl")


def test_pairs_are_each_chosen_repair_and_its_failure(run, export):
    lines, _ = export("preferences")
    assert len(lines) == sum(1 for _ in interchange.run_pairs(run)) > 3
    for line, pair in zip(lines, interchange.run_pairs(run), strict=True):
        assert line["prompt"] == [dict(message) for message in pair.prompt]
        assert line["rejected"] == [dict(message) for message in pair.rejected.messages]
        assert line["chosen"] != line["rejected"]
        assert line["score_gap"] > 0, "a repair that was chosen resolves what the failure did not"
        assert {tool["function"]["name"] for tool in json.loads(line["tools"])} == set(pair.chosen.task.tools)
        assert pair.chosen.task.id == pair.rejected.task.id


def test_a_side_that_went_on_from_given_turns_has_them(run):
    (pair, *_) = interchange.run_pairs(run)
    turns = ({"role": "assistant", "content": "Wait."}, {"role": "user", "content": "Go on."})
    import dataclasses

    resumed = dataclasses.replace(pair.chosen, prompt=(*pair.prompt, *turns))
    row = exports.preference_row(resumed, pair.rejected, pair.prompt, [])
    assert row["chosen"][:2] == list(turns)
    assert "tools" not in row


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("preferences", "--stage", "eval-test"), "--stage goes with --format openai and nemo-gym"),
        (("openai", "--stage", "eval-tset"), "it has those of collect, eval-test"),
        (("preferences", "--round", "7"), "no pairs in round 7"),
    ],
)
def test_what_there_is_not_is_told(export, options, words):
    with pytest.raises(InterchangeError, match=words):
        export(*options)


def test_trl_trains_on_an_exported_preference_set(export, tmp_path):
    """Read by `datasets`, rendered with its tools and trained on by DPOTrainer, as they are."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from fate_trl.suites.workbench import POLICIES

    torch.set_num_threads(1)
    _, file = export("preferences")
    data = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    folder = POLICIES["workbench"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    args = DPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3,
        max_length=None, report_to="none", save_strategy="no", logging_steps=1, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
    row = next(row for row in trainer.train_dataset if row["chosen_ids"] != row["rejected_ids"])
    said = tokenizer.decode(row["prompt_ids"]) + tokenizer.decode(row["chosen_ids"])
    assert "None" not in said
    assert "null" not in said
    trainer.train()
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert margins[-1] > margins[0] == 0
