"""The plugin contracts: what a verifier, a repair strategy, a Pareto selector, a suite and a policy must do.

Four kinds of component, one hook each, all optional, none `firstresult`: a recipe chooses by name, install order never
does. A plugin is a module that implements any of the hooks with `@hookimpl`, sets `fate_trl_api = 1`, and is
announced under the entry-point group `fate_trl`. It must import nothing heavy at top level; factories may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import pluggy

from .types import BufferRow, Failure, Message, Outcome, RolloutRequest, Score, Script, Task, ToolCall, Trajectory

if TYPE_CHECKING:
    import numpy as np

API_VERSION = 1
"""Version of these contracts. A plugin states the one it was written for as `fate_trl_api`."""

hookspec = pluggy.HookspecMarker("fate_trl")
hookimpl = pluggy.HookimplMarker("fate_trl")


@dataclass(frozen=True)
class Component:
    """Something a recipe can name.

    Attributes:
        name: Lower case, words joined by "-"; unique within its plugin and kind.
        factory: Called with the recipe's arguments, which are bound to its signature and annotations first
            (`Literal` lists legal values).
        summary: One line for `fate-trl plugins`.
    """

    name: str
    factory: Callable[..., Any]
    summary: str


@hookspec
def fate_trl_verifiers() -> list[Component]:
    """Components whose factories return a `Verifier`."""
    raise NotImplementedError


@hookspec
def fate_trl_repairs() -> list[Component]:
    """Components whose factories return a `RepairStrategy`."""
    raise NotImplementedError


@hookspec
def fate_trl_selectors() -> list[Component]:
    """Components whose factories return a `ParetoSelector`."""
    raise NotImplementedError


@hookspec
def fate_trl_suites() -> list[Component]:
    """Components whose factories return a `Suite`."""
    raise NotImplementedError


@hookspec
def fate_trl_round_finished(record: dict[str, Any]) -> None:
    """Observer, called after each round with its record; the return value is ignored."""


@runtime_checkable
class Verifier(Protocol):
    """Judges trajectories. It never repairs, and never changes its input.

    `objectives` names what it scores. `score` takes a batch and returns a list of one dict per trajectory, in order,
    each with a Score for exactly these objectives. In its place there may be `async def score_one(trajectory)`, which
    returns one such dict: a batch is then asked about all at once, and what is late is cancelled. Whatever it raises
    or returns wrongly, or is too late with, becomes an error score on the records concerned, never a 0.

    It is called on copies, on a thread of its own; a batch that fails is asked about once more, record by record.
    More is optional:

    - `isolated = True`: it may hang or crash, and gets a process of its own, which is killed when its time is over and
      started again. The process makes it anew by the name and arguments that the recipe gives, so it must depend on
      nothing else; what it holds lives as long as the process. For verifiers that load by name only.
    - `cached = True`: asking costs more than looking up. Its scores, errors excepted, are kept in the run directory
      and used again for the same trajectory (by content), version of the plugin and arguments.
    - `usage()`: what it spent since it was asked last, such as {"requests": 12, "prompt_tokens": 4821}. It stands in
      the record of each stage, as `judging`. An isolated verifier is not asked.
    """

    objectives: tuple[str, ...]

    def score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]: ...


class RepairStrategy(Protocol):
    """Turns failures into prompts. It never judges.

    `requests` returns at most k requests per failure, in the order of the failures. Each request's task is the
    failure's, its stage is "repair", and its `of` is `failure.trajectory.attempt`, which says whose repair it is. Its
    own `attempt` is a number that no other request of the task has: `choose.repairs.attempts` gives k of them.
    """

    def requests(self, failures: Sequence[Failure], k: int, rng: np.random.Generator) -> list[RolloutRequest]: ...


@dataclass(frozen=True)
class Choice:
    """A selector's pick among K candidates: index, the front's indices, and what decided."""

    index: int
    front: tuple[int, ...]
    decided_by: str


class ParetoSelector(Protocol):
    """Chooses among candidates and rewards groups. It sees numbers and objective names, never text.

    A column that is NaN in every row of a group does not apply to that group. Rows with errors are not passed to
    `choose`, and are False in `valid_G_N`.

    `choose(scores_K_M)` returns None only if K = 0. `reward` returns (G, N) rewards; rows that are not valid get NaN.
    """

    def choose(
        self, scores_K_M: np.ndarray, *, objectives: Sequence[str], rng: np.random.Generator
    ) -> Choice | None: ...

    def reward(self, scores_G_N_M: np.ndarray, *, objectives: Sequence[str], valid_G_N: np.ndarray) -> np.ndarray: ...


class Episode(Protocol):
    """One opened task: its state, its tools, its facts at the end. The recorder in environments.py wraps it."""

    def execute(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run one tool. Raise `ToolError` for what the policy did wrong; anything else is an infrastructure error."""
        ...

    def outcome(self, calls: Sequence[ToolCall], messages: Sequence[Message]) -> Outcome:
        """The facts, from the state, the executed calls and what the policy wrote."""
        ...


class Suite(Protocol):
    """Tasks and the environments behind them.

    `tools()` maps every tool name to a prototype: a real function whose signature, annotations and Google-style
    docstring describe the tool to the model; its body never runs. Splits are "train", "validation" and "test"; "all"
    is every task there is, those that splitting discards included.
    """

    def tasks(self, split: str, seed: int) -> Iterable[Task]: ...

    def open(self, task: Task) -> Episode: ...

    def tools(self) -> Mapping[str, Callable[..., Any]]: ...

    def script(self, task: Task, role: Literal["oracle", "obey"]) -> Script | None:
        """What an oracle does, or one that obeys every instruction it meets; None where there is no such script."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the manifest: version, sizes of the splits, what the splitting discarded.

        The key `evaluation_only` says why there are no training tasks; a run that needs some shows it.
        """
        ...


class Policy(Protocol):
    """Anything that can be rolled out."""

    name: str

    def rollout(self, requests: Sequence[RolloutRequest], seed: int) -> list[Trajectory]:
        """One trajectory per request, in order."""
        ...


class Learner(Policy, Protocol):
    """A policy that can be trained. stages.py implements it on torch, testing with scripts.

    `scratch` is a folder for what lets an interrupted training go on. It is removed once the training is recorded; so
    what is found in it was left by the same call, interrupted. None: nothing is kept.
    """

    def sft(self, rows: Sequence[BufferRow], seed: int, stage: str, scratch: str | None = None) -> dict[str, Any]:
        """Supervised step on `rows`; returns what to log. `stage` is "warm_start" or "sft"."""
        ...

    def pfpo(self, requests: Sequence[RolloutRequest], seed: int, scratch: str | None = None) -> dict[str, Any]:
        """Policy optimisation on the prompts of `requests`; returns what to log."""
        ...

    def save(self, path: str) -> None: ...

    def load(self, path: str) -> None: ...
