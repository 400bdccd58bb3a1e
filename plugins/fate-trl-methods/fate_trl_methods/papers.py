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
        formula, source: Of what is TRL's, and has no docstring here.
    """

    component: str
    kind: str
    paper: str
    shows: str
    number: str = ""
    formula: str = ""
    source: str = ""

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
        "advantages/remax",
        "selector with a greedy row",
        "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models",
        "exactly one row of each group is the greedy decode, and gets no gradient; the others get R less its R; a "
        "constant added to all rewards changes nothing",
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
        "methods/log-ratio",
        "verifier that loads two policies",
        "Self-Rewarding PPO: Aligning Large Language Models with Demonstrations Only",
        "repairs score above failures on tasks that the fine-tuning did not see; the ratio is that of plain forward "
        "passes",
        "2510.21090",
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
PAIR_LOSSES = (
    Row(
        "preferences/dmpo",
        "pair loss",
        "Direct Multi-Turn Preference Optimization for Language Agents",
        "phi of four turns is 1, .605, .329, .135, and (T - t) / T at gamma 1; tools' tokens have gradient 0",
    ),
    Row(
        "preferences/mappo",
        "pair loss",
        "MaPPO: Maximum a Posteriori Preference Optimization with Prior Knowledge",
        "at gap 1 it is DPO; the gradient on the rejected side follows the gap, and is 0 at gap 0",
    ),
    Row(
        "preferences/reward-aware",
        "pair loss",
        "Reward-aware Preference Optimization: A Unified Mathematical Framework for Model Alignment",
        "at rest where the margin is the scaled gap, pulled there from both sides, by all three distances",
    ),
    Row(
        "preferences/tgdpo",
        "pair loss that is told the turn at fault",
        "TGDPO: Harnessing Token-Level Reward Guidance for Enhancing Direct Preference Optimization",
        "at alpha 0 it is DPO; the turn that a verifier faults has the larger gradient",
    ),
    Row(
        "preferences/inpo",
        "pair loss that needs the first policy",
        "Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning",
        "no gradient at h = 1 / (2 eta); at ratio 1 it is IPO without TRL's division by length",
    ),
    Row(
        "preferences/h-dpo",
        "pair loss",
        "Entropy Controllable Direct Preference Optimization",
        "at alpha 1 it is DPO to the bit; below 1 the policy that it ends with has less entropy",
    ),
    Row(
        "preferences/vpo",
        "pair loss",
        "Value-Incentivized Preference Optimization: A Unified Approach to Online and Offline RLHF",
        "the sign says which way the log-probabilities of calibration samples go, beside DPO's",
    ),
    Row(
        "preferences/pmpo",
        "pair loss, sides unpaired",
        "Preference Optimization as Probabilistic Inference",
        "from failures alone (alpha 0) the policy stays bounded where the divergence weighs enough, and only there",
    ),
    Row(
        "preferences/uapo",
        "pair loss, sides unpaired, with state",
        "Adaptive Preference Optimization with Uncertainty-aware Utility Anchor",
        "it trains with failures alone and with repairs alone; the anchor settles between them",
    ),
    Row(
        "preferences/srpo",
        "pair loss that needs the repair's prompt",
        "Self-Improving Robust Preference Optimization",
        "shown a failure, the policy prefers the repair to it by more, pass by pass over the pairs",
    ),
    Row(
        "preferences/relative",
        "pair loss over a batch, sides unpaired",
        "Relative Preference Optimization: Enhancing LLM Alignment through Contrasting Responses across Identical and "
        "Diverse Prompts",
        "as tau falls to 0 it is DPO; failures of like prompts weigh more; it trains with unequal numbers of both",
    ),
    Row(
        "preferences/rationale",
        "pair loss with a third sequence",
        "Data-Centric Human Preference Optimization with Rationales",
        "the rationale's cross-entropy falls (the paper's fewer steps to a margin are not seen on tiny models, where "
        "it takes more)",
    ),
    Row(
        "preferences/hypo",
        "pair loss that needs own samples",
        "The Importance of Online Data: Understanding Preference Fine-tuning via Coverage",
        "at an equal margin the divergence on fresh samples is below that of DPO, exactly on a table of answers and on "
        "a tiny model; the divergence's gradient is that of the paper's term; at kl 0 it is DPO to the bit",
    ),
    Row(
        "preferences/spac",
        "pair loss that needs own samples",
        "Self-Play with Adversarial Critic: Provable and Scalable Offline Alignment for Language Models",
        "the implicit reward of own samples ends below the chosen side's, in every pair and by more than with DPO",
    ),
    Row(
        "preferences/feasible",
        "pair loss with state",
        "Feasible Learning",
        "pairs above epsilon gain weight; more are satisfied than by the mean; multipliers go on after a resume",
    ),
)
TRLS = (
    "TRL's code, on the masks of pairs of trajectories: loss on the policy's own tokens of all turns, never a tool's."
)
LOSS_TYPES = (
    Row(
        "loss_type/robust",
        "pair loss of TRL",
        "Provably Robust DPO: Aligning Language Models with Noisy Feedback",
        "with a fifth of the pairs flipped the mean is the clean pairs' loss",
        formula="`preference.loss_type: robust`. ((1 - e) L(z) - e L(-z)) / (1 - 2 e), L DPO's loss of a pair, e "
        "`label_smoothing`, the share of pairs that are the wrong way round.",
        source=TRLS,
    ),
    Row(
        "loss_type/ipo",
        "pair loss of TRL",
        "A General Theoretical Paradigm to Understand Learning from Human Preferences",
        "no gradient where the margin per token is 1 / (2 beta)",
        formula="`preference.loss_type: ipo`. (m - 1 / (2 beta))^2, m the chosen side's log-ratio per token less the "
        "rejected side's.",
        source=TRLS + " The paper sums; TRL divides by tokens, here by a side's own.",
    ),
    Row(
        "loss_type/discopop",
        "pair loss of TRL",
        "Discovering Preference Optimization Algorithms with and for Large Language Models",
        "the margin ends above 0, or the stage warns: it warns at the default `discopop_tau`, whose slope at margin 0 "
        "is +.784; above a tau of .102 it learns the right way",
        formula="`preference.loss_type: discopop`. A blend of DPO's loss and exp(-z) by sigma(z / tau), z the margin "
        "times beta.",
        source=TRLS,
    ),
    Row(
        "loss_type/exo_pair",
        "pair loss of TRL",
        "Towards Efficient and Exact Optimization of Language Model Alignment",
        "it is the divergence from the smoothed label, and raises the margin",
        formula="`preference.loss_type: exo_pair`. KL of (sigma(z), sigma(-z)) from (1 - e, e), z the margin times "
        "beta, e `label_smoothing`.",
        source=TRLS,
    ),
    Row(
        "loss_type/sigmoid-sft",
        "pair losses of TRL",
        "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer",
        "log pi of repairs does not fall while the margin rises, where that of `sigmoid` alone falls",
        formula="`preference.loss_type: [sigmoid, sft]`. DPO's loss, and the chosen side's cross-entropy per token, "
        "with `loss_weights`.",
        source=TRLS,
    ),
    Row(
        "preference/f_divergence_type",
        "pair losses of TRL",
        "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints",
        "`reverse_kl` is `sigmoid` to the bit; `js_divergence` bounds the chosen side's reward by beta log 2",
        formula="`preference.f_divergence_type`: `reverse_kl`, `forward_kl`, `js_divergence` or `alpha_divergence`. "
        "DPO on f'(pi / pi_ref) in the place of the log-ratio.",
        source=TRLS,
    ),
)
ROWS = (*ADVANTAGES, *VERIFIERS, *CHOOSING, *RIVALS, *PAIRINGS, *PAIR_LOSSES, *LOSS_TYPES)
