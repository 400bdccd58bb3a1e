"""The pairings of the family `preferences`: which trajectories of a round are learned from as pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fate_trl import Case, Pair, Repair, Trajectory, Tried, call_paths, call_turns, pair_of, score_gap, turns_of

Share = Annotated[float, Field(ge=0, le=1)]


def chosen_of(repair: Repair) -> Case | None:
    """A repair's chosen candidate with its scores, if one was chosen."""
    return None if repair.chosen is None else (repair.candidates[repair.chosen], repair.cards[repair.chosen])


def failure_of(repair: Repair) -> Case:
    return repair.failure.trajectory, repair.failure.card


def scored(repair: Repair) -> list[Case]:
    """A repair's candidates without an error, with their scores."""
    return [(t, card) for t, card in zip(repair.candidates, repair.cards, strict=True) if not (t.error or card.errors)]


class MarginFilter:
    """Only pairs whose score gap is above a margin; so as many per failure as there are, or none.

    Any candidate of a repair may be the better side, chosen or not. The reference of the stage is the last round's
    policy, as the paper has it.

    Source: DNO, the practical algorithm, [recall]. Ours: the gap is the mean over the objectives.

    Args:
        margin: The score gap of a pair is above it.
        beside: What a candidate stands beside: the failure, or (`all`) every other candidate as well.
        most: Pairs of one failure, those with the largest gaps; null for all.
    """

    def __init__(
        self,
        margin: Share = 0.25,
        beside: Literal["failure", "all"] = "all",
        most: Annotated[int, Field(ge=1)] | None = None,
    ):
        self.margin, self.beside, self.most = margin, beside, most
        self._considered = self._kept = 0

    def pairs(self, tried: Tried) -> list[Pair | None]:
        self._considered = self._kept = 0
        return [pair for repair in tried.repairs for pair in self._of(repair, tried.round)]

    def _of(self, repair: Repair, round: int) -> list[Pair | None]:
        candidates, failure = scored(repair), failure_of(repair)
        worse = [failure, *(candidates if self.beside == "all" else ())]
        both = [(a, b) for a in candidates for b in worse if a is not b]
        wide = [(score_gap(a[1], b[1]), a, b) for a, b in both if score_gap(a[1], b[1]) > self.margin]
        kept = sorted(wide, key=lambda found: -found[0])[: self.most]
        self._considered += len(both)
        self._kept += len(kept)
        return [pair_of(a, b, failure[0], round) for _, a, b in kept]

    def metrics(self) -> dict[str, float]:
        """Orders of two trajectories that were considered, and those that were wide enough."""
        return {"considered": self._considered, "kept": self._kept}


class StepPairs:
    """A repair and its failure from the first call on in which they differ; what they did alike gets no loss.

    Two calls are alike by name and arguments. Where all calls of a side are alike to the other's, the turn after them
    counts, its answer say.

    Source: SVPO, [recall]. Ours: steps are the turns of executed calls, and no search tree is needed, as repairs branch
    from failures; the words before alike calls may differ, and get no loss either.

    Args:
        until: Where loss ends: at the end of a side, or (`step`) of the turn in which it differs.
    """

    def __init__(self, until: Literal["end", "step"] = "end"):
        self.until = until
        self._alike: list[int] = []

    def pairs(self, tried: Tried) -> list[Pair | None]:
        self._alike = []
        chosen = [(repair, case) for repair in tried.repairs if (case := chosen_of(repair)) is not None]
        return [self._of(repair, case, tried.round) for repair, case in chosen]

    def _of(self, repair: Repair, chosen: Case, round: int) -> Pair | None:
        failure = failure_of(repair)
        pair = pair_of(chosen, failure, failure[0], round)
        if pair is None:
            return None
        alike = _common(call_paths(chosen[0]), call_paths(failure[0]))
        masks = (
            self._masked(chosen[0], pair.chosen_mask, alike),
            self._masked(failure[0], pair.rejected_mask, alike),
        )
        if not all(map(any, masks)):
            return None
        self._alike.append(alike)
        return replace(pair, chosen_mask=masks[0], rejected_mask=masks[1])

    def _masked(self, trajectory: Trajectory, mask: tuple[int, ...], alike: int) -> tuple[int, ...]:
        """The side's mask from the turn of its first call after those alike; given turns stand before its own."""
        turns = call_turns(trajectory)
        if alike < len(turns):
            start = max(0, turns[alike])
        else:
            start = turns[alike - 1] + 1 if alike else 0
        turn_T = turns_of(trajectory.policy_mask)
        keep_T = turn_T >= start if self.until == "end" else turn_T == start
        given = len(mask) - len(keep_T)
        return mask[:given] + tuple(int(own and kept) for own, kept in zip(mask[given:], keep_T, strict=True))

    def metrics(self) -> dict[str, float]:
        """Mean number of calls that the sides begin alike with."""
        return {"alike_calls_mean": float(np.mean(self._alike)) if self._alike else 0.0}


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many elements two sequences begin alike with."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def cross_verify(passed_N_M: np.ndarray, damping: float = 0.85, iterations: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Scores of N solutions and M checks that confirm each other: both sum to 1, (N,) and (M,).

    A solution is as good as the checks that it passes, a check as good as the solutions that pass it.
    """
    solutions_N, checks_M = (np.full(size, 1 / size) for size in passed_N_M.shape)
    for _ in range(iterations):
        raised_N = _normed((1 - damping) * solutions_N + damping * _normed(passed_N_M @ checks_M))
        checks_M = _normed((1 - damping) * checks_M + damping * _normed(passed_N_M.T @ solutions_N))
        solutions_N = raised_N
    return solutions_N, checks_M


def _normed(values: np.ndarray) -> np.ndarray:
    """Divided by their sum; all alike where that is 0."""
    total = values.sum()
    normed: np.ndarray = values / total if total > 0 else np.full(len(values), 1 / len(values))
    return normed


class CrossVerified:
    """The best beside the worst of a failure's candidates and the failure, as candidates and checks rank each other.

    With W_ij = how far candidate i passes check j, scores of candidates R and of checks C are iterated:
    R <- (1 - d) R + d W C, C <- (1 - d) C + d W^T R, both divided by their sums. The top is paired with the bottom.

    Source: CodeDPO, [recall]. Ours: the checks are the verifiers' verdicts, one per objective that applies; the failure
    is one of the candidates, and makes no better side; where the scores of top and bottom are alike there is no pair.

    Args:
        damping: d, what an iteration takes over.
        iterations: Of the scores.
    """

    def __init__(self, damping: Share = 0.85, iterations: Annotated[int, Field(ge=1)] = 10):
        self.damping, self.iterations = damping, iterations
        self._gaps: list[float] = []

    def pairs(self, tried: Tried) -> list[Pair | None]:
        self._gaps = []
        return [pair for repair in tried.repairs for pair in self._of(repair, tried.round)]

    def _of(self, repair: Repair, round: int) -> list[Pair | None]:
        cases = [*scored(repair), failure_of(repair)]
        names = [name for name, score in repair.failure.card.scores.items() if score.value is not None]
        if len(cases) < 2 or not names:
            return []
        passed_N_M = np.nan_to_num(np.array([card.vector(names) for _, card in cases]))
        score_N, _ = cross_verify(passed_N_M, self.damping, self.iterations)
        top, bottom = int(score_N[:-1].argmax()), len(cases) - 1 - int(score_N[::-1].argmin())
        if score_N[top] - score_N[bottom] < 1e-9:
            return []
        self._gaps.append(float(score_N[top] - score_N[bottom]))
        return [pair_of(cases[top], cases[bottom], repair.failure.trajectory, round)]

    def metrics(self) -> dict[str, float]:
        """Mean gap between the scores of top and bottom; the scores of one failure sum to 1."""
        return {"rank_gap_mean": float(np.mean(self._gaps)) if self._gaps else 0.0}


class EarlierPolicy:
    """The chosen repair beside what an earlier policy did on the same task, where that was worse: the latest one's try.

    Source: self-play fine-tuning (SPIN), [recall]. Ours: the better side is the chosen repair, and a try that was as
    good as it by the score gap is no worse side.

    Args:
        otherwise: What stands there where no earlier policy tried the task, as in round 1: the failure, or nothing.
    """

    def __init__(self, otherwise: Literal["failure", "nothing"] = "failure"):
        self.otherwise = otherwise
        self._earlier = self._failures = 0

    def pairs(self, tried: Tried) -> list[Pair | None]:
        self._earlier = self._failures = 0
        latest: dict[tuple[str, str], tuple[int, Case]] = {}
        for round, case in tried.earlier():
            if not (case[0].error or case[1].errors):
                latest.setdefault((case[0].task.suite, case[0].task.id), (round, case))
        out: list[Pair | None] = []
        for repair in tried.repairs:
            better, failure = chosen_of(repair), failure_of(repair)
            if better is None:
                continue
            round, worse = latest.get((failure[0].task.suite, failure[0].task.id), (0, None))
            if worse is None and self.otherwise == "failure":
                self._failures += 1
                out.append(pair_of(better, failure, failure[0], tried.round))
            elif worse is not None and score_gap(better[1], worse[1]) > 0:
                self._earlier += 1
                out.append(pair_of(better, worse, failure[0], tried.round, round))
        return out

    def metrics(self) -> dict[str, float]:
        """Pairs with an earlier policy's try, and with the failure in its place."""
        return {"earlier": self._earlier, "failures": self._failures}
