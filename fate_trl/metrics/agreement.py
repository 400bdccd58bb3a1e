"""How far two who judge the same cases agree beyond chance: Krippendorff's alpha, for categories.

Alpha is 1 − observed disagreement / disagreement expected by chance (Krippendorff, Content Analysis, 2004, ch. 11):
1 where all agree, about 0 where they agree no more than chance would have it, below where they tend to disagree. Any
number of judges, each of whom may be silent on some cases. Own code since the package for it is under the GPL.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .totals import Array

RESAMPLES = 2000
"""Of clusters, for an interval."""


def coincidences(units: Sequence[Sequence[Hashable]]) -> Array:
    """The coincidence matrix of each unit, (U, K, K), over the K categories that occur.

    Args:
        units: What the judges of a unit said, None for one that is silent. A unit with fewer than two words counts for
            nothing.
    """
    known = {value: k for k, value in enumerate(dict.fromkeys(v for unit in units for v in unit if v is not None))}
    out_U_K_K = np.zeros((len(units), len(known), len(known)))
    for place, unit in enumerate(units):
        counts = np.bincount([known[value] for value in unit if value is not None], minlength=len(known)).astype(float)
        said = counts.sum()
        if said > 1:
            out_U_K_K[place] = (np.outer(counts, counts) - np.diag(counts)) / (said - 1)
    return out_U_K_K


def alpha(coincidences_B_K_K: Array) -> Array:
    """Krippendorff's alpha for categories, (B,), of coincidence matrices; NaN where only one category was named."""
    counts_B_K = coincidences_B_K_K.sum(axis=-1)
    n_B = counts_B_K.sum(axis=-1)
    observed = n_B - np.trace(coincidences_B_K_K, axis1=-2, axis2=-1)
    expected = n_B**2 - (counts_B_K**2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 1e-9, 1 - (n_B - 1) * observed / expected, np.nan)


def agreement(units: Sequence[Sequence[Hashable]], clusters: Sequence[Hashable], seed: int = 0) -> dict[str, Any]:
    """Alpha of the units with a 95 % interval, by a bootstrap over clusters (percentiles; ours).

    Args:
        units: As `coincidences` takes them.
        clusters: The cluster of each unit.
        seed: Seed of the resamples, non-negative.

    Returns:
        {"alpha", "low", "high", "agree", "n", "clusters"}: "agree" is the share of units whose judges all say the same.
        The first three are None where alpha is not defined: all say the same category, always.
    """
    heard = [place for place, unit in enumerate(units) if sum(value is not None for value in unit) > 1]
    units_K = [units[place] for place in heard]
    by: dict[Hashable, int] = {}
    number = np.array([by.setdefault(clusters[place], len(by)) for place in heard], dtype=int)
    same = [len({value for value in unit if value is not None}) == 1 for unit in units_K]
    told = {"agree": float(np.mean(same)) if same else None, "n": len(heard), "clusters": len(by)}
    none: dict[str, Any] = {"alpha": None, "low": None, "high": None, **told}
    if not heard:
        return none
    each_U_K_K = coincidences(units_K)
    totals_C_K_K = np.zeros((len(by), *each_U_K_K.shape[1:]))
    np.add.at(totals_C_K_K, number, each_U_K_K)
    value = float(alpha(totals_C_K_K.sum(axis=0)[None])[0])
    if np.isnan(value):
        return none
    draws_B_C = np.random.default_rng([seed, len(by)]).multinomial(len(by), np.full(len(by), 1 / len(by)), RESAMPLES)
    resampled = alpha(np.tensordot(draws_B_C.astype(float), totals_C_K_K, axes=1))
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return {"alpha": value, "low": float(low), "high": float(high), **told}
