"""benchmarks/learning.py: recipes a key apart, budgets, pairing, resumption; with scripted learners, no torch."""

import json

import pytest

from benchmarks import learning, learning_page
from benchmarks.learning import Job, all_runs, recipe_of
from benchmarks.learning_methods import COMPARISONS, METHODS, NAMED_SEEDS, REFERENCE, Method
from benchmarks.learning_page import summary
from fate_trl import metrics
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.metrics import intervals
from fate_trl.recipe.loading import find_recipe, make_recipe, read_values
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.types import PASS_AT

VALUES = {
    "suites": [{"name": "workbench", "args": {"train": 12, "validation": 6, "test": 6}}],
    "rollout": {"chunk": 10},
    "pfpo": {"max_steps": 1},
    "rounds": 2,
}


class Counting(ScriptedLearner):
    """Each training stage takes a fixed number of tokens."""

    def sft(self, rows, seed, stage, scratch=None):
        return {**super().sft(rows, seed, stage), "trained_tokens": 700}

    def pfpo(self, requests, seed, scratch=None):
        return {**super().pfpo(requests, seed), "trained_tokens": 300}


class Inline:
    """An executor that runs what it is given at once."""

    def __init__(self, *_, **__): ...

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def submit(self, work, *args):
        future = learning.Future()
        try:
            future.set_result(work(*args))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def scripted(monkeypatch):
    """Runs of scripted learners in this process; returns the jobs that were run."""
    ran = []

    def build(recipe, directory):
        return assemble(recipe, directory, lambda suites, *_: Counting(suites, gain=0.1))

    def run(job):
        ran.append(job)
        return learning.run(job, build)

    monkeypatch.setattr(learning, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(intervals, "RESAMPLES", 50)
    monkeypatch.setattr(metrics, "rows", metrics.rows)  # a run leaves them out, in a process of its own
    monkeypatch.setattr(learning, "worker", run)
    monkeypatch.setattr(learning, "source_hash", lambda: "fixed")
    return ran


@pytest.mark.parametrize("shipped", ["quickstart", "tradeoffs"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_legal_recipe(name, shipped):
    recipe = recipe_of(read_values(find_recipe(shipped)), METHODS[name], 3, 1000)
    assert recipe.seed == 3
    assert (recipe.token_budget is None) == (METHODS[name].rounds is not None)


def test_methods_are_a_key_or_two_from_the_recipe():
    for name, method in METHODS.items():
        assert len(method.changes) <= 4, name
        assert len(method.tried) <= 4, name


def test_the_recipes_own_value_may_be_named():
    values = {**VALUES, "selector": {"name": "chebyshev"}}
    recipe = recipe_of(values, METHODS["sum-reward"], 0, 1)
    assert (recipe.selector.name, recipe.repair.selector.name) == ("weighted-sum", "chebyshev")
    assert values["selector"] == {"name": "chebyshev"}, "the recipe's values are left as they are"


def test_what_the_recipe_has_already_is_not_run_again():
    names = (REFERENCE, "k-4", "k-8", "rounds-4", "front-worst")
    kept = learning.apart(VALUES, {name: METHODS[name] for name in names})
    assert list(kept) == [REFERENCE, "k-8", "rounds-4"]


def test_all_methods_get_the_references_tokens(scripted, tmp_path):
    methods = {REFERENCE: METHODS[REFERENCE], "pfpo": METHODS["pfpo"], "rounds-4": METHODS["rounds-4"]}
    results = {r["method"]: r for r in all_runs(VALUES, methods, [5], str(tmp_path), 1)}
    full, alone, four = (results[name]["points"] for name in methods)
    assert [p["tokens"] for p in full] == [0, 1000, 2000], "SFT and PFPO, twice"
    assert [p["tokens"] for p in alone] == [0, 300, 600, 900, 1200, 1500, 1800, 2100], "7 rounds come closest"
    assert len(four) == 5
    assert full[-1]["values"]["all"]["resolved"] > full[0]["values"]["all"]["resolved"]
    assert {"oracle", "refuse-all", "do-nothing"} <= set(results[REFERENCE]["scripted"])
    assert results["pfpo"]["scripted"] == results[REFERENCE]["scripted"], "round 0 is evaluated once"


def test_finished_runs_are_kept_and_an_interrupted_one_goes_on(scripted, tmp_path, monkeypatch):
    methods = {REFERENCE: METHODS[REFERENCE], "no-anchors": METHODS["no-anchors"]}
    first = all_runs(VALUES, methods, [0, 1], str(tmp_path), 1)
    assert len(scripted) == 4
    again = all_runs(VALUES, methods, [0, 1], str(tmp_path), 1)
    assert all(result in first for result in again)
    assert len(scripted) == 4
    assert not list(tmp_path.glob("*/run")), "records are removed"
    all_runs({**VALUES, "rounds": 1}, methods, [0], str(tmp_path), 1)
    assert len(scripted) == 6, "another recipe is another run"
    monkeypatch.setattr(learning, "source_hash", lambda: "edited")
    all_runs(VALUES, {REFERENCE: METHODS[REFERENCE]}, [0], str(tmp_path), 1)
    assert len(scripted) == 7, "so is other source"


def test_seeds_are_run_one_after_the_other_and_whole_ones_can_be_shown(scripted, tmp_path):
    methods = {name: METHODS[name] for name in (REFERENCE, "k-1", "k-2")}
    all_runs(VALUES, methods, [4, 1], str(tmp_path), 1)
    assert [(job.seed, job.method) for job in scripted] == [(s, m) for s in (4, 1) for m in methods]
    whole = list(learning.kept(VALUES, methods, [4, 1, 2], str(tmp_path)))
    assert [(job.seed, found["method"]) for job, found in whole] == [(s, m) for s in (4, 1) for m in methods]
    (whole[-1][0].folder / "result.json").unlink()
    assert {job.seed for job, _ in learning.kept(VALUES, methods, [4, 1, 2], str(tmp_path))} == {4}
    job, found = whole[0]
    assert {case["kind"] for case in found["cases"]} == {"benign", "attacked", "harmful"}
    passed = [all(v is None or v >= PASS_AT.get(n, 1) for n, v in case["scores"].items()) for case in found["cases"]]
    assert found["points"][-1]["values"]["all"]["resolved"] == pytest.approx(sum(passed) / len(passed))
    assert (job.folder / "policy").is_dir(), "the last policy is kept"


def test_a_run_that_was_killed_goes_on_where_it_was(scripted, tmp_path):
    recipe = recipe_of(VALUES, METHODS[REFERENCE], 0, None).model_dump(mode="json")
    whole, part = Job("fate", 0, recipe, str(tmp_path / "a")), Job("fate", 0, recipe, str(tmp_path / "b"))
    expected = learning.worker(whole)

    class Dies(Counting):
        def pfpo(self, requests, seed, scratch=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learning.run(part, lambda recipe, run: assemble(recipe, run, lambda suites, *_: Dies(suites, gain=0.1)))
    assert part.result is None
    done = RunDirectory(part.folder / "run").read("rounds/01/stages.jsonl")
    assert [record["stage"] for record in done] == ["collect", "repair", "buffer", "sft"]
    resumed = learning.worker(part)
    strip = lambda points: [{k: v for k, v in p.items() if k != "seconds"} for p in points]  # noqa: E731
    assert strip(resumed["points"]) == strip(expected["points"])


def test_a_method_that_fails_takes_no_other_with_it(scripted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        learning, "worker", lambda job: 1 / 0 if job.method == "k-1" else learning.run(job, build_scripted)
    )
    methods = {name: METHODS[name] for name in (REFERENCE, "k-1", "k-2")}
    results = all_runs(VALUES, methods, [0], str(tmp_path), 1)
    assert [r["method"] for r in results] == [REFERENCE, "k-2"]
    assert "k-1, seed 0: division by zero" in capsys.readouterr().err


def build_scripted(recipe, directory):
    return assemble(recipe, directory, lambda suites, *_: Counting(suites))


# ------------------------------------------------------------------------------------------------ what is measured


def test_values_are_those_of_evaluate(tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 50)
    evolution = build_scripted(make_recipe({**VALUES, "rounds": 0}), RunDirectory(tmp_path))
    rows = {row["kind"]: row["metrics"] for row in evolution() if (row["suite"], row["policy"]) == ("all", "obey")}
    cases = evolution.run.cases("rounds/00/rollouts.jsonl", "eval-test-obey")
    found = learning.measured(cases)
    tags = {tag for trajectory, _ in cases for tag in trajectory.task.tags}
    assert set(found) == {"all", "benign", "attacked", "harmful", *tags}
    for kind in ("all", "benign", "attacked", "harmful"):
        for name, value in found[kind].items():
            assert value == pytest.approx(rows[kind][name]["value"]), (kind, name)


def result(method, seed, *resolved, tokens=100):
    points = [
        {
            "round": round,
            "accepted": True,
            "tokens": round * tokens,
            "seconds": round,
            "values": {"all": {"resolved": value, "objective_product": value / 2}},
        }
        for round, value in enumerate(resolved)
    ]
    concerns = [{"rule": "inert"}]
    return {"method": method, "seed": seed, "points": points, "scripted": {}, "concerns": concerns, "wall": 1}


RESULTS = [
    *(result(REFERENCE, seed, 0.2, 0.5 + seed / 10, 0.6 + seed / 10) for seed in (0, 1, 2)),
    *(result("pfpo", seed, 0.2, 0.3 + seed / 10, 0.5 + seed / 10, tokens=120) for seed in (0, 1)),
]


def test_differences_are_paired_on_shared_seeds():
    told = summary(RESULTS, {name: METHODS[name] for name in (REFERENCE, "pfpo", "gdpo")})
    assert list(told["methods"]) == [REFERENCE, "pfpo"], "what was not run is not told of"
    gained = told["methods"]["pfpo"]["difference"]["all"]["resolved"]
    assert gained["n"] == 2
    assert [gained[end] for end in ("low", "mean", "high")] == pytest.approx([0.1] * 3), "seeds differ, pairs do not"
    own = told["methods"][REFERENCE]["metrics"]["all"]["resolved"]
    # Student's: mean .7, standard deviation .1 over 3 seeds, t = 4.3027.
    assert (own["mean"], own["high"]) == pytest.approx((0.7, 0.7 + 4.30265 * 0.1 / 3**0.5), rel=1e-5)
    assert told["methods"]["pfpo"]["concerns"] == {"inert": 2}


def test_how_soon_the_reference_reaches_a_methods_best():
    told = summary(RESULTS, {name: METHODS[name] for name in (REFERENCE, "pfpo")})
    assert told["methods"]["pfpo"]["half_way"] == pytest.approx({"best": 0.55, "tokens": 240, "share": 100 / 240})


def case_of(kind, **scores):
    return {"task": "t", "kind": kind, "tags": [], "scores": scores}


def test_the_volume_is_not_blind_to_the_middle():
    note, middle = case_of("attacked", security=1.0, utility=0.52), case_of("attacked", security=0.72, utility=0.75)
    assert learning_page.volume([note]) == pytest.approx(0.04)
    assert learning_page.volume([middle]) == pytest.approx(0.22)
    assert learning_page.volume([case_of("benign", utility=0.4, security=1.0)]) == 0, "below one half there is no box"
    perfect = case_of("harmful", security=1.0, utility=None)
    assert learning_page.volume([perfect, note, note]) == pytest.approx((1 + 0.04) / 2), "kinds count alike"
    assert learning_page.volume([case_of("benign", utility=None)]) is None


def test_named_comparisons_are_tested_by_seed_and_corrected_for_their_number():
    from scipy import stats

    gaps = {
        "fate-sum": (0.3, 0.2, 0.4),
        "grpo-sum": (0.1, 0.3, -0.1),
        "gdpo": (0.2, 0.2, 0.3),
        "sft-repairs": (0, 0.1, 0),
    }
    results = [result(REFERENCE, seed, 0.2, 0.6 + seed / 10) for seed in range(3)]
    results += [
        result(name, seed, 0.2, 0.6 + seed / 10 - gap) for name, found in gaps.items() for seed, gap in enumerate(found)
    ]
    told = summary(results, {name: METHODS[name] for name in (REFERENCE, *gaps)})
    tested = {name: told["methods"][name]["tests"]["resolved"] for name in gaps}
    for name, found in gaps.items():
        assert tested[name]["p"] == pytest.approx(stats.ttest_1samp(found, 0).pvalue, rel=1e-6), name
    least = min(tested, key=lambda name: tested[name]["p"])
    assert tested[least]["holm"] == pytest.approx(8 * tested[least]["p"]), "four methods, two metrics"
    assert all(said["holm"] >= said["p"] for said in tested.values())
    text = "\n".join(learning_page.tests_table(told))
    assert "| headline | `gdpo` | +23.3 [9.0, 37.7] |" in text
    partly = summary(results, {name: METHODS[name] for name in (REFERENCE, "gdpo")})
    assert not learning_page.tests_table(partly), "a family is corrected as it was named, or not at all"


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (range(310, 313), None),
        (range(318, 322), "With *headline* were named the seeds 318, 319 only; 320, 321 were added later."),
        (range(3), "With *headline* were named other seeds."),
    ],
)
def test_seeds_that_were_not_named_are_told(seeds, said):
    names = COMPARISONS["headline"]
    results = [result(REFERENCE, seed, 0.2, 0.6) for seed in seeds]
    results += [result(name, seed, 0.2, 0.5 + seed / 1000) for name in names for seed in seeds]
    text = learning_page.tests_table(summary(results, {name: METHODS[name] for name in (REFERENCE, *names)}))
    assert any("named before the runs" in line for line in text)
    assert [line.partition(" So ")[0] for line in text if line.startswith("With *")] == ([said] if said else [])


def test_seeds_are_named_with_every_family():
    assert NAMED_SEEDS.keys() == COMPARISONS.keys()


def test_the_page_says_what_the_data_say():
    told = summary(RESULTS, {name: METHODS[name] for name in (REFERENCE, "pfpo")})
    about = {"command": "c", "hardware": "2 cores", "seeds": "0", "recipe": "r", "source": "s", "same": ["k-4"]}
    about |= {"versions": "torch 2"}
    text = learning_page.page(json.loads(json.dumps(told)), about)
    assert "| `pfpo` | PFPO only | 2 | 0 | 2 | 55.0 [" in text
    assert "| `pfpo` | +10.0 [10.0, 10.0] | +5.0 [5.0, 5.0] | – | – | 0.42 |" in text


def test_a_page_is_filled_where_it_says_so():
    told = summary(RESULTS, {name: METHODS[name] for name in (REFERENCE, "pfpo")})
    text = f"Before.\n{learning_page.BEGIN}old\n{learning_page.END}After.\n"
    filled = learning_page.fill(text, told, {"command": "c"}, "x.svg")
    assert filled.startswith(f"Before.\n{learning_page.BEGIN}    c\n\nTest split")
    assert filled.endswith(f"(x.svg)\n{learning_page.END}After.\n")
    assert learning_page.fill(filled, told, {"command": "c"}, "x.svg") == filled
    with pytest.raises(ValueError, match="no place for results"):
        learning_page.fill("Before.", told, {"command": "c"}, "x.svg")


def test_settings_are_tried_as_methods_of_their_own():
    tried = learning.variants({"x": Method("x", {"rounds": 1}, tried=({"pfpo.learning_rate": 1e-4}, {"sft": None}))})
    assert list(tried)[1:] == ["x learning_rate=0.0001", "x sft=None"]
    assert tried["x sft=None"].tuned == {"sft": None}


@pytest.mark.parametrize(("text", "seeds"), [("0-3,7", [0, 1, 2, 3, 7]), ("5", [5])])
def test_seeds(text, seeds):
    assert learning.numbers(text) == seeds


def test_an_unknown_method_is_told_with_those_that_there_are():
    with pytest.raises(SystemExit, match=r"no method 'ppo'. Groups: headline, .* Methods: fate, "):
        learning.chosen(["ppo"])
