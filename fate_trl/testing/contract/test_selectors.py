"""Pareto selectors, by what they declare: what they need, learn and compare, and whether scores alone count."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from ...hookspecs import Choice, Rows, Stateful, takes_rows
from ...types import OBJECTIVES
from .. import samples
from .helpers import generator, make


def _choose(selector: Any, scores_K_M: np.ndarray, seed: int = 0) -> Choice | None:
    names = _names(selector, scores_K_M)
    choice: Choice | None = selector.choose(scores_K_M.copy(), objectives=names, rng=generator(seed))
    return choice


def _names(selector: Any, scores: np.ndarray) -> list[str]:
    """Names for the columns: those that the selector needs, then others."""
    needed = list(getattr(selector, "needs", ()))
    return [*needed, *(name for name in OBJECTIVES if name not in needed)][: scores.shape[-1]]


def _enough(selector: Any, scores: np.ndarray) -> bool:
    """Whether there are as many columns as the selector needs objectives."""
    return bool(scores.shape[-1] >= len(set(getattr(selector, "needs", ()))))


def _candidates(selector: Any) -> list[np.ndarray]:
    return [scores_K_M for scores_K_M in samples.candidates() if _enough(selector, scores_K_M)]


def _groups(selector: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [pair for pair in samples.groups() if _enough(selector, pair[0])]


def _put(selector: Any, method: str, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, rows: Rows | None = None) -> Any:
    """Ask one of its methods, on copies, with facts about the rows where it takes them."""
    ask = getattr(selector, method)
    facts = {"rows": rows or samples.rows(scores_G_N_M, valid_G_N)} if takes_rows(ask) else {}
    names = _names(selector, scores_G_N_M)
    return ask(scores_G_N_M.copy(), objectives=names, valid_G_N=valid_G_N.copy(), **facts)


def _rewards(selector: Any, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, rows: Rows | None = None) -> np.ndarray:
    """Rewards (G, N), or the advantages of a selector that sets them itself."""
    method = "reward" if hasattr(selector, "reward") else "advantages"
    return np.asarray(_put(selector, method, scores_G_N_M, valid_G_N, rows))


def _dominates(a_M: np.ndarray, b_M: np.ndarray) -> bool:
    """At least as good everywhere and better somewhere; what does not apply is NaN in both, and compares false."""
    return bool(np.all((a_M >= b_M) | np.isnan(a_M)) and np.any(a_M > b_M))


def _front(scores_K_M: np.ndarray) -> set[int]:
    return {i for i, row in enumerate(scores_K_M) if not any(_dominates(other, row) for other in scores_K_M)}


def test_selector_chooses_from_the_true_front(selector: Any) -> None:
    """Over random matrices, ties, duplicates, and objectives that do not apply."""
    for scores_K_M in _candidates(selector):
        choice = _choose(selector, scores_K_M)
        assert isinstance(choice, Choice), "None is for no candidates at all"
        assert 0 <= choice.index < len(scores_K_M)
        front = _front(scores_K_M)
        assert choice.index in front, f"candidate {choice.index} is dominated in {scores_K_M.tolist()}"
        assert sorted(choice.front) == sorted(front), f"not the front of {scores_K_M.tolist()}"
        assert isinstance(choice.decided_by, str)
        assert choice.decided_by, "say what decided"


def test_selector_chooses_among_none_or_one(selector: Any) -> None:
    assert _choose(selector, np.zeros((0, 3))) is None
    for values in ([0.0, 1.0, 0.5], [0.0, np.nan, 1.0]):
        choice = _choose(selector, np.array([values]))
        assert choice is not None
        assert (choice.index, tuple(choice.front)) == (0, (0,))


def test_selector_choice_depends_on_its_rng_only(selector: Any) -> None:
    for scores_K_M in _candidates(selector):
        assert _choose(selector, scores_K_M, 7) == _choose(selector, scores_K_M, 7)


def test_selector_rewards_every_row(selector: Any) -> None:
    """Rewards (G, N), NaN in rows that are not valid; or advantages (G, N) or (G, N, T). Finite where valid."""
    for scores_G_N_M, valid_G_N in _groups(selector):
        rows = samples.rows(scores_G_N_M, valid_G_N)
        rewards_G_N = _rewards(selector, scores_G_N_M, valid_G_N, rows)
        if hasattr(selector, "reward"):
            assert rewards_G_N.shape == valid_G_N.shape
            assert np.isnan(rewards_G_N[~valid_G_N]).all(), "rows that are not valid get NaN"
        else:
            assert rewards_G_N.shape in (valid_G_N.shape, rows.turn_G_N_T.shape), "(G, N), or (G, N, T) as in `rows`"
        assert np.isfinite(rewards_G_N[valid_G_N]).all(), "rows that are valid get a number"


def test_selector_never_rewards_a_dominated_row_more(selector: Any) -> None:
    """With one objective: never reverses the order. A selector whose `orders` is False says that more counts."""
    if not getattr(selector, "orders", True):
        return  # it declares that the order of scores is not all that counts
    for scores_G_N_M, valid_G_N in _groups(selector):
        rewards_G_N = _rewards(selector, scores_G_N_M, valid_G_N)
        for g, i, j in np.ndindex(*valid_G_N.shape, valid_G_N.shape[1]):
            if valid_G_N[g, i] and valid_G_N[g, j] and _dominates(scores_G_N_M[g, i], scores_G_N_M[g, j]):
                reversed_ = np.any(rewards_G_N[g, i] < rewards_G_N[g, j] - 1e-9)
                assert not reversed_, (
                    f"row {j} is rewarded above row {i}, which dominates it: {scores_G_N_M[g].tolist()}"
                )


def test_selector_tells_the_best_from_the_worst(selector: Any) -> None:
    if not getattr(selector, "orders", True):
        taught = copy.deepcopy(selector)
        for pair in _groups(selector) if hasattr(taught, "learn") else ():
            _put(taught, "learn", *pair)
        told = [_rewards(taught, *pair)[pair[1]] for pair in _groups(selector)]
        assert any(len(np.unique(values.round(9))) > 1 for values in told), "it rewards all rows alike, always"
        return
    for columns in range(len(set(getattr(selector, "needs", ()))) or 1, 5):
        ladder_1_N_M = np.repeat(np.linspace(0, 1, 4)[None, :, None], columns, axis=2)
        rewards_N = _rewards(selector, ladder_1_N_M, np.ones((1, 4), bool))[0]
        assert np.all(rewards_N[3] > rewards_N[0]), f"with {columns} objectives the best row earns nothing"


def test_selector_rewards_do_not_depend_on_the_order_of_rows(selector: Any) -> None:
    """Where groups are compared, the rows of all change places alike; a greedy row stays the first."""
    for scores_G_N_M, valid_G_N in _groups(selector):
        order_N = generator(3).permutation(valid_G_N.shape[1])
        if getattr(selector, "greedy_row", False):
            order_N = np.concatenate([[0], order_N[order_N > 0]])
        rows = samples.rows(scores_G_N_M, valid_G_N)
        moved_rows = samples.some_rows(rows, (slice(None), order_N))
        moved = _rewards(selector, scores_G_N_M[:, order_N], valid_G_N[:, order_N], moved_rows)
        kept = _rewards(selector, scores_G_N_M, valid_G_N, rows)[:, order_N]
        np.testing.assert_allclose(moved, kept, atol=1e-9)


def test_selector_rewards_of_a_group_do_not_depend_on_its_batch(selector: Any) -> None:
    """Groups are re-drawn one by one. A selector that compares them says `whole_batch = True`."""
    if getattr(selector, "whole_batch", False):
        return  # it declares that it compares the groups of a batch
    for scores_G_N_M, valid_G_N in _groups(selector):
        rows = samples.rows(scores_G_N_M, valid_G_N)
        whole = _rewards(selector, scores_G_N_M, valid_G_N, rows)
        for g in range(len(valid_G_N)):
            own = slice(g, g + 1)
            alone = _rewards(selector, scores_G_N_M[own], valid_G_N[own], samples.some_rows(rows, own))
            np.testing.assert_allclose(alone, whole[own], atol=1e-9)


def test_selector_does_not_change_its_input(selector: Any) -> None:
    for scores_K_M in _candidates(selector)[:10]:
        given = scores_K_M.copy()
        selector.choose(given, objectives=_names(selector, given), rng=generator())
        np.testing.assert_array_equal(given, scores_K_M)
    ask = selector.reward if hasattr(selector, "reward") else selector.advantages
    for scores_G_N_M, valid_G_N in _groups(selector)[:10]:
        given, valid, rows = scores_G_N_M.copy(), valid_G_N.copy(), samples.rows(scores_G_N_M, valid_G_N)
        facts = {"rows": rows} if takes_rows(ask) else {}
        ask(given, objectives=_names(selector, given), valid_G_N=valid, **facts)
        np.testing.assert_array_equal(given, scores_G_N_M)
        np.testing.assert_array_equal(valid, valid_G_N)
        samples.assert_same_rows(rows, samples.rows(scores_G_N_M, valid_G_N))


def test_selector_changes_by_learning_only(selector: Any) -> None:
    """A batch that is asked about again, such as in evaluation or a re-draw, is answered alike."""
    for pair in _groups(selector):
        np.testing.assert_array_equal(_rewards(selector, *pair), _rewards(selector, *pair))


def test_selector_goes_on_from_its_saved_state(request: pytest.FixtureRequest, selector: Any) -> None:
    """What it learned, through JSON, into another one: the same answers, and the same state after more of it."""
    if not hasattr(selector, "learn"):
        return  # it does not learn
    assert isinstance(selector, Stateful), "what learns has state_dict() and load_state_dict(state), or forgets it"
    learning, resumed = (make(request.config, "selector", request.node.callspec.params["selector"]) for _ in range(2))
    pairs = _groups(selector)
    for pair in pairs[: len(pairs) // 2]:
        _put(learning, "learn", *pair)
    resumed.load_state_dict(json.loads(json.dumps(learning.state_dict(), sort_keys=True)))
    for pair in pairs[len(pairs) // 2 :]:
        np.testing.assert_array_equal(_rewards(resumed, *pair), _rewards(learning, *pair))
        for one in (learning, resumed):
            _put(one, "learn", *pair)
        assert json.dumps(resumed.state_dict(), sort_keys=True) == json.dumps(learning.state_dict(), sort_keys=True)
    for name, value in getattr(learning, "metrics", dict)().items():
        assert isinstance(name, str)
        assert np.isfinite(value), f"{name} is {value}"
