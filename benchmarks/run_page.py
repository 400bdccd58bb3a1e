"""A run directory as a page of Markdown: what was run, on what, what came out, and where the time went.

python benchmarks/run_page.py RUN [--command "fate-trl run …"] > docs/results/NAME.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fate_trl.ledger.writing import RunDirectory
from fate_trl.metrics import DIRECTIONS

ARROWS = {1: " ↑", -1: " ↓", 0: ""}
BASELINES = ("oracle", "do-nothing", "refuse-all", "obey")


def cell(metric: dict | None) -> str:
    if metric is None:
        return "–"
    few = "*" if metric.get("few_clusters") else ""
    return f"{100 * metric['value']:.1f} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]{few}"


def metrics_table(rows: list[dict], kind: str) -> list[str]:
    """Learned policies by interval, scripted baselines beside them by value."""
    shown = [row for row in rows if row["split"] == "test" and row["suite"] == "all" and row["kind"] == kind]
    learned = [row for row in shown if row["policy"] not in BASELINES]
    scripted = [row for row in shown if row["policy"] in BASELINES]
    names = [name for name in DIRECTIONS if any(name in row["metrics"] for row in learned)]
    heads = [row["policy"] + ("" if row["accepted"] else " (rolled back)") for row in learned]
    lines = ["| metric | n | " + " | ".join([*heads, *(row["policy"] for row in scripted)]) + " |"]
    lines.append("|---|---|" + "---|" * len(shown))
    for name in names:
        cells = [cell(row["metrics"].get(name)) for row in learned]
        cells += [f"{100 * row['metrics'][name]['value']:.1f}" if name in row["metrics"] else "–" for row in scripted]
        n = max(row["metrics"][name]["n"] for row in learned if name in row["metrics"])
        lines.append(f"| `{name}`{ARROWS[DIRECTIONS[name]]} | {n} | " + " | ".join(cells) + " |")
    return lines


def stages_table(run: RunDirectory) -> list[str]:
    lines = ["| round | stage | seconds | what |", "|---|---|---|---|"]
    total = 0.0
    for folder in sorted((run.path / "rounds").iterdir()):
        for record in run.read(f"rounds/{folder.name}/stages.jsonl"):
            hidden = ("stage", "seconds", "log")
            facts = {k: round(v) if isinstance(v, float) else v for k, v in record.items() if k not in hidden}
            what = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in facts.items() if v not in ([], {}))
            total += record["seconds"]
            lines.append(f"| {int(folder.name)} | {record['stage']} | {record['seconds']:.1f} | {what} |")
    return [*lines, f"| | **all** | **{total:.0f}** | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", required=True)
    given = parser.parse_args()
    run = RunDirectory(given.run)
    manifest, rows = run.read_json("manifest.json"), run.read_json("metrics.json")["rows"]
    hardware = manifest["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())
    print(f"    {given.command}\n")
    print(f"{hardware['cpus']} CPU cores, {hardware['threads']} torch thread(s), GPUs: {hardware['gpus'] or 'none'}. ")
    print(f"Python {manifest['python']}, {versions}. Seed {manifest['seed']}.\n")
    print("Test split, %, with 95 % intervals (`*`: fewer than 20 clusters).")
    print("The metrics are defined in the docstring of `fate_trl/metrics/definitions.py`.\n")
    print("\n".join(metrics_table(rows, "all")))
    errors = {row["policy"]: row["errors"]["excluded"] for row in rows if row["errors"] and row["kind"] == "all"}
    print(f"\nCases left out because of infrastructure errors: {json.dumps(errors) if errors else 'none'}.\n")
    print("## Where the time went\n")
    print("\n".join(stages_table(run)))


if __name__ == "__main__":
    main()
