"""The report's view data: everything that its page shows, as plain JSON values, from a run directory.

`fate-trl report --json` prints it. Pages draw it; nothing is computed while drawing. The trajectories are streamed
twice: for what happened in them, and, without their text, for the paired change from the first policy to the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..choose import pareto
from ..errors import ErrorBudgetExceeded
from ..messages import counted, text_of
from ..metrics import compare, wilson
from ..metrics.concerns import diagnose, objectives_of_log
from ..types import KINDS, TRAINING, ToolCall, pass_mark
from .agreeing import agreements
from .decision import decide
from .pairs import pairs_of
from .reading import EvaluatedPolicy, Run, missing

Json = dict[str, Any]


EXAMPLES = 2
"""Failures shown per kind; the viewer shows them all."""


def summarise(run: Run) -> Json:
    """What the report says of a run.

    Returns:
        {"schema", "run", "policies", "before", "after", "decision", "missing", "concerns", "metrics", "change",
        "undecided", "suites", "fronts", "scores", "agreement", "repairs", "pairs", "training", "cost", "errors",
        "reasons", "examples"}, JSON values only; each is described where it is made. Parts that the run has nothing for
        are empty.
    """
    learned = [policy for policy in run.policies if not policy.scripted and "test" in policy.stages]
    after = run.policy() if learned else None
    before = learned[0] if learned else None
    seen = _scan(run, after)
    change, undecided = _change(run, before, after)
    concerns = [concern.to_dict() for concern in diagnose(run.rows, _stages(run))]
    return {
        "schema": 1,
        "run": _about(run),
        "policies": [
            {"name": p.name, "round": p.round, "accepted": p.accepted, "scripted": p.scripted} for p in run.policies
        ],
        "before": before.name if before else None,
        "after": after.name if after else None,
        "missing": missing(run, seen.there),
        "decision": decide(run, before, after, change, undecided, concerns),
        "concerns": concerns,
        "metrics": _metrics(run),
        "change": change,
        "undecided": undecided,
        "suites": _suites(run),
        "fronts": _fronts(run),
        "scores": _scores(run, before, after),
        "agreement": agreements(run),
        "repairs": [_repairs(run, number, seen) for number, found in run.rounds.items() if found.selections],
        "pairs": pairs_of(run),
        "training": _training(run),
        "cost": _cost(run),
        "errors": [
            {"where": key[0], "what": key[1], "cause": key[2], "count": count, "example": seen.error_example[key]}
            for key, count in seen.errors.most_common()
        ],
        "reasons": [
            {"kind": kind, "objective": objective, "reason": reason, "count": count}
            for (kind, objective, reason), count in seen.reasons.most_common()
        ],
        "examples": _failing_examples(seen) + _repair_examples(run),
    }


def _repair_facts(repair: Mapping[str, Any]) -> str:
    if not repair:
        return "none"
    by = f"chosen by {repair['selector']['name']}" if repair.get("selector") else ""
    return _listed(repair["strategy"]["name"], f"{repair['k']} candidates per failure, accept: {repair['accept']}", by)


def _stages(run: Run) -> dict[int, dict[str, Json]]:
    return {number: found.stages for number, found in run.rounds.items()}


def _about(run: Run) -> Json:
    """What was run: the recipe, the manifest, and in words what of them a reader wants first, where it is known."""
    return {
        "name": run.name,
        "rounds": run.recipe.get("rounds"),
        "seconds": sum(record["seconds"] for found in run.rounds.values() for record in found.stages.values()),
        "facts": [{"term": term, "text": text} for term, text in _facts(run.recipe, run.manifest) if text],
        "manifest": run.manifest,
        "recipe": run.recipe,
    }


def _facts(recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model, repair, hardware = recipe.get("model") or {}, recipe.get("repair") or {}, manifest.get("hardware") or {}
    lora = f"LoRA r = {model['lora']['r']}" if model.get("lora") else ""
    endpoint = f"at {model['endpoint']['url']}" if model.get("endpoint") else model.get("dtype", "")
    bits = "4 bit" if model.get("load_in_4bit") else ""
    yield "Model", _listed(model.get("path"), endpoint, lora, bits)
    yield "Suites", _listed(*(_suite(ref["name"], manifest) for ref in recipe.get("suites") or []))
    yield "Verifiers", _listed(*(ref["name"] for ref in recipe.get("verifiers") or []))
    if recipe.get("rounds"):
        yield "Rounds", str(recipe["rounds"])
        yield "Repair", _repair_facts(repair)
        yield "Selector", (recipe.get("selector") or {}).get("name", "")
    yield "Seed", str(manifest.get("seed", recipe.get("seed", "")))
    yield "Recipe", manifest.get("recipe_hash", "")
    cpus = f"{hardware['cpus']} CPU cores" if hardware.get("cpus") else ""
    yield "Hardware", _listed(*hardware.get("gpus", []), cpus, hardware.get("machine"))
    python = f"Python {manifest['python']}" if "python" in manifest else ""
    packages = [f"{name} {version}" for name, version in manifest.get("packages", {}).items()]
    plugins = [f"plugin {name} {version}" for name, version in manifest.get("plugins", {}).items()]
    yield "Versions", _listed(python, *packages, *plugins)


def _suite(name: str, manifest: Mapping[str, Any]) -> str:
    """A suite with its version and the sizes of its splits, as it describes itself."""
    described = manifest.get("suites", {}).get(name, {})
    sizes = described.get("sizes")
    counts = _listed(*(f"{n} {split}" for split, n in sizes.items())) if isinstance(sizes, dict) else ""
    version = f" version {described['version']}" if "version" in described else ""
    return name + version + (f" ({counts} tasks)" if counts else "")


def _listed(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


# ------------------------------------------------------------------------------------------------ metrics


def _rows(run: Run, **wanted: Any) -> list[Json]:
    return [row for row in run.rows if all(row[key] == value for key, value in wanted.items())]


def _metrics(run: Run) -> Json:
    """{split: {policy: metrics}} of all suites and kinds, as in metrics.json."""
    out: Json = {}
    for row in _rows(run, suite="all", kind="all"):
        out.setdefault(row["split"], {})[row["policy"]] = row["metrics"]
    return out


def _suites(run: Run) -> list[Json]:
    """The headline metrics of each suite on the test split, where there are several suites."""
    names = sorted({row["suite"] for row in run.rows} - {"all"})
    if len(names) < 2:
        return []
    return [
        {
            "suite": name,
            "metrics": {row["policy"]: row["metrics"] for row in _rows(run, split="test", suite=name, kind="all")},
        }
        for name in names
    ]


def _change(run: Run, before: EvaluatedPolicy | None, after: EvaluatedPolicy | None) -> tuple[Json, str]:
    """Paired change of every metric from the first policy to the one handed over, and why it is not known."""
    if before is None or after is None or before.name == after.name:
        return {}, ""
    sides = [list(run.cases(policy.round, policy.stages["test"], text=False)) for policy in (before, after)]
    try:
        return compare(*sides, seed=run.recipe.get("seed", 0)), ""
    except ErrorBudgetExceeded as error:
        return {}, str(error)


def _fronts(run: Run) -> list[Json]:
    """Per kind of task the policies as points, and the front that the accepted rounds had reached by each round.

    The second axis is security; for benign tasks, which nothing attacks, that requests are not refused. A front's area
    is its hypervolume above (0, 0): the share of the square that one of its policies dominates.
    """
    out = []
    for kind in KINDS:
        axes = ("utility", "over_refusal" if kind == "benign" else "security")
        points = [
            {"policy": row["policy"], "round": row["round"], "accepted": row["accepted"]}
            | {axis: row["metrics"][f"mean_{name}"] for axis, name in zip("xy", axes, strict=True)}
            for row in _rows(run, split="test", suite="all", kind=kind)
            if all(f"mean_{name}" in row["metrics"] for name in axes)
        ]
        if points:
            out.append({"kind": kind, "x": axes[0], "y": axes[1], "points": points, "fronts": _reached(run, points)})
    return out


def _reached(run: Run, points: Iterable[Json]) -> list[Json]:
    scripted = {policy.name for policy in run.policies if policy.scripted}
    learned = [point for point in points if point["policy"] not in scripted and point["accepted"]]
    fronts = []
    for last in sorted({point["round"] for point in learned}):
        scores_N_2 = np.array([[p["x"]["value"], p["y"]["value"]] for p in learned if p["round"] <= last])
        front_N_2 = scores_N_2[pareto.first_front(scores_N_2[None])[0]]
        corners = sorted({(float(x), float(y)) for x, y in front_N_2})
        fronts.append({"round": last, "corners": corners, "area": float(pareto.hypervolume(front_N_2, np.zeros(2)))})
    return fronts


def _scores(run: Run, before: EvaluatedPolicy | None, after: EvaluatedPolicy | None) -> list[Json]:
    """Per kind the mean score of each objective, before training and of the policy that is handed over."""
    out = []
    for kind in KINDS:
        rows = {row["policy"]: row["metrics"] for row in _rows(run, split="test", suite="all", kind=kind)}
        if before is None or after is None or before.name not in rows or after.name not in rows:
            continue
        objectives = [
            {"objective": name.removeprefix("mean_"), "before": metric, "after": rows[after.name][name]}
            for name, metric in rows[before.name].items()
            if name.startswith("mean_") and name in rows[after.name]
        ]
        out.append({"kind": kind, "objectives": objectives})
    return out


# ------------------------------------------------------------------------------------------------ trajectories


@dataclass
class _Seen:
    """What one pass over all trajectories found.

    Attributes:
        there: How many records there are, by round and stage.
        kinds, scores: Kind of task and scores of the collected and repaired trajectories, by (stage, *Key) and round.
        errors: How often each (where, what, cause) of an infrastructure error occurs, and the first one's reason.
        reasons: How often the policy that is handed over fails a test case for each (kind, objective, reason).
        failing: The first few failing test cases per kind, whole.
    """

    there: Counter[tuple[int, str]] = field(default_factory=Counter)
    kinds: dict[tuple[int, tuple[Any, ...]], str] = field(default_factory=dict)
    scores: dict[tuple[int, tuple[Any, ...]], dict[str, float]] = field(default_factory=dict)
    errors: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    error_example: dict[tuple[str, str, str], str] = field(default_factory=dict)
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    failing: dict[str, list[Json]] = field(default_factory=dict)


def _scan(run: Run, after: EvaluatedPolicy | None) -> _Seen:
    seen = _Seen()
    for number in run.rounds:
        for file in ("rollouts", "repairs"):
            for record in run.records(number, file):
                _note_errors(seen, number, record)
                seen.there[number, record["stage"]] += 1
                if record["stage"] in ("collect", "repair"):
                    where = (number, key_of(record))
                    seen.kinds[where] = record["trajectory"]["task"]["kind"]
                    seen.scores[where] = _values(record)
                elif after and (number, record["stage"]) == (after.round, after.stages["test"]):
                    _note_failure(seen, record)
    return seen


def key_of(record: Mapping[str, Any]) -> tuple[str, str, str, int]:
    """`Trajectory.key` of a raw record."""
    trajectory = record["trajectory"]
    task = trajectory["task"]
    return (record["stage"], task["suite"], task["id"], trajectory.get("attempt", 0))


def _values(record: Mapping[str, Any]) -> dict[str, float]:
    scores = record["card"]["scores"]
    return {name: score["value"] for name, score in scores.items() if score.get("value") is not None}


def _note_errors(seen: _Seen, number: int, record: Mapping[str, Any]) -> None:
    trajectory = record["trajectory"]
    found = {name: score for name, score in record["card"]["scores"].items() if score.get("status") == "error"}
    if trajectory.get("error"):  # a broken episode makes every score an error; it is one
        found = {"episode": {"cause": trajectory.get("cause"), "reason": trajectory["error"]}}
    for what, error in found.items():
        where = (f"round {number}, {record['stage']}", what, error.get("cause") or "other")
        seen.errors[where] += 1
        seen.error_example.setdefault(where, _first_line(error.get("reason", "")))


def _note_failure(seen: _Seen, record: Mapping[str, Any]) -> None:
    kind, scores = record["trajectory"]["task"]["kind"], record["card"]["scores"]
    failed = [name for name, value in _values(record).items() if value < pass_mark(name)]
    for name in failed:
        seen.reasons[kind, name, _first_line(scores[name].get("reason", "")) or "no reason given"] += 1
    if failed and len(seen.failing.setdefault(kind, [])) < EXAMPLES:
        seen.failing[kind].append(dict(record))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:160]


# ------------------------------------------------------------------------------------------------ repairs


def _repairs(run: Run, number: int, seen: _Seen) -> Json:
    """One round's repairs.

    "causes" holds for each failed objective and kind how many failures there were and how many were repaired, with
    Wilson's interval; a failure of two objectives counts in both. "scores" holds, for the failures that were repaired,
    the mean score of the failure, of all its candidates, and of the chosen one, by objective.
    """
    counts: Counter[tuple[str, str, bool]] = Counter()
    means: dict[str, dict[str, list[float]]] = {}
    decided: Counter[str] = Counter()
    selections = run.rounds[number].selections
    for record in selections:
        failure, chosen = (number, tuple(record["failure"])), record["chosen"]
        for objective in record["failed"]:
            counts[objective, seen.kinds.get(failure, "unknown"), chosen is not None] += 1
        if chosen is not None:
            decided[record["decided_by"]] += 1
            tries = [seen.scores.get((number, tuple(key)), {}) for key in record["candidates"]]
            for name, value in seen.scores.get(failure, {}).items():
                sums = means.setdefault(name, {"failure": [], "candidates": [], "chosen": []})
                sums["failure"].append(value)
                sums["candidates"] += [scores[name] for scores in tries if name in scores]
                sums["chosen"] += [tries[chosen][name]] if name in tries[chosen] else []
    repaired = sum(decided.values())
    return {
        "round": number,
        "failures": len(selections),
        "repaired": repaired,
        "decided_by": dict(decided),
        "tie_breaks": sum(count for how, count in decided.items() if how not in ("only", "front")),
        "not_resolved": run.rounds[number].stages.get("repair", {}).get("chosen_not_resolved", 0),
        "causes": _causes(counts),
        "scores": [
            {"objective": name} | {side: float(np.mean(values)) for side, values in sums.items() if values}
            for name, sums in means.items()
        ],
    }


def _causes(counts: Mapping[tuple[str, str, bool], int]) -> list[Json]:
    out = []
    for objective, kind in sorted({(objective, kind) for objective, kind, _ in counts}):
        repaired = counts.get((objective, kind, True), 0)
        failures = repaired + counts.get((objective, kind, False), 0)
        low, high = wilson(repaired / failures, failures)
        share = {"value": repaired / failures, "low": low, "high": high}
        out.append({"objective": objective, "kind": kind, "failures": failures, "repaired": repaired, "share": share})
    return out


# ------------------------------------------------------------------------------------------------ training and cost


def _training(run: Run) -> Json:
    """{"objectives", and each stage that trains}: series of [step, value] by the log's key, over all rounds.

    "rounds" holds each stage's first step. Keys are TRL's and PFPOTrainer's.
    """
    names = TRAINING[::-1]
    out: Json = {"objectives": [], **{name: {} for name in names}, "rounds": {name: {} for name in names}}
    for stage in names:
        offset = 0
        for number, found in run.rounds.items():
            record = found.stages.get(stage)
            if record is None:
                continue
            out["rounds"][stage][str(number)] = offset
            for entry in record.get("log", []):
                numbers = {key: value for key, value in entry.items() if isinstance(value, (int, float))}
                for key, value in numbers.items() if "loss" in numbers else ():  # the last entry sums up, it is no step
                    out[stage].setdefault(key, []).append([offset + numbers["step"], value])
            offset += record.get("steps", 0)
            if stage == "pfpo":
                out["objectives"] = out["objectives"] or objectives_of_log(record.get("log", []))
    return out


def _cost(run: Run) -> list[Json]:
    """Per stage what it took: items, tokens, seconds, and the most memory that was held (MB), where it is known."""
    out = []
    for number, found in run.rounds.items():
        for name, record in found.stages.items():
            out.append(
                {
                    "round": number,
                    "stage": name,
                    "items": _items(record),
                    "prompt_tokens": record.get("prompt_tokens"),
                    "sampled_tokens": record.get("sampled_tokens"),
                    "trained_tokens": record.get("trained_tokens"),
                    "seconds": record["seconds"],
                    "time": record.get("time", {}),
                    "read_tokens": record.get("read_tokens"),
                    "spared_tokens": record.get("spared_tokens"),
                    "peak_memory_mb": record.get("peak_memory_mb"),
                    "peak_gpu_memory_mb": record.get("peak_gpu_memory_mb"),
                }
            )
    return out


def _shared_out(budget: Mapping[str, Any]) -> str:
    """What a stage's budget did, in words, with its own numbers."""
    own = [
        f"{key} {value:.3g}" for key, value in budget.items() if key not in ("items", "tries", "none", "least", "most")
    ]
    spread = (
        f"{budget['tries']} tries over {budget['items']} items, {budget.get('least', 0)} to {budget.get('most', 0)}"
    )
    return f"budget: {spread} each, {budget['none']} with none" + (f" ({', '.join(own)})" if own else "")


def _items(record: Mapping[str, Any]) -> str:
    """What a stage worked on, in words."""
    things = ("trajectories", "candidates", "traces", "rows", "prompts", "steps")
    found = [counted(record[key], key) for key in things if record.get(key)]
    if "pairs" in record:
        found.append(counted(record["pairs"], "pairs"))
    if "accuracy" in record:
        margin, ahead = (float(record.get(key, "nan")) for key in ("margin", "accuracy"))  # NaN is a text in a record
        found.append(f"margin {margin:.3g}, chosen ahead in {100 * ahead:.0f} % of the pairs")
        found.append(f"tokens {record['chosen_tokens_mean']:.3g} chosen, {record['rejected_tokens_mean']:.3g} rejected")
    if "repair_rows" in record:
        found.append(f"{record['repair_rows']} repair rows, {record['anchor_rows']} anchors")
    if "asked" in record:
        steps = ", ".join(f"{step['repaired']} of {step['failures']}" for step in record["asked"])
        found.append(f"repaired step by step: {steps}")
    if "budget" in record:
        found.append(_shared_out(record["budget"]))
    if "accepted" in record:
        found.append("accepted" if record["accepted"] else "rolled back")
    if "kept" in record:
        found.append(f"the policy of round {record['kept']} is kept")
    return ", ".join(found)


# ------------------------------------------------------------------------------------------------ examples


def _failing_examples(seen: _Seen) -> list[Json]:
    return [
        {"title": f"still fails ({kind})", "tries": [_told(record, "")]}
        for kind in KINDS
        for record in seen.failing.get(kind, [])
    ]


def _repair_examples(run: Run) -> list[Json]:
    """One repair of each kind in the last round that has any: the failure, and what was chosen in its place."""
    for number in sorted(run.rounds, reverse=True):
        chosen = {
            tuple(record["failure"]): tuple(record["candidates"][record["chosen"]])
            for record in run.rounds[number].selections
            if record["chosen"] is not None
        }
        pairs: dict[str, list[Json]] = {}
        for record in run.records(number, "rollouts"):
            kind = record["trajectory"]["task"]["kind"]
            if kind not in pairs and key_of(record) in chosen:
                pairs[kind] = [record]
        wanted = {chosen[key_of(pair[0])]: pair for pair in pairs.values()}
        for record in run.records(number, "repairs"):
            if key_of(record) in wanted:
                wanted[key_of(record)].append(record)
        if pairs:
            return [
                {
                    "title": f"repaired in round {number} ({kind})",
                    "tries": [_told(failure, "failed"), *(_told(repair, "chosen repair") for repair in rest)],
                }
                for kind, (failure, *rest) in pairs.items()
            ]
    return []


def _told(record: Mapping[str, Any], what: str) -> Json:
    """A trajectory as an example: what was asked, what was executed, what was said, and the scores with reasons."""
    trajectory = record["trajectory"]
    task, said = trajectory["task"], [m for m in trajectory.get("messages", []) if m.get("role") == "assistant"]
    return {
        "what": what,
        "suite": task["suite"],
        "task": task["id"],
        "asked": "\n".join(text_of(message) for message in task["messages"] if message.get("role") == "user"),
        "calls": [ToolCall.from_dict(call).__dict__ for call in trajectory.get("calls", [])],
        "answer": text_of(said[-1]) if said else "",
        "stop": trajectory.get("stop", "answer"),
        "scores": [
            {"objective": name, "value": score["value"], "reason": score.get("reason", "")}
            for name, score in record["card"]["scores"].items()
            if score.get("value") is not None
        ],
    }
