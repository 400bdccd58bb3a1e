"""One turn of a local policy at a time, for a conversation that somebody else conducts.

A rollout of ours runs the tools itself. A benchmark's own runner does that too, and only asks what the policy says
next. The messages are rendered, the calls read and the words around them kept as in rollouts, so a policy says there
what it says here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from transformers import set_seed
from trl.chat_template_utils import parse_response

from ..messages import Message
from ..recipe.schema import Recipe
from ..record import stable_hash
from . import templates
from .examples import Unrenderable, renderable
from .models import load_model
from .tools import Schemas
from .words import words_of


class LocalSpeaker:
    """A model, its adapter merged or beside it, that is asked for the next message of a conversation.

    Args:
        recipe: Its `model` and `rollout`.
        seed: Of sampling; the same conversation gets the same reply.

    Raises:
        RecipeError: The model cannot be loaded, or its chat template renders no calls.
    """

    def __init__(self, recipe: Recipe, seed: int = 0):
        if isinstance(recipe.model.threads, int):
            torch.set_num_threads(recipe.model.threads)
        self.limits, self._seed = recipe.rollout, seed
        self.model, self.tokenizer = load_model(recipe.model)
        self.model.to("cuda" if torch.cuda.is_available() and not recipe.model.load_in_4bit else self.model.device)
        self.model.eval()
        self._schemas, self._words = Schemas(), words_of(self.tokenizer)
        self._template: Mapping[str, Any] = self.limits.trl.get("chat_template_kwargs") or {}

    def __call__(self, messages: Sequence[Message], tools: Sequence[Callable[..., Any]]) -> Message:
        """The assistant's next message.

        `max_completion_length` bounds what follows the prompt, results of tools included; where it leaves no room, the
        message is empty.

        Args:
            messages: The conversation up to here, prompt included.
            tools: Functions with annotations and Google-style docstrings, as suites make them.
        """
        schemas = self._schemas(tools)
        messages = [_worded(message) for message in messages]
        asked = self._ids(messages, schemas)
        prompt = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
        begun = asked if prompt == len(messages) else self._ids(messages[:prompt], schemas)
        left = self.limits.max_completion_length - (len(asked) - len(begun))
        if left <= 0:
            return {"role": "assistant", "content": ""}
        ids = self._generated(asked, left)
        message = dict(parse_response(self.tokenizer, ids, prefix=asked, tools=schemas))
        if message.get("tool_calls") and self._words is not None:
            message["content"] = self._words(ids)
        return {**message, "role": "assistant", "content": message.get("content") or ""}

    def _ids(self, messages: Sequence[Message], schemas: Sequence[Any]) -> list[int]:
        with suppress(Unrenderable):  # then the template says itself what it cannot do
            messages = renderable(messages, self.tokenizer, schemas, **self._template)
        return templates.render(self.tokenizer, messages, schemas, add_generation_prompt=True, **self._template)

    def _generated(self, prompt: list[int], left: int) -> list[int]:
        set_seed(stable_hash(self._seed, prompt) % 2**32)
        sampled = self.limits.temperature > 0
        sampling = {"temperature": self.limits.temperature, "top_p": self.limits.top_p, "top_k": 0} if sampled else {}
        given = torch.tensor([prompt], device=self.model.device)
        with torch.inference_mode():
            made = self.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=left,
                do_sample=sampled,
                pad_token_id=self.tokenizer.pad_token_id,
                **sampling,
            )
        return list(made[0, len(prompt) :].tolist())


def _worded(message: Message) -> Message:
    """A tool's message as TRL's loop writes it: an error, `{"error": "..."}`, stands there as Python writes a dict."""
    content = message.get("content")
    if message["role"] != "tool" or not isinstance(content, str) or not content.startswith('{"error": '):
        return message
    try:
        return {**message, "content": str(json.loads(content))}
    except ValueError:
        return message
