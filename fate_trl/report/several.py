"""Several runs as one index for the viewer: the same try of the same task stands side by side in the list.

Rows are ordered by round, stage, task and try, then by run in the order given; scripted baselines come last. Names and
numbers are those of one index (index.py), with one more column: the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..suites.scripted import ROLES
from ..types import OBJECTIVES
from .index import NOT_APPLICABLE, Index, letters

Json = dict[str, Any]
_ORDER = ("round", "stage", "task", "attempt", "run")
_NAMED = ("stages", "suites", "kinds", "errors", "causes")


def merged(indexes: Mapping[str, Index]) -> tuple[Index, list[int]]:
    """One index of several runs, and the number of each row's run.

    It opens on the most telling failure of the last run.

    Args:
        indexes: Each run's index, by the name that the list shows.
    """
    parts = [index.shown for index in indexes.values()]
    names = {key: _united(part[key] for part in parts) for key in _NAMED}
    tasks = _united(map(_tasks, parts))
    found = _united(part["objectives"] for part in parts)
    objectives = [*(name for name in OBJECTIVES if name in found), *(name for name in found if name not in OBJECTIVES)]
    rows = [row for run, part in enumerate(parts) for row in _rows(part, run, names, tasks)]
    scripted = [name.removeprefix("eval-test-") in ROLES for name in names["stages"]]
    order = sorted(range(len(rows)), key=lambda at: (scripted[rows[at]["stage"]], *(rows[at][key] for key in _ORDER)))
    place = {(rows[at]["run"], rows[at]["was"]): new for new, at in enumerate(order)}
    columns = {key: [rows[at][key] for at in order] for key in (*_ORDER, "error", "causes")}
    shown = {
        "run": " · ".join(indexes),
        "runs": list(indexes),
        "missing": [f"{name}: {line}" for name, part in zip(indexes, parts, strict=True) for line in part["missing"]],
        "objectives": objectives,
        "letters": letters(objectives),
        "opens": place[len(parts) - 1, parts[-1]["opens"]],
        "pass_at": [
            next(p["pass_at"][p["objectives"].index(o)] for p in parts if o in p["objectives"]) for o in objectives
        ],
        **{key: list(found) for key, found in names.items()},
        "tasks": {
            "suite": [names["suites"][suite] for suite, *_ in tasks],
            "id": [id for _, id, *_ in tasks],
            "kind": [names["kinds"][kind] for *_, kind, _ in tasks],
            "request": [request for *_, request in tasks],
        },
        "rows": {**columns, "scores": [_scores(parts, rows, order, name) for name in objectives]},
        "selections": [_selection(s, run, place) for run, part in enumerate(parts) for s in part["selections"]],
        "pairs": [
            {**pair, **{side: place[run, pair[side]] for side in ("chosen", "rejected")}}
            for run, part in enumerate(parts)
            for pair in part["pairs"]
        ],
    }
    each = list(indexes.values())
    places = [each[rows[at]["run"]].places[rows[at]["was"]] for at in order]
    return Index(shown, places), columns["run"]


def _united(lists: Iterable[Iterable[Any]]) -> dict[Any, int]:
    """Number of each name, in the order of their first use."""
    numbers: dict[Any, int] = {}
    for names in lists:
        for name in names:
            numbers.setdefault(name, len(numbers))
    return numbers


def _tasks(part: Json) -> list[tuple[Any, ...]]:
    """(suite, id, kind, request) of each of a run's tasks, by name."""
    tasks = part["tasks"]
    suites, kinds = ([part[key][n] for n in tasks[one]] for key, one in (("suites", "suite"), ("kinds", "kind")))
    return list(zip(suites, tasks["id"], kinds, tasks["request"], strict=True))


def _rows(part: Json, run: int, names: Mapping[str, dict[Any, int]], tasks: dict[Any, int]) -> Iterator[Json]:
    """A run's rows, with the numbers that names have among all runs."""
    columns = part["rows"]
    task, stage, error, cause = (
        [tasks[one] for one in _tasks(part)],
        *([names[key][name] for name in part[key]] for key in ("stages", "errors", "causes")),
    )
    for row, number in enumerate(columns["task"]):
        yield {
            "run": run,
            "was": row,
            "round": columns["round"][row],
            "stage": stage[columns["stage"][row]],
            "task": task[number],
            "attempt": columns["attempt"][row],
            "error": error[columns["error"][row]],
            "causes": sorted(cause[n] for n in columns["causes"][row]),
        }


def _scores(parts: Sequence[Json], rows: Sequence[Json], order: Sequence[int], name: str) -> list[float]:
    columns = [p["rows"]["scores"][p["objectives"].index(name)] if name in p["objectives"] else None for p in parts]
    found = ((columns[rows[at]["run"]], rows[at]["was"]) for at in order)
    return [NOT_APPLICABLE if column is None else column[row] for column, row in found]


def _selection(selection: Json, run: int, place: Mapping[tuple[int, int], int]) -> Json:
    return {
        **selection,
        "failure": place[run, selection["failure"]],
        "candidates": [place[run, row] for row in selection["candidates"]],
    }
