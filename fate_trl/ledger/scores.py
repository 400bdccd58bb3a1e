"""The verifiers of a run, asked through its cache: `scores.jsonl` in the run directory.

A judge costs seconds and money, and a chunk that is done again after a stop, or a second rescoring, asks it about
trajectories that it has seen. So the scores of a verifier that says `cached = True` are kept, under the trajectory's
content and the verifier's name, version and arguments; of an ensemble, those of its members. The built-ins say no
such thing: to score costs less than to look up. Errors are never kept: the next time may be better. PFPO does not look:
every completion there is new.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from ..record import content_hash
from ..types import Score, ScoreCard, Trajectory
from ..verify.scoring import SECONDS, Wrapper, score_all
from .layout import SCORES
from .writing import RunDirectory


class Scorer:
    """`score_all` with verifiers that are known by name, through a run's cache.

    Args:
        verifiers: The verifiers.
        identities: Of each verifier what its scores depend on besides the trajectory: see `plugins.identity`.
            A verifier beyond their number is never looked up.
        directory: The run directory that keeps the scores.
        seconds: Time for one call of a verifier.
    """

    def __init__(
        self,
        verifiers: Sequence[Any],
        identities: Sequence[str],
        directory: RunDirectory,
        seconds: float = SECONDS,
    ):
        self.verifiers = verifiers
        self.seconds = seconds
        self.took = 0.0
        """Seconds of all calls so far."""
        self._identity = dict(_cached(verifiers, identities))
        self._directory = directory
        kept = directory.read(SCORES) if self._identity else []
        self._kept: dict[str, dict[str, Any]] = {record["key"]: record["scores"] for record in kept}

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[ScoreCard]:
        """One card per trajectory, in order; see `score_all`."""
        began = time.perf_counter()
        parts = [self._cards(verifier, trajectories) for verifier in self.verifiers]
        self.took += time.perf_counter() - began
        return [ScoreCard({k: s for card in cards for k, s in card.scores.items()}) for cards in zip(*parts)]

    def _cards(self, verifier: Any, trajectories: Sequence[Trajectory]) -> list[ScoreCard]:
        if id(verifier) not in self._identity:
            return score_all([verifier], trajectories, self.seconds, self._cards)
        keys = [content_hash([self._identity[id(verifier)], trajectory]) for trajectory in trajectories]
        unseen = {key: t for key, t in zip(keys, trajectories, strict=True) if key not in self._kept}
        fresh = dict(zip(unseen, score_all([verifier], list(unseen.values()), self.seconds), strict=True))
        sound = {key: card for key, card in fresh.items() if not card.errors}
        if sound:
            records = [{"key": key, "scores": card.to_dict()["scores"]} for key, card in sound.items()]
            self._directory.append(SCORES, records)
            self._kept |= {record["key"]: record["scores"] for record in records}
        return [fresh[key] if key in fresh else self._look_up(key) for key in keys]

    def _look_up(self, key: str) -> ScoreCard:
        return ScoreCard({name: Score.from_dict(score) for name, score in self._kept[key].items()})


def _cached(verifiers: Sequence[Any], identities: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(id, identity) of each verifier whose scores are kept; of a wrapper's members rather than of the wrapper."""
    for verifier, name in zip(verifiers, identities):
        if isinstance(verifier, Wrapper):
            yield from _cached(verifier.members, verifier.identities)
        elif getattr(verifier, "cached", False):
            yield id(verifier), name
