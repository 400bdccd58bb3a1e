"""Hostile texts through a whole round: what tools return, verifiers say and a policy answers, and ids of tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
from collections.abc import Sequence
from unittest.mock import patch

from fate_trl import cli
from fate_trl.errors import ErrorBudgetExceeded
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop import trackers
from fate_trl.record import DEPTH, dumps
from fate_trl.report.page import report
from fate_trl.report.reading import Run
from fate_trl.report.viewer import Site
from fate_trl.suites.scripted import perform
from fate_trl.testing import hostile
from fate_trl.testing.hostile import live_html, live_terminal
from fate_trl.types import Score, Script

from . import Bench, Learner, Mine, Ran, fault, workbench

EXPECTED = "inert in ledger, terminal, report, viewer and tracker; nothing is excluded"


class Speaker(Learner):
    """Ends each try of a target with the texts, and with a call whose arguments hold them."""

    said: Sequence[str] = ()

    def rollout(self, requests, seed):
        return [self._speaking(t) if t.task.id in self.targets else t for t in super().rollout(requests, seed)]

    def _speaking(self, trajectory):
        text = "\n".join(self.said)
        call = {"type": "function", "function": {"name": text, "arguments": {text: text}}}
        more = ({"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "assistant", "content": text})
        return dataclasses.replace(trajectory, messages=trajectory.messages + more)


def spoken(bench: Bench, texts: Sequence[str]) -> Ran:
    """A round in which all these texts are said, stopped once by a verifier that quotes them; then all its readers."""
    text = "\n".join(texts)
    learner = type("Speaking", (Speaker,), {"said": texts})
    everywhere = frozenset(task.id for task in workbench().tasks("train")) | bench.targets

    def answered(episode, name, given):
        return episode.execute(name, given) + text

    down = Mine(everywhere, lambda _: {"mine": Score.error(text)})
    stopped = bench.run(verifiers=(down,), learner=learner, execute=answered).stopped
    assert isinstance(stopped, ErrorBudgetExceeded)
    assert live_terminal(printed(stopped)) == ""

    def first_try_fails(trajectory):
        return {"mine": Score(float(trajectory.stage != "collect"), reason=text, feedback=text, step=0)}

    ran = bench.run(verifiers=(Mine(bench.targets, first_try_fails),), learner=learner, execute=answered).bears()
    last = [t.messages[-1]["content"] for t, _ in ran.collected if t.task.id in bench.targets]
    assert last == [text] * len(bench.targets), "the record is what was said"
    read(bench)
    return ran


def printed(error: Exception) -> str:
    """What the command line makes of an error."""
    screen = io.StringIO()
    quits = contextlib.suppress(SystemExit)
    with patch.object(cli, "app", side_effect=error), contextlib.redirect_stderr(screen), quits:
        cli.main()
    assert "no_verdict" in screen.getvalue()
    assert len(screen.getvalue()) < 60_000, "a megabyte is cut"
    return screen.getvalue()


def read(bench: Bench) -> None:
    """Everything that shows records shows these as text."""
    written = {path.relative_to(bench.path).as_posix() for path in bench.path.rglob("*") if path.is_file()}
    assert not [name for name in written if "passwd" in name or ".." in name]
    assert list(bench.path.parent.iterdir()) == [bench.path], "nothing is written elsewhere"
    for file in bench.path.rglob("*.jsonl"):
        lines = file.read_text(encoding="ascii").split("\n")[:-1]
        assert all(line.isprintable() and json.loads(line) for line in lines), file
    page = report(Run.open(bench.path))
    assert (live_html(page), live_terminal(page)) == ([], "")
    assert len(page) < 5_000_000, "long texts are cut"
    site = Site(bench.path)
    for name in site.names:
        body = site.read(name)
        assert not name.startswith("data/") or body.isascii(), name
    assert live_html(site.read("index.html").decode()) == []
    rows = [trackers._row(*sample) for sample in trackers._samples(RunDirectory(bench.path), 1)]
    assert rows, "a target was repaired, and is shown"
    assert live_terminal("".join(itertools.chain(*rows))) == ""


def of(*names: str) -> list[str]:
    return [hostile.HOSTILE[name] for name in names]


SPOKEN = {
    "terminal escape sequences": list(hostile.TERMINAL.values()),
    "rich's markup, Markdown, YAML, templates": list(hostile.MARKUP.values()),
    "HTML and scripts": list(hostile.HTML.values()),
    "bidirectional overrides and other invisible characters": of(
        "right-to-left override", "isolates", "marks of direction", "no width", "tag characters", "combining marks"
    ),
    "NUL bytes": of("NUL", "only NUL", "NUL in a path"),
    "lone surrogates": of("lone high surrogate", "lone low surrogate", "surrogates in the wrong order"),
    "ends of records and of chats": list(hostile.RECORDS.values()),
    "a megabyte of lines": of("megabyte of lines"),
    "a megabyte of escape sequences": of("megabyte of escapes"),
}


def says(kind: str, texts: list[str]) -> None:
    @fault("hostile text", kind, EXPECTED, slow=kind.startswith("a megabyte"))
    def _(bench: Bench) -> Ran:
        return spoken(bench, texts)


for kind, texts in SPOKEN.items():
    says(kind, texts)


class Deep(Learner):
    """Calls a tool with arguments that would overflow whoever walks them."""

    def _one(self, request, role):
        if request.task.id not in self.targets:
            return super()._one(request, role)
        deep: list = []
        for _ in range(5 * DEPTH):
            deep = [deep]
        script = Script(calls=({"name": "pay", "arguments": {"payee": deep}},), answer="Done.")
        return perform(self.suites[request.task.suite], request, script, self.name, self.limits)


@fault("hostile text", "arguments nested 500 levels deep", "a malformed call, cut in the record; nothing is excluded")
def _(bench: Bench) -> Ran:
    ran = bench.run(verifiers=(Mine(bench.targets, lambda _: {"mine": Score(1.0)}),), learner=Deep).bears()
    tries = [(trajectory, card) for trajectory, card in ran.collected if trajectory.task.id in bench.targets]
    assert all(card.scores["trajectory_control"].value == 0 for _, card in tries)
    assert all("[nested too deeply]" in dumps(trajectory) for trajectory, _ in tries)
    read(bench)
    return ran


@fault("hostile text", "path-like ids of tasks", f"no file is named by them; {EXPECTED}")
def _(bench: Bench) -> Ran:
    suite, renamed = workbench(), dict(zip(sorted(bench.targets), hostile.PATHS.values()))
    bench.targets = frozenset(renamed.values())

    def tasks(split, seed=0):
        return [dataclasses.replace(task, id=renamed.get(task.id, task.id)) for task in drawn(split, seed)]

    drawn = suite.tasks
    with patch.object(suite, "tasks", tasks):
        return spoken(bench, list(hostile.PATHS.values()))
