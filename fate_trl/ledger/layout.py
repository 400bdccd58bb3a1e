"""Where things lie in a run directory, and what its seeds are.

    RUN/recipe.yaml  manifest.json  metrics.json
    RUN/rounds/01/{rollouts,repairs}.jsonl   one record per finished trajectory, with its scores
    RUN/rounds/01/selections.jsonl           one record per failure: candidates, front, choice
    RUN/rounds/01/buffer.jsonl               rows that the policy is trained on
    RUN/rounds/01/hindsight.jsonl            turns at fault, for the distillation stage
    RUN/rounds/01/pairs.jsonl                repairs beside their failures, for the preference stage
    RUN/rounds/01/stages.jsonl               finished stages, with their counts and seconds
    RUN/rounds/01/trained/                   the policy before it was merged with earlier ones, where the recipe merges
    RUN/rounds/01/policy/                    the policy after the round
    RUN/rounds/01/{after,training}-sft/      what a training stage leaves for the next one, and its checkpoints; removed
    RUN/scores.jsonl                         what paid judges said

A folder of a round has its number in two digits, or in as many as it takes from round 100 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..record import stable_hash

SCORES = "scores.jsonl"
"""File of what judges said, relative to the run directory; see scores.py."""


RECORDS = ("rollouts", "repairs")
"""Kinds of records that hold scored trajectories, in chunks."""


def round_dir(round: int) -> str:
    """Folder of a round, relative to the run directory."""
    return f"rounds/{round:02d}"


def file_of(round: int, kind: str) -> str:
    """File of a round's records, relative to the run directory.

    Args:
        round: The round.
        kind: "rollouts", "repairs", "selections", "buffer", "hindsight", "pairs" or "stages".
    """
    return f"{round_dir(round)}/{kind}.jsonl"


def rounds_in(path: Path) -> list[int]:
    """Numbers of the rounds that a run directory has a folder of, in order."""
    folder = path / "rounds"
    names = [found.name for found in folder.iterdir() if found.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name == f"{int(name):02d}")


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory: it holds a recipe or rounds."""
    return (path / "recipe.yaml").is_file() or (path / "rounds").is_dir()


def policy_folder(run: Path, round: int) -> Path | None:
    """Where the policy after a round lies; round 0 is the model as given, or its warm start. None if none was saved."""
    folders = (run / round_dir(round) / name for name in ("policy", "after-warm_start", "base"))
    return next((folder for folder in folders if folder.is_dir()), None)


def split_policy(name: str) -> tuple[str, str]:
    """(run, policy) of "RUN@POLICY"; the policy is "" without an @, of a path that is there, and of a URL."""
    path, _, policy = name.rpartition("@")
    return (path, policy) if path and "://" not in name and not Path(name).exists() else (name, "")


def round_of(policy: str) -> int | None:
    """The round that a policy of a run is named by: 2 of "round-2", as in metrics.json, and of "2"; None by none."""
    number = policy.removeprefix("round-")
    return int(number) if number.isascii() and number.isdigit() else None


def kept_round(rounds: Mapping[int, Mapping[str, Any]]) -> int | None:
    """The round whose policy a run hands over: the last accepted one, or the best where the recipe keeps that.

    Args:
        rounds: The records of each round's finished stages by their name, in the order of the rounds.

    Returns:
        Its number, 0 for the policy before training; None while no round is decided.
    """
    kept = None
    for number, stages in rounds.items():
        if "accept" in stages:
            accept = stages["accept"]
            kept = accept.get("kept", number if accept["accepted"] else kept or 0)
    return kept


def trajectories_in(stage: Mapping[str, Any]) -> int | None:
    """How many trajectories the record of a finished stage counts; None if that stage rolls none out."""
    counted: int | None = stage.get("trajectories", stage.get("candidates"))
    return counted


def seed_of(run_seed: int, round: int, stage: str, chunk: int = 0) -> int:
    """Seed in [0, 2³¹) of a stage or of one of its chunks. TRL resets all random state from it in each trainer."""
    return stable_hash(run_seed, round, stage, chunk) % 2**31
