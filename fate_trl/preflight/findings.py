"""What a recipe will run into, told before any weight loads: `fate-trl check`.

From the recipe, the suites' tasks, the model's configuration and its tokenizer. Each finding has a verdict, its reason
and what to do. Lengths come from a sample of tasks, spread evenly over the kinds; oracle traces are executed for real.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FateError, RecipeError
from ..ledger.writing import RunDirectory
from ..loop.repairing import row_of
from ..messages import counted
from ..process.memory import machine_memory
from ..recipe.schema import Recipe, generation
from ..recipe.trl_keys import trl_defaults
from ..suites.opening import open_suites, tasks_of
from ..types import TRAINING, RolloutRequest
from .hub import reach_hub
from .lengths import length_findings
from .licences import model_licence, suite_licences
from .memory import GIB, ROLLOUTS, Lengths, Need, estimate, lower
from .prefixes import prefix_findings
from .rendering import template_findings, untrained_findings
from .stepping import Plan, step_findings
from .subject import Finding, Subject, Verdict


def findings(
    recipe: Recipe, device_memory: float | None = None, measure: bool = False, step: bool = False
) -> Iterator[Finding]:
    """Every check of a recipe that `load_recipe` accepted, one after the other.

    Args:
        recipe: The recipe; its model must be local, cached or on a hub that can be reached.
        device_memory: GiB of the GPU that it is to run on; None: of what is here.
        measure: Load the model, and time one batch and one step of each stage.
        step: Load the model in a process of its own, and take two steps of each training stage at full length.

    Raises:
        RecipeError: The configuration or the tokenizer of the model cannot be had; or a step is asked for on a GPU
            that is not here.
    """
    if recipe.model.endpoint is not None:
        raise RecipeError("the model is behind model.endpoint, where nothing can be checked from here.")
    yield from _combinations(recipe)
    suites = open_suites(recipe.suites)
    tasks = {split: tasks_of(suites, split, recipe.seed) for split in ("train", "validation", "test")}
    yield from _batches(recipe, len(tasks["train"]))
    yield from suite_licences(suites)
    subject = Subject(recipe, suites, tasks, *_tokenizer_and_config(recipe))
    if not any(task.tools for split in tasks.values() for task in split):
        yield Finding("chat template", "ok", "no task offers tools, so nothing is asked of the template")
    else:
        of_template = template_findings(subject)
        yield from of_template
        if of_template[0].verdict == "error":
            return  # nothing can be rendered
        yield from untrained_findings(subject)
    found, lengths, longest = length_findings(subject, whole=step)
    yield from found
    yield from prefix_findings(subject)
    room, where = _room(device_memory)
    needs = estimate(recipe, subject.config, lengths, where.startswith("a GPU"), room)
    for need in needs:
        if recipe.repair is not None or not recipe.rounds or need.stage != ROLLOUTS:
            yield _fit(need, room, where, recipe)
    if step:
        yield from step_findings(_plan(recipe, lengths, longest, room, device_memory), {n.stage: n for n in needs})
    yield _measured(recipe) if measure else Finding("time", "ok", "not measured: it takes the weights; add --measure")
    yield model_licence(recipe)


# ------------------------------------------------------------------------------------------------ what is looked at


def _tokenizer_and_config(recipe: Recipe) -> tuple[Any, Any]:
    local = not reach_hub(recipe)
    from transformers import AutoConfig, AutoTokenizer

    from ..train.models import model_folder

    folder, revision = model_folder(recipe.model), recipe.model.revision
    try:
        config = AutoConfig.from_pretrained(folder, revision=revision, local_files_only=local)
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, local_files_only=local)
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.path: no configuration or tokenizer of {recipe.model.path!r}: {error}") from None
    return tokenizer, config


# ------------------------------------------------------------------------------------------------ arithmetic


def _batches(recipe: Recipe, train: int) -> Iterator[Finding]:
    if not recipe.rounds:
        return
    if not train:
        yield Finding("tasks", "error", "the suites have no training tasks", "Set rounds: 0 to evaluate only.")
        return
    tasks = min(recipe.rollout.tasks or train, train)
    yield Finding("tasks", "ok", f"{tasks} of {train} training tasks in a round", data={"tasks": tasks, "train": train})
    if recipe.pfpo is None:
        return
    trl = {**trl_defaults("grpo_config"), **recipe.pfpo.trl}
    rows, accumulation = trl["per_device_train_batch_size"], trl["gradient_accumulation_steps"]
    size = trl["num_generations"]
    batch = trl["generation_batch_size"] or rows * (trl["steps_per_generation"] or accumulation)
    groups = batch // size
    prompts = tasks * (2 if recipe.pfpo.prompts == "mixed" else 1)
    # An epoch draws each prompt once and drops the last generation that is not full (TRL's RepeatSampler).
    epoch = prompts // groups * batch // (rows * accumulation) if groups else 0
    steps = trl["max_steps"] if trl["max_steps"] > 0 else round(epoch * trl["num_train_epochs"])
    data = {"groups": groups, "generation_batch": batch, "steps_per_epoch": epoch, "steps": steps}
    reason = f"{counted(groups, 'groups')} of {size} at a time, {counted(epoch, 'steps')} an epoch, {steps} in all"
    if not epoch:
        advice = f"Give at least {groups} tasks a round, or lower pfpo.gradient_accumulation_steps."
        yield Finding(
            "batches", "error", f"{prompts} prompts are fewer than the {groups} groups of one generation", advice, data
        )
    elif groups == 1:
        advice = "Raise pfpo.gradient_accumulation_steps: an update from one prompt is noisy."
        yield Finding("batches", "warning", reason, advice, data)
    else:
        yield Finding("batches", "ok", reason, data=data)


def _combinations(recipe: Recipe) -> Iterator[Finding]:
    """What cannot go together, or not here; what `load_recipe` refuses has been refused by now."""
    keys = generation(recipe)
    stages = [getattr(recipe, name) for name in ("warm_start", *TRAINING)]
    trl = [stage.trl for stage in stages if stage is not None]
    needs_bnb = recipe.model.load_in_4bit or any("8bit" in str(stage.get("optim", "")) for stage in trl)
    found = []
    if needs_bnb and importlib.util.find_spec("bitsandbytes") is None:
        found.append(("error", "4-bit weights and 8-bit optimisers need bitsandbytes", "pip install 'fate-trl[qlora]'"))
    if keys.get("use_vllm") and importlib.util.find_spec("vllm") is None:
        found.append(("error", "use_vllm needs vLLM, which is not installed here", "pip install 'fate-trl[vllm]'"))
    lora = recipe.model.lora
    if lora is not None and "lm_head" in lora.target_modules and lora.target_modules != "all-linear":
        found.append(
            (
                "error",
                "model.lora.target_modules names lm_head, whose adapter TRL's scoring would pass by",
                "Take lm_head out.",
            )
        )
    if keys.get("use_transformers_continuous_batching") and lora is not None and not recipe.model.load_in_4bit:
        found.append(
            (
                "warning",
                "continuous batching makes the adapter bfloat16 for good, in which small updates are lost",
                "Leave it out, or use vLLM; with load_in_4bit the adapter is bfloat16 anyway.",
            )
        )
    if recipe.pfpo is not None and recipe.pfpo.trl.get("beta") and lora is None:
        found.append(
            ("warning", "pfpo.beta without model.lora holds a second copy of the model", "Train with LoRA, or beta: 0.")
        )
    if any(stage.get("use_liger_kernel") for stage in trl):
        found.append(
            ("warning", "use_liger_kernel is deprecated in TRL, whose head already scores in tiles", "Leave it out.")
        )
    for verdict, reason, advice in found:
        yield Finding("combinations", verdict, reason, advice)  # type: ignore[arg-type]
    if not found:
        yield Finding("combinations", "ok", "nothing that cannot go together")


# ------------------------------------------------------------------------------------------------ memory and time


def _room(device_memory: float | None) -> tuple[float, str]:
    """Bytes of the device, and what it is."""
    import torch

    if device_memory is not None or torch.cuda.is_available():
        here = device_memory is None
        room = torch.cuda.get_device_properties(0).total_memory if here else (device_memory or 0.0) * GIB
        return float(room), f"a GPU of {room / GIB:.0f} GiB"
    room = float(machine_memory())
    return room, f"a CPU with {room / GIB:.0f} GiB"


def _plan(
    recipe: Recipe, lengths: Lengths, longest: RolloutRequest | None, room: float, device_memory: float | None
) -> Plan:
    """Steps on what is here; a smaller GPU is played by a share of this one."""
    import torch

    if device_memory is None:
        return Plan(recipe, lengths, longest, room)
    have = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    if have < room:
        raise RecipeError(
            f"--step runs on what is here, {f'a GPU of {have / GIB:.0f} GiB' if have else 'which is no GPU'}; leave "
            "--device-memory out, or leave out --step."
        )
    return Plan(recipe, lengths, longest, room, cap=room / have)


def _fit(need: Need, room: float, where: str, recipe: Recipe) -> Finding:
    parts = {name: round(size / GIB, 2) for name, size in need.parts.items() if size >= GIB / 100}
    shown = ", ".join(f"{name} {size:g}" for name, size in parts.items())
    reason = f"{need.total / GIB:.1f} GiB of {where}: {shown}"
    data = {"bytes": need.total, "parts": need.parts, "room": room}
    if need.total <= 0.9 * room:
        return Finding(f"memory: {need.stage}", "ok", reason, data=data)
    verdict: Verdict = "error" if need.total > room else "warning"
    if need.stage == ROLLOUTS:
        # Out of memory, a rollout goes on with half as many rows; so this one only costs time.
        moving = sum(need.parts.get(name, 0) for name in ("KV cache", "activations", "next token"))
        rows = int(recipe.rollout.chunk * (0.9 * room - need.total + moving) / moving) if moving else 0
        if rows >= 1:
            return Finding(f"memory: {need.stage}", "warning", reason, f"Set rollout.chunk: {rows}.", data)
    if need.stage == "pfpo: generate":
        advice = "Lower pfpo.gradient_accumulation_steps and num_generations, or rollout.max_completion_length."
    else:
        return Finding(f"memory: {need.stage}", verdict, reason, lower(need.stage.partition(":")[0], recipe), data)
    if not recipe.model.load_in_4bit:
        advice += " Or model.load_in_4bit: true with model.lora."
    return Finding(f"memory: {need.stage}", verdict, reason, advice, data)


def _measured(recipe: Recipe) -> Finding:
    """Seconds of a round, from one small batch of rollouts and one step of each stage on the machine at hand."""
    from ..train.build import build

    small = recipe.model_copy(deep=True)
    small.rollout.chunk = min(recipe.rollout.chunk, 8)
    for stage in (small.sft, small.pfpo, small.warm_start):
        if stage is not None and stage.model_extra is not None:
            stage.model_extra["max_steps"] = 1
    with tempfile.TemporaryDirectory() as folder:
        run = build(small, RunDirectory(folder))
        tasks = run.tasks("train")[: small.rollout.chunk]
        requests = [RolloutRequest(task, task.messages, "collect") for task in tasks]
        run.learner.rollout(requests[:1], 0)  # builds the trainer
        start = time.perf_counter()
        trajectories = run.learner.rollout(requests, 1)
        seconds = {"trajectory": (time.perf_counter() - start) / len(requests)}
        if small.sft is not None:
            seconds["SFT step"] = _runtime(run.learner.sft([row_of(t, "anchor", 0) for t in trajectories], 0, "sft"))
        if small.pfpo is not None:
            wanted = [RolloutRequest(task, task.messages, "pfpo") for task in run.tasks("train")]
            seconds["PFPO step"] = _runtime(run.learner.pfpo(wanted, 0))
    total = len(run.tasks("train")) if recipe.rollout.tasks is None else recipe.rollout.tasks
    repairs = 0 if recipe.repair is None else min(recipe.repair.max_failures or total, total) * recipe.repair.k
    most = (total + repairs) * seconds["trajectory"] if recipe.repair is not None else 0.0
    shown = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    reason = f"{shown}; collecting and repairing take {most / 60:.1f} min a round at most, were all to fail"
    return Finding("time", "ok", reason, data={"seconds": seconds, "rollouts_at_most": most})


def _runtime(summary: Mapping[str, Any]) -> float:
    return float(next(entry["train_runtime"] for entry in reversed(summary["log"]) if "train_runtime" in entry))


def refused(error: FateError) -> list[Finding]:
    """A recipe that was refused before anything could be looked at, as findings: one for each thing that is wrong."""
    reasons = re.split(r"\n(?=\S)", str(error))  # a line that is indented goes on with the one before
    return [Finding("recipe", "error", reason) for reason in reasons]
