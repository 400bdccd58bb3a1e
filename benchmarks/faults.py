"""Claim: a run survives every fault of tests/faults without losing a record, and everyday faults change no conclusion.

The table tries each row of tests/faults in a round of its own, on a scripted learner and the workbench, and counts the
records that were asked for and are not there (lost) or are there twice. Then a whole run in which 5 % of tool calls
fail and a verifier raises on 5 % of the trajectories and hangs on 2 %, each time it is asked, is held against the
same run without faults: on a scripted learner, and with `--embedded` on the embedded policy, which only evaluates.

    python benchmarks/faults.py --embedded --out docs/results/faults
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from faults import Bench, Fault, faults, noise

from fate_trl.recipe.loading import make_recipe

SCRIPTED = {"train": 60, "validation": 0, "test": 240}
EMBEDDED = {"train": 9, "validation": 0, "test": 120}


def tried(row: Fault, folder: Path) -> dict[str, Any]:
    """What became of one row; it raises AssertionError if that is not what the row expects."""
    folder.mkdir()
    ran = row.trial(Bench(folder / "run"))
    return {
        "area": row.area,
        "injected": row.injected,
        "expected": row.expected,
        "happened": str(ran),
        "lost": ran.lost,
        "duplicated": ran.duplicated,
    }


def table(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(faults()):
        print(f"{number + 1:>3}  {row.name}", file=sys.stderr, flush=True)
        rows.append(tried(row, folder / str(number)))
    return rows


def runs(folder: Path, embedded: bool) -> dict[str, Any]:
    scripted = make_recipe(noise.recipe(SCRIPTED, rounds=1))
    found = {"scripted learner, one round": noise.compared(scripted, folder / "scripted", noise.scripted)}
    if embedded:
        from fate_trl.train.build import build

        recipe = make_recipe(noise.recipe(EMBEDDED, rounds=0, model={"threads": 1}))
        found["embedded policy, evaluation only"] = noise.compared(recipe, folder / "embedded", build)
    return found


HEAD = """# Faults

    python benchmarks/faults.py --embedded --out docs/results/faults

{count} faults, each injected into a round of its own: a scripted learner on the workbench, 9 training and 3 test tasks,
faults on two of the training tasks where a row does not say otherwise. Records lost: {lost}, there twice: {duplicated}.

## Everyday faults

{tools:.0%} of tool calls fail; the verifier of `utility` raises on {raises:.0%} of the trajectories and hangs on
{hangs:.0%}, each time it is asked. `resolved` on the test split, with its 95 % interval; *bounds* are its values if all
excluded cases had failed, or passed.

| run | resolved without faults | with faults | bounds | excluded | by cause | within the interval |
|---|---|---|---|---:|---|---|
{runs}

So many faults are more than the default error budget of 10 % bears: these runs set `max_error_rate` to 0.4. A failed
tool call excludes its episode, so tasks that take many calls are excluded more often.

## The table

| where | injected | what must come of it | what came of it | lost |
|---|---|---|---|---:|
{rows}
"""


def show(rows: list[dict[str, Any]], found: dict[str, Any]) -> str:
    return HEAD.format(
        count=len(rows),
        lost=sum(row["lost"] for row in rows),
        duplicated=sum(row["duplicated"] for row in rows),
        tools=noise.TOOLS,
        raises=noise.RAISES,
        hangs=noise.HANGS,
        runs="\n".join(_line(name, *_sides(sides)) for name, sides in found.items()),
        rows="\n".join(
            _line(*(row[key] for key in ("area", "injected", "expected", "happened", "lost"))) for row in rows
        ),
    )


def _sides(sides: dict[str, Any]) -> tuple[str, ...]:
    clean, noisy = sides["clean"], sides["noisy"]
    resolved = noisy["resolved"]
    bounds = f"{resolved.get('error_low', 0):.3f} to {resolved.get('error_high', 1):.3f}"
    excluded = f"{noisy['excluded']} of {noisy['excluded'] + resolved['n']}"
    causes = ", ".join(f"{cause} {n}" for cause, n in noisy["causes"].items())
    return (interval(clean), interval(noisy), bounds, excluded, causes, "yes" if noise.agrees(sides) else "no")


def _line(*cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def interval(side: dict[str, Any]) -> str:
    resolved = side["resolved"]
    return f"{resolved['value']:.3f} [{resolved['low']:.3f}, {resolved['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedded", action="store_true", help="the embedded policy too; needs torch")
    parser.add_argument("--out", type=Path, help="file to write, without .md and .json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = runs(Path(folder), arguments.embedded)
        rows = table(Path(folder))
    print(show(rows, found))
    if arguments.out:
        arguments.out.with_suffix(".md").write_text(show(rows, found), encoding="utf-8")
        setting = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        record = {**setting, "runs": found, "rows": rows}
        arguments.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
