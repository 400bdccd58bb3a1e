"""The learner on torch: one model through warm start, SFT, PFPO and rollouts, with TRL's trainers.

Each trainer patches the forward of the module that it is given, and resets all random state from its seed. So the
forward is put back before the next trainer is built, a rollout trainer is never kept across a training stage, and every
stage brings its own seed. A training stage writes TRL's checkpoints into its scratch folder, and goes on from the last
complete one that it finds there.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from trl import DPOConfig, SFTConfig, SFTTrainer

from ..errors import FateError, LedgerError, RecipeError
from ..hookspecs import PairLoss, PolicyLoss, Suite
from ..ledger.components import metrics_of, read_states, restore, states_of, write_states
from ..loop.reporter import Reporter
from ..process.stop import Stop
from ..process.team import Team
from ..recipe.schema import Recipe
from ..suites.episodes import environment_factories
from ..suites.opening import tools_of
from ..types import BufferRow, Hindsight, Pair, RolloutRequest, Task, Trajectory
from . import out_of_memory, preference
from .checkpoints import Checkpoints, last_checkpoint, output_of
from .config import PFPOConfig
from .distillation import DistillationTrainer
from .engine import one_engine
from .examples import Unrenderable, renderable, tokens_of
from .logs import number
from .merging import merge_weights
from .models import load_model, take_weights
from .pair_facts import check_pairs
from .prefix.sharing import share_training
from .processor import MindsMemory, mind_memory, release
from .reference import set_reference
from .rows import request_dataset
from .spent import Spent
from .tally import Tally
from .templates import render
from .trainer import PFPOTrainer

logger = logging.getLogger(__name__)


class _Steps(TrainerCallback):
    """Tells the reporter about training steps, each time the trainer logs."""

    def __init__(self, reporter: Reporter):
        self.reporter = reporter
        self.told = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.reporter.expect(state.max_steps)
        self.told = state.global_step
        if self.told:  # a training that goes on from a checkpoint
            self.reporter.advance(self.told)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.global_step > self.told:
            self.reporter.advance(state.global_step - self.told, log=logs)
            self.told = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step > self.told:
            self.reporter.advance(state.global_step - self.told)


class TrlLearner:
    """A `Learner` on one model in memory.

    Args:
        recipe: Model, rollout, sft and pfpo settings.
        suites: By the name that tasks carry.
        verifiers: What PFPO scores with.
        selector: What PFPO rewards with.
        reporter: Told about training steps.
        team: The processes that do everything but `save` together; by default this one.
        pair_loss: What the preference stage minimises; None for TRL's `loss_type`.
        policy_loss: What PFPO minimises; None for TRL's `loss_type`.
        callbacks: What watches PFPO and steers it.

    Attributes:
        stop: Whether a stop was asked for; a training then ends at the next place where it can be resumed.
        components: By name, those whose state is saved beside the policy and loaded with it.
        tasks: Every task that may be rolled out; TRL makes environments for their sets of tools.
        first_policy: Folder of the policy that the run began with, for pair losses that ask for it; None if unknown.
    """

    name = "model"
    trainer = PFPOTrainer

    def __init__(
        self,
        recipe: Recipe,
        suites: Mapping[str, Suite],
        verifiers: Sequence[Any],
        selector: Any,
        reporter: Reporter,
        team: Team | None = None,
        pair_loss: PairLoss | None = None,
        policy_loss: PolicyLoss | None = None,
        callbacks: Sequence[Any] = (),
    ):
        if isinstance(recipe.model.threads, int):
            torch.set_num_threads(recipe.model.threads)
        set_seed(recipe.seed)  # the adapter's first weights are random
        self.recipe = recipe
        self.suites = suites
        self.verifiers = list(verifiers)
        self.selector = selector
        self.pair_loss = pair_loss
        self.policy_loss = policy_loss
        self.callbacks = list(callbacks)
        self.components: dict[str, Any] = {}
        learning = {"selector": selector, "pair-loss": pair_loss, "policy-loss": policy_loss}
        self.keep_states_of({**learning, **{f"verifier-{n}": judge for n, judge in enumerate(verifiers)}})
        self.keep_states_of({f"callback-{n}": each for n, each in enumerate(callbacks)})
        self.reporter = reporter
        self.team = team or Team()
        self.stop = Stop()
        self.tasks: list[Task] = []
        self.first_policy: Callable[[], Path | None] = lambda: None
        self._roller: PFPOTrainer | None = None
        self._spent = Spent()
        self._engine: Any = None
        self._fitting = recipe.rollout.chunk
        self._check_settings()
        self._open()

    def keep_states_of(self, components: Mapping[str, Any]) -> None:
        """Save and load the state of these components, by name, with the policy. They have learned nothing yet."""
        self.components |= components
        self._unlearned = states_of(self.components)

    def _open(self) -> None:
        self.model, self.tokenizer = load_model(self.recipe.model)
        self._causal = self.model.get_base_model() if self.recipe.model.lora else self.model
        self._forward = vars(self._causal).get("forward")

    def _check_settings(self) -> None:
        """TRL's own checks of its keys, before the model loads and not an hour later. Raises RecipeError."""
        stages = {
            "warm_start": SFTConfig,
            "sft": SFTConfig,
            "distillation": TrainingArguments,
            "preference": DPOConfig,
            "pfpo": PFPOConfig,
        }
        for section, config in stages.items():
            settings = getattr(self.recipe, section)
            if settings is None:
                continue
            try:
                config(**{**self.settings(0), **settings.trl})
            except (ValueError, TypeError) as error:
                raise RecipeError(f"{section}: {error}") from None

    def taken(self) -> dict[str, Any]:
        """Where time went since this was last asked: seconds by what they went into, and tokens read and spared.

        Rollouts that share no prefixes are "generating"; their engine tells neither its parts nor its tokens.
        """
        spent, self._spent = self._spent, Spent()
        if self._roller is not None:
            self._roller.tell(self._spent)
        read, asked = spent.tokens["read"], spent.tokens["asked"]
        tokens = {"read_tokens": read, "spared_tokens": asked - read} if asked else {}
        return {**tokens, **({"time": dict(spent.seconds)} if spent.seconds else {})}

    # -------------------------------------------------------------------------------------------- rollouts

    def rollout(self, requests: Sequence[RolloutRequest], seed: int) -> list[Trajectory]:
        if self._roller is None:
            self._roller = self._pfpo_trainer(requests[:1], seed, max_steps=1, **self.rollout_batch())
            self.model.to(self._roller.accelerator.device)  # TRL leaves that to the wrapper, where there is one
        set_seed(seed + self._roller.accelerator.process_index)
        trajectories = self._generated([self._readable(request) for request in requests])
        return [dataclasses.replace(trajectory, policy=self.name) for trajectory in trajectories]

    def _readable(self, request: RolloutRequest) -> RolloutRequest:
        """The request, its history of calls in a way that the chat template can render, where there is one."""
        if not any(message.get("tool_calls") for message in request.messages):
            return request
        task, template = request.task, self.recipe.rollout.trl.get("chat_template_kwargs") or {}
        tools = tools_of(self.suites[task.suite], task.tools)
        with suppress(Unrenderable):
            messages = tuple(renderable(request.messages, self.tokenizer, tools, **template))
            return dataclasses.replace(request, messages=messages)
        return request

    def _generated(self, requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        """The requests in batches that fit: where memory runs out, half as many from then on."""
        assert self._roller is not None
        out: list[Trajectory] = []
        while len(out) < len(requests):
            try:
                out += self._roller.rollout(requests[len(out) : len(out) + self._fitting])
                mind_memory()
            except out_of_memory.ERRORS as error:
                if not out_of_memory.is_out_of_memory(error):
                    raise
                tried = min(self._fitting, len(requests) - len(out))
                if tried == 1:
                    raise FateError(
                        "out of memory with a single trajectory: lower rollout.max_completion_length in the run's "
                        "recipe.yaml, then resume; or start again with model.load_in_4bit or a smaller model."
                    ) from error
                if self.team.size > 1:  # the others are in the middle of it
                    raise FateError(
                        "out of memory: lower rollout.chunk in the run's recipe.yaml, then resume. On several "
                        "processes a chunk is not made smaller by itself."
                    ) from error
                self._fitting = tried // 2
                logger.warning("out of memory; rolling out %d trajectories at a time. Lower rollout.chunk.", tried // 2)
            else:
                continue
            gc.collect()  # only here is what the error held on to free
            torch.cuda.empty_cache()
        return out

    def rollout_batch(self) -> dict[str, Any]:
        """A chunk at a time; TRL wants whole groups, so an odd chunk is generated with room for one more."""
        size = self.recipe.rollout.chunk + self.recipe.rollout.chunk % 2
        return {"per_device_train_batch_size": size, "num_generations": 2, "gradient_accumulation_steps": 1}

    def _pfpo_trainer(
        self, requests: Sequence[RolloutRequest], seed: int, trains: bool = False, **settings: Any
    ) -> PFPOTrainer:
        self.fresh()
        rollout = self.recipe.rollout
        args = PFPOConfig(
            **{
                **self.settings(seed),
                "temperature": rollout.temperature,
                "top_p": rollout.top_p,
                "max_completion_length": rollout.max_completion_length,
                "max_tool_calling_iterations": rollout.max_tool_calling_iterations,
                "verifier_seconds": rollout.verifier_seconds,
                "max_error_rate": self.recipe.evaluation.max_error_rate,
                "share_prefixes": self.recipe.share_prefixes,
                "prefix_cache_gb": rollout.prefix_cache_gb,
                **rollout.trl,
                **settings,
            }
        )
        with one_engine(self._engine):
            trainer = self.trainer(
                model=self.model,
                reward_funcs=list(self.verifiers),
                args=args,
                train_dataset=request_dataset(requests),
                processing_class=self.tokenizer,
                environment_factory=environment_factories(self.suites, self.tasks, rollout.limits),
                callbacks=[*(self.callbacks if trains else ()), _Steps(self.reporter)],
                selector=self.selector,
                loss=self.policy_loss if trains else None,
            )
        self._engine = getattr(trainer, "vllm_generation", None)
        trainer.tell(self._spent)
        return trainer

    def fresh(self) -> None:
        """The model as it was before the last trainer patched it, so that patches do not nest."""
        self._roller = None
        if self._forward is None:
            vars(self._causal).pop("forward", None)
        else:
            self._causal.forward = self._forward
        if self.recipe.model.lora is not None and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")  # TRL's copy of the adapter as it was a stage ago

    def settings(self, seed: int) -> dict[str, Any]:
        """Settings of every trainer that the run itself decides, or that differ here from TRL's defaults."""
        on_gpu = torch.cuda.is_available()
        return {
            "output_dir": tempfile.gettempdir(),
            "save_strategy": "no",  # Checkpoints says when
            "save_total_limit": 2,  # the older one counts until the newer one is complete
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
            "seed": seed,
            "bf16": on_gpu and self.recipe.model.dtype == "bfloat16",  # autocast; the weights have their dtype anyway
            "fp16": on_gpu and self.recipe.model.dtype == "float16",
            "gradient_checkpointing": on_gpu,  # on a CPU memory is cheap and time is not
            "dataloader_pin_memory": on_gpu,
            # Without it, transformers sees no group where processes have no GPU.
            **({"use_cpu": True} if self.team.size > 1 and not on_gpu else {}),
        }

    # -------------------------------------------------------------------------------------------- training

    def sft(self, rows: Sequence[BufferRow], seed: int, stage: str, scratch: str | None = None) -> dict[str, Any]:
        self.fresh()
        settings = self.recipe.warm_start if stage == "warm_start" else self.recipe.sft
        assert settings is not None
        template = self.recipe.rollout.trl.get("chat_template_kwargs") or {}
        examples = self._examples(rows, template)
        trainer = SFTTrainer(
            model=self.model,
            args=SFTConfig(**{**self.settings(seed), "max_length": None, **settings.trl, **output_of(scratch)}),
            train_dataset=Dataset.from_list(examples),
            processing_class=self.tokenizer,
            callbacks=[_Steps(self.reporter)],
        )
        if self.recipe.share_prefixes:
            share_training(trainer)
        summary = self._run(trainer, scratch, lambda: True, "save_steps" not in settings.trl)
        tokens = sum(len(example["input_ids"]) for example in examples)
        left_out = {"rows_left_out": len(rows) - len(examples)} if len(examples) < len(rows) else {}
        return {"rows": len(examples), **left_out, "trained_tokens": round(tokens * trainer.state.epoch), **summary}

    def _examples(self, rows: Sequence[BufferRow], template: Mapping[str, Any]) -> list[dict[str, list[int]]]:
        """The rows as tokens; those that the chat template cannot render are left out, and counted."""
        examples, wrong = [], []
        for row in rows:
            try:
                examples.append(tokens_of(row, self.tokenizer, self.tools_of(row), **template))
            except Unrenderable as error:
                wrong.append(str(error))
        if wrong and not examples:
            raise FateError(f"{wrong[0]}; so it is with all {len(rows)} rows. Set model.chat_template to another.")
        if wrong:
            logger.warning("%d of %d rows left out of SFT, such as: %s", len(wrong), len(rows), wrong[0])
        return examples

    def tools_of(self, row: BufferRow) -> list[Any]:
        """Prototypes of the tools that a row is rendered with."""
        return tools_of(self.suites[row.suite], row.tools) if row.tools else []

    def distillation(self, turns: Sequence[Hindsight], seed: int, scratch: str | None = None) -> dict[str, Any]:
        self.fresh()
        asked = self.recipe.distillation
        assert asked is not None
        settings = {**self.settings(seed), "remove_unused_columns": False, **asked.trl, **output_of(scratch)}
        rows = [self._in_hindsight(turn) for turn in turns]
        told_to, reverse = [_Steps(self.reporter)], asked.divergence == "reverse"
        args = TrainingArguments(**settings)
        trainer = DistillationTrainer(self.model, args, rows, self.tokenizer, told_to, reverse)
        summary = self._run(trainer, scratch, lambda: True, "save_steps" not in asked.trl)
        tokens = sum(len(row["student_ids"]) + len(row["teacher_ids"]) for row in rows)
        return {"rows": len(rows), "trained_tokens": round(tokens * trainer.state.epoch), **summary}

    def _in_hindsight(self, turn: Hindsight) -> dict[str, list[int]]:
        """A turn at fault as tokens, after the plain prompt and after the teacher's."""
        tools = tools_of(self.suites[turn.suite], turn.tools) if turn.tools else []
        template = self.recipe.rollout.trl.get("chat_template_kwargs") or {}
        prompt = render(self.tokenizer, turn.teacher, tools, add_generation_prompt=True, **template)
        after = [*turn.before_ids, *turn.turn_ids]
        return {
            "student_ids": [*turn.prompt_ids, *after],
            "teacher_ids": [*prompt, *after],
            "turn_ids": list(turn.turn_ids),
        }

    def preference(
        self, pairs: Sequence[Pair], seed: int, scratch: str | None = None, reference: str | None = None
    ) -> dict[str, Any]:
        self.fresh()
        assert self.recipe.preference is not None
        settings = self.recipe.preference.trl
        args = DPOConfig(**{**self.settings(seed), **preference.SETTINGS, **settings, **output_of(scratch)})
        check_pairs(pairs, self.pair_loss, self.tokenizer)
        rows = preference.rows_of(pairs, args.max_length, self.pair_loss, self.tokenizer)
        if not rows:
            raise FateError(f"preference.max_length is {args.max_length}: none of {len(pairs)} pairs is short enough.")
        with preference.dropout_kept(self.model):
            told_to = [_Steps(self.reporter)]
            first = None if (folder := self.first_policy()) is None else lambda: self._weights_of(str(folder))
            trainer = preference.PairTrainer(self.model, args, rows, self.tokenizer, told_to, self.pair_loss, first)
            if reference is not None:
                set_reference(trainer, reference)
            if self.recipe.share_prefixes:
                share_training(trainer, trainer.head_fields)
            summary = self._run(trainer, scratch, lambda: True, "save_steps" not in settings)
        return {**preference.told_of(trainer, rows, summary["log"]), **summary}

    def pfpo(
        self, requests: Sequence[RolloutRequest], seed: int, scratch: str | None = None, reference: str | None = None
    ) -> dict[str, Any]:
        assert self.recipe.pfpo is not None
        # TRL samples in training mode: with dropout it would reward another policy, whose first ratio is not 1.
        settings = {"disable_dropout": True, **self.recipe.pfpo.trl}
        readable = [self._readable(request) for request in requests]
        with preference.dropout_kept(self.model):
            trainer = self._pfpo_trainer(readable, seed, trains=True, **settings, **output_of(scratch))
            trainer.tally = Tally() if self.recipe.pfpo.budget is not None else None
            trainer.exchanges = self.recipe.pfpo.exchange
            if reference is not None:
                set_reference(trainer, reference)
            elif trainer.ref_model is not None:  # TRL loads the model as it was given; the stage's start is meant
                trainer.accelerator.unwrap_model(trainer.ref_model).load_state_dict(self.model.state_dict())
            summary = self._run(trainer, scratch, trainer.between_generations, "save_steps" not in settings)
        told = metrics_of(self.selector)
        summary |= {"selector": told} if told else {}
        summary |= {} if trainer.tally is None else {"tried": trainer.tally.tried}
        return {"prompts": len(requests), **{f"{name}_tokens": n for name, n in trainer.tokens.items()}, **summary}

    def _run(self, trainer: Any, scratch: str | None, exact: Callable[[], bool], timed: bool) -> dict[str, Any]:
        """Train, from the last checkpoint in `scratch` if there is one."""
        trainer.add_callback(MindsMemory)
        trainer.remove_callback(PrinterCallback)  # the log goes to the run directory, not to the screen
        checkpoints = Checkpoints(exact, timed, self.stop, self.team)
        if scratch is not None:
            trainer.add_callback(checkpoints)
        found = last_checkpoint(scratch, self.team.size) if scratch is not None and self.team.leads else None
        try:
            with self._spent.on("training"):
                trainer.train(resume_from_checkpoint=self.team.agreed(found))
        except Exception as error:
            if out_of_memory.is_out_of_memory(error):
                raise FateError(
                    "out of memory in training: in the run's recipe.yaml lower per_device_train_batch_size of this "
                    "stage, and raise gradient_accumulation_steps by as much; then resume."
                ) from error
            if not checkpoints.saving:
                raise
            raise LedgerError(f"cannot write a checkpoint to {scratch}: {error}. Mend that, then resume.") from error
        if trainer.state.global_step < trainer.state.max_steps:
            self.stop.check()
        self._take_back(trainer, scratch)
        self.fresh()
        self.model.zero_grad(set_to_none=True)
        release()
        history = [{key: number(value) for key, value in entry.items()} for entry in trainer.state.log_history]
        return {"steps": trainer.state.global_step, "log": history}

    def _take_back(self, trainer: Any, scratch: str | None) -> None:
        """Where a wrapper split the weights over the processes: the trained ones, from a folder, in a fresh model."""
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            return
        folder = str(Path(scratch or self.team.agreed(tempfile.mkdtemp())) / "handed-over")
        trainer.save_model(folder)
        self.team.wait()
        self._open()
        self._load_weights(folder)

    # -------------------------------------------------------------------------------------------- saving

    def merge(
        self, folders: Sequence[str], coefficients: Sequence[float], path: str, exact: bool = False
    ) -> dict[str, Any]:
        """Of adapters one of the recipe's rank, so that a training can go on from it; or the exact one."""
        lora = self.recipe.model.lora
        return dict(merge_weights(folders, coefficients, path, None if lora is None or exact else lora.r))

    def save(self, path: str) -> None:
        """The adapter, or all weights, as safetensors, the tokenizer, and the state of components that learn."""
        lora = {"selected_adapters": ["default"]} if self.recipe.model.lora is not None else {}
        try:
            self.model.save_pretrained(path, **lora)
            self.tokenizer.save_pretrained(path)
            write_states(path, self.components)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise LedgerError(f"cannot write the policy to {path}: {error}. Mend that, then resume.") from error

    def load(self, path: str) -> None:
        """Take over what `save` wrote. Raises LedgerError if the weights are not there or do not fit."""
        self._load_weights(path)
        restore(self.components, {**self._unlearned, **read_states(path)})

    @contextmanager
    def _weights_of(self, path: str) -> Iterator[None]:
        """Within it the model has the weights of a saved policy; what patched its forward stays."""
        lora = self.recipe.model.lora is not None
        own = get_peft_model_state_dict(self.model) if lora else self.model.state_dict()
        own = {name: values.clone() for name, values in own.items()}
        try:
            take_weights(self.model, path, self._adapter)
            yield
        finally:
            set_peft_model_state_dict(self.model, own) if lora else self.model.load_state_dict(own)

    def _load_weights(self, path: str) -> None:
        self.fresh()
        take_weights(self.model, path, self._adapter)

    @property
    def _adapter(self) -> str | None:
        """The name of what is trained; None where that is the whole model."""
        return None if self.recipe.model.lora is None else "default"
