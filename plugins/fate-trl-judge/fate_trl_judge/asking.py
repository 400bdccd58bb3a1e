"""One question to a served model, for components that need an answer and can do without one."""

from __future__ import annotations

import threading
from typing import Any

from fate_trl import Server, answer_of, check_url

from .verdict import NoVerdict


class Asking:
    """A served model at temperature 0; see `Judge` for the arguments."""

    def __init__(self, who: str, url: str, model: str, max_tokens: int, seconds: float, retries: int, key_env: str):
        check_url(f"{who}: url", url, key_env)
        self._server = Server(url, key_env, seconds, retries, backoff=1.0)
        self._body: dict[str, Any] = {"model": model, "temperature": 0.0, "max_tokens": max_tokens, "seed": 0}

    def __call__(self, instructions: str, question: str) -> str:
        """What it says. Raises EndpointError, and NoVerdict if the answer is cut off."""
        messages = [{"role": "system", "content": instructions}, {"role": "user", "content": question}]
        reply = self._server.ask({"messages": messages, **self._body}, threading.Event())
        if reply.cut:
            raise NoVerdict("the answer was cut off at the limit on tokens")
        return answer_of(reply.message)
