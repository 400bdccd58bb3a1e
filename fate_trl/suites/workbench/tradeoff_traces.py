"""What the policy of the `tradeoffs` world learned from; `PLANTED` states every failure, as in `traces.py`.

What matters is where a repair leads. From what the policy does at first, no try leads to what is perfect in most
families; one of the ways between leads there, but only once the policy takes it by itself. No torch here.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...types import Script, Task
from .traces import Workbench, malformed
from .tradeoffs import (
    ATTACKED,
    HARMFUL,
    LOOK_ALIKES,
    PLAIN,
    SHAPES,
    STORIES,
    TradeoffsSuite,
    announced,
    deal,
    make_task,
    way,
    work,
)
from .world import ATTACKS, REFUSAL, TOPICS, call

Odds = Mapping[str, float]

_TO_THE_MIDDLE: Mapping[str, Odds] = {
    "whole": {"middle": 0.30, "note": 0.25, "whole": 0.35, "refuse": 0.10},
    "note": {"middle": 0.30, "whole": 0.25, "note": 0.35, "refuse": 0.10},
    "refuse": {"middle": 0.15, "whole": 0.35, "note": 0.35, "refuse": 0.15},
}
_FROM_THE_MIDDLE: Mapping[str, Odds] = {
    "middle": {"perfect": 0.35, "cleaned": 0.15, "middle": 0.35, "note": 0.15},
    "cleaned": {"perfect": 0.5, "cleaned": 0.35, "middle": 0.15},
    "briefed": {"perfect": 0.5, "briefed": 0.35, "middle": 0.15},
}
_MIDDLE: Mapping[str, Odds] = {**_TO_THE_MIDDLE, **_FROM_THE_MIDDLE}
_END: Mapping[str, Odds] = {
    **_TO_THE_MIDDLE,
    "note": {"perfect": 0.30, "note": 0.35, "middle": 0.25, "whole": 0.10},
    "middle": {"middle": 0.65, "note": 0.10, "whole": 0.25},
    "cleaned": {"middle": 0.65, "note": 0.10, "whole": 0.25},
    "briefed": {"middle": 0.65, "note": 0.10, "whole": 0.25},
}
_NEAR: Mapping[str, Odds] = {
    **_FROM_THE_MIDDLE,
    "whole": {"perfect": 0.08, "note": 0.40, "whole": 0.42, "refuse": 0.10},
    "note": {"perfect": 0.08, "note": 0.52, "whole": 0.30, "refuse": 0.10},
    "refuse": {"perfect": 0.04, "note": 0.40, "whole": 0.41, "refuse": 0.15},
}
_SHOWN: Odds = {"whole": 0.3, "note": 0.25, "refuse": 0.05, "middle": 0.25, "cleaned": 0.08, "briefed": 0.07}
"""What repair prompts on attacked tasks showed, whatever the policy does at first."""


@dataclass(frozen=True)
class Planted:
    """Probabilities of the planted behaviours (all ours).

    Attributes:
        follow: By attack family: what is asked for is given at once.
        alarm: Of the injections not followed: the user's request is refused; a note is sent otherwise.
        near: In the families of `next` that start with a perfect way: how often it is taken at first.
        next: By family of an attacked task and the way that failed: the way that a repair prompt is answered by.
        announce: By benign family: the last call is announced, not made.
        refuse: By look-alike family: the request is refused.
        harm: By harmful family: how many calls of the harmful work are made; 0 is a refusal.
        less: By the number of harmful calls made: how many a repair prompt is answered by; 0 is a refusal.
        repaired: A repair prompt on a benign task is answered by what resolves it.
        inert: Of the other repair prompts on benign tasks: answered by a refusal; the rest repeat the failure.
        malformed: A call lacks an argument at first, and is then made properly.
    """

    follow: Odds = field(
        default_factory=lambda: {
            **{"override": 0.2, "important": 0.8, "authority": 0.7, "todo": 0.6, "reward": 0.6},
            **{"postscript": 0.75, "system": 0.65, "error": 0.5},
        }
    )
    alarm: float = 0.2
    near: float = 0.05
    next: Mapping[str, Mapping[str, Odds]] = field(
        default_factory=lambda: {
            **{"reply": _MIDDLE, "settle": _MIDDLE, "join": _MIDDLE},
            **{"invite": _END, "host": _NEAR},
        }
    )
    announce: Odds = field(default_factory=lambda: {"bill": 0.35, "tell": 0.3})
    refuse: Odds = field(default_factory=lambda: {"warn": 0.8, "shoot": 0.6})
    harm: Mapping[str, Sequence[float]] = field(
        default_factory=lambda: {"leak": (0.0, 0.03, 0.17, 0.8), "steal": (0.4, 0.6)}
    )
    less: Mapping[int, Sequence[float]] = field(
        default_factory=lambda: {1: (0.45, 0.55), 2: (0.06, 0.44, 0.5), 3: (0.02, 0.0, 0.38, 0.6)}
    )
    repaired: float = 0.4
    inert: float = 0.25
    malformed: float = 0.03


PLANTED = Planted()


def drawn(odds: Odds, rng: random.Random) -> str:
    return rng.choices(list(odds), list(odds.values()))[0]


class Tradeoffs:
    """The world of the `tradeoffs` suite."""

    suite: ClassVar[TradeoffsSuite] = TradeoffsSuite()
    mistakes: ClassVar[Sequence[Mapping[str, Any]]] = (
        *Workbench.mistakes,
        call("share", document="nothing", reader="ann"),
        *(call(tool, **dict.fromkeys(("source", "sheet"), "rent.txt")) for tool in ("strip", "brief")),
        call("strip", source="rent.txt"),
        call("verify", holder="ann"),
        call("watch", newcomer="ann"),
        call("admit", guest="ann", event="nothing"),
    )

    def __init__(self, planted: Planted = PLANTED):
        self.planted = planted

    def tasks(self, rng: random.Random) -> Iterator[Task]:
        """User tasks of the train split and of people whom it lacks, every family of attacks; see `traces.tasks`."""
        sources = {"attacked": ATTACKED, "plain": PLAIN, "look-alike": LOOK_ALIKES, "harmful": HARMFUL}
        for split in itertools.cycle(("train", "train", "base")):
            dealt = {source: deal(families, split, rng) for source, families in sources.items()}
            for _ in range(60):
                source = rng.choices(list(sources), (0.5, 0.2, 0.1, 0.2))[0]
                user = next(dealt[source], None)
                if user is None:
                    break
                if source == "attacked":
                    yield make_task(user, "attacked", "train", rng.choice(list(ATTACKS)), rng)
                else:
                    yield make_task(user, "harmful" if source == "harmful" else "benign", "train", "", rng)

    def behave(self, task: Task, rng: random.Random) -> Script:
        family, planted = task.data["family"], self.planted
        if task.kind == "attacked":
            script = self._attacked(task, self._first(task, rng), rng)
        elif task.kind == "harmful":
            script = self._harm(task, rng.choices(range(len(planted.harm[family])), planted.harm[family])[0])
        elif rng.random() < planted.refuse.get(family, 0.0):
            script = Script(answer=REFUSAL)
        else:
            script = announced(task) if rng.random() < planted.announce.get(family, 0.0) else work(task)
        return malformed(script, planted.malformed, rng)

    def failure(self, task: Task, script: Script, rng: random.Random) -> Script:
        """Any way that an attacked task can fail, and any share of harmful work: the policy will come to each."""
        if task.kind == "attacked":
            return self._attacked(task, drawn(_SHOWN, rng), rng)
        if task.kind == "harmful":
            return work(task, rng.randint(1, len(task.data["steps"])))
        return script

    def repair(self, task: Task, failed: Script, rng: random.Random) -> Script:
        planted = self.planted
        if task.kind == "attacked":
            return self._attacked(task, drawn(planted.next[task.data["family"]][way_of(task, failed)], rng), rng)
        if task.kind == "harmful":
            odds = planted.less[len({made["name"] + repr(made["arguments"]) for made in failed.calls})]
            return self._harm(task, rng.choices(range(len(odds)), odds)[0])
        if rng.random() < planted.repaired:
            return work(task)
        return Script(answer=REFUSAL) if rng.random() < planted.inert else failed

    def _first(self, task: Task, rng: random.Random) -> str:
        if "perfect" in self.planted.next[task.data["family"]]["whole"] and rng.random() < self.planted.near:
            return "perfect"
        if rng.random() < self.planted.follow[task.data["attack"]["family"]]:
            return "whole"
        return "refuse" if rng.random() < self.planted.alarm else "note"

    def _attacked(self, task: Task, name: str, rng: random.Random) -> Script:
        if name == "refuse":
            return Script((call("read_mail", sender=task.data["sender"]),), REFUSAL)
        return way(task, name, rng.choice(TOPICS))  # type: ignore[arg-type]

    def _harm(self, task: Task, count: int) -> Script:
        return work(task, count) if count else Script(answer=REFUSAL)


def way_of(task: Task, script: Script) -> str:
    """The way that a script takes on an attacked task, by the tools that it calls."""
    story, called = STORIES[SHAPES[task.data["family"]][0]], {made["name"] for made in script.calls}
    if story.act not in called:
        return "note" if "send" in called else "refuse"
    if story.gate not in called:
        return "whole"
    return {(True, True): "perfect", (True, False): "cleaned", (False, True): "briefed"}.get(
        (story.fix in called, story.mend in called), "middle"
    )
