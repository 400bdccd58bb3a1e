"""log-ratio: two real policies, one of them trained on repairs; names of policies; what it does not apply to."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

import tiny
import torch
from fate_trl_methods.log_ratio import LogRatio
from test_stages import folder, learner  # noqa: F401 (a fixture)

from fate_trl import plugins, score_all
from fate_trl.errors import FateError, LedgerError, PluginError, RecipeError
from fate_trl.ledger.scores import Scorer
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.repairing import row_of
from fate_trl.recipe.loading import make_recipe
from fate_trl.suites.scripted import perform
from fate_trl.train import likelihoods
from fate_trl.train.build import build
from fate_trl.train.examples import tokens_of
from fate_trl.types import OBJECTIVES, RolloutRequest, Script
from fate_trl.verify.loading import tell_run

torch.set_num_threads(1)


def calls(*steps, answer="done"):
    return Script(tuple({"name": name, "arguments": arguments} for name, arguments in steps), answer)


ALICE = {"to": "alice"}
REPAIRS = [calls(("look", {}), ("pay", ALICE)), calls(("pay", ALICE))]
FAILURES = [calls(("pay", {"to": "mallory"})), calls(("pay", {"to": "bob"}), answer="error"), calls(answer="nobody")]


def written(made, task, script):
    """A trajectory with the tokens that a model would have sampled."""
    found = perform(made.suites["till"], RolloutRequest(task, task.messages, "collect"), script)
    row = row_of(found, "oracle", 0)
    example = tokens_of(row, made.tokenizer, made.tools_of(row))
    start = next(i for i, label in enumerate(example["labels"]) if label != -100)
    ids, mask = example["input_ids"], [int(label != -100) for label in example["labels"]]
    return replace(
        found, prompt_ids=tuple(ids[:start]), completion_ids=tuple(ids[start:]), policy_mask=tuple(mask[start:])
    )


@pytest.fixture(scope="module", params=[None, {"r": 4}], ids=["all weights", "adapter"])
def run(request, folder, tmp_path_factory):  # noqa: F811
    """A run whose policy of round 1 learned from repairs of two kinds of task, and what it wrote on a third."""
    path = tmp_path_factory.mktemp("run")
    model = {"path": str(folder), "lora": request.param, "threads": 1}
    made = learner(folder, model=model, sft={"max_steps": 30, "learning_rate": 1e-2, "per_device_train_batch_size": 4})
    directory = RunDirectory(path)
    recipe = make_recipe({"suites": ["workbench"], "model": model, "warm_start": {}})
    directory.write_text("recipe.yaml", recipe.dump())
    made.save(str(path / "rounds/00/after-warm_start"))
    seen, held_out = [tiny.make_task(n, "benign") for n in range(2)], tiny.make_task(7, "attacked")
    rows = [row_of(written(made, task, script), "repair", 1) for task in seen for script in REPAIRS]
    made.sft(rows, 3, "sft")
    made.save(str(path / "rounds/01/policy"))
    directory.append("rounds/01/stages.jsonl", [{"stage": "accept", "accepted": True}])
    good, bad = ([written(made, held_out, script) for script in scripts] for scripts in (REPAIRS, FAILURES))
    return path, made, good, bad


def asked(run, **arguments):
    verifier = LogRatio(**{"sft": "@1", "base": "base", **arguments})
    verifier.in_run(RunDirectory(run[0]))
    return verifier


def test_log_ratio_scores_repairs_above_failures_on_tasks_that_were_not_trained_on(run):
    _, _, good, bad = run
    verifier = asked(run, low=-200, high=200)
    scores = [card.scores["log_ratio"].value for card in score_all([verifier], [*good, *bad])]
    assert min(scores[: len(good)]) > max(scores[len(good) :])
    assert all(0 < score < 1 for score in scores)


def test_log_ratio_is_that_of_plain_forward_passes_whatever_the_batch(run, folder):  # noqa: F811
    _, made, good, bad = run
    every = [*good, *bad]
    base = learner(folder, model=made.recipe.model.model_dump(mode="json"))
    wanted = []
    for each in every:
        ids = torch.tensor([[*each.prompt_ids, *each.completion_ids]])
        own = torch.tensor([0] * len(each.prompt_ids) + list(each.policy_mask))[1:].bool()
        sums = []
        for model in (made.model, base.model):
            model.eval()
            with torch.no_grad():
                logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            sums.append(logps[own].sum().item())
        wanted.append(sums[0] - sums[1])
    for batch in (1, 2, 16):
        assert asked(run, batch=batch).ratios(every) == pytest.approx(wanted, abs=1e-3)
    (first,) = asked(run).score(every[:1])
    assert first["log_ratio"].value == pytest.approx(min(1, max(0, (wanted[0] + 20) / 40)), abs=1e-4)


def test_log_ratio_counts_the_policys_own_tokens_alone(run):
    _, _, good, _ = run
    (whole,) = asked(run).ratios(good[:1])
    half = replace(good[0], policy_mask=tuple(m if n < 6 else 0 for n, m in enumerate(good[0].policy_mask)))
    none = replace(good[0], policy_mask=(0,) * len(good[0].policy_mask))
    assert asked(run).ratios([half])[0] != pytest.approx(whole, abs=1e-3)
    assert asked(run).score([none])[0]["log_ratio"].value == 0.5, "who says nothing is as likely before as after"


def test_log_ratio_names_policies_of_its_run_of_another_and_folders(run, folder):  # noqa: F811
    path, _, good, _ = run
    wanted = asked(run).ratios(good)
    for sft in (str(path), f"{path}@1", f"{path}@round-1"):
        assert asked(run, sft=sft).ratios(good) == wanted
    assert asked(run, base="start").ratios(good) == pytest.approx(wanted, abs=1e-4), "what was saved is the base here"
    assert asked(run, base="@0").ratios(good) == pytest.approx(wanted, abs=1e-4)
    assert LogRatio(f"{path}@1", str(folder)).ratios(good) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sft": "@2"}, "log-ratio: .* no policy '@2' yet.* name base, start"),
        ({"sft": "@best"}, "after the @ stands the number of a round"),
        ({"sft": "runs/nowhere@1"}, "log-ratio: runs/nowhere@1: 'runs/nowhere' is no run directory"),
        ({"base": "/nowhere/at-all"}, "no folder '/nowhere/at-all', and it is not a hub id"),
    ],
)
def test_log_ratio_says_what_policy_is_not_there_before_anything_is_scored(run, arguments, said):
    with pytest.raises(FateError, match=said):
        asked(run, **arguments)


def test_log_ratio_says_that_two_names_are_one_policy(run, tmp_path):
    (score,) = score_all([asked(run, sft="start")], run[2][:1])[0].scores.values()
    assert score.status == "error"
    assert "'start' and 'base' are one policy" in score.reason
    cold = RunDirectory(tmp_path)
    cold.write_text("recipe.yaml", make_recipe({"suites": ["workbench"]}).dump())
    with pytest.raises(FateError, match="'start' and 'base' are one policy"):
        LogRatio().in_run(cold)


def test_log_ratio_says_of_another_run_what_is_not_there(run, tmp_path):
    with pytest.raises(LedgerError, match="no policy of round 7"):
        LogRatio(f"{run[0]}@7", str(run[0])).ratios(run[2])
    with pytest.raises(RecipeError, match="is a policy of the run that scores, and no run does"):
        LogRatio().ratios(run[2])
    with pytest.raises(RecipeError, match="no folder"):
        LogRatio(str(tmp_path / "nowhere"), f"{run[0]}@1").ratios(run[2])


def test_log_ratio_says_of_another_models_tokens_that_they_are(run):
    odd = replace(run[2][0], completion_ids=(90_000,) * len(run[2][0].completion_ids))
    (score,) = score_all([asked(run)], [odd])[0].scores.values()
    assert "has the token 90000" in score.reason


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sft": "a", "base": "a"}, "both policies are 'a'"),
        ({"low": 1.0, "high": 1.0}, "must lie below high"),
        ({"batch": 0}, "batch"),
        ({"lower": 1}, "lower"),
    ],
)
def test_log_ratio_refuses_arguments_before_anything_loads(arguments, said):
    with pytest.raises((RecipeError, PluginError), match=said):
        plugins.load("verifier", "methods/log-ratio", arguments)


def test_log_ratio_is_told_its_run_within_an_ensemble_too(run):
    members = [
        {"name": "methods/log-ratio", "args": {"sft": "@1"}},
        {"name": "methods/log-ratio", "args": {"sft": "@1", "batch": 2}},
    ]
    both = plugins.load("verifier", "ensemble", {"members": members})
    tell_run([both], RunDirectory(run[0]))
    (card,) = score_all([both], run[2][:1])
    assert card.scores["log_ratio"].value == pytest.approx(asked(run).score(run[2][:1])[0]["log_ratio"].value, abs=1e-4)


def test_log_ratio_does_not_apply_before_the_warm_start_nor_to_what_has_no_tokens(run):
    early = replace(run[2][0], stage="eval-test-base")
    scripted = replace(run[2][0], prompt_ids=(), completion_ids=(), policy_mask=())
    found = [each["log_ratio"] for each in asked(run, sft="start").score([early, scripted])]
    assert [score.status for score in found] == ["not_applicable"] * 2
    assert found[0].reason == "the warm start is still to come"
    assert asked(run).score([early])[0]["log_ratio"].status == "ok", "of another policy it can be told"


def test_log_ratio_keeps_scores_by_trajectory_and_gives_its_models_back(run, tmp_path, monkeypatch):
    loaded = []
    load = likelihoods.load_weights
    monkeypatch.setattr(likelihoods, "load_weights", lambda model: loaded.append(1) or load(model))
    state = torch.get_rng_state()
    place = RunDirectory(tmp_path / "run")
    for _ in range(2):
        Scorer([asked(run)], ["methods/log-ratio 1"], place)(run[2])
    assert len(loaded) == 2, "both policies once"
    assert len((place.path / "scores.jsonl").read_text().splitlines()) == len(run[2])
    assert torch.equal(torch.get_rng_state(), state), "a training goes on with the same draws"
    assert json.loads((place.path / "scores.jsonl").read_text().splitlines()[0])["scores"]["log_ratio"]["value"] > 0


@pytest.mark.slow
def test_log_ratio_rewards_pfpo_of_a_run_by_the_runs_own_policies(tmp_path):
    """The embedded policy: a warm start, then PFPO, whose groups are scored by what the warm start made likelier."""
    recipe = make_recipe(
        {
            "model": {"path": "embedded", "threads": 1},
            "suites": [{"name": "workbench", "args": {"train": 12, "validation": 4, "test": 6}}],
            "verifiers": [*OBJECTIVES, "methods/log-ratio"],
            "rollout": {"max_completion_length": 96, "max_tool_calling_iterations": 4},
            "warm_start": {"traces": 8, "max_steps": 4, "learning_rate": 1e-3, "per_device_train_batch_size": 4},
            "repair": None,
            "sft": None,
            "pfpo": {"max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4},
            "rounds": 1,
            "evaluation": {"validation": 0},
        }
    )
    run = RunDirectory(tmp_path)
    run.write_text("recipe.yaml", recipe.dump())
    build(recipe, run)()
    statuses = {
        stage: {card.scores["log_ratio"].status for _, card in run.cases(f"rounds/{round}/rollouts.jsonl", stage)}
        for round, stage in (("00", "eval-test-base"), ("00", "eval-test-oracle"), ("00", "eval-test"))
    }
    assert statuses == {
        "eval-test-base": {"not_applicable"},
        "eval-test-oracle": {"not_applicable"},
        "eval-test": {"ok"},
    }
    assert {card.scores["log_ratio"].status for _, card in run.cases("rounds/01/rollouts.jsonl", "eval-test")} == {"ok"}
    (step,) = (entry for entry in run.stages(1)["pfpo"]["log"] if "loss" in entry)
    assert 0 < next(value for key, value in step.items() if "log_ratio" in key and key.endswith("mean")) < 1
