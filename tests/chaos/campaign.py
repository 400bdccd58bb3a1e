"""kill -9 at random points of a run, then resume, again and again: nothing may be lost, nothing done twice.

Each attempt is a process of its own, forked so that imports are paid once. It dies either at one of its changes to the
run directory (a file opened for writing, flushed, renamed, removed), chosen at random, or after a random time. One that
dies while it flushes loses a random part of what it had not flushed before, as in a power cut.

    campaign = Campaign(make_evolution, folder)      # runs once, unbroken, to compare with
    campaign.kill(300)
    print(campaign.counts, campaign.lost, campaign.duplicated, campaign.different)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from fate_trl.loop.rounds import Evolution

PLACES = {"/training-": "checkpoint", "/.after-": "policy save", "/.policy-": "policy save", "/.base-": "policy save"}
"""What a process was doing, by a part of the path that it was changing; the ledger's files end in .jsonl."""


def place(path: str) -> str:
    found = [name for part, name in PLACES.items() if part in path]
    return found[0] if found else "ledger write" if ".jsonl" in path else "other file"


class Doom:
    """Counts this process's changes to a run directory, tells a pipe of each, and dies at one of them."""

    def __init__(self, run: Path, fatal: int, pipe: int, rng: np.random.Generator):
        self.run = f"{run}/"
        self.fatal = fatal
        self.pipe = pipe
        self.rng = rng
        self.seen = 0
        self.flushed: dict[str, int] = {}
        self._fsync = os.fsync
        os.fsync = self.fsync  # type: ignore[assignment]
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        path = str(arguments[0]) if arguments else ""
        if not path.startswith(self.run):
            return
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self.flushed[path] = os.path.getsize(path) if os.path.exists(path) else 0
            self.change(path)
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"):
            self.change(path)

    def fsync(self, file: int) -> None:
        path = os.readlink(f"/proc/self/fd/{file}")
        if path.startswith(self.run) and os.path.isfile(path):
            self.change(path, flushing=True)
        self._fsync(file)

    def change(self, path: str, flushing: bool = False) -> None:
        self.seen += 1
        os.write(self.pipe, f"{place(path)}\n".encode())
        if self.seen == self.fatal:
            if flushing:
                kept = int(self.rng.integers(self.flushed.get(path, 0), os.path.getsize(path) + 1))
                os.truncate(path, kept)
            os.kill(os.getpid(), signal.SIGKILL)


def attempt(
    make: Callable[[Path], Evolution],
    run: Path,
    rng: np.random.Generator,
    fatal: int = 0,
    seconds: float | None = None,
) -> tuple[bool, list[str]]:
    """One process on a run directory: whether it came through, and the place of each change that it made."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            Doom(run, fatal, writer, rng)
            evolution = make(run)
            with evolution.run.lock():
                evolution()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    with open(reader, "rb") as pipe:
        places = pipe.read().decode().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), "the run failed; its traceback is above"
    return status == 0, places


def results(run: Path) -> dict[str, bytes]:
    """Everything that must come out the same: records, buffers, weights; not the times in stages.jsonl.

    Nor config.json, in which transformers notes whether a trainer had been built before the save (`use_cache`).
    """
    files = [file for file in sorted(run.rglob("*")) if file.is_file() and file.name not in (".lock", "config.json")]
    out = {str(file.relative_to(run)): file.read_bytes() for file in files}
    for name in [name for name in out if name.endswith("stages.jsonl")]:
        out[name] = json.dumps([json.loads(line)["stage"] for line in out[name].splitlines()]).encode()
    return out


def committed(run: Path) -> Counter[tuple[str, bytes]]:
    """Records of whole chunks, by file."""
    found: Counter[tuple[str, bytes]] = Counter()
    for file in run.rglob("*.jsonl"):
        if file.name not in ("rollouts.jsonl", "repairs.jsonl"):
            continue
        chunks: dict[tuple, list[bytes]] = {}
        of = {}
        for line in file.read_bytes().split(b"\n")[:-1]:
            record = json.loads(line)
            key = (record["stage"], record["chunk"])
            chunks.setdefault(key, []).append(line)
            of[key] = record["of"]
        name = str(file.relative_to(run))
        found.update((name, line) for key, lines in chunks.items() if len(lines) == of[key] for line in lines)
    return found


class Campaign:
    """Kills runs that `make` builds, one folder after another, and compares each with the unbroken one.

    Attributes:
        counts: Kills by what the process was doing, or "at a random time".
        runs: Runs that were killed and came to their end; `different` of them ended otherwise than the unbroken one.
        lost: Committed records that were not there at the end, over all kills.
        duplicated: Records that a run ended with more often than the unbroken one.
        leftovers: Files that only a killed run had.
    """

    def __init__(self, make: Callable[[Path], Evolution], folder: Path, seed: int = 0):
        self.make = make
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.counts: Counter[str] = Counter()
        self.runs = self.lost = self.duplicated = self.leftovers = 0
        self.different: list[str] = []
        start = time.monotonic()
        through, self.places = attempt(make, folder / "unbroken", self.rng)
        assert through
        self.seconds = time.monotonic() - start
        self.wanted, self.records = results(folder / "unbroken"), committed(folder / "unbroken")

    def kill(self, number: int) -> None:
        """Kill at least `number` times, and see every run through; Ctrl-C ends it before the run in hand."""
        with suppress(KeyboardInterrupt):
            while self.counts.total() < number:
                self._one(self.folder / f"run-{self.runs}")

    def _one(self, run: Path) -> None:
        fatal, seconds = self._fate(first=True)
        held: list[Counter[tuple[str, bytes]]] = []
        died = []
        while True:
            through, places = attempt(self.make, run, self.rng, fatal, seconds)
            if through:
                break
            died.append("at a random time" if seconds is not None else places[-1])
            held.append(committed(run))
            fatal, seconds = self._fate()
        got, records = results(run), committed(run)
        self.runs += 1
        self.counts.update(died)
        self.lost += max(((before - records).total() for before in held), default=0)
        self.lost += (self.records - records).total()
        self.duplicated += (records - self.records).total()
        self.leftovers += len(got.keys() - self.wanted.keys())
        if got != self.wanted:
            names = sorted(name for name in got.keys() | self.wanted if got.get(name) != self.wanted.get(name))
            self.different.append(f"{run.name}: {', '.join(names)}")
        else:
            shutil.rmtree(run)

    def _fate(self, first: bool = False) -> tuple[int, float | None]:
        """(change at which to die, None) or (0, seconds until it is killed); at first all places are as likely."""
        if self.rng.random() < 0.3:
            return 0, float(self.rng.uniform(0, self.seconds))
        if not first:
            return int(self.rng.integers(1, len(self.places) + 1)), None
        chosen = self.rng.choice(sorted(set(self.places)))
        return int(self.rng.choice([n for n, place in enumerate(self.places, 1) if place == chosen])), None
