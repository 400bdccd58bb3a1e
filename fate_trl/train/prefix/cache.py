"""Keys and values of what a model has read: per-row slots that decoding appends to, and prefixes that rows start from.

transformers' caches grow by concatenation, so all rows of a batch are as long as the longest, and none can leave or
join. Here a row owns a slot of one tensor per layer, its token t stands at place t, and what lies past a row's end is
masked: rows of any length are read and decoded together, a finished row's slot is free at once, and a row that joins
copies the keys and values of the prefix that it shares with what was read before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

GROWTH = 64
"""Slots become longer by at least this many tokens."""


class _Layer(DynamicLayer):
    """One layer's keys and values of all slots, (slots, heads, length, size); `Slots` says which are meant."""

    keys: Any
    values: Any

    def __init__(self, slots: Slots):
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots = slots

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        slots = self.slots
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (slots.count, key_states.size(1), slots.length)
            self.keys = key_states.new_zeros((*shape, key_states.size(3)))
            self.values = value_states.new_zeros((*shape, value_states.size(3)))
        if key_states.size(2) == 1:
            self.keys[slots.rows_B, :, slots.places_B_Q[:, 0]] = key_states[:, :, 0]
            self.values[slots.rows_B, :, slots.places_B_Q[:, 0]] = value_states[:, :, 0]
        else:
            rows_B_1 = slots.rows_B[:, None]
            self.keys[rows_B_1, :, slots.places_B_Q] = key_states.transpose(1, 2)
            self.values[rows_B_1, :, slots.places_B_Q] = value_states.transpose(1, 2)
        return self.keys[slots.picked, :, : slots.width], self.values[slots.picked, :, : slots.width]

    def get_seq_length(self) -> int:
        return 0  # positions and masks are given with every call


class Slots:
    """A fixed number of rows, each with room for `length` tokens, in a cache that transformers' models write to.

    Attributes:
        cache: What a model is called with, after `aim`.
    """

    def __init__(self, model: Any, count: int, length: int):
        self.count, self.length = count, length
        self.layers = [_Layer(self) for _ in DynamicCache(config=model.config).layers]
        self.cache = Cache(layers=[*self.layers])

    def aim(self, rows: Sequence[int], places_B_Q: torch.Tensor, width: int) -> None:
        """The next call writes the tokens of these rows at these places, and reads the first `width` places."""
        self.reserve(width)
        self.rows_B = torch.tensor(rows, device=places_B_Q.device)
        self.places_B_Q, self.width = places_B_Q, width
        together = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        self.picked: Any = slice(rows[0], rows[0] + len(rows)) if together else self.rows_B

    def reserve(self, length: int) -> None:
        """Make every slot at least so long."""
        if length <= self.length:
            return
        grown = max(length, self.length + GROWTH, self.length * 5 // 4)
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys = _longer(layer.keys, grown)
                layer.values = _longer(layer.values, grown)
        self.length = grown

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` places of a row to another."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` places of two rows."""
        pair, swapped = [one, other], [other, one]
        for layer in self.layers:
            layer.keys[pair, :, :length] = layer.keys[swapped, :, :length]
            layer.values[pair, :, :length] = layer.values[swapped, :, :length]

    def put(self, row: int, prefix: Prefix, length: int) -> None:
        """Begin a row with the first `length` tokens of a prefix."""
        self.reserve(length)
        for layer, (keys, values) in zip(self.layers, prefix.states, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys, values)
                layer.keys = keys.new_zeros((self.count, keys.size(0), self.length, keys.size(2)))
                layer.values = values.new_zeros((self.count, values.size(0), self.length, values.size(2)))
            layer.keys[row, :, :length] = keys[:, :length]
            layer.values[row, :, :length] = values[:, :length]

    def taken(self, row: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A copy of the first `length` places of a row, per layer (keys, values), each (heads, length, size)."""
        return [(layer.keys[row, :, :length].clone(), layer.values[row, :, :length].clone()) for layer in self.layers]


def _longer(states: torch.Tensor, length: int) -> torch.Tensor:
    out = states.new_zeros((*states.shape[:2], length, states.size(3)))
    out[:, :, : states.size(2)] = states
    return out


def additive_or_boolean(seen_B_1_Q_K: torch.Tensor, model: Any) -> torch.Tensor:
    """A mask of booleans as the model's attention takes it best: what every layer adds, made once.

    Only where autocast may change the type of the queries, and on a GPU, whose kernels take booleans, it stays as it
    is; eager attention always adds.
    """
    kind = seen_B_1_Q_K.device.type
    eager = getattr(model.config, "_attn_implementation", "") == "eager"
    if not eager and (kind != "cpu" or torch.is_autocast_enabled(kind)):
        return seen_B_1_Q_K
    zeros = torch.zeros((), dtype=model.dtype, device=seen_B_1_Q_K.device)
    return torch.where(seen_B_1_Q_K, zeros, torch.full_like(zeros, torch.finfo(model.dtype).min))


# ------------------------------------------------------------------------------------------------ prefixes


@dataclass
class Prefix:
    """Tokens that were read, with their keys and values, and the logits (V,) behind the last one."""

    ids: tuple[int, ...]
    states: list[tuple[torch.Tensor, torch.Tensor]]
    logits: torch.Tensor

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self.states for t in pair) + 4 * self.logits.numel()


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # one[:low] is common, one[:high] is not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


class Prefixes:
    """Prefixes by their tokens, within a number of bytes: what was not used for longest goes first."""

    def __init__(self, limit: float):
        self.limit = limit
        self._held: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def add(self, prefix: Prefix) -> None:
        self._held[prefix.ids] = prefix
        self._held.move_to_end(prefix.ids)

    def longest(self, ids: tuple[int, ...]) -> tuple[Prefix | None, int]:
        """The prefix that has most tokens in common with `ids`, and how many."""
        found = self._held.get(ids)
        length = len(ids)
        if found is None:
            length = 0
            for prefix in self._held.values():
                if len(prefix.ids) > length and prefix.ids[:length] == ids[:length]:
                    common = shared(prefix.ids, ids)
                    if common > length:
                        found, length = prefix, common
        if found is not None:
            self._held.move_to_end(found.ids)
        return found, length

    def shrink(self) -> None:
        """Let go what is over the limit."""
        size = sum(prefix.bytes for prefix in self._held.values())
        while size > self.limit and self._held:
            size -= self._held.popitem(last=False)[1].bytes

    def clear(self) -> None:
        self._held.clear()

    def __len__(self) -> int:
        return len(self._held)


MIN_HEAD = 16
"""A head that prompts have in common is read by itself from this many tokens on; shorter ones with each of them."""


def levels(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """What to read, in which order: the prompts, and the heads that several have in common, before these.

    Each level's sequences begin with one of an earlier level, and share no more than MIN_HEAD further tokens.
    """
    ordered = sorted(set(prompts))
    out: list[list[tuple[int, ...]]] = []

    def walk(group: list[tuple[int, ...]], depth: int, level: int) -> None:
        common = shared(group[0], group[-1])  # of all in between, too: they are sorted
        if len(group) == 1 or common - depth >= MIN_HEAD:
            while len(out) <= level:
                out.append([])
            out[level].append(group[0][:common])
            depth, level = common, level + 1
        rest = [ids for ids in group if len(ids) > common]
        start = 0
        for i in range(1, len(rest) + 1):
            if i == len(rest) or rest[i][common] != rest[start][common]:
                walk(rest[start:i], depth, level)
                start = i

    def add_short(group: list[tuple[int, ...]]) -> None:
        """A prompt that is another one's beginning, and was not read as a head, is read by itself."""
        read = {ids for level in out for ids in level}
        missing = [ids for ids in group if ids not in read]
        if missing:
            out.append(missing)

    if ordered:
        walk(ordered, 0, 0)
        add_short(ordered)
    return out
