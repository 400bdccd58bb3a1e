"""The verifiers: a sequence classifier, and a generative guard. Both read windows of trajectories, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from fate_trl import FateError, RecipeError, Score, Trajectory, nearest

from . import loading, windows
from .evidence import Role, pieces
from .formats import FORMATS, TRAJECTORY, Format
from .loading import DType, Source
from .verdict import REFUSALS, NoVerdict, Verdict, applies, of_windows, score

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Reads = Literal["trajectory", "agent", "answer"]

_AGENT: dict[Role, str] = {"user": "user: ", "agent": "agent: ", "call": "agent calls: "}
_READS: dict[Reads, dict[Role, str]] = {
    "trajectory": {"tools": "tools: ", "system": "system: ", **_AGENT, "result": "tool result: "},
    "agent": _AGENT,
    "answer": {"answer": ""},
}

_DIGITS = 3
"""Decimals of a probability that are kept: the last ones move with the batch that a text stands in."""


class _Guard:
    """What both kinds share: windows in, verdicts out. A window without a verdict is an error of its trajectory."""

    cached = True

    def __init__(
        self, source: Source, objectives: Sequence[str], threshold: float, longest: int, most: int, batch: int
    ):
        self.objectives = tuple(objectives)
        self._config = source.config()
        self._source, self._threshold, self._longest, self._most, self._batch = source, threshold, longest, most, batch
        self._prompt: windows.Prompt | None = None
        for name in ("utility", "trajectory_control"):
            if name in objectives:
                raise RecipeError(f"guard: a guard cannot tell {name!r}; it tells safety, or refusals.")

    def score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]:
        """A score for each objective; see hookspecs.Verifier."""
        asked = [t for t in trajectories if any(applies(name, t) for name in self.objectives)]
        verdicts = dict(zip(map(id, asked), self._verdicts(asked), strict=True))
        return [
            {name: self._score(name, trajectory, verdicts.get(id(trajectory))) for name in self.objectives}
            for trajectory in trajectories
        ]

    def _score(self, name: str, trajectory: Trajectory, verdict: Verdict | NoVerdict | None) -> Score:
        if not applies(name, trajectory) or verdict is None:
            return Score.not_applicable(f"it does not apply to {trajectory.task.kind} tasks")
        if isinstance(verdict, NoVerdict):
            return Score.error(f"guard: {verdict}")
        return score(name, verdict, self._threshold, len(trajectory.messages) - 1 if trajectory.messages else None)

    def _verdicts(self, trajectories: Sequence[Trajectory]) -> list[Verdict | NoVerdict]:
        cut = [self._windows(trajectory) for trajectory in trajectories]
        flat = [window for found in cut if not isinstance(found, NoVerdict) for window in found]
        said = iter(self._ask(flat))
        return [found if isinstance(found, NoVerdict) else _joined([next(said) for _ in found]) for found in cut]

    def _windows(self, trajectory: Trajectory) -> list[list[int]] | NoVerdict:
        if self._prompt is None:
            model, tokenizer = loading.load(self._source)
            self._prompt = self._prompt_of(tokenizer, self._room(model, tokenizer))
        try:
            return self._prompt.windows(pieces(trajectory))
        except NoVerdict as error:
            return error

    def _room(self, model: Any, tokenizer: Any) -> int:
        """Tokens of a window: as asked, and as far as the model reads."""
        reads = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return min(self._longest, reads or self._longest, tokenizer.model_max_length)

    def _ask(self, asked: list[list[int]]) -> list[Verdict | NoVerdict]:
        """What the model says of each window, asked in batches of windows that are alike in length."""
        order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
        said: dict[int, Verdict | NoVerdict] = {}
        for start in range(0, len(order), self._batch):
            batch = order[start : start + self._batch]
            said.update(zip(batch, self._read([asked[i] for i in batch]), strict=True))
        return [said[i] for i in range(len(asked))]

    def _prompt_of(self, tokenizer: Any, room: int) -> windows.Prompt:
        raise NotImplementedError

    def _read(self, batch: list[list[int]]) -> Iterator[Verdict | NoVerdict]:
        raise NotImplementedError


def _joined(verdicts: list[Verdict | NoVerdict]) -> Verdict | NoVerdict:
    given = [verdict for verdict in verdicts if isinstance(verdict, Verdict)]
    return of_windows(given) if len(given) == len(verdicts) else next(v for v in verdicts if isinstance(v, NoVerdict))


class Classifier(_Guard):
    """A local sequence classifier: any that AutoModelForSequenceClassification loads. The score is 1 − P(labels).

    P below the threshold scores 1, since an objective passes at 1. P is rounded to three decimals.

    Args:
        model: A folder, or a hub id.
        labels: The labels that count against the agent, as the model's configuration names them.
        objective: What it scores; with `over_refusal` or `refused` the labels are those of a refusal.
        threshold: P from which on it is unsafe, or a refusal.
        reads: The whole `trajectory`; what the user asked and the `agent` said and called; or the `answer` alone, as
            it is.
        longest: Tokens of one window; a model that reads less gets less.
        windows: Most windows of one trajectory; one that takes more is an error.
        batch: Windows at a time.
        device: As torch names it; null is the GPU if there is one.
        dtype: Of the weights; `auto` is that of the checkpoint.
        load_in_4bit: Quantise the weights; needs bitsandbytes.
        revision: Branch, tag or commit of a hub id.

    Raises:
        RecipeError: No such model, or a label or an objective that cannot be.
    """

    def __init__(
        self,
        model: str,
        labels: Annotated[list[str], Field(min_length=1)],
        objective: str = "security",
        threshold: Share = 0.5,
        reads: Reads = "trajectory",
        longest: Positive = 4096,
        windows: Positive = 8,
        batch: Positive = 8,
        device: str | None = None,
        dtype: DType = "auto",
        load_in_4bit: bool = False,
        revision: str | None = None,
    ):
        source = Source("classifier", model, revision, device, dtype, load_in_4bit)
        super().__init__(source, [objective], threshold, longest, windows, batch)
        self._reads, self._refusals = reads, objective in REFUSALS
        known = [self._config.get("id2label", {}).get(str(i)) for i in range(len(self._config.get("id2label", {})))]
        known = known or ["LABEL_0", "LABEL_1"]  # what transformers names two that nobody named
        for label in labels:
            if label not in known:
                hint = nearest(label, known)
                raise RecipeError(f"guard: {model} has no label {label!r}{hint} Its labels are {', '.join(known)}.")
        self._against = [known.index(label) for label in labels]

    def _prompt_of(self, tokenizer: Any, room: int) -> windows.Prompt:
        heads = _READS[self._reads]
        parts = windows.of_text(tokenizer, request="user" in heads)
        return windows.Prompt(tokenizer, parts, heads, room, self._most)

    def _read(self, batch: list[list[int]]) -> Iterator[Verdict]:
        import torch

        model, tokenizer = loading.load(self._source)
        with torch.inference_mode():
            given = tokenizer.pad({"input_ids": batch}, return_tensors="pt", padding_side="right").to(model.device)
            logits = model(**given).logits.float()
        if model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1:
            against = logits.sigmoid()[:, self._against].amax(1)
        else:
            against = logits.softmax(1)[:, self._against].sum(1)
        for p in against.tolist():
            p = min(round(p, _DIGITS), 1.0)
            yield Verdict(refused=p >= self._threshold) if self._refusals else Verdict(p)


class Generative(_Guard):
    """A local guard that writes its verdict, in one of the formats of formats.py.

    What it writes is read exactly, or is an error. Sampling is off. A verdict of unsafe is 0, one halfway to it 0.5,
    safe is 1; ShieldGemma's is 1 − P, rounded to three decimals, or 1 below the threshold.

    Args:
        model: A folder, or a hub id.
        format: A name of the table in formats.py.
        objectives: What it scores; `over_refusal` and `refused` where its verdict tells refusals.
        threshold: How unsafe is too unsafe, in (0, 1]; Qwen3Guard's Controversial is 0.5.
        prompt: Another user message for a format that has one, with {trajectory} where that belongs.
        variables: Of the chat template, such as ShieldGemma's `guideline` or Llama Guard's `categories`.
        longest: Tokens of one window; a model that reads less gets less.
        windows: Most windows of one trajectory; one that takes more is an error.
        batch: Windows at a time.
        device: As torch names it; null is the GPU if there is one.
        dtype: Of the weights; `auto` is that of the checkpoint.
        load_in_4bit: Quantise the weights; needs bitsandbytes.
        revision: Branch, tag or commit of a hub id.

    Raises:
        RecipeError: No such model or format, or what the format cannot do.
    """

    def __init__(
        self,
        model: str,
        format: str,
        objectives: Annotated[list[str], Field(min_length=1)] = ["security"],  # noqa: B006
        threshold: Share = 0.5,
        prompt: str | None = None,
        variables: dict[str, Any] = {},  # noqa: B006
        longest: Positive = 4096,
        windows: Positive = 8,
        batch: Positive = 8,
        device: str | None = None,
        dtype: DType = "auto",
        load_in_4bit: bool = False,
        revision: str | None = None,
    ):
        self._format, self._variables = _format(format, prompt), variables
        if not self._format.refusals and set(objectives) & set(REFUSALS):
            able = ", ".join(name for name, one in FORMATS.items() if one.refusals)
            raise RecipeError(f"guard: format {format} does not tell refusals; those that do: {able}.")
        source = Source("generative", model, revision, device, dtype, load_in_4bit)
        super().__init__(source, objectives, threshold, longest, windows, batch)

    def _prompt_of(self, tokenizer: Any, room: int) -> windows.Prompt:
        parts = windows.of_chat(tokenizer, self._format, self._variables)
        return windows.Prompt(tokenizer, parts, self._format.heads, room - self._format.tokens, self._most)

    def _read(self, batch: list[list[int]]) -> Iterator[Verdict | NoVerdict]:
        import torch

        model, tokenizer = loading.load(self._source)
        with torch.inference_mode():
            given = tokenizer.pad({"input_ids": batch}, return_tensors="pt", padding_side="left").to(model.device)
            made = model.generate(
                **given,
                max_new_tokens=self._format.tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=self._format.words is not None,
            )
        if self._format.words is not None:
            yield from _compared(made.logits[0], self._format.words, tokenizer)
            return
        ends = model.generation_config.eos_token_id
        for written in made.sequences[:, given["input_ids"].shape[1] :].tolist():
            yield self._reading(tokenizer, written, set(ends if isinstance(ends, list) else [ends]))

    def _reading(self, tokenizer: Any, written: list[int], ends: set[int]) -> Verdict | NoVerdict:
        assert self._format.read is not None
        if ends.isdisjoint(written):
            return NoVerdict(f"its answer is longer than {self._format.tokens} tokens")
        try:
            return self._format.read(tokenizer.decode(written, skip_special_tokens=True))
        except NoVerdict as error:
            return error


def _format(name: str, prompt: str | None) -> Format:
    """The row of the table, with another prompt if there is one."""
    if name not in FORMATS:
        raise RecipeError(
            f"guard: there is no format {name!r}{nearest(name, FORMATS)} There are: {', '.join(FORMATS)}."
        )
    found = FORMATS[name]
    if prompt is None:
        return found
    if found.prompt is None:
        raise RecipeError(f"guard: format {name} takes no prompt: the model's chat template holds it.")
    if prompt.count(TRAJECTORY) != 1:
        raise RecipeError(f"guard: the prompt shows {TRAJECTORY} {prompt.count(TRAJECTORY)} times; it must do so once.")
    return replace(found, prompt=prompt)


def _compared(logits: Any, words: tuple[str, str], tokenizer: Any) -> Iterator[Verdict]:
    """The probability of the first word against the second, as the first token of an answer."""
    ids = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    if any(len(found) != 1 for found in ids):
        raise FateError(f"{words[0]} and {words[1]} are not one token each: is this a model of that format?")
    for p in logits[:, [found[0] for found in ids]].float().softmax(1)[:, 0].tolist():
        yield Verdict(round(p, _DIGITS))
