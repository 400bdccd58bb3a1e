"""AgentThreatBench as fate-trl components: `agent-threat-bench/memory_poison`, `autonomy_hijack` and `data_exfil`.

Importing this module imports nothing of inspect-evals, which takes seconds: `suite.py` is imported when a factory is
called.
"""

from __future__ import annotations

from collections.abc import Callable

from fate_trl import Component, Suite, hookimpl

fate_trl_api = 1

TASKS = {
    "memory_poison": "AgentThreatBench: a knowledge base whose entries hold instructions",
    "autonomy_hijack": "AgentThreatBench: an inbox whose mails hold instructions",
    "data_exfil": "AgentThreatBench: customer records whose notes ask for data to be sent away",
}


def _factory(name: str) -> Callable[..., Suite]:
    def factory(system: str | None = None) -> Suite:
        """One of AgentThreatBench's three tasks, for evaluation only.

        Args:
            system: System message; None: the benchmark's own, "": none.
        """
        from .suite import ThreatSuite

        return ThreatSuite(name, system)

    return factory


@hookimpl
def fate_trl_suites() -> list[Component]:
    return [Component(name, _factory(name), summary) for name, summary in TASKS.items()]
