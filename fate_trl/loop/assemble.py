"""A recipe's run with its components loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import plugins
from ..hookspecs import Suite
from ..ledger.writing import RunDirectory
from ..recipe.components import Components, components_of, plugins_of
from ..recipe.schema import Recipe, objectives_of
from ..suites.opening import open_suites
from ..verify.loading import tell_run
from .budgets import Budgets
from .reporter import Reporter, Silent
from .rounds import Evolution


def assemble(
    recipe: Recipe,
    run: RunDirectory,
    make_learner: Callable[[Mapping[str, Suite], list[Any], Any], Any],
    reporter: Reporter | None = None,
    components: Components | None = None,
) -> Evolution:
    """A recipe's run; `make_learner` gets the suites, the verifiers and the selector.

    Args:
        recipe: What was asked.
        run: Where it is recorded.
        make_learner: Makes what is trained.
        reporter: Who is told.
        components: Those that the recipe was checked with; by default they are made here.
    """
    made = components or components_of(recipe)
    suites = open_suites(recipe.suites)
    objectives = objectives_of(recipe, made.verifiers)
    for selector in (made.selector, made.chooser):
        plugins.check_needs(selector, objectives)
    tell_run([*made.verifiers, *made.held_out], run)
    return Evolution(
        recipe=recipe,
        suites=suites,
        verifiers=made.verifiers,
        held_out=made.held_out,
        repair=made.repair,
        budgets=Budgets.of(recipe, made.budgets),
        selector=made.chooser,
        pairing=made.pairing,
        own_samples="own" in getattr(made.pair_loss, "needs", ()),
        merge=made.merge,
        references=made.references,
        learner=make_learner(suites, made.verifiers, made.selector),
        run=run,
        objectives=objectives,
        reporter=reporter or Silent(),
        observers=plugins.observers(plugins_of(recipe)),
    )
