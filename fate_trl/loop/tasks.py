"""Which tasks a stage takes, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..hookspecs import Suite
from ..messages import text_of
from ..types import KINDS, Task


def sample_tasks(tasks: Sequence[Task], count: int | None, rng: np.random.Generator) -> list[Task]:
    """At most `count` tasks, as many of each kind as there are; where a kind has too few, the others fill its place."""
    if count is None or count >= len(tasks):
        return list(tasks)
    pools = [[task for task in tasks if task.kind == kind] for kind in KINDS]
    pools = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools if pool]
    chosen: list[Task] = []
    while len(chosen) < count:
        pools = [pool for pool in pools if pool]
        chosen += [pool.pop() for pool in pools][: count - len(chosen)]
    order = {(task.suite, task.id): index for index, task in enumerate(tasks)}
    return sorted(chosen, key=lambda task: order[task.suite, task.id])


def longest_first(tasks: Iterable[Task], suites: Mapping[str, Suite]) -> list[Task]:
    """Tasks by the length of their prompts, so that those of one chunk are padded little; ours.

    The length is that of the messages and of the tools' descriptions, in characters: near enough, and no tokenizer is
    asked. The longest come first, because what does not fit into memory should show at once.
    """

    def length(task: Task) -> int:
        tools = suites[task.suite].tools()
        described = sum(len(tools[name].__doc__ or "") for name in task.tools if name in tools)
        return described + sum(len(text_of(message)) for message in task.messages)

    return sorted(tasks, key=length, reverse=True)
