"""The viewer's index: one row per trajectory of a run, as columns, small enough to be filtered in a browser.

Built in one pass over the records, a line at a time, and kept in RUN/.viewer.json until a record file changes. What a
row leaves out (the conversation) is read from the record's place in its file when somebody opens it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..choose.turns import turns_of
from ..errors import RecipeError
from ..ledger.layout import file_of
from ..ledger.reading import RunReader
from ..messages import text_of
from ..types import OBJECTIVES, pass_mark
from .reading import Run, missing

CACHE = ".viewer.json"
FORMAT = 5
"""Goes up when the index changes its shape; an older cache is built again."""

NOT_APPLICABLE, ERROR = -1, -2
"""In a column of scores, beside values in [0, 1]."""

CAUSES = 200
"""Causes that can be filtered by; a judge may give every trajectory a reason of its own. The rest is "other"."""

_FILES = ("rollouts", "repairs")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Index:
    """What the browser filters, and where the rest stands.

    Attributes:
        shown: JSON value for the browser; see `_Builder.shown`.
        places: Per row (round, file, first byte, length).
    """

    shown: dict[str, Any]
    places: list[list[Any]]


def load(run: Run, keep: bool = True) -> Index:
    """The index of a run: from its cache if that is as new as the records, otherwise built, and cached with `keep`."""
    cache, state = run.path / CACHE, _state(run)
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
        if kept["state"] == state:
            return Index(kept["shown"], kept["places"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or not ours
        pass
    index = build(run)
    if not keep:
        return index
    try:
        text = json.dumps({"state": state, "shown": index.shown, "places": index.places}, separators=(",", ":"))
        cache.write_text(text, encoding="utf-8")
    except OSError:  # somebody else's run: looking at it needs no right to write
        pass
    return index


def _state(run: Run) -> list[Any]:
    """What the cache depends on: names, sizes and times of the record files."""
    names = [file_of(number, kind) for number in run.rounds for kind in (*_FILES, "selections", "pairs", "stages")]
    stats = [(name, (run.path / name).stat()) for name in names if (run.path / name).exists()]
    return [FORMAT, *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


def build(run: Run) -> Index:
    """The index from the records, in the order of rounds, files and lines; the scripted baselines last."""
    builder, baselines = _Builder(), []
    scripted = {stage for policy in run.policies if policy.scripted for stage in policy.stages.values()}
    for number in run.rounds:
        for file in _FILES:
            for place, record in run.located(number, file):
                if record["trajectory"].get("stage") in scripted:
                    baselines.append((number, file, place, record))
                else:
                    builder.add(number, file, place, record)
    for baseline in baselines:
        builder.add(*baseline)
    for number, round in run.rounds.items():
        for selection in round.selections:
            builder.link(number, selection)
        for pair in run.records(number, "pairs"):
            builder.pair(run.path, pair)
    return Index(builder.shown(run), builder.places)


def read(run: Path, place: list[Any]) -> dict[str, Any]:
    """The record at a row's place. Raises ValueError if the file has changed since the index was built."""
    round, file, start, length = place
    return RunReader(run).read_at(file_of(round, file), range(start, start + length))


class _Names:
    """Texts by number, in the order of their first use."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def __getitem__(self, name: Any) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.numbers)


@dataclass
class _Builder:
    """Columns as they grow."""

    places: list[list[Any]] = field(default_factory=list)
    there: Counter[tuple[int, str]] = field(default_factory=Counter)
    rows: dict[tuple[Any, ...], int] = field(default_factory=dict)
    stages: _Names = field(default_factory=_Names)
    suites: _Names = field(default_factory=_Names)
    kinds: _Names = field(default_factory=_Names)
    errors: _Names = field(default_factory=_Names)
    tasks: _Names = field(default_factory=_Names)
    requests: list[str] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in ("round", "stage", "task", "attempt", "error", "causes")}
    )
    scores: dict[str, list[float]] = field(default_factory=dict)
    selections: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, round: int, file: str, place: range, record: dict[str, Any]) -> None:
        trajectory, scores = record["trajectory"], record["card"]["scores"]
        task, attempt = trajectory["task"], trajectory.get("attempt", 0)
        number, row = self._task(task), len(self.places)
        self.there[round, record["stage"]] += 1
        self.places.append([round, file, place.start, len(place)])
        self.rows[round, trajectory.get("stage", ""), task["suite"], task["id"], attempt] = row
        values = {
            "round": round,
            "stage": self.stages[trajectory.get("stage", "")],
            "task": number,
            "attempt": attempt,
            "error": self.errors[_error(trajectory, scores)],
            "causes": [_cause(name, score) for name, score in scores.items() if _fails(name, score)],
        }
        for name, value in values.items():
            self.columns[name].append(value)
        for name in scores:
            self.scores.setdefault(name, [NOT_APPLICABLE] * row)
        for name, column in self.scores.items():
            column.append(_number(scores.get(name)))

    def _task(self, task: dict[str, Any]) -> int:
        """A task's number; tasks of one id are the same in all rounds and stages."""
        number = self.tasks[self.suites[task["suite"]], task["id"], self.kinds[task["kind"]]]
        if number == len(self.requests):
            asked = [text_of(message) for message in task["messages"] if message.get("role") == "user"]
            self.requests.append(_short(asked[-1] if asked else ""))
        return number

    def link(self, round: int, selection: dict[str, Any]) -> None:
        """Tie a failure and its candidates together; one whose records are not (or no longer) there is left out."""
        failure = self.rows.get((round, *selection["failure"]))
        candidates = [self.rows.get((round, *key)) for key in selection["candidates"]]
        if failure is not None and None not in candidates:
            kept = {key: selection[key] for key in ("accepted", "front", "chosen", "decided_by")}
            self.selections.append({"failure": failure, "candidates": candidates, **kept})

    def pair(self, run: Path, pair: dict[str, Any]) -> None:
        """A pair that was learned from: its rows, the messages of either side with loss, and how many tokens have it.

        One whose records are not (or no longer) there is left out.
        """
        round, task = pair["round"], (pair["suite"], pair["task"])
        worse = (pair.get("rejected_round", 0) or round, pair.get("rejected_stage", "collect"))
        chosen, rejected = (
            self.rows.get((round, "repair", *task, pair["repair"])),
            self.rows.get((*worse, *task, pair["failure"])),
        )
        if chosen is None or rejected is None:
            return
        sides = [("chosen", chosen), ("rejected", rejected)]
        steps = {
            side: _with_loss(read(run, self.places[row])["trajectory"], pair[f"{side}_mask"]) for side, row in sides
        }
        tokens = {side: sum(pair[f"{side}_mask"]) for side in steps}
        self.pairs.append({**dict(sides), "gap": pair["score_gap"], "steps": steps, "tokens": tokens})

    def _opens(self, run: Run, order: list[str]) -> int:
        """The row that is shown first: the most telling failure of the policy handed over on the test split.

        That is the first row that fails security; without one the first that fails utility, and so on in the order of
        the objectives. Without any failure it is the policy's first row. As long as no policy was tested, all rows
        stand for it.
        """
        rows = list(range(len(self.places)))
        try:
            policy = run.policy()
        except RecipeError:  # stopped before the first test, or evaluated on another split only
            pass
        else:
            stage, where = self.stages.numbers.get(policy.stages["test"]), self.columns
            tested = [row for row in rows if (where["round"][row], where["stage"][row]) == (policy.round, stage)]
            rows = tested or rows
        failed = (row for name in order for row in rows if 0 <= self.scores[name][row] < pass_mark(name))
        return next(failed, rows[0] if rows else 0)

    def shown(self, run: Run) -> dict[str, Any]:
        """The browser's part. Names stand once, rows hold their numbers; `rows.scores` as NOT_APPLICABLE, ERROR say."""
        order = [name for name in OBJECTIVES if name in self.scores]
        order += [name for name in self.scores if name not in order]
        counted = Counter(cause for causes in self.columns["causes"] for cause in causes)
        common = [cause for cause, _ in counted.most_common(CAUSES)]
        numbers = {cause: number for number, cause in enumerate(common)}
        causes = [sorted({numbers.get(c, len(common)) for c in causes}) for causes in self.columns["causes"]]
        return {
            "run": run.name,
            "runs": [run.name],
            "missing": missing(run, self.there),
            "objectives": order,
            "letters": letters(order),
            "opens": self._opens(run, order),
            "pass_at": [pass_mark(name) for name in order],
            "stages": list(self.stages),
            "suites": list(self.suites),
            "kinds": list(self.kinds),
            "errors": list(self.errors),
            "causes": [*common, "other"] if len(counted) > CAUSES else common,
            "tasks": {
                "suite": [suite for suite, _, _ in self.tasks],
                "id": [id for _, id, _ in self.tasks],
                "kind": [kind for _, _, kind in self.tasks],
                "request": self.requests,
            },
            "rows": {**self.columns, "causes": causes, "scores": [self.scores[name] for name in order]},
            "selections": self.selections,
            "pairs": self.pairs,
        }


def _with_loss(trajectory: dict[str, Any], mask: list[int]) -> list[int]:
    """Indices of the messages of a pair's side that have loss; the mask is over all that follows the pair's prompt."""
    spoken = [i for i, message in enumerate(trajectory.get("messages", [])) if message.get("role") == "assistant"]
    own = trajectory.get("policy_mask", [])
    turns = {int(turn) for turn, loss in zip(turns_of(own), mask[len(mask) - len(own) :], strict=False) if loss}
    return [spoken[turn] for turn in sorted(turns) if 0 <= turn < len(spoken)]


def letters(names: list[str]) -> list[str]:
    """What stands for each objective in a small box: "over_refusal" is "OR"; longer where two would be the same."""

    def short(name: str, length: int) -> str:
        return "".join(word[:length].capitalize() for word in name.split("_"))

    def alone(name: str, length: int) -> bool:
        return [short(other, length) for other in names].count(short(name, length)) == 1

    return [next((short(name, n) for n in range(1, 5) if short(name, n) and alone(name, n)), name) for name in names]


def _status(score: dict[str, Any]) -> str:
    return str(score.get("status", "ok"))


def _number(score: dict[str, Any] | None) -> float:
    """A score in a column; rounded down, so that what fails never looks as if it passed."""
    if score is None or _status(score) == "not_applicable":
        return NOT_APPLICABLE
    return ERROR if _status(score) == "error" else int(score["value"] * 10_000) / 10_000


def _error(trajectory: dict[str, Any], scores: dict[str, Any]) -> str:
    """What an infrastructure error is filtered by: its `types.Cause`, or its reason if it has none; "" without one."""
    broken = [trajectory] if trajectory.get("error") else [s for s in scores.values() if _status(s) == "error"]
    return _short(next((b.get("cause") or b.get("error") or b.get("reason", "other") for b in broken), ""))


def _fails(name: str, score: dict[str, Any]) -> bool:
    return _status(score) == "ok" and score["value"] < pass_mark(name)


def _cause(name: str, score: dict[str, Any]) -> str:
    """Why an objective failed, in the verifier's words; numbers in them are one: "security: n of n calls malformed"."""
    return f"{name}: {_NUMBER.sub('n', _short(score.get('reason') or 'no reason given'))}"


def _short(text: str, limit: int = 160) -> str:
    """The beginning of a text, on one line."""
    line = _SPACE.sub(" ", text[: 4 * limit]).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"
