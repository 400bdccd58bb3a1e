"""Whether a chat template and a parser of tool calls do for a recipe, tried on the suites' own calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..suites.scripted import script_for
from ..train import templates
from ..types import Task
from . import untrained
from .subject import Finding, Subject

ROOM_TO_THINK = 4096
"""Completion tokens below which a model that thinks in every turn is warned of (ours)."""


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
    missing = templates.missing(subject.tokenizer, **subject.template_kwargs)
    reason += "".join(f"; it cannot render {templates.REPLACED[what]}" for what in missing)
    return Finding("chat template", "ok", reason, data={"cannot_render": missing})


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


def untrained_findings(subject: Subject) -> Iterator[Finding]:
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
        "Set model.chat_template and model.tool_parser to a format of plain words (chatml_json, json), or name these "
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
