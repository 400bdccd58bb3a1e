"""Pareto selectors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ...hookspecs import Choice
from ...types import OBJECTIVES
from .. import samples
from .helpers import generator


def _choose(selector: Any, scores_K_M: np.ndarray, seed: int = 0) -> Choice | None:
    return selector.choose(scores_K_M.copy(), objectives=_names(scores_K_M), rng=generator(seed))


def _names(scores: np.ndarray) -> list[str]:
    return list(OBJECTIVES[: scores.shape[-1]])


def _rewards(selector: Any, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    """Rewards (G, N), or the advantages of a selector that sets them itself."""
    ask = selector.reward if hasattr(selector, "reward") else selector.advantages
    return np.asarray(ask(scores_G_N_M.copy(), objectives=_names(scores_G_N_M), valid_G_N=valid_G_N.copy()))


def _dominates(a_M: np.ndarray, b_M: np.ndarray) -> bool:
    """At least as good everywhere and better somewhere; what does not apply is NaN in both, and compares false."""
    return bool(np.all((a_M >= b_M) | np.isnan(a_M)) and np.any(a_M > b_M))


def _front(scores_K_M: np.ndarray) -> set[int]:
    return {i for i, row in enumerate(scores_K_M) if not any(_dominates(other, row) for other in scores_K_M)}


def test_selector_chooses_from_the_true_front(selector: Any) -> None:
    """Over random matrices, ties, duplicates, and objectives that do not apply."""
    for scores_K_M in samples.candidates():
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
    for scores_K_M in samples.candidates():
        assert _choose(selector, scores_K_M, 7) == _choose(selector, scores_K_M, 7)


def test_selector_rewards_every_row(selector: Any) -> None:
    """Shape (G, N), finite where valid, NaN elsewhere, so that an error is never a reward."""
    for scores_G_N_M, valid_G_N in samples.groups():
        rewards_G_N = _rewards(selector, scores_G_N_M, valid_G_N)
        assert rewards_G_N.shape[:2] == valid_G_N.shape
        if hasattr(selector, "reward"):
            assert rewards_G_N.ndim == 2
            assert np.isnan(rewards_G_N[~valid_G_N]).all(), "rows that are not valid get NaN"
        assert np.isfinite(rewards_G_N[valid_G_N]).all(), "rows that are valid get a number"


def test_selector_never_rewards_a_dominated_row_more(selector: Any) -> None:
    """With one objective: never reverses the order."""
    for scores_G_N_M, valid_G_N in samples.groups():
        rewards_G_N = _rewards(selector, scores_G_N_M, valid_G_N)
        for g, i, j in np.ndindex(*valid_G_N.shape, valid_G_N.shape[1]):
            if valid_G_N[g, i] and valid_G_N[g, j] and _dominates(scores_G_N_M[g, i], scores_G_N_M[g, j]):
                reversed_ = np.any(rewards_G_N[g, i] < rewards_G_N[g, j] - 1e-9)
                assert not reversed_, (
                    f"row {j} is rewarded above row {i}, which dominates it: {scores_G_N_M[g].tolist()}"
                )


def test_selector_tells_the_best_from_the_worst(selector: Any) -> None:
    for columns in range(1, 5):
        ladder_1_N_M = np.repeat(np.linspace(0, 1, 4)[None, :, None], columns, axis=2)
        rewards_N = _rewards(selector, ladder_1_N_M, np.ones((1, 4), bool))[0]
        assert np.all(rewards_N[3] > rewards_N[0]), f"with {columns} objectives the best row earns nothing"


def test_selector_rewards_do_not_depend_on_the_order_of_rows(selector: Any) -> None:
    for scores_G_N_M, valid_G_N in samples.groups():
        order_N = generator(3).permutation(valid_G_N.shape[1])
        moved = _rewards(selector, scores_G_N_M[:, order_N], valid_G_N[:, order_N])
        kept = _rewards(selector, scores_G_N_M, valid_G_N)[:, order_N]
        np.testing.assert_allclose(moved, kept, atol=1e-9)


def test_selector_does_not_change_its_input(selector: Any) -> None:
    for scores_K_M in itertools.islice(samples.candidates(), 10):
        given = scores_K_M.copy()
        selector.choose(given, objectives=_names(given), rng=generator())
        np.testing.assert_array_equal(given, scores_K_M)
    ask = selector.reward if hasattr(selector, "reward") else selector.advantages
    for scores_G_N_M, valid_G_N in itertools.islice(samples.groups(), 10):
        given, valid = scores_G_N_M.copy(), valid_G_N.copy()
        ask(given, objectives=_names(given), valid_G_N=valid)
        np.testing.assert_array_equal(given, scores_G_N_M)
        np.testing.assert_array_equal(valid, valid_G_N)
