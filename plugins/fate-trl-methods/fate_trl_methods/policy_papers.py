"""Rows of docs/methods.md for what works on the update itself: policy losses and callbacks. See papers.py."""

from __future__ import annotations

from .papers import Row

LOSSES = (
    Row(
        "losses/gbpo",
        "policy loss",
        "Bounded Ratio Reinforcement Learning",
        "at ratio 1 the gradient is PPO's; past the bound it pulls back where PPO's is 0; a majority of ties has the "
        "target 1",
    ),
    Row(
        "losses/rebel",
        "policy loss over groups",
        "REBEL: Reinforcement Learning via Regressing Relative Rewards",
        "zero if and only if gaps of log-ratios are eta times those of rewards; a constant per prompt changes nothing",
    ),
    Row(
        "losses/p3o",
        "policy loss over groups",
        "Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment",
        "a constant per prompt leaves the gradient as it is, to the bit, while it changes PPO's",
    ),
    Row(
        "losses/dro",
        "policy loss over groups",
        "Offline Regularised Reinforcement Learning for Large Language Models Alignment",
        "at the optimum of a bandit V is beta log mean exp(r / beta)",
    ),
    Row(
        "losses/a-star-po",
        "policy loss",
        "Accelerating RL for LLM Reasoning with Optimal Advantage Regression",
        "equal to the loss of TRL's A2POTrainer on the same tensors",
    ),
    Row(
        "losses/exo",
        "policy loss over groups",
        "Towards Efficient and Exact Optimization of Language Model Alignment",
        "of two rows it is TRL's exo_pair, on a tiny model; it rests where softmax(beta lr) = softmax(r / temperature)",
    ),
    Row(
        "losses/trpa",
        "policy loss over groups",
        "Trust Region Preference Approximation: A simple and stable reinforcement learning algorithm for LLM reasoning",
        "the scale of rewards does nothing; groups of one level take the fallback",
    ),
    Row(
        "losses/hapo-clip",
        "policy loss",
        "From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature",
        "bounds widen upward on tokens of high entropy",
        "2509.16591",
    ),
    Row(
        "losses/dcpo",
        "policy loss that reads logits",
        "Distribution-Centric Policy Optimization Dominates Exploration-Exploitation Trade-off",
        "alpha 0 is PPO; the entropy approaches its target from both sides",
        "2601.12730",
    ),
    Row(
        "losses/kl-by-kind",
        "policy loss",
        "Train Once, Get a Family: State-Adaptive Balances for Offline-to-Online Reinforcement Learning",
        "the KL term of a row scales with the factor of its kind",
    ),
    Row(
        "losses/kl-by-spread",
        "policy loss",
        "Towards Reliable Alignment: Uncertainty-aware RLHF",
        "without spread there is no penalty; the worst case ends above that of the mean",
    ),
    Row(
        "losses/positive-nll",
        "policy loss",
        "VAPO: Efficient and Reliable Reinforcement Learning for Advanced Reasoning Tasks",
        "the extra likelihood falls on successes alone",
    ),
)
CONTROL = (
    Row(
        "control/kl-pid",
        "callback with state",
        "SAFE: Stable Alignment Finetuning with Entropy-Aware Predictive Control for RLHF",
        "a planted spike of the divergence raises beta within a step, then it recovers; it goes on after a resume",
    ),
    Row(
        "control/kl-stop",
        "callback with state",
        "Trust Region Policy Optimization",
        "after a planted large step no further one is taken",
    ),
    Row(
        "control/hypervolume-weights",
        "callback with state",
        "Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting",
        "the volume of the kept means never falls; advantages are scaled, with `scale_rewards: group` too",
    ),
    Row(
        "control/gradient-weights",
        "callback with state",
        "Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting",
        "weights stay on the simplex, and converge to the planted objective that agrees with the others",
    ),
    Row(
        "control/min-norm",
        "callback with state",
        "Multi-Task Learning as Multi-Objective Optimization",
        "the weights are those of the shortest weighted gradient, along which no objective falls",
    ),
)
ROWS = (*LOSSES, *CONTROL)
