"""How often 95 % intervals of a clustered rate hold the truth: ours beside inspect_ai's `ci_wilson(cluster=)`.

    python -m benchmarks.coverage [docs/results/coverage] [--draws 2000]

Claim: the page says which of the two is nearer to 95 %, and how wide it is. Cases are zeros and ones in clusters; each
cluster has a rate of its own, drawn from a beta distribution with the true rate as its mean; cases of one cluster are
correlated by 0, 0.2 or 0.6. Clusters hold five cases each, or between one and thirteen ("uneven": a geometric tail).
The truth is the mean over cases that such clusters give. Every interval sees the same draws. inspect_ai's own
function is called, not a copy.

Besides coverage the table has the mean width, and the share of misses on either side: an interval may reach 95 % in
all by being far too wide on one side.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

CLUSTERS = (10, 20, 40, 100)
RATES = (0.02, 0.1, 0.3, 0.5)
CORRELATIONS = (0.0, 0.2, 0.6)
SIZES = ("equal", "uneven")
METHODS = ("ours", "inspect")


def sizes_of(shape: str, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Cases in each cluster."""
    if shape == "equal":
        return np.full(clusters, 5)
    return np.minimum(rng.geometric(0.2, clusters), 13)


def drawn(clusters: int, rate: float, correlation: float, shape: str, rng: np.random.Generator) -> tuple[Any, Any]:
    """Values (N,) and their clusters (N,)."""
    size_C = sizes_of(shape, clusters, rng)
    if correlation:
        scale = (1 - correlation) / correlation
        rate_C = rng.beta(rate * scale, (1 - rate) * scale, clusters)
    else:
        rate_C = np.full(clusters, rate)
    cluster_N = np.repeat(np.arange(clusters), size_C)
    return (rng.random(len(cluster_N)) < rate_C[cluster_N]).astype(float), cluster_N


def ours(value_N: Any, cluster_N: Any, seed: int) -> tuple[float, float]:
    """The metrics' own interval of one clustered mean."""
    from fate_trl.metrics.columns import one_mean

    found = one_mean(value_N, cluster_N, seed=seed)
    return found["low"], found["high"]


def inspects(value_N: Any, cluster_N: Any, seed: int) -> tuple[float, float]:
    from inspect_ai.scorer import SampleScore, Score, ci_wilson

    scores = [
        SampleScore(score=Score(value=value), sample_id=i, sample_metadata={"cluster": str(c)})
        for i, (value, c) in enumerate(zip(value_N, cluster_N, strict=True))
    ]
    found = ci_wilson(cluster="cluster")(scores)
    return found["lower"], found["upper"]


def cell(asked: tuple[int, float, float, str, int]) -> dict[str, Any]:
    """Coverage of both in one setting."""
    clusters, rate, correlation, shape, draws = asked
    found: dict[str, Any] = {"clusters": clusters, "rate": rate, "correlation": correlation, "sizes": shape}
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for draw in range(draws):
        rng = np.random.default_rng([clusters, int(1000 * rate), int(10 * correlation), shape == "equal", draw])
        value_N, cluster_N = drawn(clusters, rate, correlation, shape, rng)
        for name, method in (("ours", ours), ("inspect", inspects)):
            ends[name].append(method(value_N, cluster_N, draw))
    for name, pairs in ends.items():
        low, high = np.array(pairs).T
        found[name] = {
            "coverage": float(((low <= rate) & (rate <= high)).mean()),
            "above": float((low > rate).mean()),
            "below": float((high < rate).mean()),
            "width": float((high - low).mean()),
        }
    return found


def page(cells: list[dict[str, Any]], draws: int, seconds: float) -> str:
    """The Markdown page."""
    lines = [
        "# Coverage of clustered intervals",
        "",
        f"Made by `python -m benchmarks.coverage --draws {draws}` ({seconds:.0f} s of wall time).",
        f"Share of {draws} draws whose 95 % interval holds the true rate, and the mean width, in %.",
        "*inspect* is `ci_wilson(cluster=)` of inspect_ai: Wilson's interval on Korn and Graubard's effective size,",
        "with Student's t. *ours* is the bootstrap-t over clusters of `fate_trl.metrics`. Below 92 % is set in bold.",
        f"A simulated coverage of 95 % is known to ±{196 * (0.95 * 0.05 / draws) ** 0.5:.1f} points.",
        "",
        *summary(cells),
    ]
    for shape in SIZES:
        lines += [
            "",
            f"## {'Five cases in each cluster' if shape == 'equal' else 'Between one and thirteen cases in a cluster'}",
            "",
            "| clusters | rate | correlation | ours | inspect | width, ours | width, inspect |",
            "|---|---|---|---|---|---|---|",
        ]
        for c in cells:
            if c["sizes"] == shape:
                lines.append(
                    f"| {c['clusters']} | {100 * c['rate']:.0f} | {c['correlation']} | "
                    + " | ".join(share(c[name]["coverage"]) for name in METHODS)
                    + " | "
                    + " | ".join(f"{100 * c[name]['width']:.1f}" for name in METHODS)
                    + " |"
                )
    return "\n".join(lines) + "\n"


def share(coverage: float) -> str:
    text = f"{100 * coverage:.1f}"
    return f"**{text}**" if coverage < 0.92 else text


def summary(cells: list[dict[str, Any]]) -> list[str]:
    """Over all settings, and over those with at least twenty clusters."""
    rows = [
        "| settings | | mean coverage | lowest | below 92 % | mean distance from 95 | mean width |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, chosen in (("all", cells), ("20 clusters and more", [c for c in cells if c["clusters"] >= 20])):
        for name in METHODS:
            coverage = np.array([c[name]["coverage"] for c in chosen])
            width = np.mean([c[name]["width"] for c in chosen])
            rows.append(
                f"| {title} ({len(chosen)}) | {name} | {100 * coverage.mean():.1f} | {100 * coverage.min():.1f} | "
                f"{(coverage < 0.92).sum()} | {100 * np.abs(coverage - 0.95).mean():.2f} | {100 * width:.1f} |"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", default="docs/results/coverage")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    start = time.monotonic()
    settings = [(*setting, asked.draws) for setting in itertools.product(CLUSTERS, RATES, CORRELATIONS, SIZES)]
    with ProcessPoolExecutor(asked.workers) as pool:
        cells = list(pool.map(cell, settings))
    record = {"draws": asked.draws, "cells": cells, "versions": versions()}
    Path(f"{asked.target}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = page(cells, asked.draws, time.monotonic() - start)
    Path(f"{asked.target}.md").write_text(text, encoding="utf-8")
    print(text)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("fate-trl", "inspect_ai", "numpy")}


if __name__ == "__main__":
    main()
