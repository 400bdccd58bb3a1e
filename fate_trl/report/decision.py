"""What to do with a run: accept its policy, or what to do first. Rules over what the report says; all are ours.

| rule | says | holds where |
|---|---|---|
| `nothing-evaluated` | not yet | no policy was evaluated on the test split |
| `only-measured` | measured | nothing was trained: an evaluation, or records of others |
| `unfinished` | not yet | fewer rounds are decided than the recipe asks for, and no token budget ended them |
| `no-round-accepted` | not yet | no round was accepted: the policy is the one that training began with |
| `none-better` | not yet | rounds were accepted, but `evaluation.keep: best` kept the policy that training began with |
| `unstated` | not yet | no change can be stated, as too many test cases have errors |
| `worse` | not yet | a metric of the first six got worse: the interval of its paired change leaves 0 out |
| `no-clear-change` | not yet | `resolved` did not get better for sure |
| `wary` | not yet | a rule of `GRAVE` found something in the round of the policy |
| none of these | accept | |
| `kept` | as the others say | `evaluation.keep: best`, and a later accepted round resolved less on validation |

The first five stand alone; of the others all that hold are told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import words
from .reading import EvaluatedPolicy, Run

Json = dict[str, Any]

GRAVE = (
    *("refuses", "inert", "untested", "not-resolved", "wrong-way", "divergence", "gamed"),
    *("unread-calls", "empty-replies", "server-fails", "errors", "few-cases"),
)
"""Rules of `metrics/concerns.py` of which each is a reason to wait; the others are about how training went."""


def decide(
    run: Run,
    before: EvaluatedPolicy | None,
    after: EvaluatedPolicy | None,
    change: Mapping[str, Mapping[str, Any]],
    undecided: str,
    concerns: Sequence[Mapping[str, Any]],
) -> Json:
    """{"verdict", "reasons", "next"}: "accept", "not yet" or "measured"; [{"rule", "text"}]; what to do, in sentences.

    Args:
        run: The run.
        before: The policy that training began with; None if none was evaluated.
        after: The policy that is handed over.
        change: Paired change of each metric from the one to the other.
        undecided: Why there is none.
        concerns: What to be wary of, as in the report.
    """
    alone = _alone(run, before, after)
    if alone is not None:
        verdict, rule, text, then = alone
        return {"verdict": verdict, "reasons": [{"rule": rule, "text": text}], "next": [then]}
    assert after is not None
    found = [*_changes(change, undecided), *_wary(after, concerns)]
    if not found:
        better = [words.label(name) for name in words.TILES if _judged(name, change) == "better"]
        text = f"Better for sure: {', '.join(better)}. None of the first six metrics got worse, and no rule objects."
        reasons = [{"rule": "accept", "text": text}, *_kept(run, after)]
        return {"verdict": "accept", "reasons": reasons, "next": [_LOOK, _SAVE]}
    reasons = [*({"rule": rule, "text": text} for rule, text, _ in found), *_kept(run, after)]
    return {"verdict": "not yet", "reasons": reasons, "next": list(dict.fromkeys(then for _, _, then in found))}


_LOOK = "Read some of its failures: fate-trl view RUN."
_SAVE = "Take the policy along: fate-trl save RUN DIR."
_MORE = "Evaluate on more test tasks: fate-trl eval RUN --suite NAME --tasks 0 takes all of a suite."


def _alone(run: Run, before: EvaluatedPolicy | None, after: EvaluatedPolicy | None) -> tuple[str, str, str, str] | None:
    """(verdict, rule, reason, what to do) where there is nothing to weigh."""
    asked = run.recipe.get("rounds", 0)
    if asked and _decided(run) < asked and not run.recipe.get("token_budget"):
        text = f"{_decided(run)} of {asked} rounds are decided."
        return "not yet", "unfinished", text, "Let it go on: fate-trl run --resume RUN, if it was stopped."
    if before is None or after is None:
        return (
            "not yet",
            "nothing-evaluated",
            "No policy was evaluated on the test split.",
            "Evaluate it: fate-trl eval RUN.",
        )
    if not asked:
        text = f"{after.name} was evaluated, and nothing was trained."
        return (
            "measured",
            "only-measured",
            text,
            "Compare it with another on the same tasks: fate-trl compare RUN OTHER.",
        )
    best = run.recipe.get("evaluation", {}).get("keep") == "best"
    if before.name == after.name and best and any(found.accepted for number, found in run.rounds.items() if number):
        text = f"No round resolved as much on validation as {after.name}, so that is kept, as it was before training."
        return "not yet", "none-better", text, "Look at the curves on validation, and train otherwise."
    if before.name == after.name:
        text = f"No round was accepted: the policy is {after.name}, as it was before training."
        return "not yet", "no-round-accepted", text, "See below why rounds were rolled back, and train otherwise."
    return None


def _decided(run: Run) -> int:
    """Rounds that were accepted or rolled back."""
    return sum("accept" in found.stages for found in run.rounds.values())


def _kept(run: Run, after: EvaluatedPolicy) -> Iterator[Json]:
    """Of a policy that is not the last accepted one: why it is handed over."""
    later = [str(number) for number, found in run.rounds.items() if number > after.round and found.accepted]
    if later:
        rounds = f"round {later[0]}" if len(later) == 1 else f"rounds {', '.join(later)}"
        text = f"{after.name} is kept (evaluation.keep: best): {rounds} resolved less on the validation tasks."
        yield {"rule": "kept", "text": text}


def _changes(change: Mapping[str, Mapping[str, Any]], undecided: str) -> Iterator[tuple[str, str, str]]:
    if not change:
        yield "unstated", undecided or "No change can be stated.", "Repair what broke, and evaluate again."
        return
    for name in words.TILES:
        if _judged(name, change) == "worse":
            said = f"{words.signed(change[name]['value'])} {words.signed_interval(change[name])}"
            yield "worse", f"{words.label(name)} got worse: {said} points.", _LOOK
    if _judged("resolved", change) == "unclear":
        said = words.signed_interval(change["resolved"])
        yield "no-clear-change", f"resolved did not change for sure: its interval is {said} points.", _MORE


def _judged(name: str, change: Mapping[str, Mapping[str, Any]]) -> str:
    return words.judged(name, change[name]) if name in change else ""


def _wary(after: EvaluatedPolicy, concerns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    for concern in concerns:
        if concern["round"] == after.round and concern["rule"] in GRAVE:
            then = (
                _MORE
                if concern["rule"] == "few-cases"
                else "Read what to be wary of, below: each line says what to do."
            )
            yield "wary", f"{str(concern['rule']).replace('-', ' ').capitalize()}: {concern['text']}", then
