"""Policies of two or more runs compared case by case, on the same test tasks; plain data for terminal, page and JSON.

A difference means nothing if the tasks, the splits, the verifiers or their versions differ too. What differs is found
first, from the manifests and from the tasks themselves, and is an error unless the user says to go on anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from .. import metrics
from ..errors import FateError, RecipeError
from ..ledger.layout import split_policy
from ..messages import text_of
from ..metrics import is_error, summarize
from ..record import stable_hash
from ..types import Case, Task
from .reading import EvaluatedPolicy, Run
from .words import HEADLINE

Json = dict[str, Any]
Key = tuple[str, str, int]  # suite, task id, attempt

_OF_THE_TASK = ("kind", "messages", "tools", "cluster", "data")
_NOT_COMPARED = ("output_dir", "seed", "suites", "verifiers")


@dataclass(frozen=True)
class Side:
    """One policy of one run on the tasks of a split.

    Attributes:
        name: As the user gave it.
        run, policy: The run, and the name of the policy.
        cases: Scored trajectories, without their text.
        tasks: Per case a hash of what the task is, and what was asked.
        split: "test" or "validation".
    """

    name: str
    run: Run
    policy: str
    cases: dict[Key, Case]
    tasks: dict[Key, tuple[int, str]]
    split: str = "test"

    @classmethod
    def open(cls, name: str) -> Self:
        """From "RUN", whose policy that is handed over is meant, or "RUN@POLICY"."""
        path, wanted = split_policy(name)
        run = Run.open(path)
        return cls.of(name, run, run.policy(wanted), "test")

    @classmethod
    def of(cls, name: str, run: Run, policy: EvaluatedPolicy, split: str) -> Self:
        """A policy that was evaluated on the split."""
        stage = policy.stages[split]
        tasks = {
            _key(record["trajectory"]): _content(record["trajectory"]["task"])
            for record in run.records(policy.round, "rollouts")
            if record["stage"] == stage
        }
        cases = {(t.task.suite, t.task.id, t.attempt): (t, c) for t, c in run.cases(policy.round, stage, text=False)}
        return cls(name, run, policy.name, cases, tasks, split)


def _key(trajectory: Mapping[str, Any]) -> Key:
    return (trajectory["task"]["suite"], trajectory["task"]["id"], trajectory.get("attempt", 0))


def _content(task: Mapping[str, Any]) -> tuple[int, str]:
    asked = "\n".join(text_of(message) for message in task["messages"] if message.get("role") == "user")
    return stable_hash([task.get(name) for name in _OF_THE_TASK]), asked


# ------------------------------------------------------------------------------------------------ may they be compared?


def differences(a: Side, b: Side, but: Collection[str] = ()) -> list[str]:
    """What makes two sides incomparable, in words, `but` what is named there; [] if nothing does."""
    return [
        f"{what}: {one if one is not None else 'unknown'} and {other if other is not None else 'unknown'}"
        for what, one, other in _pairs(a.run, b.run)
        if one != other and what not in but
    ] + list(_of_tasks(a, b))


def _pairs(a: Run, b: Run) -> Iterator[tuple[str, Any, Any]]:
    yield "seed of the splits", a.recipe.get("seed"), b.recipe.get("seed")
    yield "fate-trl", a.manifest.get("fate_trl"), b.manifest.get("fate_trl")
    for section in ("suites", "verifiers"):
        one, other = _named(a, section), _named(b, section)
        yield section, sorted(one), sorted(other)
        for name in sorted(one.keys() & other.keys()):
            yield f"arguments of {name}", one[name], other[name]
            if section == "suites":
                yield f"version of {name}", _version(a, name), _version(b, name)
    for plugin in sorted({name.split("/")[0] for run in (a, b) for name in _components(run) if "/" in name}):
        one, other = (run.manifest.get("plugins", {}).get(plugin) for run in (a, b))
        yield f"plugin {plugin}", one, other


def _named(run: Run, section: str) -> dict[str, Any]:
    return {reference["name"]: reference.get("args", {}) for reference in run.recipe.get(section) or []}


def _components(run: Run) -> list[str]:
    return [*_named(run, "suites"), *_named(run, "verifiers")]


def _version(run: Run, suite: str) -> Any:
    return run.manifest.get("suites", {}).get(suite, {}).get("version")


def _of_tasks(a: Side, b: Side) -> Iterator[str]:
    if a.tasks.keys() != b.tasks.keys():
        lonely = (len(a.tasks.keys() - b.tasks.keys()), len(b.tasks.keys() - a.tasks.keys()))
        yield f"{a.split} tasks: {lonely[0]} are only in {a.name}, {lonely[1]} only in {b.name}"
    changed = sum(a.tasks[key][0] != b.tasks[key][0] for key in a.tasks.keys() & b.tasks.keys())
    if changed:
        yield f"{a.split} tasks: {changed} have the same id, but other content"


# ------------------------------------------------------------------------------------------------ the comparison


def compare(names: Sequence[str], *, anyway: bool = False, max_error_rate: float = 0.02) -> Json:
    """Every policy against the first one.

    Args:
        names: "RUN" or "RUN@POLICY", at least two.
        anyway: Compare what is incomparable, on the test tasks that both have.
        max_error_rate: Share in [0, 1] of cases that may have an infrastructure error, on each side.

    Returns:
        {"schema", "reference", "comparisons": [{"name", "policy", "unlike", "recipe", "metrics", "won", "lost"}]},
        JSON values only. "metrics" holds by name the values "a" and "b" on the tasks that both have, and the paired
        "change" of `metrics.compare`; "won" and "lost" are the tasks that only the second, or only the first resolves.

    Raises:
        RecipeError: There is nothing to compare, or the sides are unlike; the message lists in what.
        FateError: No task is in both, or too many cases have errors.
    """
    if len(names) < 2:
        raise RecipeError("give at least two of RUN or RUN@POLICY; the others are compared with the first.")
    reference, *others = [Side.open(name) for name in names]
    for side in others:
        if (side.run.path.resolve(), side.policy) == (reference.run.path.resolve(), reference.policy):
            raise RecipeError(
                f"{reference.name} and {side.name} are the same policy, {side.policy}, of the same run; give "
                f"another, such as {side.run.path}@base."
            )
    unlike = {side.name: differences(reference, side) for side in others}
    if any(unlike.values()) and not anyway:
        lines = [f"  {name}: {text}" for name, found in unlike.items() for text in found]
        raise RecipeError(
            f"these cannot be compared with {reference.name}, which differs in more than its policy:\n"
            + "\n".join(lines)
            + "\nEvaluate them alike (`fate-trl eval`), or compare the test tasks that both have with --anyway."
        )
    return {
        "schema": 1,
        "reference": {"name": reference.name, "policy": reference.policy},
        "comparisons": [_compared(reference, side, unlike[side.name], max_error_rate) for side in others],
    }


def _compared(a: Side, b: Side, unlike: list[str], max_error_rate: float) -> Json:
    common = sorted(a.cases.keys() & b.cases.keys())
    if not common:
        raise FateError(f"{a.name} and {b.name} have no test task in common, so there is nothing to compare.")
    seed = a.run.recipe.get("seed", 0)
    sides = [[side.cases[key] for key in common] for side in (a, b)]
    changes = metrics.compare(*sides, seed=seed, max_error_rate=max_error_rate)
    alone = [summarize(cases, seed=seed)["metrics"] for cases in sides]
    return {
        "name": b.name,
        "policy": b.policy,
        "tasks": len(common),
        "unlike": unlike,
        "recipe": _recipe_differences(a.run, b.run),
        "metrics": {
            name: {"a": alone[0][name], "b": alone[1][name], "change": change}
            for name, change in sorted(changes.items(), key=lambda item: item[0] not in HEADLINE)
            if name in alone[0] and name in alone[1]
        },
        "won": list(_turned(a, b, common, to=True)),
        "lost": list(_turned(a, b, common, to=False)),
    }


def _turned(a: Side, b: Side, common: Sequence[Key], to: bool) -> Iterator[Json]:
    """The tasks whose case is resolved on one side only: on b's if `to`, else on a's."""
    for key in common:
        pair = (a.cases[key], b.cases[key])
        if any(map(is_error, pair)):
            continue
        before, after = (card for _, card in pair)
        if (before.resolved, after.resolved) == (not to, to):
            task: Task = a.cases[key][0].task
            named = {"suite": task.suite, "task": task.id, "attempt": key[2], "kind": task.kind}
            failed = before.failed if to else after.failed
            yield {**named, "asked": a.tasks[key][1][:300], "failed": list(failed)}


def _recipe_differences(a: Run, b: Run) -> list[Json]:
    """What else was asked differently: what the comparison is about, or did not mean to compare."""
    one, other = dict(_flat(a.recipe)), dict(_flat(b.recipe))
    return [
        {"key": key, "a": one.get(key), "b": other.get(key)}
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key) and key.split(".")[0] not in _NOT_COMPARED
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value
