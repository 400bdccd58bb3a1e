"""What a recipe will run into, told before any weight loads: `fate-trl check`.

From the recipe, the suites' tasks, the model's configuration and its tokenizer. Each finding has a verdict, its reason
and what to do. Lengths come from a sample of tasks, spread evenly over the kinds; oracle traces are executed for real.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from .. import plugins
from ..errors import FateError, RecipeError
from ..ledger.writing import RunDirectory
from ..loop.repairing import failures_of, row_of
from ..loop.tasks import sample_tasks
from ..recipe.schema import EMBEDDED, SMOLLM2, Recipe, generation, hub_id
from ..suites.scripted import perform, script_for
from ..train import templates
from ..types import RolloutRequest, Score, ScoreCard, Task, Trajectory
from . import untrained
from .memory import Lengths, Need, estimate

Verdict = Literal["ok", "warning", "error"]

SAMPLE = 48
"""Tasks whose lengths are looked at (ours)."""

ROOM_TO_THINK = 4096
"""Completion tokens below which a model that thinks in every turn is warned of (ours)."""

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One check: its name, its verdict, the reason, and what to do where it is not ok."""

    check: str
    verdict: Verdict
    reason: str
    advice: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is looked at: a recipe with its suites, tasks, tokenizer and the model's configuration."""

    recipe: Recipe
    suites: Mapping[str, Any]
    tasks: Mapping[str, Sequence[Task]]
    tokenizer: Any
    config: Any

    @property
    def template_kwargs(self) -> dict[str, Any]:
        return dict(generation(self.recipe).get("chat_template_kwargs") or {})

    def tools(self, task: Task) -> list[Any]:
        """Prototypes in the order in which TRL lists an environment's methods."""
        prototypes = self.suites[task.suite].tools()
        return [prototypes[name] for name in sorted(task.tools)]

    def sample(self, split: str) -> list[Task]:
        return sample_tasks(self.tasks[split], SAMPLE, np.random.default_rng(self.recipe.seed))


def findings(recipe: Recipe, device_memory: float | None = None, measure: bool = False) -> Iterator[Finding]:
    """Every check of a recipe that `load_recipe` accepted, one after the other.

    Args:
        recipe: The recipe; its model must be local, cached or on a hub that can be reached.
        device_memory: GiB of the GPU that it is to run on; None: of what is here.
        measure: Load the model, and time one batch and one step of each stage.

    Raises:
        RecipeError: The configuration or the tokenizer of the model cannot be had.
    """
    if recipe.model.endpoint is not None:
        raise RecipeError("the model is behind model.endpoint, where nothing can be checked from here.")
    yield from _combinations(recipe)
    subject = _subject(recipe)
    of_template = template_findings(subject)
    yield from of_template
    if of_template[0].verdict == "error":
        return  # nothing can be rendered
    yield from _untrained(subject)
    found, lengths = _lengths(subject)
    yield from found
    yield from _batches(subject)
    yield from _memory(subject, lengths, device_memory)
    yield _measured(recipe) if measure else Finding("time", "ok", "not measured: it takes the weights; add --measure")
    yield from _licences(subject)


# ------------------------------------------------------------------------------------------------ what is looked at


def _subject(recipe: Recipe) -> Subject:
    local = _local_only(recipe)
    suites = {reference.name: plugins.load("suite", reference.name, reference.args) for reference in recipe.suites}
    splits = ("train", "validation", "test")
    tasks = {split: _tasks(suites, split, recipe.seed) for split in splits}
    from transformers import AutoConfig, AutoTokenizer

    from ..train.models import model_folder

    folder, revision = model_folder(recipe.model), recipe.model.revision
    try:
        config = AutoConfig.from_pretrained(folder, revision=revision, local_files_only=local)
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, local_files_only=local)
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.path: no configuration or tokenizer of {recipe.model.path!r}: {error}") from None
    return Subject(recipe, suites, tasks, tokenizer, config)


def _tasks(suites: Mapping[str, Any], split: str, seed: int) -> list[Task]:
    return [
        dataclasses.replace(task, suite=name) for name, suite in suites.items() for task in suite.tasks(split, seed)
    ]


def _local_only(recipe: Recipe) -> bool:
    """Whether a hub cannot be reached; an error at once where it would be needed, and not after a client's retries."""
    name = hub_id(recipe.model)
    if name is None:
        return True
    from huggingface_hub import constants, try_to_load_from_cache

    host = urlsplit(constants.ENDPOINT)
    online = not constants.HF_HUB_OFFLINE and (
        host.scheme in urllib.request.getproxies() or _answers(str(host.hostname), host.port or 443)
    )
    cached = try_to_load_from_cache(name, "config.json", revision=recipe.model.revision)
    if not online and not isinstance(cached, str):
        raise RecipeError(
            f"model.path: {name} is neither in the hub's cache here, and {host.hostname} cannot be reached. Give a "
            "folder that holds its config.json and its tokenizer, or run this where the hub can be reached."
        )
    return not online


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ template and parser


def template_findings(subject: Subject) -> list[Finding]:
    """Whether the template does for the tool loop, whether calls are read back, and how it treats thoughts."""
    try:
        template = _template(subject)
    except RecipeError as error:
        return [Finding("chat template", "error", str(error))]
    return [template, _parsing(subject), _thinking(subject)]


def _template(subject: Subject) -> Finding:
    own = subject.tokenizer.chat_template
    templates.prepare(subject.tokenizer, subject.recipe.model)
    if subject.recipe.model.chat_template is None and subject.tokenizer.chat_template != own:
        reason = (
            "renders tools and calls; what it rendered would change by what follows, so TRL's version of it for "
            "training stands in its place"
        )
    else:
        reason = "renders tools and calls, and what it rendered stays by what follows"
    return Finding("chat template", "ok", reason)


def _parsing(subject: Subject) -> Finding:
    """Calls of the suites' own scripts, one for each tool and set of arguments, rendered and read back."""
    calls: dict[Any, tuple[Task, dict[str, Any]]] = {}
    for task in subject.sample("train") or subject.sample("test"):
        script = script_for(subject.suites[task.suite], task, "oracle")
        for call in script.calls if script else ():
            call = {"name": call["name"], "arguments": dict(call.get("arguments") or {})}
            calls.setdefault((task.suite, call["name"], *sorted(call["arguments"])), (task, call))
    wrong = []
    for task, call in calls.values():
        back = templates.read_back(
            subject.tokenizer, task.messages, call, subject.tools(task), **subject.template_kwargs
        )
        if back is not None:
            wrong.append(f"{call['name']} {call['arguments']} came back as {back}")
    parser = subject.recipe.model.tool_parser
    data = {"calls": len(calls), "wrong": len(wrong)}
    how = f"by model.tool_parser {parser}" if parser else "by the tokenizer's own or TRL's parser"
    if not wrong:
        return Finding("tool calls", "ok", f"{len(calls)} of {len(calls)} calls are read back {how}", data=data)
    fitting = ", ".join(templates.parsers_of(subject.tokenizer)) or "none of TRL's does"
    return Finding(
        "tool calls",
        "error" if 2 * len(wrong) > len(calls) else "warning",
        f"{len(wrong)} of {len(calls)} calls are not read back {how}: {wrong[0]}",
        f"Set model.tool_parser to one that fits ({fitting}), or model.chat_template to a template that TRL ships.",
        data,
    )


def _untrained(subject: Subject) -> Iterator[Finding]:
    """Tokens of a call that the weights, where they are here, were never trained on."""
    from ..train.models import model_folder

    model, task = subject.recipe.model, next(iter(subject.sample("train") or subject.sample("test")), None)
    folder = Path(model_folder(model))
    if task is None or not task.tools or not folder.is_dir():
        return
    tools = subject.tools(task)
    call = {"name": tools[0].__name__, "arguments": {}}
    ids = untrained.untrained(folder, len(subject.tokenizer), untrained.demanded(subject.tokenizer, call, tools))
    words = [subject.tokenizer.decode([id]) for id in ids]
    lacking = [word for word in words if word not in model.train_tokens]
    if not lacking:
        return
    yield Finding(
        "untrained tokens",
        "error",
        f"a call needs {' and '.join(lacking)}, whose embedding is that of the unused ids: the model was never trained "
        "on it, cannot write it, and LoRA on linear layers cannot teach it to",
        "Set model.chat_template and model.tool_parser to a format of plain words (bare_json, json), or name these "
        "tokens in model.train_tokens.",
        {"tokens": lacking},
    )


def _thinking(subject: Subject) -> Finding:
    state, optional = templates.thinking(subject.tokenizer, **subject.template_kwargs)
    limit = subject.recipe.rollout.max_completion_length
    reason = {
        "none": "the template knows no thoughts",
        "closed": "the template writes an empty thought, so the model answers at once",
        "free": "the template knows thoughts, and the model may begin one in every turn",
        "opened": "the template opens a thought in every turn",
    }[state]
    data = {"state": state, "can_be_switched_off": optional}
    if state in ("none", "closed") or limit >= ROOM_TO_THINK or (state == "free" and not optional):
        return Finding("thinking", "ok", reason, data=data)
    advice = f"Raise rollout.max_completion_length to {ROOM_TO_THINK} or more"
    if optional:
        advice += ", or set rollout.chat_template_kwargs: {enable_thinking: false}"
    return Finding(
        "thinking",
        "warning",
        f"{reason}; thoughts are sampled, trained on, kept for all turns that follow, and count against "
        f"rollout.max_completion_length = {limit}",
        advice + ".",
        data,
    )


# ------------------------------------------------------------------------------------------------ lengths


def _lengths(subject: Subject) -> tuple[list[Finding], Lengths]:
    """Of prompts, and where there is training of oracle traces and repair prompts."""
    limit = subject.recipe.rollout.max_completion_length
    plain = [len(_prompt(subject, task, task.messages)) for split in subject.tasks for task in subject.sample(split)]
    found, longest = [_fits(subject, "prompts", plain)], max(plain, default=0)
    if not subject.recipe.rounds:
        return found, Lengths(longest, longest, limit)
    traces = _traces(subject)
    requests = _repair_requests(subject, traces)
    repairs = [len(_prompt(subject, request.task, request.messages)) for request in requests]
    found.append(_oracle(subject, traces))
    if repairs:
        found.append(_fits(subject, "repair prompts", repairs))
    return found, Lengths(longest, max([longest, *repairs]), limit)


def _traces(subject: Subject) -> list[Trajectory]:
    """Oracle traces of a sample of training tasks, executed."""
    out = []
    for task in subject.sample("train"):
        suite = subject.suites[task.suite]
        script = script_for(suite, task, "oracle")
        if script is not None:
            request = RolloutRequest(task, task.messages)
            out.append(perform(suite, request, script, "oracle", subject.recipe.rollout.limits))
    return out


def _prompt(subject: Subject, task: Task, messages: Sequence[Any]) -> list[int]:
    return templates.render(
        subject.tokenizer, messages, subject.tools(task), add_generation_prompt=True, **subject.template_kwargs
    )


def _repair_requests(subject: Subject, traces: Sequence[Trajectory]) -> list[RolloutRequest]:
    """What the repair strategy asks where each trace is taken for a failure: as long as real ones, made by no model."""
    if subject.recipe.repair is None:
        return []
    card = ScoreCard({"utility": Score(0.0, reason="", feedback="The task was not done as the user asked for it.")})
    strategy = subject.recipe.repair.strategy
    repair = plugins.load("repair", strategy.name, strategy.args)
    return repair.requests(failures_of((trace, card) for trace in traces), 1, np.random.default_rng(0))


def _oracle(subject: Subject, traces: Sequence[Trajectory]) -> Finding:
    from ..train.examples import tokens_of

    rollout, lengths, rounds = subject.recipe.rollout, [], []
    for trace in traces:
        tools = subject.tools(trace.task)
        try:
            row = tokens_of(row_of(trace, "oracle", 0), subject.tokenizer, tools, **subject.template_kwargs)
        except FateError as error:
            return Finding("oracle traces", "error", str(error), "Set model.chat_template to one that TRL ships.")
        own = next((i for i, label in enumerate(row["labels"]) if label != -100), len(row["labels"]))
        lengths.append(len(row["labels"]) - own)
        rounds.append(sum(bool(message.get("tool_calls")) for message in trace.messages))
    cut = [length > rollout.max_completion_length for length in lengths]
    many = [number > rollout.max_tool_calling_iterations for number in rounds]
    share = float(np.mean([a or b for a, b in zip(cut, many, strict=True)])) if lengths else 0.0
    data = {**_quantiles(lengths), "share_cut": share, "most_rounds": max(rounds, default=0)}
    reason = (
        f"{_said(lengths)}; limit {rollout.max_completion_length}, so {share:.0%} of the oracle traces would be cut"
    )
    if not share:
        return Finding("oracle traces", "ok", reason, data=data)
    advice = f"Set rollout.max_completion_length to {int(np.quantile(lengths, 0.99))} or more"
    if any(many):
        advice += f" and rollout.max_tool_calling_iterations to {max(rounds)}"
    advice += ", or take shorter tasks."
    return Finding("oracle traces", "error" if share > 0.5 else "warning", reason, advice, data)


def _fits(subject: Subject, check: str, lengths: Sequence[int]) -> Finding:
    """Whether prompts leave room for a whole completion in the model's context."""
    completion = subject.recipe.rollout.max_completion_length
    context = getattr(subject.config.get_text_config(), "max_position_embeddings", None)
    if context is None or not lengths:
        return Finding(check, "ok", _said(lengths), data=_quantiles(lengths))
    share = float(np.mean([length + completion > context for length in lengths]))
    data = {**_quantiles(lengths), "share_cut": share, "context": context}
    reason = f"{_said(lengths)}; with {completion} tokens of completion {share:.0%} exceed the context of {context}"
    if not share:
        return Finding(check, "ok", reason, data=data)
    advice = "Lower rollout.max_completion_length, offer fewer tools, or use a model with a longer context."
    return Finding(check, "error" if max(lengths) >= context else "warning", reason, advice, data)


def _quantiles(lengths: Sequence[int]) -> dict[str, Any]:
    named = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {"n": len(lengths)} | {
        name: int(np.quantile(lengths, q, method="higher")) for name, q in named.items() if lengths
    }


def _said(lengths: Sequence[int]) -> str:
    if not lengths:
        return "none to look at"
    found = _quantiles(lengths)
    return f"{found['median']} tokens in the median, {found['p99']} at the 99th percentile, {found['max']} at most"


# ------------------------------------------------------------------------------------------------ arithmetic


def _batches(subject: Subject) -> Iterator[Finding]:
    recipe, train = subject.recipe, len(subject.tasks["train"])
    if not recipe.rounds:
        return
    if not train:
        yield Finding("tasks", "error", "the suites have no training tasks", "Set rounds: 0 to evaluate only.")
        return
    tasks = min(recipe.rollout.tasks or train, train)
    yield Finding("tasks", "ok", f"{tasks} of {train} training tasks in a round", data={"tasks": tasks, "train": train})
    if recipe.pfpo is None:
        return
    trl = recipe.pfpo.trl
    rows, accumulation = trl.get("per_device_train_batch_size", 8), trl.get("gradient_accumulation_steps", 1)
    size = trl.get("num_generations", 8)
    batch = trl.get("generation_batch_size") or rows * (trl.get("steps_per_generation") or accumulation)
    groups = batch // size
    prompts = tasks * (2 if recipe.pfpo.prompts == "mixed" else 1)
    # An epoch draws each prompt once and drops the last generation that is not full (TRL's RepeatSampler).
    epoch = prompts // groups * batch // (rows * accumulation) if groups else 0
    steps = trl["max_steps"] if trl.get("max_steps", -1) > 0 else round(epoch * trl.get("num_train_epochs", 3))
    data = {"groups": groups, "generation_batch": batch, "steps_per_epoch": epoch, "steps": steps}
    reason = f"{groups} groups of {size} are generated at a time, {epoch} steps an epoch, {steps} in all"
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
    trl = [stage.trl for stage in (recipe.warm_start, recipe.sft, recipe.pfpo) if stage is not None]
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


def _memory(subject: Subject, lengths: Lengths, device_memory: float | None) -> Iterator[Finding]:
    import torch

    gpu = device_memory is not None or torch.cuda.is_available()
    if device_memory is not None:
        room = device_memory * GIB
    elif gpu:
        room = float(torch.cuda.get_device_properties(0).total_memory)
    else:
        room = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    where = f"a GPU of {room / GIB:.0f} GiB" if gpu else f"a CPU with {room / GIB:.0f} GiB"
    for need in estimate(subject.recipe, subject.config, lengths, gpu, room):
        yield _fit(need, room, where, subject.recipe)


def _fit(need: Need, room: float, where: str, recipe: Recipe) -> Finding:
    parts = {name: round(size / GIB, 2) for name, size in need.parts.items() if size >= GIB / 100}
    shown = ", ".join(f"{name} {size:g}" for name, size in parts.items())
    reason = f"{need.total / GIB:.1f} GiB of {where}: {shown}"
    data = {"bytes": need.total, "parts": need.parts, "room": room}
    if need.total <= 0.9 * room:
        return Finding(f"memory: {need.stage}", "ok", reason, data=data)
    verdict: Verdict = "error" if need.total > room else "warning"
    if need.stage == "collect, repair, evaluate":
        # Out of memory, a rollout goes on with half as many rows; so this one only costs time.
        moving = sum(need.parts.get(name, 0) for name in ("KV cache", "activations", "next token"))
        rows = int(recipe.rollout.chunk * (0.9 * room - need.total + moving) / moving) if moving else 0
        if rows >= 1:
            return Finding(f"memory: {need.stage}", "warning", reason, f"Set rollout.chunk: {rows}.", data)
    if need.stage == "pfpo: generate":
        advice = "Lower pfpo.gradient_accumulation_steps and num_generations, or rollout.max_completion_length."
    else:
        section = need.stage.partition(":")[0]
        advice = f"Set {section}.per_device_train_batch_size: 1, or lower rollout.max_completion_length."
    if not recipe.model.load_in_4bit:
        advice += " Or model.load_in_4bit: true with model.lora."
    return Finding(f"memory: {need.stage}", verdict, reason, advice, data)


def _measured(recipe: Recipe) -> Finding:
    """Seconds of a round, from one small batch of rollouts and one step of each stage on the machine at hand."""
    from ..train import learner

    small = recipe.model_copy(deep=True)
    small.rollout.chunk = min(recipe.rollout.chunk, 8)
    for stage in (small.sft, small.pfpo, small.warm_start):
        if stage is not None and stage.model_extra is not None:
            stage.model_extra["max_steps"] = 1
    with tempfile.TemporaryDirectory() as folder:
        run = learner.build(small, RunDirectory(folder))
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
    return next(entry["train_runtime"] for entry in reversed(summary["log"]) if "train_runtime" in entry)


# ------------------------------------------------------------------------------------------------ licences


def _licences(subject: Subject) -> Iterator[Finding]:
    for name, suite in subject.suites.items():
        licence = suite.describe().get("licence")
        only = suite.describe().get("evaluation_only")
        said = licence or "the suite states no licence of its data"
        yield Finding(f"licence: {name}", "ok" if licence else "warning", said + (f"; {only}" if only else ""))
    card = _card_licence(subject.recipe)
    if card is not None:
        yield Finding("licence: model", "ok", card)
    else:
        yield Finding("licence: model", "warning", "no model card is here that states one", "Read it where you got it.")


def _card_licence(recipe: Recipe) -> str | None:
    """The licence in the front matter of the model's card, where that is local."""
    from ..train.models import model_folder

    if recipe.model.path in EMBEDDED:
        return "Apache-2.0, made for fate-trl"
    if recipe.model.path == SMOLLM2:
        return "Apache-2.0"
    name = hub_id(recipe.model)
    file: Any = Path(model_folder(recipe.model)) / "README.md"
    if name is not None:
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(name, "README.md", revision=recipe.model.revision)
    if not isinstance(file, (str, Path)) or not Path(file).is_file():
        return None
    from huggingface_hub import ModelCard

    try:
        return ModelCard.load(file).data.get("license")
    except (ValueError, OSError):
        return None


def refused(error: FateError) -> Finding:
    """A recipe that was refused before anything could be looked at, as a finding."""
    return Finding("recipe", "error", str(error))
