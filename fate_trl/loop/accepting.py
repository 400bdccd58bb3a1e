"""The gate at the end of a round: whether it is accepted, and whether its policy is the best so far. Both are ours.

No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import metrics
from ..errors import ErrorBudgetExceeded
from ..recipe.schema import Evaluation
from ..types import Case


def judged(
    before: Sequence[Case], after: Sequence[Case], objectives: Sequence[str], settings: Evaluation
) -> dict[str, Any]:
    """Whether a round is accepted, by what the policies before and after it did on the validation tasks.

    It is not if an objective surely got worse, or if none got better by the margin that is asked for. Without
    validation tasks it is.

    Returns:
        {"accepted", "worse"}, with "gained" where a margin is asked for, and "undecided", why, where nobody knows.
    """
    if not (before and after):
        return {"accepted": True, "worse": []}
    try:
        worse = metrics.regressions(before, after, objectives, settings.tolerance)
        if settings.margin is not None:
            gained = metrics.gains(before, after, objectives, settings.margin)
            return {"accepted": bool(gained) and not worse, "worse": worse, "gained": gained}
    except ErrorBudgetExceeded as error:  # nobody knows, so nothing is accepted; the run goes on
        return {"accepted": False, "worse": [], "undecided": str(error)}
    return {"accepted": not worse, "worse": worse}


def resolves_as_much(best: Sequence[Case], after: Sequence[Case]) -> bool:
    """Whether a policy resolves at least as many of the validation tasks as the best one before it.

    No interval is asked for: which of two policies to hand over has to be decided either way. False where too many
    errors hide it.
    """
    try:
        return bool(metrics.paired(best, after, "resolved")["value"] >= 0)
    except ErrorBudgetExceeded:
        return False
