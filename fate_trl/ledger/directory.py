"""The run directory: append-only records, committed a chunk at a time, and what is needed to go on after a stop.

    RUN/recipe.yaml  manifest.json  metrics.json
    RUN/rounds/01/{rollouts,repairs}.jsonl   one record per finished trajectory, with its scores
    RUN/rounds/01/selections.jsonl           one record per failure: candidates, front, choice
    RUN/rounds/01/buffer.jsonl               rows that the policy is trained on
    RUN/rounds/01/stages.jsonl               finished stages, with their counts and seconds
    RUN/rounds/01/policy/                    the policy after the round
    RUN/rounds/01/{after,training}-sft/      what a training stage leaves for the next one, and its checkpoints; removed

A chunk has fixed members and a seed of its own; its records are written in one go, and are either all there or redone.
What a kill can leave, a torn end, is cut off and redone without a word. Any other damage is an error; fsck.py mends it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import FateError, LedgerError
from ..record import dumps, stable_hash
from ..types import Case, ScoreCard, Trajectory


class RunDirectory:
    """One run's files. Records are JSON lines, ASCII only, so hostile text in them is inert.

    Args:
        path: The folder, made if it is missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"cannot make the run directory {self.path}: {error.strerror}. Set output_dir.") from None

    # -------------------------------------------------------------------------------------------- whole files

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file so that it is either the old one or the new one, never half."""
        self.write_text(name, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        target = self.path / name
        fresh = target.with_name(f".{target.name}.new")  # one name will do: a run has one writer
        with self.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(fresh, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, target)

    @contextmanager
    def writing(self, target: Path) -> Iterator[None]:
        """Within, a disk that is full or cannot be written to is a LedgerError that says how to go on."""
        try:
            yield
        except OSError as error:
            raise LedgerError(
                f"cannot write {target}: {error.strerror or error}. What was recorded before is safe: mend that, "
                f"then go on with `fate-trl run --resume {self.path}`."
            ) from error

    def read_json(self, name: str) -> Any:
        """The file's value, None if there is no such file."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise self.damaged(name, str(error)) from None

    def damaged(self, what: str, reason: str) -> LedgerError:
        """The error for something that is not as this class wrote it."""
        return LedgerError(
            f"{self.path}/{what} is damaged: {reason}. `fate-trl fsck {self.path}` shows all damage, and with --repair "
            "takes it out, so that it is redone when the run is resumed."
        )

    # -------------------------------------------------------------------------------------------- JSON lines

    def append(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Append records in one write, flushed to the disk."""
        target = self.path / name
        with self.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "ab") as file:
                file.write("".join(dumps(record, sort=False) + "\n" for record in records).encode())
                file.flush()
                os.fsync(file.fileno())

    def read(self, name: str) -> list[dict[str, Any]]:
        """All records; a half-written last line is cut off the file, a damaged line elsewhere is an error."""
        target = self.path / name
        if not target.exists():
            return []
        raw = target.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(target, len(whole))
        records = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                records.append(parsed(line))
            except ValueError as error:
                raise self.damaged(f"{name}, line {number}", str(error)) from None
        return records

    # -------------------------------------------------------------------------------------------- cases, in chunks

    def append_chunk(self, name: str, stage: str, chunk: int, cases: Sequence[Case]) -> None:
        """Commit a chunk of scored trajectories."""
        self.append(
            name,
            (
                {"chunk": chunk, "of": len(cases), "stage": stage, "trajectory": trajectory, "card": card}
                for trajectory, card in cases
            ),
        )

    def chunks(self, name: str, stage: str) -> dict[int, list[Case]]:
        """Committed chunks of a stage by number. A last chunk that is not whole is cut off the file."""
        groups: dict[tuple[str, int], list[Any]] = {}
        wanted: dict[tuple[str, int], int] = {}
        first: dict[tuple[str, int], int] = {}
        for number, record in enumerate(self.read(name), 1):
            try:
                key, of = chunk_of(record)
                groups.setdefault(key, []).append(case_of(record) if key[0] == stage else None)
            except ValueError as error:
                raise self.damaged(f"{name}, line {number}", str(error)) from None
            wanted[key] = of
            first.setdefault(key, number)
        for key in [key for key in groups if len(groups[key]) != wanted[key]]:
            if key != list(groups)[-1] or len(groups[key]) > wanted[key]:
                reason = f"{len(groups[key])} of {wanted[key]} records of chunk {key[1]} of {key[0]} are there"
                raise self.damaged(f"{name}, line {first[key]}", reason)
            self._cut(name, first[key])
            del groups[key]
        return {chunk: cases for (of_stage, chunk), cases in groups.items() if of_stage == stage}

    def _cut(self, name: str, line: int) -> None:
        """Cut a file of records off before a line."""
        lines = (self.path / name).read_bytes().splitlines(keepends=True)
        os.truncate(self.path / name, sum(map(len, lines[: line - 1])))

    def cases(self, name: str, stage: str) -> list[Case]:
        """All committed cases of a stage, in the order of their chunks."""
        chunks = self.chunks(name, stage)
        return [case for number in sorted(chunks) for case in chunks[number]]

    # -------------------------------------------------------------------------------------------- folders

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A fresh folder that takes the place of `name` only when it is complete."""
        target = self.path / name
        with self.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            for left in target.parent.glob(f".{target.name}-*"):  # by a process that was killed
                shutil.rmtree(left)
            fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
            try:
                yield fresh
                flush(fresh)
                shutil.rmtree(target, ignore_errors=True)
                fresh.chmod(0o755)
                os.replace(fresh, target)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process off this run."""
        try:
            handle = open(self.path / ".lock", "w")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise LedgerError(f"cannot write to the run directory {self.path}: {error.strerror}.") from None
        with handle as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LedgerError(f"{self.path} is in use by another process; wait for it, or stop it.") from None
            yield


def flush(folder: Path) -> None:
    """Have all files of a folder on the disk, for a folder whose presence is to mean that it is complete."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def parsed(line: bytes) -> dict[str, Any]:
    """A line as a record. Raises ValueError where it is none."""
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("it holds no record")
    return record


def chunk_of(record: dict[str, Any]) -> tuple[tuple[str, int], int]:
    """Stage and number of a record's chunk, and the chunk's size. Raises ValueError where it has none."""
    try:
        return (str(record["stage"]), int(record["chunk"])), int(record["of"])
    except KeyError as error:
        raise ValueError(f"it lacks the key {error}") from None
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None


def case_of(record: dict[str, Any]) -> Case:
    """The case of a record. Raises ValueError where it has none."""
    try:
        return Trajectory.from_dict(record["trajectory"]), ScoreCard.from_dict(record["card"])
    except KeyError as error:
        raise ValueError(f"it lacks the key {error}") from None
    except (FateError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(str(error)) from None


def cases_of(record: Mapping[str, Any]) -> int | None:
    """How many trajectories a finished stage recorded; None if it rolls none out."""
    return record.get("trajectories", record.get("candidates"))


def seed_of(run_seed: int, round: int, stage: str, chunk: int = 0) -> int:
    """Seed in [0, 2³¹) of a stage or of one of its chunks. TRL resets all random state from it in each trainer."""
    return stable_hash(run_seed, round, stage, chunk) % 2**31


def round_dir(round: int) -> str:
    """Folder of a round, relative to the run directory."""
    return f"rounds/{round:02d}"


def policy_folder(run: RunDirectory, round: int | None = None) -> Path | None:
    """Where the policy after a round lies; by default the last accepted one. None if that is the model as it was given.

    Raises:
        LedgerError: The run has no policy of that round.
    """
    if round is not None and round > 0:
        folder = run.path / round_dir(round) / "policy"
        if not folder.is_dir():
            raise LedgerError(f"{run.path} has no policy of round {round}; there is no {folder}.")
        return folder
    warm = run.path / round_dir(0) / "after-warm_start"
    best = warm if warm.is_dir() else None
    for folder in sorted((run.path / "rounds").glob("[0-9][0-9]")) if round is None else ():
        stages = {record["stage"]: record for record in run.read(f"rounds/{folder.name}/stages.jsonl")}
        if stages.get("accept", {}).get("accepted"):
            best = folder / "policy"
    return best
