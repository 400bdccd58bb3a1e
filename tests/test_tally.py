"""What PFPO tells a budget: rollouts of each prompt and how many resolved, counted exactly, killed and resumed too."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from test_checkpoints import PFPO, At, Killed
from test_stages import learner, requests

from fate_trl.loop.budgets import key_of
from fate_trl.train import learner as torch_learner

FLAT = f"{Path(__file__).parent / 'budget_plugins.py'}/flat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny.make_tokenizer()
    tiny.acting_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def made_with(folder, **more):
    return learner(folder, pfpo=PFPO | {"budget": FLAT, "redraw_rounds": 0, "max_steps": 5, **more})


def test_every_rollout_is_counted_at_its_prompt(folder):
    made = made_with(folder)
    asked = requests(made, "pfpo")
    done = made.pfpo([*asked, asked[0]], 3)
    assert set(done["tried"]) <= {key_of(request) for request in asked}
    assert sum(rollouts for rollouts, _ in done["tried"].values()) == 5 * PFPO["per_device_train_batch_size"]
    assert all(0 <= resolved <= rollouts for rollouts, resolved in done["tried"].values())
    assert any(resolved for _, resolved in done["tried"].values())


def test_without_a_budget_nothing_is_counted_and_training_is_the_same(folder):
    counted, plain = made_with(folder), made_with(folder, budget=None)
    with_it = counted.pfpo(requests(counted, "pfpo"), 3)
    without = plain.pfpo(requests(plain, "pfpo"), 3)
    assert "tried" not in without
    assert [e.get("loss") for e in with_it["log"]] == [e.get("loss") for e in without["log"]]
    after, wanted = tiny.state(counted.model), tiny.state(plain.model)
    assert all((after[key] == wanted[key]).all() for key in wanted)


def test_re_drawn_groups_count_as_well(folder):
    made = made_with(folder, redraw_rounds=1)
    done = made.pfpo(requests(made, "pfpo"), 3)
    assert sum(rollouts for rollouts, _ in done["tried"].values()) > 5 * PFPO["per_device_train_batch_size"]


def test_killed_and_resumed_it_counts_what_a_run_that_was_not_counts(folder, tmp_path, monkeypatch):
    whole = made_with(folder)
    unbroken = whole.pfpo(requests(whole, "pfpo"), 3, str(tmp_path / "whole"))

    def kill():
        raise Killed

    first = made_with(folder)
    monkeypatch.setattr(torch_learner, "_Steps", lambda reporter: At(3, kill))
    with pytest.raises(Killed):
        first.pfpo(requests(first, "pfpo"), 3, str(tmp_path / "part"))
    monkeypatch.undo()
    last = made_with(folder)
    resumed = last.pfpo(requests(last, "pfpo"), 3, str(tmp_path / "part"))
    assert resumed["tried"] == unbroken["tried"]
