"""`fate-trl suites check my_env.py:Class`: try out a TRL environment class without a single row.

The class is loaded and called in processes of its own, which are killed when a time is over, so nothing that it does
hangs or ends this one. Each tool is called with arguments drawn from its schema. A *defect* breaks training or makes
its results worthless; a *note* is what its author should know.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..process.bounded import Died, Process, TimedOut
from ..record import dumps
from .arguments import draw_arguments, texts_in

BROKEN = frozenset(
    ("AttributeError", "NameError", "UnboundLocalError", "TypeError", "NotImplementedError", "RecursionError")
)
"""What a tool raises because of a mistake in it, not in order to say something to the model."""
LEAVING = frozenset(("SystemExit", "KeyboardInterrupt", "GeneratorExit"))

ASYNC_FORGOTTEN = (
    "it is no `async def`, so TRL does not await what it returns; the model would read <coroutine object …>"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        level: "defect" or "note".
        where: "Class", "Class.reset" or "Class.tool".
        what: What is wrong, in a sentence.
    """

    level: Literal["defect", "note"]
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def probe(
    reference: str,
    given: Mapping[str, Any] | None = None,
    seed: int = 0,
    draws: int = 8,
    seconds: float = 5.0,
    advance: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Try out an environment class.

    Args:
        reference: `file.py:Class`, or a function in the place of the class.
        given: Arguments of `reset`.
        seed: Of the arguments that tools are called with.
        draws: Calls per tool.
        seconds: Time for one call, for a reset and, six times as long, for the import of the file.
        advance: Told what is done next.

    Returns:
        {"environment": name, "tools": [{"name", "signature", "schema"} or {"name", "refused"}], "calls": number of
        calls made, "findings": [{"level", "where", "what"}]}, JSON values only.
    """
    return _Probing(reference, dict(given or {}), seed, draws, seconds, advance)()


class _Stop(Exception):
    """Nothing more can be tried."""


class _Probing:
    def __init__(
        self,
        reference: str,
        given: dict[str, Any],
        seed: int,
        draws: int,
        seconds: float,
        advance: Callable[[str], None],
    ):
        self.reference, self.given, self.draws, self.seconds, self.advance = reference, given, draws, seconds, advance
        self.rng = random.Random(seed)
        self.name = reference.rpartition(":")[2] or reference
        self.tools: list[dict[str, Any]] = []
        self.findings: list[Finding] = []
        self.calls = 0
        self.process = self._process("0")

    def _process(self, hash_seed: str) -> Process:
        greeting = {"do": "load", "reference": self.reference}
        variables = {"PYTHONHASHSEED": hash_seed}
        return Process("fate_trl.suites.probe_main", greeting, 6 * self.seconds, variables)

    def __call__(self) -> dict[str, Any]:
        try:
            described = self._describe()
            opened = self._open(described)
            sound = self._call_each(texts_in([opened["observation"], *opened["state"].values()]))
            self._compare(sound)
        except _Stop:
            pass
        finally:
            self.process.close()
        return {
            "environment": self.name,
            "tools": self.tools,
            "calls": self.calls,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def _defect(self, what: str, where: str = "") -> None:
        self.findings.append(Finding("defect", f"{self.name}.{where}" if where else self.name, what))

    def _note(self, what: str, where: str = "") -> None:
        self.findings.append(Finding("note", f"{self.name}.{where}" if where else self.name, what))

    # ------------------------------------------------------------------------------------------------ loading

    def _describe(self) -> dict[str, Any]:
        self.advance("describing its tools")
        try:
            described = self.process.ask({"do": "describe"}, 6 * self.seconds)
        except TimedOut:
            self._defect(f"its file takes over {6 * self.seconds:g} s to be imported")
            raise _Stop from None
        except Died as died:
            self._defect(f"cannot be loaded: {str(died).rpartition('does not start: ')[2]}")
            raise _Stop from None
        self.name, self.tools = described["name"], described["tools"]
        for tool in self.tools:
            if "refused" in tool:
                owner, _, why = tool["refused"].partition(": ")
                self._defect(f"TRL refuses it: {why}", owner.rpartition(".")[2])
        if not self.tools:
            self._defect("it has no tools; every public method but reset and get_reward is one")
            raise _Stop
        return dict(described)

    def _open(self, described: Mapping[str, Any]) -> dict[str, Any]:
        self.advance("resetting it twice")
        if described["takes_prompt"]:
            self.given.setdefault("prompt", [{"role": "user", "content": "Begin."}])
        missing = [name for name in described["needs"] if name not in self.given]
        if missing:
            self._note(f"it needs {', '.join(missing)}; give it here with --set {missing[0]}=VALUE", "reset")
            raise _Stop
        if not described["takes_rows"]:
            self._note("TRL hands it every column of a row, the prompt as well: take **kwargs", "reset")
        answer = self._ask("reset", do="open", given=self.given)
        if answer is None:
            raise _Stop
        if "unmade" in answer:
            self._defect(f"TRL makes it without arguments, which {answer['unmade']}; name a function that makes one")
            raise _Stop
        if "raised" in answer:
            self._defect(f"raises {answer['raised']}: {answer['says']}", "reset")
            raise _Stop
        first, second = answer["first"], answer["second"]
        if first["kind"] not in ("none", "text", "blocks"):
            self._defect(
                f"returns {first['type']}; TRL appends a text, or a list of text blocks, to the prompt", "reset"
            )
        names = [name for name in first["state"] if first["state"][name] != second["state"].get(name)]
        names += ["the observation"] if first["observation"] != second["observation"] else []
        if names:
            self._defect(
                f"two resets to the same differ in {', '.join(names)}; draw from a seed that a row gives", "reset"
            )
        return dict(first)

    def _ask(self, where: str, during: str = "", **question: Any) -> dict[str, Any] | None:
        """The answer; None, with the finding made, if there is none."""
        try:
            answer: dict[str, Any] = self.process.ask(question, self.seconds)
            return answer
        except TimedOut:
            self._defect(f"takes over {self.seconds:g} s{during}; TRL has no limit, it would wait for ever", where)
        except Died as died:
            self._defect(f"ends the whole process{during} ({died})", where)
        return None

    # ------------------------------------------------------------------------------------------------ calls

    def _call_each(self, known: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        """Calls every tool; returns the calls that came to an end, for the comparisons."""
        sound = []
        for tool in self.tools:
            if "schema" in tool:
                self.advance(f"calling {tool['name']}")
                sound += self._call(tool["name"], tool["schema"]["parameters"], known)
        return sound

    def _call(self, name: str, parameters: Mapping[str, Any], known: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        drawn = {dumps(a): a for a in (draw_arguments(parameters, known, self.rng) for _ in range(self.draws))}
        answers: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for arguments in drawn.values():
            self.calls += 1
            during = f" with {_shown(arguments)}" if arguments else ""
            answer = self._ask(name, during, do="call", given=self.given, name=name, arguments=arguments)
            if answer is None:  # once is enough to know, and costs the whole limit
                break
            answers.append((arguments, answer))
        self._judge(name, answers)
        return [(name, arguments) for arguments, _ in answers]

    def _judge(self, name: str, answers: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        """One finding per kind of result, not one per call."""
        kinds: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
        for arguments, answer in answers:
            kinds.setdefault(answer.get("raised") or answer["kind"], []).append((arguments, answer))
        for kind, alike in kinds.items():
            arguments, answer = alike[0]
            often = f" ({len(alike)} of {len(answers)} calls)" if len(answers) > 1 else ""
            if "raised" in answer:
                self._judge_raised(name, kind, f"{answer['says']!r} with {_shown(arguments)}{often}")
            elif kind in _READS:
                level = self._defect if kind in ("image", "object") else self._note
                level(_READS[kind].format(reads=_cut(answer["reads"])) + often, name)
        if any(answer.get("forgotten") for _, answer in answers):
            self._defect(ASYNC_FORGOTTEN, name)

    def _judge_raised(self, name: str, kind: str, how: str) -> None:
        if kind in LEAVING:
            self._defect(f"raises {kind}, which ends TRL's training, with {how.partition(' with ')[2]}", name)
        elif kind in BROKEN:
            self._defect(f"breaks on arguments that its schema allows: {kind}: {how}", name)
        else:
            self._note(f"raises {kind}, and the model is told {how}", name)

    # ------------------------------------------------------------------------------------------------ comparisons

    def _compare(self, sound: Sequence[tuple[str, dict[str, Any]]]) -> None:
        if any(finding.where.endswith(".reset") and finding.level == "defect" for finding in self.findings):
            return  # what opens differently runs differently
        if not self._repeats(sound):
            return
        self.advance("opening two at a time")
        found = self._ask("", " for two episodes at a time", do="pair", given=self.given, calls=list(sound))
        if found is None or "raised" in found:
            return
        if found["shared"] or found["disturbed"] or not found["alike"]:
            named = f": its class holds {', '.join(found['shared'])}" if found["shared"] else ""
            self._defect(f"instances share state, so episodes of a batch see one another{named}")
        elif found["carried_over"] or not found["alike_after_reset"]:
            named = f": {', '.join(found['carried_over'])}" if found["carried_over"] else ""
            self._defect(f"leaves something of the last episode, and TRL uses instances again{named}", "reset")

    def _repeats(self, sound: Sequence[tuple[str, dict[str, Any]]]) -> bool:
        """Whether an episode gives the same in other processes, also with another hash seed."""
        episodes = []
        for hash_seed in ("1", "0", "0"):  # new ones: what was called before may have left its traces
            self.advance("repeating it in new processes")
            self.process.close()
            self.process = self._process(hash_seed)
            episodes.append(self._ask("", " for a whole episode", do="episode", given=self.given, calls=list(sound)))
        other, again, first = episodes
        if first is None or again is None or other is None:
            return False
        self._judge_reward(first)
        if first != again:
            self._defect(f"the same calls give something else in another run: {_difference(first, again, sound)}")
        elif first != other:
            self._defect(f"results depend on PYTHONHASHSEED, a set's order: {_difference(first, other, sound)}")
        return first == again

    def _judge_reward(self, episode: Mapping[str, Any]) -> None:
        reward = episode.get("reward", 0.0)
        if isinstance(reward, Mapping):
            self._defect(f"raises {reward['raised']}: {reward['says']}, which ends TRL's training", "get_reward")
        elif not isinstance(reward, (int, float)):
            self._defect(f"returns {_shown(reward)}, not a number", "get_reward")
        elif not 0 <= reward <= 1:
            self._note(f"returns {reward:g}, outside [0, 1]; a verifier's score lies within", "get_reward")


_READS = {
    "none": "returns nothing: the model reads {reads!r}",
    "list": "returns a list: the model reads {reads} here; under TRL itself most templates show it nothing",
    "dict": "returns a dict: the model reads {reads} here, and Python's repr of it under TRL itself",
    "object": "returns no text: the model reads {reads}",
    "image": "returns an image; suites hand on text only",
}


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], calls: Sequence[tuple[str, Any]]) -> str:
    """The first thing that is not the same."""
    if one["reset"] != other["reset"]:
        return "reset"
    for (name, arguments), before, after in zip(calls, one["calls"], other["calls"], strict=True):
        if before != after:
            sides = (_cut(answer.get("reads", answer.get("says", ""))) for answer in (before, after))
            return f"{name} with {_shown(arguments)}: {' / '.join(sides)}"
    names = [name for name in one["state"] if one["state"][name] != other["state"].get(name)]
    return f"the state: {', '.join(names)}" if names else "the reward"


def _shown(value: Any) -> str:
    return _cut(dumps(value, sort=False))


def _cut(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
