"""Where time goes: seconds by what they went into, and tokens."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Spent:
    """Where a rollout's time went, in seconds, and its tokens.

    Attributes:
        seconds: By the clock, no second twice: "reading", "decoding", "between" (parsing replies and rendering
            results), "tools" (waiting for tools that run; beside decoding they run for nothing) and "idle" (waiting
            while none runs). A trainer adds "generating" (where nothing is shared), "verifying" and "training".
        tokens: "sampled", "read", and "asked": what would be read if every turn of every row began anew.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the seconds in here, less those that are counted under something else meanwhile."""
        began, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            beside = sum(self.seconds.values()) - before
            self.seconds[what] += time.perf_counter() - began - beside


class Busy:
    """Seconds in which at least one of several threads was in here."""

    def __init__(self) -> None:
        self._lock, self._inside, self._since, self._total = threading.Lock(), 0, 0.0, 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._since = time.perf_counter()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._total += time.perf_counter() - self._since

    def seconds(self) -> float:
        with self._lock:
            return self._total + (time.perf_counter() - self._since if self._inside else 0.0)
