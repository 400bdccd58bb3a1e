"""program: three tiers, and a program that hangs is an error."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

from fate_trl_methods.program import Program

from fate_trl.types import Task, Trajectory


def answered(program: str | None, **wanted: str) -> Trajectory:
    data = {"program": wanted} if wanted else {}
    task = Task("t", "s", "benign", ({"role": "user", "content": "Write it."},), data=data)
    text = "Here it is." if program is None else f"Here:\n```python\n{program}\n```\nDone."
    return Trajectory(task=task, messages=({"role": "assistant", "content": text},))


def value(program: str | None, **wanted: str) -> float | None:
    return Program(seconds=5).score([answered(program, **wanted)])[0]["program"].value


@pytest.mark.parametrize(
    ("program", "tier"),
    [
        (None, 0.0),
        ("print(", 0.0),
        ("print(1 / 0)", 1 / 3),
        ("raise SystemExit(3)", 1 / 3),
        ("x = [0] * 10**10", 1 / 3),
        ("print(6)", 2 / 3),
        ("print(sum(map(int, input().split())), '  ')", 1.0),
    ],
)
def test_program_has_three_tiers(program, tier):
    assert value(program, stdin="3 4", stdout="7\n") == pytest.approx(tier)


def test_program_that_hangs_is_an_error_and_takes_its_children_along():
    start = time.monotonic()
    hung = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    for program in ("while True: pass", "import time; time.sleep(60)", hung):
        (scores,) = Program(seconds=0.7).score([answered(program, stdout="")])
        assert scores["program"].status == "error"
        assert scores["program"].cause == "verifier_timeout"
    assert time.monotonic() - start < 30


def test_program_says_what_the_policy_can_act_on_and_leaves_other_tasks_alone():
    (scores,) = Program().score([answered("print(1 / 0)", stdout="1")])
    assert "ZeroDivisionError" in scores["program"].feedback
    assert Program().score([answered("print(1)")])[0]["program"].status == "not_applicable"
    assert Program(everywhere=True).score([answered("print(1)")])[0]["program"].value == 1


def test_program_judges_the_last_block_of_the_last_answer_and_sees_no_environment(monkeypatch):
    monkeypatch.setenv("A_SECRET", "hunter2")
    made = answered(
        "print('no')\n```\nBetter:\n```\nimport os; print(os.environ.get('A_SECRET', 'none'))", stdout="none"
    )
    assert Program().score([made])[0]["program"].value == 1
    assert Program().score([replace(made, messages=())])[0]["program"].value == 0
