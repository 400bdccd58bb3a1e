"""adora, aspo, otc, polychromic, truncated: what shows that they work."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

from worlds import ask, facts, make, played, row_facts

from fate_trl.errors import RecipeError

LONG, SHORT = ("read", "read", "send"), ("read",)


def test_adora_weighs_down_groups_whose_failures_are_longer_than_their_successes():
    solved = [[True, False, False, True]] * 2
    calls = [[LONG, SHORT, SHORT, SHORT], [SHORT, LONG, LONG, SHORT]]
    scores = np.array(solved, float)
    rows = row_facts(calls, solved)
    base, said = ask(make("cvar", risk=0.0), scores), ask(make("adora"), scores, rows=rows)
    assert (said[0] == base[0]).all(), "its longest success is longer than its failures"
    assert (said[1] == 0.1 * base[1]).all()
    cut = row_facts(calls, solved, [["answer"] * 4, ["answer", "length", "length", "answer"]])
    assert (ask(make("adora"), scores, rows=cut)[1] == 0.1 * base[1]).all(), "cut failures have no length"


def test_adora_by_success_rate_and_on_another_selectors_rewards():
    solved = [[True, False, False, False], [True, True, True, False]]
    rows, scores = row_facts(None, solved), np.array(solved, float)
    said = ask(make("adora", predicate="success-rate", weight=0.25), scores, rows=rows)
    base = ask(make("cvar", risk=0.0), scores)
    assert (said[0] == base[0]).all()
    assert (said[1] == 0.25 * base[1]).all()
    trajectories, real = played("workbench", ("oracle", "do-nothing", "obey"), "attacked")
    front = ask(make("adora", base="pareto-front"), real, rows=facts(trajectories, real))
    rewards = np.argsort(front, axis=1)[:, -1]
    assert (rewards == 0).all(), "the oracle is the front"
    with pytest.raises(RecipeError, match="learns, and nothing would teach it"):
        make("adora", base="advantages/saw")
    with pytest.raises(RecipeError, match="no rewards"):
        make("adora", base="gdpo")


def test_aspo_prefers_early_calls_flips_no_sign_and_leaves_failures_alone():
    turns = np.full((1, 4, 12), -1)
    turns[0, :, :] = [
        [0, 0, -1, 1, 1, 1, 1, 1, 1, 1, 1, 1],  # calls at once
        [0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 1, 1],  # talks first
        [0, 0, -1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0] * 12,  # never calls
    ]
    solved = [[True, True, False, True]]
    rows = row_facts([[SHORT, SHORT, SHORT, ()]], solved, turns=turns)
    scores = np.array(solved, float)
    base, said = ask(make("cvar", risk=0.0), scores), ask(make("aspo"), scores, rows=rows)
    assert said[0, 0] > base[0, 0] > said[0, 1] > 0, "earlier is better, and no sign changes"
    assert said[0, 2] == base[0, 2]
    assert said[0, 3] == base[0, 3]
    bound = ask(make("aspo", delta=-10.0), scores, rows=rows)
    assert (np.sign(bound) == np.sign(base)).all()
    assert bound[0, 1] == pytest.approx(0.3 * base[0, 1]), "at most k of it is lost"
    late = ask(make("aspo", delta=2.0), scores, rows=rows)
    assert late[0, 1] > late[0, 0]


def test_otc_prefers_fewer_calls_among_successes_and_gives_failures_nothing():
    solved = [[True, True, True, False, False]]
    calls = [[("a",), ("a", "b"), ("a", "b", "c"), (), ("a",) * 4]]
    said = ask(make("otc"), np.array(solved, float), rows=row_facts(calls, solved))[0]
    assert said[0] > said[1] > said[2] > said[3] == said[4]
    reward = np.array([np.sin(np.pi / 2), np.sin(4 / 3 * np.pi / 2), np.sin(6 / 4 * np.pi / 2), 0.0, 0.0])
    np.testing.assert_allclose(said, reward - reward.mean())


def test_otc_without_calls_or_without_successes_follows_its_rules():
    from fate_trl_methods.groups import tool_factor

    calls, solved = np.array([[0, 1, 3], [2, 1, 0]]), np.array([[True, True, False], [False] * 3])
    factor = tool_factor(calls, solved, 2.0)
    np.testing.assert_allclose(factor[0], [1.0, np.cos(np.pi / 4), np.cos(3 * np.pi / 8)])
    assert (factor[1] == 1).all(), "no success, nothing to be compared with"
    mixed = ask(make("otc", alpha=0.0), [[0.2, 0.8]], rows=row_facts(None, [[False, False]]))
    np.testing.assert_allclose(mixed, [[-0.3, 0.3]])


def test_otc_counts_real_calls_and_not_those_that_were_replayed():
    trajectories, scores = played("workbench", ("oracle", "do-nothing"), "benign")
    rows = facts(trajectories, scores)
    assert rows.resolved_G_N[:, 0].all()
    said = ask(make("otc"), scores, rows=rows)
    assert (said[:, 0] > 0).all()
    again = row_facts([[("a", "b"), ("b",)]], [[True, True]], prefix=[[1, 0]])
    assert (ask(make("otc"), [[1.0, 1.0]], rows=again) == 0).all(), "one call each of their own"


def test_polychromic_successes_that_are_all_the_same_score_below_diverse_ones():
    ones = np.ones((2, 4))
    calls = [[("a",)] * 4 + [("a",)] * 2, [("a",), ("b",), ("c",), ("d",), (), ("e",)]]
    scores = np.array([[1.0] * 4 + [0.0] * 2] * 2)
    rows = row_facts(calls, scores > 0)
    selector = make("polychromic", size=3)
    said = ask(selector, scores, rows=rows)
    same, diverse = said
    assert same[:4].min() < diverse[:4].min()
    assert same[0] == pytest.approx(same[3])
    assert (ask(selector, np.zeros((1, 6)), rows=row_facts([calls[1]], [[False] * 6])) == 0).all(), "a failed set is 0"
    few = ask(make("polychromic", size=4), ones[:, :3], rows=row_facts(None, ones[:, :3] > 0))
    assert (few == 0).all(), "fewer rows than a set: the base's advantages"


def test_polychromic_is_the_mean_over_all_sets_by_brute_force():
    from itertools import combinations

    reward, keys = np.array([1.0, 0.5, 0.0, 1.0]), ["a", "a", "b", "c"]
    worth = {s: reward[list(s)].mean() * len({keys[i] for i in s}) / 2 for s in combinations(range(4), 2)}
    mean = np.mean(list(worth.values()))
    wanted = [np.mean([value - mean for s, value in worth.items() if i in s]) for i in range(4)]
    rows = row_facts([[("a",), ("a",), ("b",), ("c",)]], [[True, False, False, True]])
    np.testing.assert_allclose(ask(make("polychromic", size=2), reward[None], rows=rows)[0], wanted)
    many = ask(make("polychromic", size=2, sets=4), reward[None], rows=rows)[0]
    assert np.isfinite(many).all()


def test_truncated_gives_cut_rows_the_sign_of_their_prompts_baseline():
    scores = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    stop = [["answer", "answer", "answer", "length"], ["answer", "answer", "length", "length"], ["length"] * 4]
    said = ask(make("truncated"), scores, rows=row_facts(None, None, stop))
    base = np.array([2 / 3, 0.1])
    np.testing.assert_allclose(said[0], [1 / 3, 1 / 3, -2 / 3, base[0] - base.mean()])
    assert said[0, 3] > 0 > said[1, 2] == said[1, 3], "a good prompt's cut rows are not failures"
    assert (said[2] == 0).all(), "nothing is known of this prompt"
