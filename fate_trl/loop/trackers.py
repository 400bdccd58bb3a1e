"""One run and one axis of steps over all rounds and stages, in the trackers that TRL's `report_to` names.

Each of TRL's trainers would open a run of its own and count its steps from 0. So they report to nobody, and this
reporter drives one set of transformers' own tracker callbacks, with a step that goes on from stage to stage: the
number of training steps done since the run began. What a trainer logs goes there as it comes; what a stage counts, its
metrics if it was an evaluation, and a table of sample repairs, when it is finished, at the step where it was. A run
that is resumed goes on in the same run of the tracker.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..ledger.layout import file_of
from ..ledger.reading import RunReader
from ..ledger.writing import RunDirectory
from ..messages import text_of, visible
from ..metrics import summarize
from ..recipe.schema import Recipe
from ..record import stable_hash
from ..types import Case, Trajectory
from .reporter import Reporter
from .traces import sampled, trace_of

SAMPLES = 8
"""Rows of the table of repairs (ours): enough to see of what kind they are."""

_LONGEST = 1000  # characters of a message in a table
_COLUMNS = ("task", "kind", "failed", "asked", "failed answer", "chosen answer", "decided by")


class Tracking:
    """A `Reporter` that keeps what it is told in the recipe's trackers, and passes it on.

    Args:
        recipe: Its `report_to`; the trackers show all of it as the run's configuration.
        run: Where the run is recorded: its folder's name is the tracker's name for the run, TensorBoard's and wandb's
            files go into it, and sample repairs are read from it. Variables of the environment that a tracker has of
            its own (such as WANDB_MODE, WANDB_PROJECT, TENSORBOARD_LOGGING_DIR, TRACKIO_DIR) go before.
        shown: Told everything too.
    """

    def __init__(self, recipe: Recipe, run: RunDirectory, shown: Reporter):
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from transformers.integrations import get_reporting_integration_callbacks

        self.run, self.shown = run, shown
        folder = run.path.resolve()
        for variable, value in {
            "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
            "WANDB_DIR": str(folder),
            "WANDB_PROJECT": "fate-trl",
            "WANDB_RUN_ID": f"{stable_hash(str(folder)):016x}",  # a resumed run goes on in it
            "WANDB_RESUME": "allow",
        }.items():
            os.environ.setdefault(variable, value)
        values = recipe.model_dump(mode="json")

        class Arguments(TrainingArguments):
            def to_dict(self) -> dict[str, Any]:  # the recipe, and not the defaults of a trainer that there is not
                return values

        self._arguments = Arguments(
            output_dir=str(folder), run_name=folder.name, project="fate-trl", report_to="none", use_cpu=True
        )
        made = zip(recipe.report_to, get_reporting_integration_callbacks(list(recipe.report_to)), strict=True)
        self._trackers = {name: callback() for name, callback in made}
        self._state, self._control = TrainerState(), TrainerControl()
        self._steps = sum(
            record.get("steps", 0) for number in run.rounds for record in run.read(file_of(number, "stages"))
        )
        self._each(lambda _, tracker: tracker.on_train_begin(self._arguments, self._state, self._control))

    def close(self) -> None:
        """Tell the trackers that nothing more comes in this process."""
        self._each(lambda _, tracker: tracker.on_train_end(self._arguments, self._state, self._control))

    def _each(self, tell: Callable[[str, Any], Any]) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for our own results
            for name, tracker in self._trackers.items():
                tell(name, tracker)

    def _log(self, values: Mapping[str, Any], done: int = 0) -> None:
        self._state.global_step = self._steps + done
        args = (self._arguments, self._state, self._control)
        self._each(lambda _, tracker: tracker.on_log(*args, logs=dict(values)))

    # -------------------------------------------------------------------------------------------- Reporter

    def start(self, round: int, stage: str, total: int) -> None:
        self.shown.start(round, stage, total)
        self._stage, self._done = stage, 0
        self._cases: list[Case] = []

    def expect(self, total: int) -> None:
        self.shown.expect(total)

    def advance(self, amount: int = 1, cases: Sequence[Case] = (), log: Mapping[str, Any] | None = None) -> None:
        self.shown.advance(amount, cases, log)
        self._cases += cases
        self._done += 0 if cases else amount
        if log:
            self._log(_numbers(self._stage, log), self._done)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.shown.finish(summary)
        self._steps += summary.get("steps", 0)
        self._log({"round": summary["round"], **_numbers(self._stage, summary)})
        if self._stage.startswith("eval-"):
            metrics = summarize(self._cases)["metrics"]
            name = self._stage.replace("-", "_", 1)  # transformers files what begins with "eval_" under "eval/"
            self._log(_numbers(name, {key: metric["value"] for key, metric in metrics.items()}))
        if self._stage == "repair":
            self._tell_repairs(summary["round"])
        elif self._cases:
            self._tell_traces(summary["round"], [(case, {}) for case in sampled(self._cases)])

    # -------------------------------------------------------------------------------------------- samples

    def _tell_repairs(self, round: int) -> None:
        """A table of repairs: what was asked, the failed answer, the chosen one; and both as traces."""
        repairs = _samples(self.run, round)
        if not repairs:
            return
        rows = [_row(*repair) for repair in repairs]
        args = (self._arguments, self._state, self._control)
        self._each(lambda name, tracker: tracker.on_log(*args, logs={"repairs": _table(name, rows)}))
        told: list[tuple[Case, dict[str, Any]]] = []
        for number, (failed, chosen, record) in enumerate(repairs):
            told += [(failed, {"repair": number, "is": "failure"})]
            told += [(chosen, {"repair": number, "is": "chosen", "decided by": record["decided_by"]})]
        self._tell_traces(round, told)

    def _tell_traces(self, round: int, cases: Sequence[tuple[Case, dict[str, Any]]]) -> None:
        """Trajectories as traces, each under a key of its own: trackio's first version of them took no lists."""
        args = (self._arguments, self._state, self._control)
        about = {"round": round, "step": self._state.global_step}
        told = [trace_of(case, **about, **more) for case, more in cases]

        def tell(name: str, tracker: Any) -> None:
            trace = getattr(importlib.import_module(name), "Trace", None) if name == "trackio" else None
            if trace is not None:
                keys = (f"{self._stage}/trace_{number}" for number in range(len(told)))
                tracker.on_log(*args, logs={key: trace(*one) for key, one in zip(keys, told, strict=False)})

        self._each(tell)


def _numbers(stage: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{stage}/{key}": value for key, value in values.items() if isinstance(value, (int, float))}


def _samples(run: RunReader, round: int) -> list[tuple[Case, Case, dict[str, Any]]]:
    """(failure, chosen repair, selection) of the first few repairs of a round."""
    cases = [*run.cases(file_of(round, "rollouts"), "collect"), *run.cases(file_of(round, "repairs"), "repair")]
    by_key = {trajectory.key: (trajectory, card) for trajectory, card in cases}
    made = [record for record in run.read(file_of(round, "selections")) if record["chosen"] is not None]
    return [
        (by_key[tuple(record["failure"])], by_key[tuple(record["candidates"][record["chosen"]])], record)
        for record in made[:SAMPLES]
    ]


def _row(failed: Case, chosen: Case, record: Mapping[str, Any]) -> list[str]:
    """A repair as a row of the table, a text for each of `_COLUMNS`; the texts cannot steer a terminal."""
    task = failed[0].task
    texts = [task.id, task.kind, ", ".join(record["failed"]), text_of(task.messages[-1])]
    texts += [_said(failed[0]), _said(chosen[0]), record["decided_by"]]
    return [visible(text[:_LONGEST]) for text in texts]


def _said(trajectory: Trajectory) -> str:
    """The calls that ran and the answer, a line each."""
    return "\n".join([*(f"{call.name} {call.arguments}" for call in trajectory.calls), trajectory.answer])


def _table(tracker: str, rows: list[list[str]]) -> Any:
    """The rows as a tracker shows tables; TensorBoard, which has none, gets text that its Markdown leaves alone."""
    if tracker == "tensorboard":
        lines = [f"{name}: {cell}" for row in rows for name, cell in zip((*_COLUMNS, ""), (*row, ""), strict=True)]
        return "\n".join(f"    {line}" for text in lines for line in text.split("\n"))
    return importlib.import_module(tracker).Table(columns=list(_COLUMNS), data=rows)
