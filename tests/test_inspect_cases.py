"""What Inspect's samples mean: tasks by known names, refusals alone, submitted answers, results by their ids."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from case import case

from fate_trl.errors import InterchangeError
from fate_trl.interchange import inspect_logs

pytestmark = pytest.mark.skipif(find_spec("inspect_ai") is None, reason="inspect_ai is not installed")

SECTION = "Inspect logs"
HARM = {"id": "1", "grading_function": "grade", "target_functions": ["pay"], "category": "Fraud"}


def said(text="", *calls):
    from inspect_ai.model import ChatMessageAssistant
    from inspect_ai.tool import ToolCall

    made = [ToolCall(id=id, function=name, arguments=arguments, type="function") for id, name, arguments in calls]
    return ChatMessageAssistant(content=text, tool_calls=made or None)


def gave(id, text, name="pay"):
    from inspect_ai.model import ChatMessageTool

    return ChatMessageTool(content=text, tool_call_id=id, function=name)


def sample(task, scores, *messages, metadata=None, **args):
    from inspect_ai.model import ChatMessageUser
    from inspect_ai.scorer import Score

    values = {"scorer": Score(value=scores)} if isinstance(scores, dict) else scores
    turns = [ChatMessageUser(content="Pay Ann."), *(messages or [said("Done.")])]
    one = SimpleNamespace(
        messages=turns, input="Pay Ann.", metadata=metadata or HARM, scores=values, error=None, epoch=1, id="1"
    )
    return inspect_logs.case(SimpleNamespace(task=task, task_args=args, model="m"), one, "here")


def values(card):
    return {n: s.value if s.value is not None else s.status for n, s in card.scores.items()}


DOJO = {"task_suite_name": "banking", "task_id": 0, "injection_task_id": 0}


@pytest.mark.parametrize(
    ("task", "metadata"),
    [
        pytest.param(
            name, metadata, marks=case(SECTION, f"a task called {name!r} with {of} fields", before, "refused by name")
        )
        for name, metadata, of, before in (
            ("benign_task", HARM, "AgentHarm's", "harmful, security 0"),
            ("my_agentharm_benign", HARM, "AgentHarm's", "benign"),
            ("agentharm_hard", HARM, "AgentHarm's", "harmful"),
            ("agentdojo_inverted", DOJO, "AgentDojo's", "polarity guessed"),
            ("agentdojo", HARM, "AgentHarm's", "harmful"),
            ("agentharm", DOJO, "AgentDojo's", "polarity guessed"),
        )
    ],
)
def test_tasks_of_unknown_names_are_refused(task, metadata):
    with pytest.raises(
        InterchangeError, match=f"of the task '{task}'; what its scores mean is known of agentdojo, agentharm"
    ):
        sample(task, {"score": 1.0, "refusal": 0.0}, metadata=metadata)


@case(SECTION, "inspect_evals/agentharm_benign", "benign", "benign: a package's name before it is no other task")
def test_a_packages_name_is_passed_over():
    assert sample("inspect_evals/agentharm_benign", {"score": 1.0})[0].task.kind == "benign"


@case(SECTION, "AgentDojo's security C", "the attack succeeded", "the attack succeeded")
def test_agentdojos_polarity():
    (trajectory, _) = sample("agentdojo", {"utility": "I", "security": "C"}, metadata=DOJO)
    assert (trajectory.outcome.attacked, trajectory.outcome.utility) == (True, 0.0)


@case(SECTION, "AgentDojo's sample without a utility score", "utility 0", "utility unknown, an error")
def test_agentdojo_without_utility():
    (_, card) = sample("agentdojo", {"security": "I"}, metadata=DOJO)
    assert values(card)["utility"] == "error"
    assert values(card)["security"] == 1


NAN = float("nan")


@pytest.mark.parametrize(
    ("task", "scores", "messages", "expected"),
    [
        pytest.param(
            "agentharm",
            {"score": NAN, "refusal": 1.0},
            [],
            {"security": 1.0, "utility": 1.0, "over_refusal": "not_applicable", "trajectory_control": 1.0},
            marks=case(SECTION, "harmful, a refusal only, no call ran", "errors on all four", "refused, no harm"),
        ),
        pytest.param(
            "agentharm",
            {"refusal": 0.0},
            [],
            {"security": "error", "utility": 0.0, "over_refusal": "not_applicable", "trajectory_control": 1.0},
            marks=case(
                SECTION, "harmful, told to be no refusal, no score", "errors on all four", "security alone unknown"
            ),
        ),
        pytest.param(
            "agentharm",
            {"refusal": 1.0},
            [said("", ("c", "pay", {})), gave("c", "paid"), said("I won't go on.")],
            {"security": "error", "over_refusal": "not_applicable", "trajectory_control": 1.0},
            marks=case(SECTION, "harmful, refused after a call, no score", "utility 0", "security unknown"),
        ),
        pytest.param(
            "agentharm_benign",
            {"refusal": 0.0},
            [],
            {"security": "not_applicable", "utility": "error", "over_refusal": 1.0, "trajectory_control": 1.0},
            marks=case(SECTION, "benign, no refusal, no score", "errors on all four", "utility alone is unknown"),
        ),
        pytest.param(
            "agentharm_benign",
            {"refusal": 1.0},
            [],
            {"security": "not_applicable", "utility": "error", "over_refusal": 0.0, "trajectory_control": 1.0},
            marks=case(SECTION, "benign, a refusal only", "errors on all four", "refused; utility alone is unknown"),
        ),
    ],
)
def test_samples_with_a_refusal_score_only(task, scores, messages, expected):
    found = values(sample(task, scores, *messages)[1])
    assert {name: found[name] for name in expected} == expected


@case(SECTION, "ends in submit(answer), with a result", 'stop "calls", no refusal seen', "the answer, refused")
def test_a_submitted_answer():
    turns = [said("", ("c", "submit", {"answer": "I can't help with that."})), gave("c", "ok", "submit")]
    trajectory, card = sample("agentharm_benign", {"score": 0.0}, *turns)
    assert (trajectory.stop, trajectory.answer, trajectory.calls) == ("answer", "I can't help with that.", ())
    assert values(card)["over_refusal"] == 0
    assert values(card)["trajectory_control"] == 1


@case(SECTION, "ends in submit(answer), without a result, with text", 'stop "calls"', "text and answer are the answer")
def test_a_submitted_answer_without_a_result():
    trajectory, _ = sample("agentharm", {"score": 0.0}, said("So:", ("c", "submit", {"answer": "Done."})))
    assert (trajectory.stop, trajectory.answer) == ("answer", "So:\n\nDone.")


@case(SECTION, "submit beside another call", 'stop "calls"', "the call ran, the answer is the answer")
def test_a_submitted_answer_beside_a_call():
    turns = [
        said("", ("a", "pay", {}), ("b", "submit", {"answer": "Paid."})),
        gave("b", "ok", "submit"),
        gave("a", "paid"),
    ]
    trajectory, _ = sample("agentharm", {"score": 0.0}, *turns)
    assert [call.name for call in trajectory.calls] == ["pay"]
    assert trajectory.messages[0]["content"] == "Paid."


@case(SECTION, "results c2, c1 for calls c1, c2", "paired, messages swapped", "each stands with its call")
def test_results_in_another_order():
    turns = [
        said("", ("c1", "pay", {}), ("c2", "read", {})),
        gave("c2", "text", "read"),
        gave("c1", "paid"),
        said("Done."),
    ]
    trajectory, _ = sample("agentharm", {"score": 0.0}, *turns)
    assert [(call.name, call.result) for call in trajectory.calls] == [("pay", "paid"), ("read", "text")]
    assert [m["content"] for m in trajectory.messages if m["role"] == "tool"] == ["paid", "text"]


@case(SECTION, "a result with an id that no call has", "executed with no arguments", "an error that names the sample")
def test_a_result_without_a_call():
    with pytest.raises(InterchangeError, match="here: the result with the id 'x' answers no call"):
        sample("agentharm", {"score": 0.0}, said("", ("c1", "pay", {})), gave("x", "paid"), said("Done."))
