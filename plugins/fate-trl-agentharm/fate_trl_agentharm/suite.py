"""AgentHarm as a fate-trl suite: the published cases, each with exactly its own tools."""

from __future__ import annotations

import importlib.metadata
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from inspect_evals.agentharm.benchmark import benign_grading_functions, harmful_grading_functions
from inspect_evals.agentharm.prompts import get_system_prompt

from fate_trl import PASS_AT, Script, SuiteError, Task, stable_hash

from .data import CLAUSE, REVISION, Row, Side, Split
from .episode import AgentHarmEpisode
from .grading import GradingFunction
from .judge import Judge
from .search import Found, search
from .tools import Toolbox

REFUSAL = "I can't help with that."


class AgentHarmSuite:
    """One side of AgentHarm; see the factory for the arguments.

    Args:
        judge: Decides what grading functions leave to a model; None: see `AgentHarmEpisode.outcome`.
    """

    def __init__(
        self,
        side: Side,
        splits: Mapping[Split, Sequence[Row]],
        *,
        detailed: bool | None = None,
        hint: bool | None = None,
        train_on: Literal["validation"] | None = None,
        judge: Judge | None = None,
        system: str | None = None,
    ):
        self.side, self._judge, self._train_on = side, judge, train_on
        self._toolbox = Toolbox(side)
        self._grading = harmful_grading_functions if side == "harmful" else benign_grading_functions
        self._system = get_system_prompt("default", "standard") if system is None else system
        kept = {split: [row for row in rows if _wanted(row, detailed, hint)] for split, rows in splits.items()}
        self._rows = {f"{split}/{row.id}": (split, row) for split, rows in kept.items() for row in rows}
        for _, row in self._rows.values():
            self._check(row)
        self._found: Callable[[str, tuple[str, ...]], Found] = cache(self._search)

    def _check(self, row: Row) -> None:
        missing = [name for name in row.target_functions if name not in self._toolbox.prototypes]
        if missing:
            raise SuiteError(f"agentharm/{self.side}: case {row.id!r} names the tool {missing[0]!r}, {self._unknown()}")
        if not row.grading_function.startswith("grade_") or not hasattr(self._grading, row.grading_function):
            raise SuiteError(
                f"agentharm/{self.side}: case {row.id!r} names the grading function {row.grading_function!r}, "
                f"{self._unknown()}"
            )

    def _unknown(self) -> str:
        version = importlib.metadata.version("inspect-evals")
        return f"which inspect-evals {version} does not have on this side; use the data of revision {REVISION[:12]}."

    # -------------------------------------------------------------------------------------------- tasks

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Tasks of "train" (none, unless the recipe says so), "validation" or "test", in an order drawn by `seed`."""
        if split not in ("train", "validation", "test", "all"):
            raise SuiteError(f"agentharm/{self.side} has no split {split!r}; it has train, validation, test and all")
        tasks = [self._task(identity) for identity in self._rows]
        tasks = [task for task in tasks if split in (task.split, "all")]
        random.Random(stable_hash("agentharm", self.side, split, seed)).shuffle(tasks)
        yield from tasks

    def _task(self, identity: str) -> Task:
        split, row = self._rows[identity]
        system = [{"role": "system", "content": self._system}] if self._system else []
        style = ["detailed"] if row.detailed_prompt else []
        hint = ["hint"] if row.hint_included else []
        return Task(
            id=identity,
            suite=f"agentharm/{self.side}",
            kind=self.side,
            messages=(*system, {"role": "user", "content": row.prompt}),
            tools=tuple(dict.fromkeys(row.target_functions)),
            cluster=row.grading_function,  # each behaviour has one of its own, and its four variants share it
            split="train" if split == self._train_on else split,
            tags=(f"category:{row.category}", *style, *hint),
        )

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        return self._toolbox.prototypes

    def open(self, task: Task) -> AgentHarmEpisode:
        """A fresh episode. Raises SuiteError if the task is not one of this suite's."""
        row = self._row(task)
        return AgentHarmEpisode(self.side, row, self._toolbox, self._function(row.grading_function), self._judge)

    def _row(self, task: Task) -> Row:
        if task.id not in self._rows:
            raise SuiteError(f"agentharm/{self.side} has no task {task.id!r}")
        return self._rows[task.id][1]

    def _function(self, name: str) -> GradingFunction:
        function: GradingFunction = getattr(self._grading, name)
        return function

    # -------------------------------------------------------------------------------------------- scripts

    def script(self, task: Task, role: Literal["oracle", "obey"]) -> Script | None:
        """Calls that `search` finds; an oracle refuses harmful requests. None where they are not credited enough.

        AgentHarm publishes no solutions. A benign task has an oracle if the calls pass without a judge's help.
        """
        if self.side == "harmful" and role == "oracle":
            return Script(answer=REFUSAL)
        row = self._row(task)
        found = self._found(row.grading_function, tuple(row.target_functions))
        if self.side == "benign" and found.low < PASS_AT["utility"]:
            return None
        return found.script

    def _search(self, function: str, targets: tuple[str, ...]) -> Found:
        row = next(r for _, r in self._rows.values() if r.grading_function == function)
        return search(self._function(function), row, self._toolbox)

    # -------------------------------------------------------------------------------------------- manifest

    def describe(self) -> dict[str, Any]:
        """For the manifest. Holds no prompt."""
        tasks = list(self.tasks("all", 0))
        splits = {split: sum(t.split == split for t in tasks) for split in ("train", "validation", "test")}
        described: dict[str, Any] = {
            "benchmark": "AgentHarm",
            "side": self.side,
            "package": importlib.metadata.version("inspect-evals"),
            "hash": f"{stable_hash(*(row.model_dump() for _, row in self._rows.values())):016x}",
            "licence": f"MIT with the clause: {CLAUSE}",
            "splits": splits,
            "behaviours": len({task.cluster for task in tasks}),
            "judge": self._judge is not None,
        }
        return described if self._train_on else described | {"evaluation_only": _EVALUATION_ONLY}


_EVALUATION_ONLY = (
    f'AgentHarm is for evaluation. Its licence says: "{CLAUSE}" Its authors ask not to train on it. '
    "If your training is such a purpose, say train_on: validation in the suite's arguments; "
    "the test split is never trained on"
)


def _wanted(row: Row, detailed: bool | None, hint: bool | None) -> bool:
    return detailed in (None, row.detailed_prompt) and hint in (None, row.hint_included)
