"""PFPOConfig and PFPOTrainer: GRPO on a Pareto reward. The only file that touches TRL's private methods.

`PFPOTrainer` stands where `GRPOTrainer` stood; each reward function becomes an objective, and a verifier brings one
objective per name that it scores. It overrides four methods of TRL's, copies none, and leaves their results alone:

- `_generate` passes through, with tools as JSON schemas meanwhile, and keeps what it returned, for the trajectories
  that verifiers read; a rollout ends there.
- `_calculate_rewards` asks the verifiers first, and appends the selector's column to the matrix that TRL computed. From
  then on TRL sees weights 0 for the objectives and 1 for the column, so its own code makes the advantages.
- `_generate_and_score_completions` takes the column away again, so outside of it a trainer has the reward functions and
  weights that its user gave it, and puts the user's weighted sum back into the log as `reward`.
- `_get_train_sampler` keeps the sampler, whose state a resumed training needs.

`weighted-sum` and `gdpo` get no column: their training is TRL's, to the last bit. tests/test_trainer_seam.py pins the
signatures that this file relies on.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from inspect import isfunction, ismethod
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset, IterableDataset
from transformers import TrainerCallback
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer
from trl.trainer.utils import get_config_model_id

from .. import plugins
from ..choose import pareto
from ..errors import PluginError, RecipeError, SuiteError
from ..hookspecs import ParetoSelector
from ..metrics import evaluate
from ..record import stable_hash
from ..suites.episodes import EpisodeEnvironment, toolset
from ..types import KINDS, Message, RolloutRequest, ScoreCard, Task, Trajectory, shallow
from ..verify.loading import load as load_verifier
from ..verify.scoring import SECONDS, check_objectives, is_verifier, score_all

logger = logging.getLogger(__name__)

COLUMN = "pareto/reward"
"""Name of the selector's column in TRL's completions table, and of its mean in the log."""

DEFAULT_SELECTOR = "pareto-front"


# ------------------------------------------------------------------------------------------------ configuration


@dataclass
class PFPOConfig(GRPOConfig):
    """GRPOConfig with a selector. Every key of GRPOConfig is taken as it is.

    Args:
        selector: Name of the Pareto selector: "pareto-front", "pareto-rank", "product", "weighted-sum", "gdpo", or a
            plugin's "plugin/name".
        selector_args: The selector's arguments.
        redraw_rounds: How often groups whose score vectors are all equal are replaced by groups of new prompts,
            per generation. 0 (ours) changes nothing. Each round generates as many groups as it replaces.
        verifier_seconds: Time for one call of a verifier; see `verifiers.score_all`.
        max_error_rate: Share in [0, 1] of rows with an infrastructure error, from the start of the training on, past
            which it stops; the first three never stop it. 1 (ours) never does; a recipe sets its own.
        scale_rewards: As in GRPOConfig. None stands for "group", GRPOConfig's default, with a selector that hands
            its weights to TRL, and for "none" with every other: there the group's standard deviation would turn a
            tie-break's epsilon into a full advantage.

    Raises:
        RecipeError: `num_generations` is below 2: a group of one has no better and no worse.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "selector_args"]  # noqa: RUF012

    selector: str = field(default=DEFAULT_SELECTOR, metadata={"help": "Name of the Pareto selector."})
    selector_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of the selector, as JSON on a command line."}
    )
    redraw_rounds: int = field(
        default=0, metadata={"help": "How often to replace groups whose score vectors are all equal by new prompts."}
    )
    verifier_seconds: float = field(default=SECONDS, metadata={"help": "Time for one call of a verifier."})
    max_error_rate: float = field(
        default=1.0, metadata={"help": "Share of rows with an infrastructure error past which the training stops."}
    )
    scale_rewards: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "As in GRPOConfig; by default 'none', or 'group' for weighted-sum and gdpo."}
    )

    def __post_init__(self) -> None:
        if self.num_generations is not None and self.num_generations < 2:
            raise RecipeError(
                f"num_generations is {self.num_generations}; a group needs at least 2 completions to be compared."
            )
        if self.redraw_rounds < 0:
            raise RecipeError(f"redraw_rounds is {self.redraw_rounds}; it must be 0 or more.")
        super().__post_init__()


def _make_selector(args: Any, selector: Any, selector_args: Mapping[str, Any] | None) -> Any:
    """The selector that the trainer's keywords ask for, or else the configuration; a copy, so its weights are ours."""
    if selector is None:
        selector = getattr(args, "selector", DEFAULT_SELECTOR)
        selector_args = getattr(args, "selector_args", None) if selector_args is None else selector_args
    if isinstance(selector, str):
        return plugins.load("selector", selector, selector_args)
    if selector_args:
        raise RecipeError("selector_args go with a selector's name; this selector is an instance, which has its own.")
    if not callable(getattr(selector, "reward", None)) and not callable(getattr(selector, "advantages", None)):
        raise RecipeError(f"{selector!r} is no selector: it has neither a method `reward` nor `advantages`.")
    return copy.copy(selector)


def _check_aggregation(args: Any, selector: Any) -> None:
    """TRL's way to aggregate must be the one that the selector needs; only the default may be overruled."""
    wanted, given = getattr(selector, "aggregation", None), args.multi_objective_aggregation
    if given not in ("sum_then_normalize", wanted):
        raise RecipeError(
            f"multi_objective_aggregation={given!r} cannot work with the selector {type(selector).__name__}. "
            'Leave it out, or use selector="gdpo", which is TRL\'s normalize_then_sum.'
        )
    if wanted is None and not isinstance(args, PFPOConfig) and args.scale_rewards == "group":
        logger.warning(
            "scale_rewards='group', GRPOConfig's default, divides by the group's standard deviation: where a tie-break "
            "decides, its epsilon becomes a full advantage. PFPOConfig defaults to 'none' for this selector."
        )


# ------------------------------------------------------------------------------------------------ reward sources


class _Objective:
    """One objective of a verifier in the shape of a TRL reward function: it reads what was scored for the batch."""

    def __init__(self, name: str):
        self.__name__ = name
        self.values: list[float | None] = []

    def __call__(self, **_: Any) -> list[float | None]:
        return self.values


def _names_verifier(name: str) -> bool:
    """Whether a string among the reward functions names a verifier; any other is TRL's id of a reward model."""
    plugin, component = plugins.split_name(name)
    if plugin == plugins.BUILTINS:
        return component in plugins.components(plugin, "verifier")
    return plugin.endswith(".py") or plugin in plugins.installed()


def _sources(reward_funcs: Any, classes: Any) -> tuple[list[Any], list[Any], list[_Objective], list[Any]]:
    """What the user gave as `reward_funcs`, taken apart; the user's lists are left as they are.

    Returns:
        TRL's reward functions and their processing classes (one per column), the columns among them that are a
        verifier's objectives, and the verifiers.
    """
    given = reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    given = [item for item in given if item is not None]
    if classes is None:
        classes = [None] * len(given)
    classes = list(classes) if isinstance(classes, (list, tuple)) else [classes]
    if len(classes) != len(given):
        raise RecipeError(f"{len(classes)} reward_processing_classes for {len(given)} reward_funcs; give one for each.")
    functions, kept_classes, verifiers, columns = [], [], [], []
    for source, processing_class in zip(given, classes, strict=True):
        if isinstance(source, str) and _names_verifier(source):
            source = load_verifier(source)
        if not is_verifier(source):
            functions.append(source)
            kept_classes.append(processing_class)
            continue
        verifiers.append(source)
        new = [_Objective(name) for name in source.objectives]
        columns += new
        functions += new
        kept_classes += [None] * len(new)
    check_objectives(verifiers, ())
    return functions, kept_classes, columns, verifiers


def _unlike(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number on repeated ones (two lambdas), since selectors tell objectives apart by name."""
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(out)


# ------------------------------------------------------------------------------------------------ rows


def request_row(request: RolloutRequest) -> dict[str, Any]:
    """The data set row of a request, as TRL hands it to `EpisodeEnvironment.reset`."""
    return {
        "prompt": [dict(message) for message in request.messages],
        "environment": toolset(request.task),
        "kind": request.task.kind,
        "request": request,
    }


def request_dataset(requests: Sequence[RolloutRequest]) -> Dataset:
    """A data set of `request_row`s, to train on. Rows are made on access: Arrow could not hold the requests."""
    rows = tuple(requests)

    def rows_of(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        made = [request_row(rows[index]) for index in batch["index"]]
        return {key: [row[key] for row in made] for key in made[0]}

    return Dataset.from_dict({"index": list(range(len(rows)))}).with_transform(rows_of)


def _messages(text_or_messages: Any, role: str) -> tuple[Message, ...]:
    if isinstance(text_or_messages, str):
        return ({"role": role, "content": text_or_messages},)
    return tuple(text_or_messages)


def _kind_of(row: Mapping[str, Any]) -> str:
    if "kind" in row or "request" not in row:
        return str(row.get("kind", "benign"))
    return row["request"].task.kind


def _request_of(row: Mapping[str, Any], prompt: tuple[Message, ...]) -> RolloutRequest:
    """The row's request; where it has none, one made up: its kind if it is one of ours, its other columns as data."""
    if isinstance(row.get("request"), RolloutRequest):
        return row["request"]
    kind: Any = row.get("kind")
    data = {key: value for key, value in row.items() if key not in ("prompt", "kind", "environment", "id")}
    kind = kind if kind in KINDS else "benign"
    return RolloutRequest(
        task=Task(id=str(row.get("id", "")), suite="", kind=kind, messages=prompt, data=data), messages=prompt, stage=""
    )


def _copied_out(environment: EpisodeEnvironment, messages: tuple[Message, ...]) -> dict[str, Any]:
    """What an episode leaves in its trajectory: executed calls, outcome, error. TRL resets it in the next batch."""
    recorder = environment._recorder
    assert recorder is not None, "TRL resets an environment before it generates"
    outcome = recorder.outcome(messages)
    return {"calls": tuple(recorder.calls), "outcome": outcome, "error": recorder.error, "cause": recorder.cause}


# ------------------------------------------------------------------------------------------------ group statistics


def _spread(scores_G_N_M: np.ndarray, among_G_N: np.ndarray) -> np.ndarray:
    """Booleans (G,): the rows that are True in `among_G_N` hold more than one distinct score vector."""
    counted = among_G_N[:, :, None] & ~np.isnan(scores_G_N_M)
    high = np.where(counted, scores_G_N_M, -np.inf).max(axis=1)
    low = np.where(counted, scores_G_N_M, np.inf).min(axis=1)
    return (high > low).any(axis=1)


def _group_statistics(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray, spread_G: np.ndarray) -> dict[str, float]:
    """What the log says about the groups of a batch: `pareto/...`, by name."""
    front_G_N = pareto.first_front(scores_G_N_M, valid_G_N)
    all_front_G = (front_G_N == valid_G_N).all(axis=1)
    return {
        "pareto/front_size": float(front_G_N.sum(axis=1).mean()),
        "pareto/tie_break_share": float(_spread(scores_G_N_M, front_G_N).mean()),
        "pareto/zero_signal_share": float((~spread_G).mean()),
        "pareto/all_front_unequal_share": float((all_front_G & spread_G).mean()),
    }


# How each tensor of TRL's generation batch is padded: side, and filler (None stands for the pad token).
_PADDING: dict[str, tuple[str, float | None]] = {
    "prompt_ids": ("left", None),
    "prompt_mask": ("left", 0),
    "completion_ids": ("right", None),
    "completion_mask": ("right", 0),
    "tool_mask": ("right", 1),
    "advantages": ("right", 0),
    "old_per_token_logps": ("right", 0),
    "ref_per_token_logps": ("right", 0),
    "sampling_per_token_logps": ("right", 0),
    "importance_sampling_ratio": ("right", 1),
}


def _widened(tensor: torch.Tensor, width: int, side: str, filler: float) -> torch.Tensor:
    missing = width - tensor.size(1)
    return torch.nn.functional.pad(tensor, (missing, 0) if side == "left" else (0, missing), value=filler)


@contextmanager
def one_engine(engine: Any):
    """Within it a new trainer takes over this vLLM engine, an earlier trainer's on the same model, and starts none.

    TRL starts an engine for each trainer, and a run has a trainer for each stage. A new trainer sends its weights
    before it first generates.
    """

    def taken_over(model: Any, accelerator: Any, max_num_seqs: int | None = None, **settings: Any) -> Any:
        vars(engine).update({"model": model, "accelerator": accelerator, "_weight_metadata": None})
        vars(engine).update({name: value for name, value in settings.items() if name in vars(engine)})
        return engine

    names = vars(grpo_trainer)
    theirs = names["VLLMGeneration"]
    names["VLLMGeneration"] = theirs if engine is None else taken_over
    try:
        yield
    finally:
        names["VLLMGeneration"] = theirs


class _Collected(Exception):
    """Ends a step after `_generate`, in a rollout."""


class _Resumed(TrainerCallback):
    """Brings what TRL leaves out of a checkpoint to where it was.

    TRL draws the order of each epoch from a generator that starts anew with every trainer, so a later epoch that is
    resumed would repeat the first one's order; and it counts the micro-steps, of which re-draws make their seeds.
    Our own count of tokens stands in the log.
    """

    def __init__(self, trainer: PFPOTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        if not state.global_step or isinstance(self.trainer.train_dataset, IterableDataset):
            return
        micro_steps = len(train_dataloader)
        epochs, steps = divmod(state.global_step, -(-micro_steps // args.gradient_accumulation_steps))
        for _epoch in range(epochs):
            next(iter(self.trainer._sampler), None)
        self.trainer._step = epochs * micro_steps + steps * args.gradient_accumulation_steps
        logged = {key: value for entry in state.log_history for key, value in entry.items()}
        for key in [key for key in logged if key.startswith("tokens/")]:
            self.trainer.tokens[key.removeprefix("tokens/")] = int(logged[key])


# ------------------------------------------------------------------------------------------------ the trainer


class PFPOTrainer(GRPOTrainer):
    """GRPOTrainer whose reward is made from several objectives by a Pareto selector.

    Takes what GRPOTrainer takes, in the same order, and besides:

    Args:
        reward_funcs: GRPOTrainer's (functions, async functions, reward models), verifiers, names of verifiers, or a
            mix. A verifier adds one column per objective, named by the objective, and `reward_weights` has one
            weight per column, whose size counts where the selector weighs: by default it does not. A string that
            names a verifier is a verifier; any other is a reward model's id.
        args: PFPOConfig, or a plain GRPOConfig; never written to.
        selector: Name or instance; by default `args.selector`.
        selector_args: Arguments that go with the name; by default `args.selector_args`.

    Attributes:
        objectives: Names of the objectives, one per column.
        tokens: How many tokens training took so far: "prompt" (prompts and tool results), "sampled" and "trained".

    Several objectives are compared within a group, so a reward that is None for every row of a group does not apply
    there, and a row that lacks a score that others of its group have is left out: advantage 0, and no part in
    baselines. So is a row with an infrastructure error, with every selector.

    Logged besides what GRPOTrainer logs: `objective/<name>/<kind>`, means by kind of task (the data set's column
    `kind`, or the episode's); `errors/rows`, `errors/episode` and `errors/<objective>`, shares of rows with an error;
    `tokens/prompt`, `tokens/sampled` and `tokens/trained`, counted from the start of the training on, re-drawn groups
    included; `pareto/reward` and `pareto/reward_std`, the selector's column, while `reward` stays the weighted sum; and
    of the groups `pareto/front_size` (mean rows of the first front), `pareto/tie_break_share` (its first front holds
    several vectors), `pareto/zero_signal_share` (all its score vectors are equal), `pareto/all_front_unequal_share`
    (none is dominated, not all are equal), and `pareto/redrawn_groups` per generation.

    Raises:
        RecipeError: A combination that cannot work; before a model loads, where that can be told.
        PluginError: A named selector or verifier that cannot be loaded.
    """

    _tag_names = ["trl", "fate-trl", "pfpo"]  # noqa: RUF012
    _name = "PFPO"
    _paper = {  # noqa: RUF012
        "title": "On-Policy Self-Evolution via Failure Trajectories for Agentic Safety Alignment",
        "id": "2605.11882",
        # docstyle-ignore
        "citation": "@article{fate2026, title={{On-Policy Self-Evolution via Failure Trajectories for Agentic Safety "
        "Alignment}}, year=2026, eprint={arXiv:2605.11882}}",
    }

    # TRL's own annotations are for its constructor; after it none of these is None.
    args: Any
    model: Any
    train_dataset: Any
    environment_factories: Any
    num_generations: Any
    num_generations_eval: Any
    reward_processing_classes: Any
    _logs: Any

    # TRL reads `_generate` on objects that were never initialised, so these have defaults here.
    _collecting = False
    _mode = "train"
    _generated: tuple[list[Any], tuple[Any, ...]] | None = None
    _advantages: torch.Tensor | None = None
    _as_given: dict[str, Any] | None = None

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        *more: Any,
        selector: str | ParetoSelector | None = None,
        selector_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = PFPOConfig(f"{name.split('/')[-1]}-PFPO")
        self._selector = _make_selector(args, selector, selector_args)
        self._aggregation: str | None = getattr(self._selector, "aggregation", None)
        _check_aggregation(args, self._selector)
        functions, classes, self._columns, self._verifiers = _sources(reward_funcs, reward_processing_classes)
        super().__init__(
            model, functions, args, train_dataset, eval_dataset, processing_class, classes, *more, **kwargs
        )
        self.objectives = _unlike(self.reward_func_names)
        self._adopt_weights()
        if self._aggregation is not None:
            self.multi_objective_aggregation = self._aggregation
        if args.scale_rewards is None:
            self.scale_rewards = "none" if self._aggregation is None else "group"
        pools = getattr(self, "_environment_pool", {}).values()
        self._has_episodes = any(isinstance(pool[0], EpisodeEnvironment) for pool in pools)
        self._verifier_seconds = getattr(args, "verifier_seconds", SECONDS)
        self._max_error_rate = getattr(args, "max_error_rate", 1.0)
        self._seen_rows, self._excluded_rows = 0, 0
        self._error_cases: list[evaluate.Case] = []
        self.tokens: Counter[str] = Counter()
        self._schema_of: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._redraw_rounds = getattr(args, "redraw_rounds", 0)
        if self._redraw_rounds:
            self._check_redraw()
        self.add_callback(_Resumed(self))

    def _adopt_weights(self) -> None:
        """One truth for weights, `self.reward_weights`: from the configuration, or from the selector's arguments."""
        weights = getattr(self._selector, "weights", None)
        if weights:
            if self.args.reward_weights is not None:
                raise RecipeError("weights stand both in reward_weights and in the selector's arguments; drop one.")
            unknown = [name for name in weights if name not in self.objectives]
            if unknown:
                raise RecipeError(
                    f"the selector weights {unknown[0]!r}, which is no objective"
                    f"{plugins.nearest(unknown[0], self.objectives)} The objectives are {', '.join(self.objectives)}."
                )
            self.reward_weights = torch.tensor([weights.get(name, 1.0) for name in self.objectives])
        elif not hasattr(self._selector, "weights") and self.args.reward_weights is not None:
            logger.warning("%s takes no weights; reward_weights only affect `reward` in the log.", self._selector)
        sizes = {abs(weight) for weight in self.reward_weights.tolist() if weight}
        if len(sizes) > 1 and not getattr(self._selector, "weighs", True):
            logger.warning(
                "%s does not weigh: of the weights only 0 (left out) and a negative sign (lower is better) count. "
                "The tie-breaks 'mean', 'scaled' and 'product' of the Pareto selectors weigh.",
                self._selector,
            )

    def between_generations(self) -> bool:
        """Whether the next micro-step generates: TRL checkpoints no generated batch, so only this resumes exactly."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0

    # -------------------------------------------------------------------------------------------- TRL's methods

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._sampler = super()._get_train_sampler(dataset)  # for _Resumed
        return self._sampler

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        with self._described_tools():
            generated = super()._generate(prompts)
        self._generated = (prompts, generated)
        if self._collecting:
            raise _Collected
        prompt_ids, completion_ids, masks = generated[:3]
        completed = sum(map(len, completion_ids))
        sampled = completed if masks is None else sum(map(sum, masks))
        self._count(prompt=sum(map(len, prompt_ids)) + completed - sampled, sampled=sampled)
        return generated

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        failed_B = self._verify(inputs, prompts) if self._verifiers or self._has_episodes else None
        rewards_B_M = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if failed_B is not None:
            rewards_B_M[failed_B] = torch.nan
        self._log_kinds(inputs, rewards_B_M)
        return self._select(rewards_B_M)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # Fixed on entry: continuous batching switches the model to training mode in the middle of an evaluation.
        self._mode = "train" if self.model.training else "eval"
        columns = tuple(inputs[0])  # TRL adds what a rollout_func returns to the rows
        out = self._scored(inputs)
        if self._redraw_rounds and self._mode == "train":
            self._redraw(out, len(inputs), columns)
        rows = int(out["prompt_mask"].sum() + out["completion_mask"].sum())
        self._count(trained=rows * self.num_iterations)
        return out

    def _scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's step, with the selector's advantages in it and the trainer as the user made it after it."""
        self._advantages = None
        try:
            out = super()._generate_and_score_completions(inputs)
        finally:
            as_given, self._as_given = self._as_given, None
            if as_given is not None:
                vars(self).update(as_given)
        if as_given is not None:
            self._restore_log()
        if self._advantages is not None:
            self._replace_advantages(out, len(inputs))
        return out

    def _count(self, **tokens: int) -> None:
        """Add what a training batch brought, on all processes, to `tokens` and to the log."""
        if self._mode != "train":
            return
        mine_1_T = torch.tensor([list(tokens.values())], device=self.accelerator.device)
        for name, count in zip(tokens, gather(mine_1_T).sum(dim=0).tolist(), strict=True):
            self.tokens[name] += count
            self._metrics["train"][f"tokens/{name}"] = [float(self.tokens[name])]

    # -------------------------------------------------------------------------------------------- scoring

    def _verify(self, rows: list[dict[str, Any]], prompts: list[Any]) -> torch.Tensor:
        """Score the batch with all verifiers. Returns booleans (B,) over all processes: rows with an error.

        An error row holds 0 until TRL has computed its matrix, which then becomes NaN: TRL prints all arguments of a
        row that is all None.
        """
        trajectories = self._trajectories(rows, prompts)
        cards = score_all(self._verifiers, trajectories, self._verifier_seconds)
        for column in self._columns:
            scores = [card.scores[column.__name__] for card in cards]
            column.values = [0.0 if score.status == "error" else score.value for score in scores]
        return self._count_errors(trajectories, cards)

    def _count_errors(self, trajectories: list[Trajectory], cards: list[ScoreCard]) -> torch.Tensor:
        """Log the share of rows with an error, by where it arose. Returns booleans (B,) over all processes."""
        reasons = [t.error or next(iter(c.errors.values()), "") for t, c in zip(trajectories, cards, strict=True)]
        failed = [reason for reason in reasons if reason]
        if failed:
            ((reason, _),) = Counter(failed).most_common(1)
            logger.warning("%d of %d rows left out because of errors, such as: %s", len(failed), len(reasons), reason)
        flags = [[bool(reason) for reason in reasons], [bool(trajectory.error) for trajectory in trajectories]]
        flags += [[column.__name__ in card.errors for card in cards] for column in self._columns]
        names = ["rows", "episode", *(column.__name__ for column in self._columns)]
        flags_B_E = gather(torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device).T.contiguous())
        for name, share in zip(names, flags_B_E.mean(dim=0).tolist(), strict=True):
            self._metrics[self._mode][f"errors/{name}"].append(share)
        failed_B = flags_B_E[:, 0] > 0
        self._check_budget(trajectories, cards, failed_B)
        return failed_B

    def _check_budget(self, trajectories: list[Trajectory], cards: list[ScoreCard], failed_B: torch.Tensor) -> None:
        """Raise ErrorBudgetExceeded past `max_error_rate`; counted and decided alike on every process."""
        if self._max_error_rate == 1:
            return
        self._seen_rows += len(failed_B)
        self._excluded_rows += int(failed_B.sum())
        self._error_cases += filter(evaluate.is_error, zip(trajectories, cards, strict=True))
        rate = evaluate.budget(self._max_error_rate, self._seen_rows)
        if self._excluded_rows > rate * self._seen_rows:
            evaluate.check_errors(gather_object(self._error_cases), rate, of=self._seen_rows)

    def _log_kinds(self, rows: list[dict[str, Any]], rewards_B_M: torch.Tensor) -> None:
        """Log each objective's mean per kind of task, where rows have a kind or verifiers need one."""
        if not (self._verifiers or self._has_episodes or "kind" in rows[0]):
            return
        kinds_B = np.array(gather_object([_kind_of(row) for row in rows]))
        values_B_M = rewards_B_M.double().cpu().numpy()
        for kind in sorted(set(kinds_B)):
            of_kind = values_B_M[kinds_B == kind]
            for name, column in zip(self.objectives, of_kind.T, strict=True):
                if not np.isnan(column).all():
                    self._metrics[self._mode][f"objective/{name}/{kind}"].append(float(np.nanmean(column)))

    def _select(self, rewards_B_M: torch.Tensor) -> torch.Tensor:
        """The matrix (B, M) over all processes as TRL shall see it: for most selectors with their column behind it."""
        group = self.num_generations if self._mode == "train" else self.num_generations_eval
        scores_G_N_M = rewards_B_M.double().cpu().numpy().reshape(-1, group, rewards_B_M.size(1))
        # One infinite reward would spoil its whole group, so such a row counts as not scored.
        scores_G_N_M[np.isinf(scores_G_N_M).any(axis=2)] = np.nan
        weights_M = self._pass_weights()
        oriented_G_N_M = pareto.orient(scores_G_N_M, weights_M)
        valid_G_N = pareto.complete_rows(oriented_G_N_M) & ~np.isnan(oriented_G_N_M).all(axis=2)
        spread_G = _spread(oriented_G_N_M, valid_G_N)
        self._zero_signal_G = ~spread_G
        if group > 1:
            for name, value in _group_statistics(oriented_G_N_M, valid_G_N, spread_G).items():
                self._metrics[self._mode][name].append(value)
        if self._aggregation is not None:
            return rewards_B_M
        scores_G_N_M[~valid_G_N] = np.nan
        rewards_B_M[torch.as_tensor(~valid_G_N.reshape(-1), device=rewards_B_M.device)] = torch.nan
        if hasattr(self._selector, "advantages"):
            self._advantages = self._ask("advantages", scores_G_N_M, valid_G_N).to(rewards_B_M.device)
            return rewards_B_M
        column_B = self._ask("reward", scores_G_N_M, valid_G_N).to(rewards_B_M)
        return self._append(rewards_B_M, column_B)

    def _pass_weights(self) -> np.ndarray:
        """Hand `reward_weights`, which a callback may change at any time, to the selector; ones if it takes none."""
        if not hasattr(self._selector, "weights"):
            return np.ones(len(self.objectives))
        weights = self.reward_weights.double().cpu().numpy()
        self._selector.weights = dict(zip(self.objectives, weights.tolist(), strict=True))
        return weights

    def _ask(self, method: str, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray) -> torch.Tensor:
        """What the selector says of the batch, (B, ...) in float32; advantages of rows not valid are 0."""
        said = getattr(self._selector, method)(scores_G_N_M, objectives=self.objectives, valid_G_N=valid_G_N)
        said = np.array(said, dtype=np.float64)
        who = f"selector {type(self._selector).__name__}: {method}"
        allowed = said.shape == valid_G_N.shape or (method == "advantages" and said.shape[:2] == valid_G_N.shape)
        if not allowed:
            raise PluginError(f"{who} returned the shape {said.shape}; it must be {valid_G_N.shape}.")
        if not np.isfinite(said[valid_G_N]).all():
            raise PluginError(f"{who} returned NaN or infinity for a row that is valid.")
        said[~valid_G_N] = np.nan if method == "reward" else 0.0
        return torch.as_tensor(said.reshape(-1, *said.shape[2:]), dtype=torch.float32)

    def _append(self, rewards_B_M: torch.Tensor, column_B: torch.Tensor) -> torch.Tensor:
        """Add the selector's column for the rest of TRL's step. Attributes are rebound, never changed in place."""
        self._as_given = {
            name: getattr(self, name)
            for name in ("reward_funcs", "reward_func_names", "reward_processing_classes", "reward_weights")
        }
        name = COLUMN
        while name in self.reward_func_names:
            name += "'"
        self._user_rewards = (rewards_B_M, self.reward_weights.to(rewards_B_M.device), name)
        self.reward_funcs = [*self.reward_funcs, _Objective(name)]
        self.reward_func_names = [*self.reward_func_names, name]
        self.reward_processing_classes = [*self.reward_processing_classes, None]
        self.reward_weights = torch.cat([torch.zeros_like(self.reward_weights), self.reward_weights.new_ones(1)])
        return torch.cat([rewards_B_M, column_B.unsqueeze(1)], dim=1)

    def _restore_log(self) -> None:
        """TRL logged the column as the reward; log the user's weighted sum, and the column under its own name."""
        rewards_B_M, weights_M, column = self._user_rewards
        metrics = self._metrics[self._mode]
        metrics[COLUMN].append(metrics["reward"].pop())
        metrics[f"{COLUMN}_std"].append(metrics["reward_std"].pop())
        del metrics[f"rewards/{column}/mean"], metrics[f"rewards/{column}/std"]
        summed_B = (rewards_B_M * weights_M).nansum(dim=1)[~rewards_B_M.isnan().all(dim=1)]
        metrics["reward"].append(summed_B.mean().item())
        metrics["reward_std"].append(summed_B.std().item() if len(summed_B) > 1 else float("nan"))

    def _replace_advantages(self, out: dict[str, Any], rows: int) -> None:
        """Put a selector's own advantages in the place of TRL's, in the batch (this process's rows) and in the log."""
        advantages_B = self._advantages
        assert advantages_B is not None
        start = self.accelerator.process_index * rows
        out["advantages"] = advantages_B[start : start + rows]
        logged = self._logs["advantages"]
        for _ in range(min(len(advantages_B), len(logged))):
            logged.pop()
        logged.extend(advantages_B.reshape(len(advantages_B), -1).mean(dim=1).tolist())

    # -------------------------------------------------------------------------------------------- trajectories

    def rollout(self, requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        """Roll the policy out: one trajectory per request, in order, sampled as in training, dropout off.

        No log-probabilities are computed, nothing is scored, and metrics and token counts stay as they were; the
        global random state moves on. Requests go in batches of as many rows as a process generates in training.
        With several processes every one calls this with the same requests, rolls out its share and gets all.

        Raises:
            SuiteError: A task whose tools were not among the tasks that the environment factories were made for.
        """
        for request in requests:
            if self._multi_environment and toolset(request.task) not in self.environment_factories:
                raise SuiteError(
                    f"no environment serves task {request.task.id!r} of suite {request.task.suite!r}: make "
                    "environment_factories for the tasks of all splits before the trainer is built."
                )
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        per_batch = self.args.generation_batch_size
        out: list[Trajectory] = []
        with self._collect():
            for start in range(0, len(requests), per_batch):
                batch = list(requests[start : start + per_batch])
                # Every process must bring the same number of rows, so the last request may be rolled out repeatedly.
                share = -(-len(batch) // processes)
                padded = batch + [batch[-1]] * (share * processes - len(batch))
                mine = self._collected([request_row(r) for r in padded[rank * share : (rank + 1) * share]])
                out += gather_object(mine)[: len(batch)]
        return out

    @contextmanager
    def _collect(self):
        """Evaluation mode, and metrics of its own, for a rollout; afterwards everything as before."""
        training, metrics, group = self.model.training, self._metrics, self.num_generations_eval
        self.model.eval()
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self.num_generations_eval = 1  # vLLM takes the rows for groups of this size, all of one prompt
        self._collecting = True
        try:
            yield
        finally:
            self._collecting = False
            self.num_generations_eval = group
            self._metrics = metrics
            self.model.train(training)

    def _collected(self, rows: list[dict[str, Any]]) -> list[Trajectory]:
        with suppress(_Collected):
            super()._generate_and_score_completions(rows)
        assert self._generated is not None
        return self._trajectories(rows, self._generated[0])

    def _trajectories(self, rows: list[dict[str, Any]], prompts: list[Any]) -> list[Trajectory]:
        """What the batch that was just generated did, row by row. Asks every episode for its outcome, so: once."""
        assert self._generated is not None
        environments = self.environments or [None] * len(rows)
        prompt_ids, completion_ids, masks, completions = self._generated[1][:4]
        out = []
        for i, (row, environment) in enumerate(zip(rows, environments, strict=True)):
            prompt, messages = _messages(prompts[i], "user"), shallow(_messages(completions[i], "assistant"))
            request = _request_of(row, prompt)
            stop = self._stop(messages, completion_ids[i])
            episode: dict[str, Any] = {}
            if isinstance(environment, EpisodeEnvironment):
                episode = _copied_out(environment, messages)
                stop = "error" if episode["error"] else stop
            out.append(
                Trajectory(
                    task=request.task,
                    prompt=prompt,
                    messages=messages,
                    stop=stop,
                    stage=request.stage,
                    attempt=request.attempt,
                    replayed=len(request.replay),
                    prompt_ids=tuple(prompt_ids[i]),
                    completion_ids=tuple(completion_ids[i]),
                    policy_mask=tuple([1] * len(completion_ids[i]) if masks is None else masks[i]),
                    **episode,
                )
            )
        return out

    def _stop(self, messages: Sequence[Message], completion_ids: Sequence[int]) -> str:
        """Why a completion ended.

        A last message that still calls tools ended at one of two limits: past TRL's number of rounds the calls were
        never run; within it they ran, and their results, too long for the completion, were taken back out.
        """
        rounds = sum(bool(message.get("tool_calls")) for message in messages)
        last = messages[-1] if messages else {}
        if last.get("tool_calls"):
            return "calls" if rounds > self.max_tool_calling_iterations else "length"
        ended = bool(completion_ids) and completion_ids[-1] in (*self.eos_token_ids, self._tokenizer.pad_token_id)
        return "answer" if ended and last.get("role") == "assistant" else "length"

    @contextmanager
    def _described_tools(self):
        """Tools as JSON schemas while TRL renders and parses: of a function it would make the schema for every reply.

        That took a tenth of a round. A rollout_func may want to call the tools, so it finds them as they are.
        """
        held: dict[str, Any] = {name: vars(self)[name] for name in ("tools", "_env_tools") if name in vars(self)}
        if getattr(self, "rollout_func", None) is None:
            for name, value in held.items():
                if isinstance(value, dict):
                    setattr(self, name, {key: self._schemas(tools) for key, tools in value.items()})
                else:
                    setattr(self, name, self._schemas(value))
        try:
            yield
        finally:
            vars(self).update(held)

    def _schemas(self, tools: Sequence[Any]) -> list[Any]:
        for tool in tools:
            if id(tool) not in self._schema_of and (isfunction(tool) or ismethod(tool)):
                self._schema_of[id(tool)] = (tool, get_json_schema(tool))  # held, so that its id stays its own
        return [self._schema_of[id(tool)][1] if id(tool) in self._schema_of else tool for tool in tools]

    # -------------------------------------------------------------------------------------------- re-draw

    def _check_redraw(self) -> None:
        """Raise RecipeError for what a re-draw would make wrong: quantities of a whole batch, rows it cannot move."""
        wrong = None
        if self.scale_rewards == "batch":
            wrong = "scale_rewards='batch' scales by the batch that was drawn first; use 'none' or 'group'"
        elif self.multi_objective_aggregation == "normalize_then_sum":
            wrong = "normalize_then_sum (gdpo) normalises over the batch that was drawn first; use another selector"
        elif isinstance(self.train_dataset, IterableDataset):
            wrong = "new prompts cannot be drawn from an IterableDataset; use a Dataset"
        elif self._is_vlm:
            wrong = "batches of images cannot be merged"
        if wrong:
            raise RecipeError(f"redraw_rounds={self._redraw_rounds} cannot work: {wrong}; or set redraw_rounds=0.")

    def _redraw(self, out: dict[str, Any], rows: int, columns: tuple[str, ...]) -> None:
        """Replace groups of `out` without signal by groups of new prompts that have one, in place.

        Everything is decided from the gathered matrix, alike on every process, and groups may span processes: what was
        drawn is gathered, and each process takes the rows that are its own. The log's means cover the new groups too:
        both are draws of the same prompts, without selection.
        """
        open_G = self._zero_signal_G
        replaced = 0
        for number in range(self._redraw_rounds):
            slots = np.flatnonzero(open_G)
            if not len(slots):
                break
            fresh = self._gathered(self._scored(self._new_rows(len(slots), number, columns)))
            gifts = np.flatnonzero(~self._zero_signal_G)[: len(slots)]
            slots = slots[: len(gifts)]
            open_G[slots] = False
            replaced += len(slots)
            self._merge(out, fresh, slots, gifts, self.accelerator.process_index * rows)
        mask = out["completion_mask"] * out["tool_mask"] if "tool_mask" in out else out["completion_mask"]
        out["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()
        self._metrics["train"]["pareto/redrawn_groups"].append(float(replaced))

    def _new_rows(self, groups: int, number: int, columns: tuple[str, ...]) -> list[dict[str, Any]]:
        """This process's share of the rows of so many new groups, or of a few more where they would not share out.

        Drawn with a generator of their own, so alike on every process, and the same whatever their number.
        """
        rng = np.random.default_rng(stable_hash("redraw", self.args.seed, self.state.global_step, self._step, number))
        order = rng.permutation(len(self.train_dataset))
        processes, size = self.accelerator.num_processes, self.num_generations
        while groups * size % processes:
            groups += 1
        drawn = np.repeat(order[np.arange(groups) % len(order)], size)
        share = len(drawn) // processes
        rows = [self.train_dataset[int(index)] for index in drawn[self.accelerator.process_index * share :][:share]]
        return [{key: row[key] for key in columns} for row in rows]

    def _gathered(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of rows as all processes have them, in order, padded to one width."""
        if self.accelerator.num_processes == 1:
            return batch
        out = {}
        for key, own in batch.items():
            if own.ndim > 1:
                side, filler = self._padding(key)
                own = self.accelerator.pad_across_processes(own, 1, filler, pad_first=side == "left")
            out[key] = self.accelerator.gather(own.contiguous()) if own.ndim else own
        return out

    def _padding(self, key: str) -> tuple[str, float]:
        side, filler = _PADDING[key]
        return side, self._tokenizer.pad_token_id if filler is None else filler

    def _merge(
        self, out: dict[str, Any], fresh: dict[str, Any], slots: np.ndarray, gifts: np.ndarray, first: int = 0
    ) -> None:
        """Copy the groups `gifts` of `fresh` over the groups `slots`, as far as their rows are in `out`.

        Rows of `fresh`, and slots, count over all processes; the rows of `out` are those from `first` on.
        """
        within = np.arange(self.num_generations)
        to = (slots[:, None] * self.num_generations + within).reshape(-1) - first
        source = (gifts[:, None] * self.num_generations + within).reshape(-1)
        mine = (to >= 0) & (to < len(out["prompt_ids"]))
        to, source = torch.as_tensor(to[mine]), torch.as_tensor(source[mine])
        for key, kept in out.items():
            if kept.ndim == 0 or not len(to):
                continue
            new = fresh[key]
            if kept.ndim > 1:
                side, filler = self._padding(key)
                width = max(kept.size(1), new.size(1))
                kept, new = _widened(kept, width, side, filler), _widened(new, width, side, filler)
            kept = kept.clone()
            kept[to.to(kept.device)] = new[source.to(new.device)]
            out[key] = kept
