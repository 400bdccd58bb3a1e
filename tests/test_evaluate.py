"""Metrics against hand-counted cases and statsmodels; intervals by simulation."""

import dataclasses
import json
import math
import time

import numpy as np
import pytest
from scipy.stats import binom, binomtest, ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from fate_trl import metrics
from fate_trl.errors import ErrorBudgetExceeded, FateError
from fate_trl.metrics import (
    DIRECTIONS,
    METRICS,
    compare,
    comparing,
    definitions,
    intervals,
    paired,
    regressions,
    rows,
    sign_test,
    summarize,
    totals,
    wilson,
)
from fate_trl.types import OBJECTIVES, Outcome, Score, ScoreCard, Task, ToolCall
from fate_trl.types import Trajectory as Traj

NA = Score.not_applicable()
RAN = (ToolCall("send", {"to": "x"}, "sent"),)


def case(kind="benign", i=0, *, cluster="", suite="s", attempt=0, tags=(), calls=RAN, outcome=None, **scores):
    """One case; scores that are not given are 1 where the objective applies to the kind."""
    defaults = {
        "security": NA if kind == "benign" else Score(1.0),
        "utility": Score(1.0),
        "over_refusal": NA if kind == "harmful" else Score(1.0),
        "trajectory_control": Score(1.0),
    }
    given = {name: score if isinstance(score, Score) else Score(float(score)) for name, score in scores.items()}
    task = Task(f"{kind}-{i}", suite, kind, (), cluster=cluster, tags=tags)
    trajectory = Traj(task, calls=calls, outcome=outcome or Outcome(), attempt=attempt)
    return trajectory, ScoreCard({**defaults, **given})


def broken(kind, i, reason="judge down", **options):
    return case(kind, i, utility=Score.error(reason), **options)


def values(cases):
    return {name: metric["value"] for name, metric in summarize(cases)["metrics"].items()}


def attacked(i, hit, **options):
    return case("attacked", i, outcome=Outcome(attacked=hit, exposed=True), security=1 - hit, **options)


# ------------------------------------------------------------------------------------------------ definitions


def test_every_metric_stands_in_the_docstring_and_has_a_direction():
    arrow = {1: "↑", -1: "↓", 0: ""}
    for metric in METRICS:
        name = "mean_<objective>" if metric.name.startswith("mean_") else metric.name
        assert f"| `{name}` {arrow[DIRECTIONS[metric.name]]}".rstrip() + " |" in definitions.__doc__


def test_attacked_metrics_are_counted_from_facts():
    cases = [
        case("attacked", 0, outcome=Outcome(utility=1, attacked=True, exposed=True), security=0),
        case("attacked", 1, outcome=Outcome(utility=0.9, attacked=False, exposed=True), utility=0.9),
        case("attacked", 2, outcome=Outcome(utility=0.5, attacked=False, exposed=False), utility=0.5),
        case("attacked", 3, outcome=Outcome(utility=0, attacked=False, exposed=False), utility=0, over_refusal=0),
    ]
    got = values(cases)
    assert (got["asr"], got["exposed"], got["tsr"], got["brr"], got["brr_attacked"]) == (0.25, 0.5, 0.5, 0.25, 0.25)
    assert got["tsr_graded"] == pytest.approx(0.6)
    assert got["resolved"] == 0.25
    assert not {"brr_benign", "hcr", "vrr", "benign_utility"} & got.keys()


def test_harmful_metrics_are_counted_from_facts():
    cases = [
        case("harmful", 0, outcome=Outcome(harm=0.0), calls=()),  # refused
        case("harmful", 1, outcome=Outcome(harm=0.0), calls=(), utility=0),  # did nothing, said nothing
        case("harmful", 2, outcome=Outcome(harm=0.0), utility=0),  # busy, harmless, no refusal
        case("harmful", 3, outcome=Outcome(harm=0.25), utility=1, security=0.75),  # began, then refused
        case("harmful", 4, outcome=Outcome(harm=0.5), utility=0, security=0.5),
    ]
    got = values(cases)
    assert got["hcr"] == pytest.approx(0.2)
    assert got["harm_share"] == pytest.approx(0.15)
    assert got["vrr"] == pytest.approx(0.2)
    assert got["safe_score"] == pytest.approx(0.85)
    assert got["safe_inert"] == pytest.approx(0.4)
    assert got["inert"] == pytest.approx(0.2)


def test_scores_stand_in_where_no_episode_stated_facts():
    def without_outcome(kind, i, **scores):
        trajectory, card = case(kind, i, **scores)
        return dataclasses.replace(trajectory, outcome=None), card

    got = values(
        [
            without_outcome("attacked", 0, security=0),
            without_outcome("attacked", 1),
            without_outcome("harmful", 0, security=0.4, utility=0),
            without_outcome("harmful", 1),
        ]
    )
    assert got["asr"] == got["hcr"] == got["vrr"] == 0.5
    assert got["harm_share"] == pytest.approx(0.3)
    assert "exposed" not in got
    assert "inert" not in got


def test_refusals_are_split_by_what_was_refused():
    cases = [
        case("benign", 0),
        case("benign", 1, over_refusal=0),
        case("benign", 2, over_refusal=0, tags=("look-alike",)),
        case("attacked", 0),
    ]
    got = values(cases)
    assert [got[f"brr{part}"] for part in ("", "_benign", "_look_alike", "_attacked")] == [0.5, 0.5, 1.0, 0.0]


def test_inert_counts_only_what_the_policy_ran():
    bad = ToolCall("send", {}, "", fault="arguments")
    replayed = dataclasses.replace(case("benign", 3, utility=0)[0], replayed=1)
    cases = [
        case("benign", 0, calls=(), utility=0),
        case("benign", 1, calls=(bad,), utility=0),
        case("benign", 2, calls=()),  # done without a call
        (replayed, case("benign", 3, utility=0)[1]),
        case("benign", 4, utility=0),
    ]
    assert values(cases)["inert"] == pytest.approx(0.6)


def test_objective_means_give_each_kind_the_same_weight():
    # Security: attacked 1/4, harmful 1/1. Utility: benign 1, attacked 1/2, harmful 0. Refusal: benign 1, attacked 3/4.
    cases = [case("benign", i) for i in range(6)]
    cases += [case("attacked", i, security=i == 0, utility=i % 2, over_refusal=i != 1) for i in range(4)]
    cases += [case("harmful", 0, utility=0, trajectory_control=0)]
    got = values(cases)
    means = [got[f"mean_{name}"] for name in OBJECTIVES]
    assert means == pytest.approx([(1 / 4 + 1) / 2, (1 + 1 / 2 + 0) / 3, (1 + 3 / 4) / 2, (1 + 1 + 0) / 3])
    assert got["objective_product"] == pytest.approx(math.prod(means))
    assert "objective_product" not in values([case("benign", 0)]), "security has no case"


def test_other_objectives_get_their_mean():
    trajectory, _ = case("benign", 0)
    got = values([(trajectory, ScoreCard({"brevity": Score(0.5)}))])
    assert got == {"mean_brevity": 0.5, "resolved": 0.0}


def test_a_suites_own_metrics_are_weighted_means_over_the_cases_that_state_them():
    stated = [{"f1": [1.0, 1.0]}, {"f1": [0.0, 0.5]}, {"f1": [0.0, 0.5], "accuracy": [1.0, 1.0]}, {}]
    cases = [case(i=i, outcome=Outcome(info={"metrics": metrics})) for i, metrics in enumerate(stated)]
    got = summarize([*cases, case(i=9, suite="another"), (broken("benign", 8))])["metrics"]
    assert (got["suite_f1"]["value"], got["suite_f1"]["n"]) == (0.5, 3)
    assert got["suite_f1"]["low"] < 0.5 < got["suite_f1"]["high"]
    assert (got["suite_f1"]["error_low"], got["suite_f1"]["error_high"]) == pytest.approx((1 / 3, 2 / 3))
    assert (got["suite_accuracy"]["value"], got["suite_accuracy"]["n"]) == (1.0, 1)
    assert not [name for name in compare(cases, cases) if name.startswith("suite_")]


# ------------------------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 30), (1, 30), (12, 40), (40, 40), (499, 500)])
def test_wilson_agrees_with_statsmodels(hits, n):
    expected = proportion_confint(hits, n, method="wilson")
    assert wilson(hits / n, n) == pytest.approx(expected, abs=1e-12)
    asr = summarize([attacked(i, i < hits) for i in range(n)])["metrics"]["asr"]
    assert (asr["low"], asr["high"]) == pytest.approx(expected, abs=1e-12)
    assert (asr["n"], asr["clusters"], asr.get("few_clusters", False)) == (n, n, n < 20)


@pytest.mark.parametrize("n", [30, 60, 100, 300])
def test_wilson_covers_95_percent_on_average(n):
    """Exact, not simulated: the chance of each count, summed where its interval holds p, averaged over p."""
    share_P = (np.arange(2000) + 0.5) / 2000
    ends = np.array([wilson(hits / n, n) for hits in range(n + 1)])
    holds_P_K = (ends[:, 0] <= share_P[:, None]) & (share_P[:, None] <= ends[:, 1])
    coverage_P = (binom.pmf(np.arange(n + 1), n, share_P[:, None]) * holds_P_K).sum(axis=1)
    assert coverage_P.mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("hit", [False, True])
def test_clusters_that_all_agree_get_wilson_on_their_number(hit):
    asr = summarize([attacked(i, hit, cluster=f"c{i // 4}") for i in range(120)])["metrics"]["asr"]
    assert (asr["n"], asr["clusters"]) == (120, 30)
    assert (asr["low"], asr["high"]) == pytest.approx(proportion_confint(30 * hit, 30, method="wilson"), abs=1e-12)


def test_interval_grows_when_the_first_cluster_disagrees():
    def width(hits):
        asr = summarize([attacked(i, i < hits, cluster=f"c{i // 4}") for i in range(120)])["metrics"]["asr"]
        assert asr["low"] <= asr["value"] <= asr["high"]
        return asr["high"] - asr["low"]

    assert width(0) < width(1) < width(4)


def test_clusters_are_by_suite_and_fall_back_to_the_task():
    cases = [case("benign", i, suite=suite, cluster="u", attempt=i) for suite in "ab" for i in range(3)]
    assert summarize(cases)["metrics"]["resolved"]["clusters"] == 2
    repeated = [case("benign", i % 3, attempt=i, utility=i % 2) for i in range(6)]
    assert summarize(repeated)["metrics"]["resolved"]["clusters"] == 3
    assert summarize([case("benign", 0, cluster="benign-1"), case("benign", 1)])["metrics"]["resolved"]["clusters"] == 2


def test_means_by_kind_are_flagged_by_their_smallest_kind():
    cases = [case("benign", i, utility=i % 2) for i in range(60)] + [case("attacked", i) for i in range(5)]
    metrics = summarize(cases)["metrics"]
    assert metrics["mean_utility"]["clusters"] == 65
    assert metrics["mean_utility"]["few_clusters"] is True
    assert "few_clusters" not in metrics["resolved"]


def test_intervals_depend_on_the_seed_but_not_on_the_order():
    cases = [attacked(i, (i * 7) % 5 < 2, cluster=f"c{i // 3}", utility=i % 3 / 2) for i in range(90)]
    summary = summarize(cases, seed=3)
    assert summarize(cases, seed=3) == summary
    for name, metric in summarize(cases[::-1], seed=3)["metrics"].items():
        assert metric == pytest.approx(summary["metrics"][name], abs=1e-9)
    assert summarize(cases, seed=4)["metrics"]["asr"]["low"] != summary["metrics"]["asr"]["low"]


def test_standard_error_matches_the_cluster_robust_formula():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, 25)
    cases = [
        case("benign", 10 * c + j, cluster=f"c{c}", utility=float(rng.random()))
        for c, size in enumerate(sizes)
        for j in range(size)
    ]
    design = totals.design_of(totals.table_of((cases,), (1.0,)), metrics.objective_metric("utility"))
    value, error = intervals.estimate_with_error(np.ones((1, 25)), design)
    y = np.array([card.scores["utility"].value for _, card in cases])
    of = np.repeat(np.arange(25), sizes)
    residuals = np.array([(y[of == c] - y.mean()).sum() for c in range(25)])
    assert value[0] == pytest.approx(y.mean())
    assert error[0] == pytest.approx(math.sqrt(25 / 24 * (residuals**2).sum()) / len(y))


def simulated(rng, clusters, rate, correlation, kind, name):
    """Cases whose `name` score is 0 or 1, beta-binomial within clusters of 1 to 6."""
    k = (1 - correlation) / correlation
    cases = []
    for c in range(clusters):
        p = rng.beta(rate * k, (1 - rate) * k)
        size = rng.integers(1, 7)
        cases += [
            case(kind, 6 * c + j, cluster=f"{kind}{c}", **{name: score}) for j, score in enumerate(rng.random(size) < p)
        ]
    return cases


def measured(metric, *sides):
    signs = (1.0,) if len(sides) == 1 else (-1.0, 1.0)
    found, _ = intervals.measure(totals.table_of(sides, signs), [metric], 0)
    return found[metric.name]


def coverage(draw, metric, truth, repeats):
    """Share of `repeats` drawn data sets whose interval holds the truth."""
    rng = np.random.default_rng(5)
    found = [measured(metric, *draw(rng)) for _ in range(repeats)]
    return np.mean([f["low"] <= truth <= f["high"] for f in found])


def test_coverage_of_clustered_rates():
    utility = metrics.objective_metric("utility")
    share = coverage(lambda rng: [simulated(rng, 30, 0.3, 0.3, "benign", "utility")], utility, 0.3, 300)
    assert 0.92 <= share <= 0.985  # ± 2.5 standard errors of 300 repeats around 93 to 97 %


def rate_coverage(clusters, rate, repeats, correlation=0.3):
    """`coverage` of one clustered rate; only totals per cluster are made, and all data sets share their resamples."""
    rng, k = np.random.default_rng(5), (1 - correlation) / correlation
    p_R_C = rng.beta(rate * k, (1 - rate) * k, (repeats, clusters))
    size_R_C = rng.integers(1, 7, (repeats, clusters))
    totals_R_C_2 = np.stack([rng.binomial(size_R_C, p_R_C), size_R_C], axis=-1).astype(float)
    one = {"weight_F_K": np.ones((1, 1)), "sign_S": np.ones(1), "simple": False}
    designs = {
        str(r): totals.Design(totals_C_S_F_K_2=totals_C_2[:, None, None, None, :], n=int(totals_C_2[:, 1].sum()), **one)
        for r, totals_C_2 in enumerate(totals_R_C_2)
    }
    return np.mean([found["low"] <= rate <= found["high"] for found in intervals.intervals(designs, 0).values()])


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [30, 50, 100])
@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_coverage_of_clustered_rates_closely(clusters, rate):
    share = rate_coverage(clusters, rate, 2000)
    print(f"{clusters} clusters, rate {rate}: {share:.3f}")
    assert 0.93 <= share <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [30, 100])
def test_rare_rates_are_covered_at_least(clusters):
    share = rate_coverage(clusters, 0.05, 2000)
    print(f"{clusters} clusters, rate 0.05: {share:.3f}")
    assert share >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [30, 60])
def test_coverage_of_means_by_kind(clusters):
    def draw(rng):
        return [
            simulated(rng, clusters, 0.8, 0.3, "benign", "utility")
            + simulated(rng, clusters, 0.4, 0.3, "attacked", "utility")
        ]

    share = coverage(draw, metrics.objective_metric("utility"), 0.6, 1500)
    print(f"means by kind, {clusters} clusters each: {share:.3f}")
    assert 0.93 <= share <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [30, 100])
def test_coverage_of_paired_differences(clusters):
    def draw(rng):
        before = simulated(rng, clusters, 0.4, 0.3, "benign", "utility")
        change = rng.random(len(before)) < 0.2
        after = [
            (trajectory, ScoreCard({**card.scores, "utility": Score(float(rng.random() < 0.9))})) if changed else c
            for changed, c in zip(change, before, strict=True)
            for trajectory, card in [c]
        ]
        return before, after

    share = coverage(draw, metrics.objective_metric("utility"), 0.2 * (0.9 - 0.4), 2000)
    print(f"paired, {clusters} clusters: {share:.3f}")
    assert 0.93 <= share <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [30, 60])
def test_coverage_of_the_product(clusters):
    rates = {"security": 0.6, "utility": 0.5, "over_refusal": 0.8, "trajectory_control": 0.7}
    product = next(metric for metric in METRICS if metric.name == "objective_product")

    def draw(rng):
        cases = []
        for c in range(clusters):
            p = {name: rng.beta(rate * 3, (1 - rate) * 3) for name, rate in rates.items()}
            for j in range(rng.integers(1, 5)):
                scores = {name: rng.random() < share for name, share in p.items()}
                cases.append(case("attacked", 6 * c + j, cluster=f"c{c}", **scores))
        return [cases]

    share = coverage(draw, product, math.prod(rates.values()), 1500)
    print(f"product, {clusters} clusters: {share:.3f}")
    assert 0.93 <= share <= 0.97


# ------------------------------------------------------------------------------------------------ errors


def test_errors_leave_every_metric_and_bound_it():
    cases = [attacked(i, i < 3) for i in range(8)] + [broken("attacked", 8), broken("attacked", 9, "a\nTraceback ...")]
    cases.append((dataclasses.replace(case("benign", 0)[0], error="episode did not open"), case("benign", 0)[1]))
    summary = summarize(cases)
    asr = summary["metrics"]["asr"]
    assert (asr["value"], asr["n"]) == (3 / 8, 8)
    assert (asr["error_low"], asr["error_high"]) == pytest.approx((0.3, 0.5))
    errors = summary["errors"]
    assert {key: errors[key] for key in errors if key != "bounds"} == {
        "utility/judge down": 1,
        "utility/a": 1,
        "rollout/episode did not open": 1,
        "excluded": 3,
        "causes": {"no_verdict": 2, "other": 1},
    }
    assert "benign_utility" not in summary["metrics"]
    assert errors["bounds"]["benign_utility"] == [0.0, 1.0], "no case is left, so anything is possible"
    assert errors["bounds"]["mean_security"] == pytest.approx([0.5, 0.7])
    assert "hcr" not in errors["bounds"]


def test_without_errors_nothing_is_said_about_them():
    summary = summarize([case("benign", 0)])
    assert summary["errors"] == {}
    assert "error_low" not in summary["metrics"]["resolved"]


def test_error_bounds_of_a_comparison_assume_the_worst_on_each_side():
    before = [case("benign", i, utility=i < 2) for i in range(4)]
    after = [*(case("benign", i) for i in range(3)), broken("benign", 3)]
    change = compare(before, after, max_error_rate=0.5)["benign_utility"]
    assert (change["value"], change["n"]) == (pytest.approx(1 / 3), 3)
    assert (change["error_low"], change["error_high"]) == pytest.approx((1 / 4, 2 / 4))


def test_too_many_errors_stop_a_comparison():
    good = [case("benign", i) for i in range(20)]
    bad = [broken("benign", 0), *good[1:]]
    with pytest.raises(ErrorBudgetExceeded, match=r"1 of 20 (.*\n)+.*no_verdict +1  judge down"):
        compare(good, bad)
    with pytest.raises(ErrorBudgetExceeded):
        regressions(bad, good, ["utility"], 0.0)


# ------------------------------------------------------------------------------------------------ comparisons


def test_paired_differences_by_hand():
    # One case per cluster: 10 of 40 get better, 4 get worse.
    before = [case("benign", i, utility=i < 20) for i in range(40)]
    after = [case("benign", i, utility=4 <= i < 30) for i in reversed(range(40))] + [case("benign", 99)]
    change = paired(before, after, "benign_utility")
    assert change["value"] == pytest.approx(6 / 40)
    assert (change["n"], change["clusters"], change["n_unmatched"]) == (40, 40, 1)
    differences = [-1] * 4 + [0] * 26 + [1] * 10
    paired_t = ttest_1samp(differences, 0).confidence_interval()
    assert (change["low"], change["high"]) == pytest.approx((paired_t.low, paired_t.high), abs=0.02)
    assert compare(before, after)["benign_utility"] == change
    assert compare(after, before)["benign_utility"]["value"] == pytest.approx(-6 / 40)
    assert "asr" not in compare(before, after)


@pytest.mark.parametrize(("up", "down"), [(0, 0), (1, 0), (0, 7), (10, 4), (6, 6), (31, 52), (700, 900), (3, 5000)])
def test_the_sign_test_agrees_with_scipy(up, down):
    expected = binomtest(up, up + down, 0.5).pvalue if up + down else 1.0
    assert sign_test(up, down) == pytest.approx(expected, rel=1e-9)


def test_the_exact_test_of_a_rate_is_mcnemars():
    before = [case("benign", i, utility=i < 20) for i in range(40)]
    after = [case("benign", i, utility=4 <= i < 30) for i in range(40)]
    change = paired(before, after, "benign_utility")
    assert (change["rose"], change["fell"]) == (10, 4)
    assert change["p"] == pytest.approx(mcnemar([[16, 4], [10, 10]], exact=True).pvalue)
    assert paired(after, before, "benign_utility")["p"] == change["p"]
    assert "p" not in compare(before, after)["mean_utility"], "a mean by kind is no rate"
    graded = [case("attacked", i, utility=i / 40) for i in range(40)]
    assert "p" not in compare(graded, graded)["tsr_graded"]


def test_the_exact_test_counts_a_cluster_once():
    before = [case("benign", i, utility=0, cluster=f"c{i // 10}") for i in range(60)]
    after = [case("benign", i, utility=i < 30, cluster=f"c{i // 10}") for i in range(60)]
    change = paired(before, after, "benign_utility")
    assert (change["rose"], change["fell"]) == (30, 0)
    assert change["p"] == pytest.approx(0.25), "three clusters rose, none fell"


@pytest.mark.slow
def test_the_exact_test_seldom_sees_what_is_not_there():
    """Two draws of the same policy differ at the 5 % level in at most 5 % of the cases, clusters or not."""
    utility = next(metric for metric in METRICS if metric.name == "benign_utility")
    rng, alarms = np.random.default_rng(7), 0
    for _ in range(1000):
        rate_N = rng.beta(1, 1, 30).repeat(4)
        sides = [
            [case("benign", i, utility=hit, cluster=f"c{i // 4}") for i, hit in enumerate(rng.random(120) < rate_N)]
            for _ in range(2)
        ]
        alarms += comparing._exact(totals.table_of(tuple(sides), (-1.0, 1.0)), utility)["p"] <= 0.05
    assert alarms / 1000 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(1)
    before = simulated(rng, 60, 0.5, 0.9, "benign", "utility")
    after = [
        (t, ScoreCard({**card.scores, "utility": Score(1.0)})) if i % 12 == 0 else (t, card)
        for i, (t, card) in enumerate(before)
    ]
    alone = summarize(before)["metrics"]["benign_utility"]
    change = paired(before, after, "benign_utility")
    assert change["high"] - change["low"] < (alone["high"] - alone["low"]) / 2


def test_equal_policies_differ_by_zero_but_not_for_sure():
    cases = [case("attacked", i, cluster=f"c{i // 2}", utility=i % 3 / 2) for i in range(60)]
    unseen = proportion_confint(0, 30, method="wilson")[1]
    for name, change in compare(cases, cases).items():
        assert change["value"] == 0
        if name != "objective_product":
            assert (change["low"], change["high"]) == pytest.approx((-unseen, unseen))


def test_product_changes_by_the_difference_of_products():
    rng = np.random.default_rng(2)
    before = simulated(rng, 30, 0.5, 0.3, "attacked", "utility")
    after = simulated(np.random.default_rng(2), 30, 0.5, 0.3, "attacked", "security")
    change = compare(before, after)
    expected = values(after)["objective_product"] - values(before)["objective_product"]
    assert change["objective_product"]["value"] == pytest.approx(expected)
    assert change["mean_utility"]["value"] == pytest.approx(
        values(after)["mean_utility"] - values(before)["mean_utility"]
    )


def test_what_cannot_be_compared_says_so():
    cases = [case("benign", i) for i in range(3)]
    with pytest.raises(FateError, match="share"):
        compare([*cases, cases[0]], cases)
    with pytest.raises(FateError, match="in common"):
        compare(cases, [case("benign", i, suite="other") for i in range(3)])
    with pytest.raises(FateError, match="unknown metric 'asrr'"):
        paired(cases, cases, "asrr")
    with pytest.raises(FateError, match="no matched case"):
        paired(cases, cases, "asr")


def test_regressions_need_a_whole_interval_below_the_tolerance():
    before = [case("attacked", i) for i in range(40)]
    after = [case("attacked", i, utility=i % 2, security=i != 0) for i in range(40)]
    assert regressions(before, after, OBJECTIVES, 0.05) == ["utility"]
    assert regressions(before, after, OBJECTIVES, 0.45) == []
    assert regressions(after, before, OBJECTIVES, 0.0) == []
    assert regressions(before, before, ["security"], 0.0) == []
    with pytest.raises(FateError, match="'safety' was not scored"):
        regressions(before, after, ["safety"], 0.0)


# ------------------------------------------------------------------------------------------------ rows


def everything(n=500, seed=0):
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(n):
        kind = ("benign", "attacked", "harmful")[i % 3]
        utility, bit = rng.choice([0, 0.5, 1]), float(rng.random() < 0.8)
        outcome = {
            "benign": Outcome(utility=utility),
            "attacked": Outcome(utility=utility, attacked=not bit, exposed=True),
            "harmful": Outcome(harm=1 - bit),
        }[kind]
        security = {} if kind == "benign" else {"security": bit}
        where = {"suite": "ab"[i % 2], "cluster": f"u{i // 12}"}
        cases.append(case(kind, i, **where, outcome=outcome, utility=utility, **security))
    return cases


def test_rows_cover_suites_and_kinds_and_are_json():
    cases = [*everything(120), broken("harmful", 999, suite="c")]
    got = rows(cases, round=2, split="test", policy="pfpo", accepted=False)
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    expected = {(s, k) for s in ("all", "a", "b") for k in ("all", "benign", "attacked", "harmful")}
    assert {(row["suite"], row["kind"]) for row in got} == expected | {("c", "all"), ("c", "harmful")}
    assert len(got) == 14
    first = got[0]
    assert (first["suite"], first["kind"], first["round"], first["split"]) == ("all", "all", 2, "test")
    assert (first["policy"], first["accepted"]) == ("pfpo", False)
    assert set(first) == {"round", "split", "suite", "kind", "policy", "accepted", "metrics", "errors"}
    for row in got:
        for metric in row["metrics"].values():
            assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1


def test_no_cases_no_metrics():
    assert summarize([]) == {"metrics": {}, "errors": {}}
    assert rows([], round=0, split="test", policy="base", accepted=True) == []


def test_summaries_are_fast():
    cases = everything(500)
    start = time.perf_counter()
    summary = summarize(cases)
    assert time.perf_counter() - start < 2.0  # 0.1 s on a quiet machine
    assert len(summary["metrics"]) >= 20


def test_many_clusters_are_resampled_in_blocks(monkeypatch):
    cases = [attacked(i, i % 3 == 0, cluster=f"c{i // 2}") for i in range(200)]
    whole = measured(METRICS[0], cases)
    monkeypatch.setattr(intervals, "BLOCK", 30_000)
    parts = measured(METRICS[0], cases)
    assert (parts["low"], parts["high"]) == pytest.approx((whole["low"], whole["high"]), abs=0.01)
