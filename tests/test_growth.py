"""benchmarks/growth.py: which runs there are, what they share, and what is made of their results."""

import json

import pytest

from benchmarks import growth
from benchmarks.learning import chosen, recipe_of, untuned
from fate_trl.recipe.loading import make_recipe

SHARES = {"fate": 0.5, "fate-sum": 0.4, "grpo-sum": 0.2}


@pytest.fixture
def methods():
    return {name: untuned(method, growth.RATES) for name, method in chosen(["fate-sum", "grpo-sum"]).items()}


def result(method, seed, resolved, tokens):
    start, end = ({"all": {name: value for name in growth.METRICS}} for value in (0.1, resolved))
    points = [{"round": 0, "tokens": 0, "values": start}, {"round": 2, "tokens": tokens, "values": end}]
    return {"method": method, "seed": seed, "points": points, "cpu": 7.0}


def ran(tmp_path, methods, seeds):
    """Results of a made-up law: each doubling adds ten points, the wider policy twenty to `fate` alone."""
    done = []

    def do(job):
        recipe = make_recipe(job.recipe)
        tasks, wide = recipe.rollout.tasks, recipe.model.path != "embedded-tradeoffs"
        resolved = SHARES[job.method] + 0.1 * growth.TASKS.index(tasks) + 0.2 * (wide and job.method == "fate")
        resolved += 0.01 * job.seed
        job.folder.mkdir(parents=True)
        made = result(job.method, job.seed, resolved, 1000 * tasks)
        (job.folder / "result.json").write_text(json.dumps(made))
        done.append((job.seed, recipe))

    paths = {128: "embedded-tradeoffs", 384: "embedded"}  # any other policy
    found = growth.everything(paths, methods, seeds, str(tmp_path / "runs"), do)
    return found, done


def test_budgets_double_and_all_methods_get_the_references_tokens(tmp_path, methods):
    _, done = ran(tmp_path, methods, [1])
    assert len(done) == 18
    for number, (_, recipe) in enumerate(done):
        assert recipe.pfpo.max_steps * growth.TASKS_PER_STEP == recipe.rollout.tasks
        assert recipe.token_budget == (None if number % 3 == 0 else 1000 * recipe.rollout.tasks)
    assert [recipe.rollout.tasks for _, recipe in done[:9:3]] == [40, 80, 160]


def test_the_wider_policy_is_trained_at_rates_in_inverse_proportion(methods):
    for method in methods.values():
        narrow, wide = (
            recipe_of(growth.values_of(width, 80, "embedded-tradeoffs"), method, 0, 1) for width in growth.WIDTHS
        )
        assert wide.pfpo.learning_rate == pytest.approx(narrow.pfpo.learning_rate / 3)
        assert narrow.pfpo.learning_rate == 1e-3


def test_finished_runs_are_not_done_again_and_come_seed_by_seed(tmp_path, methods):
    _, first = ran(tmp_path, methods, [1])
    found, second = ran(tmp_path, methods, [1, 2])
    assert {seed for seed, _ in first} == {1}
    assert {seed for seed, _ in second} == {2}
    assert all(sorted(results) == [1, 2] for results in found.values())


def test_what_is_planted_is_what_is_said(tmp_path, methods):
    found, _ = ran(tmp_path, methods, [1, 2, 3])
    told = growth.summary(found, list(methods))
    for doubling in told["doublings"]:
        assert doubling["mean"]["mean"] == pytest.approx(0.1)
        assert doubling["tokens"] == [2.0, 2.0]
    sums, grpo = told["leads"]
    assert (sums["mean"][128]["mean"], sums["mean"][384]["mean"]) == (pytest.approx(0.1), pytest.approx(0.3))
    assert (grpo["mean"][128]["mean"], grpo["with_size"]["mean"]) == (pytest.approx(0.3), pytest.approx(0.2))
    assert grpo["with_size"]["n"] == 3
    assert told["untrained"][128]["mean"] == pytest.approx(0.1)
    sizes = {128: "0.36 M", 384: "3.05 M"}
    about = {"parameters": sizes, "weights": {128: "a", 384: "b"}, "cpu": 126.0, "runs": 54}
    text = growth.page(told, {**dict.fromkeys(("command", "hardware", "versions", "recipe", "source"), "x"), **about})
    assert "| 3.05 M | 160 | `fate` | 3 | 160 | 7 | 92.0 [" in text


def test_a_part_that_is_finished_is_shown_without_what_is_not(tmp_path, methods):
    found, _ = ran(tmp_path, methods, [1])
    part = {key: value for key, value in found.items() if key[0] == 128 and key[1] < 160}
    told = growth.summary(part, list(methods))
    assert told["doublings"][0]["gains"]["40 to 80"]["mean"] == pytest.approx(0.1)
    assert told["doublings"][0]["mean"] is None
    assert told["leads"][0]["with_size"] is None
    about = {"parameters": {128: "0.36 M"}, "weights": {128: "a"}, "cpu": 126.0, "runs": 54}
    text = growth.page(told, {**dict.fromkeys(("command", "hardware", "versions", "recipe", "source"), "x"), **about})
    assert "The larger policy has not been run" in text
    assert "M | 160 |" not in text


def test_what_is_finished_can_be_shown_without_making_a_policy(tmp_path):
    assert growth.policy_of(128, tmp_path, make=False) == "embedded-tradeoffs"
    assert growth.policy_of(384, tmp_path, make=False) is None
    (tmp_path / "tradeoffs-384").mkdir()
    (tmp_path / "tradeoffs-384/model.safetensors").touch()
    assert growth.policy_of(384, tmp_path, make=True) == str(tmp_path / "tradeoffs-384")
