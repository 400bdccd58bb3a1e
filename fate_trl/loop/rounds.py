"""The rounds: collect → repair → re-score → select → update → accept, on any learner. No torch here.

Everything that a stage makes is committed to the run directory before the next stage starts, and every chunk of
rollouts has its own seed, so a run that was stopped goes on where it was, and with a deterministic policy its
records are the same as those of a run that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from .. import interchange, metrics
from ..errors import FateError
from ..hookspecs import Item, Merge, Pairing, ParetoSelector, RepairStrategy, Spent, Tried
from ..ledger.layout import file_of, round_dir, seed_of
from ..recipe.schema import RepairSettings
from ..recipe.trl_keys import group_size
from ..suites.scripted import perform, script_for
from ..types import BufferRow, Case, Failure, Hindsight, Pair, Repair, RolloutRequest, ScoreCard
from .accepting import judged, resolves_as_much
from .asking import Asking, Roll
from .budgets import collected_tries, failure_item, prompt_items, prompt_tries, repair_item, repair_tries, task_item
from .counts import collect_summary, repair_summary, tokens, tokens_of_round
from .evaluating import Evaluating
from .hindsight import write_hindsight
from .merging import TRAINED, earlier_policies, merge_policies, merge_reference
from .own import own_requests, own_summary, with_own
from .pairing import write_pairs
from .policies import load_policy, save_policy, tidy
from .repairing import anchors, by_failure, failures_of, limited, row_of, rows_of, select, selection
from .stages import Training
from .successes import with_successes
from .tasks import sample_tasks
from .weighing import drawn


@dataclass(kw_only=True)
class Evolution(Evaluating):
    """One run of a recipe; `build` of train.build or serve.endpoint makes it, or a test with a scripted learner.

    Attributes:
        repair: Words the repair prompts; None where the recipe repairs nothing.
        selector: Chooses repairs.
        pairing: Makes the pairs; None where the recipe learns from none.
        own_samples: Whether the policy is sampled on the pairs' prompts before it learns from them.
        merge: Chooses the shares of a merged policy; None where a round's policy is the trained one.
        references: Choose those of the reference of a training stage, by its name; by default it is the stage's start.
        observers: Are told of each round.
    """

    repair: RepairStrategy | None
    selector: ParetoSelector
    pairing: Pairing | None = None
    own_samples: bool = False
    merge: Merge | None = None
    references: Mapping[str, Merge] = field(default_factory=dict)
    observers: Sequence[Callable[..., Any]] = ()

    # -------------------------------------------------------------------------------------------- the whole run

    def __call__(self) -> list[dict[str, Any]]:
        """Run, or go on with, all rounds; returns the rows of metrics.json."""
        if self.recipe.rounds:
            self._require()
        self._round_zero()
        accepted, rows = 0, self._write_metrics()
        for round in range(1, self.recipe.rounds + 1):
            if not self._affordable(round):
                break
            accepted, rows = self._round(round, accepted), self._write_metrics()
        return rows

    def _require(self) -> None:
        """Raise FateError for what rounds need and the suites have not: now, not after an evaluation."""
        self._sample("train", self.recipe.rollout.tasks, 1)
        if self.recipe.evaluation.keep == "best" and not self.tasks("validation"):
            raise FateError("evaluation.keep: best needs validation tasks, and the suites have none; set it to last.")
        if self.recipe.rollout.recorded is not None and "collect" not in self._done(1):
            interchange.usable(interchange.read(self.recipe.rollout.recorded), self.tasks("all"), self.tasks("train"))

    def _affordable(self, round: int) -> bool:
        """Whether one more round like the last brings the tokens closer to the recipe's budget."""
        if self.recipe.token_budget is None or round == 1:
            return True
        used = [tokens_of_round(self._done(earlier)) for earlier in range(1, round)]
        return sum(used) + used[-1] / 2 <= self.recipe.token_budget

    def _round_zero(self) -> None:
        """The policy before training: a warm start if asked for, then its evaluation."""
        if self.recipe.warm_start is not None:
            self._evaluate(0, "test", "base")
            self._train(0, "warm_start", self._warm_start)
        self._baselines()
        self._evaluate(0, "test")
        self._evaluate(0, "validation")

    def _round(self, round: int, accepted: int) -> int:
        """One round from the policy of round `accepted`; returns the round whose policy the next one starts from."""
        stages = self._done(round)
        done = stages.get("accept")
        if done is None:
            trained = "save" in stages
            if trained:
                tidy(self.run, round)
            load_policy(self.learner, self.run, accepted, self.budgets)
            collected, repairs, buffer = self._repaired(round, accepted)
            if self.recipe.sft is not None and buffer:
                self._train(round, "sft", lambda seed, scratch: self.learner.sft(buffer, seed, "sft", scratch))
            if self.recipe.distillation is not None and (turns := self._hindsight(round, repairs)):
                teach = self.learner.distillation
                self._train(round, "distillation", lambda seed, scratch: teach(turns, seed, scratch))
            if self.pairing is not None and (pairs := self._pairs(round, accepted, collected, repairs)):
                pairs = self._own(round, pairs, repairs) if self.own_samples else pairs
                held = self._held(round, accepted, "preference", partial(self.learner.preference, pairs))
                self._train(round, "preference", held)
            if self.recipe.pfpo is not None:
                requests = self._pfpo_requests(round, collected)
                requests = with_successes(requests, repairs) if self.recipe.pfpo.exchange else requests
                self._pfpo(round, accepted, requests, collected)
            if self.merge is not None:
                merge = self.merge
                self._train(round, "merge", lambda seed, _: self._merged(merge, round, accepted, seed))
            folder = f"{round_dir(round)}/policy"
            self._stage(round, "save", 0, lambda: save_policy(self.learner, self.run, folder, self.budgets))
            tidy(self.run, round)
            if trained:
                load_policy(self.learner, self.run, round, self.budgets)
            self._evaluate(round, "validation")
            self._evaluate(round, "test")
            done = self._accept(round, accepted)
        return round if done["accepted"] else accepted

    def _repaired(self, round: int, accepted: int) -> tuple[list[Case], list[Repair], list[BufferRow]]:
        """What was collected, the repairs that pairs are made of, and the rows to train on; nothing where the recipe
        repairs nothing."""
        if self.repair is None:
            return [], [], []
        collected = self._collect(round)
        for stage in ("collect", "pfpo"):
            self.budgets.told(stage, collected_tries(collected))
        repairs = self._repair(round, collected)
        kept, shares = repairs, self._shares_of_chosen(round, repairs)
        if shares is not None:
            kept = [repair for repair, count in zip(repairs, shares, strict=True) if count]
            repairs = [repair for repair, count in zip(repairs, shares, strict=True) for _ in range(count)]
        return collected, kept, self._buffer(round, collected, repairs, accepted)

    def _shares_of_chosen(self, round: int, repairs: Sequence[Repair]) -> list[int] | None:
        """How often each repair is learned from, where a budget says that; those without a chosen one are left in."""
        if "buffer" not in self.budgets:
            return None
        items = [repair_item(repair) for repair in repairs if repair.chosen is not None]
        shares = self.budgets.shares("buffer", items, round)
        self.budgets.told("buffer", [Spent(item, count, count) for item, count in zip(items, shares, strict=True)])
        left = iter(shares)
        return [1 if repair.chosen is None else next(left) for repair in repairs]

    # -------------------------------------------------------------------------------------------- the stages

    def _warm_start(self, seed: int, scratch: str) -> Mapping[str, Any]:
        """SFT on oracle traces of the training split, each executed for real and kept only if it is resolved."""
        assert self.recipe.warm_start is not None
        rng = np.random.default_rng(seed)
        traces = []
        for task in sample_tasks(self.tasks("train"), self.recipe.warm_start.traces, rng):
            suite = self.suites[task.suite]
            script = script_for(suite, task, "oracle")
            if script is not None:
                traces.append(
                    perform(suite, RolloutRequest(task, task.messages, "warm_start"), script, "oracle", self._limits)
                )
        rows = [row_of(trajectory, "oracle", 0) for trajectory, card in self._score(traces) if card.resolved]
        if not rows:
            raise FateError(
                "warm_start: no oracle trace of the training split is resolved; run `fate-trl suites check`."
            )
        self.run.write_text(file_of(0, "buffer"), "")
        self.run.append(file_of(0, "buffer"), (row.to_dict() for row in rows))
        return {"traces": len(rows), **self.learner.sft(rows, seed, "warm_start", scratch)}

    def _collect(self, round: int) -> list[Case]:
        if round == 1 and self.recipe.rollout.recorded is not None:
            return self._take_recorded(self.recipe.rollout.recorded)
        tasks = self._sample("train", self.recipe.rollout.tasks, round)
        shares = self._shares("collect", round, [task_item(task, "collect") for task in tasks])
        requests = [
            RolloutRequest(task, task.messages, "collect", attempt)
            for task, count in zip(tasks, shares or [1] * len(tasks), strict=True)
            for attempt in range(count)
        ]
        cases: list[Case] = []

        def work() -> Mapping[str, Any]:
            cases.extend(self._roll(round, "rollouts", "collect", requests))
            return {**collect_summary(cases), **self.budgets.record("collect", shares)}

        self._stage(round, "collect", len(requests), work)
        return cases or self._recorded(round, "rollouts", "collect")

    def _take_recorded(self, path: str) -> list[Case]:
        """What round 1 collects where the recipe names recorded ones: those, with their scores or a replay's."""
        name = file_of(1, "rollouts")

        def work() -> Mapping[str, Any]:
            found = interchange.usable(interchange.read(path), self.tasks("all"), self.tasks("train"))
            cases = self._completed(interchange.executed(found.cases, self.suites, self._limits))
            if not self.run.chunks(name, "collect"):
                self.run.append_chunk(name, "collect", 0, cases)
            return {**collect_summary(cases), "held_out": len(found.held_out)}

        self._stage(1, "collect", 0, work)
        return self.run.cases(name, "collect")

    def _completed(self, cases: Sequence[Case]) -> list[Case]:
        """Recorded cases with a score for every objective: where the record has none, the verifiers give it."""
        lacking = [trajectory for trajectory, card in cases if set(self.objectives) - set(card.scores)]
        own = self._score(lacking)
        if own:
            metrics.check_errors(own, metrics.error_budget(self.recipe.evaluation.max_error_rate, len(own)))
        given = {trajectory.key: card.scores for trajectory, card in own}
        whole = [(trajectory, {**given.get(trajectory.key, {}), **card.scores}) for trajectory, card in cases]
        return [
            (trajectory, ScoreCard({name: scores[name] for name in self.objectives})) for trajectory, scores in whole
        ]

    @property
    def _settings(self) -> RepairSettings:
        """The recipe's `repair`, where it repairs."""
        assert self.recipe.repair is not None
        return self.recipe.repair

    def _repair(self, round: int, collected: Sequence[Case]) -> list[Repair]:
        """Propose, execute and score K candidates per failure, and select one."""
        assert self.repair is not None
        rng = np.random.default_rng(seed_of(self.recipe.seed, round, "repair"))
        failures = limited(failures_of(collected), self._settings.max_failures, rng)
        shares = self._shares("repair", round, [failure_item(failure, "repair") for failure in failures])
        asking = Asking(self.repair, self._settings, failures, shares, rng)
        repairs: list[Repair] = []

        def chosen(roll: Roll) -> list[Repair]:
            asking.go(roll)
            return self._select(failures, asking.requests, asking.cases, rng)

        def work() -> Mapping[str, Any]:
            repairs.extend(chosen(self._rolled_in_steps(round)))
            self.run.write_text(file_of(round, "selections"), "")
            self.run.append(file_of(round, "selections"), map(selection, repairs))
            told = {**asking.summary(), **self.budgets.record("repair", shares)}
            return {**repair_summary(repairs), **tokens(asking.cases), **told}

        if "repair" in self._done(round):
            recorded = iter(self._recorded(round, "repairs", "repair"))
            repairs = chosen(lambda requests: list(islice(recorded, len(requests))))
        self._stage(round, "repair", len(asking.requests), work)
        self.budgets.told("repair", repair_tries(repairs))
        return repairs

    def _rolled_in_steps(self, round: int) -> Roll:
        """Rolls a step of repairs out; the chunks of a step are numbered after those of the step before."""
        chunks = 0

        def roll(requests: Sequence[RolloutRequest]) -> list[Case]:
            nonlocal chunks
            cases = self._roll(round, "repairs", "repair", requests, first=chunks)
            chunks += -(-len(requests) // self.recipe.rollout.chunk)
            return cases

        return roll

    def _shares(self, stage: str, round: int, items: Sequence[Item]) -> list[int] | None:
        """Tries by item; None where the recipe has no budget for them."""
        return self.budgets.shares(stage, items, round) if stage in self.budgets else None

    def _select(
        self,
        failures: Sequence[Failure],
        requests: Sequence[RolloutRequest],
        cases: Sequence[Case],
        rng: np.random.Generator,
    ) -> list[Repair]:
        settings, candidates = self._settings, by_failure(requests, cases)
        how = (self.selector, self.objectives, settings.accept, settings.floors, rng)
        tries = [(f.trajectory.task.suite, f.trajectory.task.id, f.trajectory.attempt) for f in failures]
        return [select(failure, candidates.get(key, []), *how) for failure, key in zip(failures, tries, strict=True)]

    def _buffer(
        self, round: int, collected: Sequence[Case], repairs: Sequence[Repair], accepted: int
    ) -> list[BufferRow]:
        """The rows to train on: this round's repairs and anchors, and with `replay` those of accepted rounds."""
        name, settings = "buffer", self._settings

        def work() -> Mapping[str, Any]:
            rng = np.random.default_rng(seed_of(self.recipe.seed, round, "anchors"))
            rows = [row for repair in repairs for row in rows_of(repair, settings.target, round)]
            kept = anchors(collected, int(settings.anchors * len(rows)), round, rng) if settings.anchors else []
            self.run.write_text(file_of(round, name), "")
            self.run.append(file_of(round, name), (row.to_dict() for row in (*rows, *kept)))
            return {"repair_rows": len(rows), "anchor_rows": len(kept)}

        self._stage(round, "buffer", 0, work)
        earlier = [r for r in range(1, accepted + 1) if self._done(r)["accept"]["accepted"]]
        rounds = [*earlier, round] if settings.replay else [round]
        records = [record for r in rounds for record in self.run.read(file_of(r, name))]
        return [BufferRow.from_dict(record) for record in records]

    def _hindsight(self, round: int, repairs: Sequence[Repair]) -> list[Hindsight]:
        """The turns at fault of the round's repaired failures."""
        name = file_of(round, "hindsight")
        self._stage(round, "hindsight", 0, lambda: write_hindsight(self.run, name, repairs, round))
        return [Hindsight.from_dict(record) for record in self.run.read(name)]

    def _pairs(self, round: int, accepted: int, collected: Sequence[Case], repairs: Sequence[Repair]) -> list[Pair]:
        """The pairs of a round, as the recipe's pairing makes them."""
        assert self.pairing is not None
        pairing, name = self.pairing, file_of(round, "pairs")
        tried = Tried(round, repairs, collected, lambda: self._earlier(accepted))
        self._stage(round, "pairs", 0, lambda: write_pairs(self.run, name, pairing, tried))
        return [Pair.from_dict(record) for record in self.run.read(name)]

    def _own(self, round: int, pairs: Sequence[Pair], repairs: Sequence[Repair]) -> list[Pair]:
        """The pairs with what the policy, as it is now, writes by itself on their prompts; nothing scores that.

        Once it has learned from them it is another policy, and nobody needs what it wrote before.
        """
        if "preference" in self._done(round):
            return list(pairs)
        requests = own_requests(pairs, [repair.failure.trajectory.task for repair in repairs])
        cases: list[Case] = []

        def work() -> Mapping[str, Any]:
            cases.extend(self._roll(round, "rollouts", "own", requests, scored=False))
            return own_summary(pairs, cases)

        self._stage(round, "own", len(requests), work)
        return with_own(pairs, cases or self._recorded(round, "rollouts", "own"))

    def _earlier(self, accepted: int) -> Iterator[tuple[int, Case]]:
        """What policies before that of round `accepted` collected, the latest first.

        Those of that round and before it did; what came after it was rolled back, so it had the policy of now.
        """
        for round in range(accepted, 0, -1):
            for case in self._recorded(round, "rollouts", "collect"):
                yield round, case

    def _pfpo_requests(self, round: int, collected: Sequence[Case]) -> list[RolloutRequest]:
        """What PFPO samples on: the round's plain tasks, its repair prompts, or both."""
        assert self.recipe.pfpo is not None
        prompts = self.recipe.pfpo.prompts
        if self.repair is None or "collect" in self.budgets:
            tasks = self._sample("train", self.recipe.rollout.tasks, round)
        else:
            tasks = [trajectory.task for trajectory, _ in collected]
        requests = [RolloutRequest(task, task.messages, "pfpo") for task in tasks]
        if prompts == "plain" or self.repair is None:
            return requests
        rng = np.random.default_rng(seed_of(self.recipe.seed, round, "pfpo-prompts"))
        asked = self.repair.requests(failures_of(collected), 1, rng)
        repairs = [replace(request, stage="pfpo") for request in asked]
        return repairs or requests if prompts == "repair" else requests + repairs

    def _pfpo(self, round: int, accepted: int, requests: Sequence[RolloutRequest], collected: Sequence[Case]) -> None:
        """PFPO on prompts, each in the data as often as the budget says; groups keep their size, and batches theirs."""
        assert self.recipe.pfpo is not None
        items = prompt_items(requests, failures_of(collected), group_size(self.recipe.pfpo.trl))
        shares = self._shares("pfpo", round, items)
        if shares is not None:
            requests = [request for request, count in zip(requests, shares, strict=True) for _ in range(count)]
        if (said := self.recipe.prompt_weights) is not None:
            rng = np.random.default_rng(seed_of(self.recipe.seed, round, "prompt-weights"))
            requests = drawn(requests, self.objectives, said.alpha, rng)

        held = self._held(round, accepted, "pfpo", partial(self.learner.pfpo, requests))

        def work(seed: int, scratch: str) -> Mapping[str, Any]:
            summary = dict(held(seed, scratch))
            record = self.budgets.record("pfpo", shares)
            self.budgets.told("pfpo", prompt_tries(items, summary.pop("tried", {})))
            return {**summary, **record}

        self._train(round, "pfpo", work)

    def _held(self, round: int, accepted: int, stage: str, train: Callable[..., Mapping[str, Any]]) -> Training:
        """What trains, held to a reference where the recipe has a merge for one."""
        if stage not in self.references:
            return train
        merge = self.references[stage]

        def held(seed: int, scratch: str) -> Mapping[str, Any]:
            rng, earlier = np.random.default_rng(seed), self._before(accepted)
            scores = lambda: self.validation_scores(seed)  # noqa: E731
            folder, record = merge_reference(self.learner, merge, earlier, scores, rng, self.run, scratch)
            return {**train(seed, scratch, reference=folder), "reference": record}

        return held

    def _before(self, accepted: int) -> list[str]:
        """Folders of the policies up to round `accepted`, for a merge."""
        return earlier_policies(self.run, [r for r in range(1, accepted + 1) if self._done(r)["accept"]["accepted"]])

    def _merged(self, merge: Merge, round: int, accepted: int, seed: int) -> Mapping[str, Any]:
        """The trained policy, merged with those of the rounds before."""
        trained = f"{round_dir(round)}/{TRAINED}"
        save_policy(self.learner, self.run, trained, self.budgets)
        folders = [str(self.run.path / trained), *self._before(accepted)]
        rng = np.random.default_rng(seed)
        return merge_policies(self.learner, merge, folders, lambda: self.validation_scores(seed), rng)

    def _accept(self, round: int, accepted: int) -> dict[str, Any]:
        """Accept the round or roll it back, and say whose policy is kept, where that is not the last accepted one's."""
        settings, kept = self.recipe.evaluation, self._done(round - 1).get("accept", {}).get("kept", 0)

        def work() -> Mapping[str, Any]:
            before, after, best = (self._recorded(r, "rollouts", "eval-validation") for r in (accepted, round, kept))
            decided = judged(before, after, self.objectives, settings)
            if settings.keep == "last":
                return decided
            return {**decided, "kept": round if decided["accepted"] and resolves_as_much(best, after) else kept}

        record = self._stage(round, "accept", 0, work)
        for observer in self.observers:
            observer(record={"round": round, "stages": self._done(round), "metrics": self._rows(round)})
        return record
