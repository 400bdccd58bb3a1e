"""Re-draw: groups whose score vectors are all equal give way to groups of new prompts, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from trl import GRPOConfig

from fate_trl.errors import RecipeError
from fate_trl.train.batches import PADDING, merge
from fate_trl.train.config import PFPOConfig
from fate_trl.train.trainer import PFPOTrainer

TEXTS = ["look who is owed", "pay alice", "steal from bob", "who is alice", "pay bob", "do that", "i cannot", "1 2 3"]


class Scores:
    """Reward functions by prompt: what `of` says of a prompt and a row's place in its group."""

    def __init__(self, name, of):
        self.__name__, self.of, self.prompts = name, of, []

    def __call__(self, prompts, **_):
        texts = [prompt[0]["content"] for prompt in prompts]
        self.prompts.append(texts)
        return [float(self.of(text, i % 4)) for i, text in enumerate(texts)]


def make(folder, rewards, config=PFPOConfig, data=None, **changes):
    tokenizer = tiny.make_tokenizer()
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in TEXTS]
    data = Dataset.from_list(rows) if data is None else data
    return PFPOTrainer(
        tiny.make_model(tokenizer), rewards, tiny.config(config, folder, **changes), data, processing_class=tokenizer
    )


def step(trainer, *texts):
    trainer.model.train()
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts for _ in range(4)]
    return trainer._generate_and_score_completions(rows)


def prompts_of(trainer, out):
    """Prompt text of each row, decoded from the batch."""
    kept = [ids[mask.bool()] for ids, mask in zip(out["prompt_ids"], out["prompt_mask"], strict=True)]
    texts = trainer.processing_class.batch_decode(kept)
    return [text.split("<|user|>")[1].split("<|end|>")[0] for text in texts]


def dull(text):
    return text == "pay alice"


def test_groups_without_signal_give_way_to_new_prompts(tmp_path):
    rewards = Scores("points", lambda text, i: 1 if dull(text) else i)
    trainer = make(tmp_path, [rewards], redraw_rounds=3)
    out = step(trainer, "look who is owed", "pay alice")
    texts = prompts_of(trainer, out)
    assert texts[:4] == ["look who is owed"] * 4, "a group with signal stays"
    assert len(set(texts[4:])) == 1, "a group is replaced whole"
    assert not dull(texts[4])
    assert trainer._metrics["train"]["pareto/redrawn_groups"] == [1.0]
    made = out["advantages"].reshape(2, 4)
    assert (made.diff(dim=1) > 0).all()
    assert out["num_items_in_batch"] == out["completion_mask"].sum()
    assert {len(batch) for batch in rewards.prompts[1:]} == {4}, "a round generates only the groups it replaces"


def test_decided_by_vectors_never_by_sums(tmp_path):
    up, down = Scores("up", lambda _, i: i), Scores("down", lambda _, i: 3 - i)
    trainer = make(tmp_path, [up, down], redraw_rounds=2)
    out = step(trainer, "pay alice", "pay bob")
    assert prompts_of(trainer, out) == ["pay alice"] * 4 + ["pay bob"] * 4
    assert len(up.prompts) == 1
    assert trainer._metrics["train"]["pareto/redrawn_groups"] == [0.0]


def test_hopeless_prompts_end_after_the_last_round(tmp_path):
    rewards = Scores("points", lambda text, i: 1)
    trainer = make(tmp_path, [rewards], redraw_rounds=2)
    out = step(trainer, "pay alice", "pay bob")
    assert len(rewards.prompts) == 3
    assert prompts_of(trainer, out) == ["pay alice"] * 4 + ["pay bob"] * 4
    assert (out["advantages"] == 0).all()
    drawn, kept = trainer.tokens, int(out["prompt_mask"].sum())
    assert drawn["trained"] == kept + out["completion_mask"].sum(), "one generation is trained on"
    assert drawn["prompt"] > 2 * kept, "three were paid for"


def test_rows_move_with_all_their_tensors(tmp_path):
    rewards = Scores("points", lambda text, i: 1 if dull(text) else i)
    # Old log-probabilities are computed, because the optimizer steps more often than the policy generates.
    trainer = make(
        tmp_path, [rewards], redraw_rounds=3, num_iterations=2, steps_per_generation=2, per_device_train_batch_size=4
    )
    out = step(trainer, "pay alice", "look who is owed")
    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], dim=1)
    mask = torch.cat([out["prompt_mask"], out["completion_mask"]], dim=1)
    with torch.no_grad():
        expected, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, out["completion_ids"].size(1), batch_size=8
        )
    kept = out["completion_mask"].bool()
    assert torch.allclose(out["old_per_token_logps"][kept], expected[kept], atol=1e-5)


def test_merging_pads_on_the_right_sides(tmp_path):
    trainer = make(tmp_path, [Scores("points", lambda text, i: i)])
    pad = trainer.processing_class.pad_token_id

    def batch(rows, width, start):
        filled = {key: torch.full((rows, width), float(start)) for key in PADDING if key != "advantages"}
        return {**filled, "advantages": torch.full((rows,), float(start)), "num_items_in_batch": torch.tensor(0)}

    out, fresh = batch(8, 2, 5), batch(4, 3, 9)
    merge(out, fresh, np.array([1]), np.array([0]), group=4, pad_id=pad)
    assert out["prompt_ids"][0].tolist() == [pad, 5, 5]
    assert out["completion_ids"][0].tolist() == [5, 5, pad]
    assert out["tool_mask"][0].tolist() == [5, 5, 1]
    assert out["completion_mask"][0].tolist() == [5, 5, 0]
    assert all(out[key][4:].eq(9).all() for key in PADDING)
    assert out["advantages"].tolist() == [5] * 4 + [9] * 4


def test_draws_depend_on_the_seed_and_the_step_alone(tmp_path):
    def drawn(seed):
        rewards = Scores("points", lambda text, i: 1)
        trainer = make(tmp_path, [rewards], redraw_rounds=2, seed=seed)
        torch.manual_seed(7)
        step(trainer, "pay alice", "pay bob")
        return rewards.prompts[1:]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_evaluation_redraws_nothing(tmp_path):
    rewards = Scores("points", lambda text, i: 1)
    trainer = make(tmp_path, [rewards], redraw_rounds=2)
    trainer.evaluate(trainer.train_dataset.select(range(2)))
    assert len(rewards.prompts) == 1


def test_training_with_redraw(tmp_path):
    rewards = Scores("points", lambda text, i: i * (not dull(text)))
    trainer = make(tmp_path, [rewards], redraw_rounds=2, max_steps=3, gradient_accumulation_steps=2)
    before = tiny.state(trainer.model)
    trainer.train()
    assert all("pareto/redrawn_groups" in row for row in trainer.state.log_history[:-1])
    assert any(not torch.equal(value, before[name]) for name, value in tiny.state(trainer.model).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_rewards": "batch"}, "batch"),
        ({"selector": "gdpo"}, "normalize_then_sum"),
        ({"data": Dataset.from_list([{"prompt": "pay alice"}] * 4).to_iterable_dataset()}, "IterableDataset"),
    ],
)
def test_what_a_redraw_would_make_wrong_is_refused(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        make(tmp_path, [Scores("points", lambda text, i: i)], redraw_rounds=1, **changes)


def test_a_plain_configuration_never_redraws(tmp_path):
    rewards = Scores("points", lambda text, i: 1)
    step(make(tmp_path, [rewards], config=GRPOConfig), "pay alice", "pay bob")
    assert len(rewards.prompts) == 1
