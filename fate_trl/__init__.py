"""fate-trl: on-policy self-evolution from failed trajectories, around Hugging Face TRL.

Public names resolve lazily, so that `import fate_trl` loads no torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":  # locks, signals and limits are POSIX's
    raise ImportError("fate-trl runs on Linux and macOS. On Windows, use the Windows Subsystem for Linux (WSL).")

if TYPE_CHECKING:
    from .errors import ToolError
    from .hookspecs import Choice, Component, hookimpl
    from .train.config import PFPOConfig
    from .train.trainer import PFPOTrainer
    from .types import Outcome, Score, Script, Task, Trajectory

__version__ = "0.1.0"

_HOMES = {
    "PFPOConfig": "train.config",
    "PFPOTrainer": "train.trainer",
    "Choice": "hookspecs",
    "Component": "hookspecs",
    "hookimpl": "hookspecs",
    "Outcome": "types",
    "Score": "types",
    "Script": "types",
    "Task": "types",
    "ToolError": "errors",
    "Trajectory": "types",
}

__all__ = ["Choice", "Component", "Outcome", "PFPOConfig", "PFPOTrainer", "Score", "Script", "Task"]
__all__ += ["ToolError", "Trajectory", "hookimpl"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
