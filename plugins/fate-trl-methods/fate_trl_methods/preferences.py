"""The family `preferences`: pairings, for a recipe's `preference.pairing`, and losses on pairs, for `preference.loss`.

Formulas stand in the classes' docstrings, with where each is from.
"""

from __future__ import annotations

from fate_trl import Component, hookimpl

from .pair_losses import Dmpo, HDpo, Hypo, Inpo, Mappo, Rationale, RewardAware, Spac, Srpo, Tgdpo, Vpo
from .pair_sets import Feasible, Pmpo, Relative, Uapo
from .pairings import CrossVerified, EarlierPolicy, MarginFilter, StepPairs

fate_trl_api = 1


@hookimpl
def fate_trl_pairings() -> list[Component]:
    return [
        Component("margin-filter", MarginFilter, "DNO: only pairs whose score gap is above a margin"),
        Component("step-pairs", StepPairs, "SVPO: from the first call on in which the sides differ"),
        Component("cross-verified", CrossVerified, "CodeDPO: the best beside the worst as candidates and checks rank"),
        Component("earlier-policy", EarlierPolicy, "the chosen repair beside what an earlier policy did"),
    ]


@hookimpl
def fate_trl_pair_losses() -> list[Component]:
    return [
        Component("dmpo", Dmpo, "DMPO: log-ratios of early turns weigh more"),
        Component("mappo", Mappo, "MaPPO: the rejected side counts by the gap of the scores"),
        Component("reward-aware", RewardAware, "the margin is drawn to the gap of the scores"),
        Component("tgdpo", Tgdpo, "TGDPO: tokens of the turn at fault weigh more"),
        Component("inpo", Inpo, "INPO: IPO between the run's first policy and the stage's"),
        Component("h-dpo", HDpo, "H-DPO: DPO with a weight on the policy's entropy"),
        Component("vpo", Vpo, "VPO: DPO and the policy's value, optimistic or pessimistic"),
        Component("pmpo", Pmpo, "PMPO: repairs likelier, failures less likely, each side by itself"),
        Component("uapo", Uapo, "UAPO: each side against a learned anchor"),
        Component("srpo", Srpo, "SRPO: to answer, and to improve on a failure that is shown"),
        Component("relative", Relative, "relative preference optimisation: every repair against every failure"),
        Component("rationale", Rationale, "DPO, and the verifiers' sentences are learned too"),
        Component("hypo", Hypo, "HyPO: DPO, and the divergence from the reference on the policy's own samples"),
        Component("spac", Spac, "SPAC: the chosen side above what the policy does by itself"),
        Component("feasible", Feasible, "Feasible Learning: a multiplier per pair until its loss is low enough"),
    ]
