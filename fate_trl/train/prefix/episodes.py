"""What rows of a tool conversation do between their turns: TRL's tool loop, seen from one row.

The tokens, messages and masks are those of `GRPOTrainer._tool_call_loop`: calls are read from a turn's tokens, run, and
their results put behind it, unless they would overflow; then they are taken back.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl.chat_template_utils import parse_response

Tools = Mapping[str, Callable[..., Any]]
Results = tuple[list[tuple[str, Any]], int]
"""(name, result) of each call, and how many failed."""


@dataclass
class ToolTurns:
    """The `Episodes` of rows with tools.

    Args:
        tokenizer: Reads calls out of tokens.
        schemas: Per row its tools as the prompt describes them.
        tools: Per row (synchronous, asynchronous) tools by name.
        together: Names of tools that all rows share, which are not called by two at a time.
        loop: Runs asynchronous tools.
        suffix: The tokens of tool messages and of the next turn's beginning.
        turns: Rounds of calls of a row.
        room: Tokens that may follow a prompt.
        positions: Tokens that the model can take.

    Attributes:
        completions: Per row the messages after the prompt.
        calls: Calls made.
        failures: Calls that raised, or that named no tool.
    """

    tokenizer: Any
    schemas: Sequence[Any]
    tools: Sequence[tuple[Tools, Tools]]
    together: frozenset[str]
    loop: asyncio.AbstractEventLoop | None
    suffix: Callable[[list[dict[str, Any]]], list[int]]
    turns: int
    room: int
    positions: int
    completions: list[list[dict[str, Any]]] = field(default_factory=list)
    calls: int = 0
    failures: int = 0

    def __post_init__(self) -> None:
        self.completions = [[] for _ in self.schemas]
        self._turn = [0] * len(self.schemas)
        self._start = [0] * len(self.schemas)
        self._lock = threading.Lock()
        self._suffixes: dict[tuple[tuple[str, str], ...], list[int]] = {}

    def ended(self, row: int, prompt_ids: list[int], turn_ids: list[int]) -> Callable[[], Results] | None:
        if not self._turn[row]:
            self._start[row] = len(prompt_ids)
        message = parse_response(self.tokenizer, turn_ids, prefix=prompt_ids, tools=self.schemas[row])
        self.completions[row].append(message)
        calls = message.get("tool_calls")
        if not calls or self._turn[row] >= self.turns:
            return None
        self._turn[row] += 1
        self.calls += len(calls)
        return lambda: self._run(row, calls)

    def follows(self, row: int, done: Results, prompt_ids: list[int]) -> list[int] | None:
        results, failed = done
        self.failures += failed
        said = [
            {"role": "tool", "name": name, "content": result if isinstance(result, list) else str(result)}
            for name, result in results
        ]
        ids = self._suffix_of(said)
        length = len(prompt_ids) + len(ids)
        if length - self._start[row] > self.room or length >= self.positions:
            return None
        self.completions[row] += said
        return ids

    def _suffix_of(self, said: list[dict[str, Any]]) -> list[int]:
        """Rendered once: many rows read the same result."""
        key = tuple((message["name"], str(message["content"])) for message in said)
        if key not in self._suffixes:
            self._suffixes[key] = self.suffix(said)
        return self._suffixes[key]

    def _run(self, row: int, calls: Sequence[dict[str, Any]]) -> Results:
        """Run a turn's calls, on another thread, in their order; asynchronous ones together, after the others."""
        plain, asynchronous = self.tools[row]
        results: list[tuple[str, Any]] = []
        later: list[tuple[str, Any]] = []
        failed = 0
        for call in calls:
            if call["type"] != "function":
                failed += 1
                name = call.get("name", "unknown")
                results.append((name, {"error": f"Unsupported tool call type: {call['type']}"}))
                continue
            name = call["function"]["name"]
            try:
                arguments = call["function"]["arguments"]
                if name in plain:
                    results.append((name, self._call(plain[name], name, arguments)))
                elif name in asynchronous:
                    later.append((name, self._call(asynchronous[name], name, arguments)))
                else:
                    raise ValueError(f"Tool {name} not found.")
            except Exception as error:
                failed += 1
                results.append((name, {"error": str(error)}))
        for name, result in self._awaited(later):
            failed += isinstance(result, Exception)
            results.append((name, {"error": str(result)} if isinstance(result, Exception) else result))
        return results, failed

    def _call(self, tool: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> Any:
        if name not in self.together:
            return tool(**arguments)
        with self._lock:
            return tool(**arguments)

    def _awaited(self, later: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        if not later:
            return []

        async def together() -> list[Any]:
            return await asyncio.gather(*(coroutine for _, coroutine in later), return_exceptions=True)

        assert self.loop is not None, "TRL starts a loop where there are asynchronous tools"
        results = asyncio.run_coroutine_threadsafe(together(), self.loop).result()
        return [(name, result) for (name, _), result in zip(later, results, strict=True)]
