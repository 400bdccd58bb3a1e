"""Checkpoints of a training stage: asked for where they resume exactly, and found again when they are complete."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..ledger.writing import RunDirectory, flush
from ..process.stop import Stop
from ..process.team import Team

CHECKPOINT_SECONDS = 300.0
"""Training time that an interruption may cost (ours); a stage that is shorter writes no checkpoint."""

_CONTENTS = "contents.json"


def last_checkpoint(scratch: str, processes: int = 1) -> str | None:
    """The newest complete checkpoint in a folder; those that are not, since the process died, are removed.

    So are those of another number of processes: the batches that follow would be others.
    """
    complete: dict[int, Path] = {}
    for folder in Path(scratch).glob("checkpoint-*"):
        try:
            sizes = json.loads((folder / _CONTENTS).read_text(encoding="utf-8"))
            whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
            if whole and sum(name.startswith("rng_state") for name in sizes) == processes:
                complete[int(folder.name.rpartition("-")[2])] = folder
                continue
        except (OSError, ValueError):
            pass
        shutil.rmtree(folder)
    return str(complete[max(complete)]) if complete else None


class Checkpoints(TrainerCallback):
    """Asks the trainer for a checkpoint where it can resume exactly, and to end there if a stop was asked for.

    Every `save_steps` where the recipe sets that. Otherwise when the training has gone on for CHECKPOINT_SECONDS, and
    for 50 times what the last checkpoint took: at most 2 % of the time goes into them.

    Args:
        exact: Whether a checkpoint after this step would resume exactly.
        timed: The recipe sets no `save_steps`.
        stop: Whether a stop was asked for.
        team: Its main process decides.
    """

    def __init__(self, exact: Callable[[], bool], timed: bool, stop: Stop, team: Team):
        self.exact = exact
        self.timed = timed
        self.stop = stop
        self.team = team
        self.saving = False
        """Whether a checkpoint is being written."""
        self._step = 0
        self._asked = self._saved = time.monotonic()
        self._pause = CHECKPOINT_SECONDS

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._asked = time.monotonic()
        if state.global_step >= state.max_steps or not self.exact():
            return
        if self.timed:
            due = self._asked - self._saved >= self._pause
        else:
            due = state.global_step - self._step >= state.save_steps
        due, stop = self.team.agreed((due, self.stop.asked is not None))
        control.should_save = self.saving = due or stop
        control.should_training_stop |= stop

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All files are there: note them, which makes the checkpoint a complete one."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.team.wait()
        if self.team.leads:
            flush(folder)
            files = [file for file in folder.rglob("*") if file.is_file()]
            sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
            RunDirectory(folder).write_json(_CONTENTS, sizes)
        self.saving = False
        self._step, self._saved = state.global_step, time.monotonic()
        self._pause = max(CHECKPOINT_SECONDS, 50 * (self._saved - self._asked))


def output_of(scratch: str | None) -> dict[str, Any]:
    """Where a trainer writes its checkpoints, as a setting."""
    return {} if scratch is None else {"output_dir": scratch}
