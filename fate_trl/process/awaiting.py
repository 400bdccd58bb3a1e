"""Other people's coroutines, run to their end from code that is not asynchronous itself.

One event loop on a thread of its own serves the whole process, as in TRL: what a class or a module shares between its
instances (a client, a semaphore) belongs to one loop, and what runs in the background goes on between two calls.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import os
import threading
from collections.abc import Awaitable
from typing import Any

STUCK = 5.0
"""Seconds after which a loop that does not take its turn is left behind and a new one made (ours)."""


def awaited(value: Any) -> Any:
    """`value`; or, if it must be awaited, what it results in, or raises.

    There is no limit in time here: the callers' threads have one.
    """
    if not inspect.isawaitable(value):
        return value
    return asyncio.run_coroutine_threadsafe(_finished(value), _loop()).result()


async def _finished(value: Awaitable[Any]) -> Any:
    try:
        return await value
    except (SystemExit, KeyboardInterrupt) as left:  # they would end the loop that everybody uses
        raise RuntimeError(f"{type(left).__name__} {left}") from None


_lock = threading.Lock()
_current: list[asyncio.AbstractEventLoop] = []
os.register_at_fork(after_in_child=_current.clear)  # threads do not live on in a child


def _loop() -> asyncio.AbstractEventLoop:
    """The loop that runs, or a new one where there is none or a coroutine that blocks has the old one for itself."""
    with _lock:
        if _current and not _turns(_current[0]):
            _current.clear()
        if not _current:
            _current.append(asyncio.new_event_loop())
            threading.Thread(target=_current[0].run_forever, daemon=True, name="fate-trl-awaiting").start()
        return _current[0]


def _turns(loop: asyncio.AbstractEventLoop) -> bool:
    turned: concurrent.futures.Future[None] = concurrent.futures.Future()
    loop.call_soon_threadsafe(turned.set_result, None)
    try:
        turned.result(STUCK)
    except concurrent.futures.TimeoutError:
        return False
    return True
