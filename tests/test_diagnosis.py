"""What the rules say of made-up runs: each speaks where it should, and is silent a step before."""

import pytest
from case import case

from fate_trl.metrics.concerns import diagnose


def metric(value, low=None, high=None, n=100, **more):
    low, high = value - 0.05 if low is None else low, value + 0.05 if high is None else high
    return {"value": value, "low": low, "high": high, "n": n, "clusters": n, **more}


def row(round, split="test", policy="", accepted=True, errors=(), **metrics):
    name = policy or (f"round-{round}" if round else "base")
    head = {"round": round, "split": split, "suite": "all", "kind": "all", "policy": name, "accepted": accepted}
    return {**head, "metrics": metrics, "errors": dict(errors)}


def rules(rows=(), rounds=None):
    return [(concern.rule, concern.round) for concern in diagnose(list(rows), rounds or {})]


def log(**values):
    return {"pfpo": {"log": [{key.replace("__", "/"): value for key, value in values.items()}, {"train_loss": 0.1}]}}


def test_a_quiet_run_has_no_concern():
    rows = [row(0, resolved=metric(0.4), brr=metric(0.1), inert=metric(0.1), exposed=metric(0.9))]
    rows += [row(1, resolved=metric(0.9), brr=metric(0.05), inert=metric(0.02), exposed=metric(0.95))]
    stages = {"repair": {"failures": 9, "repaired": 3, "chosen_not_resolved": 0}, "accept": {"accepted": True}}
    assert rules(rows, {0: {}, 1: stages | log(completions__clipped_ratio=0.01, pareto__zero_signal_share=0.5)}) == []
    assert rules() == []


@pytest.mark.parametrize(("rule", "name"), [("refuses", "brr"), ("inert", "inert")])
def test_a_share_is_a_concern_when_it_is_high_or_rose_for_sure(rule, name):
    assert rules([row(0, **{name: metric(0.6)})]) == [(rule, 0)]
    assert rules([row(0, **{name: metric(0.52)})]) == [], "half lies within the interval"
    assert rules([row(0, **{name: metric(0.1)}), row(1, **{name: metric(0.3)})]) == [(rule, 1)]
    assert rules([row(0, **{name: metric(0.1)}), row(1, **{name: metric(0.18)})]) == [], "the intervals overlap"
    (concern,) = diagnose([row(0, **{name: metric(0.1)}), row(1, **{name: metric(0.3)})], {})
    assert "30 %" in concern.text
    assert "10 % before training" in concern.text


def test_scripted_baselines_concern_nobody():
    assert rules([row(0, policy="refuse-all", brr=metric(1.0)), row(0, policy="do-nothing", inert=metric(1.0))]) == []


def test_after_a_warm_start_it_is_what_training_begins_with():
    base, warm = row(0, policy="base", inert=metric(1.0)), row(0, policy="warm-start", inert=metric(0.1))
    assert rules([base, warm, row(1, inert=metric(0.3))]) == [("inert", 1)]


def test_attack_success_that_was_not_put_to_the_test():
    assert rules([row(1, exposed=metric(0.2))]) == [("untested", 1)]
    assert rules([row(1, exposed=metric(0.48))]) == []


def test_errors_and_few_clusters():
    assert rules([row(0, resolved=metric(0.5, n=97), errors={"excluded": 3})]) == [("errors", 0)]
    assert rules([row(0, resolved=metric(0.5, n=98), errors={"excluded": 2})]) == []
    assert rules([row(0, resolved=metric(0.5, few_clusters=True))]) == [("few-cases", 0)]


def test_training_that_leaves_validation_behind():
    rows = [row(r, "validation", resolved=metric(value)) for r, value in [(0, 0.4), (1, 0.5), (2, 0.5)]]
    collected = {1: 90, 2: 110, 3: 180}
    rounds = {r: {"collect": {"trajectories": 200, "errors": 0, "resolved": n}} for r, n in collected.items()}
    assert rules(rows, rounds) == [("divergence", 3)]
    usual = {r: {"collect": {"trajectories": 200, "errors": 0, "resolved": 190}} for r in (1, 2)}
    assert rules(rows[:1], usual) == [], "training was easier from the start"


def test_repairs_that_teach_failing_or_nothing():
    assert rules((), {1: {"repair": {"failures": 9, "repaired": 5, "chosen_not_resolved": 2}}}) == [("not-resolved", 1)]
    assert rules((), {1: {"repair": {"failures": 9, "repaired": 0}}}) == [("no-repairs", 1)]
    assert rules((), {1: {"repair": {"failures": 0, "repaired": 0}}}) == []


def test_pfpo_without_signal_or_cut_off():
    assert rules((), {2: log(completions__clipped_ratio=0.06)}) == [("clipped", 2)]
    assert rules((), {2: log(pareto__zero_signal_share=0.9)}) == [("no-signal", 2)]
    assert rules((), {2: log(completions__clipped_ratio=None)}) == []


def drift(lengths, rewards):
    steps = [{"completions/mean_length": n, "reward": r} for n, r in zip(lengths, rewards, strict=True)]
    return {1: {"pfpo": {"log": [*steps, {"train_loss": 0.1}]}}}


def test_length_that_drifts_while_the_reward_stays():
    flat, rising = [2, 2.1] * 4, [1, 1.1, 2, 2, 2, 2, 3, 3.1]
    longer, jumpy = [20, 21, 22, 24, 26, 28, 31, 33], [20, 40, 22, 24, 26, 28, 31, 33]
    assert rules((), drift(longer, flat)) == [("length-drift", 1)]
    assert rules((), drift(longer[::-1], flat)) == [("length-drift", 1)], "shorter is a drift too"
    assert rules((), drift(longer, rising)) == [], "it does more"
    assert rules((), drift(jumpy, flat)) == [], "one long step is no drift"
    assert rules((), drift([20, 21, 22, 24, 26, 28, 29, 30], flat)) == [], "less than half"
    assert rules((), drift(longer[:3], flat[:3])) == []
    (concern,) = diagnose([], drift(longer, flat))
    assert "20 to 32 tokens" in concern.text


def test_one_objective_that_makes_the_front():
    names = {f"rewards__{name}__mean": 0.5 for name in ("security", "utility")}
    assert rules((), {1: log(**names, rewards__security__std=0.05, rewards__utility__std=0.5)}) == [
        ("one-objective", 1)
    ]
    assert rules((), {1: log(**names, rewards__security__std=0.3, rewards__utility__std=0.5)}) == []
    assert rules((), {1: log(**names, rewards__security__std=0.0, rewards__utility__std=0.0)}) == []
    assert rules((), {1: log(rewards__utility__mean=0.5, rewards__utility__std=0.5)}) == [], "there is but one"


def test_a_round_that_was_rolled_back():
    (concern,) = diagnose([], {1: {"accept": {"accepted": False, "worse": ["security"]}}})
    assert (concern.rule, concern.to_dict()["round"]) == ("rolled-back", 1)
    assert "security" in concern.text
    assert "unclear" in diagnose([], {1: {"accept": {"accepted": False, "undecided": "unclear"}}})[0].text


@pytest.mark.parametrize("said", ["nan", "inf", "-inf"])
@case(
    "runs and reports",
    "a training log in which a value is NaN or infinite",
    "TypeError in this report, and in every later one",
    "the value is left out, and the others are judged",
)
def test_a_logged_value_that_is_no_number_is_left_out(said):
    keys = ("completions/clipped_ratio", "pareto/zero_signal_share", "completions/mean_length", "reward")
    keys += ("rewards/security/mean", "rewards/security/std", "rewards/utility/mean", "rewards/utility/std")
    bad, good = dict.fromkeys(keys, said), dict.fromkeys(keys, 0.5)
    found = diagnose([], {1: {"pfpo": {"log": [bad, good] * 4}, "preference": {"accuracy": said}}})
    assert found == diagnose([], {1: {"pfpo": {"log": [good] * 4}}}) != []
