"""Which paper each method is of, and what shows that it works: a row each of docs/methods.md.

The formula, its source and what is ours stand in the component's docstring. A method's tests begin with its name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        component: What a recipe names, such as "advantages/cvar"; or a command, or a key.
        kind: The kind of component that it is.
        paper: The paper's title.
        shows: What is observed where it works; the tests check that.
        number: The paper's number on arXiv, where the formula was read there or in its abstract.
    """

    component: str
    kind: str
    paper: str
    shows: str
    number: str = ""

    @property
    def name(self) -> str:
        """What its tests begin with."""
        return self.component.rpartition("/")[2].removeprefix("fate-trl-").replace("-", "_")


ADVANTAGES = (
    Row(
        "advantages/mixed-var",
        "selector with state",
        "RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training",
        "its trackers reach the quantiles; the slope is steepest below the lower one and 0 above the upper one; "
        "bundles of equal papers get 0",
    ),
    Row(
        "advantages/lagrangian",
        "selector with state",
        "Confronting Reward Model Overoptimization with Constrained RLHF",
        "the multiplier of a threshold that is kept falls, that of a broken one rises, and goes on after a resume",
    ),
    Row(
        "advantages/ipo-barrier",
        "selector with state",
        "C-MORL: Multi-Objective Reinforcement Learning through Efficient Discovery of Pareto Front",
        "an objective at its floor weighs more than one with slack; the logarithm's argument is clamped; of six "
        "hand-made candidates the known one is chosen",
    ),
    Row(
        "advantages/maxmin",
        "selector with state",
        "MaxMin-RLHF: Towards Equitable Alignment of Large Language Models with Diverse Human Preferences",
        "the least objective ends above that of the weighted mean, on real scores of `tradeoffs`",
    ),
    Row(
        "advantages/filtered-ranks",
        "selector with state",
        "Policy Filtration in RLHF to Fine-Tune LLM for Code Generation",
        "of eight rows the best and the worst are kept, statistics are over them; the fit finds the planted strategy",
    ),
    Row(
        "advantages/copo",
        "selector",
        "COPO: Consistency-Aware Policy Optimization",
        "groups that all fail or all pass get something; mixed ones keep their order",
    ),
    Row(
        "advantages/cvar",
        "selector",
        "On the Global Convergence of Risk-Averse Policy Gradient Methods with Expected Conditional Risk Measures",
        "without risk it is the mean baseline, to the bit; with it the tail decides",
    ),
    Row(
        "advantages/entropic-risk",
        "selector",
        "Risk-Averse Reinforcement Learning with Itakura-Saito Loss",
        "eta to 0 is the mean baseline; eta below 0 orders equally good groups by their spread",
    ),
    Row(
        "advantages/cost-gate",
        "selector with state",
        "Rethinking Large Language Model Distillation: A Constrained Markov Decision Process Perspective",
        "the reward within the budget, the penalty outside; it keeps the constraint as often as `lagrangian` on a toy",
    ),
    Row(
        "advantages/log-map",
        "selector",
        "Orchestrated Value Mapping for Reinforcement Learning",
        "the order of scores is kept, small ones are spread",
    ),
    Row(
        "advantages/adora",
        "selector that reads rows",
        "ADORA: Training Reasoning Models with Dynamic Advantage Estimation on Reinforcement Learning",
        "groups that do not meet the predicate have exactly lambda times the baseline",
    ),
    Row(
        "advantages/aspo",
        "selector that reads rows",
        "Understanding Tool-Integrated Reasoning",
        "earlier calls get more, no sign changes, failures are untouched",
    ),
    Row(
        "advantages/otc",
        "selector that reads rows",
        "OTC: Optimal Tool Calls via Reinforcement Learning",
        "fewer calls at equal success get more; failures get nothing; the least count is of the group's successes",
    ),
    Row(
        "advantages/polychromic",
        "selector that reads rows",
        "Polychromic Objectives for Reinforcement Learning",
        "successes that are all the same score below diverse ones; sets that fail are worth 0",
    ),
    Row(
        "advantages/truncated",
        "selector that reads rows",
        "Truncated Proximal Policy Optimization",
        "cut rows get their group's expectation with its sign, and none is lost",
    ),
    Row(
        "advantages/turn-discount",
        "selector by token",
        "IterResearch: Rethinking Long-Horizon Agents via Markovian State Reconstruction",
        "an earlier success is worth more in each turn",
    ),
    Row(
        "advantages/tree-prefix",
        "selector that reads rows",
        "Tree-OPO: Off-policy Monte Carlo Tree-Guided Advantage Optimization for Multistep Reasoning",
        "within a prefix the order is kept; from a worse prefix a success is worth more; mean 0, variance at most 1",
    ),
    Row(
        "advantages/segments",
        "selector by token",
        "Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for Large Language Models",
        "constant in a turn, telescopes to R less the prompt's value, and the unsafe turn gets the blame",
    ),
    Row(
        "advantages/value-differences",
        "selector by token, with state",
        "Lean and Mean: Decoupled Value Policy Optimization with Global Value Guidance",
        "telescopes to the last value less the first",
    ),
    Row(
        "advantages/implicit-reward",
        "selector by token",
        "DPO Meets PPO: Reinforced Token Optimization for RLHF",
        "a row's rewards add up to beta times its log-ratio, on two tiny models",
    ),
)
VERIFIERS = (
    Row(
        "methods/program",
        "verifier",
        "Solver-Informed RL: Grounding Large Language Models for Authentic Optimization Modeling",
        "three tiers on fixtures; a program that hangs is an error, never 0",
    ),
    Row(
        "judge/dual-reconstruction",
        "verifier",
        "DuPO: Enabling Reliable LLM Self-Verification via Dual Preference Optimization",
        "trajectories that pursued an injected goal score lower",
    ),
)
CHOOSING = (
    Row(
        "judge/listen-tournament",
        "selector",
        "LISTEN to Your Preferences: An LLM Framework for Multi-Objective Selection",
        "the known winner in ceil(log K) rounds; a broken answer falls back and is counted",
    ),
    Row(
        "judge/listen-utility",
        "selector with state",
        "LISTEN to Your Preferences: An LLM Framework for Multi-Objective Selection",
        "weights on the simplex, kept; what cannot be read counts alike, and is counted",
    ),
    Row(
        "fate-trl-dualize",
        "command",
        "One-Shot Safety Alignment for Large Language Models via Optimal Dualization",
        "the tilted policy meets the floor; floors out of reach are said, without a loop",
    ),
)
RIVALS = (
    Row(
        "advantages/conditioned",
        "selector",
        "GDPO: Group reward-Decoupled Normalization Policy Optimization, with a conditioned reward",
        "an easy objective counts only in rows that pass the hard one",
    ),
    Row(
        "advantages/gd2po",
        "selector",
        "GD2PO",
        "rows whose objectives disagree are masked, their prompts count for less",
        "2606.16771",
    ),
    Row(
        "advantages/corr-grpo",
        "selector",
        "CorrGRPO",
        "an objective that is named twice counts once; any number of independent ones has the same size",
        "2609.36820",
    ),
    Row(
        "advantages/saw",
        "selector with state",
        "SAW",
        "an objective that no longer varies loses its weight",
        "2606.07705",
    ),
)
PAIRINGS = (
    Row(
        "preferences/margin-filter",
        "pairing",
        "Direct Nash Optimization: Teaching Language Models to Self-Improve with General Preferences",
        "only pairs over the margin, and all of them; the reference is the last round's policy",
    ),
    Row(
        "preferences/step-pairs",
        "pairing",
        "Step-level Value Preference Optimization for Mathematical Reasoning",
        "a shared prefix gets no loss and no gradient; the pair starts at the first call that differs",
    ),
    Row(
        "preferences/cross-verified",
        "pairing",
        "CodeDPO: Aligning Code Models with Self Generated and Verified Source Code",
        "planted good repairs and checks are on top within ten iterations",
    ),
    Row(
        "preferences/earlier-policy",
        "pairing",
        "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
        "the worse side is the latest earlier policy's try of the same task, in a run of two rounds",
    ),
)
ROWS = (*ADVANTAGES, *VERIFIERS, *CHOOSING, *RIVALS, *PAIRINGS)
