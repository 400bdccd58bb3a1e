"""The report: its numbers are the run's, its page is complete by itself, and no text in it is more than text."""

import base64
import hashlib
import html
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fate_trl import metrics
from fate_trl.cli import app
from fate_trl.errors import LedgerError, RecipeError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.metrics import concerns
from fate_trl.report import charts, decision, page, summary, words
from fate_trl.report.reading import EvaluatedPolicy, Round, Run
from fate_trl.testing.hostile import HOSTILE, LARGE, live_html, live_terminal, record

ROOT = Path(__file__).parent.parent


class Page(HTMLParser):
    """Tags with their attributes, ids, and the text of a page."""

    VOID = ("meta", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def told(scripted_folder):
    return summary.summarise(Run.open(scripted_folder))


@pytest.fixture(scope="module")
def shown(told):
    return page.render("report.html", s=told)


def fate(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


# ------------------------------------------------------------------------------------------------ the numbers


def test_the_change_is_the_paired_one(scripted_folder, told):
    ledger = RunDirectory(scripted_folder)
    sides = [ledger.cases(f"rounds/{n:02d}/rollouts.jsonl", "eval-test") for n in (0, 2)]
    assert (told["before"], told["after"]) == ("base", "round-2")
    assert told["change"] == metrics.compare(*sides)
    assert told["metrics"]["test"]["round-2"] == metrics.summarize(sides[1])["metrics"]
    assert json.loads(json.dumps(told, allow_nan=False))


def test_repairs_are_counted_by_what_had_failed(scripted_folder, told):
    ledger = RunDirectory(scripted_folder)
    kinds = {t.task.id: t.task.kind for t, _ in ledger.cases("rounds/01/rollouts.jsonl", "collect")}
    selections = ledger.read("rounds/01/selections.jsonl")
    failed = Counter((objective, kinds[s["failure"][2]]) for s in selections for objective in s["failed"])
    repaired = Counter(
        (objective, kinds[s["failure"][2]]) for s in selections if s["chosen"] is not None for objective in s["failed"]
    )
    first = told["repairs"][0]
    assert {(c["objective"], c["kind"]): c["failures"] for c in first["causes"]} == failed
    assert {(c["objective"], c["kind"]): c["repaired"] for c in first["causes"] if c["repaired"]} == repaired
    assert sum(first["decided_by"].values()) == first["repaired"]
    by_objective = {score["objective"]: score for score in first["scores"]}
    assert by_objective["security"]["chosen"] == 1.0 > by_objective["security"]["failure"]


def test_tie_breaks_are_what_neither_one_candidate_nor_one_vector_decided(scripted_copy):
    file = scripted_copy / "rounds/01/selections.jsonl"
    file.write_text(file.read_text().replace('"decided_by":"front"', '"decided_by":"mean"', 1))
    first = summary.summarise(Run.open(scripted_copy))["repairs"][0]
    assert first["tie_breaks"] == first["decided_by"]["mean"] == 1 < first["repaired"]


def test_fronts_are_of_accepted_rounds_and_never_shrink(told):
    for part in told["fronts"]:
        areas = [front["area"] for front in part["fronts"]]
        assert areas == sorted(areas)
        assert [front["round"] for front in part["fronts"]] == [0, 1, 2]
        for front in part["fronts"]:
            assert front["corners"] == sorted(front["corners"], key=lambda corner: (corner[0], -corner[1]))
    assert {part["kind"]: part["y"] for part in told["fronts"]}["benign"] == "over_refusal"


def test_a_front_with_a_trade_off_is_a_stair():
    def point(name, round, x, y, accepted=True):
        return {"policy": name, "round": round, "accepted": accepted, "x": {"value": x}, "y": {"value": y}}

    class One:
        policies = ()

    points = [point("base", 0, 0.8, 0.2), point("round-1", 1, 0.4, 0.9), point("round-2", 2, 1, 1, accepted=False)]
    before, after = summary._reached(One, points)
    assert (before["round"], before["area"]) == (0, pytest.approx(0.16))
    assert after["corners"] == [(0.4, 0.9), (0.8, 0.2)]
    assert after["area"] == pytest.approx(0.4 * 0.9 + 0.4 * 0.2), "a round that was rolled back is no one's front"


def test_costs_and_errors(scripted_folder, scripted_copy, told):
    stages = [(cost["round"], cost["stage"]) for cost in told["cost"]]
    assert (1, "repair") in stages
    assert (2, "accept") in stages
    assert all(cost["peak_memory_mb"] > 10 for cost in told["cost"])
    assert told["errors"] == []
    file = scripted_copy / "rounds/01/rollouts.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["trajectory"] |= {"error": "the box is gone\nTraceback", "cause": "tool_died"}
    lines[1]["card"]["scores"]["utility"] = {"status": "error", "reason": "judge down", "cause": "verifier_timeout"}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    errors = summary.summarise(Run.open(scripted_copy))["errors"]
    assert [(e["what"], e["cause"], e["count"], e["example"]) for e in errors] == [
        ("episode", "tool_died", 1, "the box is gone"),
        ("utility", "verifier_timeout", 1, "judge down"),
    ]


def test_training_steps_go_on_over_the_rounds(scripted_copy):
    log = [{"loss": 0.5, "step": 1, "rewards/u/mean": 0.1}, {"loss": None, "step": 2}, {"train_loss": 1.0, "step": 2}]
    learned = {"selector/states": 4.0, **{f"selector/multiplier/{name}": 0.5 for name in "abcd"}}
    for number in (1, 2):
        record = {
            "stage": "pfpo",
            "steps": 2,
            "seconds": 1.0,
            "log": [*log, {"loss": 0.1, "step": 2, "kl": 0.3, **learned}],
        }
        RunDirectory(scripted_copy).append(f"rounds/{number:02d}/stages.jsonl", [record])
    training = summary.summarise(Run.open(scripted_copy))["training"]
    assert training["pfpo"]["loss"] == [[1, 0.5], [2, 0.1], [3, 0.5], [4, 0.1]]
    assert training["rounds"]["pfpo"] == {"1": 0, "2": 2}
    assert training["objectives"] == ["u"]
    titles = [chart.title for chart in charts.training({"training": training})]
    assert titles[:2] == ["PFPO: u", "PFPO: KL to the reference"]
    own = ["PFPO: the selector's states", *["PFPO: the selector's multiplier"] * 2]
    assert titles[2:] == own, "what a selector learns, as many lines to a chart as can be told apart"


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_is_complete_by_itself(shown):
    found = Page(shown)
    assert not [tag for tag, _ in found.tags if tag in ("script", "iframe", "img", "form", "object", "base")]
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on") or a == "style"]
    links = [a[key] for _, a in found.tags for key in ("href", "src") if key in a]
    assert all(link.startswith("#") or link == "data:," for link in links)
    (style,) = re.findall(r"<style>(.*?)</style>", shown, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy


def test_links_lead_somewhere_and_pictures_are_described(shown):
    found = Page(shown)
    ids = Counter(attributes["id"] for _, attributes in found.tags if "id" in attributes)
    assert max(ids.values()) == 1
    assert {a["href"][1:] for a in found.all("a")} <= set(ids)
    pictures = [a for a in found.all("svg") if a.get("role") == "img"]
    assert len(pictures) > 10
    for picture in pictures:
        assert set(picture["aria-labelledby"].split()) <= set(ids)
    assert all(a.get("aria-hidden") == "true" for a in found.all("svg") if a not in pictures)
    for text in re.findall(r"<svg.*?</svg>", shown, re.DOTALL):
        ElementTree.fromstring(text.replace("&nbsp;", " "))


def test_the_page_says_what_was_run_and_what_came_of_it(told, shown):
    text = " ".join("".join(Page(shown).text).split())
    resolved = told["metrics"]["test"]["round-2"]["resolved"]
    for part in (
        "Last accepted policy: round-2",
        f"{words.percent(resolved['value'])} % {words.interval(resolved)}",
        "workbench",
        "refuse-all",
        "tie-break decided",
        "Security against utility",
        "peak memory",
        "No infrastructure error",
        "repaired in round",
    ):
        assert part in text
    for policy in ("base", "round-1", "round-2", "oracle", "do-nothing"):
        assert f">{policy}<" in shown
    for metric in told["metrics"]["test"]["round-2"]:
        assert f">{metric}<" in shown


def test_a_round_that_was_rolled_back_is_not_the_result(scripted_copy):
    file = scripted_copy / "rounds/02/stages.jsonl"
    file.write_text(file.read_text().replace('"accepted":true,"worse":[]', '"accepted":false,"worse":["security"]'))
    metrics = scripted_copy / "metrics.json"
    rows = json.loads(metrics.read_text())
    for row in rows["rows"]:
        row["accepted"] = row["round"] < 2
    metrics.write_text(json.dumps(rows))
    text = page.report(Run.open(scripted_copy))
    assert "Last accepted policy: <b>round-1</b>" in text
    assert "The round was rolled back (surely worse on validation: security)" in text
    assert "<small>rolled back</small>" in text


def test_a_run_that_has_just_begun_and_one_that_only_evaluated_have_a_page(scripted_copy):
    recipe = (scripted_copy / "recipe.yaml").read_text()
    for number in (1, 2):
        shutil.rmtree(scripted_copy / f"rounds/{number:02d}")
    (scripted_copy / "recipe.yaml").write_text(recipe.replace("rounds: 2", "rounds: 0"))
    rows = json.loads((scripted_copy / "metrics.json").read_text())["rows"]
    only = [{**row, "policy": row["policy"].replace("base", "model")} for row in rows if row["round"] == 0]
    (scripted_copy / "metrics.json").write_text(json.dumps({"rows": only}))
    assert "<b>model</b>, evaluated without training" in page.report(Run.open(scripted_copy))
    shutil.rmtree(scripted_copy / "rounds")
    (scripted_copy / "metrics.json").unlink()
    assert "Nothing was evaluated yet" in page.report(Run.open(scripted_copy))


def test_hostile_texts_are_nothing_but_text(scripted_copy, monkeypatch):
    """Every hostile text, in every place of a record that the page shows."""
    monkeypatch.setattr(summary, "EXAMPLES", len(HOSTILE))
    ledger = RunDirectory(scripted_copy)
    texts = [text for name, text in HOSTILE.items() if name not in LARGE]
    cases = [record(text, attempt) for attempt, text in enumerate([*texts, "\x1b[31m" * 5_000])]
    for stage in ("eval-test", "collect"):
        ledger.append_chunk("rounds/02/rollouts.jsonl", stage, 99, cases)
    text = page.report(Run.open(scripted_copy))
    assert live_html(text) == []
    assert live_terminal(text) == ""
    assert "<script" not in text
    Page(text)
    assert len(text) < 2_000_000, "long texts are cut"
    assert text.encode()


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_writes_the_page_and_says_where(scripted_copy, tmp_path, shown):
    said = fate("report", scripted_copy)
    assert "report.html" in said
    assert (scripted_copy / "report.html").read_text() == shown
    fate("report", scripted_copy, "-o", tmp_path / "elsewhere.html")
    assert (tmp_path / "elsewhere.html").read_text() == shown


def test_the_command_speaks_to_machines(scripted_folder, told):
    assert json.loads(fate("report", scripted_folder, "--json")) == json.loads(json.dumps(told))
    assert not (scripted_folder / "report.html").exists()


def test_what_cannot_be_reported_says_so(scripted_folder, tmp_path):
    with pytest.raises(LedgerError, match="is no run directory"):
        fate("report", tmp_path)
    with pytest.raises(RecipeError, match="give another place with -o"):
        fate("report", scripted_folder, "-o", tmp_path / "no" / "page.html")


# ------------------------------------------------------------------------------------------------ words


def test_numbers_are_put_alike():
    assert [words.percent(x) for x in (0, 0.0004, 0.012, 0.0994, 0.0996, 0.5, 1)] == [
        "0",
        "0",
        "1.2",
        "9.9",
        "10",
        "50",
        "100",
    ]
    assert [words.signed(x) for x in (0.5, -0.012, 0.0, -1e-9)] == ["+50", "−1.2", "0", "0"]
    better, unclear = {"value": 0.2, "low": 0.1, "high": 0.3}, {"value": 0.2, "low": -0.1, "high": 0.3}
    assert words.judged("resolved", better) == "better"
    assert words.judged("asr", better) == "worse"
    assert words.judged("asr", unclear) == "unclear"
    assert words.judged("exposed", better) == ""
    assert words.p_value(1e-9) == "< 0.001"


def test_every_metric_has_a_label_and_a_meaning():
    named = {metric.name for metric in metrics.METRICS}
    assert {name for name in named if not name.startswith("mean_")} == set(words.LABELS)
    assert {m["metric"] for m in words.meanings()} == set(words.LABELS) | {"suite_<name>"} | {
        f"{p}<objective>" for p in words.PREFIXES if p != "suite_"
    }
    assert words.label("mean_over_refusal") == "over refusal"
    assert words.label("spread_security") == "disagreement on security"
    assert words.label("held_out_security") == "held-out security"
    assert (words.arrow("spread_security"), words.arrow("held_out_security")) == ("↓", "↑")


# ------------------------------------------------------------------------------------------------ what to do next


def policy_of(name, round):
    return EvaluatedPolicy(name, round, {"test": "eval-test"}, True)


class OfARun:
    """What `decide` asks of a run."""

    def __init__(self, rounds=1, decided=1, **recipe):
        self.recipe = {"rounds": rounds, **recipe}
        self.rounds = {n: Round(n, {"accept": {"accepted": True}}) for n in range(1, decided + 1)}


GOOD = {"value": 0.3, "low": 0.1, "high": 0.5}
BAD = {"value": -0.3, "low": -0.5, "high": -0.1}
FLAT = {"value": 0.0, "low": -0.1, "high": 0.1}
KEEP = {"evaluation": {"keep": "best"}}
BASE, LATER = policy_of("base", 0), policy_of("round-1", 1)


@pytest.mark.parametrize(
    ("run", "policies", "change", "concerns", "verdict", "rules"),
    [
        (OfARun(), (BASE, LATER), {"resolved": GOOD, "asr": BAD}, [], "accept", ["accept"]),
        (OfARun(), (BASE, LATER), {"resolved": GOOD, "asr": GOOD}, [], "not yet", ["worse"]),
        (OfARun(), (BASE, LATER), {"resolved": BAD}, [], "not yet", ["worse"]),
        (OfARun(), (BASE, LATER), {"resolved": FLAT, "tsr": BAD}, [], "not yet", ["worse", "no-clear-change"]),
        (OfARun(), (BASE, LATER), {"resolved": GOOD}, [("refuses", 1)], "not yet", ["wary"]),
        (OfARun(), (BASE, LATER), {"resolved": GOOD}, [("refuses", 0), ("clipped", 1)], "accept", ["accept"]),
        (OfARun(), (BASE, LATER), {}, [], "not yet", ["unstated"]),
        (OfARun(3, 1), (BASE, LATER), {"resolved": GOOD}, [], "not yet", ["unfinished"]),
        (OfARun(3, 1, token_budget=9), (BASE, LATER), {"resolved": GOOD}, [], "accept", ["accept"]),
        (OfARun(), (BASE, BASE), {}, [], "not yet", ["no-round-accepted"]),
        (OfARun(**KEEP), (BASE, BASE), {}, [], "not yet", ["none-better"]),
        (
            OfARun(2, 2, **KEEP),
            (BASE, LATER),
            {"resolved": GOOD},
            [],
            "accept",
            ["accept", "kept"],
        ),
        (OfARun(2, 2, **KEEP), (BASE, LATER), {}, [], "not yet", ["unstated", "kept"]),
        (OfARun(), (None, None), {}, [], "not yet", ["nothing-evaluated"]),
        (OfARun(0, 0), (BASE, BASE), {}, [], "measured", ["only-measured"]),
        (OfARun(0, 0), (None, None), {}, [], "not yet", ["nothing-evaluated"]),
    ],
)
def test_the_decision_follows_its_rules(run, policies, change, concerns, verdict, rules):
    wary = [{"rule": rule, "round": round, "text": "Look."} for rule, round in concerns]
    told = decision.decide(run, *policies, change, "", wary)
    assert (told["verdict"], [reason["rule"] for reason in told["reasons"]]) == (verdict, rules)
    assert all(reason["text"] for reason in told["reasons"])
    assert told["next"]


def test_every_rule_of_the_decision_is_written_down():
    rules = re.findall(r"^\| `([a-z-]+)` \|", decision.__doc__, re.MULTILINE)
    page_of_docs = (ROOT / "docs" / "report.md").read_text()
    for rule in rules:
        assert f"| {rule.replace('-', ' ')} |" in page_of_docs
    known = re.findall(r"^\| `([a-z-]+)` \|", concerns.__doc__, re.MULTILINE)
    assert set(decision.GRAVE) <= set(known)


def test_what_to_do_next_stands_first(told, shown):
    assert told["decision"]["verdict"] in ("accept", "not yet")
    places = [shown.index(f'id="{part}"') for part in ("next", "result", "concerns", "run", "cost")]
    assert places == sorted(places)
    for reason in told["decision"]["reasons"]:
        assert html.escape(reason["text"], quote=False)[:40] in shown


def test_a_finished_stage_that_lost_its_last_chunk_is_told_in_the_page(scripted_copy):
    file = scripted_copy / "rounds/02/rollouts.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    found = summary.summarise(Run.open(scripted_copy))
    (line,) = found["missing"]
    assert "records are there; what is not whole is left out" in line
    text = page.render("report.html", s=found)
    assert line in text
    assert "fate-trl fsck" in text


def test_rounds_that_are_gone_are_told_in_the_page(scripted_copy):
    shutil.rmtree(scripted_copy / "rounds")
    found = summary.summarise(Run.open(scripted_copy))
    assert found["missing"] == [f"Of round {n} no record is left, though metrics.json tells of it." for n in (0, 1, 2)]
    assert found["missing"][0] in page.render("report.html", s=found)


def test_a_whole_run_lacks_nothing(told):
    assert told["missing"] == []
