"""Claim: the viewer of a run of 50,000 trajectories paints in under 2 s and filters in under 300 ms, on 2 CPU cores.

A run of benchmarks/synthetic_run.py, served by `fate-trl view`'s server, in the system's chromium. First paint is from
the start of the navigation to the frame in which the list stands; a filter is from the choice to that frame. Each page
is loaded anew several times with an empty cache; shown are the median and the worst. Other work on the machine counts.

    pip install -e '.[browser]'; apt-get install chromium
    python benchmarks/synthetic_run.py /tmp/synthetic
    python benchmarks/viewer.py /tmp/synthetic --out docs/results/viewer
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from fate_trl.report import index
from fate_trl.report.reading import Run
from fate_trl.report.viewer import Site, SiteServer

LOADS = 5
FILTERS = {
    "round": "round=2",
    "kind": "kind=attacked",
    "objective": "objective=security&result=failed",
    "any objective failed": "result=failed",
    "cause": "cause=utility: the task was not done",
    "error": "error=any",
    "repair": "repair=repaired",
    "text": "q=pay june",
    "all of them": "round=1&kind=attacked&objective=security&result=failed&repair=repaired&q=pay",
}

PAINTED = """() => new Promise(done => {
  const look = () => document.querySelector('.item')
    ? requestAnimationFrame(() => setTimeout(() => done(performance.now()))) : requestAnimationFrame(look);
  look();
})"""

FILTER = """hash => new Promise(done => {
  const start = performance.now();
  window.addEventListener('popstate', () => requestAnimationFrame(() => setTimeout(
    () => done([performance.now() - start, document.querySelector('#count').textContent]))), {once: true});
  location.hash = hash;
})"""


def seconds_of(work: Any) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def figures(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "worst": max(values), "n": len(values)}


def measured(page: Page, url: str) -> tuple[float, dict[str, float], dict[str, str]]:
    """Milliseconds to the first paint and of each filter, and what the page counts after it."""
    page.goto(url, wait_until="commit")
    paint = page.evaluate(PAINTED)
    times, counts = {}, {}
    for name, hash in FILTERS.items():
        times[name], counts[name] = page.evaluate(FILTER, hash)
        page.evaluate(FILTER, "")
    return paint, times, counts


def measure(run: Path) -> dict[str, Any]:
    (run / index.CACHE).unlink(missing_ok=True)
    opened = Run.open(run)
    building, cached = seconds_of(lambda: index.load(opened)), seconds_of(lambda: index.load(opened))
    site = Site(run)
    paints, filters, counts = [], {name: [] for name in FILTERS}, {}
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    with SiteServer(site) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        for _ in range(LOADS):
            page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
            paint, times, counts = measured(page, server.url)
            paints.append(paint)
            for name, value in times.items():
                filters[name].append(value)
            page.context.close()
        version = browser.version
        browser.close()
        server.shutdown()
    size = sum(file.stat().st_size for file in run.glob("rounds/*/*.jsonl"))
    return {
        "trajectories": len(site),
        "megabytes": size / 1e6,
        "index_megabytes": len(site.read("data/index.js") or b"") / 1e6,
        "index_built_s": building,
        "index_cached_s": cached,
        "first_paint_ms": figures(paints),
        "filters_ms": {name: figures(values) | {"shows": counts[name]} for name, values in filters.items()},
        "machine": {
            "cpus": os.cpu_count(), "load_average": os.getloadavg()[0], "python": platform.python_version(),
            "chromium": version,
        },
    }  # fmt: skip


def page_of(found: dict[str, Any]) -> str:
    machine, built, paint = found["machine"], found["index_built_s"], found["first_paint_ms"]
    rows = [("first paint", paint, "2,000")]
    rows += [(f"filter: {name} ({value['shows']})", value, "300") for name, value in found["filters_ms"].items()]
    return f"""# The viewer on a large run

{found["trajectories"]:,} trajectories ({found["megabytes"]:.0f} MB of records) of `benchmarks/synthetic_run.py`, served
by `fate-trl view`, in Chromium {machine["chromium"]}; {machine["cpus"]} CPU cores, shared with other work (load average
{machine["load_average"]:.1f}). Made by `benchmarks/viewer.py`, whose head says what is timed.

| what | median of {LOADS}, ms | worst, ms | aim, ms |
|---|---|---|---|
{chr(10).join(f"| {name} | {value['median']:.0f} | {value['worst']:.0f} | < {aim} |" for name, value, aim in rows)}

Before the first page the index is built, once: {built["wall"]:.1f} s ({built["cpu"]:.1f} s of CPU time). It is kept
beside the run, and read back in {found["index_cached_s"]["wall"]:.2f} s while the records are the same. The browser
loads {found["index_megabytes"]:.1f} MB of it; trajectories follow when they are opened.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="Write PATH.json and PATH.md.")
    asked = parser.parse_args()
    found = measure(asked.run)
    print(page_of(found))
    if asked.out:
        asked.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        asked.out.with_suffix(".md").write_text(page_of(found))


if __name__ == "__main__":
    main()
