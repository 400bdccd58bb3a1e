"""What each stage will need of a device's memory, told before any weight loads.

Weights, adapter, gradients and optimiser states are counted. What a forward and a backward keep, and what they need for
moments, is *played*: the model's own modules, LoRA included, run on fake tensors, which have sizes and no content, and
whatever is alive is added up. The play has two and three layers, and the rest is as many times their difference. The
head is TRL's, which scores tokens in tiles and never holds all logits (`trl.kernels`).

How near this comes is measured by benchmarks/memory.py.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import plugins
from ..recipe.schema import Preference, Recipe, generation, references_in
from ..recipe.trl_keys import trl_defaults

GIB = 2**30

CONTEXT = 2**30
"""Bytes of a CUDA context with the libraries' workspaces (ours; not measured)."""

ROLLOUTS = "collect, repair, evaluate"
"""What the needs of everything that only generates are called."""

PROCESS = 545 * 2**20
"""Bytes of a process on a CPU that has imported torch and TRL and has no model (docs/results/memory.md)."""

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits, doubly quantised: half, a byte per 64 for the scale, a float32 per 256 of those."""

READ_TOKENS, PACK_TOKENS, PACK_CHUNK = 4096, 4096, 256
"""What train/prefix/rollouts.py reads at a time, and train/prefix/updates.py computes and scores."""

FEEDBACK_TOKENS = 64
"""Of what verifiers say of a failure (ours; not measured)."""

_TILE_TOKENS, _TILE_WORDS = 4096, 32768
_TILE_COPIES = 8
"""trl.kernels.chunked_logprob: the tile in which tokens are scored, and how many of it its torch version holds."""


@dataclass(frozen=True)
class Lengths:
    """Tokens: the longest plain prompt, the longest prompt of all (repairs), and the longest completion allowed."""

    prompt: int
    longest_prompt: int
    completion: int


@dataclass(frozen=True)
class Need:
    """What one stage needs at its peak, in bytes, part by part."""

    stage: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class _Pass:
    """What one forward and its backward take, in bytes.

    Attributes:
        held: From the end of the forward on, until its backward.
        parts: At its peak, part by part.
    """

    held: int
    parts: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def estimate(recipe: Recipe, config: Any, lengths: Lengths, gpu: bool, device_memory: float | None) -> list[Need]:
    """What the stages of a recipe need.

    Args:
        recipe: The recipe.
        config: The model's configuration, transformers'.
        lengths: Of prompts and completions.
        gpu: Whether it runs on a GPU, where Trainer's defaults differ; else on a CPU.
        device_memory: Bytes of the device, of which vLLM in the same process takes its share; None: unknown.
    """
    model = _Counted(recipe, config, gpu)
    needs = [_rollouts(recipe, model, lengths, device_memory)]
    for stage, settings in (("warm_start", recipe.warm_start), ("sft", recipe.sft)):
        if settings is not None:
            needs.append(_supervised(stage, settings.trl, model, lengths))
    if recipe.preference is not None:
        needs.append(_preference(recipe.preference, model, lengths))
    if recipe.pfpo is not None:
        needs += _pfpo(recipe, model, lengths, device_memory)
    return needs


def lower(stage: str, recipe: Recipe) -> str:
    """What to lower where a training stage does not fit."""
    advice = f"Set {stage}.per_device_train_batch_size: 1, or lower rollout.max_completion_length."
    return advice if recipe.model.load_in_4bit else f"{advice} Or model.load_in_4bit: true with model.lora."


def _rollouts(recipe: Recipe, model: _Counted, lengths: Lengths, device_memory: float | None) -> Need:
    keys, rows, length = recipe.rollout.trl, recipe.rollout.chunk, lengths.longest_prompt + lengths.completion
    return Need(ROLLOUTS, model.generating(model.held(), rows, length, keys, device_memory))


def _supervised(stage: str, trl: Mapping[str, Any], model: _Counted, lengths: Lengths) -> Need:
    length = lengths.longest_prompt + lengths.completion
    length = min(length, trl.get("max_length") or length)
    rows = {**trl_defaults("sft_config"), **trl}["per_device_train_batch_size"]
    if model.shares:  # at worst no row begins as another does
        completion = min(lengths.completion, length)
        needed = model.packed(trl, rows, 1, length - completion, completion)
    else:
        needed = model.plain(trl, rows, length, min(lengths.completion, length))
    return Need(stage, {**model.held(), **model.step(trl, needed)})


def _preference(settings: Preference, model: _Counted, lengths: Lengths) -> Need:
    """Both sides of a pair go through the model at once, their prompt once where prefixes are shared, and then what the
    pair loss asks for beside them; the reference is there, a copy of the adapter or of a full model, and its pass is
    over by then."""
    trl, longest = settings.trl, settings.trl.get("max_length")
    pairs = {**trl_defaults("dpo_config"), **trl}["per_device_train_batch_size"]

    def forward(sides: int, before: int, after: int, shared: int) -> _Pass:
        length = min(before + after, longest or before + after)
        before = min(before, length)
        if model.shares:
            return model.packed(trl, sides * pairs, shared, before, length - before)
        return model.plain(trl, sides * pairs, length, min(after, length))

    passes = [forward(2, lengths.prompt, lengths.completion, 2)]
    if further := _further(settings, lengths):
        before, after = (max(sizes) for sizes in zip(*further.values(), strict=True))
        passes.append(forward(len(further), before, after, 2 if "repaired" in further else 1))
    return Need("preference", {**model.held(), **model.reference("preference", 1.0), **model.step(trl, *passes)})


def _further(settings: Preference, lengths: Lengths) -> dict[str, tuple[int, int]]:
    """The further sequences of a pair that the pair loss asks for: tokens before each, and its own."""
    from ..train.pair_facts import sequences_of

    if settings.loss is None:
        return {}
    repair, plain = (lengths.longest_prompt, lengths.completion), (lengths.prompt, lengths.completion)
    said = (sum(plain), FEEDBACK_TOKENS)
    sizes = {"repaired": repair, "failed": repair, "rationale": said, "own": plain}
    loss = plugins.load("pair loss", settings.loss.name, settings.loss.args)
    return {name: sizes[name] for name in sequences_of(loss)}


def _pfpo(recipe: Recipe, model: _Counted, lengths: Lengths, device_memory: float | None) -> list[Need]:
    assert recipe.pfpo is not None
    trl, keys = recipe.pfpo.trl, generation(recipe)
    settings = {**trl_defaults("grpo_config"), **trl}
    prompt = lengths.longest_prompt if recipe.pfpo.prompts != "plain" else lengths.prompt
    group = settings["num_generations"]
    rows = settings["per_device_train_batch_size"]
    steps = settings["steps_per_generation"] or settings["gradient_accumulation_steps"]
    generated = settings["generation_batch_size"] or rows * steps
    held = {**model.held(), **model.reference("pfpo", settings["beta"])}
    before = {**held, **model.optimiser(trl)}  # of the steps before this generation
    if model.shares:
        needed = model.packed(trl, rows, group, prompt, lengths.completion)
    else:
        needed = model.plain(trl, rows, prompt + lengths.completion, lengths.completion)
    return [
        Need("pfpo: generate", model.generating(before, generated, prompt + lengths.completion, keys, device_memory)),
        Need("pfpo: train", {**held, **model.step(trl, needed), **_engine(keys, device_memory)}),
    ]


def _engine(keys: Mapping[str, Any], device_memory: float | None) -> dict[str, int]:
    """vLLM in the same process: it takes its share of the device at once, and keeps it unless it is let sleep."""
    if not keys.get("use_vllm") or keys.get("vllm_mode", "colocate") != "colocate" or device_memory is None:
        return {}
    awake = not keys.get("vllm_enable_sleep_mode", False)
    return {"vLLM": int(keys.get("vllm_gpu_memory_utilization", 0.3) * device_memory)} if awake else {}


class _Counted:
    """A model that was never loaded: what its parts weigh."""

    def __init__(self, recipe: Recipe, config: Any, gpu: bool):
        import torch

        from ..train.prefix.support import of_config

        self.recipe, self.gpu = recipe, gpu
        name = recipe.model.dtype
        # Unsettled, on a CPU the larger one: which is faster there is timed when the run starts.
        self.dtype = getattr(torch, name if name != "auto" else "bfloat16" if gpu else "float32")
        self.text = config.get_text_config()
        self.config = config
        whole = self._built(self.text.num_hidden_layers)
        trained = [p for p in whole.parameters() if p.requires_grad]
        lora = recipe.model.lora is not None
        # peft holds an adapter in float32, and TRL makes it bfloat16 on a quantised base.
        self.trained_bytes = (2 if recipe.model.load_in_4bit else 4) if lora else self.dtype.itemsize
        self.trained = [p.numel() for p in trained]
        linears = _quantised(whole) if recipe.model.load_in_4bit else []
        base = sum(p.numel() for p in whole.parameters()) - (sum(self.trained) if lora else 0)
        in_4bit = sum(linears)
        self.base = int(in_4bit * NF4_BYTES + (base - in_4bit) * self.dtype.itemsize)
        self.adapter = sum(self.trained) * self.trained_bytes if lora else 0
        self.workspace = 2 * max(linears, default=0)  # one weight at a time is made bfloat16 again
        self.shares = recipe.share_prefixes and not of_config(config)

    def _built(self, layers: int) -> Any:
        """The model with so many layers on the meta device, with LoRA as the recipe has it."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=self.dtype)
            if self.recipe.model.lora is not None:
                lora = LoraConfig(task_type="CAUSAL_LM", **self.recipe.model.lora.model_dump())
                model = get_peft_model(model, lora, low_cpu_mem_usage=True)
        return model

    def held(self) -> dict[str, int]:
        """What is there in every stage."""
        context = {"CUDA context": CONTEXT} if self.gpu else {"process": PROCESS}
        workspace = {"4-bit workspace": self.workspace} if self.workspace else {}
        adapter = {"adapter": self.adapter} if self.adapter else {}
        return {"base weights": self.base, **adapter, **workspace, **context}

    def reference(self, stage: str, beta: float) -> dict[str, int]:
        """The policy as the stage began, which a KL term is taken to: a copy of what is trained. Where a merge makes
        it, an adapter is at most as large as those of all rounds together."""
        merged = self.recipe.rounds + 1 if stage in references_in(self.recipe) else 1
        return {"reference": self.adapter * merged or self.base} if beta else {}

    def optimiser(self, trl: Mapping[str, Any]) -> dict[str, int]:
        """Its states: two per weight in the weight's type, or in 8 bits where there are 4,096 weights or more."""
        name = str(trl.get("optim", "adamw_torch_fused"))
        if "8bit" in name:
            size = sum(n * 2 if n >= 4096 else n * 8 for n in self.trained)
        elif "adam" in name or "lion" in name:
            size = (1 if "lion" in name else 2) * sum(self.trained) * self.trained_bytes
        else:
            size = 0
        return {"optimiser": size}

    @property
    def gradients(self) -> int:
        return int(sum(self.trained) * self.trained_bytes)

    def step(self, trl: Mapping[str, Any], first: _Pass, further: _Pass | None = None) -> dict[str, int]:
        """Gradients, optimiser, and a pass; a further one of the same step is gone back through first, while what the
        first one holds is there."""
        parts = {"gradients": self.gradients, **self.optimiser(trl), **first.parts}
        return parts if further is None else {**parts, "further sides": max(0, first.held + further.peak - first.peak)}

    def plain(self, trl: Mapping[str, Any], rows: int, length: int, scored: int) -> _Pass:
        """Activations and the head's tile for `rows` × `length` tokens."""
        checkpointing = trl.get("gradient_checkpointing", self.gpu)
        kept, peak = self._play(rows, length, train=True, checkpointing=checkpointing)
        hidden = self.text.hidden_size
        if self.gpu:
            tokens = rows * scored
            head = min(tokens, _TILE_TOKENS) * _TILE_WORDS * 2 + tokens * hidden * 6
        else:
            tokens = rows * length
            tile = min(tokens, _TILE_TOKENS) * min(self.text.vocab_size, _TILE_WORDS) * 4
            head = _TILE_COPIES * tile + tokens * hidden * 4
        activations = max(peak - self.gradients, kept)
        return _Pass(kept, {"activations": activations, "head": max(0, kept + head - activations)})

    def packed(self, trl: Mapping[str, Any], rows: int, group: int, prompt: int, completion: int) -> _Pass:
        """`plain`, where the rows of a group share its prompt: a call of the model has at most `pack_tokens`.

        A group is one sequence, if it is no longer than that; several are a call's batch. Of several calls each is
        computed again in its backward, so none holds anything until then.
        """
        budget = trl.get("pack_tokens", PACK_TOKENS)
        length = max(prompt + completion, min(prompt + min(rows, group) * completion, budget))
        groups = max(1, min(-(-rows // group), budget // length))
        scored = groups * max(completion, length - prompt)
        checkpointing = trl.get("gradient_checkpointing", self.gpu)
        kept, peak = self._play(groups, length, train=True, checkpointing=checkpointing)
        if self.gpu:
            head = min(scored, _TILE_TOKENS) * _TILE_WORDS * 2 + scored * self.text.hidden_size * 6
            mask = groups * length**2
        else:  # the logits and their gradient, and a chunk of distributions
            head = (2 * scored + 4 * min(scored, PACK_CHUNK)) * self.text.vocab_size * 4
            mask = 2 * groups * length**2 * self.dtype.itemsize
        activations = max(peak - self.gradients, kept)
        several = -(-rows // group) * (prompt + min(rows, group) * completion) > groups * length
        logits = 0 if self.gpu else scored * self.text.vocab_size * 4
        parts = {"activations": activations, "mask": mask, "head": max(0, kept + head - activations)}
        return _Pass(0 if several else kept + mask + logits, parts)

    def generating(
        self, held: Mapping[str, int], rows: int, length: int, keys: Mapping[str, Any], device_memory: float | None
    ) -> dict[str, int]:
        """What is held, the cache of keys and values, and what reading `rows` × `length` tokens needs for moments."""
        if keys.get("use_vllm"):
            return {**held, **_engine(keys, device_memory)}
        if keys.get("use_transformers_continuous_batching") and device_memory is not None:
            # It takes this share of what is free, whatever it is asked; what does not fit waits.
            share = (keys.get("transformers_continuous_batching_config") or {}).get("max_memory_percent", 0.5)
            return {**held, "continuous batching": int(share * max(0.0, device_memory - sum(held.values())))}
        if self.shares:
            return {**held, **self._sharing(rows, length)}
        kept, peak = self._play(rows, length, train=False, checkpointing=False)
        words = 3 * rows * self.text.vocab_size * 4  # the logits of the next token, as sampling copies them
        return {**held, "KV cache": kept, "activations": peak - kept, "next token": words}

    def _sharing(self, rows: int, length: int) -> dict[str, int]:
        """Rollouts that share prefixes: as many rows at a time as `prefix_cache_gb` holds, read in calls of so many."""
        of_one, peak = self._play(1, length, train=False, checkpointing=False)
        fitting = min(rows, max(1, int(self.recipe.rollout.prefix_cache_gb * 1e9 // of_one)))
        cache = min(rows * of_one, max(of_one, int(self.recipe.rollout.prefix_cache_gb * 1e9)))
        read = max(length, min(rows * length, READ_TOKENS))
        activations = (peak - of_one) * read // length + length * read * self.dtype.itemsize
        return {"KV cache": cache, "activations": activations, "next token": 5 * fitting * self.text.vocab_size * 4}

    def _play(self, rows: int, length: int, train: bool, checkpointing: bool) -> tuple[int, int]:
        """(bytes alive after the forward, bytes alive at the peak), weights not counted."""
        layers = self.text.num_hidden_layers
        if layers <= 3:
            return self._played(layers, rows, length, train, checkpointing)
        two, three = (self._played(n, rows, length, train, checkpointing) for n in (2, 3))
        kept, peak = (a + (layers - 2) * (b - a) for a, b in zip(two, three, strict=True))
        return kept, peak

    def _played(self, layers: int, rows: int, length: int, train: bool, checkpointing: bool) -> tuple[int, int]:
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode

        model = self._built(layers)
        autocast = torch.autocast("cpu", self.dtype, enabled=self.gpu and self.dtype != torch.float32)
        with FakeTensorMode():
            _fake(model)
            model.train(train)
            if train and checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                model.enable_input_require_grads()
            causal = model.get_base_model() if self.recipe.model.lora is not None else model
            ids, mask = (torch.ones(rows, length, dtype=torch.long) for _ in range(2))
            with torch.set_grad_enabled(train), alive(model) as counted:
                with autocast:
                    out = causal.base_model(input_ids=ids, attention_mask=mask, use_cache=not train)
                kept = counted.now
                if train:
                    out.last_hidden_state.sum().backward()
                return kept, counted.peak


def _quantised(model: Any) -> list[int]:
    """Sizes of the weights that bitsandbytes holds in 4 bits: of every linear layer but LoRA's and the head."""
    import torch

    head = model.get_output_embeddings()
    return [
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and "lora_" not in name
    ]


def _fake(model: Any) -> None:
    """Tensors of a model on the meta device become fake ones of a CPU, on which everything runs; in place."""
    import torch

    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                new = torch.empty(old.shape, dtype=old.dtype)
                module._parameters[name] = torch.nn.Parameter(new, requires_grad=old.requires_grad)
        for name, old in module._buffers.items():
            if old is not None:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype)


def alive(model: Any) -> Any:
    """A context that adds up the bytes of all tensors that are alive in it, the model's own not counted.

    Attributes of what it yields: `now` and `peak`, in bytes.
    """
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Alive(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            own = (*model.parameters(), *model.buffers())
            self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in own}
            self.now = self.peak = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self._add(leaf.untyped_storage())
            return out

        def _add(self, storage: Any) -> None:
            key = storage._cdata
            if key not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.now += self.sizes[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, key)

        def _drop(self, key: int) -> None:
            self.now -= self.sizes.pop(key, 0)

    return Alive()
