"""The one reader of a run directory. It writes nothing and takes no lock, so a run that goes on can be looked at.

What a run has not written yet is empty. A last line that is half there, and a last chunk that is not whole, are passed
over and left as they are: a writer may be about to finish them, or was killed, and then the next writer cuts them off.
Any other damage is an error; fsck.py mends it. Trajectories are read a line at a time: 50,000 of them are 200 MB.

    run = RunReader.open("runs/quickstart")
    run.rounds                                        [0, 1, 2]
    run.stages(1)["pfpo"]                             a finished stage's record: counts, seconds, the trainer's log
    run.cases("rounds/01/rollouts.jsonl", "collect")  a stage's scored trajectories
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..errors import FateError, LedgerError, RecipeError
from ..recipe.loading import read_values, validated
from ..recipe.schema import Recipe
from ..types import Case, ScoreCard, Trajectory
from .layout import file_of, is_run, kept_round, round_dir, rounds_in


@dataclass(frozen=True)
class Line:
    """A finished line of a file of records.

    Attributes:
        number: 1, 2, …
        place: The bytes of the file where it stands.
        record: What it holds; the error where it holds no record.
    """

    number: int
    place: range
    record: dict[str, Any] | ValueError


@dataclass(frozen=True)
class Chunk:
    """Records that were committed in one go.

    Attributes:
        stage, number: Whose chunk it is, and which.
        of: How many records it has when it is whole.
        lines: Those that are there.
    """

    stage: str
    number: int
    of: int
    lines: list[Line]

    @property
    def whole(self) -> bool:
        return len(self.lines) == self.of


class RunReader:
    """A run directory as it is now.

    Args:
        path: The folder. It may be missing: then nothing is in it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The reader of a folder. Raises LedgerError if that is no run directory."""
        if not is_run(Path(path)):
            raise LedgerError(
                f"{path} is no run directory: it has neither recipe.yaml nor rounds/. "
                "Give the folder that `fate-trl run` or `fate-trl eval` wrote; its name is printed at the end."
            )
        return cls(path)

    # -------------------------------------------------------------------------------------------- whole files

    def read_json(self, name: str) -> Any:
        """The file's value, None if there is no such file."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(name, error) from None
        except (ValueError, RecursionError) as error:
            raise self.damaged(name, str(error)) from None

    def recipe(self) -> Recipe:
        """What was asked. Raises LedgerError where recipe.yaml is missing or damaged."""
        return validated(self._recipe_values())

    def recipe_values(self) -> dict[str, Any]:
        """The same as plain values, also those of a recipe of another version; {} for records that no run made."""
        return self._recipe_values() if (self.path / "recipe.yaml").is_file() else {}

    def _recipe_values(self) -> dict[str, Any]:
        file = self.path / "recipe.yaml"
        if not file.is_file():
            hint = f"`fate-trl fsck {self.path} --repair` restores it from manifest.json."
            raise LedgerError(f"{self.path} has no recipe.yaml, so nobody knows what was asked. {hint}")
        try:
            return read_values(file)
        except RecipeError as error:
            raise self.damaged("recipe.yaml", str(error)) from None

    def damaged(self, what: str, reason: str) -> LedgerError:
        """The error for something that is not as it was written."""
        return LedgerError(
            f"{self.path}/{what} is damaged: {reason}. `fate-trl fsck {self.path}` shows all damage, and with --repair "
            "takes it out, so that it is redone when the run is resumed."
        )

    def _unreadable(self, name: str, error: OSError) -> LedgerError:
        return LedgerError(f"{self.path}/{name} cannot be read: {error.strerror}. Ask its owner for the right to.")

    # -------------------------------------------------------------------------------------------- JSON lines

    def lines(self, name: str) -> Iterator[Line]:
        """Every finished line of a file, damaged ones included; none if there is no such file."""
        try:
            file = open(self.path / name, "rb")  # noqa: SIM115 (closed below)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._unreadable(name, error) from None
        start = 0
        with file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                yield Line(number, range(start, start + len(line)), _parsed(line))
                start += len(line)

    def located(self, name: str) -> Iterator[tuple[range, dict[str, Any]]]:
        """Every record of a file after the bytes where it stands; of chunks, those that are whole.

        Raises:
            LedgerError: A line is damaged, or a chunk that is not the last one is not whole.
        """
        for chunk in self._whole_chunks(name):
            for line in chunk:
                yield line.place, _sound(line)

    def read(self, name: str) -> list[dict[str, Any]]:
        """All records, as `located` gives them."""
        return [record for _, record in self.located(name)]

    def read_at(self, name: str, place: range) -> dict[str, Any]:
        """The record at a place that `located` gave. Raises ValueError if the file has changed since."""
        with open(self.path / name, "rb") as file:
            file.seek(place.start)
            record = json.loads(file.read(len(place)))
        if not isinstance(record, dict):
            raise ValueError(f"{name} has changed: there is no record at its byte {place.start} any more")
        return record

    # -------------------------------------------------------------------------------------------- cases, in chunks

    def _whole_chunks(self, name: str) -> Iterator[list[Line]]:
        """Lines of a file, chunk by chunk; a record that is of no chunk comes alone."""
        torn: Chunk | None = None
        for found in chunks_of(self._checked(name)):
            if torn is not None:
                raise self._not_whole(name, torn)
            if isinstance(found, Line):
                yield [found]
            elif found.whole:
                yield found.lines
            elif len(found.lines) > found.of:
                raise self._not_whole(name, found)
            else:
                torn = found  # the last one may be half there

    def _checked(self, name: str) -> Iterator[Line]:
        for line in self.lines(name):
            if isinstance(line.record, ValueError):
                raise self.damaged(f"{name}, line {line.number}", str(line.record))
            yield line

    def _not_whole(self, name: str, chunk: Chunk) -> LedgerError:
        there = f"{len(chunk.lines)} of {chunk.of} records of chunk {chunk.number} of {chunk.stage} are there"
        return self.damaged(f"{name}, line {chunk.lines[0].number}", there)

    def chunks(self, name: str, stage: str) -> dict[int, list[Case]]:
        """Committed chunks of a stage by number."""
        found: dict[int, list[Case]] = {}
        for lines in self._whole_chunks(name):
            record = _sound(lines[0])
            try:
                of_stage, number, _ = chunk_of(record)
                if of_stage != stage:
                    continue
                if number in found:
                    raise ValueError(f"chunk {number} of {stage} is there twice")
                found[number] = [case_of(_sound(line)) for line in lines]
            except ValueError as error:
                raise self.damaged(f"{name}, line {lines[0].number}", str(error)) from None
        return found

    def cases(self, name: str, stage: str) -> list[Case]:
        """All committed cases of a stage, in the order of their chunks."""
        chunks = self.chunks(name, stage)
        return [case for number in sorted(chunks) for case in chunks[number]]

    # -------------------------------------------------------------------------------------------- rounds and policies

    @property
    def rounds(self) -> list[int]:
        """Numbers of the rounds that something was recorded of, in order."""
        return rounds_in(self.path)

    def stages(self, round: int) -> dict[str, dict[str, Any]]:
        """Records of a round's finished stages by name, in the order in which they were done."""
        found = {}
        for record in self.read(file_of(round, "stages")):
            if not isinstance(record.get("stage"), str):
                raise self.damaged(file_of(round, "stages"), "a record lacks the key 'stage'")
            found[record["stage"]] = record
        return found

    @property
    def kept(self) -> int | None:
        """The round whose policy the run hands over, 0 for that before training; None while no round is decided."""
        return kept_round({number: self.stages(number) for number in self.rounds})

    def policy_folder(self, round: int | None = None) -> Path | None:
        """Where the policy after a round lies; by default the one handed over. None if it is the model as given.

        Raises:
            LedgerError: The run has no policy of that round.
        """
        if round is not None and round > 0:
            folder = self.path / round_dir(round) / "policy"
            if not folder.is_dir():
                raise LedgerError(f"{self.path} has no policy of round {round}; there is no {folder}.")
            return folder
        if round is None and self.kept:
            return self.path / round_dir(self.kept) / "policy"
        warm = self.path / round_dir(0) / "after-warm_start"
        return warm if warm.is_dir() else None


def chunks_of(lines: Iterator[Line]) -> Iterator[Line | Chunk]:
    """Lines in the chunks that they were committed in; a line whose record is damaged or of no chunk comes as it is."""
    for key, members in itertools.groupby(lines, key=_chunk_key):
        if key is None:
            yield from members
        else:
            yield Chunk(*key, list(members))


def _chunk_key(line: Line) -> tuple[str, int, int] | None:
    if isinstance(line.record, ValueError) or "chunk" not in line.record:
        return None
    try:
        return chunk_of(line.record)
    except ValueError:
        return None


def _parsed(line: bytes) -> dict[str, Any] | ValueError:
    """A line as a record, or the error that says why it is none."""
    try:
        record = json.loads(line)
    except RecursionError:
        return ValueError("it is nested too deeply")
    except ValueError as error:
        return error
    return record if isinstance(record, dict) else ValueError("it holds no record")


def _sound(line: Line) -> dict[str, Any]:
    assert isinstance(line.record, dict)
    return line.record


def chunk_of(record: dict[str, Any]) -> tuple[str, int, int]:
    """Stage and number of a record's chunk, and the chunk's size. Raises ValueError where it has none."""
    try:
        return str(record["stage"]), int(record["chunk"]), int(record["of"])
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
