"""Claim: 32 requests at a time to a judge that takes 200 ms are at least 20 times as fast as one by one.

The judge is plugins/fate-trl-judge, asked through `score_all` as in a run; the server is a scripted one in a process of
its own, which waits 200 ms before each answer. So this measures the client: prompts, connections, parsing, threads.

    pip install -e plugins/fate-trl-judge
    python benchmarks/judge.py --out docs/results/judge
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fate_trl import plugins
from fate_trl.testing.samples import workbench
from fate_trl.verify.scoring import score_all

SERVER = Path(__file__).parent.parent / "plugins/fate-trl-judge/tests/scripted_judge.py"
SECONDS = 0.2
LEVELS = (1, 2, 4, 8, 16, 32)
ROUNDS = 10
"""Requests of each worker, at each level."""


def measured(url: str, concurrency: int) -> dict[str, Any]:
    """Trajectories per second at one level."""
    judge = plugins.load("verifier", "judge/judge", {"url": url, "model": "m", "concurrency": concurrency})
    sound = [trajectory for trajectory in workbench() if len(trajectory.answer) < 1000]
    score_all([judge], sound[:concurrency])  # connections are made, and threads started
    judge.usage()
    batch = [sound[i % len(sound)] for i in range(concurrency * ROUNDS)]
    start, worked = time.perf_counter(), time.process_time()
    cards = score_all([judge], batch)
    took, worked = time.perf_counter() - start, time.process_time() - worked
    assert not any(card.errors for card in cards)
    assert judge.usage()["requests"] == len(batch)
    return {
        "concurrency": concurrency,
        "trajectories": len(batch),
        "seconds": round(took, 2),
        "per_second": round(len(batch) / took, 1),
        "cpu_ms_each": round(1000 * worked / len(batch), 2),
    }


PAGE = """# Throughput of a judge

    python benchmarks/judge.py --out docs/results/judge

A judge that takes {seconds:.0f} ms for each answer; {rounds} trajectories of the workbench for each of the requests at
a time. {where}, shared with other work. CPU is the client's, for one trajectory.

| requests at a time | trajectories per second | times one by one | CPU, ms |
|---:|---:|---:|---:|
{table}

At {seconds:.0f} ms, 32 at a time cannot be more than 32 times as fast.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write OUT.json and OUT.md")
    options = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    command = [sys.executable, str(SERVER), "--seconds", str(SECONDS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        rows = [measured(url, level) for level in LEVELS]
        server.stdin.close()
    for row in rows:
        row["speedup"] = round(row["per_second"] / rows[0]["per_second"], 1)
    table = "\n".join(
        f"| {row['concurrency']} | {row['per_second']} | {row['speedup']} | {row['cpu_ms_each']} |" for row in rows
    )
    where = f"Python {platform.python_version()}, {os.cpu_count()} CPU cores"
    page = PAGE.format(seconds=1000 * SECONDS, rounds=ROUNDS, where=where, table=table)
    print(page)
    if options.out:
        Path(f"{options.out}.md").write_text(page)
        found = {"seconds": SECONDS, "machine": where, "rows": rows}
        Path(f"{options.out}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
