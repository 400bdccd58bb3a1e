"""Results of evaluations made by other tools, as one table: a row per case, a column per score.

`fate-trl compare` pairs two of them. What is read: Inspect's logs (`.eval`, `.json`), the sample files of
lm-evaluation-harness (`samples_*.jsonl`, or the folder that holds them), and any CSV or JSONL file with a column that
names the case and at least one column of numbers. No torch, no recipe, no model.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from ..errors import InterchangeError
from ..messages import counted
from ..record import stable_hash
from .records import load, sound

LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
"""Inspect's verdicts as numbers, as inspect_ai reads them: correct, incorrect, partial, no answer."""

SHOWN = 200
"""Characters of an input that are kept to show it."""

CASES = ("case", "id", "case_id", "sample_id", "doc_id", "task_id", "question_id")
"""Columns that name the case, where the user names none; the first that is there."""

_NO_SCORE = ("", "nan", "none", "null", "na", "n/a")

REPEATS = ("epoch", "attempt", "repeat", "trial", "seed")
CLUSTERS = ("cluster", "group")
INPUTS = ("input", "prompt", "question", "asked")


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        case: Its id, as the file gives it.
        repeat: Which try of the case it is, from 1; Inspect's epoch.
        cluster: What it shares with other cases that are not independent of it; the case itself by default.
        content: Hash of the input; None where the file holds no input.
        asked: The beginning of the input, to show it.
        values: Score by name; a score that the case lacks is left out.
    """

    case: str
    repeat: int
    cluster: str
    content: int | None
    asked: str
    values: dict[str, float]


@dataclass(frozen=True)
class Results:
    """What one evaluation came to.

    Attributes:
        name: The file or folder, as the user gave it.
        kind: What was read: "Inspect", "lm-eval", "CSV", "JSONL".
        task: Name of what was evaluated; "" where the file does not say.
        model: Name of the model; "" where the file does not say.
        rows: The cases that have a score.
        broken: (case, repeat) of those without a score: samples that ended in an error.
        repeats: Tries of each case that were asked for.
        numbered: Whether the ids may be mere places in the file: they say nothing without the content.
    """

    name: str
    kind: str
    task: str
    model: str
    rows: tuple[Row, ...]
    broken: tuple[tuple[str, int], ...] = ()
    repeats: int = 1
    numbered: bool = False

    @property
    def errors(self) -> int:
        """Number of cases without a score."""
        return len(self.broken)

    @property
    def metrics(self) -> list[str]:
        """Names of the scores, in the order in which they first occur."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))


@dataclass(frozen=True)
class Columns:
    """What the user says of the columns; "" is found by its usual names.

    Attributes:
        case: Column that names the case.
        cluster: Column, or key of a sample's metadata or document, that names its cluster.
        scores: Columns that are scores; empty for every column of numbers.
    """

    case: str = ""
    cluster: str = ""
    scores: tuple[str, ...] = ()


def recognised(path: Path) -> bool:
    """Whether a path is a file of results, or a folder of lm-eval's, rather than a run directory."""
    if path.is_dir():
        return not (path / "recipe.yaml").exists() and bool(_sample_files(path))
    return path.suffix.lower() in READERS and path.is_file()


def read(path: Path, columns: Columns | None = None) -> Results:
    """The results in a file, or in a folder of lm-eval's.

    Raises:
        InterchangeError: It is no such file, it is damaged, or it holds no score.
    """
    columns = columns or Columns()
    if path.is_dir():
        results = _lm_eval_folder(path, columns)
    elif path.suffix.lower() in READERS:
        results = READERS[path.suffix.lower()](path, columns)
    else:
        raise InterchangeError(f"{path} is none of {', '.join(sorted(READERS))}, and no folder of lm-eval's samples.")
    if not results.rows:
        raise InterchangeError(f"{path} holds no case with a score ({results.errors} ended in an error).")
    return results


# ------------------------------------------------------------------------------------------------ Inspect


INSPECT_CUT = "(content truncated)"
INSPECT_LEFT_OUT = "Key removed from summary"
INSPECT_TEXT = 1000
"""Inspect's summaries cut an input after 5,120 characters, and say so at its end. Of metadata they leave out what is
large, and say so; texts they cut after 1,024 characters at most, and say nothing."""


def _inspect(path: Path, columns: Columns) -> Results:
    """A log of inspect_ai, by its own reader of summaries, which leaves transcripts and attachments alone.

    Samples whose summaries are cut are read whole.
    """
    try:
        from inspect_ai.log import read_eval_log, read_eval_log_sample_summaries
    except ImportError:
        raise InterchangeError(f"{path} is a log of Inspect; to read it: pip install 'fate-trl[inspect]'") from None
    try:
        head = read_eval_log(str(path.resolve()), header_only=True)
        summaries = read_eval_log_sample_summaries(str(path.resolve()))
        cut = [sample for sample in summaries if _is_cut(sample, columns.cluster)]
        whole = {(sample.id, sample.epoch): sample for sample in (_whole_samples(path, cut) if cut else ())}
    except Exception as error:  # whatever a damaged archive makes of zipfile, JSON and pydantic
        raise InterchangeError(f"{path} is no log that inspect_ai reads: {type(error).__name__}: {error}") from None
    rows, broken = [], []
    for sample in summaries:
        values = {} if sample.error else dict(_inspect_scores(sample.scores or {}))
        if not values:
            broken.append((str(sample.id), sample.epoch))
        else:
            said = whole.get((sample.id, sample.epoch), sample)
            asked = said.input if isinstance(said.input, str) else _texts(said.input)
            named = _named_cluster(said.metadata or {}, columns.cluster, f"{path}, sample {sample.id!r}: metadata")
            rows.append(_row(str(sample.id), sample.epoch, named, asked, values))
    ids = [sample.id for sample in summaries]
    return Results(
        name=str(path),
        kind="Inspect",
        task=head.eval.task,
        model=head.eval.model,
        rows=tuple(rows),
        broken=tuple(broken),
        repeats=head.eval.config.epochs or 1,
        # Samples without ids are numbered 1, 2, … after a shuffle, so a number names another sample in each log.
        numbered=all(isinstance(id, int) for id in ids),
    )


def _is_cut(summary: Any, cluster: str) -> bool:
    """Whether a sample's summary lacks some of its input, or of the value that names its cluster."""
    texts = [summary.input] if isinstance(summary.input, str) else [_texts([message]) for message in summary.input]
    named = (summary.metadata or {}).get(cluster, "")
    if isinstance(named, str) and (len(named) > INSPECT_TEXT or named.startswith(INSPECT_LEFT_OUT)):
        return True
    return any(INSPECT_CUT in text for text in texts)


def _whole_samples(path: Path, summaries: Sequence[Any]) -> Iterator[Any]:
    """The samples of these summaries, without transcripts where the form of the log allows it."""
    from inspect_ai.log import read_eval_log, read_eval_log_sample

    file = str(path.resolve())
    if path.suffix.lower() == ".json":
        yield from read_eval_log(file, resolve_attachments=True).samples or ()
        return
    for summary in summaries:
        left_out = {"events", "messages", "store"}
        yield read_eval_log_sample(file, summary.id, summary.epoch, resolve_attachments=True, exclude_fields=left_out)


def _inspect_scores(scores: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, score in scores.items():
        for key, value in (score.value if isinstance(score.value, dict) else {"": score.value}).items():
            number = _number(value)
            if number is not None:
                yield f"{name}/{key}" if key else name, number


def _texts(messages: Sequence[Any]) -> str:
    return "\n".join(str(getattr(message, "text", message)) for message in messages)


# ------------------------------------------------------------------------------------------------ lm-eval


def _sample_files(folder: Path) -> list[Path]:
    """Its newest file of samples for each task; lm-eval puts the date and time behind the task's name."""
    newest: dict[tuple[Path, str], Path] = {}
    for path in sorted(folder.rglob("samples_*.jsonl")):
        newest[path.parent, path.stem.removeprefix("samples_").rpartition("_")[0]] = path
    return list(newest.values())


def _lm_eval_folder(folder: Path, columns: Columns) -> Results:
    files = _sample_files(folder)
    if not files:
        raise InterchangeError(f"{folder} is no run directory and holds no samples_*.jsonl of lm-eval (--log_samples).")
    if len({path.parent for path in files}) > 1:
        models = ", ".join(sorted({path.parent.name for path in files}))
        raise InterchangeError(f"{folder} holds samples of several models: {models}. Name the folder of one.")
    parts = [_lm_eval(path, columns) for path in files]
    if len(parts) == 1:
        return replace(parts[0], name=str(folder))
    rows = tuple(_of_task(part.task, row) for part in parts for row in part.rows)
    broken = tuple((f"{part.task}/{case}", repeat) for part in parts for case, repeat in part.broken)
    task = ", ".join(sorted(part.task for part in parts))
    return Results(str(folder), "lm-eval", task, parts[0].model, rows, broken)


def _of_task(task: str, row: Row) -> Row:
    """A row among those of other tasks: each task keeps scores of its own."""
    values = {f"{task}/{name}": value for name, value in row.values.items()}
    return replace(row, case=f"{task}/{row.case}", cluster=f"{task}/{row.cluster}", values=values)


def _lm_eval(path: Path, columns: Columns) -> Results:
    """One file of samples: a row per document *and filter*, joined here, so that a score is named `metric,filter`."""
    task = path.stem.removeprefix("samples_").rpartition("_")[0]
    found: dict[str, tuple[str, str, dict[str, float]]] = {}
    for number, record in enumerate(_records(path), 1):
        where = f"{path}, line {number}"
        if "doc_id" not in record or not isinstance(record.get("metrics"), list):
            raise InterchangeError(f"{where} is no sample of lm-eval: it lacks doc_id or metrics.")
        scores = [(name, _number(record.get(name))) for name in map(str, record["metrics"])]
        named = {f"{name},{record.get('filter', 'none')}": value for name, value in scores if value is not None}
        case, document = str(record["doc_id"]), record.get("doc")
        holder = document if isinstance(document, Mapping) else {}
        cluster = _named_cluster(holder, columns.cluster, f"{where}: doc")
        asked = json.dumps([document, record.get("target")], sort_keys=True, ensure_ascii=False, default=str)
        _, _, values = found.setdefault(case, (cluster, asked, {}))
        if values.keys() & named.keys():
            raise InterchangeError(f"{where}: document {case} has {next(iter(values.keys() & named.keys()))} twice.")
        values |= named
    rows = tuple(_row(case, 1, cluster, asked, values) for case, (cluster, asked, values) in found.items() if values)
    broken = tuple((case, 1) for case, (_, _, values) in found.items() if not values)
    return Results(str(path), "lm-eval", task, path.parent.name, rows, broken)


# ------------------------------------------------------------------------------------------------ CSV and JSONL


def _csv(path: Path, columns: Columns) -> Results:
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            return _table(path, "CSV", _cells(path, file), columns)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InterchangeError(f"{path} is no CSV file in UTF-8: {error}") from None


def _cells(path: Path, file: TextIO) -> list[dict[str, Any]]:
    """The rows of a CSV file by its header. Raises InterchangeError for an empty file, or rows of other lengths."""
    reader = csv.reader(file)
    header = next(reader, None)
    if not header:
        raise InterchangeError(f"{path} is empty; its first line names the columns.")
    rows = []
    for cells in filter(None, reader):
        if len(cells) != len(header):
            raise InterchangeError(
                f"{path}, line {reader.line_num} has {counted(len(cells), 'cells')}, and its header names "
                f"{counted(len(header), 'columns')}; a text that holds a comma stands in quotation marks."
            )
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _jsonl(path: Path, columns: Columns) -> Results:
    if path.name.startswith("samples_"):
        return _lm_eval(path, columns)
    return _table(path, "JSONL", list(_records(path)), columns)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                record = load(line, f"{path}, line {number}")
                if not isinstance(record, dict):
                    raise InterchangeError(f"{path}, line {number} holds no object.")
                yield record


def _table(path: Path, kind: str, records: Sequence[Mapping[str, Any]], columns: Columns) -> Results:
    if not records:
        raise InterchangeError(f"{path} holds no row.")
    names = list(dict.fromkeys(name for record in records for name in record))
    case = _column(path, names, columns.case, CASES, "--case")
    repeat, cluster, asked = (
        next((name for name in usual if name in names), "") for usual in (REPEATS, CLUSTERS, INPUTS)
    )
    cluster = _column(path, names, columns.cluster, (), "--cluster") if columns.cluster else cluster
    for score in columns.scores:
        _column(path, names, score, (), "--score")
    scores = list(columns.scores) or [
        n for n in names if n not in (case, repeat, cluster, asked) and _is_score(records, n)
    ]
    if not scores:
        others = [name for name in names if name not in (case, repeat, cluster, asked)]
        raise InterchangeError(
            f"{path} has no column of numbers besides {case!r}{_first_text(records, others)}; its columns are "
            f"{', '.join(names)}."
        )
    rows, broken = [], []
    for number, record in enumerate(records, 1):
        values = {name: value for name in scores if (value := _number(record.get(name))) is not None}
        times = _whole(record.get(repeat), f"{path}, row {number}: {repeat}") if repeat else 1
        if not values:
            broken.append((str(record.get(case)), times))
        else:
            group = str(record.get(cluster) or "") if cluster else ""
            text = str(record[asked]) if asked and record.get(asked) is not None else None
            rows.append(_row(str(record.get(case)), times, group, text, values))
    return Results(str(path), kind, "", "", tuple(rows), tuple(broken))


def _column(path: Path, names: Sequence[str], wanted: str, usual: Sequence[str], option: str) -> str:
    """The column that the user names, or the first of the usual ones."""
    found = next((name for name in ([wanted] if wanted else usual) if name in names), None)
    if found is None:
        lacking = f"no column {wanted!r}" if wanted else f"no column that names the case ({', '.join(usual)})"
        raise InterchangeError(
            f"{path} has {lacking}; name one with {option}. Its columns are {', '.join(names) or 'none'}."
        )
    return found


def _is_score(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether every value of a column that is there is a number, or stands for one."""
    given = [record[name] for record in records if not _missing(record.get(name))]
    return bool(given) and all(_number(value) is not None for value in given)


def _missing(value: Any) -> bool:
    """Whether a cell stands for no score: empty, or NaN as pandas and others write it."""
    if isinstance(value, str):
        return value.strip().lower() in _NO_SCORE
    return value is None or (isinstance(value, float) and math.isnan(value))


def _first_text(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Why the first of these columns is none of numbers, in words."""
    for name in names:
        for number, record in enumerate(records, 1):
            value = record.get(name)
            if not _missing(value) and _number(value) is None:
                return f" ({name!r} holds {str(value)[:40]!r} in row {number})"
        return f" ({name!r} holds no value)"
    return ""


# ------------------------------------------------------------------------------------------------ values


def _row(case: str, repeat: int, cluster: str, asked: str | None, values: dict[str, float]) -> Row:
    content = None if asked is None else stable_hash(asked)
    shown = " ".join(str(sound(asked or "")).split())[:SHOWN]
    return Row(sound(case), repeat, sound(cluster) or sound(case), content, shown, values)


def _named_cluster(holder: Mapping[str, Any], key: str, where: str) -> str:
    if not key:
        return ""
    if key not in holder:
        raise InterchangeError(
            f"{where} has no {key!r} to cluster by; it has {', '.join(map(str, holder)) or 'nothing'}."
        )
    return str(holder[key])


def _number(value: Any) -> float | None:
    """A score as a number; None where it is none. Texts are read as numbers, truth values and Inspect's letters."""
    if isinstance(value, str):
        text = value.strip()
        if text in LETTERS:
            return LETTERS[text]
        if text.lower() in ("true", "false"):
            return float(text.lower() == "true")
        try:
            value = float(text)
        except ValueError:
            return None
    if isinstance(value, (bool, int, float)) and math.isfinite(value):
        return float(value)
    return None


def _whole(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InterchangeError(f"{where} is a whole number, not {value!r}.") from None


READERS: dict[str, Callable[[Path, Columns], Results]] = {
    ".eval": _inspect,
    ".json": _inspect,
    ".jsonl": _jsonl,
    ".csv": _csv,
}
"""Reader by a file's suffix."""
