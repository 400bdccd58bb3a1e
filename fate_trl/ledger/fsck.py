"""What is damaged in a run directory, and how it is mended: damaged records go aside, and what lacks them is redone.

A kill leaves no damage: the ledger cuts torn ends off by itself. This is for lines changed by hand or by a disk,
missing records, and files that are gone or half there. Nothing is deleted: lines go to FILE.damaged, files and folders
are renamed to that. Then each stage that lost something, and the acceptance of its round, is taken off the record of
finished stages, so that `--resume` does those again, with the policy that the round began with.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import LedgerError, RecipeError
from ..recipe.loading import read_values, validated
from ..types import TRAINING
from .layout import RECORDS, SCORES, file_of, round_dir, trajectories_in
from .reading import Line, RunReader, case_of, chunk_of, chunks_of
from .writing import RunDirectory

DERIVED = {"selections": "repair", "buffer": "buffer", "hindsight": "hindsight", "pairs": "pairs", "stages": ""}
"""Files of a round. A damaged line in one of DERIVED means that a stage is done again, from its records."""
REDONE: dict[str, set[str]] = {"policy": {*TRAINING, "merge", "save"}, "base": set()}
"""Stages that make a folder of weights again; after-STAGE is made by that stage."""


@dataclass
class Damage:
    """Something that is not as it was written.

    Attributes:
        file: Relative to the run directory.
        reason: What is wrong with it.
        lines: Numbers of the lines that go aside.
        again: Stages of its round that are done again.
        all: Whether the whole of it goes aside. A torn end does not: the next writer cuts it off.
    """

    file: str
    reason: str
    lines: list[int] = field(default_factory=list)
    again: set[str] = field(default_factory=set)
    all: bool = False


def examine(run: RunReader) -> list[Damage]:
    """All damage of a run. Changes nothing."""
    found = [*_small_files(run), *_gone(run), *_scores(run)]
    for round in run.rounds:
        found += [*_records(run, round), *_policies(run, run.path / round_dir(round))]
    return found


def repair(run: RunDirectory) -> list[Damage]:
    """Mend all damage, and return what it was.

    Raises:
        LedgerError: recipe.yaml is gone or damaged, and the manifest does not hold it either.
    """
    found = examine(run)
    for damage in found:
        if damage.file == "recipe.yaml":
            _restore_recipe(run)
        elif damage.lines:
            _put_aside(run, damage.file, set(damage.lines))
        elif damage.all and (run.path / damage.file).exists():
            os.replace(run.path / damage.file, _aside(run.path / damage.file))
    for round in {damage.file.rpartition("/")[0] for damage in found if damage.file.startswith("rounds/")}:
        again = {stage for d in found if d.file.startswith(f"{round}/") for stage in d.again} | {"accept"}
        done = enumerate(run.read(f"{round}/stages.jsonl"), 1)
        _put_aside(run, f"{round}/stages.jsonl", {number for number, record in done if record["stage"] in again})
    return found


# ------------------------------------------------------------------------------------------------ finding


def _small_files(run: RunReader) -> Iterator[Damage]:
    for name in ("manifest.json", "metrics.json"):
        try:
            run.read_json(name)
        except LedgerError:
            yield Damage(name, "no JSON; it is written anew when the run is resumed", all=True)
    yield from _recipe(run)


def _recipe(run: RunReader) -> Iterator[Damage]:
    try:
        manifest = run.read_json("manifest.json") or {}
    except LedgerError:
        manifest = {}
    if not (run.path / "recipe.yaml").exists():
        if "imported" not in manifest:  # records of others have no recipe
            there = (
                "--repair restores it from manifest.json" if "recipe" in manifest else "manifest.json has none either"
            )
            yield Damage("recipe.yaml", f"it is gone; {there}")
        return
    try:
        validated(read_values(run.path / "recipe.yaml"))
    except RecipeError as error:
        yield Damage("recipe.yaml", str(error))


def _gone(run: RunReader) -> Iterator[Damage]:
    """Rounds that metrics.json tells of and that have no folder."""
    try:
        rows = (run.read_json("metrics.json") or {}).get("rows", [])
    except LedgerError:
        return
    for round in sorted({row["round"] for row in rows} - set(run.rounds)):
        yield Damage(
            round_dir(round), "its records are gone, and metrics.json tells of it; a resumed run does it again"
        )


def _scores(run: RunReader) -> Iterator[Damage]:
    """Damaged lines of the kept scores; who needs them asks the judge again."""
    bad = [line.number for line in run.lines(SCORES) if isinstance(line.record, ValueError)]
    if bad:
        yield Damage(SCORES, _numbered(bad), bad)


def _records(run: RunReader, round: int) -> Iterator[Damage]:
    """Damage of a round's JSON lines."""
    done: dict[str, dict[str, Any]] = {}
    for kind, stage in DERIVED.items():
        lines = list(run.lines(file_of(round, kind)))
        bad = [line.number for line in lines if isinstance(line.record, ValueError)]
        if kind == "stages":
            records = [(line.number, line.record) for line in lines if isinstance(line.record, dict)]
            done = {record["stage"]: record for _, record in records if isinstance(record.get("stage"), str)}
            bad += [number for number, record in records if not isinstance(record.get("stage"), str)]
        if bad:
            again = {stage} if stage and round else set()
            yield Damage(file_of(round, kind), _numbered(sorted(bad)), sorted(bad), again)
    for kind in RECORDS:
        of_file = {name: record for name, record in done.items() if (name == "repair") == (kind == "repairs")}
        yield from _chunks(run, file_of(round, kind), of_file)


def _chunks(run: RunReader, name: str, done: dict[str, dict[str, Any]]) -> Iterator[Damage]:
    """Damaged lines, the rest of their chunks, and stages that have fewer records than they counted."""
    bad: list[int] = []
    kept: Counter[str] = Counter()
    seen: set[tuple[str, int]] = set()
    torn: list[int] = []
    for found in chunks_of(map(_with_its_case, run.lines(name))):
        bad += torn
        torn = []
        if isinstance(found, Line):
            bad.append(found.number)
        elif found.whole and (found.stage, found.number) not in seen:
            seen.add((found.stage, found.number))
            kept[found.stage] += found.of
        elif len(found.lines) < found.of:
            torn = [line.number for line in found.lines]
        else:  # too many records, or the same chunk once more
            bad += [line.number for line in found.lines]
    if bad:  # else the end is only half written
        bad += torn
    again = {stage for stage in done if trajectories_in(done[stage]) not in (None, kept[stage])}
    if bad or again:
        gone = f"records of {', '.join(sorted(again))} are missing" if again else ""
        reason = "; ".join(filter(None, [_numbered(bad) if bad else "", gone]))
        yield Damage(name, reason, bad, again)


def _with_its_case(line: Line) -> Line:
    """The line; a damaged one if its record holds no scored trajectory of a chunk."""
    try:
        if isinstance(line.record, dict):
            chunk_of(line.record)
            case_of(line.record)
    except ValueError as error:
        return Line(line.number, line.place, error)
    return line


def _numbered(lines: list[int]) -> str:
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}: damaged, or of a chunk that is not whole"


def _policies(run: RunReader, folder: Path) -> Iterator[Damage]:
    """Folders of weights with a file that is not whole."""
    for policy in [folder / "policy", folder / "base", *sorted(folder.glob("after-*"))]:
        broken = [file for file in policy.glob("*.safetensors") if not whole(file)]
        if not policy.name.endswith(".damaged") and (broken or (policy.is_dir() and not any(policy.iterdir()))):
            again = REDONE.get(policy.name, {policy.name.removeprefix("after-")})
            reason = f"{broken[0].name} is cut short" if broken else "it is empty"
            yield Damage(str(policy.relative_to(run.path)), reason, again=again, all=True)


def whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with open(file, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        try:
            header = json.loads(raw.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return file.stat().st_size == 8 + length + max(ends, default=0)


# ------------------------------------------------------------------------------------------------ mending


def _aside(path: Path) -> Path:
    """A name beside it that is free."""
    number, found = 1, path.with_name(f"{path.name}.damaged")
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}.damaged-{number}")
    return found


def _put_aside(run: RunDirectory, name: str, numbers: set[int]) -> None:
    """Move lines of a file to FILE.damaged; they are there before they are gone here."""
    if not numbers:
        return
    lines = (run.path / name).read_bytes().splitlines(keepends=True)
    with run.writing(run.path / name):
        with open(run.path / f"{name}.damaged", "ab") as file:
            file.writelines(line for number, line in enumerate(lines, 1) if number in numbers)
            file.flush()
            os.fsync(file.fileno())
        kept = b"".join(line for number, line in enumerate(lines, 1) if number not in numbers)
        fresh = (run.path / name).with_name(f".{Path(name).name}.new")
        fresh.write_bytes(kept)
        os.replace(fresh, run.path / name)


def _restore_recipe(run: RunDirectory) -> None:
    manifest = run.read_json("manifest.json") or {}
    if "recipe" not in manifest:
        raise LedgerError(
            f"{run.path}/recipe.yaml cannot be restored, since manifest.json does not hold it: put the recipe there."
        )
    if (run.path / "recipe.yaml").exists():
        os.replace(run.path / "recipe.yaml", _aside(run.path / "recipe.yaml"))
    run.write_text("recipe.yaml", validated(manifest["recipe"]).dump())
