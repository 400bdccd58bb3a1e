"""One run on several processes: the main one leads, the others follow.

`accelerate launch` and torchrun start the same command several times. Only the main process runs the rounds: it alone
has the lock, the ledger, the verifiers of rollouts, the reporter and the stop signals. The others load the same recipe
and wait. What needs the model they do together: the main process says which of the learner's verbs it calls, and with
what; within it rollouts are shared out, and TRL's trainers train as they do on several processes anyway.

What is said goes through a group of its own over gloo: so a judge that takes an hour is no time-out of the trainers'
group, and a process whose main process has died notices.
"""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from functools import partial
from typing import Any

from ..errors import FateError

LONGEST_WAIT = timedelta(days=30)
"""How long a process waits for the next call."""


def rank() -> int:
    """Number of this process, as its launcher has set it; 0 is the main one."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """Number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def require_one(what: str) -> None:
    """Raise FateError where several processes were started for something that only one can do."""
    if count() > 1:
        raise FateError(f"{what} runs in one process, and {count()} were started; start it without a launcher.")


class Deserted(FateError):
    """The main process has ended without a word; it has said why."""


class Team:
    """The processes of a run, as one of them sees them. Making a team waits until all processes are there."""

    def __init__(self) -> None:
        self.size, self.leads = count(), rank() == 0
        if self.size > 1:
            import torch
            from accelerate import PartialState

            state = PartialState(cpu=not torch.cuda.is_available())  # as the trainers will make it
            if state.num_processes != self.size:
                raise FateError(f"{self.size} processes were started, and accelerate sees {state.num_processes}.")
            self._group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def agreed(self, value: Any = None) -> Any:
        """The main process's value, on every process. Every process must call it."""
        if self.size == 1:
            return value
        import torch

        said = [value]
        try:
            torch.distributed.broadcast_object_list(said, src=0, group=self._group)
        except RuntimeError as error:
            raise Deserted(f"the main process is gone: {error}") from None
        return said[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            import torch

            torch.distributed.barrier(group=self._group)

    def close(self) -> None:
        """Leave the group. Every process must call it."""
        if self.size > 1:
            import torch

            torch.distributed.destroy_process_group()


class Led:
    """Stands for the main process's learner: a verb that needs all processes is called on every process's learner."""

    def __init__(self, learner: Any, team: Team):
        self._learner, self._team = learner, team
        self._together_now = False
        atexit.register(self._dismiss)

    def __getattr__(self, name: str) -> Any:
        from ..types import TRAINING  # here, as a command that runs nothing needs no records

        needs_all = name in ("rollout", *TRAINING, "load")
        return partial(self._together, name) if needs_all else getattr(self._learner, name)

    def _together(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        self._team.agreed((verb, args, kwargs))
        self._together_now = True
        done = getattr(self._learner, verb)(*args, **kwargs)
        self._together_now = False
        return done

    def _dismiss(self) -> None:
        """Tell the others to end. Those within a verb cannot hear it; they notice when this process is gone."""
        if not self._together_now:
            self._team.agreed(None)
            self._team.close()


def follow(learner: Any, team: Team) -> None:
    """Do what the main process says, until it has nothing more to say."""
    while (said := team.agreed()) is not None:
        verb, args, kwargs = said
        getattr(learner, verb)(*args, **kwargs)
    team.close()
