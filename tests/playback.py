"""`fate-trl` with a policy that is played back: what it says is a script's, by task and attempt alone, so one process
and several must record the same. It is trained for real, which changes nothing of what it says.

    python playback.py run RECIPE …        or with torchrun in front
"""

from __future__ import annotations

from typing import Any

from fate_trl.cli import main
from fate_trl.suites.scripted import ScriptedLearner, perform, script_for
from fate_trl.train import build, learner, templates
from fate_trl.train.trainer import PFPOTrainer
from fate_trl.types import Script


class PlayBack(PFPOTrainer):
    """Plays the oracle or a failing role, for each attempt another; in training, for each row of a group."""

    def _collected(self, rows: list[dict[str, Any]]) -> Any:
        self._left = [self._turns(row["request"], row["request"].attempt) for row in rows]
        return super()._collected(rows)

    def _scored(self, inputs: list[dict[str, Any]]) -> Any:
        first = self.accelerator.process_index * len(inputs)
        self._left = [self._turns(row["request"], (first + i) % self.num_generations) for i, row in enumerate(inputs)]
        return super()._scored(inputs)

    def _turns(self, request: Any, seed: int) -> list[list[int]]:
        """Token ids of each of the policy's turns."""
        suite = SUITES[request.task.suite]
        role = ScriptedLearner(SUITES)._role(request, seed)
        script = script_for(suite, request.task, role) or Script(answer="Done.")
        tools = [suite.tools()[name] for name in sorted(request.task.tools)]
        said, turns = list(request.messages), []
        for message in perform(suite, request, script).messages:
            if message["role"] == "assistant":
                before = templates.render(self._tokenizer, said, tools, add_generation_prompt=True)
                new = templates.render(self._tokenizer, [*said, message], tools, add_generation_prompt=False)
                new = new[len(before) :]
                turns.append(new[: len(new) - new[::-1].index(self._tokenizer.eos_token_id)])
            said.append(message)
        return turns

    def _generate_single_turn(self, prompt_ids: list[Any], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        going = [turns for turns in self._left if turns]
        assert len(going) == len(prompt_ids), f"{len(prompt_ids)} rows go on, {len(going)} have something to say"
        return [turns.pop(0) for turns in going], None


SUITES: dict[str, Any] = {}


def learner_of(recipe: Any, suites: Any, *more: Any) -> Any:
    SUITES.update(suites)
    return TrlLearner(recipe, suites, *more)


if __name__ == "__main__":
    TrlLearner = learner.TrlLearner
    build.TrlLearner = learner_of  # type: ignore[misc, assignment]
    TrlLearner.trainer = PlayBack  # type: ignore[misc]
    main()
