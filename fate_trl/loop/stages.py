"""A stage of a run: done once, recorded when it is done, resumable in its middle. No torch here.

Everything that a stage makes is committed to the run directory before the next stage starts, and every chunk of
rollouts has its own seed, so a run that was stopped goes on where it was, and with a deterministic policy its
records are the same as those of a run that was not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .. import metrics, plugins
from ..hookspecs import Learner, Policy
from ..ledger.layout import file_of, round_dir, seed_of, trajectories_in
from ..ledger.scores import Scorer
from ..ledger.writing import RunDirectory
from ..process.stop import Stop
from ..recipe.schema import ComponentRef, Recipe
from ..types import Case, RolloutRequest, ScoreCard, Stage, Trajectory
from ..verify.scoring import spent
from .budgets import Budgets
from .counts import peak_memory
from .policies import save_policy
from .reporter import Reporter, Silent

Work = Callable[[], Mapping[str, Any] | None]
"""What a stage does; it returns what the stage's record says of it."""


Training = Callable[[int, str], Mapping[str, Any]]
"""What a training stage does, on its seed and its scratch folder; it returns the same."""


@dataclass(kw_only=True)
class Stages:
    """How stages are done, whatever they do.

    Attributes:
        recipe: What was asked.
        verifiers, held_out: Score trajectories; `held_out` ones only in evaluations.
        learner: What is trained.
        run: Where it is recorded.
        reporter: Is told of progress.
        memory: Says at the end of each stage how much memory was held.
        budgets: Share tries out.
        stop: Whether the run was asked to stop. It then records what it has in hand, and stops.
    """

    recipe: Recipe
    verifiers: Sequence[Any]
    learner: Learner
    run: RunDirectory
    held_out: Sequence[Any] = ()
    reporter: Reporter = field(default_factory=Silent)
    budgets: Budgets = field(default_factory=Budgets)
    stop: Stop = field(default_factory=Stop)
    memory: Callable[[], Mapping[str, float]] = peak_memory

    def _done(self, round: int) -> dict[str, dict[str, Any]]:
        """Finished stages of a round by name."""
        return self.run.stages(round)

    def _recorded(self, round: int, file: str, stage: str) -> list[Case]:
        """Scored trajectories of a finished stage. Raises LedgerError if they are not as many as it recorded."""
        name = file_of(round, file)
        cases, recorded = self.run.cases(name, stage), trajectories_in(self._done(round).get(stage, {}))
        if recorded is not None and recorded != len(cases):
            raise self.run.damaged(name, f"{len(cases)} of the {recorded} trajectories of {stage} are there")
        return cases

    def _stage(self, round: int, name: Stage, total: int, work: Work) -> dict[str, Any]:
        """Do a stage once, and record that it is done, with its summary and seconds and memory."""
        done = self._done(round).get(name)
        if done is not None:
            return done
        self.stop.check()
        self.reporter.start(round, name, total)
        start, scored = time.perf_counter(), self._verifying()
        record = {"stage": name, **(work() or {}), "seconds": time.perf_counter() - start, **self.memory()}
        record |= _parts(record, self._verifying() - scored)
        judging = spent([*self.verifiers, *self.held_out])
        record |= {"judging": judging} if judging else {}
        self.run.append(file_of(round, "stages"), [record])
        self.reporter.finish({"round": round, **record})
        return record

    def _verifying(self) -> float:
        """Seconds that this run's verifiers took so far, PFPO's rewards aside."""
        scorers = [vars(self).get(name) for name in ("_scorer", "_held_out_scorer")]
        return float(sum(scorer.took for scorer in scorers if scorer is not None))

    def _train(self, round: int, name: Stage, work: Training) -> None:
        """A training stage: `work` on its seed and its scratch folder, which is removed once the stage is recorded.

        The policy is saved after it, so that a resumed run does not train twice.
        """
        folder, scratch = f"{round_dir(round)}/after-{name}", self.run.path / round_dir(round) / f"training-{name}"

        def train() -> Mapping[str, Any]:
            summary = work(seed_of(self.recipe.seed, round, name), str(scratch))
            save_policy(self.learner, self.run, folder, self.budgets)
            return summary

        if name not in self._done(round):
            self._stage(round, name, 0, train)
        elif (self.run.path / folder).is_dir():
            self.learner.load(str(self.run.path / folder))
            self.budgets.load(self.run.path / folder)
        shutil.rmtree(scratch, ignore_errors=True)

    # -------------------------------------------------------------------------------------------- rolling out

    def _roll(
        self,
        round: int,
        file: str,
        stage: Stage,
        requests: Sequence[RolloutRequest],
        policy: Policy | None = None,
        first: int = 0,
        scored: bool = True,
    ) -> list[Case]:
        """Roll out and score in chunks, numbered from `first`. A chunk is committed as a whole, and not done again.

        Where nothing asks how good they are, as `scored` says, cards are empty.
        """
        name, size = file_of(round, file), self.recipe.rollout.chunk
        committed = self.run.chunks(name, stage)
        cases: list[Case] = []
        for chunk, start in enumerate(range(0, len(requests), size), first):
            members = requests[start : start + size]
            if chunk not in committed:
                self.stop.check()
                seed = seed_of(self.recipe.seed, round, stage, chunk)
                rolled = (policy or self.learner).rollout(members, seed)
                fresh = self._score(rolled, stage) if scored else [(each, ScoreCard({})) for each in rolled]
                # Before the commit, so that a run resumed after the cause is repaired does this chunk again.
                seen = len(cases) + len(fresh)
                allowed = metrics.error_budget(self.recipe.evaluation.max_error_rate, seen)
                metrics.check_errors([case for case in cases + fresh if not metrics.is_repeatable(case)], allowed, seen)
                self.run.append_chunk(name, stage, chunk, fresh)
                committed[chunk] = fresh
            self.reporter.advance(len(members), committed[chunk])
            cases += committed[chunk]
        return cases

    def _score(self, trajectories: Sequence[Trajectory], stage: str = "") -> list[Case]:
        """Trajectories with their cards. On held-out splits the held-out verifiers score them too."""
        cards = self._scorer(trajectories)
        if self.held_out and stage.startswith("eval-"):
            judged = self._held_out_scorer(trajectories)
            cards = [ScoreCard(card.scores, held.scores) for card, held in zip(cards, judged, strict=True)]
        return list(zip(trajectories, cards, strict=True))

    @cached_property
    def _scorer(self) -> Scorer:
        return self._scorer_of(self.verifiers, self.recipe.verifiers)

    @cached_property
    def _held_out_scorer(self) -> Scorer:
        return self._scorer_of(self.held_out, self.recipe.evaluation.verifiers)

    def _scorer_of(self, verifiers: Sequence[Any], references: Sequence[ComponentRef]) -> Scorer:
        identities = [plugins.identity(reference.name, reference.args) for reference in references]
        return Scorer(verifiers, identities, self.run, self.recipe.rollout.verifier_seconds)


def _parts(record: Mapping[str, Any], verifying: float) -> dict[str, dict[str, float]]:
    """What a stage's seconds went into, where that is known, and the rest as "other": together they are its seconds."""
    told = dict(record.get("time", {}))
    if verifying:
        told["verifying"] = told.get("verifying", 0.0) + verifying
    return {"time": {**told, "other": record["seconds"] - sum(told.values())}} if told else {}
