"""How long prompts, repair prompts and oracle traces are, and what the limits leave of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import plugins
from ..errors import FateError
from ..hookspecs import RepairStrategy
from ..loop.repairing import failures_of, row_of
from ..messages import text_of
from ..suites.scripted import perform, script_for
from ..train import templates
from ..types import RolloutRequest, Score, ScoreCard, Task, Trajectory
from .memory import Lengths
from .subject import SAMPLE, Finding, Subject


def length_findings(subject: Subject, whole: bool = False) -> tuple[list[Finding], Lengths, RolloutRequest | None]:
    """Of prompts, and where there is training of oracle traces and repair prompts.

    Args:
        subject: What is looked at.
        whole: The longest prompt is sought among all training tasks, not in a sample.

    Returns:
        The findings, the lengths, and the longest request that PFPO samples on; None where there are no tasks.
    """
    recipe = subject.recipe
    limit = recipe.rollout.max_completion_length
    tasks = [task for split in subject.tasks for task in subject.sample(split)]
    if whole:
        tasks += [task for task in _wordiest(subject.tasks["train"]) if task not in tasks]
    plain = [len(_prompt(subject, task, task.messages)) for task in tasks]
    longest = max(plain, default=0)
    of_longest = tasks[plain.index(longest)] if tasks else None
    request = None if of_longest is None else RolloutRequest(of_longest, of_longest.messages, "pfpo")
    found = [_fits(subject, "prompts", plain)]
    if not recipe.rounds:
        return found, Lengths(longest, longest, limit), request
    traces = _traces(subject)
    requests = _repair_requests(subject, traces)
    repairs = [len(_prompt(subject, each.task, each.messages)) for each in requests]
    found.append(_oracle(subject, traces))
    if repairs:
        found.append(_fits(subject, "repair prompts", repairs))
    if repairs and recipe.pfpo is not None and recipe.pfpo.prompts != "plain":
        request = requests[repairs.index(max(repairs))]
    return found, Lengths(longest, max([longest, *repairs]), limit), request


def _wordiest(tasks: Sequence[Task]) -> list[Task]:
    """The tasks whose messages are longest, in characters: the longest in tokens is among them as good as surely."""
    return sorted(tasks, key=lambda task: sum(len(text_of(m)) for m in task.messages), reverse=True)[:SAMPLE]


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
    repair: RepairStrategy = plugins.load("repair", strategy.name, strategy.args)
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
