"""Chat templates: what TRL's tool loop needs of one, and how a tokenizer gets it.

The loop renders a tool conversation, reads the calls back out of sampled tokens, and appends a tool's result to what
was sampled. So a template must render tools and calls, its tool calls must be readable, and what it rendered before
must not change by what follows. TRL knows templates by their exact text and refuses every other; a recipe names a
parser (`model.tool_parser`) or another template (`model.chat_template`) for those.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RecipeError
from ..messages import Message
from ..recipe.schema import Model, ToolParser
from ..recipe.trl_keys import TEMPLATES, template_text
from . import json_calls

PARSERS: tuple[str, ...] = typing.get_args(ToolParser)

CALL: Message = {"type": "function", "function": {"name": "look_up", "arguments": {"name": "Ada"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look somebody up.",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string", "description": "Who."}},
            "required": ["name"],
        },
    },
}


def response_template(parser: str) -> dict[str, Any]:
    """The response template of a parser, as transformers' `parse_response` takes it.

    TRL's of that family, but for `json` and `llama3`: of several calls in one turn TRL's Llama 3 parser reads none.
    """
    from trl import chat_template_utils

    if parser == "json":
        return json_calls.response_template()
    if parser == "llama3":
        return json_calls.response_template(("parameters",))
    return dict(getattr(chat_template_utils, f"{'qwen3' if parser == 'hermes' else parser}_template"))


def prepare(tokenizer: Any, model: Model) -> Any:
    """Give a tokenizer what the recipe says and the tool loop needs; all stages then render and read alike.

    Where TRL trains on another version of a template than the tokenizer's, since that one is not prefix-preserving,
    the tokenizer gets it too: rows for SFT are rendered as rollouts are.

    Raises:
        RecipeError: Its template cannot do, with what can be done.
    """
    from trl import chat_template_utils
    from trl.chat_template_utils import (
        add_response_schema,
        get_training_chat_template,
        is_chat_template_prefix_preserving,
        supports_tool_calling,
    )

    if model.chat_template is not None:
        tokenizer.chat_template = template_text(model.chat_template)
        tokenizer.response_template = None
    if not supports_tool_calling(tokenizer):
        raise RecipeError(
            f"model.path: the chat template of {model.path} does not render tool calls; use another model, or a "
            "template that does, by model.chat_template: TRL ships several, such as qwen3."
        )
    ours = model.chat_template is not None and (TEMPLATES / f"{model.chat_template}.jinja").is_file()
    if model.tool_parser is not None or ours:
        tokenizer.response_template = response_template(model.tool_parser or "json")
    elif getattr(tokenizer, "response_template", None) is None and getattr(tokenizer, "response_schema", None) is None:
        try:
            add_response_schema(tokenizer)
        except ValueError:
            raise RecipeError(_unknown(tokenizer, model)) from None
        if tokenizer.response_template == chat_template_utils.llama3_template:
            tokenizer.response_template = response_template("llama3")
    if not is_chat_template_prefix_preserving(tokenizer):
        try:
            tokenizer.chat_template = get_training_chat_template(tokenizer)
        except ValueError:
            raise RecipeError(
                f"model.path: the chat template of {model.path} is not prefix-preserving: what it rendered changes by "
                "what follows, and TRL has no version of it for training. Set model.chat_template to one that TRL "
                "ships (qwen3 for a fork of Qwen3's), or to a corrected file."
            ) from None
    return tokenizer


def _unknown(tokenizer: Any, model: Model) -> str:
    from trl.chat_template_utils import is_chat_template_prefix_preserving

    fitting = parsers_of(tokenizer)
    if not fitting:
        advice = f"None of the parsers ({', '.join(PARSERS)}) reads its calls back; "
    elif not is_chat_template_prefix_preserving(tokenizer):
        advice = f"The parser {fitting[0]} would read them, but the template is not prefix-preserving; "
    else:
        return f"{_NOT_RECOGNISED.format(model.path)} Set model.tool_parser: {fitting[0]}, which reads them back."
    advice += "set model.chat_template to a template that TRL ships, such as qwen3, or use another model."
    return f"{_NOT_RECOGNISED.format(model.path)} {advice}"


_NOT_RECOGNISED = "model.path: TRL does not recognise the chat template of {}, so tool calls cannot be read."


def parsers_of(tokenizer: Any) -> list[str]:
    """Names of the parsers that read back a call as this tokenizer's template renders it."""
    before = getattr(tokenizer, "response_template", None)
    found = []
    for name in PARSERS:
        tokenizer.response_template = response_template(name)
        try:
            if read_back(tokenizer, [{"role": "user", "content": "Who is Ada?"}], CALL["function"], [TOOL]) is None:
                found.append(name)
        except Exception:  # a template of a third party may raise anything; then the parser does not fit
            continue
        finally:
            tokenizer.response_template = before
    return found


def written(
    tokenizer: Any,
    messages: Sequence[Message],
    call: Mapping[str, Any],
    tools: Sequence[Any],
    **kwargs: Any,
) -> tuple[list[int], list[int]]:
    """(prompt, the tokens of an assistant's message with one call), as the template renders them.

    Where the generation prompt opens a thought that the rendered message does not have, the prompt ends before it.
    """
    said: Message = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": dict(call)}]}
    prompt = render(tokenizer, messages, tools, add_generation_prompt=True, **kwargs)
    whole = render(tokenizer, [*messages, said], tools, **kwargs)
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole))
    )
    return whole[:same], whole[same:]


def read_back(
    tokenizer: Any, messages: Sequence[Message], call: Mapping[str, Any], tools: Sequence[Any], **kwargs: Any
) -> str | None:
    """None if a rendered call parses back to itself, as TRL parses it; else what came back instead."""
    from trl.chat_template_utils import parse_response

    prompt, ids = written(tokenizer, messages, call, tools, **kwargs)
    parsed = parse_response(tokenizer, ids, prefix=prompt, tools=list(tools))
    calls = [made.get("function", made) for made in parsed.get("tool_calls") or ()]
    if [(made["name"], made["arguments"]) for made in calls] == [(call["name"], call["arguments"])]:
        return None
    return f"{calls}" if calls else f"no call, but the text {tokenizer.decode(ids)!r}"


def render(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any], **kwargs: Any) -> list[int]:
    """Token ids of a conversation."""
    return list(
        tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, tokenize=True, return_dict=False, **kwargs
        )
    )


def missing(tokenizer: Any, tools: Sequence[Any] = (TOOL,), **kwargs: Any) -> list[str]:
    """What a recorded conversation may hold and this template cannot render: "several calls" in one message (it raises,
    or leaves the second out), "text arguments" of a call that was malformed."""
    out = []
    names = ("first_one", "second_one")
    shown = _shown(tokenizer, [{"name": name, "arguments": {"name": name}} for name in names], tools, **kwargs)
    if shown is None or any(name not in shown for name in names):
        out.append("several calls")
    if _shown(tokenizer, [{"name": "first_one", "arguments": "Ada"}], tools, **kwargs) is None:
        out.append("text arguments")
    return out


REPLACED = {
    "several calls": "several calls in one message (rows learned from messages get one call per message)",
    "text arguments": "arguments that are no object (rows learned from messages get {})",
}
"""What `missing` finds, and what `examples.tokens_of` does about it."""


def _shown(tokenizer: Any, calls: Sequence[Mapping[str, Any]], tools: Sequence[Any], **kwargs: Any) -> str | None:
    """A conversation with these calls in one message as text; None where the template raises."""
    said: list[Message] = [{"role": "user", "content": "Who is Ada?"}]
    said.append(
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": c} for c in calls]}
    )
    try:
        text: str = tokenizer.apply_chat_template(said, tools=list(tools), tokenize=False, **kwargs)
    except Exception:  # a template of a third party may raise anything
        return None
    return text


def thinking(tokenizer: Any, **kwargs: Any) -> tuple[str, bool]:
    """(how the generation prompt treats thinking, whether the template offers to switch it off).

    The first is "opened" (a thought is begun for the model), "closed" (an empty thought is written for it), "free"
    (the template knows thoughts, the model decides) or "none".
    """
    messages = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **kwargs)
    without = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    added = prompt[len(without) :] if prompt.startswith(without) else prompt[-200:]
    template = str(tokenizer.chat_template)
    known = "think" in template or "reasoning" in template or "analysis" in template
    if "<think>" in added:
        state = "closed" if "</think>" in added else "opened"
    else:
        state = "free" if known else "none"
    return state, "enable_thinking" in template
