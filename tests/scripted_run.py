"""A recipe's whole run with a scripted learner, as stages.build makes it with a model: no torch, a second or two.

As a script: python scripted_run.py RECIPE RUN, which prints the rows of metrics.json.
"""

import json
import sys

from fate_trl import plugins
from fate_trl.evolution import Evolution
from fate_trl.ledger import RunDirectory
from fate_trl.recipe import load_recipe, objectives_of
from fate_trl.testing.scripted import ScriptedLearner


def run(path, folder):
    """(rows of metrics.json, learner) of the recipe at `path`, recorded in `folder`."""
    recipe = load_recipe(path)
    suites = {ref.name: plugins.load("suite", ref.name, ref.args) for ref in recipe.suites}
    verifiers = [plugins.load("verifier", ref.name, ref.args) for ref in recipe.verifiers]
    named = [*recipe.suites, *recipe.verifiers, recipe.repair.strategy, recipe.selector]
    learner = ScriptedLearner(suites)
    evolution = Evolution(
        recipe=recipe,
        suites=suites,
        verifiers=verifiers,
        repair=plugins.load("repair", recipe.repair.strategy.name, recipe.repair.strategy.args),
        selector=plugins.load("selector", recipe.selector.name, recipe.selector.args),
        learner=learner,
        run=RunDirectory(folder),
        objectives=objectives_of(recipe, verifiers),
        observers=plugins.observers(sorted({plugins.split_name(ref.name)[0] for ref in named})),
    )
    return evolution(), learner


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2])[0]))
