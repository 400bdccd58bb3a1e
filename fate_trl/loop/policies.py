"""The policies that a run saves: one per round, and one after each training stage until its round is saved."""

from __future__ import annotations

import shutil

from ..hookspecs import Learner
from ..ledger.layout import policy_folder, round_dir
from ..ledger.writing import RunDirectory
from .budgets import Budgets

NO_BUDGETS = Budgets()


def save_policy(learner: Learner, run: RunDirectory, folder: str, budgets: Budgets = NO_BUDGETS) -> None:
    """Save the policy as it is, so that the folder is either the old one or the new one."""
    with run.replacing(folder) as path:
        learner.save(str(path))
        budgets.save(path)


def load_policy(learner: Learner, run: RunDirectory, round: int, budgets: Budgets = NO_BUDGETS) -> None:
    """Load the policy of an accepted round; round 0 is the model as given, or its warm start."""
    folder = policy_folder(run.path, round)
    if folder is None:
        save_policy(learner, run, f"{round_dir(0)}/base", budgets)
    else:
        learner.load(str(folder))
        budgets.load(folder)


def tidy(run: RunDirectory, round: int) -> None:
    """Remove what the training stages left. Call it once the save is recorded: until then a resumed run needs it."""
    for folder in (run.path / round_dir(round)).glob("after-*"):
        shutil.rmtree(folder)
