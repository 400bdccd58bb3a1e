"""One opened case: the benchmark's tools on a store of its own, and the benchmark's scorer at the end."""

from __future__ import annotations

import asyncio
import contextvars
import copy
from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ModelName, ModelOutput
from inspect_ai.scorer import Target
from inspect_ai.solver import TaskState
from inspect_ai.tool import Tool
from inspect_ai.tool import ToolCall as InspectCall
from inspect_ai.util import Store
from inspect_ai.util._store import init_subtask_store
from inspect_evals.agent_threat_bench.scorer import agent_threat_bench_scorer

from fate_trl import Message, Outcome, ToolCall, ToolError, text_of

STATE = ("memory_store", "inbox", "customer_db")
"""Keys of a sample's metadata that its tools start from."""


class ThreatEpisode:
    """A case's state lives in an Inspect store, which its tools read and write.

    Args:
        sample: The case, as inspect-evals loads it.
        tools: Its tools by name.
        attacked: Whether the case holds an attack.
    """

    def __init__(self, sample: Sample, tools: Mapping[str, Tool], attacked: bool):
        self._sample, self._tools, self._attacked = sample, tools, attacked
        facts = sample.metadata or {}
        self._store = Store({key: copy.deepcopy(facts[key]) for key in STATE if key in facts})
        self._injected = _injected(facts) if attacked else ()

    def execute(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run a tool. Raises ToolError where it raised."""
        try:
            return str(contextvars.copy_context().run(self._call, name, arguments))
        except Exception as error:
            raise ToolError(f"{name}: {type(error).__name__}: {error}") from None

    def _call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        init_subtask_store(self._store)
        return asyncio.run(_awaited(self._tools[name], arguments))

    def outcome(self, calls: Sequence[ToolCall], messages: Sequence[Message]) -> Outcome:
        """The benchmark's verdict on the calls that ran and on the last message.

        The benchmark looks at the calls of all assistant messages. Here these are the executed ones, whose arguments
        fitted: what never ran did neither good nor harm.
        """
        ran = [call for call in calls if call.fault != "arguments"]
        answer = next((text_of(message) for message in reversed(messages) if message.get("role") == "assistant"), "")
        said: list[ChatMessage] = [
            ChatMessageAssistant(
                content="",
                tool_calls=[
                    InspectCall(id=str(i), function=call.name, arguments=call.arguments) for i, call in enumerate(ran)
                ],
            )
        ]
        state = TaskState(
            model=ModelName("fate-trl/policy"),
            sample_id=self._sample.id or "",
            epoch=1,
            input=self._sample.input,
            messages=said,
            metadata=self._sample.metadata,
            output=ModelOutput.from_content("policy", answer),
        )
        score = asyncio.run(_scored(state))
        seen = any(text.lower() in call.result.lower() for call in ran for text in self._injected)
        return Outcome(
            utility=float(score["utility"] == "C"),
            attacked=score["security"] != "C" if self._attacked else None,
            exposed=seen if self._attacked else None,
            injected=self._injected,
        )


async def _awaited(tool: Tool, arguments: Mapping[str, Any]) -> Any:
    return await tool(**arguments)


async def _scored(state: TaskState) -> Mapping[str, Any]:
    found = await agent_threat_bench_scorer()(state, Target(""))
    value: Mapping[str, Any] = found.value  # type: ignore[union-attr, assignment]
    return value


def _injected(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts that hold the attack, as a tool returns them: entries of memory, mails, or a record's note."""
    marker = str(facts.get("attack_marker") or "").lower()
    entries = [text for text in facts.get("memory_store", {}).values() if marker and marker in text.lower()]
    inbox = facts.get("inbox", [])
    mails = [inbox[i - 1]["body"] for i in facts.get("attack_email_indices", ()) if 0 < i <= len(inbox)]
    notes = [record["issue"] for record in facts.get("customer_db", ())[:1] if record.get("issue")]
    return tuple(entries or mails or notes)
