"""GRPOTrainer whose loss may be a plugin's, and which callbacks may watch; without them all is TRL's, to the bit.

It overrides two methods of TRL's and copies none:

- `_compute_loss` calls TRL's, which logs what it always logs. Of a policy loss TRL's value is let go, and the loss on
  the same log-probabilities takes its place.
- `_get_per_token_logps_and_entropies` passes through, and keeps what it returned meanwhile.

What losses and callbacks want to know of whole groups is asked where a generation is scored, and travels with its rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from .. import plugins
from ..errors import PluginError, RecipeError
from ..hookspecs import PolicyBatch, takes_rows
from ..ledger.components import metrics_of
from ..recipe.pfpo_checks import OF_TRLS_LOSS, check_setting
from .greedy import GreedyTrainer
from .plugin_loss import scalar
from .reference import complete_reference
from .selection import Question

REWARD, VALID = "fate_trl reward", "fate_trl valid"
_MEMBERS = ("attach", "learn", "reshape", "columns", "watch", "metrics", "state_dict", "reference", "weighs")


def adapted(callback: Any) -> TrainerCallback:
    """A callback as transformers calls it: itself, or something that hands on what it has methods for."""
    if isinstance(callback, TrainerCallback):
        return callback
    events = {name for name in dir(TrainerCallback) if name.startswith("on_") and hasattr(callback, name)}
    kind = type(type(callback).__name__, (TrainerCallback,), {})  # transformers warns of two of one class
    out: TrainerCallback = kind()
    vars(out).update({name: getattr(callback, name) for name in events}, component=callback)
    return out


def _check_adapter(model: Any, peft_config: Any) -> None:
    """Raises RecipeError for an adapter that transformers' `from_pretrained` has put into a model that is no PeftModel.

    It is frozen, and TRL would go through a whole training that changes nothing; with a `peft_config` TRL would put an
    empty adapter in its place.
    """
    loaded = any(getattr(module, "_hf_peft_config_loaded", False) for module in model.modules())
    if loaded and (peft_config is not None or not any(weights.requires_grad for weights in model.parameters())):
        raise RecipeError(
            "the model holds an adapter that transformers loaded for inference, which no trainer goes on from. Load it "
            "with peft's AutoPeftModelForCausalLM.from_pretrained(FOLDER, is_trainable=True), without peft_config."
        )


class LossTrainer(GreedyTrainer):
    """What PFPOTrainer stands on.

    Attributes:
        policy_loss: The plugin's; None for TRL's.
        components_told: Callbacks with members of their own, see `hookspecs.Callback`.
    """

    policy_loss: Any = None
    components_told: Sequence[Any] = ()
    _selector: Any = None
    _keeping = False
    _kept: tuple[Any, ...] = ()
    _measured: Mapping[str, list[float]] = {}
    _measured_at = -1
    _metrics: Any
    model: Any
    num_generations: Any
    num_generations_eval: Any
    accelerator: Any
    beta: Any
    temperature: Any

    def __init__(self, *given: Any, loss: Any = None, loss_args: Any = None, **named: Any):
        self.policy_loss = plugins.load("policy loss", loss, loss_args) if isinstance(loss, str) else loss
        callbacks = list(named.get("callbacks") or ())
        self.components_told = [each for each in callbacks if any(hasattr(each, name) for name in _MEMBERS)]
        if callbacks:
            named["callbacks"] = [each if isinstance(each, type) else adapted(each) for each in callbacks]
        if self.policy_loss is not None or self.components_told:
            self._check_loss(named["args"], evaluates=named.get("eval_dataset") is not None)
        super().__init__(*given, **named)
        _check_adapter(self.model, named.get("peft_config"))
        complete_reference(self.model)

    def create_optimizer(self, model: Any = None) -> Any:
        """TRL's. Raises RecipeError where nothing can be trained: the whole training would change nothing."""
        if not any(weights.requires_grad for weights in (self.model if model is None else model).parameters()):
            raise RecipeError(
                "no weight of the model can be trained: all are frozen. Load an adapter that is to learn with "
                "is_trainable=True, or give a peft_config."
            )
        return super().create_optimizer(model)

    @property
    def measured(self) -> dict[str, float]:
        """What TRL measured in the step that is going on, or that was taken last: "entropy", and "kl" where beta > 0.

        Means over its micro-batches; `kl` is the divergence from the reference, `entropy` in nats, both by token.
        """
        return {name: float(np.mean(values)) for name, values in self._measured.items()}

    @property
    def _asking(self) -> dict[str, Any]:
        """Who wants columns, by what their names begin with in a batch."""
        every = {"loss": self.policy_loss, **{f"callback {i}": each for i, each in enumerate(self.components_told)}}
        return {name: each for name, each in every.items() if hasattr(each, "columns")}

    @property
    def _whole_groups(self) -> bool:
        return super()._whole_groups or getattr(self.policy_loss, "whole_groups", False)

    def _check_loss(self, args: Any, evaluates: bool) -> None:
        """Raises RecipeError for a policy loss or callback that these settings, or this selector, leave without what
        it needs."""
        settings = {**vars(args), **({} if evaluates else {"num_generations_eval": None})}
        if evaluates and not settings["num_generations_eval"]:
            settings["num_generations_eval"] = args.num_generations
        check_setting(settings, self.policy_loss, self.components_told, self._selector)
        defaults = {key: args.__dataclass_fields__[key].default for key in OF_TRLS_LOSS}
        own = [key for key, default in defaults.items() if self.policy_loss and getattr(args, key) != default]
        if own:
            raise RecipeError(f"{own[0]} says something of TRL's loss, whose place a policy loss takes; give one.")

    # -------------------------------------------------------------------------------------------- a generation

    def _columns_of(self, question: Question, reward_B: np.ndarray) -> dict[str, np.ndarray]:
        """What losses and callbacks want to know of each row, (B,) over all processes."""
        if self.policy_loss is None and not any(hasattr(each, "watch") for each in self.components_told):
            return {}
        question = self._of_the_sampled(question)
        valid_G_N = question.valid_G_N
        reward_G_N = np.where(valid_G_N, reward_B.reshape(valid_G_N.shape), np.nan)
        out = {REWARD: np.nan_to_num(reward_G_N), VALID: valid_G_N}
        for who, each in self._asking.items():
            said = question.put(each.columns, reward_G_N=reward_G_N)
            if not isinstance(said, Mapping):
                raise PluginError(f"{type(each).__name__}: columns must return arrays by name, not {str(said)[:80]}.")
            for name, values in said.items():
                out[f"{who} {name}"] = _checked(values, valid_G_N, f"{type(each).__name__}: column {name!r}")
        return {name: values.reshape(-1) for name, values in out.items()}

    def _wants_rows(self) -> bool:
        """Whether a policy loss or callback asks for facts about rows."""
        asked = [each.columns for each in self._asking.values()]
        asked += [each.learn for each in self.components_told if hasattr(each, "learn")]
        return any(map(takes_rows, asked))

    def _add_columns(self, out: dict[str, Any], columns: Mapping[str, np.ndarray], first: int) -> None:
        """Put this process's rows of the columns, from number `first` on, into a generation batch."""
        mine = slice(first, first + len(out["prompt_ids"]))
        for name, values_B in columns.items():
            out[name] = torch.as_tensor(values_B[mine], dtype=torch.float32, device=out["prompt_ids"].device)

    def _attach(self) -> None:
        for each in self.components_told:
            if hasattr(each, "attach"):
                each.attach(self)

    def _reshape(self, out: dict[str, Any]) -> None:
        """Let callbacks change the advantages of a generation, in place."""
        for each in self.components_told:
            if hasattr(each, "reshape"):
                before, who = out["advantages"], f"{type(each).__name__}: reshape must return"
                said = out["advantages"] = each.reshape(before.clone())
                if not isinstance(said, torch.Tensor) or said.shape != before.shape:
                    raise PluginError(f"{who} a tensor of shape {before.shape}.")
                if not torch.isfinite(said[torch.isfinite(before)]).all():
                    raise PluginError(f"{who} finite advantages, where those that it is given are.")

    # -------------------------------------------------------------------------------------------- a micro-batch

    def _get_per_token_logps_and_entropies(self, *given: Any, **named: Any) -> Any:
        out = super()._get_per_token_logps_and_entropies(*given, **named)
        if self._keeping:
            self._kept = out
        return out

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        watching = {f"callback {i}": each for i, each in enumerate(self.components_told) if hasattr(each, "watch")}
        if self.policy_loss is None and not self.components_told:
            return super()._compute_loss(model, inputs)  # type: ignore[no-untyped-call]
        self._keeping = True
        try:
            trls = super()._compute_loss(model, inputs)  # type: ignore[no-untyped-call]
            kept = self._kept
        finally:
            self._keeping, self._kept = False, ()
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._measure()
            for name, each in watching.items():
                each.watch(self._batch(model, inputs, kept, name, each))
        if self.policy_loss is None:
            return trls
        said = self.policy_loss(self._batch(model, inputs, kept, "loss", self.policy_loss))
        loss = scalar(said, self.policy_loss, "policy loss")
        for name, value in metrics_of(self.policy_loss).items():
            self._metrics[mode][f"loss/{name}"].append(value)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * kept[2]
        return loss / (self.current_gradient_accumulation_steps if mode == "train" else 1.0)

    def _measure(self) -> None:
        """Note what TRL has just measured, for callbacks; and what these have to tell, for the log."""
        if self._measured_at != self.state.global_step:
            self._measured, self._measured_at = defaultdict(list), self.state.global_step
        for name in ("kl", "entropy"):
            if self._metrics["train"].get(name):
                self._measured[name].append(self._metrics["train"][name][-1])
        for each in self.components_told:
            for name, value in metrics_of(each).items():
                self._metrics["train"][f"callback/{name}"] = [value]

    def _batch(self, model: Any, inputs: Mapping[str, Any], kept: tuple[Any, ...], who: str, asked: Any) -> PolicyBatch:
        """What a policy loss, or a callback, is told of a micro-batch."""
        mask_B_T = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        counts_B_T, logps_B_T = mask_B_T.bool(), kept[0]

        def counted(values_B_T: Any) -> Any:
            return torch.where(counts_B_T, values_B_T, 0.0)

        old_B_T, ref_B_T = inputs.get("old_per_token_logps"), inputs.get("ref_per_token_logps")
        advantages_B_T = inputs["advantages"]
        grouped = getattr(asked, "whole_groups", False)
        return PolicyBatch(
            logps_B_T=counted(logps_B_T),
            old_logps_B_T=counted(logps_B_T.detach() if old_B_T is None else old_B_T),
            mask_B_T=mask_B_T,
            entropy_B_T=counted(kept[1].detach()),
            advantages_B_T=advantages_B_T[:, None] if advantages_B_T.ndim == 1 else advantages_B_T,
            reward_B=inputs[REWARD],
            valid_B=inputs[VALID].bool() & counts_B_T.any(dim=1),
            columns={key[len(who) + 1 :]: value for key, value in inputs.items() if key.startswith(f"{who} ")},
            beta=self.beta,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            importance_B_T=inputs.get("importance_sampling_ratio", torch.ones_like(inputs[REWARD])[:, None]),
            ref_logps_B_T=None if ref_B_T is None else counted(ref_B_T),
            group_B=inputs["row"] // self._group_size() if grouped else None,
            logits_B_T_V=self._logits(model, inputs) if getattr(asked, "logits", False) else None,
        )

    def _group_size(self) -> int:
        return int(self.num_generations if self.model.training else self.num_generations_eval)

    @torch.no_grad()
    def _logits(self, model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Logits by temperature at each token of the completions, by a forward pass without TRL's fused head."""
        ids, mask = (
            torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], dim=1) for name in ("ids", "mask")
        )
        width = inputs["completion_ids"].size(1)
        with self.accelerator.autocast():
            logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=width + 1, use_cache=False).logits
        out: torch.Tensor = logits[:, -width - 1 : -1].float() / self.temperature
        return out


def _checked(values: Any, valid_G_N: np.ndarray, who: str) -> np.ndarray:
    """A column, 0 in rows that are out. Raises PluginError where it is of a wrong shape, or not finite elsewhere."""
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise PluginError(f"{who} is {str(values)[:80]}; it must be numbers of the shape {valid_G_N.shape}.") from None
    if found.shape != valid_G_N.shape:
        raise PluginError(f"{who} has the shape {found.shape}; it must be {valid_G_N.shape}.")
    if not np.isfinite(found[valid_G_N]).all():
        raise PluginError(f"{who} is NaN or infinite in a row that is valid.")
    return np.where(valid_G_N, found, 0.0)
