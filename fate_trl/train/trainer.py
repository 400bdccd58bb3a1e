"""PFPOTrainer: GRPO on a Pareto reward. It and what it stands on (policy_loss.py, greedy.py, prefix/trainer.py)
alone touch TRL's private methods.

`PFPOTrainer` stands where `GRPOTrainer` stood; each reward function becomes an objective, and a verifier brings one
objective per name that it scores. It overrides six methods of TRL's, copies none, and leaves their results alone:

- `_generate` passes through, with tools as JSON schemas meanwhile, and keeps what it returned, for the trajectories
  that verifiers read; a rollout ends there.
- `_calculate_rewards` asks the verifiers first, and appends the selector's column to the matrix that TRL computed. From
  then on TRL sees weights 0 for the objectives and 1 for the column, so its own code makes the advantages.
- `_generate_and_score_completions` takes the column away again, and puts the user's weighted sum back into the log as
  `reward`.
- `_prepare_inputs` holds the record of a step, `Step`, from its start to its end. Then the trainer has the reward
  functions and weights that its user gave it, whatever happened in between, and also where a subclass replaced
  `_generate_and_score_completions`.
- `_get_train_sampler` keeps the sampler, whose state a resumed training needs; `_save_checkpoint` adds our own state.

`weighted-sum` and `gdpo` get no column: their training is TRL's, to the last bit. tests/test_trainer_seam.py pins the
signatures that this file relies on.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from datasets import IterableDataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import get_config_model_id

from .. import plugins
from ..choose import pareto
from ..errors import RecipeError, SuiteError
from ..hookspecs import ParetoSelector, PolicyLoss
from ..ledger.components import metrics_of, restore, states_of
from ..record import stable_hash
from ..suites.episodes import EpisodeEnvironment, toolset
from ..types import RolloutRequest, ScoreCard, Trajectory
from ..verify.scoring import SECONDS
from . import batches, logs, selection, tools
from .config import PFPOConfig
from .counts import Counts
from .exchange import exchange, judged
from .facts import facts_of
from .logs import COLUMN
from .policy_loss import LossTrainer
from .rows import kind_of, request_row
from .sources import Objective, distinct_names, sources_of
from .step import Step
from .tally import Tally
from .trajectories import overflowed, trajectories_of
from .words import words_of

logger = logging.getLogger(__name__)

STATE = "fate_trl"
"""Name of our own state among those of callbacks, in a checkpoint's trainer_state.json."""


_TOOL_ATTRIBUTES = ("tools", "_env_tools", "_sync_tool_dicts", "_async_tool_dicts")


class _Collected(Exception):
    """Ends a step after `_generate`, in a rollout."""


class _Begins(TrainerCallback):
    """Brings what TRL leaves out of a checkpoint to where it was, and to its start where a training starts.

    TRL draws the order of each epoch from a generator that starts anew with every trainer, so a later epoch that is
    resumed would repeat the first one's order; it counts the micro-steps, of which re-draws make their seeds; and it
    keeps the batch that it generated last, which would be trained on again.
    """

    def __init__(self, trainer: PFPOTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        self.trainer.load_state_dict(state.stateful_callbacks.get(STATE, {}) if state.global_step else {})
        self.trainer._buffered_inputs, self.trainer._step = None, 0
        if not state.global_step or isinstance(self.trainer.train_dataset, IterableDataset):
            return
        micro_steps = len(train_dataloader)
        epochs, steps = divmod(state.global_step, -(-micro_steps // args.gradient_accumulation_steps))
        for _epoch in range(epochs):
            next(iter(self.trainer._sampler), None)
        self.trainer._step = epochs * micro_steps + steps * args.gradient_accumulation_steps


# ------------------------------------------------------------------------------------------------ the trainer


class PFPOTrainer(LossTrainer):
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
        loss: Name or instance of a policy loss, in the place of `args.loss_type`.
        loss_args: Arguments that go with its name.
        callbacks: As in GRPOTrainer; those with members that `hookspecs.Callback` names are given what these ask for.

    Attributes:
        objectives: Names of the objectives, one per column.
        tokens: How many tokens training took so far: "prompt" (prompts and tool results), "sampled" and "trained".

    Several objectives are compared within a group, so a reward that is None for every row of a group does not apply
    there, and a row that lacks a score that others of its group have is left out: advantage 0, and no part in
    baselines. So is a row with an infrastructure error, with every selector.

    Logged besides what GRPOTrainer logs: `objective/<name>/<kind>`, means by kind of task (the data set's column
    `kind`, or the episode's; free text gets no keys); `errors/rows`, the share of rows left out; `errors/episode` and
    `errors/<objective>`, shares of rows with an error there; `tokens/prompt`, `tokens/sampled` and `tokens/trained`,
    counted from the start of the training on, re-drawn groups included; `pareto/reward`, `pareto/reward_std` and
    `pareto/frac_reward_zero_std`, of the selector's column, while TRL's own keys hold what GRPOTrainer would log,
    `reward` the weighted sum; and of the groups `pareto/front_size` (mean rows of the first front),
    `pareto/tie_break_share` (its first front holds several vectors), `pareto/zero_signal_share` (all its score vectors
    are equal), `pareto/all_front_unequal_share` (none is dominated, not all are equal), and `pareto/redrawn_groups`
    per generation.

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

    # Attributes of our own have defaults here: `_generate` also runs on objects that were never initialised.
    objectives: tuple[str, ...] = ()
    tally: Tally | None = None  # a learner sets it, and whether groups that fail are given a success
    exchanges = False
    _current: Step | None = None
    _selector: Any = None
    _aggregation: str | None = None
    _columns: Sequence[Objective] = ()
    _verifiers: Sequence[Any] = ()
    _has_episodes = False
    _verifier_seconds = SECONDS
    _max_error_rate = 1.0
    _wants_facts = False
    _redraw_rounds = 0
    _mask_overflowed = False
    _told_gaps = False
    _sync_tool_dicts: Any
    _async_tool_dicts: Any
    _counts = Counts()
    _tie_is_default = False
    _scaled_ties = False
    _buffered_inputs: Any
    _step: Any
    _schemas = tools.Schemas()
    _sampler: Any = None

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
        loss: str | PolicyLoss | None = None,
        loss_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = PFPOConfig(f"{name.split('/')[-1]}-PFPO")
        self._selector = selection.make_selector(args, selector, selector_args)
        self._aggregation = getattr(self._selector, "aggregation", None)
        self._tie_is_default = selection.ties_by_default(args, self._selector, selector, selector_args)
        selection.check_aggregation(args, self._selector)
        functions, classes, self._columns, self._verifiers = sources_of(reward_funcs, reward_processing_classes)
        # By name, so that a class that stands between this one and GRPOTrainer may have another order.
        given = (model, functions, args, train_dataset, eval_dataset, processing_class, classes, *more)
        named = inspect.signature(GRPOTrainer.__init__).bind_partial(None, *given).arguments
        del named["self"]
        super().__init__(**named, **kwargs, loss=loss, loss_args=loss_args)
        self.objectives = distinct_names(self.reward_func_names)
        self._adopt_weights()
        if args.scale_rewards is None:
            self.scale_rewards = selection.scaling(
                self._selector, all_verified=len(self._columns) == len(self.objectives)
            )
        pools = getattr(self, "_environment_pool", {}).values()
        self._has_episodes = any(isinstance(pool[0], EpisodeEnvironment) for pool in pools)
        self._verifier_seconds = getattr(args, "verifier_seconds", SECONDS)
        self._max_error_rate = getattr(args, "max_error_rate", 1.0)
        plugins.check_needs(self._selector, self.objectives)
        plugins.check_needs(self.policy_loss, self.objectives, "policy loss")
        self._wants_facts = selection.wants_facts(self._selector) or self._wants_rows()
        self._schemas, self._counts = tools.Schemas(), Counts()
        self._mask_overflowed = getattr(args, "mask_overflowed", False)
        self._redraw_rounds = getattr(args, "redraw_rounds", 0)
        if self._redraw_rounds:
            self._check_redraw()
        self.callback_handler.callbacks.insert(0, _Begins(self))  # before those whose state it brings back
        self._attach()

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

    @property
    def components(self) -> dict[str, Any]:
        """What may have state that belongs to the training, by name; several of a kind are numbered."""
        callbacks = {f"callback-{i}": each for i, each in enumerate(self.components_told)}
        verifiers = {f"verifier-{i}": each for i, each in enumerate(self._verifiers)}
        return {"selector": self._selector, "loss": self.policy_loss, "tally": self.tally, **verifiers, **callbacks}

    def between_generations(self) -> bool:
        """Whether the next micro-step generates: TRL checkpoints no generated batch, so only this resumes exactly."""
        return bool(self._step % (self.args.steps_per_generation * self.num_iterations) == 0)

    @property
    def tokens(self) -> Mapping[str, int]:
        return MappingProxyType(self._counts.tokens)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds besides TRL's own, as JSON: counts, metrics not yet logged, state of components.

        Every process calls this.
        """
        metrics = {name: list(values) for name, values in self._metrics["train"].items()}
        state = {"counts": self._counts.state_dict(), "metrics": metrics, "scaled_ties": self._scaled_ties}
        return {**state, "components": states_of(self.components)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; from {}, start counting anew."""
        self._counts.load_state_dict(state.get("counts", {}), main=self.accelerator.is_main_process)
        if state:
            self._metrics["train"].clear()
            self._metrics["train"].update({name: list(values) for name, values in state["metrics"].items()})
        if state.get("scaled_ties"):
            self._scale_ties()
        restore(self.components, state.get("components", {}))

    # -------------------------------------------------------------------------------------------- TRL's methods

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        callbacks: Any = self.state.stateful_callbacks
        callbacks[STATE] = self.state_dict()
        super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._sampler = super()._get_train_sampler(dataset)  # for _Begins
        return self._sampler

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        with self._in_step():
            return super()._prepare_inputs(generation_batch)

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        with self._described_tools():
            generated: tuple[Any, ...] = super()._generate(prompts)
        step = self._current
        if step is None:  # called on its own
            return generated
        step.prompts, step.generated = prompts, generated[:4]
        if step.collecting:
            raise _Collected
        if self.exchanges and step.mode == "train":
            generated = exchange(self, step, generated)
        prompt_ids, completion_ids, masks = generated[:3]
        completed = sum(map(len, completion_ids))
        sampled = completed if masks is None else sum(map(sum, masks))
        step.tokens.update(prompt=sum(map(len, prompt_ids)) + completed - sampled, sampled=sampled)
        return generated

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        step = self._current
        if step is not None:
            self._give_back(step)  # where a subclass asks twice in a step
        failed_B = None  # booleans, where something can fail
        if self._verifiers or self._has_episodes or self._wants_facts:
            generated = step.generated if step is not None else None
            if generated is None:
                generated = ([()] * len(prompts), completion_ids_list, None, completions)
            known = (None, None) if step is None or step.known is None else step.known
            trajectories = known[0] or self._trajectories(inputs, prompts, generated)
            if self._verifiers or self._has_episodes:
                failed_B = self._verify(trajectories, inputs, known[1] or judged(self, trajectories))
            if step is not None and self._wants_facts:
                step.facts = facts_of(trajectories, self.reward_funcs, self._selector)
        rewards_B_M: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if failed_B is not None:
            rewards_B_M[failed_B] = torch.nan
        self._log_kinds(inputs, rewards_B_M)
        return rewards_B_M if step is None else self._select(step, rewards_B_M, failed_B)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        columns = tuple(inputs[0])  # TRL adds what a rollout_func returns to the rows
        with self._in_step() as step:
            out = self._scored(inputs)
            if self._redraw_rounds and step.mode == "train":
                self._redraw(out, len(inputs), columns)
            rows = int(out["prompt_mask"].sum() + out["completion_mask"].sum())
            step.tokens["trained"] += rows * self.num_iterations
        return out

    # -------------------------------------------------------------------------------------------- the step

    @contextmanager
    def _in_step(self) -> Iterator[Step]:
        """The record of the step that is going on, or of a new one. After it the trainer is as its user made it."""
        if self._current is not None:
            yield self._current
            return
        self._current = step = Step(mode="train" if self.model.training else "eval")
        try:
            yield step
            self._settle(step)
        finally:
            self._give_back(step)
            self._current = None

    @property
    def _mode(self) -> str:
        if self._current is not None:
            return self._current.mode
        return "train" if self.model.training else "eval"

    def _scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's step, with the selector's advantages in it and its column taken away again."""
        step = self._current
        assert step is not None
        step.rows, step.known = inputs, None
        try:
            out: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._give_back(step)
        self._restore_log(step)
        self._replace_advantages(step, out, len(inputs))
        self._add_columns(out, step.columns, self.accelerator.process_index * len(inputs))
        if step.mode == "train":
            self._reshape(out)
        self._leave_greedy_out(out)
        self._handle_overflow(step, out)
        return out

    def _handle_overflow(self, step: Step, out: dict[str, Any]) -> None:
        """Log the share of rows whose last calls ran but whose results did not fit, and leave them out of the loss."""
        if not self.tools or step.generated is None:
            return
        limit = self.max_tool_calling_iterations
        flags = [overflowed(messages, limit) for messages in step.generated[3]]
        over_B = torch.tensor(flags, device=self.accelerator.device)
        share = gather(over_B).float().mean().item()
        self._metrics[step.mode]["tools/overflowed_ratio"].append(share)
        if self._mask_overflowed and share:
            batches.leave_out(out, over_B, self.accelerator)

    def _settle(self, step: Step) -> None:
        """Count the step's tokens, and end what `_scored` ends, where a subclass came by without it."""
        if step.advantages_B is not None:
            raise RecipeError(
                f"{type(self).__name__} replaces _generate_and_score_completions without calling PFPOTrainer's, which "
                f"puts the advantages of {type(self._selector).__name__} in their place; call it, or use another "
                "selector."
            )
        self._give_back(step)
        self._restore_log(step)
        if step.tokens and step.mode == "train":
            mine_1_T = torch.tensor([list(step.tokens.values())], device=self.accelerator.device)
            brought = zip(step.tokens, gather(mine_1_T).sum(dim=0).tolist(), strict=True)
            self._counts.add_tokens(dict(brought))
            self._metrics["train"].update({f"tokens/{name}": [float(n)] for name, n in self.tokens.items()})

    def _rebind(self, step: Step, **attributes: Any) -> None:
        """Bind attributes to something else, never change what they hold, until they are given back."""
        step.as_given = {name: getattr(self, name) for name in attributes}
        vars(self).update(attributes)

    def _give_back(self, step: Step) -> None:
        vars(self).update(step.as_given)
        step.as_given = {}

    # -------------------------------------------------------------------------------------------- scoring

    def _verify(self, trajectories: list[Trajectory], rows: Sequence[Any], cards: list[ScoreCard]) -> torch.Tensor:
        """Take the verifiers' scores of the batch. Returns booleans (B,) over all processes: rows with an error.

        An error row holds 0 until TRL has computed its matrix, which then becomes NaN: TRL prints all arguments of a
        row that is all None.
        """
        for column in self._columns:
            scores = [card.scores[column.__name__] for card in cards]
            column.values = [0.0 if score.status == "error" else score.value for score in scores]
            column.spreads = [score.spread for score in scores]
        if self.tally:
            self.tally.add(rows, cards)
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
        names = ["episode", *(column.__name__ for column in self._columns)]
        flags_B_E = gather(torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device).T.contiguous())
        for name, share in zip(names, flags_B_E.mean(dim=0)[1:].tolist(), strict=True):
            self._metrics[self._mode][f"errors/{name}"].append(share)
        failed_B: torch.Tensor = flags_B_E[:, 0] > 0
        self._counts.add_rows(trajectories, cards, len(failed_B), int(failed_B.sum()), self._max_error_rate)
        return failed_B

    def _log_kinds(self, rows: list[dict[str, Any]], rewards_B_M: torch.Tensor) -> None:
        """Log each objective's mean per kind of task, where rows have a kind or verifiers need one."""
        if not (self._verifiers or self._has_episodes or "kind" in rows[0]):
            return
        kinds_B = np.array(gather_object([kind_of(row) for row in rows]))
        if not self._counts.few_kinds(kinds_B.tolist()):
            return
        values_B_M = rewards_B_M.cpu().double().numpy()
        for kind in sorted(set(kinds_B)):
            of_kind = values_B_M[kinds_B == kind]
            for name, column in zip(self.objectives, of_kind.T, strict=True):
                if not np.isnan(column).all():
                    self._metrics[self._mode][f"objective/{name}/{kind}"].append(float(np.nanmean(column)))

    def _select(self, step: Step, rewards_B_M: torch.Tensor, failed_B: torch.Tensor | None) -> torch.Tensor:
        """The matrix (B, M) over all processes as TRL shall see it: for most selectors with their column behind it."""
        group = self.num_generations if step.mode == "train" else self.num_generations_eval
        scores_G_N_M = rewards_B_M.cpu().double().numpy().reshape(-1, group, rewards_B_M.size(1))
        # One infinite reward would spoil its whole group, so such a row counts as not scored.
        scores_G_N_M[np.isinf(scores_G_N_M).any(axis=2)] = np.nan
        weights_M = self._pass_weights()
        oriented_G_N_M = pareto.orient(scores_G_N_M, weights_M)
        complete_G_N = pareto.complete_rows(oriented_G_N_M)
        valid_G_N = complete_G_N & ~np.isnan(oriented_G_N_M).all(axis=2)
        self._log_left_out(step, complete_G_N, failed_B)
        spread_G = selection.spread(oriented_G_N_M, valid_G_N)
        step.zero_signal_G = ~spread_G
        if group > 1:
            for name, value in selection.group_statistics(oriented_G_N_M, valid_G_N, spread_G).items():
                self._metrics[step.mode][name].append(value)
        if self._tie_is_default and selection.outside_unit(scores_G_N_M, oriented_G_N_M):
            self._scale_ties()
            logger.warning(selection.SCALED_TIES)
        scores_G_N_M[~valid_G_N] = np.nan
        facts = gather_object(list(step.facts)) if self._wants_facts else ()
        question = selection.Question(scores_G_N_M, valid_G_N, self.objectives, facts)
        if self._aggregation is not None:
            self._tell_gaps(complete_G_N, failed_B)
            self._rebind(step, multi_objective_aggregation=self._aggregation)
            summed_B = (rewards_B_M * self.reward_weights.to(rewards_B_M.device)).nansum(dim=1)
            step.columns = self._columns_of(question, summed_B.cpu().double().numpy())
            self._learn(step, question)
            return rewards_B_M
        method = "advantages" if hasattr(self._selector, "advantages") else "reward"
        said = selection.asked(self._selector, method, question)
        step.columns = self._columns_of(question, said.reshape(len(said), -1).mean(axis=1))
        self._learn(step, question)
        said_B = torch.as_tensor(said, dtype=torch.float32).to(rewards_B_M.device)
        if method == "advantages":
            step.advantages_B = said_B
            return rewards_B_M
        matrix = self._append(step, rewards_B_M, said_B)
        matrix[torch.as_tensor(~valid_G_N.reshape(-1), device=matrix.device)] = torch.nan
        return matrix

    def _learn(self, step: Step, question: selection.Question) -> None:
        """Let what learns take the generation in: once, in training alone, and alike on every process."""
        if step.mode != "train" or step.learned:
            return
        step.learned = True
        for each in (self._selector, *self.components_told):
            if hasattr(each, "learn"):
                question.put(each.learn)
        for name, value in metrics_of(self._selector).items():
            self._metrics["train"][f"selector/{name}"] = [value]

    def _log_left_out(self, step: Step, complete_G_N: np.ndarray, failed_B: torch.Tensor | None) -> None:
        """Log the share of rows that take no part: those that failed, and, but for TRL's own sums, those that lack a
        score that others of their group have."""
        if failed_B is None and self._aggregation is not None:
            return
        out_B = np.zeros(complete_G_N.size, bool) if failed_B is None else failed_B.cpu().numpy().copy()
        if self._aggregation is None:
            out_B |= ~complete_G_N.reshape(-1)
        self._metrics[step.mode]["errors/rows"].append(float(out_B.mean()))

    def _tell_gaps(self, complete_G_N: np.ndarray, failed_B: torch.Tensor | None) -> None:
        """Say once what TRL's sums make of a reward that a row lacks and others of its group have."""
        failed = np.zeros(complete_G_N.size, bool) if failed_B is None else failed_B.cpu().numpy()
        if not self._told_gaps and (~complete_G_N.reshape(-1) & ~failed).any():
            self._told_gaps = True
            logger.warning(selection.GAPS, type(self._selector).__name__)

    def _scale_ties(self) -> None:
        self._tie_is_default, self._scaled_ties, self._selector.tie_break = False, True, "scaled"

    def _pass_weights(self) -> np.ndarray:
        """Hand `reward_weights`, which a callback may change at any time, to the selector; ones if it takes none."""
        if not hasattr(self._selector, "weights"):
            return np.ones(len(self.objectives))
        weights = self.reward_weights.cpu().double().numpy()
        self._selector.weights = dict(zip(self.objectives, weights.tolist(), strict=True))
        return weights

    def _append(self, step: Step, rewards_B_M: torch.Tensor, column_B: torch.Tensor) -> torch.Tensor:
        """Add the selector's column for the rest of TRL's step."""
        name = COLUMN
        while name in self.reward_func_names:
            name += "'"
        step.column = (rewards_B_M, self.reward_weights.to(rewards_B_M.device), name)
        self._rebind(
            step,
            multi_objective_aggregation="sum_then_normalize",
            reward_funcs=[*self.reward_funcs, Objective(name)],
            reward_func_names=[*self.reward_func_names, name],
            reward_processing_classes=[*self.reward_processing_classes, None],
            reward_weights=torch.cat([torch.zeros_like(self.reward_weights), self.reward_weights.new_ones(1)]),
        )
        return torch.cat([rewards_B_M, column_B.unsqueeze(1)], dim=1)

    def _restore_log(self, step: Step) -> None:
        """TRL logged the column as the reward; log the user's weighted sum, and the column under its own name."""
        if step.column is None:
            return
        rewards_B_M, weights_M, column = step.column
        step.column = None
        group = self.num_generations if step.mode == "train" else self.num_generations_eval
        names, of_batch = self.reward_func_names, self.scale_rewards == "batch"
        metrics = self._metrics[step.mode]
        logs.as_trl_would(metrics, self._logs, rewards_B_M, weights_M, names, column, group, of_batch)

    def _replace_advantages(self, step: Step, out: dict[str, Any], rows: int) -> None:
        """Put a selector's own advantages in the place of TRL's, in the batch (this process's rows) and in the log."""
        advantages_B, step.advantages_B = step.advantages_B, None
        if advantages_B is None:
            return
        start = self.accelerator.process_index * rows
        own_B, width = advantages_B[start : start + rows], out["completion_ids"].size(1)
        out["advantages"] = selection.fitted(self._selector, own_B, width)
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
    def _collect(self) -> Iterator[None]:
        """Evaluation mode, and a step and metrics of its own, for a rollout; afterwards everything as before."""
        training, metrics, group = self.model.training, self._metrics, self.num_generations_eval
        outer, self._current = self._current, Step(mode="eval", collecting=True)
        self.model.eval()
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self.num_generations_eval = 1  # vLLM takes the rows for groups of this size, all of one prompt
        try:
            yield
        finally:
            self._current = outer
            self.num_generations_eval = group
            self._metrics = metrics
            self.model.train(training)

    def _collected(self, rows: list[dict[str, Any]]) -> list[Trajectory]:
        step = self._current
        assert step is not None
        with suppress(_Collected):
            super()._generate_and_score_completions(rows)
        assert step.generated is not None
        return self._trajectories(rows, step.prompts, step.generated)

    def _trajectories(
        self, rows: Sequence[Mapping[str, Any]], prompts: Sequence[Any], generated: tuple[Any, ...]
    ) -> list[Trajectory]:
        ends = (*self.eos_token_ids, self._tokenizer.pad_token_id)
        limit = self.max_tool_calling_iterations
        words = None if getattr(self, "rollout_func", None) is not None else words_of(self._tokenizer)
        return trajectories_of(rows, prompts, generated, self.environments, ends, limit, words)

    @contextmanager
    def _described_tools(self) -> Iterator[None]:
        """Tools as JSON schemas while TRL renders and parses, and their results as text, in the order of the calls.

        A rollout_func, which may call tools, finds functions.
        """
        held: dict[str, Any] = {name: vars(self)[name] for name in _TOOL_ATTRIBUTES if name in vars(self)}
        if getattr(self, "rollout_func", None) is None:
            for name in held.keys() & {"tools", "_env_tools"}:
                value = held[name]
                if isinstance(value, dict):
                    setattr(self, name, {key: self._schemas(of_key) for key, of_key in value.items()})
                else:
                    setattr(self, name, self._schemas(value))
        if "_sync_tool_dicts" in held:
            pairs = zip(held["_sync_tool_dicts"], held["_async_tool_dicts"], strict=True)
            made = [tools.readable(own, later, self._is_vlm) for own, later in pairs]
            self._sync_tool_dicts, self._async_tool_dicts = map(list, zip(*made, strict=True))
        try:
            yield
        finally:
            vars(self).update(held)

    # -------------------------------------------------------------------------------------------- re-draw

    def _check_redraw(self) -> None:
        """Raise RecipeError for what a re-draw would make wrong: quantities of a whole batch, rows it cannot move."""
        wrong = None
        if self.scale_rewards == "batch":
            wrong = "scale_rewards='batch' scales by the batch that was drawn first; use 'none' or 'group'"
        elif self._aggregation == "normalize_then_sum":
            wrong = "normalize_then_sum (gdpo) normalises over the batch that was drawn first; use another selector"
        elif getattr(self._selector, "whole_batch", False):
            wrong = f"{type(self._selector).__name__} compares the groups of the batch that was drawn first"
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
        step = self._current
        assert step is not None
        open_G, pad_id = step.zero_signal_G, self._tokenizer.pad_token_id
        group, replaced = self.num_generations, 0
        table = logs.newest(self._logs, len(open_G) * group)
        for number in range(self._redraw_rounds):
            slots = np.flatnonzero(open_G)
            if not len(slots):
                break
            new = self._scored(self._new_rows(len(slots), number, columns))
            fresh = batches.gathered(new, self.accelerator, pad_id)
            shown = logs.newest(self._logs, len(step.zero_signal_G) * group)
            gifts = np.flatnonzero(~step.zero_signal_G)[: len(slots)]
            slots = slots[: len(gifts)]
            open_G[slots] = False
            replaced += len(slots)
            first = self.accelerator.process_index * rows
            batches.merge(out, fresh, slots, gifts, group=group, pad_id=pad_id, first=first)
            logs.copy_groups(table, shown, slots, gifts, group)
        logs.put_back(self._logs, table)
        batches.count_items(out, self.accelerator)
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
