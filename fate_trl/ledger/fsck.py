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
from ..recipe.schema import read_values, validated
from .directory import RunDirectory, case_of, cases_of, chunk_of, parsed

RECORDS = ("rollouts.jsonl", "repairs.jsonl")
DERIVED = {"selections.jsonl": "repair", "buffer.jsonl": "buffer", "stages.jsonl": ""}
"""Files of a round. A damaged line in one of DERIVED means that a stage is done again, from its records."""
REDONE = {"policy": {"sft", "pfpo", "save"}, "base": set[str]()}
"""Stages that make a folder of weights again; after-STAGE is made by that stage."""


@dataclass
class Damage:
    """Something that is not as it was written.

    Attributes:
        file: Relative to the run directory.
        reason: What is wrong with it.
        lines: Numbers of the lines that go aside; none if the whole of it does.
        again: Stages of its round that are done again.
    """

    file: str
    reason: str
    lines: list[int] = field(default_factory=list)
    again: set[str] = field(default_factory=set)


def examine(run: RunDirectory) -> list[Damage]:
    """All damage of a run. Changes nothing."""
    found = [*_small_files(run)]
    for folder in sorted((run.path / "rounds").glob("[0-9][0-9]")):
        found += [*_records(run, folder), *_policies(run, folder)]
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
        elif (run.path / damage.file).exists():
            os.replace(run.path / damage.file, _aside(run.path / damage.file))
    for round in {damage.file.rpartition("/")[0] for damage in found if damage.file.startswith("rounds/")}:
        again = {stage for d in found if d.file.startswith(f"{round}/") for stage in d.again} | {"accept"}
        done = enumerate(run.read(f"{round}/stages.jsonl"), 1)
        _put_aside(run, f"{round}/stages.jsonl", {number for number, record in done if record["stage"] in again})
    return found


# ------------------------------------------------------------------------------------------------ finding


def _small_files(run: RunDirectory) -> Iterator[Damage]:
    for name in ("manifest.json", "metrics.json"):
        try:
            run.read_json(name)
        except LedgerError:
            yield Damage(name, "no JSON; it is written anew when the run is resumed")
    try:
        validated(read_values(run.path / "recipe.yaml"))
    except RecipeError as error:
        yield Damage("recipe.yaml", str(error))


def _lines(file: Path) -> list[tuple[int, Any]]:
    """(number, record or the ValueError instead) of every line; a half-written last one is no damage."""
    out: list[tuple[int, Any]] = []
    raw = file.read_bytes() if file.exists() else b""
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), 1):
        try:
            out.append((number, parsed(line)))
        except ValueError as error:
            out.append((number, error))
    return out


def _records(run: RunDirectory, folder: Path) -> Iterator[Damage]:
    """Damage of a round's JSON lines."""
    done: dict[str, dict[str, Any]] = {}
    for name, stage in DERIVED.items():
        lines = _lines(folder / name)
        if name == "stages.jsonl":
            done = {record["stage"]: record for _, record in lines if isinstance(record, dict) and "stage" in record}
        bad = [number for number, record in lines if isinstance(record, ValueError)]
        if bad:
            again = {stage} if stage and folder.name != "00" else set()
            yield Damage(str((folder / name).relative_to(run.path)), _numbered(bad), bad, again)
    for name in RECORDS:
        yield from _chunks(run, folder / name, done)


def _chunks(run: RunDirectory, file: Path, done: dict[str, dict[str, Any]]) -> Iterator[Damage]:
    """Damaged lines, the rest of their chunks, and stages that have fewer records than they counted."""
    bad: list[int] = []
    chunks: dict[tuple[str, int], list[int]] = {}
    sizes: dict[tuple[str, int], int] = {}
    for number, record in _lines(file):
        try:
            if isinstance(record, ValueError):
                raise record
            key, of = chunk_of(record)
            case_of(record)
            chunks.setdefault(key, []).append(number)
            sizes[key] = of
        except ValueError:
            bad.append(number)
    last = list(chunks)[-1:]
    torn = [key for key in chunks if len(chunks[key]) != sizes[key]]
    cut = [key for key in torn if [key] == last and len(chunks[key]) < sizes[key] and not bad]
    lines = sorted([*bad, *(number for key in torn if key not in cut for number in chunks[key])])
    kept = Counter(key[0] for key in chunks if key not in torn for _ in chunks[key])
    of_file = {stage for stage in done if (stage == "repair") == (file.name == "repairs.jsonl")}
    again = {stage for stage in of_file if cases_of(done[stage]) not in (None, kept[stage])}
    if lines or again:
        gone = f"records of {', '.join(sorted(again))} are missing" if again else ""
        reason = "; ".join(filter(None, [_numbered(lines) if lines else "", gone]))
        yield Damage(str(file.relative_to(run.path)), reason, lines, again)


def _numbered(lines: list[int]) -> str:
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}: damaged, or of a chunk that is not whole"


def _policies(run: RunDirectory, folder: Path) -> Iterator[Damage]:
    """Folders of weights with a file that is not whole."""
    for policy in [folder / "policy", folder / "base", *sorted(folder.glob("after-*"))]:
        broken = [file for file in policy.glob("*.safetensors") if not whole(file)]
        if not policy.name.endswith(".damaged") and (broken or (policy.is_dir() and not any(policy.iterdir()))):
            again = REDONE.get(policy.name, {policy.name.removeprefix("after-")})
            reason = f"{broken[0].name} is cut short" if broken else "it is empty"
            yield Damage(str(policy.relative_to(run.path)), reason, again=again)


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
