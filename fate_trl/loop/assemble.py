"""A recipe's run with its components loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import plugins
from ..hookspecs import Suite
from ..ledger.writing import RunDirectory
from ..recipe.schema import Recipe, objectives_of
from ..verify.loading import load as load_verifier
from .reporter import Reporter, Silent
from .rounds import Evolution


def assemble(
    recipe: Recipe,
    run: RunDirectory,
    make_learner: Callable[[Mapping[str, Suite], list[Any], Any], Any],
    reporter: Reporter | None = None,
) -> Evolution:
    """A recipe's run with its components loaded; `make_learner` gets the suites, the verifiers and the selector."""
    suites = {reference.name: plugins.load("suite", reference.name, reference.args) for reference in recipe.suites}
    verifiers = [load_verifier(reference.name, reference.args) for reference in recipe.verifiers]
    selector = plugins.load("selector", recipe.selector.name, recipe.selector.args)
    strategy = chooser = None
    named = [*recipe.suites, *recipe.verifiers, *recipe.evaluation.verifiers, recipe.selector]
    if recipe.repair is not None:
        wanted, by = recipe.repair.strategy, recipe.repair.selector or recipe.selector
        strategy = plugins.load("repair", wanted.name, wanted.args)
        chooser = plugins.load("selector", by.name, by.args)
        named += [wanted, by]
    held_out = [load_verifier(reference.name, reference.args) for reference in recipe.evaluation.verifiers]
    objectives = objectives_of(recipe, verifiers)
    for chooses in (selector, chooser):
        plugins.check_needs(chooses, objectives)
    return Evolution(
        recipe=recipe,
        suites=suites,
        verifiers=verifiers,
        held_out=held_out,
        repair=strategy,
        selector=chooser or selector,
        learner=make_learner(suites, verifiers, selector),
        run=run,
        objectives=objectives,
        reporter=reporter or Silent(),
        observers=plugins.observers(sorted({plugins.split_name(reference.name)[0] for reference in named})),
    )
