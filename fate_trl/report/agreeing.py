"""How far the verifiers that only evaluate agree with those that train, case by case, on the test split."""

from __future__ import annotations

from typing import Any

from ..metrics.agreement import agreement
from ..types import pass_mark
from .reading import Run

Json = dict[str, Any]


def agreements(run: Run) -> list[Json]:
    """Krippendorff's alpha of pass or fail, for each objective that both kinds of verifiers score.

    All evaluated policies count together, the scripted ones too: a policy that never fails says nothing of who notices.

    Returns:
        [{"objective", "policies", "alpha", "low", "high", "agree", "n", "clusters"}], see `metrics.agreement`; empty
        without held-out verifiers, or where they score other objectives.
    """
    if not any(name.startswith("held_out_") for row in run.rows for name in row["metrics"]):
        return []  # spares a pass over all trajectories
    found: dict[str, tuple[list[tuple[bool, bool]], list[tuple[str, str]]]] = {}
    tested = [policy for policy in run.policies if "test" in policy.stages]
    for policy in tested:
        for trajectory, card in run.cases(policy.round, policy.stages["test"], text=False):
            for name, held_out in card.held_out.items():
                told = card.scores.get(name)
                if told is not None and told.value is not None and held_out.value is not None:
                    pairs, clusters = found.setdefault(name, ([], []))
                    bar = pass_mark(name)
                    pairs.append((told.value >= bar, held_out.value >= bar))
                    clusters.append((trajectory.task.suite, trajectory.task.cluster or trajectory.task.id))
    return [
        {"objective": name, "policies": [policy.name for policy in tested], **agreement(pairs, clusters)}
        for name, (pairs, clusters) in found.items()
    ]
