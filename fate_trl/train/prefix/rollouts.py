"""Rollouts that read each token once, without lockstep: transformers' models, a loop of our own, one seed per row.

The tool loop of TRL calls `generate` for every turn on everything so far, for every row, and a turn lasts until its
slowest row has ended. Here a row has a slot (cache.py), and goes on by itself: a prompt, or a head of it that was
read before, is copied; a turn that ended runs its tools beside the others' decoding and then reads their results only;
a row that has ended leaves its slot to the next request.

What a row samples is decided by its own generator, and which rows are decoded together by counting steps, not by the
clock, as long as tools take no longer than PATIENCE. So on a CPU with one thread a seed decides all rows, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ...record import stable_hash
from ..batches import widest
from ..spent import Busy, Spent
from .cache import Prefix, Prefixes, Slots, additive_or_boolean, levels

WINDOW = 8
"""Decoding steps (ours) after which rows whose turn has ended go on, and others take the places of those that left:
reading for several rows at once costs little more than for one."""

PATIENCE = 1.0
"""Seconds (ours) that decoding on a CPU waits for a tool, so that its speed does not decide who is decoded together."""

READ_TOKENS = 4096
"""Tokens, padding included, that one call of the model reads (ours); it bounds the activations."""

TOOL_THREADS = 8
"""Episodes whose tools run at a time (ours)."""


class Greedy(list[int]):
    """Tokens of a prompt after which the likeliest tokens follow; what is appended by `+` leaves it so."""

    def __add__(self, more: list[int]) -> Greedy:  # type: ignore[override]
        return Greedy(super().__add__(more))


class Episodes(Protocol):
    """What rows do between their turns. Only the work that `ended` returns runs on another thread."""

    def ended(self, row: int, prompt_ids: list[int], turn_ids: list[int]) -> Callable[[], Any] | None:
        """A row's turn has ended with these tokens, behind these: work to be done before it goes on; None ends it."""

    def follows(self, row: int, done: Any, prompt_ids: list[int]) -> list[int] | None:
        """The tokens that follow, from what the work returned, for the row to read; None ends it.

        Args:
            row: Which.
            done: What the work returned.
            prompt_ids: All that the row has read and sampled so far.
        """


class Alone:
    """Rows of one turn."""

    def ended(self, row: int, prompt_ids: list[int], turn_ids: list[int]) -> None:
        return None

    def follows(self, row: int, done: Any, prompt_ids: list[int]) -> None:
        return None


# ------------------------------------------------------------------------------------------------ sampling

_SUPPORTED = {
    *("max_new_tokens", "do_sample", "pad_token_id", "bos_token_id", "eos_token_id", "temperature", "top_p", "top_k"),
    *("min_p", "repetition_penalty", "disable_compile", "transformers_version", "use_cache", "_from_model_config"),
    *("max_length", "output_attentions", "output_hidden_states"),
}


class Sampling:
    """The next tokens from logits, as a GenerationConfig says: greedy, or by temperature, top-k, top-p and min-p."""

    def __init__(self, config: GenerationConfig):
        self.greedy = not config.do_sample
        self.processors = LogitsProcessorList()
        penalty = config.repetition_penalty
        self.repetition = None if penalty in (None, 1.0) else RepetitionPenaltyLogitsProcessor(penalty)
        if self.greedy:
            return
        if config.temperature not in (None, 1.0):
            self.processors.append(TemperatureLogitsWarper(float(config.temperature)))
        if config.top_k:
            self.processors.append(TopKLogitsWarper(config.top_k))
        if config.top_p is not None and config.top_p < 1.0:
            self.processors.append(TopPLogitsWarper(config.top_p))
        if config.min_p is not None:
            self.processors.append(MinPLogitsWarper(config.min_p))

    @staticmethod
    def unsupported(config: GenerationConfig) -> str:
        """What of a GenerationConfig this cannot do; "" if it can all."""
        odd = sorted(key for key, value in config.to_diff_dict().items() if key not in _SUPPORTED and value is not None)
        return f"of generation_kwargs it does not know {', '.join(odd)}" if odd else ""

    def __call__(self, logits_B_V: torch.Tensor, uniform_B: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        scores_B_V = logits_B_V.float()
        if self.repetition is not None:
            scores_B_V = torch.cat(
                [
                    self.repetition(torch.tensor([row.ids], device=scores_B_V.device), scores_B_V[i : i + 1])
                    for i, row in enumerate(rows)
                ]
            )
        ids: Any = None  # none of these processors reads them
        scores_B_V = self.processors(ids, scores_B_V)
        if self.greedy:
            return scores_B_V.argmax(dim=1).tolist()
        # The inverse of the distribution function, at one number of each row's generator.
        heights_B_V = scores_B_V.softmax(dim=1).cumsum(dim=1, dtype=widest(scores_B_V.device))
        at_B_1 = uniform_B[:, None] * heights_B_V[:, -1:]
        drawn_B = torch.searchsorted(heights_B_V, at_B_1, right=True)[:, 0].clamp(max=scores_B_V.size(1) - 1)
        if any(row.greedy for row in rows):
            greedy_B = torch.tensor([row.greedy for row in rows], device=drawn_B.device)
            drawn_B = torch.where(greedy_B, scores_B_V.argmax(dim=1), drawn_B)
        return drawn_B.tolist()


# ------------------------------------------------------------------------------------------------ rows


@dataclass
class Row:
    """A request on its way: `ids` is all that it has read and sampled, of which `places` have keys and values."""

    number: int
    prompt: tuple[int, ...]
    room: int
    uniform: torch.Tensor
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    places: int = 0
    sampled: int = 0
    turn: int = 0
    work: Future[Any] | None = None
    over: bool = False
    greedy: bool = False

    @property
    def decodes(self) -> bool:
        return not self.over and self.work is None

    def take(self, token: int) -> None:
        self.ids.append(token)
        self.mask.append(1)
        self.sampled += 1


class Rollouts:
    """Rolls rows out on one model.

    Args:
        model: A causal language model of transformers, of an architecture that support.py lets pass.
        generation: Sampling and the end of a turn. `max_new_tokens` bounds all of a row that follows its prompt.
        eos_ids: Tokens that end a turn.
        cache_gb: Bound, in GB, for keys and values: of the rows on their way, of which there are as many at a time as
            fit, at least one, and in what is left, of prefixes that may be met again.
    """

    def __init__(self, model: Any, generation: GenerationConfig, eos_ids: Sequence[int], cache_gb: float):
        self.model = model
        self.sampling = Sampling(generation)
        self.max_new_tokens: int = generation.max_new_tokens
        self.pad: int = generation.pad_token_id if isinstance(generation.pad_token_id, int) else 0
        self.eos = frozenset(eos_ids)
        self.bytes = cache_gb * 1e9
        self.prefixes = Prefixes(self.bytes)
        self.spent = Spent()
        self._weights: Any = None

    def run(
        self, prompts: Sequence[Sequence[int]], seed: int, episodes: Episodes | None = None, weights: Any = None
    ) -> list[Row]:
        """Roll out one row per prompt, in eval or training mode, whichever the model is in.

        Args:
            prompts: Token ids; equal ones are read once. `Greedy` ones are decoded so, others as `generation` says.
            seed: Decides what each row samples, by the row's number.
            episodes: What happens between turns; without, each row has one.
            weights: Anything equal as long as the model's weights are; otherwise what was read is forgotten.
        """
        if weights is None or weights != self._weights:
            self.prefixes.clear()
        self._weights = weights
        rows = [self._row(number, tuple(ids), seed) for number, ids in enumerate(prompts)]
        for row, ids in zip(rows, prompts, strict=True):
            row.greedy = isinstance(ids, Greedy)
        with torch.no_grad(), ThreadPoolExecutor(TOOL_THREADS, "tools") as pool:
            _Run(self, rows, episodes or Alone(), pool).finish()
        self.prefixes.shrink()
        return rows

    def _row(self, number: int, prompt: tuple[int, ...], seed: int) -> Row:
        generator = torch.Generator().manual_seed(stable_hash("row", seed, number) % 2**63)
        uniform = torch.rand(self.max_new_tokens, generator=generator, dtype=torch.float64)
        return Row(number, prompt, self.max_new_tokens, uniform, list(prompt))

    def read(self, slots: Slots, rows: Sequence[int], new: Sequence[Sequence[int]], starts: Sequence[int]) -> Any:
        """Read new tokens into slots, from these places on. Returns the logits (B, V) behind the last of each row."""
        out: list[Any] = [None] * len(rows)
        for picked in _batches([len(ids) for ids in new]):
            ids_B_Q, lengths = self._padded([new[i] for i in picked])
            places_B_Q = torch.tensor([starts[i] for i in picked], device=ids_B_Q.device)[:, None]
            places_B_Q = places_B_Q + torch.arange(ids_B_Q.size(1), device=ids_B_Q.device)
            last = sorted({length - 1 for length in lengths})
            slots.aim([rows[i] for i in picked], places_B_Q, int(places_B_Q.max()) + 1)
            logits_B_L_V = self.forward(slots, ids_B_Q, torch.tensor(last, device=ids_B_Q.device))
            for b, i in enumerate(picked):
                out[i] = logits_B_L_V[b, last.index(lengths[b] - 1)].float()
            self.spent.tokens["read"] += sum(lengths)
        return out

    def forward(self, slots: Slots, ids_B_Q: torch.Tensor, keep: Any) -> torch.Tensor:
        """Logits at the positions `keep`, after `slots.aim`."""
        places = torch.arange(slots.width, device=ids_B_Q.device)
        seen_B_1_Q_K = (places <= slots.places_B_Q[:, :, None])[:, None]
        logits: torch.Tensor = self.model(
            input_ids=ids_B_Q,
            attention_mask=additive_or_boolean(seen_B_1_Q_K, self.model),
            position_ids=slots.places_B_Q,
            past_key_values=slots.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits

    def _padded(self, new: Sequence[Sequence[int]]) -> tuple[torch.Tensor, list[int]]:
        lengths = [len(ids) for ids in new]
        padded = [[*ids, *[self.pad] * (max(lengths) - len(ids))] for ids in new]
        return torch.tensor(padded, device=self.model.device), lengths


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of about the same length, of up to READ_TOKENS tokens with the padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batch[0]] if batch else 0
        if batch and ((len(batch) + 1) * longest > READ_TOKENS or lengths[index] + 16 < longest // 2):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class _Run:
    """One call of `Rollouts.run`: `seats[i]` is the row in slot i. Rows that decode sit in front of those that wait."""

    def __init__(self, rollouts: Rollouts, rows: Sequence[Row], episodes: Episodes, pool: ThreadPoolExecutor):
        self.rollouts, self.episodes, self.pool = rollouts, episodes, pool
        self.queue = list(reversed(rows))
        self.seats: list[Row] = []
        self.slots: Slots | None = None
        self.spent = rollouts.spent
        self.patient = rollouts.model.device.type == "cpu"
        self.busy = Busy()

    def finish(self) -> None:
        while self.queue or self.seats:
            self._seat()
            for _ in range(WINDOW):
                if not any(row.decodes for row in self.seats):
                    break
                self._step()

    # -------------------------------------------------------------------------------------------- between windows

    def _seat(self) -> None:
        """Rows that were done leave, those whose tools are done read the results, and new ones take free slots."""
        self._return()
        self._leave()
        self._enter()
        self._arrange()

    def _return(self) -> None:
        waiting = [row for row in self.seats if row.work is not None]
        if not waiting:
            return
        work: list[Any] = [row.work for row in waiting]
        with self.spent.on("idle"):
            before = self.busy.seconds()
            if not any(row.decodes for row in self.seats):
                wait(work, return_when="FIRST_COMPLETED")
            if self.patient:
                wait(work, timeout=PATIENCE)
            self.spent.seconds["tools"] += self.busy.seconds() - before
        reading = []
        for row, future in zip(waiting, work, strict=True):
            if future.done():
                row.work = None
                if self._follow(row, future.result()):
                    reading.append(row)
        self._read(reading)

    def _follow(self, row: Row, done: Any) -> bool:
        """Whether a row goes on, after what follows its tools' results was put behind it."""
        with self.spent.on("between"):
            suffix = self.episodes.follows(row.number, done, row.ids)
        room = row.room - (len(row.ids) - len(row.prompt))
        if suffix is None or len(suffix) > room:
            row.over = True
            return False
        row.ids += suffix
        row.mask += [0] * len(suffix)
        row.turn = len(row.ids)
        row.over = len(suffix) == room
        self.spent.tokens["asked"] += len(row.ids)
        return not row.over

    def _read(self, rows: list[Row]) -> None:
        """Read what rows in slots have not read yet, and sample what follows."""
        if not rows:
            return
        assert self.slots is not None
        new = [row.ids[row.places :] for row in rows]
        seats = [self.seats.index(row) for row in rows]
        with self.spent.on("reading"):
            read = self.rollouts.read(self.slots, seats, new, [row.places for row in rows])
        for row in rows:
            row.places = len(row.ids)
        self._sample(rows, torch.stack(read))

    def _leave(self) -> None:
        """Close the gaps of rows that are over, from the back."""
        for seat in reversed(range(len(self.seats))):
            if not self.seats[seat].over:
                continue
            last = self.seats.pop()
            if seat < len(self.seats):
                assert self.slots is not None
                self.slots.move(len(self.seats), seat, last.places)
                self.seats[seat] = last

    def _enter(self) -> None:
        if not self.queue:
            return
        with self.spent.on("reading"):
            if self.slots is None:
                self.slots = self._make_slots()
            free = self.slots.count - len(self.seats)
            entering = [self.queue.pop() for _ in range(min(free, len(self.queue)))]
            read = self._prompts({row.prompt for row in entering})
            for row in entering:
                self.slots.put(len(self.seats), read[row.prompt], len(row.prompt))
                row.places = row.turn = len(row.prompt)
                self.seats.append(row)
                self.spent.tokens["asked"] += len(row.prompt)
            self.rollouts.prefixes.shrink()
        if entering:
            self._sample(entering, torch.stack([read[row.prompt].logits for row in entering]))

    def _make_slots(self) -> Slots:
        longest = max(len(row.prompt) for row in self.queue)
        first = self._prompts({self.queue[-1].prompt})[self.queue[-1].prompt]
        per_row = first.bytes / len(first.ids) * (longest + self.rollouts.max_new_tokens)
        limit = self.rollouts.bytes
        count = min(len(self.queue), max(1, int(limit // per_row)))
        self.rollouts.prefixes.limit = max(0.0, limit - count * per_row)
        return Slots(self.rollouts.model, count, longest + WINDOW)

    def _prompts(self, prompts: set[tuple[int, ...]]) -> dict[tuple[int, ...], Prefix]:
        """Each prompt's prefix: those that are held, and the others read, their common heads first."""
        held = self.rollouts.prefixes
        out: dict[tuple[int, ...], Prefix] = {}
        missing = []
        for ids in prompts:
            prefix, length = held.longest(ids)
            if prefix is not None and length == len(ids) == len(prefix.ids):
                out[ids] = prefix
            else:
                missing.append(ids)
        for level in levels(missing):
            for prefix in self._read_prefixes(level):
                held.add(prefix)
                out[prefix.ids] = prefix
        return out

    def _read_prefixes(self, level: list[tuple[int, ...]]) -> Iterator[Prefix]:
        rollouts = self.rollouts
        starts, sources = [], []
        for ids in level:
            prefix, length = rollouts.prefixes.longest(ids)
            sources.append(prefix)
            starts.append(min(length, len(ids) - 1))  # the logits behind the last token are wanted in any case
        for picked in _batches([len(ids) - start for ids, start in zip(level, starts, strict=True)]):
            scratch = Slots(rollouts.model, len(picked), max(len(level[i]) for i in picked))
            for b, i in enumerate(picked):
                source = sources[i]
                if source is not None and starts[i]:
                    scratch.put(b, source, starts[i])
            new = [level[i][starts[i] :] for i in picked]
            logits = rollouts.read(scratch, range(len(picked)), new, [starts[i] for i in picked])
            for b, i in enumerate(picked):
                yield Prefix(level[i], scratch.taken(b, len(level[i])), logits[b])

    def _arrange(self) -> None:
        """Rows that decode in front, so that a step covers no others: those wait for a slow tool."""
        back = len(self.seats) - 1
        for seat, row in enumerate(self.seats):
            if row.decodes:
                continue
            while back > seat and not self.seats[back].decodes:
                back -= 1
            if back <= seat:
                return
            assert self.slots is not None
            self.slots.swap(seat, back, max(row.places, self.seats[back].places))
            self.seats[seat], self.seats[back] = self.seats[back], row

    # -------------------------------------------------------------------------------------------- a step

    def _step(self) -> None:
        """One token for every row up to the last one that decodes; a row among them that ended is decoded in vain."""
        assert self.slots is not None
        began = time.perf_counter()
        end = max(seat for seat, row in enumerate(self.seats) if row.decodes) + 1
        rows = self.seats[:end]
        device = self.rollouts.model.device
        places_B_1 = torch.tensor([[row.places] for row in rows], device=device)
        self.slots.aim(range(end), places_B_1, int(max(row.places for row in rows)) + 1)
        ids_B_1 = torch.tensor([[row.ids[-1]] for row in rows], device=device)
        logits_B_V = self.rollouts.forward(self.slots, ids_B_1, 1)[:, -1]
        decoding = [seat for seat, row in enumerate(rows) if row.decodes]
        if len(decoding) < end:
            logits_B_V = logits_B_V[decoding]
        rows = [rows[seat] for seat in decoding]
        for row in rows:
            row.places += 1
        self.spent.seconds["decoding"] += time.perf_counter() - began
        self._sample(rows, logits_B_V)

    def _sample(self, rows: Sequence[Row], logits_B_V: torch.Tensor) -> None:
        began = time.perf_counter()
        device = logits_B_V.device
        uniform_B = torch.stack([row.uniform[row.sampled] for row in rows]).to(widest(device)).to(device)
        tokens = self.rollouts.sampling(logits_B_V, uniform_B, rows)
        self.spent.tokens["sampled"] += len(tokens)
        for row, token in zip(rows, tokens, strict=True):
            row.take(token)
        self.spent.seconds["decoding"] += time.perf_counter() - began
        for row in rows:
            full = len(row.mask) == row.room
            if full or row.ids[-1] in self.rollouts.eos:
                self._end_turn(row)

    def _end_turn(self, row: Row) -> None:
        with self.spent.on("between"):
            work = self.episodes.ended(row.number, row.ids[: row.turn], row.ids[row.turn :])
        if work is None:
            row.over = True
        else:
            row.work = self.pool.submit(self._work, work)

    def _work(self, work: Callable[[], Any]) -> Any:
        with self.busy:
            return work()
