"""turn-discount, tree-prefix, segments, value-differences, implicit-reward: what shows that they work."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

from fate_trl_methods.tokens import turns_of
from worlds import ask, facts, make, played, row_facts, teach


def by_turn(said, rows, g, n):
    """A row's value in each turn; every token of a turn has the same, others 0."""
    values = []
    for turn in range(turns_of(rows, g, n)):
        own = said[g, n][rows.turn_G_N_T[g, n] == turn]
        assert len(set(own.tolist())) == 1, "constant in a turn"
        values.append(own[0])
    assert (said[g, n][rows.turn_G_N_T[g, n] < 0] == 0).all(), "a tool's tokens get nothing"
    return values


def test_turn_discount_gives_an_earlier_success_more_per_turn():
    rows = row_facts([[("a",), ("a", "b", "c")]], [[True, True]])
    said = ask(make("turn-discount", gamma=0.5), [[1.0, 1.0]], rows=rows)
    assert said.shape == rows.turn_G_N_T.shape
    early, late = by_turn(said, rows, 0, 0), by_turn(said, rows, 0, 1)
    mean = np.mean([0.5, 1.0, 0.125, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(early, np.array([0.5, 1.0]) - mean)
    np.testing.assert_allclose(late, np.array([0.125, 0.25, 0.5, 1.0]) - mean)
    assert early[0] > late[0]
    assert not ask(make("turn-discount", gamma=1.0), [[1.0, 1.0]], rows=rows).any(), "without a discount all are alike"


def test_tree_prefix_keeps_the_order_within_a_prefix_and_prefers_success_from_a_worse_place():
    """Two groups of one task: from the start, where it goes badly, and from a call on, where it goes well."""
    calls = [[("a",), (), (), ()], [("a", "b")] * 4]
    rows = row_facts(
        calls, [[True, False, False, False], [True, True, True, False]], prefix=[[0] * 4, [1] * 4], task=[["t"] * 4] * 2
    )
    scores = np.array([[1.0, 0, 0, 0], [1.0, 1, 1, 0]])
    said = ask(make("tree-prefix"), scores, rows=rows)
    assert said[0, 0] > said[0, 1] == said[0, 2]
    assert said[1, 0] > said[1, 3]
    assert said[0, 0] > said[1, 0], "the same reward, from a prefix whose subtree does better"
    assert said.mean() == pytest.approx(0)
    assert said.std() <= 1 + 1e-9
    loud = ask(make("tree-prefix"), 100 * scores, rows=rows)
    assert loud.std() == pytest.approx(1)
    plain = ask(make("tree-prefix", alpha=0.0), scores, rows=rows)
    np.testing.assert_allclose(plain, scores - 0.5)
    for value in ("optimistic", "pessimistic"):
        assert np.isfinite(ask(make("tree-prefix", value=value), scores, rows=rows)).all()


def test_segments_blames_the_turn_after_which_things_went_wrong_and_telescopes():
    calls = [[("read", "tell"), ("read", "pay"), ("read", "pay"), ("read", "tell")]]
    scores = np.array([[1.0, 0.0, 0.0, 1.0]])
    rows = row_facts(calls, scores > 0)
    said = ask(make("segments"), scores, rows=rows)
    good, bad = by_turn(said, rows, 0, 0), by_turn(said, rows, 0, 1)
    np.testing.assert_allclose(good, [0.0, 0.5, 0.0])
    np.testing.assert_allclose(bad, [0.0, -0.5, 0.0])
    start = scores.mean()
    assert sum(good) == pytest.approx(1.0 - start)
    assert sum(bad) == pytest.approx(0.0 - start)


def test_segments_on_real_episodes_blames_obeying():
    trajectories, scores = played("workbench", ("oracle", "obey"), "attacked")
    rows = facts(trajectories, scores)
    width = 3 * (1 + max(len(calls) for calls in rows.calls_G_N.reshape(-1)))
    turn_G_N_T = np.full((*scores.shape[:2], width), -1)
    for g, n in np.ndindex(*scores.shape[:2]):
        for turn in range(1 + len(rows.calls_G_N[g, n])):
            turn_G_N_T[g, n, 3 * turn : 3 * turn + 2] = turn
    rows = dataclasses.replace(rows, turn_G_N_T=turn_G_N_T)
    said = ask(make("segments"), scores, rows=rows)
    reward = np.nanmean(scores, axis=2)
    for g in range(len(scores)):
        obeyed = by_turn(said, rows, g, 1)
        assert sum(obeyed) == pytest.approx(reward[g, 1] - reward[g].mean())
        worst = int(np.argmin(obeyed))
        shared = sum(a == b for a, b in zip(rows.path_G_N[g, 0], rows.path_G_N[g, 1]))
        assert worst == shared, "the first turn in which it did other than the oracle"


def test_value_differences_telescopes_and_learns_once():
    selector = make("value-differences", prior=1.0)
    calls = [[("read", "tell"), ("read", "pay")] * 2]
    scores = np.array([[1.0, 0.0, 1.0, 0.0]])
    rows = row_facts(calls, scores > 0)
    assert (ask(selector, scores, rows=rows) == 0).all(), "nothing is known yet"
    teach(selector, scores, rows=rows)
    said = ask(selector, scores, rows=rows)
    for n, path in enumerate(calls[0]):
        values = [selector.value("attacked", path[:k]) for k in range(3)]
        np.testing.assert_allclose(by_turn(said, rows, 0, n), [*np.diff(values), 0.0])
        assert said[0, n][::3].sum() == pytest.approx(values[-1] - values[0])
    assert said[0, 0].max() > 0 > said[0, 1].min()
    assert selector.metrics() == {"states": 4.0}
    ended = make("value-differences", prior=1.0, reward_at_end=True)
    ended.load_state_dict(selector.state_dict())
    total = by_turn(ask(ended, scores, rows=rows), rows, 0, 0)
    assert sum(total) == pytest.approx(1.0 - selector.value("attacked", ()))


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    """A tiny model, and the same after some steps towards one text."""
    tiny = pytest.importorskip("tiny")
    import torch

    torch.set_num_threads(1)
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny.make_tokenizer()
    model = tiny.make_model(tokenizer)
    model.save_pretrained(folder / "reference")
    tiny.warm_up(model, tokenizer, ["<|user|>pay alice<|end|><|assistant|>done<|end|>"] * 9, steps=8)
    model.save_pretrained(folder / "policy")
    return folder, tokenizer


def test_implicit_reward_sums_to_beta_times_the_log_ratio(two_models):
    import torch
    from transformers import AutoModelForCausalLM

    folder, tokenizer = two_models
    prompt = tokenizer("<|user|>pay alice<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
    texts = ["done<|end|>", "i cannot do that<|end|>"]
    completions = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, completions))
    turns = np.full((1, 2, width), -1)
    ids, prompts = np.empty((1, 2), object), np.empty((1, 2), object)
    for n, completion in enumerate(completions):
        turns[0, n, : len(completion)] = 0
        ids[0, n], prompts[0, n] = tuple(completion), tuple(prompt)
    rows = dataclasses.replace(
        row_facts(None, [[True, False]], turns=turns), prompt_ids_G_N=prompts, completion_ids_G_N=ids
    )
    selector = make("implicit-reward", policy=str(folder / "policy"), reference=str(folder / "reference"), beta=0.1)
    found = selector.rewards(rows)

    def whole(name, completion):
        model = AutoModelForCausalLM.from_pretrained(folder / name).eval()
        with torch.no_grad():
            logs = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
        return sum(logs[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion))

    for n, completion in enumerate(completions):
        ratio = whole("policy", completion) - whole("reference", completion)
        assert found[0, n].sum() == pytest.approx(0.1 * ratio, abs=1e-5)
    assert found[0, 0].sum() > 0 > found[0, 1].sum(), "it was taught to say done"
    said = ask(selector, [[0.5, 0.5]], rows=rows)
    assert said.shape == turns.shape
    assert said[0, 0, 0] > 0 > said[0, 1, 0]
    assert (said[turns < 0] == 0).all()


def test_implicit_reward_says_which_model_is_not_there():
    from fate_trl.errors import RecipeError

    selector = make("implicit-reward", policy="/nowhere/at/all", reference="/nowhere")
    with pytest.raises(RecipeError, match="no model can be loaded from /nowhere/at/all"):
        ask(selector, [[1.0]], rows=row_facts(None, [[True]]))
