"""Rows of docs/methods.md: merges; see papers.py."""

from __future__ import annotations

from .papers import Row

ROWS = (
    Row(
        "merging/nesterov",
        "merge after a round",
        "Accelerated Preference Optimization for Large Language Model Alignment",
        "a = 0 is the trained policy; a > 0 goes on by a times the last change; a quadratic takes fewer rounds",
    ),
    Row(
        "merging/preference-vectors",
        "merge",
        "Adaptive Helpfulness-Harmlessness Alignment with Preference Vectors",
        "eta = 0 is the policy itself; sweeping eta moves the means monotonically",
    ),
    Row(
        "merging/map",
        "merge that evaluates",
        "MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation",
        "a planted quadratic front is recovered, nothing dominated is returned, and R² is reported",
    ),
    Row(
        "merging/rank-search",
        "merge that evaluates",
        "ours",
        "the best average of the grid is found, ties go to the lowest mean, and nothing is asked twice",
    ),
)
