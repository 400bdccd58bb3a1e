"""One request to an OpenAI-compatible server: the client of served policies (endpoint.py) and of judges.

What the server does wrong (429, 5xx, silence, a reply that is no JSON) is tried again with growing pauses, and then is
an `EndpointError`, for the caller to record. The API key is read from the environment, and blotted out of whatever the
server says: no record and no message can hold it.

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

from ..errors import FateError, RecipeError
from ..types import Cause, Message, text_of

_LONGEST_REPLY = 16 * 2**20  # bytes
_LONGEST_PAUSE = 60.0  # seconds, whatever Retry-After asks for
_TRY_AGAIN = {408, 409, 425, 429}  # and every 5xx
_SHORTEST_KEY = 8  # servers without keys get "EMPTY" or "x", and such words are not blotted out


class EndpointError(FateError):
    """The server failed, not the model: an infrastructure error of one record.

    Attributes:
        cause: Its kind.
        again: Whether another try may help.
        after: Seconds that the server asked to wait first; None where it asked for none.
        status: The HTTP status, where that was the trouble.
    """

    def __init__(
        self, cause: Cause, reason: str, again: bool = True, after: float | None = None, status: int | None = None
    ):
        super().__init__(reason)
        self.cause: Cause = cause
        self.again = again
        self.after = after
        self.status = status


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
        unlimited = httpx2.Limits()  # how many ask at a time is for the callers to bound
        self._client = httpx2.Client(headers=headers, timeout=seconds, limits=unlimited)

    def ask(self, body: Mapping[str, Any], stopped: threading.Event) -> dict[str, Any]:
        """The server's reply, after as many tries as are allowed; none is begun once `stopped` is set.

        Raises:
            EndpointError: There is none.
        """
        for number in range(1, self._tries + 1):
            try:
                return self._post(body)
            except EndpointError as error:
                if not error.again or number == self._tries:
                    raise
                pause = self._backoff * 2 ** (number - 1) if error.after is None else error.after
                if stopped.wait(min(pause, _LONGEST_PAUSE)):
                    raise
        raise AssertionError("the last try returns or raises")

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
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
            again, after = status in _TRY_AGAIN or status >= 500, _seconds(response.headers.get("Retry-After", ""))
            raise EndpointError("endpoint_status", f"HTTP {status}: {text[:200].strip()}", again, after, status)
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            raise EndpointError("endpoint_broken", f"the reply is no JSON: {text[:80]!r}") from None
        if not isinstance(reply, dict):
            raise EndpointError("endpoint_broken", f"the reply is no JSON object: {text[:80]!r}")
        return reply

    def _blotted(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else text


def _seconds(text: str) -> float | None:
    """`Retry-After` in seconds; None where it is a date, or nothing."""
    return float(text) if text.isascii() and text.isdigit() else None


# ------------------------------------------------------------------------------------------------ reading replies


def message_of(reply: Mapping[str, Any]) -> tuple[Message, bool]:
    """(the assistant's message, whether a token limit cut it). Arguments that are no JSON object stay a text.

    Raises:
        EndpointError: The reply is not of the shape of a chat completion.
    """
    try:
        choice = reply["choices"][0]
        given = choice["message"]
        message: Message = {"role": "assistant", "content": text_of(given)}
        calls = [_call(call["function"]) for call in given.get("tool_calls") or ()]
        if calls:
            message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        return message, choice.get("finish_reason") == "length"
    except (TypeError, KeyError, IndexError, AttributeError):
        raise EndpointError("endpoint_broken", f"the reply is no chat completion: {json.dumps(reply)[:80]}") from None


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    name, arguments = function["name"], function.get("arguments") or {}
    if not isinstance(name, str):
        raise TypeError
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {"name": name, "arguments": arguments if isinstance(arguments, dict) else str(arguments)}


def counts(reply: Mapping[str, Any]) -> tuple[int, int]:
    """(prompt, completion) tokens by the server's count, 0 where it gives none."""
    usage = reply.get("usage")
    counts = [usage.get(key) if isinstance(usage, dict) else 0 for key in ("prompt_tokens", "completion_tokens")]
    prompt, written = (count if isinstance(count, int) and count >= 0 else 0 for count in counts)
    return prompt, written
