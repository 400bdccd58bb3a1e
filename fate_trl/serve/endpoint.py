"""A policy behind an OpenAI-compatible endpoint: any served model is evaluated as our own are, without torch here.

The conversation is the server's to write; everything else is ours. Tools are described to it by the schemas that a
local model gets, its calls are executed by the same `Recorder`, and the recipe's limits hold. What the *server* does
wrong is tried again (see chat.py), and then is an infrastructure error of that one record. What the *model* does wrong,
such as a call whose arguments are no JSON, is scored.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic's; the standard one lacks what it needs before Python 3.12

from ..errors import ToolError
from ..hookspecs import Suite
from ..ledger.writing import RunDirectory
from ..loop.assemble import assemble
from ..loop.reporter import Reporter
from ..loop.rounds import Evolution
from ..recipe.schema import Recipe
from ..record import stable_hash
from ..suites.episodes import Recorder, toolset
from ..types import Message, RolloutRequest, Task, Trajectory, text_of
from .completions import EndpointError, Server, counts, message_of


def build(recipe: Recipe, run: RunDirectory, reporter: Reporter | None = None) -> Evolution:
    """A recipe's evaluation of `model.endpoint`, ready to be called."""
    return assemble(recipe, run, lambda suites, verifiers, selector: EndpointPolicy(recipe, suites), reporter)


class EndpointPolicy:
    """A `Policy` whose model is served elsewhere. Its trajectories hold messages and token counts, no token ids.

    Args:
        recipe: Its `model.endpoint`, `model.path` (the model's name at the server) and `rollout`.
        suites: By the name that tasks carry.

    Raises:
        RecipeError: The API key cannot stand in a header.
    """

    name = "model"

    def __init__(self, recipe: Recipe, suites: Mapping[str, Suite]):
        assert recipe.model.endpoint is not None
        self.model, self.endpoint, self.limits = recipe.model.path, recipe.model.endpoint, recipe.rollout
        self.suites = suites
        known = self.endpoint
        self.server = Server(known.url, known.key_env, known.seconds, known.retries, known.backoff)
        self._schemas: dict[str, list[dict[str, Any]]] = {}
        self._stopped = threading.Event()

    def rollout(self, requests: Sequence[RolloutRequest], seed: int) -> list[Trajectory]:
        """As many episodes at a time as the recipe's `model.endpoint.concurrency` says; see hookspecs.Policy."""
        for request in requests:
            self._describe_tools(request.task)
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            try:
                return list(pool.map(lambda request: self._episode(request, seed), requests))
            except BaseException:  # the episodes that are under way end at their next request
                self._stopped.set()
                raise

    def _describe_tools(self, task: Task) -> None:
        if toolset(task) not in self._schemas:
            prototypes = self.suites[task.suite].tools()
            self._schemas[toolset(task)] = [tool_schema(prototypes[name]) for name in sorted(task.tools)]

    # -------------------------------------------------------------------------------------------- one episode

    def _episode(self, request: RolloutRequest, seed: int) -> Trajectory:
        recorder = Recorder(self.suites[request.task.suite], request, self.limits.limits)
        messages: list[Message] = []
        usage: Counter[str] = Counter()
        try:
            stop = self._converse(request, recorder, messages, usage, seed)
        except EndpointError as error:
            stop = "error"
            recorder.fail(error.cause, f"endpoint: {error}")
        return recorder.trajectory(messages, stop, self.name, usage=dict(usage))

    def _converse(
        self,
        request: RolloutRequest,
        recorder: Recorder,
        messages: list[Message],
        usage: Counter[str],
        seed: int,
    ) -> str:
        """Let the model speak and act until it answers or meets a limit; returns why it ended, as `Trajectory.stop`.

        `max_completion_length` bounds what follows the prompt, results of tools included, as it does in TRL: by the
        server's own counts, or per message where it gives none.
        """
        left, first = self.limits.max_completion_length, None
        for turn in range(self.limits.max_tool_calling_iterations + 1):
            if recorder.error:
                return "error"
            number = stable_hash(seed, request.stage, request.task.id, request.attempt, turn) % 2**31
            reply = self.server.ask(self._body(request, messages, left, number), self._stopped)
            message, cut = message_of(reply)
            messages.append(message)
            prompt, written = counts(reply)
            usage.update(prompt_tokens=prompt, completion_tokens=written)
            if cut:
                return "length"
            if not message.get("tool_calls"):
                return "answer"
            if turn == self.limits.max_tool_calling_iterations:
                return "calls"
            messages += [_executed(recorder, call["function"]) for call in message["tool_calls"]]
            first = prompt if first is None else first
            left = self.limits.max_completion_length - max(0, prompt + written - first)
            if left <= 0:
                return "length"
        raise AssertionError("the last turn returns")

    def _body(self, request: RolloutRequest, messages: Sequence[Message], left: int, seed: int) -> dict[str, Any]:
        body = {
            "model": self.model,
            "messages": wire_messages([*request.messages, *messages]),
            "tools": self._schemas[toolset(request.task)] or None,
            "temperature": self.limits.temperature,
            "top_p": self.limits.top_p,
            "max_tokens": left,
            "seed": seed,
            **self.endpoint.body,
        }
        return {key: value for key, value in body.items() if value is not None}


# ------------------------------------------------------------------------------------------------ between the formats


def tool_schema(tool: Callable[..., Any]) -> dict[str, Any]:
    """A tool as the endpoint wants it described. transformers' `get_json_schema` says the same, but loads torch."""
    from transformers.utils.chat_template_utils import parse_google_format_docstring

    summary, described, _ = parse_google_format_docstring(inspect.getdoc(tool) or "")
    parameters = inspect.signature(tool, eval_str=True).parameters.values()
    fields: dict[str, Any] = {}
    for parameter in parameters:
        about = Field(description=(described or {}).get(parameter.name))
        annotation = Annotated[parameter.annotation, about]  # type: ignore[name-defined]
        fields[parameter.name] = annotation if parameter.default is parameter.empty else NotRequired[annotation]
    arguments = TypeAdapter(TypedDict("Arguments", fields)).json_schema()  # type: ignore[operator]
    arguments.pop("title")
    for described_field in arguments["properties"].values():
        described_field.pop("title", None)
    return {
        "type": "function",
        "function": {"name": tool.__name__, "description": summary or "", "parameters": arguments},
    }


def wire_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the endpoint wants them: calls and results numbered, arguments as JSON text."""
    out: list[dict[str, Any]] = []
    made: list[str] = []  # ids of calls, in order
    answered = 0
    for message in messages:
        wired: dict[str, Any] = {"role": message["role"], "content": text_of(message)}
        if message["role"] == "tool":
            wired["tool_call_id"] = made[answered] if answered < len(made) else ""
            answered += 1
        if message.get("tool_calls"):
            wired["tool_calls"] = []
            for call in message["tool_calls"]:
                function = call.get("function", call)
                arguments = function.get("arguments") or {}
                text = arguments if isinstance(arguments, str) else json.dumps(arguments)
                made.append(f"call{len(made):05d}")  # nine letters and digits: one server's parser insists
                wired["tool_calls"].append(
                    {"id": made[-1], "type": "function", "function": {"name": function["name"], "arguments": text}}
                )
        out.append(wired)
    return out


def _executed(recorder: Recorder, function: Mapping[str, Any]) -> Message:
    """The tool message that answers a call. Its errors look like TRL's."""
    name, arguments = function["name"], function["arguments"]
    try:
        if isinstance(arguments, str):
            recorder.refuse(name, f"the arguments are no JSON object: {arguments[:200]!r}")
        result = recorder.call(name, arguments)
    except ToolError as error:
        result = json.dumps({"error": str(error)})
    return {"role": "tool", "name": name, "content": result}
