"""The records: JSON round trips, scores that are tri-state, cards, and hashes that never change."""

import dataclasses
import json
import math

import pytest

from fate_trl.errors import FateError
from fate_trl.messages import text_of
from fate_trl.record import Record, dumps, stable_hash
from fate_trl.types import (
    BufferRow,
    Failure,
    Hindsight,
    Outcome,
    Pair,
    Repair,
    RolloutRequest,
    Score,
    ScoreCard,
    Script,
    Task,
    ToolCall,
    Trajectory,
)

HOSTILE = "nul \x00, escape \x1b[2J, bidi \u202e\u2066, lone \ud800, line \u2028, </script><b>, \U0001f600, \"'\\\n"

USER = {"role": "user", "content": HOSTILE}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "pay", "arguments": {"to": HOSTILE, "n": [1, None]}}}],
}
TASK = Task(
    id=HOSTILE,
    suite="s",
    kind="attacked",
    messages=({"role": "system", "content": [{"type": "text", "text": "be"}]}, USER),
    tools=("pay", "read"),
    cluster="c",
    split="test",
    tags=("look-alike", "attack:x"),
    data={"deep": {"list": [1, 2.5, None, {"x": HOSTILE}]}, "flag": False},
)
CALL = ToolCall("pay", {"to": HOSTILE, "amount": 3}, HOSTILE, "raised")
OUTCOME = Outcome(0.5, True, 0.25, False, "grader stumbled", {"attack_call": 0}, (HOSTILE,))
TRAJECTORY = Trajectory(
    task=TASK,
    prompt=TASK.messages,
    messages=(CALLED, {"role": "tool", "name": "pay", "content": HOSTILE}),
    calls=(CALL, CALL),
    outcome=OUTCOME,
    stop="length",
    error=HOSTILE,
    stage="repair",
    attempt=3,
    replayed=1,
    prompt_ids=(1, 2),
    completion_ids=(3, 4),
    policy_mask=(1, 0),
    policy="p",
    data={"x": 1},
)
CARD = ScoreCard(
    {
        "utility": Score(0.5, reason=HOSTILE, feedback="do it", step=0),
        "security": Score.not_applicable(),
        "rule": Score.error("down"),
    }
)
FAILURE = Failure(TRAJECTORY, CARD)
RECORDS = [
    TASK,
    Script(({"name": "pay", "arguments": {"to": "x"}},), HOSTILE),
    CALL,
    OUTCOME,
    TRAJECTORY,
    RolloutRequest(TASK, (USER,), "repair", 2, (CALL,)),
    *CARD.scores.values(),
    CARD,
    FAILURE,
    Repair(FAILURE, (TRAJECTORY, TRAJECTORY), (CARD, CARD), (0, 1), (1,), 1, "crowding"),
    Repair(FAILURE),
    BufferRow("repair", "s", HOSTILE, 2, (1,), (2, 3), (1, 0), (USER, CALLED), 1, ("pay",)),
    Hindsight("s", HOSTILE, 2, (1,), (2,), (3,), ({"role": "user", "content": HOSTILE},), ("pay",), 0, 3),
    Pair("s", HOSTILE, 2, (1,), (2, 3), (1, 0), (4,), (1,), 0.5, 0, 3),
    # all that can be left out
    Task("i", "s", "benign", ()),
    Trajectory(Task("i", "s", "benign", ())),
    Outcome(),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_record_survives_json(record):
    text = dumps(record)
    assert type(record).from_dict(json.loads(text)) == record
    assert text.isascii()
    assert text.isprintable()


def test_the_round_trips_cover_every_kind_of_record():
    assert {type(record) for record in RECORDS} == set(Record.__subclasses__())


def test_nested_tuples_and_records_come_back_as_such():
    back = Trajectory.from_dict(json.loads(dumps(TRAJECTORY)))
    assert isinstance(back.calls, tuple)
    assert isinstance(back.calls[0], ToolCall)
    assert isinstance(back.task, Task)
    assert isinstance(back.outcome, Outcome)
    assert isinstance(ScoreCard.from_dict(CARD.to_dict()).scores["utility"], Score)


def test_fields_at_their_default_take_no_room():
    assert Task("i", "s", "benign", ()).to_dict() == {"id": "i", "suite": "s", "kind": "benign", "messages": []}
    assert Outcome(utility=0.0, attacked=False).to_dict() == {"utility": 0.0, "attacked": False}


def test_records_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASK.id = "other"
    scores = {"a": Score(1.0)}
    card = ScoreCard(scores)
    scores.clear()
    assert card.scores == {"a": Score(1.0)}


@pytest.mark.parametrize(
    ("cls", "data", "named"),
    [
        (Task, {"id": "i", "suite": "s", "kind": "benign", "messages": [], "colour": 1}, "colour"),
        (Task, {"id": "i"}, "suite"),
        (Trajectory, {"task": {"id": "i", "suite": "s", "kind": "benign", "messages": [], "x": 1}}, "Task: .*'x'"),
        (Trajectory, {"task": "i"}, "Task"),
        (Trajectory, {"task": {"id": "i", "suite": "s", "kind": "benign", "messages": 3}}, "Task"),
        (ScoreCard, {"scores": ["utility"]}, "ScoreCard"),
        (ScoreCard, {"scores": {"utility": {"value": 7}}}, "7"),
    ],
)
def test_damaged_data_is_an_error_of_ours_that_names_it(cls, data, named):
    with pytest.raises(FateError, match=named):
        cls.from_dict(data)


def test_numbers_that_json_does_not_know_become_text():
    """A policy may write NaN or 1e999 as an argument; its record must still be storable."""
    call = ToolCall("pay", {"amount": math.nan, "more": [math.inf, -math.inf]})
    assert json.loads(dumps(call))["arguments"] == {"amount": "nan", "more": ["inf", "-inf"]}


def test_order_is_kept_where_it_is_asked_for():
    """Feedback is worded, and arguments are rendered, in their own order; records must not change it."""
    made = ScoreCard({"utility": Score(0.0), "security": Score(1.0)})
    assert list(ScoreCard.from_dict(json.loads(dumps(made, sort=False))).scores) == ["utility", "security"]
    assert list(ScoreCard.from_dict(json.loads(dumps(made))).scores) == ["security", "utility"]


# ------------------------------------------------------------------------------------------------ hashes


def test_hashes_are_the_same_for_ever():
    assert stable_hash(0, 1, "collect", 2) == 8670953205686415280
    assert stable_hash(HOSTILE) == stable_hash(HOSTILE)
    assert stable_hash({"b": 1, "a": (2,)}) == stable_hash({"a": [2], "b": 1})


def test_hashes_tell_parts_apart():
    parts = [(), ("",), (0,), ("0",), (1, 2), (12,), ([1, 2],), ("a", "b"), ("ab",), (None,), (False,)]
    assert len({stable_hash(*some) for some in parts}) == len(parts)
    assert all(0 <= stable_hash(i) < 2**63 for i in range(100))


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, None, "1"])
def test_a_score_is_a_number_from_0_to_1(value):
    with pytest.raises(ValueError, match="score"):
        Score(value)


@pytest.mark.parametrize("value", [0, 1, 0.5, True])
def test_legal_scores(value):
    assert Score(value).status == "ok"


@pytest.mark.parametrize("status", ["not_applicable", "error"])
def test_a_score_without_status_ok_has_no_value(status):
    with pytest.raises(ValueError, match="no value"):
        Score(0.0, status=status)
    assert Score(status=status).value is None


def test_an_error_always_has_a_reason():
    assert Score.error("").reason


NA, DOWN = Score.not_applicable("n/a"), Score.error("down")


@pytest.mark.parametrize(
    ("scores", "failed", "resolved"),
    [
        ({"utility": Score(0.8), "security": Score(1.0)}, (), True),  # graded utility passes at 0.8
        ({"utility": Score(0.79), "security": Score(1.0)}, ("utility",), False),
        ({"utility": Score(1.0), "security": Score(0.99)}, ("security",), False),  # all others pass at 1
        ({"utility": Score(0.0), "mine": Score(0.9)}, ("utility", "mine"), False),
        ({"utility": Score(1.0), "security": NA}, (), True),
        ({"utility": NA, "security": NA}, (), False),  # nothing applies, so nothing is resolved
        ({}, (), False),
        ({"utility": Score(1.0), "security": DOWN}, (), False),  # an error is neither passed nor failed
        ({"utility": Score(0.0), "security": DOWN}, ("utility",), False),
    ],
)
def test_failed_and_resolved(scores, failed, resolved):
    card = ScoreCard(scores)
    assert card.failed == failed
    assert card.resolved is resolved


def test_errors_and_vectors():
    card = ScoreCard({"utility": Score(1), "security": NA, "mine": DOWN})
    assert card.errors == {"mine": "down"}
    vector = card.vector(["mine", "utility", "security", "absent"])
    assert vector[1] == 1.0
    assert all(math.isnan(vector[i]) for i in (0, 2, 3))


# ------------------------------------------------------------------------------------------------ trajectories


def test_the_answer_is_the_last_message_of_the_policy():
    said = ({"role": "assistant", "content": "first"}, {"role": "tool", "content": "not this"})
    assert Trajectory(TASK, messages=said).answer == "first"
    blocks = {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]}
    assert Trajectory(TASK, messages=(*said, blocks)).answer == "ab"
    assert Trajectory(TASK).answer == ""
    assert text_of({"role": "assistant", "content": None}) == ""
    assert text_of({}) == ""


def test_a_trajectory_is_named_by_stage_suite_task_and_attempt():
    assert TRAJECTORY.key == ("repair", "s", HOSTILE, 3)
