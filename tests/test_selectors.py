"""The built-in selectors: what they choose, what they reward, and that one objective keeps GRPO's order."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fate_trl import plugins
from fate_trl.choose import pareto, selectors
from fate_trl.errors import RecipeError
from fate_trl.hookspecs import Choice

FACTORIES = {component.name: component.factory for component in selectors.fate_trl_selectors()}
NAMES = list(FACTORIES)
TIES = get_args(pareto.TieBreak)
PARETO = [(name, tie) for name in ("pareto-front", "pareto-rank") for tie in TIES]
ALL = [FACTORIES[name](tie_break=tie) for name, tie in PARETO]
ALL += [FACTORIES[name]() for name in NAMES if not name.startswith("pareto-")]
ALL += [FACTORIES["constraint"](floors={"o0": 0.5})]
RNG = np.random.default_rng(0)


def choose(selector, scores):
    scores = np.asarray(scores, float)
    objectives = [f"o{m}" for m in range(scores.shape[1])]
    return selector.choose(scores, objectives=objectives, rng=RNG)


def reward(selector, scores_N_M, valid_N=None):
    scores = np.asarray(scores_N_M, float)[None]
    valid = np.ones(scores.shape[:2], bool) if valid_N is None else np.array([valid_N])
    return selector.reward(scores, objectives=[f"o{m}" for m in range(scores.shape[2])], valid_G_N=valid)[0]


def dominates(a, b):
    return (a >= b).all() and (a > b).any()


# ------------------------------------------------------------------------------------------------ registration


def test_they_load_through_the_registry_with_checked_arguments():
    others = ["product", "dominance-count", "chebyshev", "constraint", "weighted-sum", "gdpo"]
    assert [*FACTORIES] == ["pareto-front", "pareto-rank", *others]
    for name in NAMES:
        signature = {"weights": {"utility": 2}}
        assert plugins.bind(FACTORIES[name], signature, name) == {"weights": {"utility": 2.0}}
    with pytest.raises(RecipeError, match="tie_break"):
        plugins.bind(FACTORIES["pareto-front"], {"tie_break": "luck"}, "selector")


def test_aggregation_is_what_trl_calls_it():
    trl = {"weighted-sum": "sum_then_normalize", "gdpo": "normalize_then_sum"}
    for name in NAMES:
        assert FACTORIES[name].aggregation == trl.get(name)


@pytest.mark.parametrize("arguments", [{"epsilon": 0.6}, {"epsilon": -0.1}, {"tie_break": "luck"}])
def test_arguments_that_cannot_work(arguments):
    with pytest.raises(RecipeError, match="tie-break"):
        FACTORIES["pareto-rank"](**arguments)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_cannot_work(name):
    with pytest.raises(RecipeError, match="finite"):
        FACTORIES[name](weights={"o0": float("nan")})
    with pytest.raises(RecipeError, match="no objective 'speed'"):
        choose(FACTORIES[name](weights={"speed": 1.0}), np.ones((2, 2)))
    with pytest.raises(ValueError, match="3 columns"):
        FACTORIES[name]().choose(np.ones((2, 3)), objectives=["a"], rng=RNG)


# ------------------------------------------------------------------------------------------------ one objective

# Reward functions hand over float32, in which the order has to survive.
finite = st.floats(-(2.0**99), 2.0**99, width=32)


@pytest.mark.parametrize("selector", ALL, ids=repr)
@given(values=st.lists(finite | st.integers(-3, 3).map(float), min_size=1, max_size=12), extra=st.booleans())
@settings(max_examples=40, deadline=None)
def test_one_objective_keeps_the_order_of_grpo(selector, values, extra):
    scores = np.array(values)[:, None]
    if extra:  # a second objective that does not apply changes nothing
        scores = np.column_stack([np.full(len(scores), np.nan), scores])
    rewards = reward(selector, scores).astype(np.float32)
    strict = isinstance(selector, (selectors.ParetoRank, selectors.Product))
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            if a > b:
                assert rewards[i] > rewards[j] if strict else rewards[i] >= rewards[j]
            if a == b:
                assert rewards[i] == rewards[j]


@pytest.mark.parametrize("selector", ALL, ids=repr)
def test_one_objective_tells_best_from_worst(selector):
    rewards = reward(selector, [[-2.0], [0.0], [-5.0], [0.0]])
    assert rewards[1] == rewards[3] > rewards[2]


# ------------------------------------------------------------------------------------------------ choosing


@pytest.mark.parametrize("selector", ALL, ids=repr)
def test_the_choice_is_on_the_front_and_the_best_there(selector):
    for seed in range(80):
        rng = np.random.default_rng(seed)
        scores = rng.integers(0, rng.choice([2, 4, 100]), (rng.integers(1, 10), rng.integers(1, 5))) / 3
        scores = np.where(rng.random((1, scores.shape[1])) < 0.2, np.nan, scores)
        choice = choose(selector, scores)
        values = np.nan_to_num(scores)
        front = [i for i, row in enumerate(values) if not any(dominates(other, row) for other in values)]
        assert choice.front == tuple(front)
        assert choice.index in front
        assert choice == choose(selector, scores)
        rewards = np.nan_to_num(reward(selector, scores))
        assert rewards[choice.index] >= rewards[front].max() - 1e-12
        distinct = len(np.unique(values[front], axis=0))
        if len(scores) == 1:
            assert choice.decided_by == "only"
        elif distinct == 1:
            assert choice == Choice(index=front[0], front=tuple(front), decided_by="front")
        else:
            assert choice.decided_by in {*TIES, *NAMES, "index"}


def test_tie_breaks_choose_by_their_name():
    scores = [[0.9, 0.1], [0.5, 0.45], [0.0, 1.0], [0.0, 0.0]]
    make = FACTORIES["pareto-front"]
    assert choose(make(), scores) == Choice(1, (0, 1, 2), "worst")
    assert choose(make(tie_break="mean"), scores) == Choice(0, (0, 1, 2), "index")  # the means of 0 and 2 are equal
    assert choose(make(tie_break="mean", weights={"o1": 1.1}), scores) == Choice(2, (0, 1, 2), "mean")
    assert choose(make(tie_break="crowding"), scores).decided_by == "index"  # the middle row's gaps are as wide
    assert choose(FACTORIES["product"](), scores) == Choice(1, (0, 1, 2), "product")
    assert choose(FACTORIES["gdpo"](weights={"o0": 2.0}), scores) == Choice(0, (0, 1, 2), "weighted-sum")


def test_augmented_tells_rows_of_one_lowest_objective_apart_by_the_others():
    scores = [[0.3, 0.4, 0.9], [0.9, 0.3, 0.8], [0.2, 1.0, 1.0]]  # the means: .53, .67, .73
    make = FACTORIES["pareto-front"]
    assert choose(make(), scores) == Choice(0, (0, 1, 2), "index")
    assert choose(make(tie_break="augmented"), scores) == Choice(1, (0, 1, 2), "augmented")
    assert choose(make(tie_break="augmented", weights={"o0": 0.1}), scores).index == 0, "how large a weight is counts"
    close = [[0.5, 0.5], [0.52, 1.0], [0.53, 0.54]]
    assert np.argmax(reward(make(tie_break="augmented"), close)) == 1
    assert choose(make(tie_break="augmented"), close).index == 1, (
        "a small lead in the lowest is worth less than the mean"
    )
    far = [[0.4, 1.0], [0.5, 0.5]]
    assert choose(make(tie_break="augmented"), far).index == 1, "a large one is worth more"


def test_random_draws_each_vector_of_the_front_alike_and_does_not_touch_rewards():
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.0, 1.0], [0.0, 0.5]])
    make = FACTORIES["pareto-front"]
    rng = np.random.default_rng(0)
    drawn = [make(tie_break="random").choose(scores, objectives=["a", "b"], rng=rng) for _ in range(400)]
    assert {choice.index for choice in drawn} == {0, 3}
    assert 160 < sum(choice.index == 3 for choice in drawn) < 240
    assert {(choice.front, choice.decided_by) for choice in drawn} == {((0, 1, 2, 3), "random")}
    one = make(tie_break="random", weights={"a": 0.0})  # what does not count does not make vectors distinct
    assert one.choose(scores, objectives=["a", "b"], rng=rng) == Choice(3, (3,), "front")
    assert reward(make(tie_break="random"), scores).tolist() == reward(make(epsilon=0.0), scores).tolist()


def test_scaled_makes_a_narrow_objective_count_as_much_as_a_wide_one():
    scores = [[0.9, 0.50], [0.1, 0.54], [0.6, 0.53]]  # the sum hears the first objective only
    make = FACTORIES["pareto-front"]
    assert choose(make(tie_break="mean"), scores) == Choice(0, (0, 1, 2), "mean")
    assert choose(make(tie_break="scaled"), scores) == Choice(2, (0, 1, 2), "scaled")
    assert choose(FACTORIES["chebyshev"](), scores) == Choice(2, (0, 1, 2), "chebyshev")


def test_floors_come_first_and_the_mean_after_them():
    scores = [[0.4, 1.0], [0.5, 0.2], [1.0, 0.1]]
    floor = FACTORIES["constraint"](floors={"o0": 0.5})
    assert choose(FACTORIES["constraint"](), scores) == Choice(0, (0, 1, 2), "constraint")
    assert choose(floor, scores) == Choice(2, (0, 1, 2), "constraint")
    low, kept, best = reward(floor, scores)
    assert low < 0 <= kept < best
    with pytest.raises(RecipeError, match="no objective 'speed' to bound"):
        reward(FACTORIES["constraint"](floors={"speed": 1.0}), scores)
    with pytest.raises(RecipeError, match="negative weight"):
        reward(FACTORIES["constraint"](floors={"o0": 1.0}, weights={"o0": -1.0}), scores)


def test_dominance_is_counted_both_ways():
    scores = [[1.0, 1.0], [0.5, 0.5], [0.5, 0.6], [0.0, 0.9]]
    assert reward(FACTORIES["dominance-count"](), scores).tolist() == pytest.approx([1.0, -2 / 3, 0.0, -1 / 3])


def test_crowding_prefers_the_ends_and_then_the_lonely():
    front = np.array([[0.0, 1.0], [0.1, 0.9], [0.2, 0.8], [1.0, 0.0]])
    rewards = reward(FACTORIES["pareto-front"](tie_break="crowding"), front)
    assert rewards[0] == rewards[3] > rewards[2] > rewards[1]


def test_choices_of_few_or_nothing():
    for selector in ALL:
        assert selector.choose(np.zeros((0, 2)), objectives=["a", "b"], rng=RNG) is None
        assert choose(selector, [[0.0, np.nan]]) == Choice(0, (0,), "only")
        assert choose(selector, np.full((3, 2), np.nan)) == Choice(0, (0, 1, 2), "front")
        with pytest.raises(ValueError, match="not valid"):
            choose(selector, [[0.0, 1.0], [0.0, np.nan]])


@pytest.mark.parametrize("name", NAMES)
def test_weight_zero_drops_an_objective_and_a_negative_one_turns_it_round(name):
    scores = np.array([[0.2, 9.0], [0.4, 1.0], [0.4, 5.0]])
    dropped = FACTORIES[name](weights={"o1": 0.0})
    assert choose(dropped, scores) == Choice(1, (1, 2), "front")
    np.testing.assert_array_equal(reward(dropped, scores), reward(FACTORIES[name](), scores[:, :1]))
    penalty = FACTORIES[name](weights={"o1": -1.0})
    assert choose(penalty, scores) == Choice(1, (1,), "front")
    np.testing.assert_allclose(reward(penalty, scores), reward(FACTORIES[name](), scores * [1, -1]))


# ------------------------------------------------------------------------------------------------ rewards


@pytest.mark.parametrize("selector", ALL, ids=repr)
def test_a_dominated_row_is_never_rewarded_more_and_invalid_rows_change_nothing(selector):
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scores = rng.integers(-2, 3, (8, 3)) / 2
        valid = rng.random(8) < 0.7
        rewards = reward(selector, scores, valid)
        assert np.isnan(rewards[~valid]).all()
        np.testing.assert_array_equal(rewards[valid], reward(selector, scores[valid]) if valid.any() else [])
        for i in np.flatnonzero(valid):
            for j in np.flatnonzero(valid):
                if dominates(scores[i], scores[j]):
                    assert rewards[i] >= rewards[j]
                    if isinstance(selector, selectors.ParetoRank):
                        assert rewards[i] > rewards[j]


@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize(("name", "tie"), PARETO)
def test_tie_breaks_never_cross_fronts(name, tie, scale):
    selector = FACTORIES[name](tie_break=tie, epsilon=0.5)
    for seed in range(50):
        scores = np.random.default_rng(seed).normal(size=(10, 2)) * scale
        front = list(choose(selector, scores).front)
        behind = [i for i in range(10) if i not in front]
        rewards = reward(selector, scores)
        if behind:
            assert rewards[front].min() > rewards[behind].max()


def test_the_default_in_numbers():
    scores = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.5], [1.0, 1.0]]
    assert reward(FACTORIES["pareto-front"](), scores).tolist() == pytest.approx([0.0, 1.1, 0.0, 1.1])
    mean = FACTORIES["pareto-front"](tie_break="mean")
    assert reward(mean, scores).tolist() == pytest.approx([0.025, 1.075, 0.0, 1.075])
    flat = FACTORIES["pareto-front"](epsilon=0.0)
    assert reward(flat, scores).tolist() == [0.0, 1.0, 0.0, 1.0]
    # Its third row is on the second front: (1, 0) and (0, 0.5) do not dominate each other.
    assert reward(FACTORIES["pareto-rank"](tie_break="mean"), scores).tolist() == pytest.approx(
        [0.025, 1.075, 0.0, 1.075]
    )
    assert reward(FACTORIES["product"](), scores).tolist() == [0.0, 1.0, 0.0, 1.0]


def test_a_group_that_is_one_front_still_has_an_order():
    scores = [[1.0, 0.0], [0.0, 0.5], [0.4, 0.4]]
    rewards = reward(FACTORIES["pareto-front"](tie_break="mean"), scores)
    assert rewards[0] > rewards[2] > rewards[1] >= 1.0
    rewards = reward(FACTORIES["pareto-front"](), scores)  # the ends are equally bad at something
    assert rewards[2] > rewards[0] == rewards[1] == 1.0


@pytest.mark.parametrize("selector", ALL, ids=repr)
def test_what_does_not_weigh_says_so(selector):
    scores = np.random.default_rng(0).random((8, 2))
    heavy = type(selector)(**{**vars(selector), "weights": {"o0": 3.0}})
    same = np.array_equal(reward(heavy, scores), reward(selector, scores))
    assert same is not selector.weighs


def test_product_with_negative_values_shifts_the_objective_in_its_group():
    rewards = reward(FACTORIES["product"](), [[-1.0, -2.0], [1.0, 1.0], [0.0, 0.5]])
    assert rewards.tolist() == [0.0, 6.0, 2.5]  # not (−1)(−2) = 2 for the worst row
    weighted = reward(FACTORIES["product"](weights={"o0": 2.0}), [[0.5, 0.5], [1.0, 0.25]])
    assert weighted.tolist() == [0.125, 0.25]


@pytest.mark.parametrize("selector", ALL, ids=repr)
def test_groups_where_nothing_applies_get_nan(selector):
    assert np.isnan(reward(selector, np.full((4, 2), np.nan))).all()
    assert np.isnan(reward(selector, np.ones((4, 2)), [False] * 4)).all()
