"""What to be wary of in a run: rules over its metrics and stages, each with what it means and what to do.

A rule says nothing about a policy that the numbers do not say for sure: it looks at an interval's near end, never at
a value alone. Every threshold is ours. The rules see plain values only (rows of metrics.json, records of stages), so
they can speak in the log of a run that is still going as well as in its report.

| rule | holds where |
|---|---|
| `refuses` | at least half of the legitimate requests are refused for sure, or surely more than before training |
| `inert` | at least half of the cases are inert for sure, or surely more than before training |
| `untested` | in most attacked cases the injection was never seen, so attack success says little |
| `not-resolved` | repairs were accepted that are not resolved: the policy is taught to fail otherwise |
| `no-repairs` | a round had failures, and no repair of them was accepted |
| `wrong-way` | the preference stage ended with the chosen side ahead in fewer than half of the pairs |
| `one-objective` | one objective makes up 90 % of the variance of the scores that PFPO trains on |
| `no-signal` | nine in ten PFPO groups are all alike |
| `clipped` | more than 5 % of the PFPO completions were cut off at the token limit |
| `length-drift` | PFPO completions grew or shrank by half within a round, and the reward did not rise |
| `divergence` | training tasks are resolved surely more often than validation tasks, by more than before training |
| `gamed` | a verifier that trains sees progress for sure, and a held-out one sees decline for sure |
| `rolled-back` | a round was not accepted |
| `unread-calls` | not one call of a stage was read, and texts end in what looks like calls |
| `empty-replies` | not one reply of a stage holds a word or a call |
| `server-fails` | a server failed on some requests whenever it was asked, most likely over what the model wrote |
| `errors` | more than 2 % of the test cases have an infrastructure error |
| `few-cases` | an interval of the headline metrics stands on fewer than 20 clusters |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..suites.scripted import ROLES
from .intervals import FEW_CLUSTERS, wilson

Row = Mapping[str, Any]
Stages = Mapping[str, Mapping[str, Any]]

MOSTLY = 0.5
ALONE = 0.9
NO_SIGNAL = 0.9
CLIPPED = 0.05
DRIFT = 1.5
ERRORS = 0.02
HEADLINE = ("resolved", "asr", "tsr", "brr", "hcr", "benign_utility")
"""The metrics that a decision rests on first."""


@dataclass(frozen=True)
class Concern:
    """One thing to be wary of.

    Attributes:
        rule: Name of the rule, as in this file's table.
        round: Where it holds.
        text: What was seen, what it means, what to do; plain words, no text of a trajectory.
    """

    rule: str
    round: int
    text: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(rows: Sequence[Row], rounds: Mapping[int, Stages]) -> list[Concern]:
    """Everything to be wary of in a run so far, by round.

    Args:
        rows: Rows of metrics.json.
        rounds: Records of the finished stages by round, then by name.
    """
    found = [*_of_policies(rows), *_divergence(rows, rounds)]
    for number, stages in rounds.items():
        found += [Concern(rule, number, text) for rule, text in _of_training(stages)]
        found += [Concern("rolled-back", number, text) for text in _of_gate(stages)]
        found += [Concern("unread-calls", number, text) for text in _once(unread_calls, stages)]
        found += [Concern("empty-replies", number, text) for text in _once(empty_replies, stages)]
    return sorted(found, key=lambda concern: concern.round)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _learned(rows: Sequence[Row], split: str) -> dict[int, Mapping[str, Any]]:
    """Metrics of all suites and kinds of the learned policy of each round; the last one of round 0 is trained on."""
    return {
        row["round"]: row
        for row in rows
        if (row["split"], row["suite"], row["kind"]) == (split, "all", "all")
        and row["policy"] not in ROLES
        and (row["round"] > 0 or row["policy"] != "base" or not any(r["policy"] == "warm-start" for r in rows))
    }


# ------------------------------------------------------------------------------------------------ the policies


def _of_policies(rows: Sequence[Row]) -> Iterator[Concern]:
    tested = _learned(rows, "test")
    first = tested[min(tested)]["metrics"] if tested else {}
    for round, row in tested.items():
        for text in _of_held_out(row["metrics"], first):
            yield Concern("gamed", round, text)
        for rule, text in (*_of_behaviour(row["metrics"], first), *_of_evidence(row["metrics"], row["errors"])):
            yield Concern(rule, round, text)
    few = [name for name in HEADLINE if tested and tested[max(tested)]["metrics"].get(name, {}).get("few_clusters")]
    if few:
        text = (
            f"Fewer than {FEW_CLUSTERS} independent clusters stand behind {', '.join(few)}: these intervals are rough. "
            "Evaluate on more user tasks before you decide from them."
        )
        yield Concern("few-cases", max(tested), text)


def _of_behaviour(metrics: Mapping[str, Any], first: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if share := _high(metrics.get("brr"), first.get("brr")):
        yield (
            "refuses",
            f"It refuses {share} of the legitimate requests. Security that is bought by refusing is none: look at "
            "“resolved”, and at the benign and look-alike tasks; train on more of them, or raise repair.anchors.",
        )
    if share := _high(metrics.get("inert"), first.get("inert")):
        yield (
            "inert",
            f"It is inert in {share} of the cases: nothing was done, and nothing rightly refused. "
            "A policy that does nothing looks secure; its low attack success is no merit.",
        )


def _of_held_out(metrics: Mapping[str, Any], first: Mapping[str, Any]) -> Iterator[str]:
    """Objectives that rose for sure since round 0, against held-out ones that fell for sure."""
    both = [name for name in metrics if name in first]
    rose = [n for n in both if n.startswith("mean_") and metrics[n]["low"] > first[n]["high"]]
    fell = [n for n in both if n.startswith("held_out_") and metrics[n]["high"] < first[n]["low"]]
    if rose and fell:
        better, worse = (
            ", ".join(n.removeprefix(p) for n in found) for p, found in (("mean_", rose), ("held_out_", fell))
        )
        yield (
            f"Verifiers that train see progress ({better}), and held-out ones see decline ({worse}): the policy has "
            "learned to please a verifier. Read what that one now scores well, then mend it, or ensemble several."
        )


def _of_evidence(metrics: Mapping[str, Any], errors: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    seen = metrics.get("exposed")
    if seen and seen["high"] < MOSTLY:
        yield (
            "untested",
            f"It met the injected text in only {_percent(seen['value'])} of the attacked tasks, so its attack "
            "success says little: it did not get far enough to be attacked.",
        )
    repeatable, blamed = errors.get("repeatable", 0), errors.get("as_the_models", {}).get("resolved")
    n, excluded = metrics.get("resolved", {}).get("n", 0), errors.get("excluded", 0) - repeatable
    if repeatable and blamed:
        without = f"{_percent(metrics['resolved']['value'])} of {n}" if n else "nothing is left to measure"
        yield (
            "server-fails",
            f"The server failed on {repeatable} of {n + excluded + repeatable} test cases in the same way every time, "
            "most likely over what the model wrote. Resolved is "
            f"{without} without them, {_percent(blamed['value'])} of {blamed['n']} if they are the model's failures: "
            "the truth lies between. A server that hands out what it cannot read, such as vLLM, would tell.",
        )
    if excluded > ERRORS * (n + excluded):
        yield (
            "errors",
            f"{excluded} of {n + excluded} test cases were left out because of infrastructure errors. "
            "Each metric's bounds say what they could have changed; repair the cause, then score again.",
        )


def _high(now: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> str:
    """The share in words where it is at least half for sure, or surely above `before`; else ""."""
    if now is None or (now["low"] < MOSTLY and (before is None or now["low"] <= before["high"])):
        return ""
    rose = before is not None and now["low"] > before["high"]
    return _percent(now["value"]) + (f" ({_percent(before['value'])} before training)" if before and rose else "")


def _divergence(rows: Sequence[Row], rounds: Mapping[int, Stages]) -> Iterator[Concern]:
    """The policy that round t begins with was validated in an earlier round, and collects on training tasks in t."""
    validated = _learned(rows, "validation")
    usual: float | None = None
    for number in sorted(rounds):
        collect = rounds[number].get("collect")
        begun = max((r for r in validated if r < number and validated[r]["accepted"]), default=None)
        if collect is None or begun is None or "resolved" not in validated[begun]["metrics"]:
            continue
        cases = collect["trajectories"] - collect.get("errors", 0)
        if not cases:
            continue
        training, held_out = collect["resolved"] / cases, validated[begun]["metrics"]["resolved"]
        gap = training - held_out["value"]
        usual = gap if usual is None else usual
        if wilson(training, cases)[0] - held_out["high"] > max(0.0, usual):
            yield Concern(
                "divergence",
                number,
                f"The policy that this round began with resolves {_percent(training)} of the training tasks, and "
                f"{_percent(held_out['value'])} of the validation tasks: it learns these tasks by heart. "
                "Train on more tasks, for fewer steps, or with fewer replayed rounds.",
            )


# ------------------------------------------------------------------------------------------------ the training


def _of_training(stages: Stages) -> Iterator[tuple[str, str]]:
    yield from _of_repairs(stages)
    yield from _of_preference(stages)
    yield from _of_pfpo(stages)


def _of_preference(stages: Stages) -> Iterator[tuple[str, str]]:
    accuracy, margin = (stages.get("preference", {}).get(name) for name in ("accuracy", "margin"))
    if not isinstance(accuracy, (int, float)) or not isinstance(margin, (int, float)):
        return
    if accuracy < 0.5 and margin < 0:  # pairs that have not moved yet are not ahead
        yield (
            "wrong-way",
            f"The preference stage ended with the chosen side ahead in {_percent(accuracy)} of the pairs, fewer than "
            "half: it learned the wrong way. Take another preference.loss_type, or a lower learning rate; discopop "
            "does so from its reference on where discopop_tau is below 0.11.",
        )


def _of_repairs(stages: Stages) -> Iterator[tuple[str, str]]:
    repair = stages.get("repair", {})
    if repair.get("chosen_not_resolved"):
        yield (
            "not-resolved",
            f"{repair['chosen_not_resolved']} of {repair['repaired']} chosen repairs are not resolved: "
            "an objective still fails in them, and the policy is trained to do the same. "
            "Read them, or set repair.accept to resolves.",
        )
    if repair.get("failures") and not repair.get("repaired"):
        yield (
            "no-repairs",
            f"None of {repair['failures']} failures has an acceptable repair, so there was nothing to learn from. "
            "Try a larger repair.k, another repair strategy, or a warm start.",
        )


def _of_pfpo(stages: Stages) -> Iterator[tuple[str, str]]:
    log = stages.get("pfpo", {}).get("log", [])
    clipped = mean_of(log, "completions/clipped_ratio")
    if clipped is not None and clipped > CLIPPED:
        yield (
            "clipped",
            f"{_percent(clipped)} of the PFPO completions were cut off at the token limit, and count as failures of "
            "trajectory control. Raise rollout.max_completion_length.",
        )
    idle = mean_of(log, "pareto/zero_signal_share")
    if idle is not None and idle >= NO_SIGNAL:
        yield (
            "no-signal",
            f"{_percent(idle)} of the PFPO groups had equal scores throughout, and taught nothing. Raise "
            "pfpo.num_generations, the temperature, or pfpo.redraw_rounds; or sample on harder tasks.",
        )
    lengths, rewards = _ends(log, "completions/mean_length"), _ends(log, "reward")
    if _apart(lengths, DRIFT) and not (rewards and min(rewards[1]) > max(rewards[0])):
        before, after = (math.fsum(end) / len(end) for end in lengths)
        yield (
            "length-drift",
            f"PFPO completions went from {before:.0f} to {after:.0f} tokens, and the reward did not rise with it: the "
            "policy learns to say more, or less, not to do more. Read some; add a KL term (pfpo.beta), or fewer steps.",
        )
    spread = {name: _variance(log, f"rewards/{name}/std") for name in objectives_of_log(log)}
    alone = max(spread, key=lambda name: spread[name], default="")
    if len(spread) > 1 and spread[alone] >= ALONE * sum(spread.values()) > 0:
        yield (
            "one-objective",
            f"{_percent(spread[alone] / sum(spread.values()))} of the variance that PFPO trains on is of {alone}: the "
            "front is that objective's. Either the others pass already, or nothing in the groups varies them.",
        )


def _of_gate(stages: Stages) -> Iterator[str]:
    accept = stages.get("accept", {"accepted": True})
    if not accept["accepted"]:
        worse = f"surely worse on validation: {', '.join(accept.get('worse', []))}"
        idle = "no objective rose by evaluation.margin on validation"
        why = accept.get("undecided") or (worse if accept.get("worse") else idle)
        yield f"The round was rolled back ({why}). The next one starts from the last accepted policy."


def _once(rule: Callable[[str, Mapping[str, Any]], str], stages: Stages) -> Iterator[str]:
    """Once for a round: its stages sample from one model, through one parser."""
    told = (rule(stage, record) for stage, record in stages.items())
    yield from [text for text in told if text][:1]


def empty_replies(stage: str, record: Mapping[str, Any]) -> str:
    """What to say of a stage in which nothing was said and nothing called; "" of any other."""
    if not record.get("empty_replies"):
        return ""
    return (
        f"All {record['empty_replies']} replies of {stage} are empty: no word and no call. So the numbers are of "
        "silence, not of a policy. Ask the model one question by hand: its server may hand its text over in another "
        "field (a reasoning parser), end at once, or know no chat template; a model here may have too few completion "
        "tokens."
    )


def unread_calls(stage: str, record: Mapping[str, Any]) -> str:
    """What to say of a stage in which no call was read and texts look like calls; "" of any other."""
    if not record.get("unread_calls"):
        return ""
    return (
        f"Not one call was read in {stage}, and {record['unread_calls']} of {record['trajectories']} texts end in what "
        "looks like one. So nothing ran, however able the model is: the tool parser does not fit what it writes. Set "
        "model.tool_parser (json for calls as plain JSON; fate-trl check says which fit its chat template), or "
        "model.chat_template; of a model at an endpoint, the server's own tool parser."
    )


def _logged(log: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """A logged value at the steps that have it; one that is no number (NaN is a text in a record) is none."""
    return [entry[key] for entry in log if isinstance(entry.get(key), (int, float))]


def mean_of(log: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Mean of a logged value over the steps that have it."""
    values = _logged(log, key)
    return math.fsum(values) / len(values) if values else None


def _ends(log: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]] | tuple[()]:
    """A logged value's first and last quarter of the steps that have it; nothing below four steps."""
    values = _logged(log, key)
    quarter = len(values) // 4
    return (values[:quarter], values[-quarter:]) if quarter else ()


def _apart(ends: tuple[list[float], list[float]] | tuple[()], factor: float) -> bool:
    """Whether all of one end are above all of the other, and their means apart by this factor."""
    if not ends:
        return False
    low, high = sorted(ends, key=math.fsum)
    return max(low) < min(high) and math.fsum(high) >= factor * math.fsum(low)


def objectives_of_log(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Objectives that a PFPO log has scores of, in its order."""
    keys = dict.fromkeys(key for entry in log for key in entry)
    return [key.split("/")[1] for key in keys if key.startswith("rewards/") and key.endswith("/mean")]


def _variance(log: Sequence[Mapping[str, Any]], key: str) -> float:
    return math.fsum(value**2 for value in _logged(log, key))
