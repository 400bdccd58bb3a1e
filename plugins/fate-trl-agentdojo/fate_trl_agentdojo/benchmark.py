"""AgentDojo's own benchmark script, around a policy of fate-trl:

    python -m fate_trl_agentdojo.benchmark runs/mine@round-2 --suite banking --attack important_instructions

What is not an option of ours goes to `agentdojo.scripts.benchmark` as it is; that script makes the suites and attacks,
runs, grades, prints and logs.
"""

from __future__ import annotations

from typing import Any

import click
from agentdojo.agent_pipeline.agent_pipeline import AgentPipeline, PipelineConfig
from agentdojo.models import ModelsEnum
from agentdojo.scripts import benchmark as upstream

from fate_trl import FateError, speaker_of

from .pipeline import GuardElement, pipeline_of


@click.command(context_settings={"ignore_unknown_options": True}, help=__doc__)
@click.argument("target")
@click.option("--model", default="", help="Name of the model, where TARGET is an endpoint's URL.")
@click.option("--base", default="", help="The model under an adapter, where TARGET is one.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="rollout.temperature=0, model.device=...")
@click.option("--seed", default=0, help="Of sampling.")
@click.option("--guard", default="", metavar="FILE", help="A classifier for fate-trl-guard: a file with a class.")
@click.option("--threshold", default=0.5, help="From which probability on the guard flags a result.")
@click.option("--aborts", is_flag=True, help="A flagged result ends the run; by default it is withheld.")
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
def main(
    target: str,
    model: str,
    base: str,
    sets: tuple[str, ...],
    seed: int,
    guard: str,
    threshold: float,
    aborts: bool,
    rest: tuple[str, ...],
) -> None:
    try:
        element = _guard(guard, threshold, aborts) if guard else None
        speaker, name = speaker_of(target, model=model, base=base, sets=sets, seed=seed)
    except FateError as error:
        raise click.ClickException(str(error)) from None

    class Pipeline(AgentPipeline):
        """The script makes its pipeline by this name."""

        @classmethod
        def from_config(cls, config: PipelineConfig) -> Any:
            return pipeline_of(speaker, name, element, config)

    upstream.AgentPipeline = Pipeline
    # By default, as click from 8.2 on takes an enum's names on the command line, and before its values.
    next(option for option in upstream.main.params if option.name == "model").default = ModelsEnum.LOCAL
    upstream.main(list(rest))


def _guard(file: str, threshold: float, aborts: bool) -> GuardElement:
    try:
        from fate_trl_guard import TextGuard
    except ModuleNotFoundError:
        raise FateError("--guard needs fate-trl-guard: pip install fate-trl-guard") from None
    found = TextGuard(file)
    element = GuardElement(found, threshold, aborts)
    try:
        found.probability("Hello.")  # before a policy loads: what cannot judge this judges nothing
    except FateError:
        raise
    except Exception as error:
        raise FateError(f"--guard {file} cannot judge a text: {type(error).__name__}: {error}") from error
    return element


if __name__ == "__main__":
    main()
