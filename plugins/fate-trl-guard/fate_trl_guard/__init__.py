"""Local guard models as fate-trl components: `guard/classifier`, `guard/generative` and `guard/local`."""

from __future__ import annotations

from fate_trl import Component, hookimpl

from .formats import FORMATS, Format
from .guard import Classifier, Generative
from .local import Local, TextGuard
from .verdict import NoVerdict, Verdict

__all__ = ["FORMATS", "Classifier", "Format", "Generative", "Local", "NoVerdict", "TextGuard", "Verdict"]

fate_trl_api = 1


@hookimpl
def fate_trl_verifiers() -> list[Component]:
    return [
        Component("classifier", Classifier, "a local sequence classifier: 1 − P of the labels that count against"),
        Component("local", Local, "a classifier of your own: a file with a class, scores(texts) -> probabilities"),
        Component("generative", Generative, "a local guard that writes its verdict: Llama Guard, Qwen3Guard, ..."),
    ]
