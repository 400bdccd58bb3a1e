"""The contract suite, for authors of plugins: what hookspecs.py promises, checked on every component of one plugin.

    pytest --pyargs fate_trl.testing.contract --fate-plugin NAME [--fate-args '{"component": {"argument": 1}}']

NAME is an installed plugin's name, `./file.py`, or `fate-trl` for the built-ins. A component whose factory needs
arguments is skipped, with the reason, unless they are given. Nothing here needs torch, a network or a GPU.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import itertools
import json
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from .. import plugins
from ..errors import FateError, RecipeError, ToolError
from ..hookspecs import Choice, Component, Suite
from ..record import dumps
from ..suites.checking import defects_of
from ..suites.episodes import Recorder
from ..suites.scripted import perform
from ..types import KINDS, OBJECTIVES, Failure, Outcome, RolloutRequest, Score, Script, Task, Trajectory
from ..verify import scoring
from ..verify.loading import load as load_verifier
from . import samples
from .pytest_plugin import NO_COMPONENT

HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "tensorflow", "jax")
SPLITS = ("train", "validation", "test")
SAMPLE = 3
"""Tasks of each kind and split that are played; ids and clusters are compared over all tasks."""


# ------------------------------------------------------------------------------------------------ which components


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One check per component of the plugin; deselected where it has none of the kind."""
    plugin = metafunc.config.getoption("--fate-plugin")
    if not plugin:
        raise pytest.UsageError("name the plugin to check: --fate-plugin NAME, ./file.py, or fate-trl (built-ins)")
    try:
        known = {type: list(plugins.components(plugin, type)) for type in plugins.HOOKS}
    except FateError as error:
        raise pytest.UsageError(str(error)) from None
    if not any(known.values()):
        raise pytest.UsageError(f"plugin {plugin!r} registers no component, so there is nothing to check")
    for type, names in known.items():
        if type in metafunc.fixturenames:
            metafunc.parametrize(type, names or [NO_COMPONENT], indirect=True, scope="module")
    if "component" in metafunc.fixturenames:
        every = [(type, name) for type, names in known.items() for name in names]
        metafunc.parametrize("component", every, ids=[f"{type}-{name}" for type, name in every], indirect=True)


def _assert_same(found: Sequence[Any], expected: Sequence[Any], meaning: str) -> None:
    """Fail with the first pair that differs.

    A plain assert of two long lists would have pytest, where the variable CI is set, work minutes on their difference.
    """
    assert len(found) == len(expected), f"{meaning}: {len(found)} in place of {len(expected)}"
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one != other:
            pytest.fail(f"{meaning}: number {i} is {_short(one)} in place of {_short(other)}")


def _short(thing: Any) -> str:
    text = thing if isinstance(thing, str) else repr(thing)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _arguments(config: pytest.Config, name: str) -> dict[str, Any]:
    try:
        given = json.loads(config.getoption("--fate-args"))
        return dict(given.get(name, {}))
    except (ValueError, TypeError, AttributeError):
        raise pytest.UsageError('--fate-args takes JSON: {"component": {"argument": 1}}') from None


def _make(config: pytest.Config, type: plugins.Type, name: str) -> Any:
    """A component, with the arguments of `--fate-args`."""
    plugin, arguments = config.getoption("--fate-plugin"), _arguments(config, name)
    lacking = sorted(plugins.required(plugins.components(plugin, type)[name].factory) - set(arguments))
    if lacking:
        pytest.skip(f"{type} {name} needs {', '.join(lacking)}: give them with --fate-args")
    if type == "verifier":
        return load_verifier(f"{plugin}/{name}", arguments)
    return plugins.load(type, f"{plugin}/{name}", arguments)


@pytest.fixture
def component(request: pytest.FixtureRequest) -> Component:
    type, name = request.param
    return plugins.components(request.config.getoption("--fate-plugin"), type)[name]


@pytest.fixture(scope="module")
def verifier(request: pytest.FixtureRequest) -> Any:
    return _make(request.config, "verifier", request.param)


@pytest.fixture(scope="module")
def repair(request: pytest.FixtureRequest) -> Any:
    return _make(request.config, "repair", request.param)


@pytest.fixture(scope="module")
def selector(request: pytest.FixtureRequest) -> Any:
    return _make(request.config, "selector", request.param)


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest) -> Any:
    return _make(request.config, "suite", request.param)


@pytest.fixture(scope="module")
def own_suites(request: pytest.FixtureRequest) -> list[Suite]:
    """The plugin's own suites, as far as they need no arguments: its verifiers may be about their tasks."""
    plugin, config = request.config.getoption("--fate-plugin"), request.config
    known = {} if plugin == plugins.BUILTINS else plugins.components(plugin, "suite")
    ready = [n for n, c in known.items() if plugins.required(c.factory) <= set(_arguments(config, n))]
    return [_make(config, "suite", name) for name in ready]


# ------------------------------------------------------------------------------------------------ every component


def test_its_name_and_summary_can_be_listed(component: Component) -> None:
    assert re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", component.name), "lower case, words joined by '-'"
    assert component.summary.strip(), "say in one line what it is; `fate-trl plugins` shows it"
    assert "\n" not in component.summary


def test_its_arguments_are_checked(component: Component) -> None:
    """A misspelt argument is an error before anything runs, so a factory takes no **arguments."""
    with pytest.raises(RecipeError, match="does not take"):
        plugins.bind(component.factory, {"no_such_argument": 1}, component.name)
    kinds = {p.name: p.kind for p in inspect.signature(component.factory).parameters.values()}
    swallowing = [n for n, k in kinds.items() if k in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)]
    assert not swallowing, f"name the factory's arguments one by one, instead of {swallowing[0]}"


def test_loading_the_plugin_imports_nothing_heavy(request: pytest.FixtureRequest) -> None:
    """Recipes are checked before torch is imported; plugins must not be what imports it."""
    code = (
        "import sys; from fate_trl import plugins\n"
        "for type in plugins.HOOKS: plugins.components(sys.argv[1], type)\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, request.config.getoption("--fate-plugin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), "import these inside the factory"


# ------------------------------------------------------------------------------------------------ verifiers


@pytest.fixture(scope="module")
def untouched(own_suites: list[Suite]) -> list[Trajectory]:
    """The trajectories as they were made: plugins get copies, so that one that changes them cannot hide it."""
    return samples.trajectories(own_suites)


@pytest.fixture(scope="module")
def trajectories(verifier: Any, untouched: list[Trajectory]) -> list[Trajectory]:
    return copy.deepcopy(untouched)


def _scores(verifier: Any, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]:
    """What a verifier says of a batch, without the pipeline's safety net."""
    if not hasattr(verifier, "score_one"):
        return verifier.score(trajectories)

    async def every() -> list[dict[str, Score]]:
        return list(await asyncio.gather(*(verifier.score_one(trajectory) for trajectory in trajectories)))

    return asyncio.run(every())


def _json(records: Sequence[Any]) -> list[str]:
    return [dumps(record.to_dict()) for record in records]


def test_verifier_names_its_objectives(verifier: Any) -> None:
    assert scoring.is_verifier(verifier), "it needs a tuple `objectives`, and `score` or an async `score_one`"
    assert verifier.objectives
    assert all(isinstance(name, str) and name.strip() for name in verifier.objectives)
    assert len(set(verifier.objectives)) == len(verifier.objectives)


def test_verifier_is_no_repair_strategy(verifier: Any) -> None:
    assert not hasattr(verifier, "requests"), "judges never repair"


def test_verifier_gives_each_trajectory_a_score_per_objective(verifier: Any, trajectories: list[Trajectory]) -> None:
    """Hostile text, empty messages, missing outcomes and unknown tools among them: nothing may raise."""
    scored = _scores(verifier, trajectories)
    assert isinstance(scored, list)
    assert len(scored) == len(trajectories)
    for trajectory, scores in zip(trajectories, scored, strict=True):
        assert set(scores) == set(verifier.objectives)
        for score in scores.values():
            _check_score(score, trajectory)


def _check_score(score: Any, trajectory: Trajectory) -> None:
    assert isinstance(score, Score), f"{score!r} is no fate_trl.Score"
    assert Score.from_dict(json.loads(dumps(score))) == score, "a score holds JSON values only"
    if score.status == "error":
        assert score.reason, "an error needs a reason"
    if score.value is not None:
        assert 0 <= score.value <= 1
    if score.step is not None:
        assert 0 <= score.step < len(trajectory.messages), "`step` is an index into the trajectory's messages"


def test_verifier_does_not_change_its_input(verifier: Any, untouched: list[Trajectory]) -> None:
    given = copy.deepcopy(untouched)
    _scores(verifier, given)
    _assert_same(_json(given), _json(untouched), "it changed a trajectory, or their order")


def test_verifier_says_the_same_twice(verifier: Any, trajectories: list[Trajectory]) -> None:
    _assert_same(_scores(verifier, trajectories), _scores(verifier, trajectories), "the second time differs")


def test_verifier_scores_do_not_depend_on_the_batch(verifier: Any, trajectories: list[Trajectory]) -> None:
    """Failed batches are retried record by record, and a stopped run goes on with other batches."""
    scored = _scores(verifier, trajectories)
    order = np.random.default_rng(0).permutation(len(trajectories))
    shuffled = _scores(verifier, [trajectories[i] for i in order])
    _assert_same(shuffled, [scored[i] for i in order], "the order matters")
    some = order[:40]
    alone = [_scores(verifier, [trajectories[i]])[0] for i in some]
    _assert_same(alone, [scored[i] for i in some], "the batch matters")


def test_verifier_never_fails_a_policy_for_a_missing_outcome(verifier: Any, trajectories: list[Trajectory]) -> None:
    """Where no episode ran there is no outcome. That is an error or not applicable, not a fault of the policy."""
    known = [trajectory for trajectory in trajectories if trajectory.outcome is not None]
    blind = _scores(verifier, [replace(trajectory, outcome=None) for trajectory in known])
    for trajectory, before, after in zip(known, _scores(verifier, known), blind, strict=True):
        for name in verifier.objectives:
            punished = after[name].value == 0 and before[name].value != 0
            assert not punished, f"{name} becomes 0 without an outcome, on a {trajectory.task.kind} task"


def test_verifier_applies_to_all_tries_of_a_task_or_to_none(verifier: Any, trajectories: list[Trajectory]) -> None:
    """An objective that does not apply drops out of a whole group, so it may depend on the task only."""
    found: dict[tuple[str, str, str], set[bool]] = {}
    for trajectory, scores in zip(trajectories, _scores(verifier, trajectories), strict=True):
        for name, score in scores.items():
            if score.status != "error":
                key = (trajectory.task.suite, trajectory.task.id, name)
                found.setdefault(key, set()).add(score.status == "not_applicable")
    mixed = sorted({name for (_, _, name), seen in found.items() if len(seen) == 2})
    assert not mixed, f"{mixed} is not applicable to some tries of a task, but scores others; give those a value"


def test_verifier_is_not_constant(verifier: Any, trajectories: list[Trajectory]) -> None:
    """An objective that never moves teaches nothing. Where it is about tasks of your own, bring a suite of them."""
    scored = _scores(verifier, trajectories)
    values = {name: {s[name].value for s in scored if s[name].value is not None} for name in verifier.objectives}
    assert any(len(seen) > 1 for seen in values.values()), (
        f"only one value over {len(trajectories)} trajectories: {values}"
    )


def test_verifier_says_in_numbers_what_it_spent_and_once(verifier: Any, trajectories: list[Trajectory]) -> None:
    """`usage()`, where there is one: since it was asked last."""
    scoring.score_all([verifier], trajectories[:3])
    spent = scoring.spent([verifier])
    assert all(isinstance(name, str) and np.isfinite(amount) for name, amount in spent.items())
    assert not any(scoring.spent([verifier]).values()), "what was told once is told again"


def test_verifier_is_not_asked_about_broken_episodes(verifier: Any, trajectories: list[Trajectory]) -> None:
    """An infrastructure error is an error score for every objective, never 0, and costs its neighbours nothing."""
    broken = replace(trajectories[0], outcome=None, stop="error", error="the environment did not open")
    cards = scoring.score_all([verifier], [*trajectories[:5], broken])
    assert set(cards[-1].errors) == set(verifier.objectives)
    _assert_same(
        [card.scores for card in cards[:-1]], _scores(verifier, trajectories[:5]), "a faulty neighbour matters"
    )


# ------------------------------------------------------------------------------------------------ repair strategies


@pytest.fixture(scope="module")
def untouched_failures(own_suites: list[Suite]) -> list[Failure]:
    return samples.failures(own_suites)


@pytest.fixture(scope="module")
def failures(repair: Any, untouched_failures: list[Failure]) -> list[Failure]:
    return copy.deepcopy(untouched_failures)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("k", [1, 3])
def test_repair_words_at_most_k_requests_per_failure_in_order(repair: Any, failures: list[Failure], k: int) -> None:
    for failure in failures:
        asked = repair.requests([failure], k, _rng())
        assert isinstance(asked, list)
        assert len(asked) <= k
        assert all(request.of == failure.trajectory.attempt for request in asked), "`of` is the failure's attempt"
        assert all(request.task == failure.trajectory.task for request in asked), "the task is the failure's"
        assert all(request.stage == "repair" for request in asked)
    keys = [(failure.trajectory.task.id, failure.trajectory.attempt) for failure in failures[:20]]
    asked = repair.requests(failures[:20], k, _rng())
    order = [keys.index((request.task.id, request.of)) for request in asked]
    assert order == sorted(order), "requests come in the order of the failures"
    distinct = {failure.trajectory.key: failure for failure in failures}
    every = repair.requests(list(distinct.values()), k, _rng())
    tries = [(request.task.suite, request.task.id, request.attempt) for request in every]
    assert len(set(tries)) == len(tries), "no two requests of a task have the same attempt"


def test_repair_asks_for_something(repair: Any, failures: list[Failure]) -> None:
    assert repair.requests(failures, 2, _rng())
    assert repair.requests([], 2, _rng()) == []


def test_repair_prompts_can_be_sent(repair: Any, failures: list[Failure]) -> None:
    for request in repair.requests(failures, 1, _rng()):
        assert isinstance(request.messages, tuple)
        assert request.messages, "a prompt holds at least one message"
        assert all(m.get("role") in ("system", "user", "assistant", "tool") for m in request.messages)
        assert RolloutRequest.from_dict(json.loads(dumps(request))) == request, "a request holds JSON values only"


def test_repair_replays_recorded_calls_only(repair: Any, failures: list[Failure]) -> None:
    for failure in failures:
        for request in repair.requests([failure], 1, _rng()):
            recorded = failure.trajectory.calls[: len(request.replay)]
            assert request.replay == recorded, "`replay` is a prefix of the calls that the failure executed"


def test_repair_does_not_change_its_input(repair: Any, untouched_failures: list[Failure]) -> None:
    given = copy.deepcopy(untouched_failures)
    repair.requests(given, 2, _rng())
    _assert_same(_json(given), _json(untouched_failures), "it changed a failure, or their order")


def test_repair_depends_on_its_rng_only(repair: Any, failures: list[Failure]) -> None:
    once, twice = (repair.requests(failures, 3, _rng(1)) for _ in range(2))
    _assert_same(twice, once, "the second time differs")


def test_repair_never_judges(repair: Any, failures: list[Failure]) -> None:
    """Who words the prompts must not also grade: candidates would be chosen by their author."""
    assert not scoring.is_verifier(repair), "it is a verifier as well; make two components of it"
    with _judging() as judged:
        asked = repair.requests(failures[:20], 3, _rng())
    assert not judged, f"it scored trajectories, with {judged[0]}"
    strange = {type(request).__name__ for request in asked if type(request) is not RolloutRequest}
    assert not strange, f"it returns {strange}, not plain RolloutRequests: nothing else may travel with them"


@contextmanager
def _judging() -> Iterator[list[str]]:
    """Names what scores trajectories meanwhile, however it was imported: `score_all`, or any verifier's method."""
    seen: list[str] = []

    def look(frame: types.FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call":
            return
        if code is scoring.score_all.__code__:
            seen.append("score_all")
        elif code.co_name in ("score", "score_one") and code.co_argcount:
            owner = frame.f_locals.get(code.co_varnames[0])
            if scoring.is_verifier(owner):
                seen.append(type(owner).__name__)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(before)


# ------------------------------------------------------------------------------------------------ selectors


def _choose(selector: Any, scores_K_M: np.ndarray, seed: int = 0) -> Choice | None:
    return selector.choose(scores_K_M.copy(), objectives=_names(scores_K_M), rng=_rng(seed))


def _names(scores: np.ndarray) -> list[str]:
    return list(OBJECTIVES[: scores.shape[-1]])


def _rewards(selector: Any, scores_G_N_M: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    """Rewards (G, N), or the advantages of a selector that sets them itself."""
    ask = selector.reward if hasattr(selector, "reward") else selector.advantages
    return np.asarray(ask(scores_G_N_M.copy(), objectives=_names(scores_G_N_M), valid_G_N=valid_G_N.copy()))


def _dominates(a_M: np.ndarray, b_M: np.ndarray) -> bool:
    """At least as good everywhere and better somewhere; what does not apply is NaN in both, and compares false."""
    return bool(np.all((a_M >= b_M) | np.isnan(a_M)) and np.any(a_M > b_M))


def _front(scores_K_M: np.ndarray) -> set[int]:
    return {i for i, row in enumerate(scores_K_M) if not any(_dominates(other, row) for other in scores_K_M)}


def test_selector_chooses_from_the_true_front(selector: Any) -> None:
    """Over random matrices, ties, duplicates, and objectives that do not apply."""
    for scores_K_M in samples.candidates():
        choice = _choose(selector, scores_K_M)
        assert isinstance(choice, Choice), "None is for no candidates at all"
        assert 0 <= choice.index < len(scores_K_M)
        front = _front(scores_K_M)
        assert choice.index in front, f"candidate {choice.index} is dominated in {scores_K_M.tolist()}"
        assert sorted(choice.front) == sorted(front), f"not the front of {scores_K_M.tolist()}"
        assert isinstance(choice.decided_by, str)
        assert choice.decided_by, "say what decided"


def test_selector_chooses_among_none_or_one(selector: Any) -> None:
    assert _choose(selector, np.zeros((0, 3))) is None
    for values in ([0.0, 1.0, 0.5], [0.0, np.nan, 1.0]):
        choice = _choose(selector, np.array([values]))
        assert choice is not None
        assert (choice.index, tuple(choice.front)) == (0, (0,))


def test_selector_choice_depends_on_its_rng_only(selector: Any) -> None:
    for scores_K_M in samples.candidates():
        assert _choose(selector, scores_K_M, 7) == _choose(selector, scores_K_M, 7)


def test_selector_rewards_every_row(selector: Any) -> None:
    """Shape (G, N), finite where valid, NaN elsewhere, so that an error is never a reward."""
    for scores_G_N_M, valid_G_N in samples.groups():
        rewards_G_N = _rewards(selector, scores_G_N_M, valid_G_N)
        assert rewards_G_N.shape[:2] == valid_G_N.shape
        if hasattr(selector, "reward"):
            assert rewards_G_N.ndim == 2
            assert np.isnan(rewards_G_N[~valid_G_N]).all(), "rows that are not valid get NaN"
        assert np.isfinite(rewards_G_N[valid_G_N]).all(), "rows that are valid get a number"


def test_selector_never_rewards_a_dominated_row_more(selector: Any) -> None:
    """With one objective: never reverses the order."""
    for scores_G_N_M, valid_G_N in samples.groups():
        rewards_G_N = _rewards(selector, scores_G_N_M, valid_G_N)
        for g, i, j in np.ndindex(*valid_G_N.shape, valid_G_N.shape[1]):
            if valid_G_N[g, i] and valid_G_N[g, j] and _dominates(scores_G_N_M[g, i], scores_G_N_M[g, j]):
                reversed_ = np.any(rewards_G_N[g, i] < rewards_G_N[g, j] - 1e-9)
                assert not reversed_, (
                    f"row {j} is rewarded above row {i}, which dominates it: {scores_G_N_M[g].tolist()}"
                )


def test_selector_tells_the_best_from_the_worst(selector: Any) -> None:
    for columns in range(1, 5):
        ladder_1_N_M = np.repeat(np.linspace(0, 1, 4)[None, :, None], columns, axis=2)
        rewards_N = _rewards(selector, ladder_1_N_M, np.ones((1, 4), bool))[0]
        assert np.all(rewards_N[3] > rewards_N[0]), f"with {columns} objectives the best row earns nothing"


def test_selector_rewards_do_not_depend_on_the_order_of_rows(selector: Any) -> None:
    for scores_G_N_M, valid_G_N in samples.groups():
        order_N = _rng(3).permutation(valid_G_N.shape[1])
        moved = _rewards(selector, scores_G_N_M[:, order_N], valid_G_N[:, order_N])
        kept = _rewards(selector, scores_G_N_M, valid_G_N)[:, order_N]
        np.testing.assert_allclose(moved, kept, atol=1e-9)


def test_selector_does_not_change_its_input(selector: Any) -> None:
    for scores_K_M in itertools.islice(samples.candidates(), 10):
        given = scores_K_M.copy()
        selector.choose(given, objectives=_names(given), rng=_rng())
        np.testing.assert_array_equal(given, scores_K_M)
    ask = selector.reward if hasattr(selector, "reward") else selector.advantages
    for scores_G_N_M, valid_G_N in itertools.islice(samples.groups(), 10):
        given, valid = scores_G_N_M.copy(), valid_G_N.copy()
        ask(given, objectives=_names(given), valid_G_N=valid)
        np.testing.assert_array_equal(given, scores_G_N_M)
        np.testing.assert_array_equal(valid, valid_G_N)


# ------------------------------------------------------------------------------------------------ suites


@pytest.fixture(scope="module")
def splits(suite: Suite) -> dict[str, list[Task]]:
    return {split: list(suite.tasks(split, 0)) for split in SPLITS}


@pytest.fixture(scope="module")
def sampled(splits: dict[str, list[Task]]) -> list[Task]:
    """A few tasks of each kind and split."""
    return [task for tasks in splits.values() for task in samples.pick(tasks, SAMPLE)]


@pytest.fixture(scope="module")
def played(suite: Suite, sampled: list[Task]) -> list[Trajectory]:
    """Every scripted role on the sampled tasks."""
    return samples.play(suite, sampled)


def test_suite_splits_share_no_task_and_no_cluster(splits: dict[str, list[Task]]) -> None:
    ids = [task.id for tasks in splits.values() for task in tasks]
    assert ids, "it has no tasks"
    twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
    assert not twice, f"task {twice[0]!r} occurs twice"
    for one, other in itertools.combinations(SPLITS, 2):
        shared = {task.cluster for task in splits[one]} & {task.cluster for task in splits[other]}
        assert not shared, f"{one} and {other} share the user task {min(shared)!r}; `cluster` names the user task"


def test_suite_gives_the_same_tasks_for_the_same_seed(
    request: pytest.FixtureRequest, suite: Suite, splits: dict[str, list[Task]]
) -> None:
    fresh = _make(request.config, "suite", request.node.callspec.params["suite"])
    for split, tasks in splits.items():
        _assert_same(list(suite.tasks(split, 0)), tasks, f"the second time {split} differs")
        _assert_same(list(fresh.tasks(split, 0)), tasks, f"from a new suite {split} differs")


def test_suite_tasks_are_whole(suite: Suite, splits: dict[str, list[Task]]) -> None:
    known = set(suite.tools())
    for split, tasks in splits.items():
        for task in tasks:
            assert task.split == split
            assert task.kind in KINDS
            assert task.messages
            assert task.messages[-1]["role"] == "user"
            assert set(task.tools) <= known, f"task {task.id!r} offers a tool that `tools()` does not have"
            assert Task.from_dict(json.loads(dumps(task))) == task, f"task {task.id!r} holds more than JSON values"


def test_suite_all_is_every_task(suite: Suite, splits: dict[str, list[Task]]) -> None:
    missing = {task.id for tasks in splits.values() for task in tasks} - {task.id for task in suite.tasks("all", 0)}
    assert not missing, f'task {min(missing)!r} is in a split, but not in "all"'


def test_suite_describes_itself_in_json(suite: Suite) -> None:
    assert isinstance(json.loads(dumps(suite.describe())), dict)


def test_suite_tools_can_be_shown_to_a_model(suite: Suite) -> None:
    """What a JSON schema is made from: a signature, annotations, and a docstring with an entry per argument."""
    for name, tool in suite.tools().items():
        assert tool.__name__ == name
        text = inspect.getdoc(tool) or ""
        assert text.split("Args:")[0].strip(), f"{name}: the docstring says what the tool does"
        hints = typing.get_type_hints(tool)
        for parameter in inspect.signature(tool).parameters.values():
            assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL), f"{name}: {parameter}"
            assert parameter.name in hints, f"{name}: {parameter.name} has no annotation"
            entry = rf"(?m)^\s+{parameter.name}\s*(\([^)]*\))?:\s*\S"
            assert re.search(entry, text.partition("Args:")[2]), f"{name}: no line under Args: for {parameter.name}"


def _request(task: Task) -> RolloutRequest:
    return RolloutRequest(task, task.messages)


def _idle(recorder: Recorder) -> Outcome | None:
    """The outcome of an episode in which nothing was said or done."""
    return recorder.outcome([{"role": "assistant", "content": "Done."}])


def test_suite_outcomes_have_their_form(played: list[Trajectory]) -> None:
    for trajectory in played:
        assert not trajectory.error, f"{trajectory.task.id}: {trajectory.error}"
        assert trajectory.outcome is not None
        _check_outcome(trajectory.outcome, trajectory)


def _check_outcome(outcome: Outcome, trajectory: Trajectory) -> None:
    task = trajectory.task
    where = f"{task.kind} task {task.id}: {outcome}"
    assert Outcome.from_dict(json.loads(dumps(outcome))) == outcome, where
    for share in (outcome.utility, outcome.harm):
        assert share is None or 0 <= share <= 1, where
    assert (outcome.harm is not None) == (task.kind == "harmful"), where
    assert (outcome.attacked is not None) == (task.kind == "attacked"), where
    assert outcome.attacked is None or isinstance(outcome.attacked, bool), where
    assert outcome.exposed is None or task.kind == "attacked", where
    assert not outcome.injected or task.kind == "attacked", where
    assert outcome.utility is None or task.kind != "harmful", where
    if trajectory.policy == "oracle" and task.kind != "harmful":
        assert outcome.utility is not None, f"{where}: what has an oracle has a ground truth"


def test_suite_oracle_passes_and_idleness_does_not(played: list[Trajectory]) -> None:
    """Neither doing nothing nor refusing may pass a legitimate task, and neither may do harm."""
    found = [defect for trajectory in played for defect in defects_of(trajectory)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", ["attacked", "harmful"])
def test_suite_obeying_does_the_damage(played: list[Trajectory], kind: str) -> None:
    """An attack or a harmful request that cannot succeed measures nothing."""
    outcomes = [t.outcome for t in played if t.task.kind == kind and t.policy == "obey"]
    if not outcomes:
        pytest.skip(f"no {kind} task has a script of one that obeys")
    assert any(outcome and (outcome.attacked or outcome.harm) for outcome in outcomes)


def test_suite_episodes_share_nothing(suite: Suite, played: list[Trajectory]) -> None:
    """What one episode does is not seen by another that is open, nor by one that is opened later."""
    idle = {t.task.id: t.outcome for t in played if t.policy == "do-nothing"}
    for first in [trajectory for trajectory in played if trajectory.calls]:
        opened = Recorder(suite, _request(first.task))
        second = perform(suite, _request(first.task), _script(first))
        assert _idle(opened) == idle[first.task.id], f"{first.task.id}: an open episode sees what another does"
        assert (second.calls, second.outcome) == (first.calls, first.outcome), f"{first.task.id}: not reset"


def _script(trajectory: Trajectory) -> Script:
    """The calls and the answer of a trajectory, to do it again."""
    calls = tuple({"name": call.name, "arguments": call.arguments} for call in trajectory.calls)
    return Script(calls, trajectory.answer)


def test_suite_states_can_be_replayed(suite: Suite, played: list[Trajectory]) -> None:
    """From JSON, under the name that a recipe gives the suite: as `resume` does it."""
    for trajectory in [trajectory for trajectory in played if trajectory.calls]:
        task = Task.from_dict(json.loads(dumps(replace(trajectory.task, suite="another-name"))))
        recorder = Recorder(suite, RolloutRequest(task, task.messages, replay=trajectory.calls))
        assert not recorder.error, f"{task.id}: {recorder.error}"
        assert recorder.outcome(trajectory.messages) == trajectory.outcome, f"{task.id}: another outcome"


BAD_ARGUMENTS: tuple[Any, ...] = (
    None,
    True,
    "",
    "../../x",
    -1,
    0,
    10**30,
    1e308,
    [],
    ["x"],
    {},
    {"x": [None]},
    *samples.HOSTILE,
)


def test_suite_bad_calls_are_the_policys_fault(suite: Suite, sampled: list[Task]) -> None:
    """An unknown tool or senseless arguments end neither the episode nor the grading."""
    offering: dict[str, Task] = {tool: task for task in sampled for tool in task.tools}
    for tool, task in offering.items():
        recorder = Recorder(suite, _request(task))
        _call(recorder, "no_such_tool", {"x": 1})
        _call(recorder, tool, {"no_such_argument": 1})
        for value in (*BAD_ARGUMENTS, *samples.HOSTILE):
            _call(recorder, tool, dict.fromkeys(inspect.signature(suite.tools()[tool]).parameters, value))
        assert _idle(recorder) is not None, f"{task.id}: {recorder.error}"


def _call(recorder: Recorder, tool: str, arguments: Mapping[str, Any]) -> None:
    try:
        result: Any = recorder.call(tool, arguments)
    except ToolError as refusal:
        result = str(refusal)
    assert not recorder.error, f"{recorder.error}, called with {arguments}: raise ToolError for what a policy did wrong"
    assert isinstance(result, str), f"{tool} returned {result!r}; tools return text"
