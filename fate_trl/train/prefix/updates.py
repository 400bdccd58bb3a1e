"""Log-probabilities of rows that begin alike, with every common token computed once: exact, forward and backward.

Rows are laid out as a tree: a token that several rows have in common, from their beginning on, stands in a sequence
once, at its own position, and a mask lets each token see its row's tokens before it. So a group's prompt, a head of
system and tools, and completions that begin alike all cost once. Where one token is followed by several others, it gets
a copy for each further one, so that every place has one label, as a fused head wants it.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from trl.trainer.utils import FusedCausalLMOutput

from . import attention  # noqa: F401  it registers the attention that takes `causal_head`
from .cache import additive_or_boolean, shared

BUDGET = 4096
"""Tokens of one call of the model (ours)."""

CHUNK = 256
"""Positions whose distribution over the vocabulary is held at a time (ours)."""

FIELDS = ("log_probs", "entropy", "is_top1")
"""What a trainer is told of each label, by the names that TRL's head has for it; some ask for more."""


@dataclass
class Pack:
    """One sequence that holds several rows.

    Attributes:
        ids: Token ids (N,).
        places: Position of each token in its row (N,).
        labels: What follows each token in the row that wants to know, −100 elsewhere (N,).
        rows: Per row that is in here: its number, the positions wanted in it, and where their labels stand.
    """

    ids: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    rows: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)
    _blocks: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    _last: Sequence[int] = ()
    _path: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _copies: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def first(self) -> int:
        """Tokens of the first row: each sees all before it."""
        return self._blocks[0][1]

    def new(self, row: Sequence[int]) -> int:
        """How many tokens this row would add, copies left aside."""
        return len(row) - shared(self._last, row)

    def add(self, number: int, row: Sequence[int], wanted: np.ndarray) -> None:
        """Add a row; its log-probabilities are wanted at these positions (≥ 1). Rows come in lexical order."""
        common = shared(self._last, row)
        stem = self._path[:common]
        first = self._append(row[common:], common, stem)
        self._path, self._last = np.concatenate([stem, np.arange(first, len(self))]), row
        at = np.array([self._place(int(t), row) for t in wanted], dtype=np.int64)
        self.rows.append((number, wanted, at))

    def _append(self, tokens: Sequence[int], place: int, stem: np.ndarray) -> int:
        first = len(self)
        self.ids += tokens
        self.places += range(place, place + len(tokens))
        self.labels += [-100] * len(tokens)
        self._blocks.append((first, len(self), stem))
        return first

    def _place(self, t: int, row: Sequence[int]) -> int:
        """Where row[t] is the label: at the token before it, or at a copy of that where another label stands."""
        node, label = int(self._path[t - 1]), row[t]
        if self.labels[node] in (-100, label):
            self.labels[node] = label
            return node
        if (node, label) not in self._copies:
            copy = self._append([row[t - 1]], t - 1, self._path[: t - 1])
            self.labels[copy] = label
            self._copies[node, label] = copy
        return self._copies[node, label]

    def seen(self) -> np.ndarray:
        """Booleans (N, N): whether the token of a row of the matrix sees that of a column."""
        out = np.zeros((len(self), len(self)), dtype=bool)
        for first, last, stem in self._blocks:
            out[first:last, stem] = True
            out[first:last, first:last] = np.tri(last - first, dtype=bool)
        return out


def packs_of(rows: Sequence[list[int]], wanted: Sequence[np.ndarray], hidden: int, budget: int) -> list[Pack]:
    """Rows in as few tokens as pay.

    A row joins a sequence where that costs less than one of its own: tokens cost the same each in the linear layers,
    and in attention with the square of the sequence's length, as a mask leaves nothing out. A token's share of a layer
    is some 24·hidden² operations, a pair's 4·hidden.

    Args:
        rows: Token ids, without padding.
        wanted: Per row the positions whose log-probabilities are wanted; a row without any is left out.
        hidden: The model's hidden size.
        budget: Tokens of a sequence; a single row may exceed it.
    """
    pairs_per_token = 6 * hidden
    out: list[Pack] = []
    for number in sorted((i for i in range(len(rows)) if len(wanted[i])), key=lambda i: rows[i]):
        row = rows[number]
        if out:
            size, new = len(out[-1]), out[-1].new(row)
            joined = new + (2 * size * new + new**2) / pairs_per_token
            alone = len(row) + len(row) ** 2 / pairs_per_token
        if not out or joined > alone or size + new > budget:
            out.append(Pack())
        out[-1].add(number, row, wanted[number])
    return out


def batches_of(packs: Sequence[Pack], budget: int) -> list[list[Pack]]:
    """Sequences in batches of about the same length, of up to `budget` tokens with the padding."""
    out: list[list[Pack]] = []
    for pack in sorted(packs, key=len, reverse=True):
        longest = len(out[-1][0]) if out else 0
        if out and (len(out[-1]) + 1) * longest <= budget and 4 * len(pack) >= 3 * longest:
            out[-1].append(pack)
        else:
            out.append([pack])
    return out


# ------------------------------------------------------------------------------------------------ the model's part


def share_updates(
    model: Any,
    *,
    temperature: float = 1.0,
    budget: int = BUDGET,
    entropy_gradient: bool = False,
    more: Sequence[str] = (),
) -> None:
    """Let a model that has TRL's fused head compute what its rows have in common once.

    Wherever a trainer asks that head for log-probabilities of padded rows, of the policy, of the old one or of a
    reference, the answer is the same, to rounding. Rows that fill more than one call of `budget` tokens are computed
    call by call, and each call's activations again in the backward pass, so that memory is that of one.

    Args:
        model: A causal language model after `add_fused_lm_head`, before PEFT or a wrapper calls it; its forward is
            replaced.
        temperature: What that head divides logits by.
        budget: Tokens of one call of the model.
        entropy_gradient: Whether entropies are differentiated.
        more: What its trainer asks that head for beside `FIELDS`: "mean_logits", "log_sum_sq_probs".
    """
    theirs = model.forward
    fields = (*FIELDS, *more)
    own_head, fused = _head(temperature, entropy_gradient, more), functools.partial(_fused, fields=fields)

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **given: Any) -> Any:
        ids, mask, labels = given.get("input_ids"), given.get("attention_mask"), given.get("labels")
        others = {name for name, value in given.items() if value is not None}
        odd = args or others - {"input_ids", "attention_mask", "labels", "use_cache"}
        if not fused_lm_head or odd or ids is None or mask is None or labels is None or mask.ndim != 2:
            return theirs(*args, **({"fused_lm_head": True} if fused_lm_head else {}), **given)
        rows, wanted, columns = _rows(ids, mask, labels)
        if not any(map(len, wanted)):
            return theirs(fused_lm_head=True, **given)
        hidden = self.config.get_text_config().hidden_size
        batches = batches_of(packs_of(rows, wanted, hidden, budget), budget)
        head = own_head if ids.device.type == "cpu" else fused
        values = _placed(batches, columns, tuple(labels[:, 1:].shape), theirs, head, self, budget)
        told = dict(zip(fields, values, strict=True))
        told["is_top1"] = told["is_top1"].detach() > 0
        kept = labels[:, 1:] != -100
        return FusedCausalLMOutput(loss=-told["log_probs"].sum() / kept.sum(), label_mask=kept, **told)

    model.forward = types.MethodType(forward, model)


def _rows(
    ids_B_L: torch.Tensor, mask_B_L: torch.Tensor, labels_B_L: torch.Tensor
) -> tuple[list[list[int]], list[np.ndarray], list[dict[int, int]]]:
    """Rows without padding, the positions in them whose tokens are labels, and the column of each in the answer."""
    rows, wanted, columns = [], [], []
    for ids, mask, labels in zip(*(t.cpu().numpy() for t in (ids_B_L, mask_B_L, labels_B_L)), strict=True):
        kept = np.flatnonzero(mask)
        positions = np.flatnonzero(labels[kept] != -100)
        positions = positions[positions > 0]
        rows.append(ids[kept].tolist())
        wanted.append(positions)
        columns.append(dict(zip(positions.tolist(), (kept[positions] - 1).tolist(), strict=True)))
    return rows, wanted, columns


def _placed(
    batches: Sequence[Sequence[Pack]],
    columns: Sequence[dict[int, int]],
    shape: tuple[int, int],
    forward: Callable[..., Any],
    head: Callable[..., torch.Tensor],
    model: Any,
    budget: int,
) -> torch.Tensor:
    """(fields, rows, columns): log-probabilities and what else the head tells of labels; 0 elsewhere."""
    total = sum(len(batch) * len(batch[0]) for batch in batches)
    recompute = len(batches) > 1 and total > budget and torch.is_grad_enabled()
    values, index, source, offset = [], [], [], 0
    for batch in batches:
        inputs, at = _inputs(batch, model)
        values.append(
            checkpoint(head, forward, inputs, at, use_reentrant=False) if recompute else head(forward, inputs, at)
        )
        place_of = {place: offset + i for i, place in enumerate(at.tolist())}
        longest = len(batch[0])
        for number, pack in enumerate(batch):
            shift = number * longest + longest - len(pack)
            for row, positions, places in pack.rows:
                index += [row * shape[1] + columns[row][t] for t in positions.tolist()]
                source += [place_of[shift + place] for place in places.tolist()]
        offset += len(at)
    device = values[0].device
    all_F_N = torch.cat(values, dim=1)[:, torch.tensor(source, device=device)]
    empty = all_F_N.new_zeros((len(all_F_N), shape[0] * shape[1]))
    return empty.index_copy(1, torch.tensor(index, device=device), all_F_N).view(-1, *shape)


def _inputs(batch: Sequence[Pack], model: Any) -> tuple[dict[str, Any], torch.Tensor]:
    """What the model is called with, padded on the left, so that most labels are at the end; and where they stand."""
    longest = len(batch[0])
    ids, places, labels = (np.full((len(batch), longest), filler) for filler in (0, 0, -100))
    seen = np.tile(np.eye(longest, dtype=bool), (len(batch), 1, 1, 1))
    for b, pack in enumerate(batch):
        pad = longest - len(pack)
        ids[b, pad:], places[b, pad:], labels[b, pad:] = pack.ids, pack.places, pack.labels
        seen[b, 0, pad:, pad:] = pack.seen()
    device = model.device
    inputs: dict[str, Any] = {
        "input_ids": torch.from_numpy(ids).to(device),
        "position_ids": torch.from_numpy(places).to(device),
        "attention_mask": additive_or_boolean(torch.from_numpy(seen).to(device), model),
        "shift_labels": torch.from_numpy(labels).to(device),
    }
    if len(batch) == 1:
        inputs["causal_head"] = batch[0].first
    return inputs, torch.from_numpy(np.flatnonzero(labels.reshape(-1) != -100)).to(device)


def _fused(
    forward: Callable[..., Any], inputs: dict[str, Any], at: torch.Tensor, fields: Sequence[str] = FIELDS
) -> torch.Tensor:
    """(fields, labels) by TRL's head, which holds no logits and scores labels only where Triton is."""
    out = forward(**inputs, fused_lm_head=True)
    log_probs = out.log_probs.reshape(-1)[at]
    given = [getattr(out, field) for field in fields[1:]]
    more = [torch.zeros_like(log_probs) if t is None else t.reshape(-1)[at].to(log_probs.dtype) for t in given]
    return torch.stack([log_probs, *more])


def _head(temperature: float, entropy_gradient: bool, more: Sequence[str] = ()) -> Callable[..., torch.Tensor]:
    """(fields, labels) from the model's own logits, at the places with labels only, a chunk's distribution at a time.

    Without Triton, TRL's head scores every place, of the prompt too.
    """

    def of_chunk(logits_N_V: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        scores_N_V = logits_N_V.float() / temperature
        all_N_V = scores_N_V.log_softmax(dim=1)
        log_probs_N = all_N_V.gather(1, labels_N[:, None])[:, 0]
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            entropy_N = -(all_N_V.exp() * all_N_V).sum(dim=1)
        told = [log_probs_N, entropy_N, (scores_N_V.argmax(dim=1) == labels_N).float()]
        if "mean_logits" in more:
            told.append(scores_N_V.detach().mean(dim=1))
        if "log_sum_sq_probs" in more:
            told.append((2 * all_N_V.detach()).logsumexp(dim=1))
        return torch.stack(told)

    def run(forward: Callable[..., Any], inputs: dict[str, Any], at: torch.Tensor) -> torch.Tensor:
        labels = inputs["shift_labels"]
        kept, where = (at % labels.size(1)).unique(return_inverse=True)
        given = {key: value for key, value in inputs.items() if key != "shift_labels"}
        logits = forward(**given, use_cache=False, logits_to_keep=kept).logits
        wanted_N_V = logits.reshape(-1, logits.size(-1))
        if len(wanted_N_V) != len(at):
            wanted_N_V = wanted_N_V[at // labels.size(1) * len(kept) + where]
        chunks = zip(wanted_N_V.split(CHUNK), labels.reshape(-1)[at].split(CHUNK), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([of_chunk(*chunk) for chunk in chunks], dim=1)
        return torch.cat([checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks], dim=1)

    return run
