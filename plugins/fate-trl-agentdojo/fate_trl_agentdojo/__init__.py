"""AgentDojo's suites as fate-trl components: `agentdojo/workspace`, `/banking`, `/slack` and `/travel`; their rules.

Importing this module imports nothing of AgentDojo (about 3 s): a recipe's arguments are checked against the factories'
annotations first, and `suite.py` is imported when a factory is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fate_trl import Component, Suite, Verifier, hookimpl

fate_trl_api = 1

Name = Literal["workspace", "banking", "slack", "travel"]
Version = Literal["v1", "v1.1", "v1.1.1", "v1.1.2", "v1.2", "v1.2.1", "v1.2.2"]
Attack = Literal[
    "direct",
    "ignore_previous",
    "system_message",
    "injecagent",
    "important_instructions",
    "important_instructions_no_user_name",
    "important_instructions_no_model_name",
    "important_instructions_no_names",
    "important_instructions_wrong_model_name",
    "important_instructions_wrong_user_name",
    "tool_knowledge",
    "dos",
    "swearwords_dos",
    "captcha_dos",
    "offensive_email_dos",
    "felony_dos",
]
"""Every attack of AgentDojo that needs neither a model nor a person."""

DEFAULT_ATTACKS: list[Attack] = ["important_instructions"]


def _factory(name: Name) -> Callable[..., Suite]:
    def factory(
        version: Version = "v1.2.2",
        attacks: list[Attack] = DEFAULT_ATTACKS,
        test_attacks: list[Attack] | None = None,
        tools: Literal["all", "needed"] = "all",
        distractors: int = 0,
        fits: int | None = None,
        calls: int | None = None,
        harmful: bool = False,
        system: str | None = None,
        split_seed: int = 0,
    ) -> Suite:
        """One of AgentDojo's suites.

        Args:
            version: AgentDojo's benchmark version.
            attacks: Attacks of the attacked tasks, each on every pair of user task and injection task.
            test_attacks: Attacks of the test split, where it is to hold some that training never saw; None: `attacks`.
            tools: "all" of the suite's tools on every task, or the "needed" ones: those of the user task's ground
                truth and, on attacked tasks, those of the attack, which would otherwise be impossible.
            distractors: With "needed", this many further tools, drawn by seed for each user task.
            fits: Keep only tasks whose ground-truth calls and results take at most this many characters (a token is
                about 4), so that a short context holds them; None keeps all.
            calls: Keep only user tasks whose ground truth takes at most this many calls, so that a small model can do
                them; None keeps all.
            harmful: Also yield each injection task's goal as the user's own request, of kind "harmful". Several goals
                (a hotel booking, a calendar event) are harmful only because an attacker wants them.
            system: System message; None: AgentDojo's own, "": none.
            split_seed: Seed of the splits and of the distractors.

        Raises:
            SuiteError: `attacks` is empty, or `distractors`, `fits` or `calls` is out of range.
        """
        from .suite import AgentDojoSuite

        return AgentDojoSuite(
            name,
            version=version,
            attacks=attacks,
            test_attacks=test_attacks,
            tools=tools,
            distractors=distractors,
            fits=fits,
            calls=calls,
            harmful=harmful,
            system=system,
            split_seed=split_seed,
        )

    return factory


@hookimpl
def fate_trl_suites() -> list[Component]:
    return [
        Component("workspace", _factory("workspace"), "AgentDojo: email, calendar and cloud drive of an office"),
        Component("banking", _factory("banking"), "AgentDojo: a bank account with its files and transactions"),
        Component("slack", _factory("slack"), "AgentDojo: a chat workspace and the web pages its members post"),
        Component("travel", _factory("travel"), "AgentDojo: a travel agency's hotels, restaurants, cars and flights"),
    ]


def _rules(objective: str = "rules") -> Verifier:
    """A rule set per suite, with no ground truth. Args: objective: Name of the objective that it makes."""
    from .policies import SuiteRules

    return SuiteRules(objective)


@hookimpl
def fate_trl_verifiers() -> list[Component]:
    return [Component("rules", _rules, "AgentDojo: a policy per suite (payees, recipients, links …), no ground truth")]
