"""How calls that are plain JSON are read back, as a response template of transformers: `model.tool_parser: json`.

Read are objects with `name` and `arguments` (or `parameters`, as Llama 3 writes), in either order, bare or in a code
fence, in a list or one after the other, also inside OpenAI's `{"type": "function", "function": …}` or Hermes's tags.
What stands around them is kept as the message's text. Its patterns are of the `regex` package, which transformers
uses: they match an object as a whole, so a brace in a text ends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_OBJECT = r'(?P<object>\{(?:[^{}"]++|"(?:[^"\\]|\\.)*+"|(?&object))*+\})'
_AHEAD = _OBJECT.replace("object", "ahead")  # a name of its own: others join the patterns
_NAME = r'"name"\s*:\s*"(?P<name>[^"\\]+)"'
_CLOSE = (
    rf'{_OBJECT}\K\s*(?:,\s*"name"\s*:\s*"[^"\\]+"\s*)?\}}\s*(?:\}}\s*)?(?:[,;]\s*|\]\s*)?'
    r"(?:</tool_call>\s*)?(?:```\s*)?"
)
"""All of a call behind its arguments: `\\K` puts the match behind the object that they are."""

_HEADER = (
    r"<\|im_start\|>assistant\n|<\|start_header_id\|>assistant<\|end_header_id\|>\s*|<start_of_turn>model\n"
    r"|<\|assistant\|>\n?|\[/INST\]"
)
_END = r"(?:<\|(?:im_end|eot_id|eom_id|end|eot|endoftext|end_of_text)\|>|<end_of_turn>|</s>)\s*"


def _open(keys: Sequence[str]) -> str:
    """All of a call before its arguments; that a whole object follows is looked up, not read."""
    arguments = rf'"(?:{"|".join(keys)})"\s*:\s*'
    return (
        r"(?:```[a-z_]*\s*)?(?:<tool_call>\s*|<\|python_tag\|>\s*)?(?:\[\s*)?"
        r'(?:\{\s*"type"\s*:\s*"function"\s*,\s*"function"\s*:\s*)?\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?'
        rf"(?:{_NAME}\s*,\s*{arguments}|{arguments}(?=(?&ahead)\s*,\s*{_NAME}))(?={_AHEAD}\s*[,}}])"
    )


def response_template(keys: Sequence[str] = ("arguments", "parameters")) -> dict[str, Any]:
    """The template, for any family's turns. transformers 5.13 keeps only the last of several texts.

    Args:
        keys: Under which the arguments may stand.
    """
    from transformers.utils.chat_parsing.response_templates import ResponseTemplateField

    joins = "join" in ResponseTemplateField.__dataclass_fields__
    call = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
    return {
        "defaults": {"role": "assistant"},
        "start_anchor_pattern": _HEADER,
        "fields": {
            "reasoning_content": {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
            "tool_calls": {
                "open_pattern": _open(keys),
                "close_pattern": _CLOSE,
                "repeats": True,
                "content": "json",
                "transform": call,
            },
            "content": {"close_pattern": _END, "content": "text", **({"repeats": True, "join": "\n"} if joins else {})},
        },
    }
