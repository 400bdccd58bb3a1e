"""A recipe's whole run with a scripted learner, as stages.build makes it with a model: no torch, a second or two.

As a script: python scripted_run.py RECIPE RUN, which prints the rows of metrics.json.
"""

import json
import sys

from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.recipe.loading import load_recipe
from fate_trl.suites.scripted import ScriptedLearner


def run(path, folder):
    """(rows of metrics.json, learner) of the recipe at `path`, recorded in `folder`."""
    evolution = assemble(load_recipe(path), RunDirectory(folder), lambda suites, *_: ScriptedLearner(suites))
    return evolution(), evolution.learner


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2])[0]))
