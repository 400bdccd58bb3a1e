"""Cases that a server fails on whenever it is asked: nobody knows whether the model or the server is to blame.

`transformers serve` answers 500 for a call that the model left malformed; that is most likely the model's fault, but
an overloaded card may look the same. So they are left out of the metrics like every infrastructure error, stop no run,
and every metric is also given as it would be if the model had failed there: the two bounds of the truth.
"""

from __future__ import annotations

from dataclasses import replace

from ..types import Case, ScoreCard
from ..verify.scoring import OverRefusal, Security, TrajectoryControl, Utility

_BUILT_IN = (Security(), Utility(), OverRefusal(), TrajectoryControl())


def is_repeatable(case: Case) -> bool:
    """Whether its server failed on the same request in the same way every time."""
    return case[0].cause == "endpoint_repeatable"


def as_the_models(case: Case) -> Case:
    """The case as if the model had ended there without an answer, scored by the built-in verifiers on what it did.

    Any other case is returned as it is, and so is one whose episode could not be graded.
    """
    trajectory, card = case
    if not is_repeatable(case) or trajectory.outcome is None:
        return case
    ended = replace(trajectory, error="", cause="", stop="error")
    scores = {name: score for verifier in _BUILT_IN for name, score in verifier.score([ended])[0].items()}
    return ended, ScoreCard({name: score for name, score in scores.items() if name in card.scores})
