"""The components that a recipe names, each made once: where the recipe is checked; the run takes them from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import plugins
from ..hookspecs import Budget, Merge, Pairing, PairLoss, ParetoSelector, PolicyLoss, RepairStrategy
from ..verify.loading import load as load_verifier
from .schema import ComponentRef, Recipe, budgets_in, references_in


@dataclass(frozen=True)
class Components:
    """All components of a recipe but its suites, whose benchmarks a check does not import.

    Attributes:
        verifiers: What scores trajectories.
        held_out: What scores them in evaluations only.
        selector: What PFPO rewards with.
        repair: The repair strategy; None where the recipe repairs nothing.
        pairing: Which trajectories are paired; None where the recipe learns from no pairs.
        pair_loss: What the preference stage minimises; None for TRL's `loss_type`.
        chooser: What chooses repairs: an instance of its own, as one that learns must learn from one of the two.
        policy_loss: What PFPO minimises; None for TRL's `loss_type`.
        callbacks: What watches PFPO and steers it.
        budgets: By what they share tries out in; each an instance of its own.
        merge: What each round's policy is merged by; None where it is the trained one.
        references: What merges the reference of a training stage, by its name; none where that is the stage's start.
    """

    verifiers: list[Any]
    held_out: list[Any]
    selector: Any
    repair: RepairStrategy | None
    chooser: ParetoSelector
    pairing: Pairing | None = None
    pair_loss: PairLoss | None = None
    policy_loss: PolicyLoss | None = None
    callbacks: Sequence[Any] = ()
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    merge: Merge | None = None
    references: Mapping[str, Merge] = field(default_factory=dict)


def components_of(recipe: Recipe) -> Components:
    """Make a recipe's components. Raises PluginError or RecipeError where one cannot be made."""
    by = recipe.selector if recipe.repair is None else recipe.repair.selector or recipe.selector
    loss = recipe.preference.loss if recipe.preference else None
    policy_loss = recipe.pfpo.loss if recipe.pfpo else None
    return Components(
        selector=_load("selector", recipe.selector),
        verifiers=[load_verifier(reference.name, reference.args) for reference in recipe.verifiers],
        held_out=[load_verifier(reference.name, reference.args) for reference in recipe.evaluation.verifiers],
        repair=None if recipe.repair is None else _load("repair", recipe.repair.strategy),
        chooser=_load("selector", by),
        pairing=_load("pairing", recipe.preference.pairing) if recipe.preference else None,
        pair_loss=_load("pair loss", loss) if loss else None,
        policy_loss=_load("policy loss", policy_loss) if policy_loss else None,
        callbacks=[_load("callback", reference) for reference in (recipe.pfpo.callbacks if recipe.pfpo else ())],
        budgets={stage: _load("budget", reference) for stage, (reference, _) in budgets_in(recipe).items()},
        merge=_load("merge", recipe.merge) if recipe.merge else None,
        references={stage: _load("merge", reference) for stage, reference in references_in(recipe).items()},
    )


def plugins_of(recipe: Recipe) -> list[str]:
    """Names of the plugins that a recipe takes components from, sorted."""
    named = [*recipe.suites, *recipe.verifiers, *recipe.evaluation.verifiers, recipe.selector]
    if recipe.repair is not None:
        named += [recipe.repair.strategy, recipe.repair.selector or recipe.selector]
    if recipe.preference is not None:
        named += [recipe.preference.pairing, *([recipe.preference.loss] if recipe.preference.loss else [])]
    if recipe.pfpo is not None:
        named += [*recipe.pfpo.callbacks, *([recipe.pfpo.loss] if recipe.pfpo.loss else [])]
    named += [*([recipe.merge] if recipe.merge else []), *references_in(recipe).values()]
    named += [reference for reference, _ in budgets_in(recipe).values()]
    return sorted({plugins.split_name(reference.name)[0] for reference in named})


def _load(type: plugins.Type, reference: ComponentRef) -> Any:
    return plugins.load(type, reference.name, reference.args)
