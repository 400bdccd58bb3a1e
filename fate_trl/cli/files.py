"""Files that commands write where the user says."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import FateError, RecipeError
from ..ledger.layout import SCORES, is_run

_OWN = ("recipe.yaml", "manifest.json", "metrics.json", SCORES)
"""What a run directory itself holds beside its rounds, and cannot be made again."""


def write_whole(file: str | Path, parts: Iterable[str], refused: type[FateError] = RecipeError) -> None:
    """Write a text file in UTF-8 so that it is either what it was or the new one, never half.

    Args:
        file: Where; what is no regular file, such as a pipe, is written to as it is.
        parts: The text, in parts.
        refused: What to raise where it cannot be written, or is a record of a run.
    """
    target = Path(file)
    try:
        real = target.resolve()
        if _is_record(real):
            raise refused(f"{file} is a record of a run, which nothing brings back; give another place with -o.")
        whole = not real.exists() or real.is_file()
        fresh = real.with_name(f".{real.name}.new") if whole else target
        try:
            with open(fresh, "w", encoding="utf-8") as out:
                out.writelines(parts)
            if whole:
                os.replace(fresh, real)
        finally:
            if whole:
                fresh.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        said = getattr(error, "strerror", None) or error
        raise refused(f"cannot write {file}: {said}; give another place with -o.") from None


def _is_record(file: Path) -> bool:
    run = next((folder for folder in file.parents if is_run(folder)), None)
    if run is None:
        return False
    inside = file.relative_to(run)
    return str(inside) in _OWN or (inside.parts[0] == "rounds" and file.suffix != ".md")
