"""The plugin contracts: of verifiers, repair strategies, selectors, suites, pairings, losses, callbacks, budgets,
merges and policies.

There are ten kinds of component, with one optional hook each. No hook is `firstresult`: a recipe chooses by name, and
the order of installation never does. A plugin is a module that implements any of the hooks with `@hookimpl`, sets
`fate_trl_api = 1`, and is announced under the entry-point group `fate_trl`. It imports nothing heavy at its top; its
factories may.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import pluggy

from ..messages import Message
from ..types import (
    BufferRow,
    Case,
    Failure,
    Hindsight,
    Outcome,
    Pair,
    Repair,
    RolloutRequest,
    Score,
    Script,
    Task,
    ToolCall,
    Trajectory,
)
from .batches import PairBatch as PairBatch
from .batches import PairSide as PairSide
from .batches import PolicyBatch as PolicyBatch
from .budgets import Budget as Budget
from .budgets import Item as Item
from .budgets import Spent as Spent
from .merges import Evaluate as Evaluate
from .merges import Merge as Merge

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
def fate_trl_pairings() -> list[Component]:
    """Components whose factories return a `Pairing`."""
    raise NotImplementedError


@hookspec
def fate_trl_pair_losses() -> list[Component]:
    """Components whose factories return a `PairLoss`."""
    raise NotImplementedError


@hookspec
def fate_trl_policy_losses() -> list[Component]:
    """Components whose factories return a `PolicyLoss`."""
    raise NotImplementedError


@hookspec
def fate_trl_callbacks() -> list[Component]:
    """Components whose factories return a `Callback`."""
    raise NotImplementedError


@hookspec
def fate_trl_budgets() -> list[Component]:
    """Components whose factories return a `Budget`."""
    raise NotImplementedError


@hookspec
def fate_trl_merges() -> list[Component]:
    """Components whose factories return a `Merge`."""
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
    - `in_run(run)`: called where it scores for a run, before it is asked, with the run's `RunReader`: so it can
      name policies of that run. It may refuse with a RecipeError. An isolated verifier is not told.
    - `usage()`: what it spent since it was asked last, such as {"requests": 12, "prompt_tokens": 4821}. It stands in
      the record of each stage, as `judging`. An isolated verifier is not asked.
    """

    objectives: tuple[str, ...]

    def score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]: ...


STEPS = 16
"""Steps, at most, in which a repair strategy is asked for one round's failures."""


class RepairStrategy(Protocol):
    """Turns failures into prompts. It never judges.

    `requests` returns at most k requests per failure, in the order of the failures. Each request's task is the
    failure's, its stage is "repair", and its `of` is `failure.trajectory.attempt`, which says whose repair it is. Its
    own `attempt` is a number that no other request of the task has: `fate_trl.attempts` gives k of them.

    Optional: `shows_failure = False` says that its prompts hold no failed attempt to the end.

    There may be

        again(repairs, step, k, rng) -> list[RolloutRequest]

    for one that goes on in steps. It is called once its requests were rolled out and scored, with a `Repair` (failure,
    candidates, their cards, nothing chosen yet) of each failure that has no acceptable candidate so far, and the number
    of the step, from 1; and so on, until it returns nothing, or all failures have one, or after `STEPS` steps. What it
    returns is held to the same rules. Each step's rollouts are committed by themselves, so it must depend on its
    arguments alone.
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

    In the place of `reward` there may be

        advantages(scores_G_N_M, *, objectives, valid_G_N[, rows]) -> (G, N) or (G, N, T)

    whose values are trained on as they are: TRL neither centres nor scales them. They are finite in valid rows; what it
    says of others counts as 0. `rows`, a `Rows`, is passed where the signature has it; T is the width of its
    `turn_G_N_T`. Any other shape is a PluginError. `reward` and `advantages` change nothing in the selector.

    More is optional:

    - `learn(scores_G_N_M, *, objectives, valid_G_N[, rows])`: called once per generation of the training, after
      `advantages` or `reward` of it; not for groups that a re-draw brings, nor in evaluation. What it changes belongs
      into `state_dict()`; see `Stateful`. All processes learn from the same matrix, so they stay alike.
    - `needs`: names of objectives without which it cannot work; checked before a model loads.
    - `reads_weights = True`: it works on prompts that carry weights, so the recipe has `prompt_weights`.
    - `whole_batch = True`: what a group gets depends on the others of its batch. `redraw_rounds` is then refused.
    - `orders = False`: within a group, a row that dominates another may get less, as where calls or tokens count too.
    - `reads_tokens = True`: `rows` has the tokens, for a component with a model of its own.
    - `greedy_row = True`: in training the first row of each group is the policy's greedy answer, to compare with. It is
      scored as the others are, and out for losses and callbacks, whatever it gets here.
    """

    def choose(
        self, scores_K_M: np.ndarray, *, objectives: Sequence[str], rng: np.random.Generator
    ) -> Choice | None: ...

    def reward(self, scores_G_N_M: np.ndarray, *, objectives: Sequence[str], valid_G_N: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Rows:
    """Facts about the rows of a generation, over all processes: G groups of N rows, T tokens of the longest completion.

    A call's turn is the number, from 0, of the policy's message that made it. Objects are arrays of dtype object.

    Attributes:
        task_G_N: "suite/id" of its task, or "/id" without a suite; strings.
        kind_G_N: Kind of its task; strings.
        attempt_G_N: Number of the try; integers.
        resolved_G_N: It is valid, some objective applies, and each that does is at its pass mark or above; booleans.
        stop_G_N: Why it ended: "answer", "length", "calls" or "error"; strings.
        calls_G_N: Names of the executed calls, in order, replayed ones first; tuples of strings.
        call_turns_G_N: The turn of each of them, -1 for a replayed one; tuples of integers.
        path_G_N: For each of them a hash of all calls up to it, arguments included: two rows of a task that begin alike
            have equal beginnings; tuples of integers.
        prefix_G_N: How many calls were replayed before the policy went on; integers.
        spread_G_N_M: `Score.spread`; NaN where there is none.
        turn_G_N_T: The turn of each token of the completion, -1 where the policy wrote nothing; integers.
        weights_G_N_M: What the prompt says that each objective counts; NaN where it says nothing; None if not told.
        prompt_ids_G_N, completion_ids_G_N: Tokens, as tuples of integers; None unless it `reads_tokens`.
    """

    task_G_N: np.ndarray
    kind_G_N: np.ndarray
    attempt_G_N: np.ndarray
    resolved_G_N: np.ndarray
    stop_G_N: np.ndarray
    calls_G_N: np.ndarray
    call_turns_G_N: np.ndarray
    path_G_N: np.ndarray
    prefix_G_N: np.ndarray
    spread_G_N_M: np.ndarray
    turn_G_N_T: np.ndarray
    weights_G_N_M: np.ndarray | None = None
    prompt_ids_G_N: np.ndarray | None = None
    completion_ids_G_N: np.ndarray | None = None

    @property
    def length_G_N(self) -> np.ndarray:
        """Tokens that the policy wrote, (G, N)."""
        length_G_N: np.ndarray = (self.turn_G_N_T >= 0).sum(axis=2)
        return length_G_N


def takes_rows(method: Callable[..., Any]) -> bool:
    """Whether a selector's `advantages` or `learn` asks for facts about the rows."""
    return "rows" in inspect.signature(method).parameters


@runtime_checkable
class Stateful(Protocol):
    """Any component that learns. Its state goes into the trainer's checkpoints and beside the round's policy.

    So a training that is resumed, and a round that is rolled back, restore both together. There may be `metrics()` as
    well, numbers by name: they go into the training's log, and into the record of its stage as they stand at its end.
    """

    def state_dict(self) -> dict[str, Any]:
        """The state, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` of the same component, made with the same arguments, returned."""
        ...


class Episode(Protocol):
    """One opened task: its state, its tools, its facts at the end. The recorder in suites/episodes.py wraps it.

    It may have an attribute `observation`, a text: what it says when it is opened. It is appended to the prompt.
    """

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

    A suite whose episodes check arguments by rules of their own (surplus ones ignored, say) has an attribute
    `checks_arguments = True`: then arguments are not held to the prototype's signature before the episode sees them,
    and the episode says what does not fit, by `ToolError(text, fault="arguments")`.
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


PairFact = Literal["first_policy", "prompts", "rationale", "repair_prompt", "own"]
"""What a pair loss may ask for beside what all are told: it costs time, so it is made where `needs` names it only."""


@dataclass(frozen=True)
class Tried:
    """What a round tried on its training tasks, for a pairing.

    Attributes:
        round: Its number, from 1.
        repairs: What became of each failure: its candidates with their scores, and the chosen one.
        collected: All that the policy tried by itself (stage "collect"), with its scores, failures included.
        earlier: Reads the same of earlier rounds whose policy was another, the latest first, each with its round.
    """

    round: int
    repairs: Sequence[Repair]
    collected: Sequence[Case] = ()
    earlier: Callable[[], Iterable[tuple[int, Case]]] = tuple


class Pairing(Protocol):
    """Says which trajectories of a round are learned from as pairs. It judges nothing, and changes nothing.

    `pairs` returns pairs of tasks that failed in this round, made with `fate_trl.pair_of`: the chosen side is a
    candidate of a repair. Where that returns None, two trajectories make no pair; it stands in the list, and is
    counted. Any other thing is a PluginError. The same round gives the same pairs, so it has no state. There may be
    `metrics()`, numbers by name about the pairs made last: they stand in the stage's record, as `pairing`.

    Optional: `unpaired = True` says that some of its pairs may have one side only, the other being empty; the pair loss
    must take such.
    """

    def pairs(self, tried: Tried) -> list[Pair | None]: ...


class PairLoss(Protocol):
    """What the preference stage minimises, in the place of TRL's `loss_type`.

    It returns a scalar tensor, the mean over the batch's pairs, and changes nothing in the loss itself. torch is
    imported inside, not on top of its file: recipes are checked without it.

    More is optional:

    - `needs`: names of further facts (`PairFact`). Pairs that lack one are left out.
    - `unpaired = True`: it takes pairs that have one side only. The other one's log-probabilities are 0, and `there_B`
      is False.
    - `learn(batch)`: called once per batch of the training, after the loss, with the pairs of all processes and without
      gradients, so all processes stay alike. What it changes belongs into `state_dict()`; see `Stateful`.
    """

    def __call__(self, batch: PairBatch) -> Any: ...


class PolicyLoss(Protocol):
    """What PFPO minimises, in the place of TRL's `loss_type`.

    It returns a scalar tensor, the mean over the micro-batch. Nothing is added to it: a KL term is its own, such as
    `beta * kl_B_T`. torch is imported inside, not on top of its file: recipes are checked without it.

    More is optional:

    - `whole_groups = True`: a micro-batch holds whole groups, and `group_B` tells them apart.
    - `reference = True`: it needs the reference, so `pfpo.beta` is above 0.
    - `logits = True`: it needs logits, which costs a second forward pass and the memory for them.
    - `columns(scores_G_N_M, *, reward_G_N, objectives, valid_G_N[, rows])`: numbers (G, N) by name, which the batch
      brings along. It is called when a generation is scored, with all groups whole, re-drawn ones too, and changes
      nothing. Scores and rewards are NaN in rows that are out; `rows` is as in `ParetoSelector`.
    - `needs`: names of objectives without which it cannot work; checked before a model loads.
    - `state_dict`, `load_state_dict`, `metrics`: see `Stateful`; its metrics are logged under `loss/`.
    """

    def __call__(self, batch: PolicyBatch) -> Any: ...


class Callback(Protocol):
    """What watches PFPO and steers it: a `transformers.TrainerCallback`, or any object with some of its methods.

    An object that is none is told what it has methods for, so its file need not import transformers. More is optional:

    - `attach(trainer)`: called once the `PFPOTrainer` is made. It may set `trainer.beta` and `trainer.reward_weights`
      at any time, and read `trainer.measured`.
    - `learn(...)`: as in `ParetoSelector`: once per generation of the training.
    - `reshape(advantages)`: called in training with the advantages of this process's rows, (B,) or by token (B, T), as
      a tensor; those that it returns are trained on.
    - `columns(...)`: as in `PolicyLoss`; and `watch(batch)`: called before the loss of each micro-batch of the
      training, with its `PolicyBatch`, whose `columns` are the callback's.
    - `reference = True`: as in `PolicyLoss`. `weighs = True`: it sets `reward_weights`, so the selector must weigh.
    - `state_dict`, `load_state_dict`, `metrics`: see `Stateful`; its metrics are logged under `callback/`, so they
      begin with its name.
    """


class Learner(Policy, Protocol):
    """A policy that can be trained. train/ implements it on torch, suites/scripted.py without a model.

    `scratch` is a folder for what lets an interrupted training go on. It is removed once the training is recorded,
    so what is found in it was left by the same call when it was interrupted. With None nothing is kept. `reference` is
    a folder with the policy that a training is held to; it is handed over only where the recipe names a merge for it,
    and else that policy is the learner as the training finds it.
    """

    def sft(self, rows: Sequence[BufferRow], seed: int, stage: str, scratch: str | None = None) -> dict[str, Any]:
        """Supervised step on `rows`; returns what to log. `stage` is "warm_start" or "sft"."""
        ...

    def distillation(self, turns: Sequence[Hindsight], seed: int, scratch: str | None = None) -> dict[str, Any]:
        """Step towards what the policy says of turns at fault in hindsight; returns what to log."""
        ...

    def preference(
        self, pairs: Sequence[Pair], seed: int, scratch: str | None = None, reference: str | None = None
    ) -> dict[str, Any]:
        """Step on pairs of a repair and its failure; returns what to log."""
        ...

    def pfpo(
        self, requests: Sequence[RolloutRequest], seed: int, scratch: str | None = None, reference: str | None = None
    ) -> dict[str, Any]:
        """Policy optimisation on the prompts of `requests`; returns what to log.

        Where the recipe has `pfpo.budget`, that holds "tried": by the key of an `Item`, [rollouts, resolved ones].
        """
        ...

    def merge(
        self, folders: Sequence[str], coefficients: Sequence[float], path: str, exact: bool = False
    ) -> dict[str, Any]:
        """Write the policies that were saved in `folders`, merged by coefficients with the sum 1, to a folder that
        `load` takes; returns what to log. With `exact`, one that is a reference only: whatever it takes, nothing is
        lost."""
        ...

    def save(self, path: str) -> None: ...

    def load(self, path: str) -> None: ...
