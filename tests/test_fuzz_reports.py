"""Small runs of every shape, each taken through all that describes a run: nothing raises, every page is written.

A seed draws a recipe, a scripted learner and where the run stops. What fails is repeated with the seed that it names:
`described(SEED, folder)`.
"""

import json
import math
import random
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fate_trl.cli import app
from fate_trl.cli import run as cli_run
from fate_trl.cli.card import write_cards
from fate_trl.errors import FateError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.recipe.loading import make_recipe
from fate_trl.report.reading import Run
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.testing.hostile import HOSTILE, LARGE
from fate_trl.types import KINDS, OBJECTIVES, Score

FEW, MANY = 12, 200
TEXTS = ["", *(text for name, text in sorted(HOSTILE.items()) if name not in LARGE)]
SELECTORS = ["pareto-front", "pareto-rank", "product", "dominance-count", "weighted-sum"]


class Stop(Exception):
    """The run ends here."""


class Learner(ScriptedLearner):
    """A scripted learner whose rollouts may break, whose training may log, and which stops the run after some calls."""

    def __init__(self, suites, rng, **settings):
        super().__init__(suites, **settings)
        self.broken = rng.choice([0, 0, 0, 0.1, 1])
        self.logs = rng.choice(["none", "whole", "partial"])
        self.left = rng.choice([None, None, None, rng.randint(0, 20)])
        self.draw = random.Random(rng.random())

    def _count(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Stop

    def rollout(self, requests, seed):
        self._count()
        return [self._perhaps(trajectory) for trajectory in super().rollout(requests, seed)]

    def _perhaps(self, trajectory):
        if self.draw.random() >= self.broken:
            return replace(trajectory, prompt_ids=(1, 2), completion_ids=(3, 4, 5), policy_mask=(1, 0, 1))
        return replace(trajectory, stop="error", error=self.draw.choice(TEXTS) or "no answer 503", outcome=None)

    def _train(self, stage, amount):
        self._count()
        record = super()._train(stage, amount)
        if self.logs == "none":
            return record
        steps = range(1, 1 + self.draw.randint(0, 4))
        return record | {"log": [self._logged(step) for step in steps], "steps": len(steps)}

    def preference(self, pairs, seed, scratch=None):
        """What a DPO stage leaves in its record, be it that it diverged."""
        told = self.draw.choice(
            [
                {},
                {"margin": 0.5, "accuracy": 0.25},
                {"margin": math.nan, "accuracy": 0.0},
                dict.fromkeys(("margin", "accuracy"), math.nan),
            ]
        )
        lengths = {"chosen_tokens_mean": 40.0, "rejected_tokens_mean": 80.5}
        return self._train("preference", len(pairs)) | {"pairs": len(pairs)} | lengths | told

    def _logged(self, step):
        """A line of the trainer's log; where it is partial, some keys are not there and some have no number."""
        keys = ["loss", "kl", "reward", "completions/clipped_ratio", "rewards/accuracies", "rewards/margins"]
        keys += [f"rewards/{name}/{part}" for name in (*OBJECTIVES, "mood") for part in ("mean", "std")]
        keys += [f"objective/{name}/{kind}" for name in OBJECTIVES for kind in KINDS]
        if self.logs == "whole":
            return dict.fromkeys(keys, 0.5) | {"step": step}
        values = [0.5, 0, -1e9, None, float("nan"), float("inf")]
        return {key: self.draw.choice(values) for key in some(self.draw, keys)} | {"step": step}


class Moody:
    """A verifier of an objective of its own, which may never apply, or never answer."""

    objectives = ("mood",)

    def __init__(self, rng):
        self.rng = random.Random(rng.random())
        self.moods = some(rng, ["value", "not applicable", "error"])

    def score(self, trajectories):
        return [{"mood": self._one(self.rng.choice(self.moods))} for _ in trajectories]

    def _one(self, mood):
        if mood == "value":
            return Score(self.rng.choice([0.0, 0.5, 1.0]), reason=self.rng.choice(TEXTS))
        return Score.not_applicable() if mood == "not applicable" else Score.error(self.rng.choice(TEXTS))


class OfKinds:
    """A suite's tasks of some kinds alone, maybe with a text that nobody expects."""

    def __init__(self, suite, kinds, text):
        self.suite, self.kinds, self.text = suite, kinds, text

    def __getattr__(self, name):
        return getattr(self.suite, name)

    def tasks(self, split, seed=0):
        return [self._asked(task) for task in self.suite.tasks(split, seed) if task.kind in self.kinds]

    def _asked(self, task):
        said = {"role": "user", "content": self.text}
        return task if self.text is None else replace(task, messages=(*task.messages[:-1], said))


def some(rng, values):
    """Some of the values, at least one."""
    return rng.sample(values, rng.randint(1, len(values)))


def drawn(rng):
    """The recipe of a run that takes milliseconds, as values."""
    sizes = {"train": rng.choice([1, 3, 9]), "validation": rng.choice([0, 3, 6]), "test": rng.choice([1, 3, 6])}
    suites = rng.choice([["workbench"], ["workbench"], ["workbench", "tradeoffs"]])
    repair = {"k": rng.randint(1, 3), "accept": rng.choice(["resolves", "dominates", "random"])}
    repair |= {"anchors": rng.choice([0, 1.0]), "max_failures": rng.choice([None, 1]), "replay": rng.random() < 0.5}
    sft = rng.random() < 0.7
    values = {
        "suites": [{"name": name, "args": sizes} for name in suites],
        "verifiers": rng.choice([list(OBJECTIVES), some(rng, list(OBJECTIVES))]),
        "rollout": {"chunk": rng.choice([2, 50]), "kinds": rng.choice([None, None, some(rng, list(KINDS))])},
        "repair": repair if sft else None,
        "selector": rng.choice(SELECTORS),
        "preference": rng.choice([None, {}]) if sft else None,
        "warm_start": rng.choice([None, None, {"traces": 2}]),
        "evaluation": {"baselines": rng.random() < 0.5, "validation": rng.choice([0, None]), "max_error_rate": 1.0},
        "rounds": rng.randint(0, 3),
        "token_budget": rng.choice([None, None, 1, 2000]),
        "seed": rng.randint(0, 99),
    }
    if not sft:
        values["sft"] = None
    elif rng.random() < 0.4:
        values["pfpo"] = None
    return values


def made(rng, folder):
    """The run, ready to go."""
    recipe = make_recipe(drawn(rng) | {"output_dir": str(folder)})
    skills = {"skill": rng.choice([0, 0.5, 1]), "repair_skill": rng.choice([0, 0.7]), "gain": rng.choice([-1, 0, 0.3])}
    evolution = assemble(recipe, RunDirectory(folder), lambda suites, *_: Learner(suites, rng, **skills))
    kinds, text = rng.choice([KINDS, KINDS, some(rng, list(KINDS))]), rng.choice([None, None, *TEXTS])
    evolution.suites = {name: OfKinds(suite, kinds, text) for name, suite in evolution.suites.items()}
    if rng.random() < 0.3:
        evolution.verifiers.append(Moody(rng))
        evolution.objectives.append("mood")
    elif rng.random() < 0.3:
        evolution.held_out = [Moody(rng)]
    return evolution


def ran(seed, folder):
    """Play the run that a seed stands for; whether it came to its end."""
    rng = random.Random(seed)
    evolution = made(rng, folder)
    recipe, run = evolution.recipe, evolution.run
    run.write_text("recipe.yaml", recipe.dump())
    run.write_json("manifest.json", cli_run._manifest(recipe, evolution))
    try:
        evolution()
    except Stop:
        records = sorted(folder.rglob("*.jsonl"))
        if records and rng.random() < 0.5:
            with open(rng.choice(records), "ab") as torn:
                torn.write(b'{"stage": "eval-test", "chu')
        return False
    except FateError as error:
        if not re.search("no [a-z]+ tasks|no oracle trace", str(error)):  # there are none of the kinds asked for
            raise
        return False
    write_cards(run, recipe)
    return True


def refused(page, *arguments):
    """Run a command that writes a page: "" where it did, else why it refused. What it raises is raised."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if isinstance(done.exception, FateError):
        return str(done.exception)
    if done.exception is not None:
        raise done.exception
    assert page.stat().st_size > 200, page
    return ""


SAME = "are the same policy"
"""Said of a comparison where no round was accepted, so that the run's policy is its base."""

NOT_YET = {"view": "has no trajectories yet", "compare": "has no evaluated policy", "card": "let the run finish"}
"""What may not be there yet of a run that was stopped, as it is said."""


def described(seed, folder):
    """Take the run of a seed through report, viewer, comparison and card; whether it had come to its end."""
    run, view, page, card = (folder / name for name in ("run", "view/index.html", "compare.html", "README.md"))
    finished = ran(seed, run)
    base = next((policy.name for policy in Run.open(run).policies if not policy.scripted), "base")
    pair = (f"{run}@{base}", run)
    answers = {
        "report": refused(run / "report.html", "report", run),
        "view": refused(view, "view", run, "--export", view.parent),
        "card": refused(card, "card", run, "-o", card),
        "compare": refused(page, "compare", *pair, "--max-error-rate", "1", "-o", page),
    }
    summary = CliRunner().invoke(app, ["report", str(run), "--json"], catch_exceptions=False).stdout
    json.loads(summary, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    refusals = {name: reason for name, reason in answers.items() if reason and SAME not in reason}
    assert not finished or not refusals, refusals
    assert all(name in NOT_YET and NOT_YET[name] in reason for name, reason in refusals.items()), refusals
    return finished


def all_of(seeds, folder):
    """How many of the seeds' runs came to their end. Fails with the first seed whose run cannot be described."""
    finished = 0
    for seed in seeds:
        try:
            finished += described(seed, folder / str(seed))
        except Exception as error:
            error.add_note(f"the run of seed {seed}")
            raise
    return finished


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Intervals are rough, and the hardware is not asked for."""
    monkeypatch.setattr("fate_trl.metrics.intervals.RESAMPLES", 100)
    monkeypatch.setattr(cli_run, "_accelerators", lambda _: {"processes": 1, "threads": 1, "gpus": []})


def test_small_runs_of_every_shape_are_described(tmp_path):
    assert 0 < all_of(range(FEW), tmp_path) < FEW, "some came to their end, some were stopped"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hundreds_of_runs_are_described(tmp_path):
    assert 0 < all_of(range(1000, 1000 + MANY), tmp_path) < MANY
