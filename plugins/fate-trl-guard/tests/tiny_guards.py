"""Guards that are built, not trained: their verdict depends on one telling word, so that tests know it beforehand.

GPT-2 with one layer and weights set by hand. A token is its own direction; one head looks for telling words, the other
for the format that the chat template names, wherever they stand; what it writes is a sum over what they found.

python tiny_guards.py FOLDER    makes them there, and prints what the contract suite takes as --fate-args
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

SPECIAL = ["<|pad|>", "<|end|>", "<|unk|>", "<|user|>", "<|assistant|>", "[CLS]", "[SEP]"]
SAYS: dict[str, dict[str, str]] = {
    "llama": {"": "\n\nsafe", "steal": "\n\nunsafe\nS2", "password": "\n\nunsafe\nS1,S9", "odd": "not safe"},
    "qwen": {
        "": "Safety: Safe\nCategories: None\nRefusal: No",
        "steal": "Safety: Unsafe\nCategories: Violent\nRefusal: No",
        "sorry": "Safety: Safe\nCategories: None\nRefusal: Yes",
        "odd": "Safety: Safe",
    },
    "shield": {"": "No", "steal": "Yes"},
    "dog": {"": "safe", "steal": "unsafe"},
}
"""By format, and by the one telling word in what is judged: what its guard writes. `odd` is no verdict."""

TELLING = ("steal", "password", "sorry", "odd")
_WORDS = "pay the bill user agent calls name arguments to bob a b send it read mail end assistant USER ENVIRONMENT"
_MARKS = " \n{}\"':,.<>/_-\\()[]|!?=#&;"
_CHAT = (
    "{% for m in messages %}{{ '<|' + m.role + '|> ' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_ANSWERS = {(mode, word): text for mode, says in SAYS.items() for word, text in says.items()}


def tokenizer_of(mode: str) -> PreTrainedTokenizerFast:
    """One token per word, blank and mark, and per answer; what it does not know becomes `<|unk|>`."""
    known = dict.fromkeys([*SPECIAL, *SAYS, *_MARKS, *TELLING, *_WORDS.split(), *_ANSWERS.values()])
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\W_]+|[\W_]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    if mode == "classifier":
        marks = [(mark, SPECIAL.index(mark)) for mark in ("[CLS]", "[SEP]")]
        core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unk|>",
        additional_special_tokens=SPECIAL[3:],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = mode + _CHAT
    return tokenizer


SIZE, HEAD = 256, 128


def _configured(tokenizer: PreTrainedTokenizerFast, **more: Any) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=SIZE,
        n_layer=1,
        n_head=2,
        n_positions=512,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **more,
    )


def _found(word: str) -> int:
    """The direction that says that a telling word, or the name of a format, was found."""
    return SIZE - 1 - [*TELLING, *SAYS].index(word)


def _build(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Weights of the body: token directions, and two heads that look for words."""
    for weight in model.parameters():
        weight.zero_()
    body = model.transformer
    body.wte.weight[:, : len(tokenizer)] = torch.eye(len(tokenizer))
    layer = body.h[0]
    for norm in (layer.ln_1, layer.ln_2, body.ln_f):
        norm.weight.fill_(1)
    for head, words in enumerate((TELLING, SAYS)):
        layer.attn.c_attn.bias[head * HEAD] = 1  # every query asks for the same
        for number, word in enumerate(words, 1):
            token = tokenizer.convert_tokens_to_ids(word)
            layer.attn.c_attn.weight[token, SIZE + head * HEAD] = 30
            layer.attn.c_attn.weight[token, 2 * SIZE + head * HEAD + number] = 1
            layer.attn.c_proj.weight[head * HEAD + number, _found(word)] = 0.25


@torch.no_grad()
def make_generative(folder: Path) -> None:
    """One model that writes what `SAYS` says; a folder for each format, with its chat template."""
    tokenizer = tokenizer_of("")
    model = GPT2LMHeadModel(_configured(tokenizer))
    _build(model, tokenizer)
    model.transformer.ln_f.weight[SIZE // 2 + 50], model.transformer.ln_f.bias[SIZE // 2 + 50] = 0, 1  # a constant
    logits = model.lm_head.weight
    for (mode, word), text in _ANSWERS.items():
        token = tokenizer.convert_tokens_to_ids(text)
        logits[token, _found(mode)] += 10
        logits[token, _found(word) if word else SIZE // 2 + 50] += 5 if word else 25
        logits[tokenizer.eos_token_id, token] = 1000
    for mode in SAYS:
        model.save_pretrained(folder / mode)
        tokenizer_of(mode).save_pretrained(folder / mode)


@torch.no_grad()
def make_classifier(folder: Path, labels: Iterable[str] = ("FINE", "UNSAFE", "REFUSAL"), **more: Any) -> None:
    """A classifier to which `steal` is the second label, `sorry` the third, and all else rather the first."""
    tokenizer = tokenizer_of("classifier")
    names = dict(enumerate(labels))
    model = GPT2ForSequenceClassification(
        _configured(tokenizer, id2label=names, label2id={name: i for i, name in names.items()}, **more)
    )
    _build(model, tokenizer)
    for label, word in ((1, "steal"), (2, "sorry"), (1, "password")):
        if label in names:
            model.score.weight[label, _found(word)] = 0.1 if word == "password" else 0.5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


LOCAL = """
class Words:
    def scores(self, texts):
        return [float(any(word in text.lower() for word in ("ignore", "important", "instead"))) for text in texts]
"""
"""A guard in one file, which knows three words."""


if __name__ == "__main__":
    made = Path(sys.argv[1]).resolve()
    make_classifier(made / "classifier")
    make_generative(made)
    (made / "words.py").write_text(LOCAL, encoding="utf-8")
    arguments = {
        "local": {"file": str(made / "words.py")},
        "classifier": {"model": str(made / "classifier"), "labels": ["UNSAFE"]},
        "generative": {"model": str(made / "llama"), "format": "llama-guard"},
    }
    sys.stdout.write(json.dumps(arguments))
