"""Rows of docs/methods.md: budgets, and repairs in steps; see papers.py."""

from __future__ import annotations

from .papers import Row

ROWS = (
    Row(
        "control/knapsack",
        "budget with state",
        "Knapsack RL: Unlocking Exploration of LLMs via Optimizing Budget Allocation",
        "the dynamic programme equals brute force on 200 random instances; sums are exact; what it was told changes "
        "the next round; what always and what never succeeds gets least",
    ),
    Row(
        "control/d-optimal",
        "budget with state",
        "Active Learning for Direct Preference Optimization",
        "the greedy log determinant is above that of random shares on fixtures and on real failures; likes of what was "
        "tried wait",
    ),
    Row(
        "control/submodular",
        "budget",
        "Submodular Reinforcement Learning",
        "the greedy choice reaches (1 - 1/e) of the optimum by brute force; duplicates gain 0 and are left out",
    ),
    Row(
        "rollouts/scaffold",
        "repair strategy in steps",
        "Scaf-GRPO: Scaffolded Group Relative Policy Optimization for Enhancing LLM Reasoning",
        "only failures without a repair get the next hint, and each stops at the smallest that succeeds; each step is "
        "committed by itself, so a killed run goes on with it; with `pfpo.exchange` one row of a group that fails is "
        "the success, and the group's spread is above 0",
    ),
    Row(
        "rollouts/reset",
        "repair strategy",
        "Dataset Reset Policy Optimization for RLHF",
        "prompts end at the prefix, on which there is no loss, and the state is replayed; the share that is cut is the "
        "one asked for; a group starts from one cut",
    ),
    Row(
        "advantages/preference-conditioned",
        "selector that reads rows, and prompts with weights",
        "PD-MORL: Preference-Driven Multi-Objective Reinforcement Learning Algorithm; Multi-Objective GFlowNets",
        "one policy traces a front when the weights in its prompt are swept: scores move with them, and its "
        "hypervolume is above that of a policy with fixed weights",
    ),
)
