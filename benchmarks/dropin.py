"""Claim: what works with GRPOTrainer works with PFPOTrainer, and with `weighted-sum` trains the same bits.

Every row of tests/dropin is tried on one process, and some of each kind on two. The figures are kept by the versions
installed, so each run, and the script under other versions, adds to the table:

    python benchmarks/dropin.py newest --out docs/results/dropin
    python benchmarks/dropin.py newest --processes 2 --out docs/results/dropin
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from dropin import Row, Tried, processes, rows, training, tried

WORDS = {"1": "one process", "2": "two processes"}
PACKAGES = ("trl", "transformers", "peft", "accelerate", "datasets", "torch", "bitsandbytes")


def on_one(folder: Path) -> dict[str, Any]:
    """Every row that can run with the versions installed here."""
    gc.freeze()  # TRL collects garbage after every training
    found = {}
    for number, row in enumerate(possible()):
        print(f"{number + 1:>3}  {row.name}", file=sys.stderr, flush=True)
        found[row.name] = dataclasses.asdict(tried(row, folder / str(number)))
    return {"rows": found}


def on_two(folder: Path) -> dict[str, Any]:
    """The rows of the default tests on two processes, and two held against one."""
    found = processes.on_two(folder, [row.name for row in possible() if row.fast])
    against = processes.against_one(folder, found)
    return {"rows": {name: found[name] for name in found if name not in against}, "against_one": against}


def possible() -> list[Row]:
    return [row for row in rows() if not row.needs or importlib.util.find_spec(row.needs)]


HEAD = """# GRPOTrainer's arguments with PFPOTrainer

    python benchmarks/dropin.py newest --out docs/results/dropin
    python benchmarks/dropin.py newest --processes 2 --out docs/results/dropin

{count} settings, each trained for a few steps with GRPOTrainer, and from the same seed with PFPOTrainer and
`weighted-sum`, on a model of two layers made on the spot. A cell is the largest difference of any parameter after
training: **0** says that all bits are the same, and every entry of GRPOTrainer's log has the same value in ours, which
only adds `pareto/…`, `objective/…`, `errors/…`, `tokens/…` and `tools/overflowed_ratio`. Each setting was also trained
with `pareto-front`, and its advantages held against the selector's rewards, computed apart: the largest difference in
{batches} batches was {advantages:.0e}. {same} of {cells} cells are 0; what is not is explained.

{versions}

TRL {trl} is at the moment both the oldest and the newest that `pyproject.toml` allows; *oldest* has the lower bounds
of the packages around it, which `constraints-oldest.txt` lists. The losses and their levels are read out of TRL's code,
and a test fails for a key or an argument that has no row.

| | setting | {columns} | |
|---|---|{dashes}|---|
{rows}

{two}
## Not run

{not_run}
"""


TWO = """## Two processes against one

Sampled text depends on the process that samples it, so here a `rollout_func` says what is completed, and the whole
batch is the same on one process and on two (gloo). What differs is the order in which gradients are summed.

| groups of 4 | trainer | {versioned} |
|---|---|{dashes_two}|
{against}
"""


def show(record: dict[str, Any]) -> str:
    """The page of everything measured so far: a column for each set of versions and number of processes."""
    columns = [(label, number) for label in sorted(record) for number in sorted(record[label]["processes"])]
    sides = [record[label]["processes"][number] for label, number in columns]
    found = [Tried(**one) for side in sides for one in side["rows"].values()]
    two = [(label, side["against_one"]) for (label, _), side in zip(columns, sides) if "against_one" in side]
    return HEAD.format(
        count=len(rows()),
        batches=sum(one.batches for one in found),
        advantages=max(one.advantages for one in found),
        same=sum(one.same for one in found),
        cells=len(found),
        versions="\n".join(f"- *{label}*: {_versions(record[label]['packages'])}" for label in sorted(record)),
        trl=record[columns[0][0]]["packages"]["trl"],
        columns=" | ".join(f"{label}, {WORDS[number]}" for label, number in columns),
        dashes="|".join(["---"] * len(columns)),
        rows="\n".join(
            _line(
                row.area,
                row.what,
                *(_cell(row, side["rows"].get(row.name)) for side in sides),
                row.setup().differs,
            )
            for row in rows()
        ),
        two=_against(two) if two else "",
        not_run="\n".join(f"- `{key}`: {why}" for key, why in training.NOT_RUN.items()),
    )


def _against(two: list[tuple[str, dict[str, Any]]]) -> str:
    return TWO.format(
        versioned=" | ".join(label for label, _ in two),
        dashes_two="|".join(["---"] * len(two)),
        against="\n".join(
            _line(layout, kind, *(f"{against[layout][kind]:.0e}" for _, against in two))
            for layout in processes.LAYOUTS
            for kind in processes.KINDS
        ),
    )


def _cell(row: Row, found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    got = Tried(**found)
    if not got.sound:
        return f"advantages {got.advantages:.0e}"
    if got.same:
        return "0"
    return f"{got.difference:.0e}" if row.setup().differs else f"{got.difference:.0e} {', '.join(got.logs + got.added)}"


def _versions(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _line(*cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", help="what the versions installed are called in the table")
    parser.add_argument("--processes", choices=list(WORDS), default="1")
    parser.add_argument("--out", type=Path, required=True, help="file to write, without .md and .json")
    arguments = parser.parse_args()
    file = arguments.out.with_suffix(".json")
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    of_versions = record.setdefault(arguments.versions, {"processes": {}})
    of_versions["packages"] = {
        name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)
    }
    with tempfile.TemporaryDirectory() as folder:
        measure = {"1": on_one, "2": on_two}[arguments.processes]
        of_versions["processes"][arguments.processes] = measure(Path(folder))
    file.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(show(record), encoding="utf-8")


if __name__ == "__main__":
    main()
