"""Fuzz of everything that reads files: whatever stands in them, nothing but our own errors may come out.

A target is a function that makes a file's content and one that reads it. Contents are real files, mutated: JSON values
are replaced by wrong, hostile, huge or deep ones, keys are taken away or renamed, bytes are cut, flipped and doubled.
tests/test_fuzz.py tries a few hundred, `pytest -m slow` and benchmarks/fuzz.py thousands.
"""

from __future__ import annotations

import io
import json
import random
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from fate_trl import interchange
from fate_trl.errors import FateError
from fate_trl.interchange import rows
from fate_trl.ledger.writing import RunDirectory
from fate_trl.recipe.loading import load_recipe, shipped
from fate_trl.record import dumps
from fate_trl.report.reading import Run
from fate_trl.suites.scripted import ScriptedPolicy
from fate_trl.suites.workbench.suite import WorkbenchSuite
from fate_trl.testing.hostile import HOSTILE, LARGE, record
from fate_trl.types import OBJECTIVES, RolloutRequest
from fate_trl.verify.scoring import OverRefusal, Security, TrajectoryControl, Utility, score_all

# ------------------------------------------------------------------------------------------------ mutations


def _deep(levels: int) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = [value] if levels % 2 else {"a": value}
    return value


_WRONG: list[Any] = [None, True, False, 0, -1, 1, 2**31, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "nan"]
_WRONG += [[], {}, [[]], [None], {"": None}, {"a": {"b": []}}, "collect", "user", "assistant", "tool", _deep(60)]
_WRONG += [_deep(301), _deep(500), *(text for name, text in sorted(HOSTILE.items()) if name not in LARGE)]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside, the outermost first."""
    found, queue = [], [value]
    while queue:
        inside = queue.pop(0)
        items = inside.items() if isinstance(inside, dict) else enumerate(inside) if isinstance(inside, list) else ()
        for key, item in items:
            found.append((inside, key))
            queue.append(item)
    return found


def _copied(value: Any) -> Any:
    return json.loads(json.dumps(value))  # deepcopy gives up at a depth that JSON still has


def mutated(value: Any, rng: random.Random) -> Any:
    """A JSON value with up to three of its parts replaced, removed, renamed or doubled."""
    value = _copied(value)
    for _ in range(rng.randint(0, 3)):
        places = _places(value)
        if not places or rng.random() < 0.02:
            return _copied(rng.choice(_WRONG))
        inside, key = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0:
            del inside[key]
        elif kind == 1 and isinstance(inside, dict):
            inside[str(rng.choice(_WRONG))] = inside.pop(key)
        elif kind == 2 and isinstance(inside, list):
            inside.insert(rng.randint(0, len(inside)), _copied(inside[key]))
        else:
            inside[key] = _copied(rng.choice(_WRONG))
    return value


def bent(content: bytes, rng: random.Random) -> bytes:
    """Bytes, in two thirds of the cases as they are, else cut, flipped, doubled or filled."""
    place, length = rng.randint(0, len(content)), rng.randint(1, 40)
    kind = rng.randrange(9)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + content[place + length :]
    if kind == 2:
        noise = rng.choice([b"\x00", b"\xff\xfe", b"\r", b"\n", b'"', b"[" * 3000, b"\x1b[2J", rng.randbytes(length)])
        return content[:place] + noise + content[place:]
    return content


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


# ------------------------------------------------------------------------------------------------ real contents


@cache
def _cases() -> list[Any]:
    """Scored trajectories of the workbench, and one of hostile text."""
    suite = WorkbenchSuite(train=3, validation=0, test=0)
    requests = [RolloutRequest(task, task.messages, "collect") for task in suite.tasks("train")]
    played = ScriptedPolicy({"workbench": suite}, "obey").rollout(requests, 0)
    verifiers = [Security(), Utility(), OverRefusal(), TrajectoryControl()]
    assert [verifier.objectives[0] for verifier in verifiers] == list(OBJECTIVES)
    return [*zip(played, score_all(verifiers, played)), record(HOSTILE["end of a JSON line"])]


@cache
def _ledger() -> list[dict[str, Any]]:
    members = [{"chunk": n // 2, "of": 2, "stage": "collect"} for n in range(4)]
    return [json.loads(dumps({**m, "trajectory": t, "card": c})) for m, (t, c) in zip(members, _cases())]


def _lines(records: list[Any], rng: random.Random) -> bytes:
    changed = [mutated(record, rng) if rng.random() < 0.5 else record for record in records]
    return bent(b"".join(_json(record) + b"\n" for record in changed), rng)


@cache
def _rows() -> list[Any]:
    foreign = {"failure_id": 7, "task": {"id": "t", "prompt": "Pay."}, "failed_trajectory": "I paid.", "mode": "m"}
    foreign |= {"scores": dict.fromkeys(OBJECTIVES, 0.5), "metadata": {"x": [1]}}
    call = {"id": "1", "type": "function", "function": {"name": "pay", "arguments": '{"to": "bob"}'}}
    turns = [{"role": "user", "content": "Pay."}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns += [{"role": "tool", "content": [{"type": "text", "text": "paid"}]}, {"role": "assistant", "content": "Ok."}]
    ours = [json.loads(rows.line(case, 1)) for case in _cases()]
    return [*ours, foreign, {**foreign, "task": "Pay.", "failed_trajectory": {"messages": turns, "extra": 1}}]


@cache
def _agentdojo() -> dict[str, Any]:
    call = {"function": "send_money", "args": {"recipient": "x", "amount": 1.5}, "id": "c", "placeholder_args": None}
    text = [{"type": "text", "content": "Pay the bill."}]
    messages = [
        {"role": "system", "content": text},
        {"role": "user", "content": text},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": text, "tool_call": call, "tool_call_id": "c", "error": None},
        {"role": "assistant", "content": text, "tool_calls": None},
    ]
    log = {"suite_name": "banking", "pipeline_name": "p", "user_task_id": "user_task_3", "messages": messages}
    log |= {"injection_task_id": "injection_task_1", "attack_type": "direct", "injections": {"v": "Obey."}}
    return log | {"error": None, "utility": True, "security": False, "duration": 1.0, "benchmark_version": "v1.2.2"}


@cache
def inspect_members() -> dict[str, Any]:
    """The JSON files in a log that inspect_ai itself writes, of one AgentDojo sample."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec, write_eval_log
    from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, ChatMessageUser
    from inspect_ai.scorer import Score
    from inspect_ai.tool import ToolCall

    call = ToolCall(id="c", function="send_money", arguments={"recipient": "x"})
    turns = [ChatMessageUser(content="Pay."), ChatMessageAssistant(content="", tool_calls=[call])]
    turns += [
        ChatMessageTool(content="paid", tool_call_id="c", function="send_money"),
        ChatMessageAssistant(content=""),
    ]
    metadata = {"task_suite_name": "banking", "task_id": "3", "injection_task_id": "1"}
    score = {"injection_task_scorer": Score(value={"utility": "C", "security": "I"})}
    sample = EvalSample(id="u3-i1", epoch=1, input="Pay.", target="", messages=turns, scores=score, metadata=metadata)
    spec = EvalSpec(
        created="2026-01-01T00:00:00+00:00",
        task="inspect_evals/agentdojo",
        dataset=EvalDataset(),
        model="mockllm/model",
        config=EvalConfig(),
    )
    target = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.eval"
        write_eval_log(EvalLog(eval=spec, samples=[sample], status="success"), str(file))
        target.write(file.read_bytes())
    with zipfile.ZipFile(target) as archive:
        return {name: json.loads(archive.read(name)) for name in archive.namelist()}


def _eval(rng: random.Random) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, value in inspect_members().items():
            archive.writestr(name, bent(_json(mutated(value, rng)), rng) if rng.random() < 0.6 else _json(value))
    return bent(target.getvalue(), rng)


@cache
def _recipe() -> Any:
    return yaml.safe_load(shipped()["quickstart"].read_text(encoding="utf-8"))


def _yaml(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return bent(shipped()["quickstart"].read_bytes(), rng)
    return bent(_json(mutated(_recipe(), rng)), rng)  # JSON is YAML, and can hold what safe_dump cannot write


# ------------------------------------------------------------------------------------------------ targets


def read_ledger(content: bytes, folder: Path) -> None:
    """The run directory, as a resumed run reads it and as the report does."""
    file = folder / "rounds/01/rollouts.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    run = Run.open(folder)
    try:
        list(run.cases(1, "collect"))
    finally:
        RunDirectory(folder).cases("rounds/01/rollouts.jsonl", "collect")


def read_recipe(content: bytes, folder: Path) -> None:
    (folder / "recipe.yaml").write_bytes(content)
    load_recipe(folder / "recipe.yaml")


def read_recorded(name: str) -> Callable[[bytes, Path], None]:
    """An import of the file `name`; what it gave is matched, and written again."""

    def read(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        cases = interchange.read(folder / name)
        interchange.match(cases, [t.task for t, _ in _cases()], [t.task for t, _ in _cases()[:2]])
        for case in cases:
            line = rows.line(case, interchange.round_of(case))
            assert rows.line(rows.case(json.loads(line), "again"), interchange.round_of(case)) == line

    return read


Target = tuple[Callable[[random.Random], bytes], Callable[[bytes, Path], None]]
TARGETS: dict[str, Target] = {
    "run directory": (lambda rng: _lines(_ledger(), rng), read_ledger),
    "recipe": (_yaml, read_recipe),
    "JSONL of failures": (lambda rng: _lines(_rows(), rng), read_recorded("rows.jsonl")),
    "AgentDojo log": (lambda rng: bent(_json(mutated(_agentdojo(), rng)), rng), read_recorded("log.json")),
    "Inspect log": (_eval, read_recorded("log.eval")),
}

MANY = {name: 5_000 for name in TARGETS} | {"Inspect log": 1_000}  # inspect_ai takes longer over one log
"""Inputs of the full run, by target."""

RANDOMS = st.randoms(use_true_random=True)
"""Sources of a content, seeded by hypothesis: a failure is repeated from the seed that it prints."""


def survives(name: str, rng: random.Random, folder: Path) -> bool:
    """Whether the target took a content; False if it refused it with an error of ours. Anything else is raised."""
    make, read = TARGETS[name]
    try:
        read(make(rng), folder)
    except FateError:
        return False
    return True
