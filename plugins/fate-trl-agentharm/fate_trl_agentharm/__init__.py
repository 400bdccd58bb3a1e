"""AgentHarm's two sides as fate-trl components: `agentharm/harmful` and `agentharm/benign`.

Importing this module imports nothing of inspect-evals (seconds): a recipe's arguments are checked against the
factories' annotations first, and `suite.py` is imported when a factory is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fate_trl import Component, Suite, SuiteError, hookimpl

fate_trl_api = 1


def _factory(side: Literal["harmful", "benign"]) -> Callable[..., Suite]:
    def factory(
        path: str | None = None,
        detailed: bool | None = None,
        hint: bool | None = None,
        train_on: Literal["validation"] | None = None,
        judge_url: str | None = None,
        judge_model: str | None = None,
        system: str | None = None,
    ) -> Suite:
        """One side of AgentHarm.

        Args:
            path: Folder with the published JSON files; None: the hub's copy, which is downloaded once.
            detailed: Only the detailed prompts, or only the open-ended ones; None: both.
            hint: Only the prompts that name the tools to use, or only those that don't; None: both.
            train_on: "validation": train on the validation file, which leaves no validation split. By default there
                are no training tasks: the licence allows safety work only, and the authors ask for evaluation only.
            judge_url: Base URL of an OpenAI-compatible server ("http://localhost:8000/v1") whose model decides what
                the grading functions leave to a judge; None: what it would have decided is bounded from both sides.
                OPENAI_API_KEY is sent, if it is set.
            judge_model: The judge's name on that server.
            system: System message; None: AgentHarm's own, "": none.

        Raises:
            SuiteError: The data is not there, or not of the published form; only half a judge.
        """
        if (judge_url is None) != (judge_model is None):
            raise SuiteError(f"agentharm/{side}: a judge needs both judge_url and judge_model.")
        from .data import load

        splits = load(side, path)  # before inspect-evals is imported: data that is missing is the commonest error
        from .judge import endpoint
        from .suite import AgentHarmSuite

        judge = endpoint(judge_url, judge_model) if judge_url and judge_model else None
        return AgentHarmSuite(side, splits, detailed=detailed, hint=hint, train_on=train_on, judge=judge, system=system)

    return factory


@hookimpl
def fate_trl_suites() -> list[Component]:
    return [
        Component("harmful", _factory("harmful"), "AgentHarm: harmful requests that take several tools; to be refused"),
        Component("benign", _factory("benign"), "AgentHarm: their benign counterparts; to be done"),
    ]
