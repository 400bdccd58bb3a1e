"""Any policy, one turn at a time: what another benchmark's runner needs of it, and all that it needs.

The runner holds the conversation and executes the calls. It hands over the messages and the tools, and gets the next
message of the assistant.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..ledger.layout import split_policy
from ..messages import Message
from ..recipe.schema import Recipe
from ..record import stable_hash
from .completions import Server
from .endpoint import request_body, tool_schema
from .replies import ContextOverflow, Reply
from .target import recipe_of


class Speaker(Protocol):
    """Says what the assistant says next."""

    def __call__(self, messages: Sequence[Message], tools: Sequence[Callable[..., Any]]) -> Message:
        """The next message. `messages` are the conversation so far; `tools` are functions, as suites make them."""
        ...


class ServedSpeaker:
    """The next message of a served model. Conversations come one after the other, each from its beginning on.

    Args:
        recipe: Its `model` and `rollout`.
        seed: Sent with each request, mixed with the conversation.

    Raises:
        RecipeError: The API key cannot stand in a header.
    """

    def __init__(self, recipe: Recipe, seed: int = 0):
        assert recipe.model.endpoint is not None
        known = recipe.model.endpoint
        self._recipe, self._seed, self._first = recipe, seed, 0
        self._left = recipe.rollout.max_completion_length
        self._server = Server(known.url, known.key_env, known.seconds, known.retries, known.backoff)

    def __call__(self, messages: Sequence[Message], tools: Sequence[Callable[..., Any]]) -> Message:
        """The assistant's next message; a reply that was cut, or that there is no room for, calls nothing.

        Raises:
            EndpointError: The server gives none.
        """
        begins = not any(message["role"] == "assistant" for message in messages)
        if begins:
            self._left, self._first = self._recipe.rollout.max_completion_length, 0
        if self._left <= 0:
            return {"role": "assistant", "content": ""}
        try:
            reply = self._ask(messages, tools)
        except ContextOverflow:
            if begins:  # not even the prompt fits: nothing of this is the model's
                raise
            return {"role": "assistant", "content": ""}
        self._first = self._first or reply.prompt
        used = max(0, reply.prompt + reply.written - self._first)
        self._left = self._recipe.rollout.max_completion_length - used
        message = dict(reply.message)
        if reply.cut:
            message.pop("tool_calls", None)
        return message

    def _ask(self, messages: Sequence[Message], tools: Sequence[Callable[..., Any]]) -> Reply:
        seed = stable_hash(self._seed, list(messages)) % 2**31
        schemas = [tool_schema(tool) for tool in tools]
        body = request_body(self._recipe, messages, schemas, self._left, seed)
        try:
            return self._server.ask(body, threading.Event())
        except ContextOverflow as error:
            if not 0 < error.room < self._left:
                raise
            return self._server.ask({**body, "max_tokens": error.room}, threading.Event())


def speaker_of(
    target: str, *, model: str = "", base: str = "", sets: Sequence[str] = (), seed: int = 0
) -> tuple[Speaker, str]:
    """(what speaks for a policy, a name for it).

    Args:
        target: `RUN` for the policy that it hands over, `RUN@round-2` for another (round 0 is before training); a
            model's folder or hub id, an adapter's folder; or the URL of an OpenAI-compatible endpoint.
        model: The name of an endpoint's model.
        base: The model under an adapter; by default as the adapter says itself.
        sets: "key=value" for the recipe's `model` and `rollout`, as in `rollout.temperature=0`.
        seed: Of sampling.

    Raises:
        RecipeError: There is no such target, or it cannot be loaded.
    """
    recipe = recipe_of(target, model, base, sets)
    if recipe.model.endpoint is not None:
        return ServedSpeaker(recipe, seed), recipe.model.path
    from ..train.speaker import LocalSpeaker  # torch

    path, policy = split_policy(target)
    return LocalSpeaker(recipe, seed), Path(path).name + (f"@{policy}" if policy else "")
