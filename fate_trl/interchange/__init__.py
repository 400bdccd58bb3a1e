"""Failures that were recorded elsewhere: read them, match them to a recipe's tasks, and write ours for others.

    dialogue.py        messages and calls in others' formats; which result answers which call
    rows.py            the reference code's JSONL, which we also write
    exports.py         OpenAI's chat format and NeMo Gym's rollouts, written and read back; TRL's preference data sets
    agentdojo_logs.py  AgentDojo's run logs
    inspect_logs.py    Inspect's logs of AgentDojo and AgentHarm (extra `inspect`)
    records.py         what they share: bounded parsing, and scores out of what was recorded
    replaying.py       recorded calls executed again, so that one behaviour gets one verdict

Every reader returns cases: trajectories with their scores. In a recipe, `rollout.recorded` names what `read` takes,
and round 1 repairs these instead of rolling out; `match` finds the suites' tasks that they belong to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choose.pairings import score_gap
from ..errors import InterchangeError
from ..ledger.layout import file_of, is_run
from ..messages import Message, text_of
from ..suites.exposure import entered
from ..types import Case, Pair, ScoreCard, Task, Trajectory
from . import agentdojo_logs, exports, inspect_logs, rows
from .records import Foreign, load, numbered, scored, sound
from .replaying import executed, replayed

if TYPE_CHECKING:
    from ..ledger.reading import RunReader

__all__ = ["Matched", "Told", "executed", "match", "read", "replayed", "round_of", "run_cases", "run_pairs", "usable"]

_KINDS = "a run directory, a .jsonl file of failures, AgentDojo logs (.json, or their folder) or Inspect logs (.eval)"


# ------------------------------------------------------------------------------------------------ reading


def read(*paths: str | Path, left_out: list[str] | None = None) -> list[Case]:
    """Cases of all files and folders, in order.

    Args:
        paths: Run directories, `.jsonl` files of failures, AgentDojo logs, Inspect logs, or folders of logs.
        left_out: Takes "file: why" of each file of a folder that is none of these, or of a suite that is not read.

    Raises:
        InterchangeError: A file that is none of these and was named itself, is damaged, or holds nothing; it is named,
            with its line.
    """
    foreign: list[str] = []
    cases = [case for path in paths for case in _read(Path(path).expanduser(), foreign)]
    if left_out is not None:
        left_out += foreign
    if not cases:
        why = f" ({foreign[0]})" if foreign else ""
        raise InterchangeError(f"{', '.join(map(str, paths))}: no trajectories there{why}; give {_KINDS}.")
    return cases


def _read(path: Path, foreign: list[str]) -> list[Case]:
    try:
        if is_run(path):
            return [case for _, case in run_cases(path)]
        if path.is_dir():
            return [case for file in _logs(path) for case in _of_folder(file, foreign)]
        if not path.is_file():
            raise InterchangeError(f"there is no {str(path)!r}; give {_KINDS}.")
        if path.suffix == ".jsonl":
            return [_of_row(value, at) for value, at in rows.lines(path)]
        if path.suffix == ".eval":
            return inspect_logs.read(path)
        return _read_json(path)
    except OSError as error:
        raise InterchangeError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:  # Path's word on a NUL in a name
        raise InterchangeError(f"{str(path)!r} is no path") from None


def _of_row(value: Any, where: str) -> Case:
    if exports.is_export(value):
        return exports.case(value, where)
    return agentdojo_logs.case(value, where) if agentdojo_logs.is_log(value) else rows.case(value, where)


def _of_folder(file: Path, foreign: list[str]) -> list[Case]:
    """Cases of a file in a folder of logs; one that is no log is noted, a damaged one is an error as ever."""
    try:
        return _read(file, foreign)
    except Foreign as error:
        foreign.append(str(error))
        return []


def _read_json(path: Path) -> list[Case]:
    log = load(path.read_bytes(), str(path))
    if agentdojo_logs.is_log(log):
        return [agentdojo_logs.case(log, str(path))]
    if isinstance(log, dict) and "eval" in log and "status" in log:
        return inspect_logs.read(path)
    raise Foreign(f"{path} is neither a log of AgentDojo nor one of Inspect; give {_KINDS}.")


def _logs(folder: Path) -> list[Path]:
    """Logs below a folder; links are not followed out of it."""
    return sorted(file for file in folder.rglob("*") if file.suffix in (".json", ".eval", ".jsonl") and file.is_file())


def run_cases(path: str | Path, round: int | None = None, stage: str = "collect") -> Iterator[tuple[int, Case]]:
    """(round, case) of what a run rolled out in a stage, in one of its rounds or in all; of a run that goes on, what is
    there."""
    from ..ledger.reading import RunReader  # with the recipe's schema, which other tools' results do without

    run = RunReader(path)
    numbers = run.rounds
    if not numbers or (round is not None and round not in numbers):
        have = ", ".join(map(str, numbers)) or "none; is it a run directory?"
        raise InterchangeError(f"{path} has no round{'' if round is None else f' {round}'}; it has {have}")
    for number in numbers if round is None else [round]:
        for case in run.cases(file_of(number, "repairs" if stage == "repair" else "rollouts"), stage):
            yield number, case


@dataclass(frozen=True)
class Told:
    """A pair with its text.

    Attributes:
        chosen, rejected: The two sides.
        prompt: The plain task's, as the policy was given it.
        score_gap: As in `Pair`.
    """

    chosen: Trajectory
    rejected: Trajectory
    prompt: tuple[Message, ...]
    score_gap: float


def run_pairs(path: str | Path, round: int | None = None) -> Iterator[Told]:
    """The pairs of a run with their text, of one of its rounds or of all.

    A round's pairs are those that its preference stage learned from; where it had none, each chosen repair and the
    failure that it repairs.
    """
    from ..ledger.reading import RunReader

    run = RunReader(path)
    found: dict[tuple[Any, ...], Case] = {}
    prompts: dict[tuple[str, str], tuple[Message, ...]] = {}
    for number in run.rounds:
        for _, case in (*run_cases(path, number), *run_cases(path, number, "repair")):
            found[number, *case[0].key] = case
            if case[0].stage == "collect":
                prompts[case[0].task.suite, case[0].task.id] = case[0].prompt
        for chosen, rejected in _sides(run, number) if round in (None, number) else ():
            (better, card), (worse, other) = found[chosen], found[rejected]
            prompt = prompts.get((worse.task.suite, worse.task.id), worse.task.messages)
            yield Told(better, worse, prompt, score_gap(card, other))


def _sides(run: RunReader, number: int) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Round and key of the two sides of each pair, the chosen one first."""
    pairs = [Pair.from_dict(record) for record in run.read(file_of(number, "pairs"))]
    for pair in pairs:
        of = (pair.suite, pair.task)
        rejected = (pair.rejected_round or number, pair.rejected_stage, *of, pair.failure)
        yield (number, "repair", *of, pair.repair), rejected
    for record in run.read(file_of(number, "selections")) if not pairs else ():
        if record["chosen"] is not None:
            yield (number, *record["candidates"][record["chosen"]]), (number, *record["failure"])


def round_of(case: Case) -> int:
    """The round that a row of ours was collected in; 1 for what others recorded."""
    return int(case[0].data.get("row", {}).get("round", 1))


# ------------------------------------------------------------------------------------------------ matching


@dataclass(frozen=True)
class Matched:
    """Recorded cases and a recipe's tasks.

    Attributes:
        cases: Those of training tasks, each with the suite's own task and prompt, ready to be repaired.
        held_out: Tasks of other splits, or that the splits discard; training on them would spoil the evaluation.
        unknown: "suite task: why", of those that are none of the suites' tasks.
    """

    cases: list[Case]
    held_out: list[str]
    unknown: list[str]


def match(cases: Iterable[Case], every: Iterable[Task], train: Iterable[Task]) -> Matched:
    """Find each case's task by suite and id (by the id alone where the record names no suite), and by its prompt.

    Args:
        cases: As `read` returns them.
        every: All tasks of the recipe's suites, of the split "all".
        train: Their training tasks.
    """
    trained = {(task.suite, task.id): task for task in train}
    known = {(task.suite, task.id): task for task in every} | trained
    suites = sorted({suite for suite, _ in known})
    found, held_out, unknown = [], [], []
    for trajectory, card in cases:
        named = trajectory.task
        keys = [(suite, named.id) for suite in ([named.suite] if named.suite else suites)]
        tasks = [known[key] for key in keys if key in known]
        why = _mismatch(trajectory, tasks, suites)
        if why:
            unknown.append(f"{named.suite or 'no suite'} {named.id!r}: {why}")
        elif (tasks[0].suite, tasks[0].id) not in trained:
            held_out.append(f"{tasks[0].suite} {tasks[0].id!r}")
        else:
            found.append(_at_home(trajectory, card, trained[tasks[0].suite, tasks[0].id]))
    return Matched(numbered(found), held_out, unknown)


def usable(cases: Iterable[Case], every: Iterable[Task], train: Iterable[Task]) -> Matched:
    """`match`, for a run. Raises InterchangeError if a case fits no task of the suites, or none a training task."""
    found = match(cases, every, train)
    advice = "`fate-trl import FILE --recipe RECIPE -o RUN` keeps those that fit, and says what does not."
    if found.unknown:
        shown = "; ".join(found.unknown[:3]) + ("; …" if len(found.unknown) > 3 else "")
        total = len(found.unknown) + len(found.held_out) + len(found.cases)
        raise InterchangeError(f"{len(found.unknown)} of {total} recorded trajectories fit no task: {shown}. {advice}")
    if not found.cases:
        raise InterchangeError(f"all {len(found.held_out)} recorded trajectories are of held-out tasks. {advice}")
    return found


def _mismatch(trajectory: Trajectory, tasks: list[Task], suites: list[str]) -> str:
    named = trajectory.task
    if named.suite and named.suite not in suites:
        return f"the recipe has the suites {', '.join(suites)}"
    recorded_version, version = named.data.get("version"), tasks[0].data.get("version") if tasks else None
    if recorded_version and version and recorded_version != version:
        return f"it was recorded with version {recorded_version} of its suite, the recipe has {version}"
    if not tasks:
        return "there is no such task with the suite's arguments (version, attacks, …) and the recipe's seed"
    if len(tasks) > 1:
        return f"it may be of {tasks[0].suite} or of {tasks[1].suite}; name its suite"
    asked, recorded = _request(tasks[0]), _request(named)
    if recorded and asked.split() != recorded.split():
        return f"its prompt is another than the suite's{f' of version {version}' if version else ''}"
    goal, injected = tasks[0].data.get("goal"), trajectory.outcome.injected if trajectory.outcome else ()
    if goal and injected and not entered([goal], injected):
        recorded_version = recorded_version or "unknown, its log does not say it"
        return f"its attacker wants something else than in version {version}; its own version: {recorded_version}"
    return ""


def _request(task: Task) -> str:
    """What the user asks for: the last message of the prompt."""
    return text_of(task.messages[-1]) if task.messages else ""


def _at_home(trajectory: Trajectory, card: ScoreCard, task: Task) -> Case:
    """The case as a try of our task: its prompt is the plain task, its text can be tokenised."""
    record: dict[str, Any] = sound(trajectory.to_dict())
    clean = Trajectory.from_dict({**record, "task": task.to_dict()})
    tokens: Mapping[str, Any] = {"prompt_ids": (), "completion_ids": (), "policy_mask": ()}  # another tokenizer's
    own = dataclasses.replace(clean, task=task, prompt=task.messages, stage="collect", **tokens)
    if task.kind == trajectory.task.kind:
        return own, card
    return scored(own, {name: score.value for name, score in card.scores.items()})  # other objectives apply
