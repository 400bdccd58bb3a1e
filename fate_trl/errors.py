"""Every error that fate-trl raises on purpose: what was wrong, what is possible, what to do next."""

from __future__ import annotations

from typing import Literal


class FateError(Exception):
    """Base of every error that fate-trl raises on purpose: what was wrong, what is possible, what to do."""


class RecipeError(FateError, ValueError):
    """A recipe, a configuration or a command-line argument that cannot work; a ValueError, as TRL's own are."""


class PluginError(FateError, ValueError):
    """A plugin or component that is missing, clashes, is of another API version, or does not load; a ValueError too."""


class LedgerError(FateError):
    """A run directory that is locked, damaged, or belongs to another recipe."""


class InterchangeError(FateError):
    """A file of recorded trajectories that cannot be read, or that does not fit the recipe's suites."""


class SuiteError(FateError):
    """A suite whose data or options are wrong."""


class ErrorBudgetExceeded(FateError):
    """More infrastructure errors than `max_error_rate` allows; the message holds a table of causes."""


class ToolError(FateError):
    """A tool call that failed for a reason that the policy may read and react to.

    Args:
        text: What the policy reads.
        fault: "arguments" if they do not fit the tool, "raised" if the tool refused or failed (see `ToolCall`).
    """

    def __init__(self, text: str, fault: Literal["arguments", "raised"] = "raised"):
        super().__init__(text)
        self.fault = fault


class OutOfRange(FateError, ValueError):
    """A score that is no finite number in [0, 1]."""
