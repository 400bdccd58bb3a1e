"""What a server's reply is: the model's answer, or a failure of some kind. Nothing else is ever taken for an answer.

Servers differ in where they put what went wrong: in the status, in an error object inside a 200, in a reason to finish.
So each kind is recognised in all of these places. What the model itself wrote, however broken, is an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FateError
from ..messages import Message
from ..types import Cause

TRY_AGAIN = {408, 409, 425, 429}  # and every 5xx

REASONING = ("reasoning_content", "reasoning", "reasoning_details")
"""Keys under which servers hand out a model's thoughts. They go back under the key that they came by."""


class EndpointError(FateError):
    """There is no answer of the model: an infrastructure error of one record.

    Attributes:
        cause: Its kind.
        again: Whether another try may help.
        after: Seconds that the server asked to wait first; None where it asked for none.
        status: The HTTP status, where that was the trouble.
        way: In which way it failed, to be compared with another try; "" where that says nothing about the request.
    """

    def __init__(
        self,
        cause: Cause,
        reason: str,
        again: bool = True,
        after: float | None = None,
        status: int | None = None,
        way: str = "",
    ):
        super().__init__(reason)
        self.cause: Cause = cause
        self.again, self.after, self.status, self.way = again, after, status, way


class ContextOverflow(EndpointError):
    """The conversation does not fit into the model's context.

    Attributes:
        room: Tokens that are left for a reply by the server's own figures; 0 where it gives none, or nothing is left.
    """

    def __init__(self, reason: str, room: int, status: int | None):
        super().__init__("endpoint_status", reason, again=False, status=status)
        self.room = room


@dataclass(frozen=True)
class Reply:
    """A model's answer.

    Attributes:
        message: The assistant's message. Calls have the ids that the server gave; arguments that are no JSON object
            stay a text; thoughts stand under the server's own key, one of `REASONING`.
        cut: Whether a token limit cut it.
        prompt, written: Tokens by the server's count, 0 where it gives none.
    """

    message: Message
    cut: bool
    prompt: int
    written: int


# ------------------------------------------------------------------------------------------------ failures

_FILTERS = {
    "blocklist",
    "content_filter",
    "content_filter_error",
    "content_filtered",
    "content_policy_violation",
    "contentfilter",
    "data_inspection_failed",
    "datainspectionfailed",
    "guardrail_intervened",
    "invalid_prompt",
    "moderation_blocked",
    "prohibited_content",
    "recitation",
    "refusal",
    "responsibleaipolicyviolation",
    "safety",
    "sensitive",
    "spii",
}
"""Error codes and reasons to finish by which providers say that a filter of theirs stepped in, in lower case."""

_FILTERED = re.compile(
    r"content (?:management|filter\w*|usage) polic|flagged as potentially violating|\bcontent filter\b"
    r"|content exists risk|blocked by (?:our |the )?(?:content|safety|moderation)",
    re.IGNORECASE,
)

_OVERFLOWS = {"context_length_exceeded", "exceed_context_size_error", "context_window_exceeded"}

_OVERFLOW = re.compile(
    r"context[ _]length|context (?:size|window|limit)|maximum (?:model|prompt|sequence|input) length"
    r"|max_new_tokens\W{0,3} must be|must have less than \d+ tokens|\b(?:prompt|input)(?: is)? too (?:long|large)"
    r"|too many tokens|token count \S* ?exceeds|exceeds? the maximum (?:number of tokens|allowed length)"
    r"|input tokens exceed|reduce the length of the (?:messages|prompt|input)|maximum number of tokens",
    re.IGNORECASE,
)

_ROOM = (
    re.compile(r"context length is (?P<limit>\d+) tokens.{0,80}?\((?P<prompt>\d+) in the (?:messages|prompt|input)"),
    re.compile(r"context length is (?P<limit>\d+) tokens and your request has (?P<prompt>\d+) input tokens"),
    re.compile(r"context length of (?P<limit>\d+) tokens.{0,80}?: (?P<prompt>\d+) tokens from the input"),
    re.compile(r"must be <= (?P<limit>\d+)\. Given: (?P<prompt>\d+) \W?inputs\W? tokens"),
    re.compile(r"exceed context limit: (?P<prompt>\d+) \+ \d+ > (?P<limit>\d+)"),
)
"""Sentences of vLLM (old and new), SGLang, TGI and Anthropic that say how much room there is."""

_VARIES = re.compile(r"[0-9a-f]{8}[0-9a-f-]*|\d+", re.IGNORECASE)


def of_status(status: int, text: str, after: float | None) -> EndpointError:
    """The failure that a status other than 200 is."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = text
    reason = f"HTTP {status}: {text[:200].strip()}"
    known = _known(body, reason, status)
    if known is not None:
        return known
    again = status in TRY_AGAIN or status >= 500
    way = f"{status} {_VARIES.sub('#', text[:500])}" if status == 500 else ""
    return EndpointError("endpoint_status", reason, again, after, status, way)


def broken(reason: str, detail: str = "") -> EndpointError:
    """A reply that is none."""
    return EndpointError("endpoint_broken", reason + detail, way=reason)


def _known(body: Any, reason: str, status: int | None) -> EndpointError | None:
    """A filter or an overflow, where the body of an error says so."""
    if status == 429:  # "request too large: tokens per minute" is no overflow
        return None
    said = list(_said(body))
    words = {word.lower() for word in said}
    if words & _FILTERS or any(_FILTERED.search(word) for word in said) or _flagged(body):
        return EndpointError("endpoint_filtered", f"a filter of the provider: {reason}", again=False, status=status)
    if words & _OVERFLOWS or any(_OVERFLOW.search(word) for word in said):
        return ContextOverflow(reason, max(map(_room, said), default=0), status)
    return None


def _said(body: Any, depth: int = 0) -> Iterator[str]:
    """Codes, types and messages of an error, wherever they are nested; no other text, which may quote the request."""
    if isinstance(body, str) and depth == 0:
        yield body[:500]
    if not isinstance(body, Mapping) or depth > 5:
        return
    for key in ("code", "type", "error_type", "message", "error", "detail", "object", "status"):
        if isinstance(body.get(key), str):
            yield body[key][:500]
    for key in ("error", "innererror", "inner_error", "detail"):
        yield from _said(body.get(key), depth + 1)


def _flagged(body: Any) -> bool:
    """Whether it is a moderation's refusal in OpenRouter's form."""
    error = body.get("error") if isinstance(body, Mapping) else None
    metadata = error.get("metadata") if isinstance(error, Mapping) else None
    return isinstance(metadata, Mapping) and "flagged_input" in metadata


def _room(text: str) -> int:
    found = next((match for pattern in _ROOM if (match := pattern.search(text))), None)
    return max(0, int(found["limit"]) - int(found["prompt"])) if found else 0


# ------------------------------------------------------------------------------------------------ answers

_ENDED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence", "tool_calls", "tool_call", "tool_use", "complete"}
_ENDED |= {"function_call", "malformed_function_call", "function_call_filter: malformed_function_call"}
_CUT = {"length", "max_tokens", "max_length", "model_length", "model_context_window_exceeded"}


def read(reply: Any) -> Reply:
    """The model's answer out of a reply of status 200, as JSON values.

    Raises:
        EndpointError: It holds none: an error instead, an empty list of choices, a filter's word, an unknown reason
            to finish, or another shape than that of a chat completion.
    """
    if not isinstance(reply, Mapping):
        raise broken("the reply is no JSON object: ", repr(reply)[:80])
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    for holder in (reply, choice):
        if isinstance(holder, Mapping) and holder.get("error"):
            raise _inside(holder["error"])
    if not isinstance(choice, Mapping):
        raise _inside(reply) if "choices" not in reply else broken("the reply has no choices: ", _start(reply))
    finish = _finish(choice)
    try:
        message = _message(choice["message"])
    except (TypeError, KeyError, AttributeError):
        raise broken("the reply is no chat completion: ", _start(reply)) from None
    if not finish and not any(message.get(key) for key in ("content", "tool_calls", *REASONING)):
        raise broken("the reply is no chat completion: ", _start(reply))
    return Reply(message, finish in _CUT, *_counts(reply))


def _start(reply: Any) -> str:
    return json.dumps(reply)[:80]


def _inside(error: Any) -> EndpointError:
    """The failure that an error inside a 200 is."""
    reason = "an error inside a reply of status 200: "
    body = {"error": error} if not (isinstance(error, Mapping) and "error" in error) else error
    code = error.get("code") if isinstance(error, Mapping) else None
    known = _known(body, reason + _start(error), 429 if str(code) == "429" else None)
    if known is not None:
        return known
    if isinstance(error, Mapping) and not any(key in error for key in ("code", "message", "type", "error")):
        return broken("the reply is no chat completion: ", _start(error))
    passing = str(code).isdigit() and int(code or 0) != 500
    return EndpointError("endpoint_broken", reason + _start(error), way="" if passing else reason)


def _finish(choice: Mapping[str, Any]) -> str:
    """Why the model ended, in lower case, "" where the server does not say.

    Raises:
        EndpointError: It was not the model that ended.
    """
    finish = choice.get("finish_reason")
    if finish is None:
        finish = ""
    if not isinstance(finish, str):
        raise broken("the reply is no chat completion: ", f"finish_reason {finish!r}"[:80])
    word = finish.lower()
    results = choice.get("content_filter_results")
    filtered = isinstance(results, Mapping) and any(
        isinstance(result, Mapping) and bool(result.get("filtered")) for result in results.values()
    )
    if filtered or word in _FILTERS or word.startswith("content_filter"):
        reason = f"a filter of the provider: finish_reason {finish!r}"
        raise EndpointError("endpoint_filtered", reason, again=False)
    if word and word not in _ENDED | _CUT:
        raise broken("the model did not finish: ", f"finish_reason {finish[:80]!r}")
    return word


def _message(given: Any) -> Message:
    """Raises TypeError, KeyError or AttributeError where it is no message of an assistant."""
    if not isinstance(given, Mapping) or given.get("role", "assistant") not in ("assistant", "model", None):
        raise TypeError
    texts, thoughts = _parts(given.get("content"))
    refusal = given.get("refusal") or ""
    if not isinstance(refusal, str):
        raise TypeError
    message: Message = {"role": "assistant", "content": "\n".join(filter(None, (texts, refusal)))}
    for key in REASONING:
        value = given.get(key)
        if value and isinstance(value, list if key == "reasoning_details" else str):
            message[key] = value
    if thoughts:
        message["reasoning_content"] = message.get("reasoning_content", "") + thoughts
    calls = given.get("tool_calls") or ([{"function": given["function_call"]}] if given.get("function_call") else [])
    if not isinstance(calls, list):
        raise TypeError
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    return message


def _parts(content: Any) -> tuple[str, str]:
    """(text, thoughts) of a message's content: a text, or blocks."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise TypeError
    texts, thoughts = "", ""
    for block in content:
        kind = block.get("type", "text")
        if kind in ("text", "output_text"):
            texts += _text(block["text"])
        elif kind == "refusal":
            texts += _text(block["refusal"])
        elif kind in ("thinking", "reasoning"):
            inner = block.get(kind, block.get("text"))
            thoughts += inner if isinstance(inner, str) else _parts(inner)[0]
        else:
            raise TypeError
    return texts, thoughts


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call; arguments that are no JSON object stay a text, and those of a call without any are {}."""
    function, given = call["function"], call["function"].get("arguments")
    arguments: dict[str, Any] | str = given if isinstance(given, dict) else {}
    if isinstance(given, str) and given.strip() not in ("", "null", "None"):
        try:
            parsed = json.loads(given)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else given
    elif given is not None and not isinstance(given, (dict, str)):
        arguments = json.dumps(given)
    made: dict[str, Any] = {"type": "function", "function": {"name": _text(function["name"]), "arguments": arguments}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) and call["id"] else made


def _counts(reply: Mapping[str, Any]) -> tuple[int, int]:
    usage = reply.get("usage")
    counts = [usage.get(key) if isinstance(usage, Mapping) else 0 for key in ("prompt_tokens", "completion_tokens")]
    prompt, written = (count if type(count) is int and count >= 0 else 0 for count in counts)
    return prompt, written
