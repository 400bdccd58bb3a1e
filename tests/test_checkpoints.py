"""Interrupted training: resumed from its last complete checkpoint, it ends with the same weights, bit for bit."""

from __future__ import annotations

import shutil
import signal

import pytest
import tiny
import torch
from test_stages import learner, oracle_row, requests

from fate_trl.process.stop import Stopped
from fate_trl.train import checkpoints
from fate_trl.train import learner as torch_learner
from fate_trl.train.checkpoints import last_checkpoint
from fate_trl.types import BufferRow

torch.set_num_threads(1)

SFT = {"max_steps": 8, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_steps": 1, "use_cpu": True}
PFPO = {
    "max_steps": 8,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "save_steps": 1,
    "redraw_rounds": 1,
}
WHOLE, LORA = {"threads": 1}, {"lora": {"r": 4, "lora_dropout": 0.1}, "threads": 1}
CASES = {  # stage, model, further keys, window in steps; every stage has several epochs
    "sft": ("sft", WHOLE, {}, 1),
    "pfpo, adapter, two iterations of two steps, accumulated": (
        "pfpo",
        LORA,
        {"num_iterations": 3, "steps_per_generation": 2, "gradient_accumulation_steps": 4},
        2,  # the second step of an epoch of six micro-steps has two
    ),
}
MORE = {
    "sft, adapter": ("sft", LORA, {}, 1),
    "pfpo": ("pfpo", WHOLE, {}, 1),
    "pfpo, two steps a generation": ("pfpo", WHOLE, {"steps_per_generation": 2}, 2),
    "pfpo, two iterations": ("pfpo", WHOLE, {"num_iterations": 2}, 2),
    "pfpo, several generations a step": (
        "pfpo",
        WHOLE,
        {"steps_per_generation": 1, "gradient_accumulation_steps": 3},
        1,
    ),
}


class Killed(Exception):
    """Stands for a kill."""


class At(torch_learner.TrainerCallback):
    """Does something when a step begins."""

    def __init__(self, step, action):
        self.step = step
        self.action = action

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            self.action()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny.make_tokenizer()
    tiny.make_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def train(made, stage, scratch):
    """One stage on rows or prompts that are the same for every learner."""
    if stage == "pfpo":
        return made.pfpo(requests(made, "pfpo"), 3, str(scratch))
    refused = ({"role": "user", "content": "pay"}, {"role": "assistant", "content": "no"})
    other = BufferRow("oracle", "till", "other", 0, messages=refused, loss_from=1)
    return made.sft([oracle_row(made)] * 3 + [other] * 2, 3, "sft", str(scratch))


def losses(summary):
    return [entry["loss"] for entry in summary["log"] if "loss" in entry]


def resumes_exactly(folder, tmp_path, monkeypatch, case):
    """Killed before the last step but one, resumed, asked to stop in the last window but one, resumed."""
    stage, model, changes, window = case
    settings = {"model": {"path": str(folder), **model}, "sft": SFT, "pfpo": {**PFPO, **changes}}
    whole = learner(folder, **settings)
    unbroken = train(whole, stage, tmp_path / "whole")
    scratch = tmp_path / "part"

    def kill():
        raise Killed

    first = learner(folder, **settings)
    monkeypatch.setattr(torch_learner, "_Steps", lambda reporter: At(5, kill))
    with pytest.raises(Killed):
        train(first, stage, scratch)
    assert last_checkpoint(str(scratch)).endswith(f"-{5 // window * window}")
    second = learner(folder, **settings)
    monkeypatch.setattr(
        torch_learner, "_Steps", lambda reporter: At(5, lambda: second.stop._note(signal.SIGTERM, None))
    )
    with pytest.raises(Stopped):
        train(second, stage, scratch)
    assert last_checkpoint(str(scratch)).endswith("-6"), "what was in hand is finished, and saved"
    monkeypatch.undo()
    last = learner(folder, **settings)
    resumed = train(last, stage, scratch)
    assert losses(resumed) == losses(unbroken)
    assert len(losses(resumed)) == 8
    counted = [{key: n for key, n in summary.items() if key.endswith("_tokens")} for summary in (resumed, unbroken)]
    assert counted[0] == counted[1]
    assert min(counted[0].values()) > 0
    after, wanted = last.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)
    assert losses(resumed)[0] != losses(resumed)[-1]


@pytest.mark.parametrize("case", CASES)
def test_resumed_training_ends_with_the_same_weights(folder, tmp_path, monkeypatch, case):
    resumes_exactly(folder, tmp_path, monkeypatch, CASES[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE)
def test_so_does_every_other_shape_of_training(folder, tmp_path, monkeypatch, case):
    resumes_exactly(folder, tmp_path, monkeypatch, MORE[case])


def checkpoint(scratch, step):
    folder = scratch / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "rng_state.pth").write_bytes(b"state")
    (folder / "contents.json").write_text('{"model.safetensors": 7, "rng_state.pth": 5}')
    return folder


def test_the_newest_complete_checkpoint_counts_and_torn_ones_go(tmp_path):
    assert last_checkpoint(str(tmp_path / "nowhere")) is None
    good = [checkpoint(tmp_path, step) for step in (5, 9, 10)]
    (checkpoint(tmp_path, 11) / "contents.json").unlink()
    (checkpoint(tmp_path, 12) / "contents.json").write_text("{")
    (checkpoint(tmp_path, 13) / "model.safetensors").write_bytes(b"wei")
    (checkpoint(tmp_path, 14) / "model.safetensors").unlink()
    assert last_checkpoint(str(tmp_path)) == str(good[-1])
    assert set(tmp_path.iterdir()) == set(good)
    shutil.rmtree(good[-1])
    assert last_checkpoint(str(tmp_path)) == str(good[-2])
    assert last_checkpoint(str(tmp_path), processes=2) is None, "what follows on two processes is something else"
    assert list(tmp_path.iterdir()) == []


def test_a_short_stage_writes_no_checkpoint_and_a_long_one_as_time_goes_by(folder, tmp_path, monkeypatch):
    sft = {key: value for key, value in SFT.items() if key != "save_steps"}
    saved = []
    monkeypatch.setattr(
        checkpoints.Checkpoints, "on_save", lambda self, args, state, control, **_: saved.append(state.global_step)
    )
    train(learner(folder, sft=sft), "sft", tmp_path)
    assert saved == []
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    train(learner(folder, sft={**sft, "max_steps": 3}), "sft", tmp_path)
    assert saved == [1, 2], "the end of the stage is saved by the stage"
