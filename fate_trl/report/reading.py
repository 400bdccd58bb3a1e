"""A run as people look at it: which rounds and policies it has, and what they were measured at.

Small files (manifest, recipe, stages, metrics, selections) are read at once, trajectories a line at a time. A run that
is still going, was stopped, or only evaluated is read as far as it got; see ledger/reading.py, which does the reading.

    run = Run.open("runs/quickstart")
    run.rows                             rows of metrics.json (see metrics.rows)
    run.rounds[1].stages["pfpo"]         a stage's record: counts, seconds, the trainer's log
    run.policies                         what was evaluated: base, round-1, …, and the scripted baselines
    run.policy("round-1")                one of them; the one handed over by default
    run.cases(policy.round, policy.stages["test"])   its scored trajectories
    run.records(1, "repairs")            raw records of a file, as written
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..errors import RecipeError
from ..ledger.layout import file_of, kept_round, round_of, trajectories_in
from ..ledger.reading import RunReader
from ..loop.counts import measured
from ..suites.scripted import ROLES
from ..types import Case, ScoreCard, Trajectory

_TEXT = ("prompt", "messages", "prompt_ids", "completion_ids", "policy_mask")
_TASK_TEXT = ("messages", "tools", "data")


@dataclass(frozen=True)
class Round:
    """One round's small records. Round 0 is the policy before training.

    Attributes:
        number: 0, 1, …
        stages: Record of each finished stage by its name, in the order in which they were done.
        selections: One record per failure: which candidates there were, which were accepted, on the front, chosen.
    """

    number: int
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    selections: list[dict[str, Any]] = field(default_factory=list)

    @property
    def accepted(self) -> bool | None:
        """Whether the round was accepted; None while nobody knows. Round 0 always is."""
        if self.number == 0:
            return True
        return self.stages["accept"]["accepted"] if "accept" in self.stages else None


@dataclass(frozen=True)
class EvaluatedPolicy:
    """A policy that was rolled out on held-out tasks.

    Attributes:
        name: As in metrics.json: "base", "warm-start", "round-1", "model", or a scripted role.
        round: Where its trajectories stand.
        stages: Name of the stage by split.
        accepted: Whether its round was accepted; None while nobody knows.
    """

    name: str
    round: int
    stages: dict[str, str]
    accepted: bool | None

    @property
    def scripted(self) -> bool:
        """Whether it is a baseline: a script, no model."""
        return self.name in ROLES


@dataclass(frozen=True)
class Run:
    """A run directory as it is now.

    Attributes:
        path: The folder.
        manifest: Versions, seeds, hashes, hardware; {} if there is none yet.
        recipe: What was asked, as plain values; {} for records that were not made by a run.
        rounds: By number, round 0 first.
        rows: Rows of metrics.json.
    """

    path: Path
    manifest: dict[str, Any]
    recipe: dict[str, Any]
    rounds: dict[int, Round]
    rows: list[dict[str, Any]]

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read the small files. Raises LedgerError if it is no run directory, or if a file in it is damaged."""
        reader = RunReader.open(path)
        return cls(
            path=reader.path,
            manifest=reader.read_json("manifest.json") or {},
            recipe=reader.recipe_values(),
            rounds={number: _round(reader, number) for number in reader.rounds},
            rows=(reader.read_json("metrics.json") or {}).get("rows", []),
        )

    @property
    def name(self) -> str:
        return self.path.resolve().name

    # -------------------------------------------------------------------------------------------- policies

    @property
    def policies(self) -> list[EvaluatedPolicy]:
        """Every policy that was evaluated: the learned ones in the order of the rounds, then the scripted baselines."""
        found: dict[str, EvaluatedPolicy] = {}
        for round in self.rounds.values():
            for stage in round.stages:
                if stage.startswith("eval-"):
                    split, name = measured(stage, round.number, **self._begins)
                    fresh = EvaluatedPolicy(name, round.number, {}, round.accepted)
                    found.setdefault(name, fresh).stages[split] = stage
        for row in self.rows if "imported" in self.manifest else ():  # recorded elsewhere, where a round collects
            found.setdefault(row["policy"], EvaluatedPolicy(row["policy"], row["round"], {"test": "collect"}, True))
        return sorted(found.values(), key=lambda policy: policy.scripted)

    @property
    def _begins(self) -> dict[str, Any]:
        return {"warm_start": bool(self.recipe.get("warm_start")), "rounds": self.recipe.get("rounds", 1)}

    @property
    def kept(self) -> int | None:
        """The round whose policy the run hands over, 0 for that before training; None while no round is decided."""
        return kept_round({number: round.stages for number, round in self.rounds.items()})

    def policy(self, name: str = "") -> EvaluatedPolicy:
        """A policy by name, or by its round's number; without one, the one handed over, of those that were tested.

        Raises:
            RecipeError: There is no such policy; the message lists those that there are.
        """
        tested = [policy for policy in self.policies if "test" in policy.stages]
        if name:
            named = [policy for policy in tested if policy.name == name]
            chosen = named or [p for p in tested if p.round == round_of(name) and not p.scripted]
        else:
            kept = math.inf if self.kept is None else self.kept
            chosen = [p for p in tested if p.accepted and not p.scripted and p.round <= kept]
        if not chosen:
            known = ", ".join(policy.name for policy in tested) or "none yet"
            raise RecipeError(f"{self.path} has no evaluated policy {name!r}; it has: {known}.".replace(" ''", ""))
        return chosen[-1]

    # -------------------------------------------------------------------------------------------- trajectories

    def records(self, round: int, file: str) -> Iterator[dict[str, Any]]:
        """Records of rollouts, repairs, selections, buffer or stages, one at a time; none if there is no such file.

        A scored trajectory is {"stage", "chunk", "of", "trajectory", "card"}; a last chunk that is not whole is left
        out.
        """
        return (record for _, record in self.located(round, file))

    def located(self, round: int, file: str) -> Iterator[tuple[range, dict[str, Any]]]:
        """The same, each after the range of bytes where its line stands in the file."""
        return RunReader(self.path).located(file_of(round, file))

    def cases(self, round: int, stage: str, *, text: bool = True) -> Iterator[Case]:
        """Scored trajectories of a stage, in the order in which they were committed.

        Args:
            round: The round.
            stage: "collect", "repair", or a stage of an `EvaluatedPolicy`.
            text: Without, trajectories lack their messages and tokens, and tasks their prompts: all that metrics
                need, in a tenth of the memory.
        """
        for record in self.records(round, "repairs" if stage == "repair" else "rollouts"):
            if record["stage"] == stage:
                trajectory = record["trajectory"]
                if not text:
                    task = {key: value for key, value in trajectory["task"].items() if key not in _TASK_TEXT}
                    kept = {key: value for key, value in trajectory.items() if key not in _TEXT}
                    trajectory = {**kept, "task": {**task, "messages": ()}}
                yield Trajectory.from_dict(trajectory), ScoreCard.from_dict(record["card"])


def missing(run: Run, there: Mapping[tuple[int, str], int]) -> list[str]:
    """What the records lack of what the run counted, in sentences.

    Args:
        run: The run.
        there: Records that were read, by round and stage.
    """
    gone = sorted({row["round"] for row in run.rows} - set(run.rounds))
    found = [f"Of round {number} no record is left, though metrics.json tells of it." for number in gone]
    for number, round in run.rounds.items():
        for stage, record in round.stages.items():
            wanted, have = trajectories_in(record), there.get((number, stage), 0)
            if wanted is not None and have < wanted:
                found.append(
                    f"Round {number}, {stage}: {have} of {wanted} records are there; what is not whole is left out."
                )
    return found


def _round(reader: RunReader, number: int) -> Round:
    return Round(number, reader.stages(number), reader.read(file_of(number, "selections")))
