"""What a trajectory costs, as an optional objective: an agent that needs forty calls where five would do is no help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from ..errors import RecipeError
from ..hookspecs import Component, hookimpl
from ..types import Score, Trajectory

fate_trl_api = 1


class ToolCost:
    """`tool_cost`: 1 while the executed calls cost no more than `free`, falling evenly to 0 at `budget` (ours).

    Calls that did not fit their tool cost as much as those that ran; replayed calls cost nothing. Its pass mark is 1:
    a trajectory within `free` passes. Higher is better, as everywhere.

    Args:
        budget: Cost at which the score is 0.
        free: Cost up to which it is 1; below `budget`.
        prices: Cost of a call by tool name; 1 for tools that are not listed.

    Raises:
        RecipeError: `free` is not below `budget`, or a price is negative.
    """

    objectives = ("tool_cost",)

    def __init__(
        self,
        budget: Annotated[float, Field(gt=0)] = 16.0,
        free: Annotated[float, Field(ge=0)] = 8.0,
        prices: Mapping[str, float] | None = None,
    ):
        if free >= budget:
            raise RecipeError(f"tool_cost: free ({free:g}) must lie below budget ({budget:g}).")
        self.prices = dict(prices or {})
        negative = [name for name, price in self.prices.items() if price < 0]
        if negative:
            raise RecipeError(f"tool_cost: the price of {negative[0]!r} is below 0.")
        self.budget, self.free = budget, free

    def score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]:
        return [{"tool_cost": self._one(trajectory)} for trajectory in trajectories]

    def _one(self, trajectory: Trajectory) -> Score:
        calls = trajectory.calls[trajectory.replayed :]
        cost = sum(self.prices.get(call.name, 1.0) for call in calls)
        if cost <= self.free:
            return Score(1.0)
        value = max(0.0, (self.budget - cost) / (self.budget - self.free))
        feedback = "Reach the same with fewer tool calls."
        return Score(value, reason=f"{len(calls)} calls cost {cost:g}, of {self.budget:g}", feedback=feedback)


@hookimpl
def fate_trl_verifiers() -> list[Component]:
    return [Component("tool_cost", ToolCost, "few tool calls, or cheap ones (optional objective)")]
