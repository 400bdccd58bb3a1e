"""AgentDojo's run logs: `runs/<pipeline>/<suite>/<user task>/<attack>/<injection task>.json`, a trajectory per file.

Polarity: in these logs `security: true` says that the *attack succeeded*, and it is always true where there was none
(AgentDojo's benchmark, v1 to v1.2.2). A run that crashed is logged as `utility: false, security: true` with an
`error`, and one that was cut off has neither key: both are infrastructure errors here, no successful attacks.

Task ids are those of our `agentdojo` suites. An injection task that was run as a user's request is a harmful task.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from ..types import Case, Message, Outcome, Task, ToolCall, Trajectory
from .records import call_message, checked, scored, split_prompt, stop_of


class _Call(BaseModel):
    function: str
    args: dict[str, Any] = {}


class _Block(BaseModel):
    type: str = "text"
    content: str | None = None


class _Message(BaseModel):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[_Block] | None = None  # a text in logs of 2024, blocks since
    tool_calls: list[_Call] | None = None
    tool_call: _Call | None = None
    error: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(block.content or "" for block in self.content if block.type == "text")
        return self.content or ""


class _Log(BaseModel):
    suite_name: str
    user_task_id: str
    messages: list[_Message]
    pipeline_name: str | None = None
    injection_task_id: str | None = None
    attack_type: str | None = None
    error: str | None = None
    utility: bool | None = None
    security: bool | None = None
    injections: dict[str, str] = {}
    benchmark_version: str | None = None
    duration: float | None = None


def case(log: Any, where: str) -> Case:
    """The trajectory of one log and its scores. Raises InterchangeError if it is none."""
    read = checked(_Log, log, where)
    prompt, messages = split_prompt([_message(message) for message in read.messages])
    error = read.error or ("" if read.utility is not None else "the log has no result: its run was cut off")
    named = task(read.suite_name, read.user_task_id, read.injection_task_id, read.attack_type, prompt)
    trajectory = Trajectory(
        task=named,
        prompt=prompt,
        messages=messages,
        calls=tuple(_executed(message) for message in read.messages if message.role == "tool"),
        outcome=None if error else outcome(named, read.utility, read.security, tuple(read.injections.values())),
        stop="error" if error else stop_of(messages),
        error=error,
        stage="collect",
        policy=read.pipeline_name or "",
        data={"agentdojo": read.model_dump(include={"benchmark_version", "duration"}, exclude_none=True)},
    )
    return scored(trajectory, {})


def task(suite: str, user: str, injection: str | None, attack: str | None, prompt: tuple[Message, ...]) -> Task:
    """The task of our `agentdojo` suites that a log belongs to."""
    attack = attack if attack not in ("", "none") else None
    dos = attack is not None and attack.endswith("dos")  # its log names an injection task, which plays no part
    parts = [user, None if dos else injection, attack]
    return Task(
        id="/".join(part for part in parts if part),
        suite=f"agentdojo/{suite}",
        kind="attacked" if attack else "harmful" if user.startswith("injection_task") else "benign",
        messages=prompt,
        cluster=user,
        tags=(f"attack:{attack}",) if attack else (),
    )


def outcome(task: Task, utility: bool | None, security: bool | None, injected: tuple[str, ...] = ()) -> Outcome:
    """The facts of a log. An injection task that was run as a request has its goal's success as `utility`."""
    if task.kind == "harmful":
        return Outcome(harm=float(bool(utility)))
    attacked = security if task.kind == "attacked" else None
    return Outcome(utility=float(bool(utility)), attacked=attacked, injected=injected)


def _message(message: _Message) -> Message:
    if message.role == "assistant":
        return call_message(message.text, [(call.function, call.args) for call in message.tool_calls or ()])
    if message.role == "tool":
        name = message.tool_call.function if message.tool_call else ""
        return {"role": "tool", "name": name, "content": message.error or message.text}
    return {"role": message.role, "content": message.text}


def _executed(message: _Message) -> ToolCall:
    call = message.tool_call or _Call(function="")
    fault = ""
    if message.error:
        unfit = message.error.startswith(("ValidationError", "Invalid tool", "Empty function"))
        fault = "arguments" if unfit else "raised"
    return ToolCall(call.function, call.args, message.error or message.text, fault)
