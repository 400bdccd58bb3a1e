"""The one writer of a run directory: records are appended, committed a chunk at a time, flushed to the disk.

A chunk has fixed members and a seed of its own; its records are written in one go, and are either all there or redone.
What a kill can leave is a torn end: half a line, or a chunk that is not whole. Readers pass it over, and whoever next
appends to the file cuts it off first, under the run's lock. Any other damage is an error; fsck.py mends it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..errors import LedgerError
from ..record import dumps
from ..types import Case
from .reading import Chunk, Line, RunReader, chunks_of


class RunDirectory(RunReader):
    """One run's files, to read and to write. Records are JSON lines, ASCII only, so hostile text in them is inert.

    Args:
        path: The folder, made if it is missing.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._locked = False
        self._ends: set[str] = set()
        """Files whose ends are known not to be torn."""
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

    # -------------------------------------------------------------------------------------------- JSON lines

    def append(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Append records in one write, flushed to the disk; a torn end of the file is cut off before."""
        target = self.path / name
        with self.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if name not in self._ends:
                self._cut_torn_end(name)
            self._ends.discard(name)  # until this write is known to be whole
            with open(target, "ab") as file:
                file.write("".join(dumps(record, sort=False) + "\n" for record in records).encode())
                file.flush()
                os.fsync(file.fileno())
            self._ends.add(name)

    def _cut_torn_end(self, name: str) -> None:
        """Cut off what a kill left at the end of a file of records; whoever does so holds the lock."""
        if self._torn(name) is None:
            return
        with nullcontext() if self._locked else self.lock():
            end = self._torn(name)  # once more: now nobody else writes
            if end is not None:
                os.truncate(self.path / name, end)

    def _torn(self, name: str) -> int | None:
        """Where the torn end of a file begins, its first byte; None if it has none."""
        end = 0
        for last in deque(chunks_of(self.lines(name)), maxlen=1):
            lines = [last] if isinstance(last, Line) else last.lines
            torn = isinstance(last, Chunk) and len(last.lines) < last.of
            end = lines[0].place.start if torn else lines[-1].place.stop
        file = self.path / name
        return end if file.exists() and end < file.stat().st_size else None

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
            self._locked = True
            try:
                yield
            finally:
                self._locked = False


def flush(folder: Path) -> None:
    """Have all files of a folder on the disk, for a folder whose presence is to mean that it is complete."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
