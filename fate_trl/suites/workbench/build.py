"""Rebuild an embedded policy: `python -m fate_trl.suites.workbench.build [WORLD] [--out FOLDER]`.

It takes four minutes on one core. `--width 384` makes one of 3 million parameters from the same traces, in ten.

A Llama of 0.36 million parameters, a vocabulary of whole words taken from the traces that it learns from, and a chat
template of its own. Everything is derived from one seed; torch is imported when training starts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...errors import FateError
from ...messages import Message
from ...types import Trajectory
from . import POLICIES
from .traces import WORKBENCH, World, rare, traces
from .tradeoff_traces import Tradeoffs
from .world import AMOUNTS, ATTACKS, DANGERS, FILES, NAMES, ODDITIES, SUMS, TOPICS

log = logging.getLogger(__name__)

WORLDS: dict[str, World] = {"workbench": WORKBENCH, "tradeoffs": Tradeoffs()}

SEED = 0
TRACES = 12_000
STEPS = {"workbench": 1_500, "tradeoffs": 1_000}
BATCH = 32
WIDTH, HEAD = 128, 32
RATE = 4e-3
"""At `WIDTH`; in inverse proportion to it elsewhere."""
CONTEXT = 512
OTHERS = 0.5
"""Weight of the loss on what the policy does not write itself: transcripts in repair prompts teach copying fastest."""

WORD = r"</?tool_call>|<arg>|<\|\w+\|>|\w+(?:\.\w+)*"
"""What a token is: a mark of the template, or a word. Punctuation is dropped, so that quoted JSON stays short."""
MARKS = ("<|pad|>", "<|unk|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CALL_MARKS = ("<tool_call>", "</tool_call>", "<arg>")
"""Not special tokens: a broken call must stay visible in the decoded text, or nobody can tell it is one."""

TEMPLATE = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|> ' }}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{%- if message.content %}{{ message.content + ' ' }}{% endif -%}
{%- for made in message.tool_calls or [] -%}
{%- set made = made.function or made -%}
{{ '<tool_call> ' + made.name + ' ' }}
{%- for key, value in (made.arguments or {}).items() -%}
{{ '<arg> ' + key + ' ' }}{{ value if value is string else value | tojson }}{{ ' ' }}
{%- endfor -%}
{{ '</tool_call> ' }}
{%- endfor -%}
{{ '<|end|>' }}
{%- endgeneration -%}
{{ ' ' }}
{%- else -%}
{{ message.content }}{{ ' <|end|> ' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif -%}
"""
"""Renders calls and results; the tools on offer are not rendered, the policy knows its few by heart.

A generation block must end on a token, not on a space: transformers finds the block's last token by that character.
"""

RESPONSE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "content": {"close_pattern": r"<\|end\|>\s*", "content": "text"},
        "tool_calls": {
            "open_pattern": r"<tool_call>\s*(?P<name>[^\s<]+)",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r"<arg>\s*(?P<key>[^\s<]+)\s*(?P<value>[^<]*?)\s*(?=<arg>|$)",
                "value_parser": {"name": "text"},
            },
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
    },
}


# ------------------------------------------------------------------------------------------------ tokens


def texts(trajectories: Iterable[Trajectory]) -> Iterable[str]:
    """Every text in which a word can meet the policy."""
    for trajectory in trajectories:
        for message in (*trajectory.prompt, *trajectory.messages):
            yield str(message["content"])
            for made in message.get("tool_calls") or ():
                yield json.dumps(made["function"])
    yield from (*NAMES, *FILES, *TOPICS, *DANGERS, *ODDITIES, *ATTACKS.values(), *map(str, AMOUNTS + SUMS))


def vocabulary(trajectories: Iterable[Trajectory]) -> list[str]:
    """Marks, then the words in alphabetical order."""
    words = {word for text in texts(trajectories) for word in re.findall(WORD, text.lower())}
    return [*MARKS, *CALL_MARKS, *sorted(words.difference(MARKS, CALL_MARKS))]


def tokenizer(words: Sequence[str]) -> Any:
    """A transformers tokenizer over whole words, with the chat template and the response template."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<|unk|>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=list(MARKS[3:]),
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        response_template=RESPONSE,
    )
    made.chat_template = TEMPLATE
    return made


def encode(tok: Any, prompt: Sequence[Message], reply: Sequence[Message]) -> tuple[list[int], list[float]]:
    """(ids, weights) of a conversation: weight 1 on what the assistant says in `reply`, `OTHERS` elsewhere."""
    ids: list[int] = tok.apply_chat_template(list(prompt), tokenize=True, return_dict=False)
    weights = [OTHERS] * len(ids)
    for message in reply:
        piece = tok.apply_chat_template([message], tokenize=True, return_dict=False)
        own = 1.0 if message["role"] == "assistant" else OTHERS
        ids, weights = ids + piece, weights + [OTHERS] + [own] * (len(piece) - 1)
    return ids, weights


# ------------------------------------------------------------------------------------------------ training

Row = tuple[list[int], list[float]]


def batches(rows: Sequence[Row], steps: int, rng: random.Random) -> Iterable[list[int]]:
    """`steps` batches of row numbers, rows of like length together, each epoch dealt anew."""
    done = 0
    while done < steps:
        order = list(range(len(rows)))
        rng.shuffle(order)
        wide = BATCH * 20
        epoch = []
        for start in range(0, len(order), wide):
            chunk = sorted(order[start : start + wide], key=lambda index: len(rows[index][0]))
            epoch += [chunk[i : i + BATCH] for i in range(0, len(chunk), BATCH)]
        rng.shuffle(epoch)
        for batch in epoch[: steps - done]:
            done += 1
            yield batch


def _model(tok: Any, width: int) -> Any:
    """Two layers, heads of 32. The wide initial weights let copying form in half the steps that 0.02 takes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        max_position_embeddings=CONTEXT,
        initializer_range=0.08 * (WIDTH / width) ** 0.5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(tok: Any, rows: Sequence[Row], steps: int, seed: int, width: int = WIDTH) -> Any:
    """A small Llama trained on the rows, with one thread: the same weights on the same machine and versions."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = _model(tok, width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE * WIDTH / width, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = 50
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup))
    )
    for number, batch in enumerate(batches(rows, steps, random.Random(seed))):
        width = max(len(rows[index][0]) for index in batch)
        ids = torch.tensor([rows[i][0] + [tok.pad_token_id] * (width - len(rows[i][0])) for i in batch])
        weights = torch.tensor([rows[i][1] + [0.0] * (width - len(rows[i][1])) for i in batch])[:, 1:].flatten()
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if number % 100 == 0 or number == steps - 1:
            log.info("step %d of %d, loss %.3f", number, steps, loss.item())
    return model.eval()


def build(
    out: Path,
    count: int = TRACES,
    steps: int | None = None,
    seed: int = SEED,
    world: str = "workbench",
    width: int = WIDTH,
) -> dict[str, Any]:
    """Make the policy of a world in `out`; returns what docs/workbench.md or docs/tradeoffs.md states about it.

    Args:
        out: Folder to write; what was in it is replaced when all is done.
        count: Number of traces.
        steps: Optimizer steps, of `BATCH` rows; `STEPS` by default.
        seed: Of the traces, the initial weights and the order.
        world: One of `WORLDS`.
        width: Of the layers, a multiple of `HEAD`; 128 is 0.36 million parameters, 384 is 3 million.

    Raises:
        FateError: A width that heads do not divide.
    """
    if width < HEAD or width % HEAD:
        raise FateError(f"the width must be a multiple of {HEAD}, not {width}: a head has {HEAD}")
    start = time.perf_counter()
    made_for = WORLDS[world]
    trajectories = traces(count, seed, made_for)
    tok = tokenizer(vocabulary([*trajectories, *rare(made_for)]))
    rows = [encode(tok, trajectory.prompt, trajectory.messages) for trajectory in trajectories]
    made = time.perf_counter()
    model = train(tok, rows, steps or STEPS[world], seed, width)
    trained = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tok.save_pretrained(folder)
        out.mkdir(parents=True, exist_ok=True)
        for file in Path(folder).iterdir():
            shutil.copyfile(file, out / file.name)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tok),
        "longest": max(len(ids) for ids, _ in rows),
        "repairs": sum(trajectory.stage == "repair" for trajectory in trajectories) / count,
        "sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "seconds": {"traces": round(made - start, 1), "training": round(trained - made, 1)},
    }


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world", nargs="?", choices=WORLDS, default="workbench")
    parser.add_argument("--out", type=Path, help="the package's own folder by default")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--width", type=int, default=WIDTH, help="of the layers; another one needs --out")
    given = parser.parse_args()
    if given.width != WIDTH and not given.out:
        parser.error("a policy of another width is not the package's own: say where it goes, with --out")
    out = given.out or POLICIES[given.world]
    made = build(out, steps=given.steps, seed=given.seed, world=given.world, width=given.width)
    log.info(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
