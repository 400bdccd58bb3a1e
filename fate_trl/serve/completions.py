"""One request to an OpenAI-compatible server: the client of served policies (endpoint.py) and of judges.

What the server does wrong (429, 5xx, silence, an error inside a 200) is tried again with growing pauses, and then is an
`EndpointError`, for the caller to record. A server that fails twice in the same way on one request, and answers another
one in between, will fail on it for ever: that ends the tries, with a cause of its own. The API key is read from the
environment, and blotted out of whatever the server says: no record and no message can hold it.

httpx2 and not the `openai` package: one POST is all that is needed, and what becomes of a broken reply must be decided
here, not by a client that repairs, retries and parses by rules of its own. huggingface_hub brings httpx2 anyway.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx2

from ..errors import RecipeError
from .replies import EndpointError, Reply, broken, of_status, read

_LONGEST_REPLY = 16 * 2**20  # bytes
_LONGEST_PAUSE = 60.0  # seconds, whatever Retry-After asks for
_SHORTEST_KEY = 8  # servers without keys get "EMPTY" or "x", and such words are not blotted out


class Server:
    """A server, and how patient one is with it. It may be asked from several threads at once.

    Args:
        url: What stands before /chat/completions.
        key_env: The environment variable with the API key; unset for a server without keys.
        seconds: Time for one reply, as a whole.
        retries: Of a request after 408, 409, 425, 429, 5xx, silence or a broken reply.
        backoff: Seconds before the first retry, doubled with each; the server's Retry-After goes before it.

    Raises:
        RecipeError: The API key cannot stand in a header.
    """

    def __init__(self, url: str, key_env: str, seconds: float, retries: int, backoff: float):
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._seconds, self._tries, self._backoff = seconds, retries + 1, backoff
        self._key = os.environ.get(key_env, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise RecipeError(f"the API key in {key_env} holds characters that no HTTP header may hold.")
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # How many ask at a time is for the callers to bound. A connection serves one request: uvicorn resets one after
        # a 500 without a word, and a tool may take longer than a server keeps it open.
        unlimited = httpx2.Limits(max_keepalive_connections=0)
        self._client = httpx2.Client(headers=headers, timeout=seconds, limits=unlimited)

    def ask(self, body: Mapping[str, Any], stopped: threading.Event) -> Reply:
        """The model's answer, after as many tries as are allowed; none is begun once `stopped` is set.

        Raises:
            EndpointError: There is none.
        """
        way = ""
        for number in range(1, self._tries + 1):
            try:
                return self._post(body)
            except EndpointError as error:
                if error.way and error.way == way and not stopped.is_set() and self._answers(body):
                    raise EndpointError("endpoint_repeatable", f"every time: {error}", status=error.status) from None
                if not error.again or number == self._tries:
                    raise
                way = error.way
                pause = self._backoff * 2 ** (number - 1) if error.after is None else error.after
                if stopped.wait(min(pause, _LONGEST_PAUSE)):
                    raise
        raise AssertionError("the last try returns or raises")

    def _answers(self, body: Mapping[str, Any]) -> bool:
        """Whether the server answers at all: the same request with a greeting in place of the conversation."""
        short = {key: 16 for key in ("max_tokens", "max_completion_tokens") if key in body}
        shaped = {key: value for key, value in body.items() if key not in ("tools", "tool_choice", "response_format")}
        try:
            self._post({**shaped, **short, "messages": [{"role": "user", "content": "Hello."}]})
        except EndpointError:
            return False
        return True

    def _post(self, body: Mapping[str, Any]) -> Reply:
        """One try. The time limit holds for the whole reply, so a server that trickles does not hang the run."""
        deadline, raw = time.monotonic() + self._seconds, bytearray()
        content = json.dumps(body).encode()  # our own JSON: ASCII, so that half a surrogate pair can be sent back
        try:
            with self._client.stream("POST", self._url, content=content) as response:
                for part in response.iter_bytes():
                    raw += part
                    if len(raw) > _LONGEST_REPLY:
                        raise EndpointError("endpoint_broken", "the reply is too long", again=False)
                    if time.monotonic() > deadline:
                        raise EndpointError("endpoint_timeout", f"no whole reply within {self._seconds:g} s")
        except httpx2.TimeoutException:
            raise EndpointError("endpoint_timeout", f"no reply within {self._seconds:g} s") from None
        except httpx2.RequestError as error:
            raise EndpointError("endpoint_broken", self._blotted(f"{type(error).__name__}: {error}")) from None
        text = self._blotted(raw.decode("utf-8", "replace"))
        status = response.status_code
        if status != 200:
            raise of_status(status, text, _seconds(response.headers.get("Retry-After", "")))
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            raise broken("the reply is no JSON: ", repr(text[:80])) from None
        return read(reply)

    def _blotted(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else text


def _seconds(text: str) -> float | None:
    """`Retry-After` in seconds; None where it is a date, or nothing."""
    return float(text) if text.isascii() and text.isdigit() else None
