"""Cases that an infrastructure error keeps out of every metric: which they are, why, and how many are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..errors import ErrorBudgetExceeded
from ..types import Case

MAX_ERROR_RATE = 0.02
"""Share of cases with an infrastructure error past which a comparison or a gate says nothing (ours).

A run goes on up to the recipe's `evaluation.max_error_rate`, which is higher: a gap in what is collected does little
harm, a gap in a verdict may turn it.
"""


def is_error(case: Case) -> bool:
    """Whether an infrastructure error keeps the case out of every metric."""
    trajectory, card = case
    return bool(trajectory.error or card.errors)


def check_errors(cases: Sequence[Case], max_error_rate: float, of: int | None = None) -> None:
    """Raise ErrorBudgetExceeded if more than this share, in [0, 1], of the cases has an infrastructure error.

    Args:
        cases: The cases.
        max_error_rate: The share.
        of: How many cases there are, where `cases` leaves sound ones out.
    """
    excluded, of = sum(map(is_error, cases)), len(cases) if of is None else of
    if excluded > max_error_rate * of:
        raise ErrorBudgetExceeded(
            f"{excluded} of {of} cases have an infrastructure error, more than the {max_error_rate:.1%} "
            f"allowed:\n{_cause_table(cases)}\nRepair the cause and run these cases again, or raise max_error_rate."
        )


def error_budget(max_error_rate: float, seen: int) -> float:
    """The share of errors that a run bears among its first `seen` cases: three errors never stop it."""
    return max(max_error_rate, 3 / seen)


def causes(cases: Iterable[Case]) -> dict[str, int]:
    """Number of cases by the cause (`types.Cause`) that excludes them, the most frequent first; {} without errors.

    A case that two verifiers fail on for different causes counts for each of them.
    """
    counts = Counter(cause for case in cases for cause in _examples(case))
    return dict(counts.most_common())


def _examples(case: Case) -> dict[str, str]:
    """Reason by cause of what excludes a case. A broken episode makes every objective an error, and is one cause."""
    trajectory, card = case
    if trajectory.error:
        return {trajectory.cause or "other": trajectory.error}
    return {s.cause or "other": s.reason for s in reversed(card.scores.values()) if s.status == "error"}


def _cause_table(cases: Sequence[Case]) -> str:
    """Causes, counts and an example of each, in lines of text."""
    examples = {cause: reason for case in reversed(cases) for cause, reason in _examples(case).items()}
    lines = [f"  {'cause':<22} {'cases':>5}  example"]
    lines += [f"  {cause:<22} {n:>5}  {_line(examples[cause])}" for cause, n in causes(cases).items()]
    return "\n".join(lines)


def _line(reason: str) -> str:
    return reason.strip().partition("\n")[0][:200]  # a traceback is neither a key nor a cell


def reasons(cases: Iterable[Case]) -> Counter[str]:
    """How often each "objective/reason" occurs; "rollout/reason" where the episode itself broke."""
    counts: Counter[str] = Counter()
    for trajectory, card in cases:
        # A broken episode makes every objective an error for the same reason; it is counted once.
        reasons = {"rollout": trajectory.error} if trajectory.error else card.errors
        for objective, reason in reasons.items():
            counts[f"{objective}/{_line(reason)}"] += 1
    return counts
