"""What several test files share."""

import gc
import shutil

import pytest
from scripted_run import run

from fate_trl.recipe.loading import find_recipe, make_recipe, read_values


@pytest.fixture(scope="session")
def scripted_folder(tmp_path_factory):
    """The run directory of two rounds of a scripted learner on a small workbench. Do not write into it."""
    folder = tmp_path_factory.mktemp("scripted") / "run"
    recipe = read_values(find_recipe("quickstart"))
    recipe["suites"] = [{"name": "workbench", "args": {"train": 24, "validation": 12, "test": 24}}]
    recipe["rollout"] |= {"tasks": None, "chunk": 10}
    folder.mkdir()
    (folder / "recipe.yaml").write_text(make_recipe(recipe).dump())
    run(folder / "recipe.yaml", folder)
    return folder


@pytest.fixture
def scripted_copy(scripted_folder, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(scripted_folder, tmp_path / "run")


def pytest_collection_finish():
    """TRL collects garbage after every training; what was imported need not be gone through each time (0.5 s)."""
    gc.freeze()
