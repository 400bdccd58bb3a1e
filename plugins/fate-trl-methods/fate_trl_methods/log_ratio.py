"""A verifier that is two policies: how much likelier the one that learned from repairs makes a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fate_trl import FateError, RecipeError, RunReader, Score, Trajectory, log_likelihoods, stable_hash

fate_trl_api = 1


class LogRatio:
    """Self-rewarding: log pi_sft(y | x) - log pi_base(y | x), summed over the tokens that the policy wrote.

    What fine-tuning made likelier than it was is what it was shown; so a policy is its own reward model, on prompts
    without demonstrations too. The ratio r is brought into [0, 1] by (r - low) / (high - low), cut off at both ends:
    between them it is the paper's reward but for scale and shift, which a group's normalisation takes out. An objective
    passes at 1, as any other does, so a trajectory counts as resolved where r reaches `high`.

    Policies are named as `RUN` (its last accepted one), `RUN@2`, a folder of weights or a model's name. Of the run that
    scores, `base` is the model as the recipe names it, `start` the policy before round 1, after its warm start, and
    `@2` that of a round. Each is loaded for a batch and given back after it; nothing is asked about twice. It does not
    apply to what has no tokens (of scripted and served policies), nor to what the model says before its warm start.

    Source: Self-Rewarding PPO, read on a published page; there the reward stands at a rollout's last token, as a row's
    does here. Ours: only the policy's own tokens of all turns count, and the bounds.

    Args:
        sft: The policy that learned from demonstrations, or from repairs.
        base: The one before it did.
        low: Nats at which the score is 0.
        high: Nats at which it is 1; above `low`.
        batch: Trajectories that go through a model together.

    Raises:
        RecipeError: The bounds cross, or both policies have one name.
    """

    cached = True
    objectives = ("log_ratio",)

    def __init__(
        self,
        sft: str = "start",
        base: str = "base",
        low: float = -20.0,
        high: float = 20.0,
        batch: Annotated[int, Field(ge=1)] = 8,
    ):
        if low >= high:
            raise RecipeError(f"log-ratio: low ({low:g}) must lie below high ({high:g}).")
        if sft == base:
            raise RecipeError(f"log-ratio: both policies are {sft!r}; name the one before and the one after training.")
        self.sft, self.base, self.low, self.high, self.batch = sft, base, low, high, batch
        self._run: RunReader | None = None
        self._known: dict[int, float] = {}

    def in_run(self, run: RunReader) -> None:
        """The run whose own policies may be named.

        Raises:
            FateError: A policy is not there, or the two are one. The run's `start` may still be to come.
        """
        self._run = run
        if {self.sft, self.base} == {"start", "base"} and run.recipe().warm_start is None:
            raise self._one()
        for name in (self.sft, self.base):
            if name != "start":
                try:
                    log_likelihoods(name, [], run)
                except FateError as error:
                    raise FateError(f"log-ratio: {error}") from None

    def score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Score]]:
        """One score each; see hookspecs.Verifier.

        Raises:
            FateError: A policy is not there, or the two are one.
        """
        scored = [trajectory for trajectory in trajectories if self._why_not(trajectory) is None]
        ratios = iter(self.ratios(scored))
        return [
            {"log_ratio": self._score(next(ratios)) if why is None else Score.not_applicable(why)}
            for why in map(self._why_not, trajectories)
        ]

    def ratios(self, trajectories: Sequence[Trajectory]) -> list[float]:
        """The log-ratio of each, in nats. The same tokens are not asked about twice."""
        keys = [stable_hash(list(t.prompt_ids), list(t.completion_ids), list(t.policy_mask)) for t in trajectories]
        new = {key: t for key, t in zip(keys, trajectories, strict=True) if key not in self._known}
        if new:
            self._known |= zip(new, self._asked(list(new.values())), strict=True)
        return [self._known[key] for key in keys]

    def _asked(self, trajectories: Sequence[Trajectory]) -> list[float]:
        sft, base = (log_likelihoods(name, trajectories, self._run, self.batch) for name in (self.sft, self.base))
        ratios = [after - before for after, before in zip(sft, base, strict=True)]
        if not any(ratios) and any(1 in trajectory.policy_mask for trajectory in trajectories):
            raise self._one()
        return ratios

    def _one(self) -> FateError:
        return FateError(
            f"log-ratio: {self.sft!r} and {self.base!r} are one policy. A run's start is its base unless it has a "
            "warm_start; name a policy that was trained, as RUN@1."
        )

    def _why_not(self, trajectory: Trajectory) -> str | None:
        """Why it does not apply; None where it does."""
        if not (trajectory.prompt_ids or trajectory.completion_ids):
            return "it has no tokens"
        if trajectory.stage == "eval-test-base" and "start" in (self.sft, self.base):
            return "the warm start is still to come"
        return None

    def _score(self, ratio: float) -> Score:
        value = min(1.0, max(0.0, (ratio - self.low) / (self.high - self.low)))
        return Score(value, reason=f"{ratio:+.1f} nats against {self.base}")
