"""What real input did to us, and does now: docs/results/cases.md, made by the tests that are marked as cases.

    python -m benchmarks.cases [docs/results/cases]

Claim: every case listed is handled as its row says. A row is written only if its test passes in this run; a case that
fails ends the script with status 1. `tests/case.py` has the mark.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

KEYS = ("section", "given", "before", "now")


class Collect:
    """A pytest plugin that keeps the marked tests and what became of them."""

    def __init__(self) -> None:
        self.cases: dict[str, dict[str, str]] = {}
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if list(item.iter_markers("case"))]
        for item in items:
            for number, mark in enumerate(item.iter_markers("case")):
                self.cases[f"{item.nodeid}#{number}"] = {key: mark.kwargs[key] for key in KEYS}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed or (report.skipped and report.when != "teardown"):
            self.failed.append(report.nodeid)


def page(cases: list[dict[str, str]]) -> str:
    """The Markdown page: a table for each section."""
    lines = [
        "# Cases from the field",
        "",
        "Inputs are made up; the kinds come from public bug reports, public environment classes and recorded runs.",
        f"Each row is a test; `python -m benchmarks.cases` runs them and writes this page. {len(cases)} cases.",
    ]
    for section in dict.fromkeys(case["section"] for case in cases):
        lines += ["", f"## {section[:1].upper()}{section[1:]}", "", "| input | before | now |", "|---|---|---|"]
        for case in cases:
            if case["section"] == section:
                lines.append(
                    "| " + " | ".join(case[key].replace("|", "\\|").replace("\n", " ") for key in KEYS[1:]) + " |"
                )
    return "\n".join(lines) + "\n"


def main(target: str = "docs/results/cases") -> int:
    """Run the marked tests, slow ones too; write the page and its JSON. Returns the number of those that failed."""
    collect = Collect()
    pytest.main(["-q", "-p", "no:cacheprovider", "-m", "case", "tests", "plugins"], plugins=[collect])
    kept = [case for name, case in collect.cases.items() if name.rpartition("#")[0] not in collect.failed]
    kept.sort(key=lambda case: case["section"])
    Path(f"{target}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    Path(f"{target}.md").write_text(page(kept), encoding="utf-8")
    print(f"{len(kept)} cases written to {target}.md; {len(collect.failed)} failed or were skipped")
    return len(collect.failed)


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
