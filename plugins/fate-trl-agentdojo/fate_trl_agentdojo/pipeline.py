"""A policy as an element of AgentDojo's own pipelines, with or without a guard, for AgentDojo's own scripts.

AgentDojo's runner, executor, attacks, graders and logs stay as they are. The element is what they call the LLM: it
reads the conversation, and says what comes next. It is shown the tools and their errors as in our suites, so that a
policy meets there what it met in training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agentdojo.agent_pipeline.agent_pipeline import AgentPipeline, PipelineConfig
from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement
from agentdojo.agent_pipeline.pi_detector import PromptInjectionDetector
from agentdojo.agent_pipeline.tool_execution import ToolsExecutionLoop
from agentdojo.functions_runtime import FunctionCall
from agentdojo.types import get_text_content_as_str
from agentdojo.types import text_content_block_from_string as block
from cohere.core.api_error import ApiError

from fate_trl import EndpointError, FateError, Message, Speaker, answer_of

from .suite import prototype


class Scorer(Protocol):
    """A guard of texts."""

    def probability(self, text: str) -> float:
        """How sure it is that the text holds an injection, in [0, 1]."""
        ...


class PolicyElement(BasePipelineElement):
    """What AgentDojo calls an LLM: it adds the assistant's next message.

    A turn with a call whose arguments are no JSON object calls nothing, as in TRL: what was written is its text. Where
    a server gives no reply after all tries, the case is logged as AgentDojo logs a server's failure, with an `error`,
    and the benchmark goes on; `fate-trl import` counts such a log as an infrastructure error.

    Args:
        speaker: The policy, as `fate_trl.speaker_of` gives it, or any function of (messages, tools).
        name: AgentDojo's attacks look their victim's name up in this, and say "Local model".
    """

    def __init__(self, speaker: Speaker, name: str = "local"):
        self.name, self._speaker = name, speaker
        self._said: list[Message] = []
        self._tools: dict[str, Callable[..., Any]] = {}

    def query(self, query: str, runtime: Any, env: Any = None, messages: Any = (), extra_args: Any = None) -> Any:
        if sum(message["role"] == "assistant" for message in messages) != len(self._said):
            self._said = []  # another conversation
        for name, function in runtime.functions.items():
            self._tools.setdefault(name, prototype(function))
        try:
            said = self._speaker(self._told(messages), [self._tools[name] for name in runtime.functions])
        except EndpointError as error:
            raise ApiError(status_code=500, body=f"internal server error: {error}") from error
        self._said.append(said)
        return query, runtime, env, [*messages, _theirs(said, len(messages))], extra_args or {}

    def _told(self, messages: Sequence[Any]) -> list[Message]:
        """The conversation in our form; what the policy said, as it said it, with its thoughts."""
        said = iter(self._said)
        return [next(said, None) or _ours(m) if m["role"] == "assistant" else _ours(m) for m in messages]


class GuardElement(PromptInjectionDetector):
    """A guard between the tools and the policy: a result that it flags is withheld, or ends the run.

    Where the guard fails, the case is logged with an `error`, as where a server does.

    Args:
        guard: Scores texts.
        threshold: From which probability on a text is flagged, in (0, 1].
        aborts: End the run at the first flagged result, in place of withholding it.

    Raises:
        FateError: Such a threshold flags nothing, or everything.
    """

    def __init__(self, guard: Scorer, threshold: float = 0.5, aborts: bool = False):
        super().__init__(mode="message", raise_on_injection=aborts)
        if not 0 < threshold <= 1:
            raise FateError(f"a guard's threshold is a probability above 0 and up to 1, such as 0.5, not {threshold}.")
        self._guard, self._threshold = guard, threshold

    def detect(self, tool_output: str) -> tuple[bool, float]:
        try:
            found = float(self._guard.probability(tool_output))
            if not 0 <= found <= 1:  # nor is NaN, which no threshold flags
                raise ValueError(f"{found} is no probability")
        except Exception as error:  # a case without a verdict of the guard has none of ours
            said = f"internal server error: the guard failed: {type(error).__name__}: {error}"
            raise ApiError(status_code=500, body=said) from error
        return found >= self._threshold, found


def pipeline_of(
    speaker: Speaker, name: str = "", guard: PromptInjectionDetector | None = None, config: PipelineConfig | None = None
) -> AgentPipeline:
    """A pipeline around a policy, as AgentDojo makes its own.

    Args:
        speaker: The policy.
        name: Of the policy: logs go to `LOGDIR/local-NAME`, or `LOGDIR/local-NAME-guarded`.
        guard: Reads each result before the policy does.
        config: AgentDojo's, for its defences, system message and format of results; its `llm` is not used.
    """
    plain = re.sub(r"[^\w.@-]", "_", name)
    element = PolicyElement(speaker, f"local-{plain}" if plain else "local")
    if config is None:
        required = (key for key, field in PipelineConfig.model_fields.items() if field.is_required())
        config = PipelineConfig(**{**dict.fromkeys(required), "llm": element})  # others in each version of AgentDojo
    made = AgentPipeline.from_config(config.model_copy(update={"llm": element}))
    if guard is not None:
        for loop in made.elements:
            if isinstance(loop, ToolsExecutionLoop):
                executor, *others = loop.elements
                loop.elements = [executor, guard, *others]
        made.name = f"{made.name}-guarded"
    return made


# ------------------------------------------------------------------------------------------------ between the formats


def _ours(message: Mapping[str, Any]) -> Message:
    text = get_text_content_as_str(message["content"] or [])
    if message["role"] == "tool":
        made = message["tool_call"]
        unknown = (message["error"] or "").startswith("Invalid tool")
        error = f"Tool {made.function} not found." if unknown else message["error"]  # as TRL's loop says it
        content = json.dumps({"error": error}) if error else text
        return {"role": "tool", "name": made.function, "tool_call_id": made.id, "content": content}
    if message["role"] == "assistant" and message.get("tool_calls"):
        functions = [{"name": call.function, "arguments": dict(call.args)} for call in message["tool_calls"]]
        calls = [{"type": "function", "function": function} for function in functions]
        return {"role": "assistant", "content": text, "tool_calls": calls}
    return {"role": message["role"], "content": text}


def _theirs(said: Message, number: int) -> dict[str, Any]:
    """The assistant's message in AgentDojo's form."""
    functions = [call.get("function", call) for call in said.get("tool_calls") or ()]
    text = answer_of(said)
    if not all(isinstance(function.get("arguments") or {}, Mapping) for function in functions):
        written = [json.dumps({"name": f.get("name"), "arguments": f.get("arguments")}) for f in functions]
        text, functions = "\n".join(filter(None, [text, *written])), []
    calls = [
        FunctionCall(function=f["name"], args=dict(f.get("arguments") or {}), id=f"call_{number}_{place}")
        for place, f in enumerate(functions)
    ]
    return {"role": "assistant", "content": [block(text)], "tool_calls": calls or None}
