"""fate-trl: on-policy self-evolution from failed trajectories, around Hugging Face TRL.

The names of `__all__` are the public ones: what a plugin or a script imports from here stays where it is.
`fate_trl.testing` is the other stable module; all else may move. Names resolve lazily, so that `import fate_trl` loads
no torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":  # locks, signals and limits are POSIX's
    raise ImportError("fate-trl runs on Linux and macOS. On Windows, use the Windows Subsystem for Linux (WSL).")

if TYPE_CHECKING:
    from . import plugins
    from .choose import pareto, repairs
    from .choose.pairings import pair_of, score_gap
    from .choose.repairs import attempts
    from .choose.selectors import ParetoFront
    from .choose.turns import call_paths, call_turns, turns_of
    from .errors import FateError, RecipeError, SuiteError, ToolError
    from .hookspecs import (
        Budget,
        Choice,
        Component,
        Episode,
        Evaluate,
        Item,
        Learner,
        Merge,
        Pairing,
        ParetoSelector,
        Policy,
        RepairStrategy,
        Rows,
        Spent,
        Stateful,
        Suite,
        Tried,
        Verifier,
        hookimpl,
        takes_rows,
    )
    from .interchange.agentdojo_logs import fault_of
    from .ledger.layout import file_of
    from .ledger.reading import RunReader
    from .messages import Message, answer_of, quoted, spoken, text_of, visible
    from .plugins import nearest
    from .recipe.checks import check_url
    from .record import dumps, stable_hash
    from .serve.completions import Server
    from .serve.likelihoods import log_likelihoods
    from .serve.replies import EndpointError, Reply
    from .serve.speakers import Speaker, speaker_of
    from .suites.episodes import make_tool
    from .suites.exposure import entered
    from .train.config import PFPOConfig
    from .train.trainer import PFPOTrainer
    from .types import (
        KINDS,
        OBJECTIVES,
        PASS_AT,
        BufferRow,
        Case,
        Failure,
        Kind,
        Outcome,
        Pair,
        Repair,
        RolloutRequest,
        Score,
        ScoreCard,
        Script,
        Task,
        ToolCall,
        Trajectory,
    )
    from .verify.ensemble import combined, reducer
    from .verify.rules import Rule, Rules
    from .verify.scoring import score_all, step_of

__version__ = "0.1.0"

_NAMES = {
    "errors": "FateError RecipeError SuiteError ToolError",
    "record": "dumps stable_hash",
    "messages": "Message answer_of quoted spoken text_of visible",
    "types": (
        "KINDS OBJECTIVES PASS_AT BufferRow Case Failure Kind Outcome Pair Repair RolloutRequest Score "
        "ScoreCard Script Task ToolCall Trajectory "
    ),
    "hookspecs": (
        "Budget Choice Component Episode Evaluate Item Learner Merge Pairing ParetoSelector Policy RepairStrategy Rows "
        "Spent Stateful Suite Tried Verifier hookimpl takes_rows "
    ),
    "choose.pairings": "pair_of score_gap",
    "choose.pareto": "pareto",
    "choose.repairs": "attempts repairs",
    "choose.selectors": "ParetoFront",
    "choose.turns": "call_paths call_turns turns_of",
    "ledger.layout": "file_of",
    "ledger.reading": "RunReader",
    "plugins": "nearest plugins",
    "verify.ensemble": "combined reducer",
    "verify.rules": "Rule Rules",
    "verify.scoring": "score_all step_of",
    "suites.episodes": "make_tool",
    "suites.exposure": "entered",
    "recipe.checks": "check_url",
    "interchange.agentdojo_logs": "fault_of",
    "serve.completions": "Server",
    "serve.likelihoods": "log_likelihoods",
    "serve.replies": "EndpointError Reply",
    "serve.speakers": "Speaker speaker_of",
    "train.config": "PFPOConfig",
    "train.trainer": "PFPOTrainer",
}
"""Public names by the module that defines them; a module may be public itself."""

_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = [
    "KINDS",
    "OBJECTIVES",
    "PASS_AT",
    "Budget",
    "BufferRow",
    "Case",
    "Choice",
    "Component",
    "EndpointError",
    "Episode",
    "Evaluate",
    "Failure",
    "FateError",
    "Item",
    "Kind",
    "Learner",
    "Merge",
    "Message",
    "Outcome",
    "PFPOConfig",
    "PFPOTrainer",
    "Pair",
    "Pairing",
    "ParetoFront",
    "ParetoSelector",
    "Policy",
    "RecipeError",
    "Repair",
    "RepairStrategy",
    "Reply",
    "RolloutRequest",
    "Rows",
    "Rule",
    "Rules",
    "RunReader",
    "Score",
    "ScoreCard",
    "Script",
    "Server",
    "Speaker",
    "Spent",
    "Stateful",
    "Suite",
    "SuiteError",
    "Task",
    "ToolCall",
    "ToolError",
    "Trajectory",
    "Tried",
    "Verifier",
    "answer_of",
    "attempts",
    "call_paths",
    "call_turns",
    "check_url",
    "combined",
    "dumps",
    "entered",
    "fault_of",
    "file_of",
    "hookimpl",
    "log_likelihoods",
    "make_tool",
    "nearest",
    "pair_of",
    "pareto",
    "plugins",
    "quoted",
    "reducer",
    "repairs",
    "score_all",
    "score_gap",
    "speaker_of",
    "spoken",
    "stable_hash",
    "step_of",
    "takes_rows",
    "text_of",
    "turns_of",
    "visible",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f".{_HOMES[name]}", __name__)
    return home if home.__name__.endswith(f".{name}") else getattr(home, name)
