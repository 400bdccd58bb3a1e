"""An LLM judge as fate-trl components: two verifiers, and two selectors that listen to a preference in words."""

from __future__ import annotations

from fate_trl import Component, hookimpl

from .judge import Judge
from .listen import ListenTournament, ListenUtility
from .reconstruction import DualReconstruction

fate_trl_api = 1


@hookimpl
def fate_trl_verifiers() -> list[Component]:
    return [
        Component("judge", Judge, "a served model judges any objective by a rubric"),
        Component("dual-reconstruction", DualReconstruction, "can the request be told from what the agent did?"),
    ]


@hookimpl
def fate_trl_selectors() -> list[Component]:
    return [
        Component("listen-tournament", ListenTournament, "a served model chooses by a preference in words, in batches"),
        Component("listen-utility", ListenUtility, "a served model writes the objectives' weights"),
    ]
