"""Fronts of policies (C-MORL's archive): what none dominates, which one for which wish, and recipes that extend it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from fate_trl import metrics
from fate_trl.choose.selectors import Constraint
from fate_trl.cli import app
from fate_trl.errors import LedgerError, RecipeError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.metrics import dominators, isolation, most_isolated, wished
from fate_trl.recipe.checks import check
from fate_trl.recipe.loading import load_recipe
from fate_trl.report import extending
from fate_trl.report.front import front, members, wish_of
from fate_trl.suites.workbench import POLICIES
from fate_trl.train.build import build

torch.set_num_threads(1)

OBJECTIVES = ("security", "utility", "over_refusal", "trajectory_control")
NAN = float("nan")
SIX = np.array([[0.9, 0.1], [0.8, 0.5], [0.75, 0.55], [0.3, 0.9], [0.7, 0.5], [0.2, 0.2]])
"""Four on the front, of which the last two are its lonely end and its crowded middle; two are dominated."""


def fate(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def dominates(a, b):
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def brute_force(rows):
    """The archive as it is kept one policy at a time: a new one goes in unless dominated, and throws out what it
    dominates."""
    kept = []
    for name, row in enumerate(rows):
        if not any(dominates(rows[k], row) for k in kept):
            kept = [k for k in kept if not dominates(row, rows[k])] + [name]
    return kept


# ------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_archive_equals_brute_force_over_random_tables(objectives):
    rng = np.random.default_rng(objectives)
    for _ in range(100):
        rows = rng.integers(0, 5, (rng.integers(1, 12), objectives)) / 4  # many ties and duplicates
        by = dominators(rows)
        assert [n for n, found in enumerate(by) if not found] == brute_force(rows.tolist())
        assert all(dominates(rows[k], rows[n]) for n, found in enumerate(by) for k in found)


def test_an_objective_that_applies_to_none_drops_out_and_a_lacking_one_is_an_error():
    with_none = np.column_stack([SIX[:, 0], np.full(6, NAN), SIX[:, 1]])
    assert dominators(with_none) == dominators(SIX)
    lacking = SIX.copy()
    lacking[0, 0] = NAN
    for rows in (lacking, np.full((2, 2), NAN), np.empty((0, 2))):
        with pytest.raises(ValueError, match="finite means"):
            dominators(rows)


def test_what_differs_by_rounding_alone_is_equal():
    rows = np.array([[0.1 + 0.2, 0.5], [0.3, 0.5], [0.2, 0.9]])
    assert rows[0, 0] > rows[1, 0]
    assert dominators(rows) == [[], [], []]
    assert most_isolated(rows, 3) == [2, 0]


def test_six_vectors_give_the_known_front_distances_and_picks():
    assert [bool(found) for found in dominators(SIX)] == [False, False, False, False, True, True]
    kept = SIX[:4]
    gap = [(0.15 / 0.6 + 0.45 / 0.8) / 2, (0.5 / 0.6 + 0.4 / 0.8) / 2]
    np.testing.assert_allclose(isolation(kept), [np.inf, *gap, np.inf])
    assert most_isolated(kept, 1) == [3]  # of the two ends the one with the higher mean
    assert most_isolated(kept, 3) == [3, 0, 2]
    assert most_isolated(kept, 9) == [3, 0, 2, 1]
    picks = {(1, 0): 0, (0, 1): 3, (2, 1): 1, (1, 1): 1, (1, 2): 3}
    assert {w: wished(kept, np.array(w, float)) for w in picks} == picks


def test_of_equal_policies_one_is_extended_and_ties_of_a_wish_go_to_the_mean():
    twice = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
    assert most_isolated(twice, 3) == [0, 2]
    assert wished(np.array([[0.9, 0.1], [0.9, 0.4]]), np.array([1.0, 0.0])) == 1
    with pytest.raises(ValueError, match="above 0 that applies"):
        wished(twice, np.zeros(2))


def test_any_wish_is_answered_by_the_best_of_all_policies():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = rng.random((10, 3))
        kept = rows[[n for n, by in enumerate(dominators(rows)) if not by]]
        weights = rng.dirichlet(np.ones(3))
        assert kept[wished(kept, weights)] @ weights == pytest.approx((rows @ weights).max())


# ------------------------------------------------------------------------------------------------ runs


def rewritten(source, folder, scores):
    """A copy of a scripted run in which round n's validation cases have the scores scores[n], by objective."""
    copy = shutil.copytree(source, folder)
    for round, means in enumerate(scores):
        file = copy / "rounds" / f"{round:02d}" / "rollouts.jsonl"
        lines = []
        for line in file.read_text().splitlines():
            record = json.loads(line)
            if record["stage"] == "eval-validation":
                for name, score in record["card"]["scores"].items():
                    if "value" in score:
                        score["value"] = means[name]
            lines.append(json.dumps(record, separators=(",", ":")))
        file.write_text("\n".join(lines) + "\n")
    return copy


def scores(security, utility):
    return {"security": security, "utility": utility, "over_refusal": 0.5, "trajectory_control": 0.5}


SCRIPTED = [scores(*pair) for pair in SIX.tolist()]


@pytest.fixture
def two(scripted_folder, tmp_path):
    """Two runs of three policies each, whose means are the six vectors."""
    return [rewritten(scripted_folder, tmp_path / name, SCRIPTED[n : n + 3]) for name, n in (("a", 0), ("b", 3))]


def test_the_front_of_real_rounds_is_brute_force_over_their_means(scripted_folder):
    found = front([str(scripted_folder)])
    table = []
    for number, row in enumerate(found["policies"]):
        cases = RunDirectory(scripted_folder).cases(f"rounds/{number:02d}/rollouts.jsonl", "eval-validation")
        own = metrics.summarize(cases)["metrics"]
        assert row["validation"] == {name: own[f"mean_{name}"] for name in OBJECTIVES}
        table.append([own[f"mean_{name}"]["value"] for name in OBJECTIVES])
    assert [n for n, row in enumerate(found["policies"]) if row["on_front"]] == brute_force(table)
    assert [row["policy"] for row in found["policies"]] == [f"{scripted_folder}@{n}" for n in range(3)]


def test_six_policies_of_two_runs_give_the_known_pick(two):
    found = front(list(map(str, two)), wishes=[{"security": 2, "utility": 1}, {"utility": 1}])
    a, b = two
    assert [row["policy"] for row in members(found)] == [f"{a}@0", f"{a}@1", f"{a}@2", f"{b}@0"]
    behind = {row["policy"]: row["dominated_by"] for row in found["policies"] if not row["on_front"]}
    assert behind[f"{b}@1"] == [f"{a}@1", f"{a}@2"]
    assert set(behind) == {f"{b}@1", f"{b}@2"}
    assert [row["at_an_end"] for row in members(found)] == [True, False, False, True]
    assert [answer["policy"] for answer in found["wishes"]] == [f"{a}@1", f"{b}@0"]
    assert found["wishes"][0]["score"] == pytest.approx(2.1)


def test_test_tasks_stand_beside_and_choose_nothing(two):
    before = front(list(map(str, two)))
    for folder in two:
        file = folder / "rounds/00/rollouts.jsonl"
        file.write_text(file.read_text().replace('"eval-test"', '"eval-test-gone"'))
    after = front(list(map(str, two)))
    assert [row["test"] == {} for row in after["policies"]] == [True, False, False] * 2
    untested = [[{**row, "test": {}} for row in found["policies"]] for found in (before, after)]
    assert untested[0] == untested[1]
    assert before["policies"][0]["test"].keys() == set(OBJECTIVES)


def test_a_round_without_validation_is_left_out_by_name(scripted_copy):
    stages = scripted_copy / "rounds/01/stages.jsonl"
    kept = [line for line in stages.read_text().splitlines() if '"eval-validation"' not in line]
    stages.write_text("\n".join(kept) + "\n")
    found = front([str(scripted_copy)])
    assert [row["round"] for row in found["policies"]] == [0, 2]
    (left,) = found["left_out"]
    assert left["policy"] == f"{scripted_copy}@1"
    assert "no eval-validation" in left["reason"]
    assert f"left out: {scripted_copy}@1: no eval-validation" in fate("front", scripted_copy)


def test_a_round_with_too_many_errors_is_left_out_with_the_reason(scripted_copy):
    file = scripted_copy / "rounds/02/rollouts.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        if record["stage"] == "eval-validation":
            record["trajectory"]["error"] = "the server was gone"
    file.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records))
    found = front([str(scripted_copy)])
    assert [row["round"] for row in found["policies"]] == [0, 1]
    assert "12 of 12 cases have an infrastructure error" in found["left_out"][0]["reason"]


def test_objectives_are_those_that_all_have(two):
    b = two[1]
    for file in b.glob("rounds/*/rollouts.jsonl"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            del record["card"]["scores"]["over_refusal"]
        file.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records))
    recipe = b / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("- name: over_refusal\n  args: {}\n", ""))
    found = front(list(map(str, two)))
    assert found["objectives"] == ["security", "utility", "trajectory_control"]
    assert len(members(found)) == 4
    assert [text.partition(":")[0] for text in found["unlike"]] == ["verifiers"]


# ------------------------------------------------------------------------------------------------ refused


def test_runs_on_other_tasks_are_refused_by_name(two):
    file = two[1] / "rounds/01/rollouts.jsonl"
    text = file.read_text()
    first = next(r for r in map(json.loads, text.splitlines()) if r["stage"] == "eval-validation")
    task = json.dumps(first["trajectory"]["task"]["id"])
    file.write_text(text.replace(f'"id":{task}', '"id":"another"'))
    with pytest.raises(RecipeError, match=r"(?s)b@1: validation tasks: 1 are only in .*a@0, 1 only in .*b@1"):
        front(list(map(str, two)))


def test_suites_with_other_arguments_are_refused(two):
    file = two[1] / "recipe.yaml"
    file.write_text(file.read_text().replace("train: 24", "train: 25"))
    with pytest.raises(RecipeError, match="b@0: arguments of workbench"):
        front(list(map(str, two)))


def test_what_is_no_run_or_the_same_run_is_refused(scripted_folder, tmp_path):
    with pytest.raises(LedgerError, match="no run directory"):
        front([str(tmp_path)])
    with pytest.raises(RecipeError, match="are the same run"):
        front([str(scripted_folder), f"{scripted_folder}/."])


def test_runs_without_any_validation_are_refused_with_every_reason(scripted_copy):
    for stages in scripted_copy.glob("rounds/*/stages.jsonl"):
        stages.write_text("".join(x + "\n" for x in stages.read_text().splitlines() if "eval-validation" not in x))
    recipe = scripted_copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("validation: 100", "validation: 0"))
    with pytest.raises(RecipeError, match=r"(?s)no policy to choose from.*@0: .*validation 0\n.*@1: .*\n.*@2: "):
        front([str(scripted_copy)])


WISHES = [
    ("security", "'security' is no weight"),
    ("security=", "'security=' is no weight"),
    ("security=high", "'security=high' is no weight"),
    ("security=-1", "at least 0"),
    ("security=nan", "is no weight"),
    ("security=inf", "is no weight"),
    ("=1", "'=1' is no weight"),
    ("security=1,security=2", "each objective once"),
    ("security=0,utility=0", "every weight is 0"),
    ("", "'' is no weight"),
]


@pytest.mark.parametrize(("wish", "says"), WISHES)
def test_a_wish_that_is_none_is_refused(wish, says):
    with pytest.raises(RecipeError, match=says):
        wish_of(wish)


def test_a_wish_for_what_is_no_objective_is_refused(scripted_folder):
    assert wish_of(" security = 2, utility=0.5 ") == {"security": 2.0, "utility": 0.5}
    with pytest.raises(RecipeError, match=r"'safety' is no objective of these policies; they have security, utility"):
        fate("front", scripted_folder, "--wish", "safety=1")


@pytest.mark.parametrize("options", [["--extend", 1], ["--output", "somewhere"]])
def test_extend_and_output_go_together(scripted_folder, options):
    with pytest.raises(RecipeError, match="--extend N and --output DIR go together"):
        fate("front", scripted_folder, *options)


# ------------------------------------------------------------------------------------------------ shown


def test_terminal_json_and_page_say_the_same(two, tmp_path):
    a, b = two
    page = tmp_path / "front.html"
    shown = fate("front", a, b, "--wish", "security=2,utility=1", "--html", page).replace("\n", "")
    assert f"for security=2, utility=1: {a}@1" in shown
    assert f"dominated: {b}@1, by {a}@1, {a}@2" in shown
    found = json.loads(fate("front", a, b, "--wish", "security=2,utility=1", "--json"))
    assert found["wishes"][0]["policy"] == f"{a}@1"
    html = page.read_text()
    assert html.count('class="mark c1"') >= 4  # the front, and its legend
    assert html.count('class="mark grey hollow"') == 2
    assert html.count('class="whisker') == 8
    assert "<script" not in html
    assert f"{b}@2, dominated: utility 20 % [" in html


# ------------------------------------------------------------------------------------------------ extended


@pytest.fixture
def adapters(two):
    """The two runs with adapters for policies, as runs of LoRA leave them."""
    for folder in two:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        recipe["model"]["lora"] = {"r": 4}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        for policy in folder.glob("rounds/*/policy"):
            (policy / "adapter_config.json").write_text("{}")
    return two


@pytest.mark.parametrize("barrier", [True, False])
def test_extensions_are_recipes_that_load_one_per_objective(adapters, tmp_path, monkeypatch, barrier):
    if barrier:
        pytest.importorskip("fate_trl_methods")
    else:
        monkeypatch.setattr(extending, "installed", dict)
    a, b = adapters
    shown = fate("front", a, b, "--extend", 3, "-o", tmp_path / "next").replace("\n", "")
    files = sorted((tmp_path / "next").glob("*.yaml"))
    assert [file.stem for file in files[::4]] == ["01-b-0-over_refusal", "02-a-0-over_refusal", "03-a-2-over_refusal"]
    assert len(files) == 12
    for file in files:
        assert f"fate-trl run {file}" in shown
        recipe = load_recipe(file)
        check(recipe)
        objective = file.stem.split("-", 3)[3]
        args = recipe.selector.args
        assert recipe.output_dir == str(file.with_suffix(""))
        if barrier:
            assert (recipe.selector.name, args["primary"], args["share"]) == ("advantages/ipo-barrier", objective, 0.9)
            assert args["incumbents"].keys() == set(OBJECTIVES) - {objective}
        else:
            assert recipe.selector.name == "constraint"
            assert args["floors"].keys() == set(OBJECTIVES) - {objective}
    third = load_recipe(tmp_path / "next/03-a-2-utility.yaml")
    assert third.model.adapter == str((a / "rounds/02/policy").resolve())
    kept = third.selector.args["incumbents" if barrier else "floors"]["security"]
    assert kept == pytest.approx(0.75 if barrier else 0.675)
    assert load_recipe(tmp_path / "next/01-b-0-utility.yaml").model.adapter is None  # round 0 is the model as given


def test_the_constraint_prefers_the_objective_among_what_keeps_the_floors(monkeypatch):
    monkeypatch.setattr(extending, "installed", dict)
    selector = Constraint(**extending._selector("utility", {"security": 0.8})["args"])
    table = np.array([[[0.9, 0.3], [0.75, 0.6], [0.5, 1.0], [0.8, 0.6]]])
    rewards = selector.reward(table, objectives=("security", "utility"), valid_G_N=np.ones((1, 4), bool))[0]
    assert np.argsort(-rewards).tolist() == [3, 1, 0, 2]  # 0.5 is below 0.9 x 0.8; 0.75 is not


def test_no_recipe_is_written_over_another_or_where_one_does_not_load(adapters, tmp_path):
    a, b = adapters
    fate("front", a, b, "--extend", 1, "-o", tmp_path / "next")
    with pytest.raises(RecipeError, match="is there already; give another --output"):
        fate("front", a, b, "--extend", 1, "-o", tmp_path / "next")
    (a / "rounds/02/policy/adapter_config.json").unlink()  # then it is no model either: it has no template
    with pytest.raises(RecipeError, match=r"a@2 cannot be extended toward security: model\.path: the chat template"):
        fate("front", a, b, "--extend", 3, "-o", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_recipes_are_written_all_or_none_and_none_without_their_page(adapters, tmp_path, monkeypatch):
    a, b = adapters
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"cannot write .*: Not a directory"):
        fate("front", a, b, "--extend", 1, "-o", tmp_path / "next", "--html", tmp_path / "file/page.html")
    assert not (tmp_path / "next").exists()
    write = Path.write_text

    def full(file, *args, **named):
        if file.name.endswith("utility.yaml"):
            raise OSError(28, "No space left on device", str(file))
        return write(file, *args, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RecipeError, match="No space left on device; give another --output"):
        fate("front", a, b, "--extend", 1, "-o", tmp_path / "next")
    assert list((tmp_path / "next").iterdir()) == []


def test_a_run_that_only_evaluates_is_not_extended(scripted_copy, tmp_path):
    recipe = scripted_copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("\nrounds: 2", "\nrounds: 0"))
    with pytest.raises(RecipeError, match=r"@2: its recipe only evaluates \(rounds: 0\)"):
        fate("front", scripted_copy, "--extend", 1, "-o", tmp_path / "next")


TINY = ["rounds=1", "rollout.tasks=12", "rollout.chunk=12", "repair.k=2", "sft.num_train_epochs=1", "pfpo.max_steps=2"]
TINY += ["pfpo.per_device_train_batch_size=8", "pfpo.num_generations=4", "evaluation.tasks=9"]
TINY += ["evaluation.validation=12", "evaluation.baselines=false", "evaluation.tolerance=1"]


def trained(recipe):
    """The run of a recipe, on torch."""
    run = RunDirectory(recipe.output_dir)
    run.write_text("recipe.yaml", recipe.dump())
    build(recipe, run, components=check(recipe))()
    return run


def weights_in(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("barrier", [True, False], ids=["ipo-barrier", "constraint"])
def test_an_extension_trains_and_stands_in_the_next_front(tmp_path, monkeypatch, barrier):
    if barrier:
        pytest.importorskip("fate_trl_methods")
    else:
        monkeypatch.setattr(extending, "installed", dict)
    runs = [
        trained(load_recipe("quickstart", [*TINY, f"selector={selector}", f"output_dir={tmp_path / selector}"])).path
        for selector in ("pareto-front", "weighted-sum")
    ]
    found = json.loads(fate("front", *runs, "--extend", 1, "-o", tmp_path / "next", "--json"))
    assert len(found["policies"]) == 4
    assert [one["objective"] for one in found["extensions"]] == found["objectives"]
    extension = next(one for one in found["extensions"] if one["objective"] == "utility")
    recipe = load_recipe(extension["recipe"])
    start = Path(recipe.model.path) if "/" in recipe.model.path else None
    assert (start is None) == extension["policy"].endswith("@0"), "round 0 is the model as given"
    run = trained(recipe)
    stages = run.stages(1)
    assert (stages["pfpo"]["steps"], stages["accept"]["accepted"]) == (2, True)
    before, after = weights_in(start or POLICIES["workbench"]), weights_in(run.path / "rounds/01/policy")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before), "it went on from there"
    again = json.loads(fate("front", *runs, run.path, "--json"))
    assert [row["policy"] for row in again["policies"]][-2:] == [f"{run.path}@0", f"{run.path}@1"]
    assert again["left_out"] == []
    rows = [[row["validation"][name]["value"] for name in again["objectives"]] for row in again["policies"]]
    assert [n for n, row in enumerate(again["policies"]) if row["on_front"]] == brute_force(rows)
