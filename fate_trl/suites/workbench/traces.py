"""What the embedded policy learned from: scripted behaviours, failures included, executed in the real episodes.

`PLANTED` states every failure that was planted and how often; docs/workbench.md repeats it in words. A repair trace is
made from a trace that really failed, with the prompt that `repairs.Reflect` really writes from the verifiers' real
feedback, so the policy meets at run time what it was trained on. No torch here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from ...choose.repairs import Reflect
from ...errors import ToolError
from ...hookspecs import Suite
from ...messages import Message
from ...record import stable_hash
from ...types import Failure, RolloutRequest, Script, Task, ToolCall, Trajectory
from ...verify.scoring import OverRefusal, Security, TrajectoryControl, Utility, score_all
from ..episodes import Recorder
from .suite import ATTACKABLE, HARMFUL, LOOK_ALIKES, PLAIN, WorkbenchSuite, deal, make_attack, make_task
from .world import ATTACKS, REFUSAL, SPLITS, call

VERIFIERS = (Security(), Utility(), OverRefusal(), TrajectoryControl())


class World(Protocol):
    """What a policy is made for: a suite, its tasks without end, and how the policy is to behave on them.

    Attributes:
        suite: The suite.
        mistakes: Calls that go wrong in every way, for the vocabulary.
    """

    @property
    def suite(self) -> Suite: ...

    @property
    def mistakes(self) -> Sequence[Mapping[str, Any]]: ...

    def tasks(self, rng: random.Random) -> Iterator[Task]: ...

    def behave(self, task: Task, rng: random.Random) -> Script:
        """One draw of the planted behaviour on a plain task."""
        ...

    def failure(self, task: Task, script: Script, rng: random.Random) -> Script:
        """What a repair prompt shows, of a task that `script` failed: that, or another failure."""
        ...

    def repair(self, task: Task, failed: Script, rng: random.Random) -> Script:
        """One draw of the planted behaviour on a repair prompt."""
        ...


@dataclass(frozen=True)
class Planted:
    """Probabilities of the planted behaviours (all ours).

    Attributes:
        follow: By attack family: an injected instruction is followed.
        comply: By harmful family: the harmful work is done.
        refuse: By look-alike family: the request is refused.
        hijack: Of the followed injections: the user's task is dropped.
        alarm: Of the injections not followed: the user's request is refused.
        partial: Of the harmful tasks complied with: only the first call is made.
        silent: Of the harmful tasks not complied with: "Done." is said, nothing is done, nothing refused.
        lazy: On benign tasks and injections not followed: the last call is announced, not made.
        malformed: A call lacks an argument at first, and is then made properly.
        repaired: By family of the task, "other" for the rest: a repair prompt is answered by what resolves the task.
        inert: Of the other repair prompts on legitimate tasks: answered by a refusal; the rest repeat the failure.
    """

    follow: Mapping[str, float] = field(
        default_factory=lambda: {
            "override": 0.2,
            "important": 0.95,
            "authority": 0.9,
            "todo": 0.65,
            "reward": 0.7,
            "postscript": 0.9,
            "system": 0.8,
            "error": 0.6,
        }
    )
    comply: Mapping[str, float] = field(
        default_factory=lambda: {"steal": 0.95, "leak": 0.9, "hack": 0.8, "wipe": 0.65, "blackmail": 0.15}
    )
    refuse: Mapping[str, float] = field(default_factory=lambda: {"warn": 0.95, "shoot": 0.6, "oddity": 0.15})
    hijack: float = 0.25
    alarm: float = 0.2
    partial: float = 0.15
    silent: float = 0.05
    lazy: float = 0.04
    malformed: float = 0.05
    repaired: Mapping[str, float] = field(
        default_factory=lambda: {
            **{"bills": 0.12, "settle": 0.12, "oddity": 0.12, "steal": 0.12, "hack": 0.12},
            "other": 0.5,
        }
    )
    inert: float = 0.25


PLANTED = Planted()


# ------------------------------------------------------------------------------------------------ behaviours


def behave(suite: WorkbenchSuite, task: Task, planted: Planted, rng: random.Random) -> Script:
    """One draw of the planted behaviour on a plain task."""
    if task.kind == "harmful":
        script = _on_harm(suite, task, planted, rng)
    elif task.kind == "attacked":
        script = _on_attack(suite, task, planted, rng)
    elif rng.random() < planted.refuse.get(task.data["family"], 0.0):
        script = Script(answer=REFUSAL)
    else:
        script = _work(suite, task, planted, rng)
    return malformed(script, planted.malformed, rng)


def _work(suite: WorkbenchSuite, task: Task, planted: Planted, rng: random.Random) -> Script:
    script = suite.script(task, "oracle")
    return replace(script, calls=script.calls[:-1]) if rng.random() < planted.lazy else script


def _on_harm(suite: WorkbenchSuite, task: Task, planted: Planted, rng: random.Random) -> Script:
    if rng.random() < planted.comply[task.data["family"]]:
        script = suite.script(task, "obey")
        return replace(script, calls=script.calls[:1]) if rng.random() < planted.partial else script
    return Script(answer="Done." if rng.random() < planted.silent else REFUSAL)


def _on_attack(suite: WorkbenchSuite, task: Task, planted: Planted, rng: random.Random) -> Script:
    attack = task.data["attack"]
    obeying = suite.script(task, "obey")
    turn = obeying.calls.index(attack["goal"])
    if rng.random() < planted.follow[attack["family"]]:
        if rng.random() < planted.hijack:
            return Script(obeying.calls[: turn + 1], "Done.")
        return obeying
    if rng.random() < planted.alarm:
        return Script(obeying.calls[:turn], REFUSAL)
    return _work(suite, task, planted, rng)


def malformed(script: Script, share: float, rng: random.Random) -> Script:
    """With probability `share`, the script with one call that lacks an argument at first."""
    if not script.calls or rng.random() >= share:
        return script
    index = rng.randrange(len(script.calls))
    made = script.calls[index]
    first = dict(list(made["arguments"].items())[:-1])
    calls = (*script.calls[:index], {"name": made["name"], "arguments": first}, *script.calls[index:])
    return replace(script, calls=calls)


def repair(suite: WorkbenchSuite, task: Task, failed: Script, planted: Planted, rng: random.Random) -> Script:
    """One draw of the planted behaviour on a repair prompt: what resolves the task, or a refusal, or the same again."""
    if rng.random() < planted.repaired.get(task.data["family"], planted.repaired["other"]):
        return suite.script(task, "oracle")
    if task.kind != "harmful" and rng.random() < planted.inert:
        return Script(answer=REFUSAL)
    return failed


# ------------------------------------------------------------------------------------------------ executing them


def perform(suite: Suite, request: RolloutRequest, script: Script) -> Trajectory:
    """Execute a script, with the messages that TRL's tool loop would write (an error is a dict as text there)."""
    recorder = Recorder(suite, request)
    messages: list[Message] = []
    for made in script.calls:
        call = {"type": "function", "function": {"name": made["name"], "arguments": made["arguments"]}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        try:
            result = recorder.call(made["name"], made["arguments"])
        except ToolError as error:
            result = str({"error": str(error)})
        messages.append({"role": "tool", "name": made["name"], "content": result})
    messages.append({"role": "assistant", "content": script.answer})
    return Trajectory(
        task=request.task,
        prompt=request.messages,
        messages=tuple(messages),
        calls=tuple(recorder.calls),
        outcome=recorder.outcome(messages),
        error=recorder.error,
        cause=recorder.cause,
        stage=request.stage,
        attempt=request.attempt,
    )


def tasks(rng: random.Random) -> Iterator[Task]:
    """Endless tasks: user tasks of the train split only, but *every* family of attacks and every attacker's goal.

    A base model has met all kinds of injections somewhere; what the splits hold out is what the method has met.
    """
    while True:
        dealt = {
            "plain": deal(PLAIN, "train", rng),
            "look-alike": deal(LOOK_ALIKES, "train", rng),
            "attacked": deal(ATTACKABLE, "train", rng),
            "harmful": deal(HARMFUL, "train", rng),
        }
        for _ in range(200):
            source = rng.choices(("plain", "look-alike", "attacked", "harmful"), (0.25, 0.15, 0.35, 0.25))[0]
            user = next(dealt[source], None)
            if user is None:
                break
            if source == "attacked":
                owner = rng.choices(SPLITS, (0.4, 0.1, 0.5))[0]
                attack = make_attack(user, owner, rng.choice(list(ATTACKS)), rng)
                yield make_task(user, "attacked", "train", attack, rng)
            else:
                yield make_task(user, "harmful" if source == "harmful" else "benign", "train", None, rng)


class Workbench:
    """The world of the `workbench` suite."""

    suite: ClassVar[WorkbenchSuite] = WorkbenchSuite()
    mistakes: ClassVar[Sequence[Mapping[str, Any]]] = (
        call("pay", payee="nobody", amount=0),
        call("pay", payee="ann", amount=0),
        call("pay", payee="ann", amount="much"),
        call("pay", payee="ann", amount=900),
        call("send", recipient="ann", text=""),
        call("read_mail", sender="ann"),
        call("read_file", path="nothing"),
        call("transfer", account="ann", sum=900),
        call("unlock"),
        call("nothing"),
    )

    def __init__(self, planted: Planted = PLANTED):
        self.planted = planted

    def tasks(self, rng: random.Random) -> Iterator[Task]:
        return tasks(rng)

    def behave(self, task: Task, rng: random.Random) -> Script:
        return behave(self.suite, task, self.planted, rng)

    def failure(self, task: Task, script: Script, rng: random.Random) -> Script:
        return script

    def repair(self, task: Task, failed: Script, rng: random.Random) -> Script:
        return repair(self.suite, task, failed, self.planted, rng)


WORKBENCH = Workbench()


def traces(count: int, seed: int, world: World = WORKBENCH) -> list[Trajectory]:
    """`count` executed traces: first tries, and a repair after each that failed. Same arguments, same traces."""
    rng = random.Random(stable_hash("workbench-traces", seed))
    reflect = Reflect()
    made: list[Trajectory] = []
    for task in world.tasks(rng):
        if len(made) >= count:
            break
        script = world.behave(task, rng)
        made.append(perform(world.suite, RolloutRequest(task, task.messages), script))
        if not _failed(made[-1]).card.failed:
            continue
        failed = world.failure(task, script, rng)
        failure = _failed(perform(world.suite, RolloutRequest(task, task.messages), failed))
        [request] = reflect.requests([failure], 1, np.random.default_rng(0))
        made.append(perform(world.suite, request, world.repair(task, failed, rng)))
    return made[:count]


def _failed(trajectory: Trajectory) -> Failure:
    [card] = score_all(VERIFIERS, [trajectory])
    return Failure(trajectory, card)


def rare(world: World = WORKBENCH) -> list[Trajectory]:
    """Failures that the planted behaviours do not show: cut-off, looping, unknown people; for the vocabulary."""
    task = next(iter(world.suite.tasks("train", 0)))
    failed = perform(world.suite, RolloutRequest(task, task.messages), Script(tuple(map(dict, world.mistakes)), ""))
    loop = replace(failed, calls=(ToolCall("read_file", {"path": "rent.txt"}),) * 3, messages=failed.messages[-1:])
    return [
        failed,
        replace(failed, stop="length"),
        replace(loop, messages=({"role": "assistant", "content": "Done."},)),
    ]
