"""The family `advantages`: selectors that set advantages themselves, each under the name of its row in docs/methods.md.

Formulas stand in the classes' docstrings, with where each is from.
"""

from __future__ import annotations

from fate_trl import Component, hookimpl

from .baselines import ReMax
from .conditioning import PreferenceConditioned
from .constraints import CostGate, IPOBarrier, Lagrangian, MaxMin
from .groups import Adora, Aspo, Otc, Polychromic, Truncated
from .ranks import COPO, FilteredRanks, LogMap
from .risk import CVaR, EntropicRisk, MixedVaR
from .rivals import GD2PO, SAW, Conditioned, CorrGRPO
from .tokens import ImplicitReward, Segments, TreePrefix, TurnDiscount, ValueDifferences

fate_trl_api = 1


@hookimpl
def fate_trl_selectors() -> list[Component]:
    return [
        Component("mixed-var", MixedVaR, "RiskPO: mixed value at risk over bundles of prompts, quantiles learned"),
        Component("cvar", CVaR, "mean and conditional value at risk of the group"),
        Component("entropic-risk", EntropicRisk, "entropic risk of the group"),
        Component("lagrangian", Lagrangian, "constrained RLHF: multipliers of thresholds, learned"),
        Component("cost-gate", CostGate, "the reward while running costs are within their budget, else the penalty"),
        Component("ipo-barrier", IPOBarrier, "C-MORL: one objective raised, a barrier before the others' floors"),
        Component("maxmin", MaxMin, "MaxMin: the objective that is worst off decides"),
        Component("filtered-ranks", FilteredRanks, "PF-PPO: only the ranks whose reward can be trusted"),
        Component("copo", COPO, "COPO: groups that agree are compared with other prompts"),
        Component("log-map", LogMap, "scores mapped by a logarithm before they are averaged"),
        Component("preference-conditioned", PreferenceConditioned, "by the weights that each prompt carries"),
        Component("conditioned", Conditioned, "GDPO, an easy objective counting only where the hard one is passed"),
        Component("gd2po", GD2PO, "GDPO without rows whose objectives disagree"),
        Component("corr-grpo", CorrGRPO, "objectives summed by their correlations"),
        Component("saw", SAW, "objectives weighed by their coefficient of variation"),
        Component("remax", ReMax, "ReMax: the reward less that of the policy's greedy answer"),
        Component("adora", Adora, "ADORA: groups whose failures teach little are weighed down"),
        Component("aspo", Aspo, "ASPO: successes that call a tool early get more"),
        Component("otc", Otc, "OTC: among successes, the fewer calls the better"),
        Component("polychromic", Polychromic, "sets of rows earn reward times diversity"),
        Component("truncated", Truncated, "rows that were cut get their group's expectation"),
        Component("turn-discount", TurnDiscount, "IterResearch: a turn is worth the discounted reward, by turns left"),
        Component("tree-prefix", TreePrefix, "Tree-OPO: rows from prefixes of one task, each less its prefix's value"),
        Component("segments", Segments, "SPO: a turn gets the value of where it led less that of where it began"),
        Component("value-differences", ValueDifferences, "DVPO: a turn gets the difference of a learned value"),
        Component("implicit-reward", ImplicitReward, "RTO: a preference policy's log-odds as a reward per token"),
    ]
