"""The methods that learning.py compares: full FATE is the recipe, each other one is a key or two apart.

Groups: `headline` (the first five baselines), `baselines`, `ablations`, `collapse` (what keeps training from
collapsing, switched off), `rewards` (definitions of the Pareto reward and of the choice), `rounds` (of another size),
`preference` (DPO on repairs and their failures, in the place of a stage or beside both), `rivals` (later ways to make
one advantage of several objectives, in GRPO's place; they need `fate-trl-methods`), `losses` (of it as well, in the
place of PFPO's loss), `steps` (hints step by step, and tries that go where they teach most; of it too), `stages`
(distillation in hindsight, and merging, of policies and of references).
A method that a recipe has already, such as K = 4, is full FATE itself, and is not run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """How a method differs from the recipe, which is full FATE.

    Attributes:
        what: In a few words.
        changes: Recipe keys and their values; "=key" stands for the recipe's own value of that key.
        tried: Settings that were tuned, on seeds of their own; at most four.
        tuned: The one that was best.
        rounds: Rounds to run, whatever they take; None for the reference's tokens.
    """

    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    tried: Sequence[Mapping[str, Any]] = ()
    tuned: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None


REFERENCE = "fate"
RL = {"repair": None, "sft": None}
"""Policy optimisation alone: nothing is collected, repaired or learned from repairs."""
BEST = {"pfpo.learning_rate": 1e-3}
"""The best rate of those tried, for all of them; a recipe may have a lower one after SFT."""
RATES = tuple({"pfpo.learning_rate": rate} for rate in (1e-4, 3e-4, 1e-3, 3e-3))
SFT_RATES = (*({"sft.learning_rate": rate} for rate in (1e-3, 3e-3)), {"sft.num_train_epochs": 3})
SFT = {"pfpo": None}
"""Learning from repairs alone."""
SUM, GDPO = "weighted-sum", "gdpo"
NO_REDRAW = {"pfpo.redraw_rounds": 0}
"""GDPO normalises over the batch that was drawn first, so it has no re-draw."""
SAFE_AND_USEFUL = {"name": "product", "args": {"weights": {"over_refusal": 0, "trajectory_control": 0}}}


def front(**args: Any) -> Json:
    return {"name": "pareto-front", "args": args}


def rank(**args: Any) -> Json:
    return {"name": "pareto-rank", "args": args}


BASELINES = {
    REFERENCE: Method("full FATE: Pareto selection and reward", tried=RATES),
    "fate-sum": Method("full FATE: sum selection and reward", {"selector": SUM}, tried=RATES),
    "grpo-sum": Method("GRPO, summed rewards", {**RL, "selector": SUM}, RATES, BEST),
    "gdpo": Method("GDPO", {**RL, "selector": GDPO, **NO_REDRAW}, RATES, BEST),
    "sft-repairs": Method("SFT on repairs only", SFT, tried=SFT_RATES),
    "pfpo": Method("PFPO only", RL, RATES, BEST),
    "product": Method("GRPO, security × utility", {**RL, "selector": SAFE_AND_USEFUL}, RATES, BEST),
    "rank": Method("GRPO, Pareto-rank advantages", {**RL, "selector": rank(tie_break="mean")}, RATES, BEST),
    "resampling": Method("rejection sampling + SFT", {**SFT, "repair.strategy": "resample"}, tried=SFT_RATES),
}

ABLATIONS = {
    "no-repair-prompt": Method("failures are resampled", {"repair.strategy": "resample"}),
    "no-rescoring": Method("a random candidate", {"repair.accept": "random"}),
    "no-over-refusal": Method(
        "without the over-refusal objective",
        {
            "verifiers": ["security", "utility", "trajectory_control"],
            "evaluation.verifiers": ["over_refusal"],
            "repair.floors": {"trajectory_control": 1.0},
        },
    ),
    "sum-selection": Method("sum selection, Pareto reward", {"repair.selector": SUM}),
    "sum-reward": Method("Pareto selection, sum reward", {"selector": SUM, "repair.selector": "=selector"}),
    "accept-resolves": Method("repairs that resolve", {"repair.accept": "resolves"}),
    "accept-dominates": Method("repairs that dominate", {"repair.accept": "dominates"}),
    "accept-floors": Method(
        "repairs above floors",
        {"repair.accept": "floors", "repair.floors": {"over_refusal": 1.0, "trajectory_control": 1.0}},
    ),
    "no-pfpo": Method("without PFPO", {"pfpo": None}),
    "no-sft": Method("without SFT", {"sft": None}),
    "target-repair": Method("SFT on the repair prompt", {"repair.target": "repair"}),
    "target-plain": Method("SFT on the plain task", {"repair.target": "plain"}),
    "target-both": Method("SFT on both", {"repair.target": "both"}),
    "prompts-plain": Method("PFPO on plain tasks", {"pfpo.prompts": "plain"}),
    "prompts-repair": Method("PFPO on repair prompts", {"pfpo.prompts": "repair"}),
    "prompts-mixed": Method("PFPO on both", {"pfpo.prompts": "mixed"}),
    **{f"k-{k}": Method(f"K = {k}", {"repair.k": k}) for k in (1, 2, 4, 8)},
    "rounds-4": Method("four rounds, with the curve", rounds=4),
}

COLLAPSE = {
    "no-redraw": Method("groups without signal stay", NO_REDRAW),
    "no-kl": Method("without the KL term", {"pfpo.beta": 0.0}),
    "kl": Method("KL term of .04", {"pfpo.beta": 0.04}),
    "no-benign": Method("attacked and harmful tasks only", {"rollout.kinds": ["attacked", "harmful"]}),
    "no-anchors": Method("without anchors", {"repair.anchors": 0}),
    "no-replay": Method("without earlier rounds' rows", {"repair.replay": False}),
    "replay": Method("with earlier rounds' rows", {"repair.replay": True}),
    "no-gate": Method("every round is accepted", {"evaluation.validation": 0}),
    "gate": Method("a round is accepted on 90 validation tasks", {"evaluation.validation": 90}),
    "keep-best": Method(
        "every round is accepted; the best on 90 validation tasks is kept",
        {"evaluation.validation": 90, "evaluation.tolerance": 1.0, "evaluation.keep": "best"},
    ),
    "gate-best": Method(
        "a gate, and of the accepted rounds the best on 90 validation tasks",
        {"evaluation.validation": 90, "evaluation.keep": "best"},
    ),
    "gamed": Method(
        "trained on what is announced",
        {
            "verifiers": ["security", "announced_utility", "over_refusal", "trajectory_control"],
            "evaluation.verifiers": ["utility"],
        },
    ),
}

REWARDS = {
    "front": Method("non-dominated indicator", {"selector": front(epsilon=0.0, tie_break="mean")}),
    "front-mean": Method("front, then mean", {"selector": front(tie_break="mean")}),
    "front-scaled": Method("front, then mean by range", {"selector": front(tie_break="scaled")}),
    "front-worst": Method("front, then lowest", {"selector": front()}),
    "front-augmented": Method("front, then lowest and a tenth of the mean", {"selector": front(tie_break="augmented")}),
    "front-product": Method("front, then box volume", {"selector": front(tie_break="product")}),
    "front-random": Method("front, repairs drawn from it", {"selector": front(tie_break="random")}),
    "front-crowding": Method("front, then crowding", {"selector": front(tie_break="crowding")}),
    "front-rank": Method("rank", {"selector": rank(epsilon=0.0, tie_break="mean")}),
    "rank-mean": Method("rank, then mean", {"selector": rank(tie_break="mean")}),
    "rank-scaled": Method("rank, then mean by range", {"selector": rank(tie_break="scaled")}),
    "box": Method("hypervolume of the box", {"selector": "product"}),
    "constraint": Method(
        "mean, security at least 1", {"selector": {"name": "constraint", "args": {"floors": {"security": 1.0}}}}
    ),
    "count": Method("dominance count", {"selector": "dominance-count"}),
    "chebyshev": Method("distance to the ideal", {"selector": "chebyshev"}),
    "sum": Method("weighted sum", {"selector": SUM}),
    "normalised": Method("GDPO's normalised sum", {"selector": GDPO, **NO_REDRAW}),
}

ROUNDS = {
    "halves": Method(
        "twice as many rounds, half as large",
        {"rollout.tasks": 120, "rollout.chunk": 60, "pfpo.max_steps": 4},
        rounds=4,
    ),
    "thirds": Method(
        "three times as many rounds, a third as large",
        {"rollout.tasks": 80, "rollout.chunk": 80, "pfpo.max_steps": 3},
        rounds=6,
    ),
}
"""The quickstart's two rounds, cut smaller."""

PAIRS = {"preference": {"per_device_train_batch_size": 16, "num_train_epochs": 1}}
"""As SFT in `tradeoffs` has it."""
PAIR_RATE = {"preference.learning_rate": 3e-4}
PAIR_RATES = tuple({"preference.learning_rate": rate} for rate in (1e-4, 3e-4, 1e-3))

PREFERENCE = {
    "preference-for-pfpo": Method("preference stage, no PFPO", {**PAIRS, "pfpo": None}, PAIR_RATES, PAIR_RATE),
    "preference-for-sft": Method("preference stage, no SFT", {**PAIRS, "sft": None}, PAIR_RATES, PAIR_RATE),
    "preference-beside": Method("preference stage between SFT and PFPO", PAIRS, PAIR_RATES, PAIR_RATE),
}


def rival(what: str, selector: str) -> Method:
    """In GRPO's place, at its rate; all of them compare groups of a batch, so none is drawn again."""
    return Method(what, {**RL, "selector": selector, **NO_REDRAW}, tuned=BEST)


RIVALS = {
    "conditioned": rival("GDPO, utility only where security passes", "advantages/conditioned"),
    "gd2po": rival("GD2PO: rows whose objectives disagree masked", "advantages/gd2po"),
    "corr-grpo": rival("CorrGRPO: objectives by their correlations", "advantages/corr-grpo"),
    "saw": rival("SAW: objectives by their variation", "advantages/saw"),
}

LOSSES = {
    "fate-gbpo": Method("full FATE: GBPO's policy loss", {"pfpo.loss": "losses/gbpo"}, tried=RATES),
    "fate-rebel": Method("full FATE: REBEL's policy loss", {"pfpo.loss": "losses/rebel"}, tried=RATES),
}
"""Their micro-batches hold whole groups in both recipes already."""

KNAPSACK = "control/knapsack"
STEPS = {
    "scaffold": Method("hints tier by tier, K of each", {"repair.strategy": "rollouts/scaffold"}),
    "scaffold-half": Method("hints tier by tier, K/2 of each", {"repair.strategy": "rollouts/scaffold", "repair.k": 2}),
    "knapsack": Method(
        "candidates and prompts by a knapsack",
        {
            "repair.budget": {"name": KNAPSACK, "args": {"value": "success"}, "low": 1},
            "pfpo.budget": KNAPSACK,
        },
    ),
    "knapsack-repairs": Method(
        "candidates by a knapsack", {"repair.budget": {"name": KNAPSACK, "args": {"value": "success"}, "low": 1}}
    ),
    "knapsack-prompts": Method("PFPO's prompts by a knapsack", {"pfpo.budget": KNAPSACK}),
}
"""How failures are asked for repairs, and who gets how many tries."""

HINDSIGHT = {"divergence": "reverse", "learning_rate": 3e-4, "per_device_train_batch_size": 16, "num_train_epochs": 1}
STAGES = {
    "distillation-beside": Method("distillation in hindsight between SFT and PFPO", {"distillation": HINDSIGHT}),
    "merged": Method(
        "each round's policy averaged with those before", {"merge": {"name": "soup", "args": {"weights": [2, 1]}}}
    ),
    "soup-reference": Method(
        "KL term of .04 to the average of PFPO's start and the policy of the round before",
        {"pfpo.beta": 0.04, "pfpo.reference": {"name": "soup", "args": {"weights": [1, 1]}}},
    ),
}
"""What the recipe has not; `kl` has the KL term of the last one to PFPO's start alone."""

GROUPS: dict[str, dict[str, Method]] = {
    "headline": {name: BASELINES[name] for name in list(BASELINES)[:5]},
    "baselines": BASELINES,
    "ablations": ABLATIONS,
    "collapse": COLLAPSE,
    "rewards": REWARDS,
    "rounds": ROUNDS,
    "preference": PREFERENCE,
    "rivals": RIVALS,
    "losses": LOSSES,
    "steps": STEPS,
    "stages": STAGES,
}
METHODS = {name: method for group in GROUPS.values() for name, method in group.items()}

COMPARISONS = {
    family: tuple(name for name in GROUPS[family] if name != REFERENCE)
    for family in ("headline", "preference", "rivals", "losses")
}
"""What the reference is tested against, named before the runs; Holm's correction is over a family, both metrics."""

NAMED_SEEDS = {
    "headline": range(310, 320),
    "preference": range(310, 320),
    "rivals": range(310, 320),
    "losses": range(320, 323),
}
"""The seeds that were named with them: whoever adds some after a look at the results tests something else."""
