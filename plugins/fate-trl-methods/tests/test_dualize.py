"""dualize: the fixture's multiplier, floors that are out of reach, and a run's own samples."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")

from fate_trl_methods.dualize import dualize, main, weights_of

from fate_trl.errors import FateError
from fate_trl.recipe.loading import find_recipe, make_recipe, read_values


def tilted(utility, constrained, multipliers, beta):
    z = (utility + constrained @ multipliers) / beta
    weight = np.exp(z - z.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    return (weight[:, :, None] * constrained).sum(axis=1).mean(axis=0)


def test_dualize_finds_the_multiplier_under_which_the_tilted_policy_meets_the_floor():
    """Two samples of one prompt: by hand lambda = log(odds of the floor) beta plus the utility's gap."""
    utility, safety = np.array([[1.0, 0.0]]), np.array([[[0.0], [1.0]]])
    found = dualize(utility, safety, np.array([0.45]), beta=1.0)
    assert found.multipliers_C[0] == pytest.approx(1 + np.log(0.45 / 0.55), abs=1e-5)
    assert tilted(utility, safety, found.multipliers_C, 1.0)[0] == pytest.approx(0.45, abs=1e-5)


def test_dualize_on_random_samples_is_tight_or_zero():
    rng = np.random.default_rng(0)
    utility, safety = rng.random((40, 6)), rng.random((40, 6, 2))
    floors = np.array([0.65, 0.2])
    found = dualize(utility, safety, floors, beta=0.3)
    assert found.multipliers_C[0] > 0
    assert found.multipliers_C[1] == 0, "a floor that is kept anyway costs nothing"
    came = tilted(utility, safety, found.multipliers_C, 0.3)
    assert came[0] == pytest.approx(0.65, abs=1e-5)
    assert came[1] > 0.2
    assert found.steps < 100


def test_dualize_says_that_a_floor_is_out_of_reach_and_does_not_loop():
    utility, safety = np.array([[1.0, 0.0]]), np.array([[[0.2], [0.6]]])
    for floor, gap in ((0.9, "-0.300"), (0.6, "+0.000")):
        with pytest.raises(FateError, match=rf"no policy that keeps the floors .* \{gap}"):
            dualize(utility, safety, np.array([floor]), beta=0.1)
    either = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    with pytest.raises(FateError, match="no finite multipliers keep all floors at once"):
        dualize(utility, either, np.array([0.8, 0.8]), beta=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of a scripted learner on a small workbench."""
    run = pytest.importorskip("scripted_run").run
    path = tmp_path_factory.mktemp("run") / "run"
    recipe = read_values(find_recipe("quickstart"))
    recipe["suites"] = [{"name": "workbench", "args": {"train": 24, "validation": 12, "test": 24}}]
    path.mkdir()
    (path / "recipe.yaml").write_text(make_recipe(recipe).dump())
    run(path / "recipe.yaml", path)
    return path


def test_dualize_prints_weights_of_a_runs_own_samples(folder, capsys):
    assert main([str(folder), "--objective", "utility", "--floor", "security=0.8"]) == 0
    out = capsys.readouterr().out
    assert "name: weighted-sum" in out
    assert "utility: 1" in out
    assert "security: " in out
    assert main([str(folder), "--floor", "securty=0.8"]) == 1
    assert "no task with two scored tries" in capsys.readouterr().err


def test_dualize_weights_name_the_utility_first():
    scores = np.random.default_rng(1).random((10, 4, 2))
    weights = weights_of(scores, "utility", {"security": 0.6}, 0.3)
    assert list(weights) == ["utility", "security"]
    assert weights["utility"] == 1
    assert weights["security"] > 0
