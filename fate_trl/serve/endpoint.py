"""A policy behind an OpenAI-compatible endpoint: any served model is evaluated as our own are, without torch here.

The conversation is the server's to write; everything else is ours. Tools are described to it by the schemas that a
local model gets, its calls are executed by the same `Recorder`, and the recipe's limits hold. What the *server* does
wrong is tried again (see completions.py), and then is an infrastructure error of that one record. What the *model* does
wrong, such as a call whose arguments are no JSON, is scored; so is a conversation that outgrows the model's context.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic's; the standard one lacks what it needs before Python 3.12

from ..errors import ToolError
from ..hookspecs import Suite
from ..ledger.writing import RunDirectory
from ..loop.assemble import assemble
from ..loop.reporter import Reporter
from ..loop.rounds import Evolution
from ..messages import Message
from ..recipe.components import Components
from ..recipe.schema import Recipe
from ..record import stable_hash
from ..suites.episodes import Recorder, toolset
from ..suites.opening import tools_of
from ..types import RolloutRequest, StopReason, Task, Trajectory
from .completions import Server
from .replies import ContextOverflow, EndpointError, Reply
from .wire import wire_messages

_UNREADABLE = (400, 413, 422)  # a request that the server cannot take


def build(
    recipe: Recipe, run: RunDirectory, reporter: Reporter | None = None, components: Components | None = None
) -> Evolution:
    """A recipe's evaluation of `model.endpoint`, ready to be called."""
    return assemble(recipe, run, lambda suites, *_: EndpointPolicy(recipe, suites), reporter, components)


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
        self._recipe, self.endpoint, self.limits = recipe, recipe.model.endpoint, recipe.rollout
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
            tools = tools_of(self.suites[task.suite], task.tools)
            self._schemas[toolset(task)] = [tool_schema(tool) for tool in tools]

    # -------------------------------------------------------------------------------------------- one episode

    def _episode(self, request: RolloutRequest, seed: int) -> Trajectory:
        recorder = Recorder(self.suites[request.task.suite], request, self.limits.limits)
        messages: list[Message] = []
        usage: Counter[str] = Counter()
        outcome = None
        try:
            stop: StopReason = self._converse(request, recorder, messages, usage, seed)
        except EndpointError as error:
            stop = "error"
            if error.cause == "endpoint_repeatable":  # it may be the model's fault: what was done until then is kept
                outcome = recorder.outcome(messages)
            if not recorder.error:
                recorder.fail(error.cause, f"endpoint: {error}")
        trajectory = recorder.trajectory(messages, stop, self.name, usage=dict(usage))
        return trajectory if outcome is None else replace(trajectory, outcome=outcome)

    def _converse(
        self,
        request: RolloutRequest,
        recorder: Recorder,
        messages: list[Message],
        usage: Counter[str],
        seed: int,
    ) -> StopReason:
        """Let the model speak and act until it answers or meets a limit; returns why it ended, as `Trajectory.stop`.

        `max_completion_length` bounds what follows the prompt, results of tools included, as it does in TRL: by the
        server's own counts, or per message where it gives none.
        """
        request = replace(request, messages=recorder.prompt)
        left, first = self.limits.max_completion_length, None
        for turn in range(self.limits.max_tool_calling_iterations + 1):
            if recorder.error:
                return "error"
            number = stable_hash(seed, request.stage, request.task.id, request.attempt, turn) % 2**31
            try:
                reply = self._ask(request, messages, left, number)
            except ContextOverflow:
                if not messages:  # not even the prompt fits: nothing of this is the model's
                    raise
                return "length"
            message = reply.message
            messages.append(message)
            usage.update(prompt_tokens=reply.prompt, completion_tokens=reply.written)
            if reply.cut:
                return "length"
            if not message.get("tool_calls"):
                return "answer"
            if turn == self.limits.max_tool_calling_iterations:
                return "calls"
            messages += [_executed(recorder, call) for call in message["tool_calls"]]
            first = reply.prompt if first is None else first
            left = self.limits.max_completion_length - max(0, reply.prompt + reply.written - first)
            if left <= 0:
                return "length"
        raise AssertionError("the last turn returns")

    def _ask(self, request: RolloutRequest, messages: Sequence[Message], left: int, seed: int) -> Reply:
        """The model's next message; where only the room for it was too large, that is cut to what the server has."""
        try:
            return self._asked(request, messages, left, seed)
        except ContextOverflow as error:
            if not 0 < error.room < left:
                raise
            return self._asked(request, messages, error.room, seed)

    def _asked(self, request: RolloutRequest, messages: Sequence[Message], left: int, seed: int) -> Reply:
        try:
            return self.server.ask(self._body(request, messages, left, seed), self._stopped)
        except EndpointError as error:
            # It took the prompt, and what it cannot take stands in what the model wrote since.
            plain = error.cause == "endpoint_status" and not isinstance(error, ContextOverflow)
            if messages and plain and error.status in _UNREADABLE:
                raise EndpointError("endpoint_repeatable", f"every time: {error}", status=error.status) from None
            raise

    def _body(self, request: RolloutRequest, messages: Sequence[Message], left: int, seed: int) -> dict[str, Any]:
        schemas = self._schemas[toolset(request.task)]
        return request_body(self._recipe, [*request.messages, *messages], schemas, left, seed)


def request_body(
    recipe: Recipe, messages: Sequence[Message], schemas: Sequence[dict[str, Any]], left: int, seed: int
) -> dict[str, Any]:
    """What a server is asked: the next message of a conversation, of at most `left` tokens."""
    assert recipe.model.endpoint is not None
    body = {
        "model": recipe.model.path,
        "messages": wire_messages(messages, [schema["function"]["name"] for schema in schemas]),
        "tools": list(schemas) or None,
        "temperature": recipe.rollout.temperature,
        "top_p": recipe.rollout.top_p,
        "max_tokens": left,
        "seed": seed,
        **recipe.model.endpoint.body,
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


def _executed(recorder: Recorder, call: Mapping[str, Any]) -> Message:
    """The tool message that answers a call. Its errors look like TRL's."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    try:
        if isinstance(arguments, str):
            recorder.refuse(name, f"the arguments are no JSON object: {arguments[:200]!r}")
        result = recorder.call(name, arguments)
    except ToolError as error:
        result = json.dumps({"error": str(error)})
    answers = {"tool_call_id": call["id"]} if "id" in call else {}
    return {"role": "tool", **answers, "name": name, "content": result}
