"""benchmarks/real_model.py: words chosen and kept by validation, pairing, resumption; with scripted policies."""

import xml.etree.ElementTree as ET
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import real_model, real_model_runs
from benchmarks.learning_methods import METHODS, REFERENCE
from benchmarks.policies import Player
from benchmarks.prompt_defence import NONE, WORDINGS, Defence, best, defended, distilled, quality
from benchmarks.real_model_estimate import Spent, seconds_of, smallest, steps_of, training
from benchmarks.real_model_page import Measured, difference, own_count, page, picture, rates, summary
from benchmarks.real_model_runs import Plan
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.metrics import intervals
from fate_trl.recipe.loading import find_recipe, make_recipe, read_values
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.types import Failure, Outcome, Score, ScoreCard, Task, Trajectory

VALUES = {
    "suites": [{"name": "workbench", "args": {"train": 12, "validation": 6, "test": 18}}],
    "rollout": {"chunk": 5},
    "pfpo": {"max_steps": 1},
    "sft": {"per_device_train_batch_size": 4, "max_steps": 3},
    "rounds": 2,
}
TASK = Task("t", "s", "benign", ({"role": "user", "content": "Pay Ann."},))


def case(task, resolved, kind="benign", **facts):
    card = ScoreCard({"utility": Score(float(resolved), feedback="Not done.")})
    outcome = Outcome(utility=float(resolved), **facts)
    return Trajectory(Task(task, "s", kind, TASK.messages, cluster=task), outcome=outcome), card


# ------------------------------------------------------------------------------------------------ words


def test_a_defence_goes_before_and_behind_the_task_and_changes_nothing_else():
    said = defended(TASK, Defence("d", "Beware.", "Remember."))
    assert said.messages == (
        {"role": "system", "content": "Beware."},
        {"role": "user", "content": "Pay Ann.\n\nRemember."},
    )
    assert replace(said, messages=TASK.messages) == TASK
    with_one = replace(TASK, messages=({"role": "system", "content": "You pay."}, *TASK.messages))
    assert defended(with_one, Defence("d", "Beware.")).messages[0]["content"] == "You pay.\n\nBeware."
    assert defended(TASK, NONE) == TASK


def test_validation_chooses_among_wordings():
    values = {"rule": (0.5, 0.6), "explained": (0.5, 0.7), "sandwich": (0.4, 0.9)}
    chosen, said = best(WORDINGS, lambda defence: values[defence.name])
    assert chosen.name == "explained", "resolved first, then the mean score"
    assert said == {name: list(value) for name, value in values.items()}
    assert best(WORDINGS, lambda _: (0.5, 0.5))[0] is WORDINGS[0]


def test_quality_leaves_broken_cases_out():
    broken = (replace(case("b", False)[0], error="gone"), ScoreCard({}))
    assert quality([case("a", True), case("c", False), broken]) == (0.5, 0.5)
    assert quality([broken]) == (0.0, 0.0)


def improved(values, proposals=4, affordable=lambda: True):
    """Proposals whose validation says these values, the first for no words; and what the model was asked."""
    asked, failures = [], [Failure(*case(f"f{n}", False)) for n in range(4)]

    def propose(text, number):
        asked.append(text)
        return f"words {number}"

    said = iter(values)
    kept, told = distilled(failures, propose, lambda _: (next(said), 0.0), affordable, proposals, shown=3)
    return kept, told, asked


def test_a_proposal_is_kept_only_if_validation_is_better():
    kept, told, asked = improved([0.4, 0.4, 0.6, 0.5, 0.6])
    assert kept.system == "words 1"
    assert [t["kept"] for t in told] == [False, True, False, False], "as good is not better"
    assert "It reads now:\n\n(nothing)" in asked[1]
    assert "It reads now:\n\nwords 1" in asked[2]
    assert "Not done." in asked[0], "the verifiers' feedback is shown"
    assert told[2]["before"] == [0.6, 0.0]


def test_no_proposal_is_made_without_tokens_or_failures():
    money = iter([True, False])
    kept, told, _ = improved([0.4, 0.9], affordable=lambda: next(money))
    assert len(told) == 1
    assert kept.system == "words 0"
    assert distilled([], lambda *_: "x", lambda _: (0.0, 0.0), lambda: True, 4) == (NONE, [])


def test_empty_words_are_not_tried():
    judged = []
    kept, told = distilled(
        [Failure(*case("f", False))], lambda *_: " \n", lambda d: judged.append(d) or (0.1, 0.1), lambda: True, 2
    )
    assert (kept, judged) == (NONE, [NONE])
    assert [t["kept"] for t in told] == [False, False]


# ------------------------------------------------------------------------------------------------ statistics


def ended(method, seed, resolved, kind="benign", **facts):
    cases = [case(f"t{n}", r, kind, **facts) for n, r in enumerate(resolved)]
    result = {"method": method, "seed": seed, "tokens": 1000 * seed, "cpu_seconds": 2.0, "interrupted": 0}
    return Measured(method, seed, result, cases)


def test_cases_are_paired_by_seed_and_task():
    ours = [ended("a", 0, [1, 1, 0, 1]), ended("a", 1, [1, 1, 1, 1]), ended("a", 2, [0, 0, 0, 0])]
    theirs = [ended("b", 1, [0, 1, 1, 1]), ended("b", 0, [0, 0, 0, 1])]
    found = difference(ours, theirs, "resolved")
    assert (found["n"], found["seeds"], found["clusters"]) == (8, [0, 1], 4)
    assert found["mean"] == pytest.approx(3 / 8)
    assert (found["rose"], found["fell"]) == (3, 0)
    assert difference(ours, theirs, "asr") is None, "no attacked task"


def test_intervals_are_over_seeds_from_three_on():
    few = rates([ended("a", 0, [1, 0, 1, 1])])["resolved"]
    assert (few["mean"], few["n"]) == (0.75, 4)
    many = rates([ended("a", seed, [1, 0, 1, seed > 0]) for seed in range(3)])["resolved"]
    assert (many["n"], many["mean"]) == (3, pytest.approx((0.5 + 0.75 + 0.75) / 3))


def test_agentdojos_own_count_stands_beside_ours():
    assert own_count([ended("a", 0, [1, 0])]) == {}
    attacked = ended("a", 0, [0, 0], "attacked", attacked=True, info={"upstream_utility": 1.0})
    benign = ended("a", 0, [0], info={"upstream_utility": 0.0})
    found = own_count([attacked, benign])
    assert {name: v["mean"] for name, v in found.items()} == {
        "utility": 0.0,
        "utility_under_attack": 1.0,
        "attack_success": 1.0,
    }


def test_the_page_shows_every_method_and_the_picture_is_svg():
    runs = [ended("start", 0, [0, 0, 0, 1]), ended(REFERENCE, 0, [1, 1, 1, 1]), ended("grpo-sum", 0, [0, 1, 0, 1])]
    told = summary(runs, {"start": "as it was", "grpo-sum": "GRPO", REFERENCE: "all of it", "gdpo": "not run"})
    assert list(told) == ["start", "grpo-sum", REFERENCE]
    assert told[REFERENCE]["less_start"]["resolved"]["mean"] == 0.75
    assert told["grpo-sum"]["reference_less"]["resolved"]["mean"] == 0.5
    assert told["grpo-sum"]["reference_less"]["resolved"]["holm"] >= told["grpo-sum"]["reference_less"]["resolved"]["p"]
    about = dict.fromkeys(("command", "recipe", "recipe_hash", "model", "seeds", "machine", "versions"), "said")
    text = page(told, {**about, "left": "Not finished."})
    assert text.count("| `grpo-sum` |") == 3
    assert "Not finished." in text
    assert "AgentDojo's own count" not in text
    shapes = [each.tag.rpartition("}")[2] for each in ET.fromstring(picture(told)).iter()]
    assert shapes.count("rect") == 1 + 3 + 3, "background, legend, and `resolved` of three methods"


# ------------------------------------------------------------------------------------------------ runs


class Counting(ScriptedLearner):
    """Each training stage takes a fixed number of tokens."""

    def _train(self, stage, amount):
        return {**super()._train(stage, amount), "trained_tokens": 500}


@pytest.fixture
def scripted(monkeypatch):
    """Runs of scripted learners in this process; returns the names of what was run."""
    ran = []

    def made(recipe, directory):
        return assemble(recipe, directory, lambda suites, *_: Counting(suites, gain=0.1))

    def train(folder, recipe, reference, stages):
        directory = RunDirectory(folder / "run")
        if reference is not None:
            real_model_runs.take(RunDirectory(reference), directory, stages)
        made(make_recipe(recipe), directory)()

    @contextmanager
    def opened(recipe, policy):
        evolution = made(make_recipe(recipe), RunDirectory(Path(folder) / "opened"))
        evolution.learner.load(str(policy))
        yield Player(evolution)

    def apart(place, function, *args):
        ran.append((place.name.rpartition("-")[0], function.__name__))
        place.mkdir(parents=True, exist_ok=True)
        return function(*args)

    folder = ""
    monkeypatch.setattr(intervals, "RESAMPLES", 50)
    for name, stands_in in {"train": train, "opened": opened, "apart": apart}.items():
        monkeypatch.setattr(real_model_runs, name, stands_in)
    monkeypatch.setattr(real_model, "apart", apart)

    def at(path):
        nonlocal folder
        folder = path
        return ran

    return at


NAMES = ("prompt-only", "prompt-distilled", "sft-repairs", "grpo-sum", "fate-prompt")


def everything(plan):
    return list(real_model.on_seed(plan, NAMES))


def plan_in(folder, **settings):
    return Plan(VALUES, folder / "seed-0", 0, real_model.methods_of(VALUES, NAMES), **settings)


def test_what_is_kept_is_not_run_again(scripted, tmp_path):
    ran, plan = scripted(tmp_path), plan_in(tmp_path, validation=8, proposals=2)
    first = everything(plan)
    assert [result["method"] for _, result in first] == [REFERENCE, "start", *NAMES]
    assert [name for name, what in ran if what == "train"] == ["fate", "sft-repairs", "grpo-sum"]
    ran.clear()
    assert everything(plan) == first
    assert ran == []
    (first[3][0] / "result.json").unlink()
    everything(plan)
    assert {name for name, _ in ran} == {"prompt-distilled"}, "and only what is missing is run"


def test_what_a_method_does_as_the_reference_did_is_taken_from_there(scripted, tmp_path):
    scripted(tmp_path)
    plan = plan_in(tmp_path, validation=4, proposals=1)
    runs = {result["method"]: RunDirectory(folder / "run") for folder, result in everything(plan)}
    reference, repairs = runs[REFERENCE], runs["sft-repairs"]
    for stage in ("collect", "repair", "buffer"):
        assert repairs.stages(1)[stage] == reference.stages(1)[stage], "its seconds too"
    assert repairs.cases("rounds/01/repairs.jsonl", "repair") == reference.cases("rounds/01/repairs.jsonl", "repair")
    assert repairs.stages(1)["sft"] != reference.stages(1)["sft"], "what is learned is its own"
    assert {"collect", "repair"}.isdisjoint(runs["grpo-sum"].stages(1))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("sft-repairs", ["collect", "repair", "buffer"]),
        ("preference-for-pfpo", ["collect", "repair", "buffer"]),
        ("resampling", ["collect"]),
        ("fate-sum", ["collect"]),
        ("grpo-sum", []),
        ("no-benign", None),
    ],
)
def test_only_what_would_come_out_the_same_is_taken(name, stages, tmp_path):
    methods = real_model.methods_of(VALUES, [name])
    plan = Plan(VALUES, tmp_path / "seed-0", 0, methods)
    recipe, reference = plan.recipe(methods[name], 1000), plan.recipe(methods[REFERENCE], None)
    assert real_model_runs.alike(recipe, reference) == stages


@pytest.mark.parametrize(("strategy", "twins"), [("reflect", []), ("resample", ["resampling"])])
def test_a_method_that_comes_to_the_same_recipe_is_run_once(strategy, twins, tmp_path, capsys):
    names = ["start", "sft-repairs", "resampling", "grpo-sum", REFERENCE]
    values = {**VALUES, "repair": {**(VALUES.get("repair") or {}), "strategy": strategy}}
    plan = Plan(values, tmp_path / "seed-0", 0, real_model.methods_of(values, names))
    assert real_model.without_twins(plan, names) == [name for name in names if name not in twins]
    assert ("resampling is sft-repairs" in capsys.readouterr().out) == bool(twins)


def test_a_method_that_is_the_reference_gives_way_to_it(tmp_path):
    values = {**VALUES, "repair": {"k": 4}}
    plan = Plan(values, tmp_path / "seed-0", 0, real_model.methods_of(values, ["k-4"]))
    assert real_model.without_twins(plan, ["start", "k-4", REFERENCE]) == ["start", REFERENCE]


def test_what_was_half_copied_is_copied_again(scripted, tmp_path):
    scripted(tmp_path)
    plan = plan_in(tmp_path, validation=4, proposals=1)
    reference = RunDirectory(next(real_model.on_seed(plan, ()))[0] / "run")
    copy, stages = RunDirectory(tmp_path / "copy"), ["collect", "repair", "buffer"]
    for _ in range(2):
        real_model_runs.take(reference, copy, stages)
    assert [record["stage"] for record in copy.read("rounds/01/stages.jsonl")] == stages


def test_the_page_is_of_all_that_is_kept(scripted, tmp_path):
    scripted(tmp_path)
    plan, names = plan_in(tmp_path, validation=4, proposals=1), ("start", "grpo-sum", REFERENCE)
    assert list(real_model.finished([plan], names)) == []
    methods = iter(real_model.on_seed(plan, NAMES))
    next(methods)
    assert [found.method for found in real_model.finished([plan], names)] == [REFERENCE]
    list(methods)
    assert [found.method for found in real_model.finished([plan], names)] == list(names)
    assert not list(real_model.finished([replace(plan, seed=1, folder=tmp_path / "seed-1")], names))


def test_what_auto_became_for_the_reference_holds_for_all(tmp_path):
    plan = plan_in(tmp_path)
    plan = replace(plan, values={**VALUES, "model": {"path": "embedded", "dtype": "auto", "threads": "auto"}})
    assert plan.asked["model"]["dtype"] == "auto"
    chosen = {"chosen": {"dtype": "bfloat16", "threads": 2}}
    RunDirectory(plan.place(REFERENCE) / "run").write_json("manifest.json", chosen)
    for recipe in (plan.asked, plan.recipe(plan.methods["grpo-sum"], 100)):
        assert (recipe["model"]["dtype"], recipe["model"]["threads"]) == ("bfloat16", 2)


def test_other_words_or_changes_are_other_runs(tmp_path):
    plan = plan_in(tmp_path, validation=4)
    more = replace(plan, validation=5)
    assert plan.place("prompt-only") != more.place("prompt-only")
    assert plan.place("start") == more.place("start")
    changed = {name: replace(method, changes={**method.changes, "rounds": 3}) for name, method in plan.methods.items()}
    assert plan.place("grpo-sum") != replace(plan, methods=changed).place("grpo-sum")


def test_all_methods_are_tested_on_the_same_tasks(scripted, tmp_path):
    scripted(tmp_path)
    plan = plan_in(tmp_path, validation=8, proposals=2)
    found = {result["method"]: real_model_runs.test_cases(folder) for folder, result in everything(plan)}
    tasks = {name: [t.task.id for t, _ in cases] for name, cases in found.items()}
    assert all(ids == tasks["start"] for ids in tasks.values())
    assert len(tasks["start"]) == 18
    prompts = {name: cases[0][0].prompt for name, cases in found.items()}
    assert prompts["prompt-only"] == prompts["fate-prompt"] != prompts["start"] == prompts[REFERENCE]


def test_a_method_that_breaks_does_not_stop_the_others(scripted, tmp_path, monkeypatch, capsys):
    scripted(tmp_path)

    def broken(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(real_model, "distil", broken)
    plan = plan_in(tmp_path, validation=4, proposals=1)
    methods = [result["method"] for _, result in everything(plan)]
    assert methods == [REFERENCE, "start", *(name for name in NAMES if name != "prompt-distilled")]
    assert "prompt-distilled, seed 0: RuntimeError: no memory" in capsys.readouterr().err


def test_chunks_that_are_committed_are_not_played_again(scripted, tmp_path):
    scripted(tmp_path)
    run, calls = RunDirectory(tmp_path / "played"), []
    policy = tmp_path / "policy"
    ScriptedLearner({}).save(str(policy))
    with real_model_runs.opened({**VALUES, "seed": 0}, policy) as player:
        tasks = player.evolution.tasks("test")[:4] * 3
        rollout = player.evolution.learner.rollout

        def stopping(requests, seed):
            calls.append([(request.task.id, request.attempt) for request in requests])
            if len(calls) == 2:
                raise KeyboardInterrupt
            return rollout(requests, seed)

        player.evolution.learner.rollout = stopping
        with pytest.raises(KeyboardInterrupt):
            real_model_runs.played(player, run, "test.jsonl", "eval-test", tasks, 0)
        cases = real_model_runs.played(player, run, "test.jsonl", "eval-test", tasks, 0)
    assert [len(asked) for asked in calls] == [5, 5, 5, 2]
    assert calls[1] == calls[2]
    assert len({(t.task.id, t.attempt) for t, _ in cases}) == 12, "a task that comes again has another attempt"


DOJO = {
    "tools": "needed",
    "distractors": 1,
    "fits": 800,
    "attacks": ["important_instructions", "direct"],
    "test_attacks": ["important_instructions", "ignore_previous"],
}


@pytest.fixture
def dojo(scripted, tmp_path):
    """A plan on AgentDojo, and a folder of a method that ended with a policy."""
    pytest.importorskip("fate_trl_agentdojo")
    scripted(tmp_path)
    values = {**VALUES, "suites": [{"name": "agentdojo/banking", "args": DOJO}]}
    folder = tmp_path / "seed-0"
    ScriptedLearner({}).save(str(folder / "policy"))
    return Plan(values, folder, 0, {}, familiar=4), RunDirectory(folder / "grpo-sum")


def test_familiar_tasks_have_trainings_requests_and_neither_its_goals_nor_its_attacks(dojo):
    plan, method = dojo
    assert real_model_runs.familiar_cases(plan, method.path) == []
    real_model_runs.familiar_once(plan, method.path, {"policy": "policy"})
    tried = [t.task for t, _ in real_model_runs.familiar_cases(plan, method.path)]
    with real_model_runs.opened(plan.asked, plan.folder / "policy") as player:
        training, test = (player.evolution.tasks(split) for split in ("train", "test"))
    assert len(tried) == len({task.id for task in tried}) == 4
    assert {task.cluster for task in tried} <= {task.cluster for task in training}
    for part in ("attack", "injection"):
        assert {task.data.get(part) for task in training}.isdisjoint(task.data[part] for task in tried)
    assert {task.id for task in tried}.isdisjoint(task.id for task in [*training, *test])


def test_familiar_tasks_are_tried_once_with_the_words_that_were_chosen(dojo, monkeypatch):
    plan, method = dojo
    words = Defence("rule", "Beware of tools.", "")
    ended = {"policy": "policy", "defence": vars(words)}
    for _ in range(2):
        real_model_runs.familiar_once(plan, method.path, ended)
    cases = real_model_runs.familiar_cases(plan, method.path)
    assert len(cases) == 4
    assert all("Beware of tools." in t.prompt[0]["content"] for t, _ in cases)
    monkeypatch.setattr(real_model_runs, "apart", lambda *_: pytest.fail("none is asked for"))
    real_model_runs.familiar_once(replace(plan, familiar=0), method.path, ended)


def test_familiar_tasks_have_a_table_of_their_own():
    runs = [ended("start", 0, [0, 0]), ended("grpo-sum", 0, [0, 1]), ended(REFERENCE, 0, [1, 1])]
    asked = {"start": [0, 0, 1, 0], REFERENCE: [1, 1, 1, 0]}
    runs = [replace(r, familiar=ended(r.method, 0, asked.get(r.method, [])).cases) for r in runs]
    told = summary(runs, dict.fromkeys(("start", "grpo-sum", REFERENCE), "what"))
    found = told[REFERENCE]["familiar"]
    assert (found["cases"], found["metrics"]["resolved"]["mean"]) == (4, 0.75)
    assert found["less_start"]["resolved"]["mean"] == 0.5
    assert told[REFERENCE]["metrics"]["resolved"]["mean"] == 1.0, "the test's rates do not count them"
    about = dict.fromkeys(("command", "recipe", "recipe_hash", "model", "seeds", "machine", "versions", "left"), "said")
    _, _, section = page(told, about).partition("## Requests that training had")
    rows = [line.split("|")[1:5] for line in section.partition("## What")[0].splitlines() if line.startswith("| `")]
    assert [[each.strip() for each in row[:3]] for row in rows] == [["`start`", "1", "4"], ["`fate`", "1", "4"]]


# ------------------------------------------------------------------------------------------------ methods, estimate


@pytest.mark.parametrize("shipped", ["quickstart", "tradeoffs"])
def test_methods_have_the_recipes_own_rates(shipped, tmp_path):
    values = read_values(find_recipe(shipped))
    methods = real_model.methods_of(values, real_model.DEFAULT)
    assert list(methods) == ["fate", "resampling", "sft-repairs", "preference-for-pfpo", "grpo-sum"]
    plan = Plan(values, tmp_path, 0, methods)
    recipes = {name: make_recipe(plan.recipe(method, 1000)) for name, method in methods.items()}
    assert recipes["grpo-sum"].pfpo.trl["learning_rate"] == values["pfpo"]["learning_rate"]
    pairs = recipes["preference-for-pfpo"].preference.trl
    assert pairs["gradient_accumulation_steps"] == values["sft"]["per_device_train_batch_size"]
    assert pairs["num_train_epochs"] == values["sft"]["num_train_epochs"]
    assert METHODS["grpo-sum"].tuned, "which are left out here"


def test_another_model_brings_its_own_template(tmp_path):
    own = {"path": "owner/small", "chat_template": "chatml_json", "tool_parser": "json", "lora": {"r": 8}}
    values = {**VALUES, "model": dict(own)}
    real_model.on_model(values, str(tmp_path))
    assert values["model"] == {**own, "path": str(tmp_path)}
    real_model.on_model(values, "owner/large")
    assert values["model"] == {"path": "owner/large", "lora": {"r": 8}}


def test_what_runs_were_made_with_is_said_once():
    made = [{"torch": "2.1", "commit": "b"}, {"torch": "2.1", "commit": "a"}]
    assert real_model.used(made) == {"torch": "2.1", "commit": "a and b"}
    assert real_model.used([]) == {}


@pytest.mark.parametrize("recipe", ["qwen2.5-0.5b-cpu", "of/mine/qwen2.5-0.5b-cpu.yaml"])
def test_a_recipe_keeps_the_dots_of_its_name(recipe):
    assert real_model.recipe_name(recipe) == "qwen2.5-0.5b-cpu"


def test_an_unknown_method_is_named():
    with pytest.raises(SystemExit, match=r"no method 'prompts'.*prompt-only.*grpo-sum"):
        real_model.methods_of(VALUES, ["prompts"])


def test_the_estimate_multiplies_out():
    recipe = make_recipe({**VALUES, "rollout": {"tasks": 10}, "warm_start": {"max_steps": 5}})
    assert [steps_of(recipe, stage) for stage in ("warm_start", "sft", "pfpo")] == [5, 3, 1]
    cost = {"episode": 2.0, "candidate": 3.0, "steps": {"warm_start": 7.0, "sft": 11.0, "pfpo": 13.0}}
    spent = training(recipe, cost)
    assert spent.zero == 5 * 7
    assert spent.rounds == 2 * (10 * 2 + 10 * 4 * 3 + 3 * 11 + 13)
    assert spent.shared == {"collect": 10 * 2, "repair": 10 * 4 * 3}


def test_the_estimate_counts_once_what_methods_share(tmp_path):
    names = ("sft-repairs", "fate-sum", "grpo-sum", "no-benign")
    plan = Plan(VALUES, tmp_path / "seed-0", 0, real_model.methods_of(VALUES, names))
    spent = Spent(100.0, 60.0, {"collect": 10.0, "repair": 20.0, "buffer": 1.0})
    found = {name: seconds_of(plan, name, spent) for name in (*names, REFERENCE)}
    assert found == {"sft-repairs": 29, "fate-sum": 50, "grpo-sum": 60, "no-benign": 160, REFERENCE: 160}


def test_the_smallest_run_has_one_step_of_each_stage():
    recipe = smallest({**VALUES, "warm_start": {"num_train_epochs": 3}})
    assert all(steps_of(recipe, stage) == 1 for stage in ("warm_start", "sft", "pfpo"))
    assert (recipe.rounds, recipe.repair.accept, recipe.evaluation.tasks) == (1, "random", 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "3-1"], "'3-1' runs backwards"),
        (["--validation", "-1"], "-1 is below 0"),
        (["--attack", "-3"], "-3 is below 0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["real_model.py", *arguments])
    with pytest.raises(SystemExit):
        real_model.asked()
    assert said in capsys.readouterr().err


def test_a_page_of_nothing_takes_no_others_place(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("results")
    given = ["--recipe", "quickstart", "--kept", "--runs", str(tmp_path), "--output", str(page.with_suffix(""))]
    monkeypatch.setattr("sys.argv", ["real_model.py", *given])
    with pytest.raises(SystemExit, match="nothing is kept under"):
        real_model.main()
    assert page.read_text() == "results"
