"""Results of other tools, paired: files made by inspect_ai and lm-evaluation-harness themselves, and plain tables."""

import csv
import itertools
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests
from typer.testing import CliRunner

from fate_trl.cli import app
from fate_trl.errors import ErrorBudgetExceeded, InterchangeError, RecipeError
from fate_trl.interchange.results import Columns, read, recognised
from fate_trl.metrics.columns import corrected, flip_test, paired_columns
from fate_trl.report.results import compare_results

DATA = Path(__file__).parent / "data" / "results"
needs_inspect = pytest.mark.skipif(find_spec("inspect_ai") is None, reason="inspect_ai is not installed")


def table(path, rows):
    """A CSV file of dicts."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def only(found):
    (part,) = found["comparisons"]
    return part


# ------------------------------------------------------------------------------------------------ what is read


@needs_inspect
def test_an_inspect_log_is_read_with_its_epochs_and_scores():
    log = read(DATA / "inspect-a.eval")
    assert (log.kind, log.task, log.model, log.repeats) == ("Inspect", "arithmetic", "mockllm/model", 2)
    assert log.metrics == ["match", "style/brevity", "style/polite"]
    assert {row.repeat for row in log.rows} == {1, 2}
    assert len(log.rows) == 16
    assert {row.values["match"] for row in log.rows} == {0.0, 1.0}


@needs_inspect
def test_both_forms_of_an_inspect_log_are_the_same():
    assert read(DATA / "inspect-b.json").rows == read(DATA / "inspect-b.eval").rows


@needs_inspect
def test_clusters_by_a_key_of_the_metadata():
    assert {row.cluster for row in read(DATA / "inspect-a.eval", Columns(cluster="topic")).rows} == {"t0", "t1"}
    with pytest.raises(InterchangeError, match=r"has no 'subject' to cluster by; it has topic"):
        read(DATA / "inspect-a.eval", Columns(cluster="subject"))


def test_lm_eval_has_a_row_per_case_and_filter():
    one = read(next((DATA / "lm-eval-a").glob("samples_mine_open_*")))
    assert (one.kind, one.task, len(one.rows)) == ("lm-eval", "mine_open", 12)
    assert one.metrics == ["exact_match,first", "exact_match,whole"]
    both = read(DATA / "lm-eval-a")
    assert both.metrics == ["mine_choice/acc,none", "mine_open/exact_match,first", "mine_open/exact_match,whole"]
    assert len(both.rows) == 24


def test_the_newest_samples_of_a_task_count(tmp_path):
    old, new = ({"doc_id": 0, "doc": "q", "filter": "none", "metrics": ["acc"], "acc": acc} for acc in (0, 1))
    lines(tmp_path / "samples_t_2026-01-01T00-00-00.0.jsonl", [old])
    lines(tmp_path / "samples_t_2026-02-01T00-00-00.0.jsonl", [new])
    assert [row.values for row in read(tmp_path).rows] == [{"acc,none": 1.0}]


def test_samples_of_two_models_are_refused(tmp_path):
    for model in ("a", "b"):
        (tmp_path / model).mkdir()
        lines(tmp_path / model / "samples_t_2026.jsonl", [{"doc_id": 0, "metrics": ["acc"], "acc": 1}])
    with pytest.raises(InterchangeError, match="several models: a, b"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("value", "number"),
    [("C", 1), ("I", 0), ("P", 0.5), ("true", 1), ("False", 0), (" 0.25 ", 0.25), ("1e-3", 0.001), ("-7", -7)],
)
def test_texts_that_stand_for_numbers(tmp_path, value, number):
    assert read(Path(table(tmp_path / "a.csv", [{"id": "x", "score": value}]))).rows[0].values == {"score": number}


def test_columns_are_found_or_named(tmp_path):
    rows = [{"name": "x", "acc": 1, "note": "fine", "f1": 0.5}, {"name": "y", "acc": 0, "note": "2", "f1": ""}]
    path = Path(table(tmp_path / "a.csv", rows))
    with pytest.raises(InterchangeError, match=r"no column that names the case .*--case.*name, acc, note, f1"):
        read(path)
    assert read(path, Columns(case="name")).metrics == ["acc", "f1"]
    assert read(path, Columns(case="name", scores=("f1",))).errors == 1
    with pytest.raises(InterchangeError, match="no column 'recall'; name one with --score"):
        read(path, Columns(case="name", scores=("recall",)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("note,score\nfine,1\n", "no column that names the case"),
        ("id,note\nx,fine\n", "no column of numbers besides 'id'"),
        ("id,score,epoch\nx,1,first\n", r"row 1: epoch is a whole number, not 'first'"),
        ("id,score\nx,nan\n", "no column of numbers"),
    ],
)
def test_tables_that_hold_nothing(tmp_path, text, said):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InterchangeError, match=said):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("text", ["[1]\n", "{\n", '{"id": "a", "score": 1}\nnull\n'])
def test_lines_that_are_no_records(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(InterchangeError, match="line"):
        read(tmp_path / "a.jsonl")


@needs_inspect
@pytest.mark.parametrize("suffix", [".eval", ".json"])
def test_a_damaged_log_is_one_sentence(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes((DATA / "inspect-b.json").read_bytes()[:-4000])
    with pytest.raises(InterchangeError, match="no log that inspect_ai reads"):
        read(tmp_path / f"a{suffix}")


def test_a_run_directory_is_no_file_of_results(tmp_path):
    (tmp_path / "recipe.yaml").write_text("suites: [workbench]")
    assert not recognised(tmp_path)
    assert not recognised(tmp_path / "missing.csv")


# ------------------------------------------------------------------------------------------------ pairs


RULES = "The same rules for each. " * 400
"""More than the 5,120 characters of an input that Inspect's summaries hold."""


def long_log(path, order):
    """A log of ten samples with this order of questions, written by inspect_ai; half of the inputs are messages."""
    import inspect_ai.log as logs
    from inspect_ai.model import ChatMessageUser
    from inspect_ai.scorer import Score

    samples = []
    for number, question in enumerate(order, 1):
        asked = f"{RULES}Question {question}?"
        given = {"input": [ChatMessageUser(content=asked)] if question % 2 else asked, "target": "x"}
        given |= {"scores": {"match": Score(value="C" if question < 5 else "I")}}
        metadata = {"topic": f"{RULES}{question // 2}", "record": {"rules": [RULES], "part": question // 5}}
        samples.append(logs.EvalSample(id=number, epoch=1, metadata=metadata, **given))
    spec = logs.EvalSpec(
        task="t", model="m", dataset=logs.EvalDataset(), config=logs.EvalConfig(), created="2026-01-01T00:00:00Z"
    )
    logs.write_eval_log(logs.EvalLog(eval=spec, samples=samples, status="success"), str(path))
    return str(path)


@needs_inspect
@pytest.mark.parametrize("suffix", ["eval", "json"])
def test_long_inputs_of_inspect_logs_are_told_apart_by_their_ends(suffix, tmp_path):
    order = np.random.default_rng(0).permutation(10).tolist()
    before, after = long_log(tmp_path / f"a.{suffix}", range(10)), long_log(tmp_path / f"b.{suffix}", order)
    assert len({row.content for row in read(Path(before)).rows}) == 10
    part = only(compare_results([before, after]))
    assert part["paired_by"] == "input"
    assert (part["metrics"]["match"]["rose"], part["metrics"]["match"]["fell"]) == (0, 0)
    for key, clusters in {"topic": 5, "record": 2}.items():
        assert len({row.cluster for row in read(Path(before), Columns(cluster=key)).rows}) == clusters


@needs_inspect
def test_two_inspect_logs():
    part = only(compare_results([str(DATA / "inspect-a.eval"), str(DATA / "inspect-b.eval")]))
    assert (part["pairs"], part["paired_by"], part["unlike"]) == (16, "id and input", [])
    match = part["metrics"]["match"]
    assert match["value"] == pytest.approx(match["b"] - match["a"])
    assert match["rose"] - match["fell"] == pytest.approx(16 * match["value"])
    assert (match["n"], match["clusters"]) == (16, 8), "two epochs of a sample are not independent"
    assert len(part["won"]) == match["rose"]


@needs_inspect
def test_numbered_samples_are_paired_by_their_inputs():
    part = only(compare_results([str(DATA / "inspect-numbered.eval"), str(DATA / "inspect-a.eval")]))
    assert (part["pairs"], part["paired_by"]) == (16, "input")
    assert part["unlike"] == []


def test_ids_that_name_other_cases_are_paired_by_input(tmp_path):
    a = table(tmp_path / "a.csv", [{"id": i, "input": f"q{i}", "score": i % 2} for i in range(6)])
    b = table(tmp_path / "b.csv", [{"id": 5 - i, "input": f"q{i}", "score": i % 2} for i in range(6)])
    part = only(compare_results([a, b]))
    assert part["paired_by"] == "input"
    assert part["metrics"]["score"]["value"] == 0, "by id every case would have changed"


def test_ids_and_inputs_that_disagree_are_refused(tmp_path):
    a = table(tmp_path / "a.csv", [{"id": i, "input": "same", "score": 1} for i in range(3)])
    b = table(tmp_path / "b.csv", [{"id": i, "input": "other", "score": 1} for i in range(3)])
    with pytest.raises(InterchangeError, match=r"3 of 3 cases have the same id .* but another input"):
        compare_results([a, b])


def test_a_case_twice_is_refused(tmp_path):
    a = table(tmp_path / "a.csv", [{"id": 1, "score": 1}, {"id": 1, "score": 0}])
    with pytest.raises(InterchangeError, match=r"has case '1', try 1, 2 times"):
        compare_results([a, table(tmp_path / "b.csv", [{"id": 1, "score": 1}])])


def test_other_cases_are_refused_by_name_and_compared_on_demand(tmp_path):
    a = table(tmp_path / "a.csv", [{"id": i, "score": 1} for i in range(4)])
    b = table(tmp_path / "b.csv", [{"id": i, "score": 0} for i in range(1, 6)])
    with pytest.raises(RecipeError, match=r"1 of 4 are only in .*a.csv, 2 of 5 only in .*b.csv"):
        compare_results([a, b])
    part = only(compare_results([a, b], anyway=True))
    assert (part["pairs"], part["metrics"]["score"]["value"]) == (3, -1.0)


@needs_inspect
def test_other_tasks_and_epochs_are_refused(tmp_path):
    made = f"""
from inspect_ai.log import read_eval_log, write_eval_log
log = read_eval_log({str(DATA / "inspect-b.eval")!r})
log.samples = [sample for sample in log.samples if sample.epoch == 1]
log.eval.config.epochs, log.eval.task = 1, "geometry"
write_eval_log(log, {str(tmp_path / "other.json")!r})
"""
    subprocess.run([sys.executable, "-c", made], check=True, timeout=60)
    with pytest.raises(RecipeError, match=r"other tasks: arithmetic and geometry\n  other numbers of epochs: 2 and 1"):
        compare_results([str(DATA / "inspect-a.eval"), str(tmp_path / "other.json")])


def test_cases_with_errors_are_left_out_and_counted(tmp_path):
    rows = [{"id": i, "score": 1} for i in range(60)]
    a = table(tmp_path / "a.csv", rows)
    b = table(tmp_path / "b.csv", [{**row, "score": "" if row["id"] == 7 else 0} for row in rows])
    part = only(compare_results([a, b]))
    assert (part["pairs"], part["errors"], part["unlike"]) == (59, 1, [])
    c = table(tmp_path / "c.csv", [{**row, "score": "" if row["id"] < 9 else 0} for row in rows])
    with pytest.raises(ErrorBudgetExceeded, match=r"9 of 60 cases of .*c.csv ended in an error, more than the 2.0%"):
        compare_results([a, c])


def test_scores_of_other_names_are_refused(tmp_path):
    a = table(tmp_path / "a.csv", [{"id": 1, "acc": 1}])
    b = table(tmp_path / "b.csv", [{"id": 1, "f1": 1}])
    with pytest.raises(InterchangeError, match="no score in common: acc and f1"):
        compare_results([a, b])


def test_any_mix_of_formats(tmp_path):
    a = table(tmp_path / "a.csv", [{"id": i, "acc,none": 1} for i in range(3)])
    b = lines(tmp_path / "b.jsonl", [{"case": str(i), "acc,none": i > 0} for i in range(3)])
    made = [{"doc_id": i, "doc": i, "filter": "none", "metrics": ["acc"], "acc": 0.0} for i in range(3)]
    c = lines(tmp_path / "samples_t_2026.jsonl", made)
    found = compare_results([a, b, c])
    assert [part["metrics"]["acc,none"]["b"] for part in found["comparisons"]] == pytest.approx([2 / 3, 0])


# ------------------------------------------------------------------------------------------------ the numbers


def test_the_difference_is_the_paired_mean_and_the_interval_holds_it():
    rng = np.random.default_rng(0)
    a, b = rng.normal(50, 10, 200), rng.normal(55, 10, 200)
    entry = paired_columns({"points": (a, b, np.arange(200))})["points"]
    assert entry["value"] == pytest.approx((b - a).mean())
    error = (b - a).std(ddof=1) / np.sqrt(200)
    assert [entry["low"], entry["high"]] == pytest.approx(
        [entry["value"] - 1.97 * error, entry["value"] + 1.97 * error], abs=0.3 * error
    )
    assert entry["p"] < 0.01


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(30), 10)
    a, b = rng.random(300) * 0.2, rng.random(300) * 0.2 + (rng.random(30) * 0.5)[group]
    alone, clustered = (paired_columns({"x": (a, b, c)})["x"] for c in (np.arange(300), group))
    assert clustered["value"] == pytest.approx(alone["value"])
    assert clustered["high"] - clustered["low"] > 2 * (alone["high"] - alone["low"])


def test_flips_against_all_flips():
    rng = np.random.default_rng(2)
    for size in (1, 3, 8):
        change = rng.normal(0.4, 1, size)
        sums = [abs(np.dot(signs, change)) for signs in itertools.product((1, -1), repeat=size)]
        assert flip_test(change) == pytest.approx(np.mean([s >= abs(change.sum()) - 1e-12 for s in sums]))
    change = rng.normal(0.3, 1, 40)
    drawn = rng.choice([1, -1], (200_000, 40)) @ change
    assert flip_test(change) == pytest.approx((np.abs(drawn) >= abs(change.sum())).mean(), abs=0.01)
    assert flip_test(np.zeros(5)) == 1.0


@pytest.mark.parametrize(("ours", "theirs"), [("holm", "holm"), ("bh", "fdr_bh")])
def test_corrections_against_statsmodels(ours, theirs):
    rng = np.random.default_rng(3)
    for size in (1, 2, 7):
        p = np.round(rng.random(size) ** 2, 2) + 0.001  # ties
        assert corrected(list(p), ours) == pytest.approx(multipletests(p, method=theirs)[1])
    assert corrected([], ours) == []
    assert corrected([0.2, 0.1], "none") == [0.2, 0.1]


# ------------------------------------------------------------------------------------------------ the command


def play(*words):
    return CliRunner().invoke(app, ["compare", *words], terminal_width=100)


def test_the_command_prints_and_writes(tmp_path):
    a = table(tmp_path / "a.csv", [{"id": f"<script>{i}", "score": 0} for i in range(30)])
    b = table(tmp_path / "b.csv", [{"id": f"<script>{i}", "score": int(i < 20)} for i in range(30)])
    done = play(a, b, "-o", str(tmp_path / "page.html"))
    assert done.exit_code == 0, done.output
    assert "won: 20 cases by score" in done.output
    assert "lost: 0 cases by score" in done.output
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;0" in page
    said = json.loads(play(a, b, "--json").output)
    assert said["comparisons"][0]["metrics"]["score"]["rose"] == 20
    assert said["comparisons"][0]["metrics"]["score"]["p"] == pytest.approx(2 * 0.5**20)


def test_runs_and_files_do_not_mix(tmp_path):
    a = table(tmp_path / "a.csv", [{"id": 1, "score": 0}])
    assert isinstance(play(a, "runs/quickstart").exception, RecipeError)


def test_it_loads_no_torch(tmp_path):
    a, b = (table(tmp_path / f"{name}.csv", [{"id": 1, "score": 0}]) for name in "ab")
    code = f"""
import sys
from fate_trl import cli
sys.argv = ["fate-trl", "compare", {a!r}, {b!r}, "--json"]
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code, stop.code
assert not {{"torch", "transformers", "trl", "datasets"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)


# ------------------------------------------------------------------------------------------------ edges of tables


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; its first line names the columns"),
        ("case,score\n", "holds no row"),
        ("case,score\none,1\ntwo\n", "line 3 has 1 cell, and its header names 2 columns"),
        ("case,score\none,1,2\n", "line 2 has 3 cells, and its header names 2 columns"),
        ("case,score\none,1\ntwo,high\n", "no column of numbers besides 'case' ('score' holds 'high' in row 2)"),
        ("case,score\none,nan\ntwo,NaN\n", "no column of numbers besides 'case' ('score' holds no value)"),
        ("case\none\n", "no column of numbers besides 'case'; its columns are case"),
    ],
)
def test_a_table_that_is_none_says_where(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InterchangeError) as told:
        read(tmp_path / "a.csv")
    assert words in str(told.value)


@pytest.mark.parametrize("cell", ["nan", "NaN", "", "None", "n/a"])
def test_a_cell_that_stands_for_no_score_is_a_case_without_one(tmp_path, cell):
    (tmp_path / "a.csv").write_text(f"case,score\none,1\ntwo,{cell}\nthree,0\n")
    found = read(tmp_path / "a.csv")
    assert [row.case for row in found.rows] == ["one", "three"]
    assert found.broken == (("two", 1),)


def test_a_nan_of_jsonl_is_no_score_either(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"case": "one", "score": NaN}\n{"case": "two", "score": 1}\n')
    assert read(tmp_path / "a.jsonl").broken == (("one", 1),)


@pytest.mark.parametrize("names", [("a.csv", "gone.csv"), ("gone.csv", "a.csv"), ("a.csv", "runs/gone")])
def test_a_file_that_is_not_there_is_said_to_be_gone(tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "a.csv", [{"case": 1, "score": 1}])
    done = CliRunner().invoke(app, ["compare", *names])
    assert isinstance(done.exception, RecipeError)
    assert str(done.exception).startswith("there is no '")
    assert "gone" in str(done.exception)


def test_a_file_is_not_compared_with_itself(tmp_path):
    one = table(tmp_path / "a.csv", [{"case": n, "score": n % 2} for n in range(4)])
    with pytest.raises(RecipeError, match="would be compared with itself"):
        compare_results([one, str(tmp_path / "." / "a.csv")])


def test_one_case_is_not_put_in_the_plural(tmp_path):
    rows = [{"case": n, "score": 1} for n in range(3)]
    one, other = table(tmp_path / "a.csv", rows), table(tmp_path / "b.csv", [{**rows[0], "score": 0}, *rows[1:]])
    said = CliRunner().invoke(app, ["compare", one, other]).stdout
    assert "lost: 1 case by score" in said
    assert "won: 0 cases by score" in said
