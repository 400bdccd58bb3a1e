"""Comparing runs: paired on the same tasks, won and lost by name, and refused where more differs than the policy."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from fate_trl import metrics
from fate_trl.cli import app
from fate_trl.errors import ErrorBudgetExceeded, FateError, RecipeError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.report import comparison, page
from fate_trl.testing.hostile import HOSTILE, LARGE, live_html, live_terminal, record


def fate(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def edited(folder, name, old, new):
    file = folder / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def found(scripted_folder):
    return comparison.compare([f"{scripted_folder}@base", str(scripted_folder)])


def cases_of(folder, round):
    return RunDirectory(folder).cases(f"rounds/{round:02d}/rollouts.jsonl", "eval-test")


def test_differences_are_the_paired_ones(scripted_folder, found):
    (part,) = found["comparisons"]
    before, after = cases_of(scripted_folder, 0), cases_of(scripted_folder, 2)
    assert (found["reference"]["policy"], part["policy"], part["tasks"]) == ("base", "round-2", len(after))
    assert {name: metric["change"] for name, metric in part["metrics"].items()} == metrics.compare(before, after)
    assert {name: metric["a"] for name, metric in part["metrics"].items()} == metrics.summarize(before)["metrics"]


def test_what_was_won_and_lost_is_named(scripted_folder, found):
    (part,) = found["comparisons"]
    resolved = [{t.task.id: c.resolved for t, c in cases_of(scripted_folder, n)} for n in (0, 2)]
    won = {task for task in resolved[0] if resolved[1][task] and not resolved[0][task]}
    assert {task["task"] for task in part["won"]} == won
    assert won
    assert len(part["lost"]) == sum(resolved[0][task] and not resolved[1][task] for task in resolved[0])
    assert part["metrics"]["resolved"]["change"]["rose"] == len(won)
    assert all(task["failed"] and task["asked"] for task in part["won"])


def test_several_are_compared_with_the_first(scripted_folder):
    names = [f"{scripted_folder}@{policy}" for policy in ("base", "round-1", "oracle")]
    found = comparison.compare(names)
    assert [part["policy"] for part in found["comparisons"]] == ["round-1", "oracle"]
    with pytest.raises(RecipeError, match="at least two"):
        comparison.compare(names[:1])
    with pytest.raises(RecipeError, match=r"no evaluated policy 'round-7'; it has: base"):
        comparison.compare([names[0], f"{scripted_folder}@round-7"])


@pytest.mark.parametrize(("number", "policy"), [("0", "base"), ("1", "round-1")])
def test_a_policy_is_named_by_its_rounds_number_too(scripted_folder, number, policy):
    """As `fate-trl front` names it."""
    assert comparison.Side.open(f"{scripted_folder}@{number}").policy == policy


def test_a_folder_may_have_an_at_in_its_name(scripted_folder, tmp_path):
    odd = shutil.copytree(scripted_folder, tmp_path / "run@base")
    assert comparison.Side.open(str(odd)).policy == "round-2"
    assert comparison.Side.open(f"{odd}@base").policy == "base"


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("recipe.yaml", "seed: 0", "seed: 1", "seed of the splits: 0 and 1"),
        ("recipe.yaml", "train: 24", "train: 25", "arguments of workbench: {"),
        ("recipe.yaml", "- name: trajectory_control\n  args: {}\n", "", r"verifiers: \['over_refusal'"),
        ("manifest.json", '"version": 1', '"version": 2', "version of workbench: 1 and 2"),
        ("manifest.json", '"0.1.0"', '"0.2.0"', "fate-trl: 0.1.0 and 0.2.0"),
        ("rounds/02/rollouts.jsonl", '"content":"Pay', '"content":"Please pay', "have the same id, but other content"),
    ],
)
def test_what_differs_in_more_than_the_policy_is_not_compared(scripted_folder, tmp_path, file, old, new, says):
    one, other = (shutil.copytree(scripted_folder, tmp_path / name) for name in ("one", "other"))
    manifest = {"fate_trl": "0.1.0", "suites": {"workbench": {"version": 1}}}
    for folder in (one, other):
        (folder / "manifest.json").write_text(json.dumps(manifest))
    comparison.compare([str(one), str(other)])
    edited(other, file, old, new)
    with pytest.raises(RecipeError, match=says) as error:
        comparison.compare([str(one), str(other)])
    assert "--anyway" in str(error.value)
    (part,) = comparison.compare([str(one), str(other)], anyway=True)["comparisons"]
    assert len(part["unlike"]) == 1


def test_a_plugin_counts_if_the_recipe_names_it(scripted_folder, tmp_path):
    one, other = (shutil.copytree(scripted_folder, tmp_path / name) for name in ("one", "other"))
    for folder, version in ((one, "1"), (other, "2")):
        (folder / "manifest.json").write_text(json.dumps({"plugins": {"polite": version}}))
    comparison.compare([str(one), str(other)])
    for folder in (one, other):
        edited(folder, "recipe.yaml", "- name: trajectory_control", "- name: polite/manners")
    with pytest.raises(RecipeError, match="plugin polite: 1 and 2"):
        comparison.compare([str(one), str(other)])


def test_other_test_tasks_are_left_out_if_asked_for(scripted_folder, scripted_copy):
    for file in scripted_copy.glob("rounds/*/rollouts.jsonl"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [r for r in records if not (r["stage"] == "eval-test" and r["chunk"] == 0)]
        file.write_text("".join(json.dumps(r) + "\n" for r in kept))
    names = [str(scripted_folder), str(scripted_copy)]
    with pytest.raises(RecipeError, match=r"test tasks: 10 are only in .*, 0 only in"):
        comparison.compare(names)
    (part,) = comparison.compare(names, anyway=True)["comparisons"]
    assert part["tasks"] == len(cases_of(scripted_folder, 2)) - 10
    edited(scripted_copy, "rounds/02/rollouts.jsonl", '"suite": "workbench"', '"suite": "other"')
    with pytest.raises(FateError, match="no test task in common"):
        comparison.compare(names, anyway=True)


def test_errors_stop_a_comparison(scripted_folder, scripted_copy):
    edited(scripted_copy, "rounds/02/rollouts.jsonl", '"utility":{"value":1.0}', '"utility":{"status":"error"}')
    with pytest.raises(ErrorBudgetExceeded):
        comparison.compare([str(scripted_folder), str(scripted_copy)])


def test_the_recipes_differences_are_told(scripted_folder, scripted_copy):
    edited(scripted_copy, "recipe.yaml", "k: 4", "k: 8")
    (part,) = comparison.compare([str(scripted_folder), str(scripted_copy)])["comparisons"]
    assert part["recipe"] == [{"key": "repair.k", "a": 4, "b": 8}]


# ------------------------------------------------------------------------------------------------ shown


def test_the_terminal_the_page_and_the_machine_say_the_same(scripted_folder, tmp_path, found):
    names = [f"{scripted_folder}@base", scripted_folder]
    said = fate("compare", *names, "-o", tmp_path / "page.html")
    (part,) = found["comparisons"]
    won = len(part["won"])
    assert f"won: {won} tasks resolved by b only" in said
    assert "resolved ↑" in said
    shown = (tmp_path / "page.html").read_text()
    assert f"Resolved by b only: {won}" in shown
    assert "<script" not in shown
    assert "McNemar" in shown
    assert json.loads(fate("compare", *names, "--json")) == json.loads(json.dumps(found))


def test_hostile_texts_are_nothing_but_text(scripted_folder, scripted_copy):
    texts = [text for name, text in HOSTILE.items() if name not in LARGE]
    failing = [record(text, attempt) for attempt, text in enumerate(texts)]
    passing = [(t, type(c)({name: type(s)(1.0) for name, s in c.scores.items()})) for t, c in failing]
    for round, cases in ((0, failing), (2, passing)):
        RunDirectory(scripted_copy).append_chunk(f"rounds/{round:02d}/rollouts.jsonl", "eval-test", 99, cases)
    names = [f"{scripted_copy}@base", str(scripted_copy)]
    shown = page.render("compare.html", c=comparison.compare(names))
    assert live_html(shown) == []
    assert live_terminal(shown) == ""
    assert "<script" not in shown
    assert live_terminal(fate("compare", *names)) == ""


def test_a_policy_is_not_compared_with_itself(scripted_folder):
    with pytest.raises(RecipeError, match="are the same policy, round-2, of the same run; give another"):
        comparison.compare([str(scripted_folder), f"{scripted_folder}@round-2"])
