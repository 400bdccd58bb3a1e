"""How likely a policy that is named would have been to write what another one wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import LedgerError, RecipeError
from ..ledger.layout import policy_folder, round_of
from ..ledger.reading import RunReader
from ..recipe.checks import check_path
from ..recipe.loading import validated
from ..recipe.schema import Model
from ..types import Trajectory
from .target import recipe_of


def log_likelihoods(
    policy: str, trajectories: Sequence[Trajectory], run: RunReader | None = None, batch: int = 8
) -> list[float]:
    """Log-probability under a policy of the tokens that a trajectory's own policy wrote, in nats, summed.

    The policy is loaded for this call alone. Trajectories have tokens, and those are of the same vocabulary. Without
    any, nothing is loaded, and it is only looked whether there is such a policy.

    Args:
        policy: `RUN` for the last accepted policy of a run, `RUN@2` for that of a round; a model's folder or hub id, or
            an adapter's folder. Of the run that is given itself: `base`, its model as the recipe names it; `start`, the
            policy before round 1, after a warm start; `@2`, that of a round.
        trajectories: What was written.
        run: The run whose own policies may be named.
        batch: Trajectories that go through the model together.

    Raises:
        RecipeError: There is no such policy, or it cannot be loaded.
        LedgerError: The run has no policy of that round.
    """
    model = _model_of(policy, run)
    check_path(model.path, policy)
    if not trajectories:
        return []
    from ..train.likelihoods import log_likelihoods_of  # torch

    rows = [([*t.prompt_ids, *t.completion_ids], [*[0] * len(t.prompt_ids), *t.policy_mask]) for t in trajectories]
    return log_likelihoods_of(model, rows, batch)


def _model_of(policy: str, run: RunReader | None) -> Model:
    own = policy in ("base", "start") or policy.startswith("@")
    if not own:
        recipe = recipe_of(policy)
    elif run is None:
        raise RecipeError(f"{policy!r} is a policy of the run that scores, and no run does; name one as RUN@2.")
    else:
        recipe = validated(_own(policy, run))
    if recipe.model.endpoint is not None:
        raise RecipeError(f"{policy}: an endpoint does not say how likely given tokens are; name a model of your own.")
    return recipe.model


def _own(policy: str, run: RunReader) -> dict[str, Any]:
    """Values of a recipe whose model is this policy of a run."""
    values: dict[str, Any] = run.recipe().model_dump(mode="json")
    if policy == "base":
        return values
    round = 0 if policy == "start" else round_of(policy[1:])
    if round is None:
        raise RecipeError(f"{policy!r} is no policy: after the @ stands the number of a round.")
    folder = policy_folder(run.path, round)
    if folder is None:
        raise LedgerError(
            f"{run.path} has no policy {policy!r} yet, or trained nothing up to there; name base, start, or a policy "
            "of a run that is done, as RUN@1."
        )
    values["model"]["adapter" if (folder / "adapter_config.json").exists() else "path"] = str(folder.resolve())
    return values
