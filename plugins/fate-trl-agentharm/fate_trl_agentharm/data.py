"""AgentHarm's data: the user's own copy, or the hub's. Nothing of it comes with this package.

The files are `{harmful,benign}_behaviors_{validation,test_public}.json`, each `{"behaviors": [row, ...]}`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fate_trl import SuiteError

Side = Literal["harmful", "benign"]
Split = Literal["validation", "test"]

REPOSITORY = "ai-safety-institute/AgentHarm"
REVISION = "e23b3fe60a0da9037314b88e5ee3a0c054970dad"
"""Revision of the data set that inspect-evals 0.26 was written for."""

FILES: dict[Split, str] = {"validation": "validation", "test": "test_public"}

CLAUSE = (
    "We prohibit using the dataset and benchmark for purposes besides improving the safety and security of AI systems."
)
"""AgentHarm's licence is MIT with this clause."""


class Row(BaseModel):
    """One case as published.

    Attributes:
        id, id_original: Of the case, and of the behaviour that it is a variant of.
        detailed_prompt: Whether the prompt says how to go about it; otherwise it is open-ended.
        hint_included: Whether the prompt names the tools to use.
        name, category: The behaviour's name; one of 8 categories of harm.
        prompt: The request.
        target_functions: The tools that the case gets, in the order in which they are to be called.
        grading_function: Name of the function that grades it.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: str
    id_original: str
    detailed_prompt: bool
    hint_included: bool
    name: str
    category: str
    prompt: str
    target_functions: list[str] = Field(min_length=1)
    grading_function: str


class _File(BaseModel):
    behaviors: list[Row] = Field(min_length=1)


def load(side: Side, path: str | None) -> dict[Split, list[Row]]:
    """The rows of one side, by split.

    Args:
        side: "harmful" or "benign".
        path: Folder that holds the files, or their folder `benchmark`; None: the hub.

    Raises:
        SuiteError: A file is missing, cannot be downloaded, or is not of the published form; or a behaviour is in
            both splits.
    """
    names = {split: f"{side}_behaviors_{name}.json" for split, name in FILES.items()}
    rows = {split: _read(_local(side, path, name) if path else _download(side, name)) for split, name in names.items()}
    shared = {row.grading_function for row in rows["validation"]} & {row.grading_function for row in rows["test"]}
    if shared:
        raise SuiteError(
            f"agentharm/{side}: the behaviour graded by {min(shared)!r} is in both {' and '.join(names.values())}; "
            "they must be kept apart. Use the files as they are published."
        )
    return rows


def _where(side: Side) -> str:
    needed = " and ".join(f"benchmark/{side}_behaviors_{name}.json" for name in FILES.values())
    return (
        f"AgentHarm's data does not come with this package. Needed are {needed} of https://huggingface.co/datasets/"
        f"{REPOSITORY} (revision {REVISION[:12]}): download them and give their folder as `path`. "
        f'The licence is MIT with the clause "{CLAUSE}"'
    )


def _local(side: Side, path: str, name: str) -> Path:
    folder = Path(path).expanduser()
    for file in (folder / name, folder / "benchmark" / name):
        if file.is_file():
            return file
    raise SuiteError(f"agentharm/{side}: there is no {name} in {folder}. {_where(side)}")


def _download(side: Side, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPOSITORY, f"benchmark/{name}", repo_type="dataset", revision=REVISION))
    except Exception as error:  # no network, offline mode, a gate: the remedy is the same
        reason = str(error).partition("\n")[0]
        raise SuiteError(
            f"agentharm/{side}: {name} cannot be downloaded ({type(error).__name__}: {reason}). {_where(side)}"
        ) from error


def _read(file: Path) -> list[Row]:
    try:
        rows = _File.model_validate(json.loads(file.read_text(encoding="utf-8"))).behaviors
    except (OSError, ValueError, RecursionError) as error:
        raise SuiteError(f"{file} is not one of AgentHarm's files: {_first(error)}. {_expected()}") from None
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        raise SuiteError(f"{file}: the id {next(i for i in ids if ids.count(i) > 1)!r} occurs twice.")
    return rows


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]  # no input: a prompt must not end up in a log
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _expected() -> str:
    return f'It is {{"behaviors": [{{{", ".join(Row.model_fields)}}}, ...]}}.'
