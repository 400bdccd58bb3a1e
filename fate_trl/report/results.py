"""Results of other tools compared case by case: paired, or refused by name. Plain data for terminal, page and JSON.

Ids alone prove nothing: Inspect numbers samples without ids after a shuffle, and two files may number other cases
alike. So cases are paired by id and held to the same input, where both sides keep it. Where ids and inputs disagree and
each input stands once on either side, cases are paired by their inputs; otherwise the pair is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ErrorBudgetExceeded, InterchangeError, RecipeError
from ..interchange.results import Columns, Results, Row, read
from ..metrics.columns import Correction, paired_columns

Json = dict[str, Any]
Pair = tuple[Row, Row]

PASS = 0.5
"""From here a score in [0, 1] counts as won, in the lists of cases won and lost (ours)."""


def compare_results(
    names: Sequence[str],
    *,
    columns: Columns | None = None,
    correction: Correction = "holm",
    primary: str = "",
    anyway: bool = False,
    max_error_rate: float = 0.02,
    seed: int = 0,
) -> Json:
    """Every file against the first one.

    Args:
        names: Paths of results, at least two; see `interchange.results`.
        columns: What names cases, clusters and scores.
        correction: How p-values are corrected for the number of scores.
        primary: The score by which cases are won and lost; the first that both have by default.
        anyway: Compare what both have, though tasks, repeats or cases differ.
        max_error_rate: Share in [0, 1] of cases that may have ended in an error, on each side. They are left out.
        seed: Seed of resamples, non-negative.

    Returns:
        {"schema", "kind": "results", "correction", "reference", "comparisons": [{"name", "model", "pairs", "paired_by",
        "unlike", "primary", "metrics", "won", "lost"}]}, JSON values only.

    Raises:
        RecipeError: There is nothing to compare, or the sides are unlike; the message says in what.
        ErrorBudgetExceeded: Too many cases ended in an error.
        InterchangeError: A file cannot be read, or its cases cannot be paired.
    """
    if len(names) < 2:
        raise RecipeError("give at least two files of results; the others are compared with the first.")
    same = [name for name in names[1:] if Path(name).resolve() == Path(names[0]).resolve()]
    if same:
        raise RecipeError(f"{names[0]} would be compared with itself; give two evaluations.")
    reference, *others = [read(Path(name), columns) for name in names]
    parts = [_compared(reference, other, correction, primary, anyway, max_error_rate, seed) for other in others]
    return {
        "schema": 1,
        "kind": "results",
        "correction": correction,
        "reference": _side(reference),
        "comparisons": parts,
    }


def _side(results: Results) -> Json:
    return {key: getattr(results, key) for key in ("name", "kind", "task", "model", "errors", "repeats")}


def _compared(
    a: Results, b: Results, correction: Correction, primary: str, anyway: bool, max_error_rate: float, seed: int
) -> Json:
    pairs, by = paired(a, b)
    for side in (a, b):
        if side.errors > max_error_rate * (side.errors + len(side.rows)):
            raise ErrorBudgetExceeded(
                f"{side.errors} of {side.errors + len(side.rows)} cases of {side.name} ended in an error, more than "
                f"the {max_error_rate:.1%} allowed. Repair the cause and run these again, or raise --max-error-rate."
            )
    unlike = list(_unlike(a, b, by == "input"))
    if unlike and not anyway:
        lines = "\n".join(f"  {text}" for text in unlike)
        raise RecipeError(
            f"{b.name} cannot be compared with {a.name}:\n{lines}\n"
            "Evaluate both alike, or compare the cases that both have with --anyway."
        )
    common = [name for name in a.metrics if name in set(b.metrics)]
    if not common:
        raise InterchangeError(
            f"{a.name} and {b.name} have no score in common: {', '.join(a.metrics)} and {', '.join(b.metrics)}. "
            "Give their columns one name, or say with --score which is meant."
        )
    if primary and primary not in common:
        raise RecipeError(f"--metric {primary!r} is no score of both; both have {', '.join(common)}.")
    primary = primary or common[0]
    arrays = {name: array for name in common if (array := _arrays(pairs, name)) is not None}
    metrics = paired_columns(arrays, seed=seed, correction=correction)
    return {
        **_side(b),
        "pairs": len(pairs),
        "paired_by": by,
        "unlike": unlike,
        "primary": primary,
        "metrics": metrics,
        "won": list(_turned(pairs, primary, won=True)),
        "lost": list(_turned(pairs, primary, won=False)),
    }


# ------------------------------------------------------------------------------------------------ pairs


def paired(a: Results, b: Results) -> tuple[list[Pair], str]:
    """The cases that both have, and what they were paired by: "id", "id and input", or "input".

    Raises:
        InterchangeError: A side has a case twice, or ids and inputs disagree and inputs alone do not tell cases apart.
    """
    keyed_a, keyed_b = _by_id(a), _by_id(b)
    common = [key for key in keyed_a if key in keyed_b]
    told = [key for key in common if keyed_a[key].content is not None and keyed_b[key].content is not None]
    other = [key for key in told if keyed_a[key].content != keyed_b[key].content]
    sure = not ((a.numbered or b.numbered) and not told)
    if common and not other and sure:
        return [(keyed_a[key], keyed_b[key]) for key in common], "id and input" if len(told) == len(common) else "id"
    if common and not sure:
        raise InterchangeError(
            f"the ids of {a.name} or {b.name} are mere numbers and the inputs are not there, so nothing says that a "
            "number names the same case in both. Give samples ids of their own."
        )
    by_input = _by_input(a, b)
    if by_input is not None:
        return by_input, "input"
    if other:
        case, repeat = other[0]
        raise InterchangeError(
            f"{len(other)} of {len(common)} cases have the same id in {a.name} and {b.name}, but another input. In "
            f"case {case!r} these are {keyed_a[case, repeat].asked[:80]!r} and {keyed_b[case, repeat].asked[:80]!r}. "
            "Their inputs do not tell the cases apart either, so nothing can be paired. Give samples ids of their own."
        )
    raise InterchangeError(
        f"{a.name} and {b.name} have no case in common: {_some(keyed_a)} and {_some(keyed_b)}. "
        "Are these evaluations of the same task? --case names the column of ids."
    )


def _by_id(results: Results) -> dict[tuple[str, int], Row]:
    keyed = {(row.case, row.repeat): row for row in results.rows}
    if len(keyed) < len(results.rows):
        (case, repeat), count = Counter((row.case, row.repeat) for row in results.rows).most_common(1)[0]
        raise InterchangeError(
            f"{results.name} has case {case!r}, try {repeat}, {count} times, so it cannot be paired. Repeated tries "
            "need a column epoch, attempt, repeat, trial or seed; --case names the column of ids."
        )
    return keyed


def _by_input(a: Results, b: Results) -> list[Pair] | None:
    """Pairs by input and try; None where an input is missing or stands twice."""
    sides = []
    for results in (a, b):
        keyed = {(row.content, row.repeat): row for row in results.rows if row.content is not None}
        if len(keyed) < len(results.rows):
            return None
        sides.append(keyed)
    common = [key for key in sides[0] if key in sides[1]]
    return [(sides[0][key], sides[1][key]) for key in common] or None


def _some(keyed: Mapping[tuple[str, int], Row]) -> str:
    return ", ".join(repr(case) for case, _ in list(keyed)[:3]) + (" …" if len(keyed) > 3 else "")


def _unlike(a: Results, b: Results, by_input: bool) -> Iterator[str]:
    """What makes two sides incomparable, in words."""
    if a.task and b.task and a.task != b.task:
        yield f"other tasks: {a.task} and {b.task}"
    if a.repeats != b.repeats:
        yield f"other numbers of epochs: {a.repeats} and {b.repeats}"
    alone_a, alone_b = _alone(a, b, by_input), _alone(b, a, by_input)
    if alone_a or alone_b:
        yield (
            f"other cases: {alone_a} of {len(a.rows)} are only in {a.name}, {alone_b} of {len(b.rows)} only in {b.name}"
        )


def _alone(a: Results, b: Results, by_input: bool) -> int:
    """Cases of a that b neither has nor lost to an error."""
    known = {_key(row, by_input) for row in b.rows} | set(b.broken)
    return sum(_key(row, by_input) not in known for row in a.rows)


def _key(row: Row, by_input: bool) -> tuple[Any, int]:
    return (row.content if by_input else row.case), row.repeat


# ------------------------------------------------------------------------------------------------ what is compared


def _arrays(pairs: Sequence[Pair], name: str) -> tuple[Any, Any, Any] | None:
    """Values of both sides and clusters, on the pairs that have the score on both; None without one."""
    used = [(a, b) for a, b in pairs if name in a.values and name in b.values]
    if not used:
        return None
    number = {cluster: i for i, cluster in enumerate(sorted({a.cluster for a, _ in used}))}
    return (
        np.array([a.values[name] for a, _ in used]),
        np.array([b.values[name] for _, b in used]),
        np.array([number[a.cluster] for a, _ in used], dtype=np.intp),
    )


def _turned(pairs: Sequence[Pair], name: str, won: bool) -> Iterator[Json]:
    """Cases whose score rose past `PASS` (`won`) or fell below it; any change where scores lie outside [0, 1]."""
    used = [(a, b) for a, b in pairs if name in a.values and name in b.values]
    shares = all(0 <= row.values[name] <= 1 for pair in used for row in pair)
    for a, b in used:
        before, after = a.values[name], b.values[name]
        if shares:
            turned = (before >= PASS) != (after >= PASS) and (after >= PASS) == won
        else:
            turned = (after > before) if won else (after < before)
        if turned:
            yield {"case": a.case, "try": a.repeat, "asked": a.asked, "a": before, "b": after}
