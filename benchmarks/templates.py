"""The verdict of `fate-trl check` on every chat template that TRL ships, and what a rollout then does.

    python -m benchmarks.templates [docs/results/templates.json]

Each template stands on a small tokenizer with its family's special tokens. `check` renders the workbench's own calls
and reads them back. Then an untrained model of that vocabulary is made to write exactly such a call, through the whole
path (generation, end of turn, parsing, execution), and the environment says what it executed. A template with an error
is rolled out as it is, without what fate-trl does for templates. *confirmed*: the call was executed where the verdict
is no error, and was not, or TRL refused, where it is one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch

from benchmarks import families
from fate_trl import PFPOConfig, PFPOTrainer
from fate_trl.plugins import load
from fate_trl.preflight import rendering, subject
from fate_trl.recipe.loading import make_recipe
from fate_trl.suites.episodes import environment_factories
from fate_trl.suites.scripted import script_for
from fate_trl.train import templates
from fate_trl.train.rows import request_dataset
from fate_trl.types import RolloutRequest

FORKS = {
    "qwen3 + a comment": ("qwen3", {}),
    "qwen3 + a comment, tool_parser: qwen3": ("qwen3", {"tool_parser": "qwen3"}),
    "qwen3 + a comment, chat_template: qwen3": ("qwen3", {"chat_template": "qwen3"}),
    "qwen2_5 + a comment": ("qwen2_5", {}),
    "qwen2_5 + a comment, tool_parser: hermes": ("qwen2_5", {"tool_parser": "hermes"}),
    "llama3_1 + a comment, tool_parser: llama3": ("llama3_1", {"tool_parser": "llama3"}),
    "llama3_1 + a comment, tool_parser: json": ("llama3_1", {"tool_parser": "json"}),
    "qwen2_5, chat_template: chatml_json": ("qwen2_5", {"chat_template": "chatml_json"}),
    "phi3, chat_template: qwen3_instruct_2507": ("phi3", {"chat_template": "qwen3_instruct_2507"}),
}
"""Templates that somebody changed, without changing what they render, and what a recipe can say of them."""


def judged(name: str) -> dict[str, Any]:
    """One row of the table."""
    base, model = FORKS.get(name, (name, {}))
    tokenizer = families.tokenizer(base)
    if "comment" in name:
        tokenizer.chat_template += "{#- changed -#}"
    raw = copy.deepcopy(tokenizer)
    model = {"path": f"families/{base}", **model}
    recipe = make_recipe({"suites": ["workbench"], "model": model, "rollout": {"max_completion_length": 512}})
    suite = load("suite", "workbench", {"train": 12, "validation": 1, "test": 3})
    tasks = list(suite.tasks("train", 0))
    found = rendering.template_findings(
        subject.Subject(recipe, {"workbench": suite}, {"train": tasks}, tokenizer, None)
    )
    verdict = next((v for v in ("error", "warning") if any(f.verdict == v for f in found)), "ok")
    broken = [f for f in found if f.verdict == "error"]
    done = rolled(raw if broken else tokenizer, base, suite, tasks)
    confirmed = done == "executed" if not broken else done != "executed"
    said = next((f for f in found if f.verdict == verdict and f.verdict != "ok"), found[0])
    thinking = found[-1].data.get("state", "–")
    return {
        "template": name,
        "verdict": verdict,
        "check": said.check,
        "reason": said.reason,
        "thinking": thinking,
        "rollout": done,
        "confirmed": confirmed,
    }


def rolled(tokenizer: Any, name: str, suite: Any, tasks: list[Any]) -> str:
    """What becomes of a call that the model writes: "executed", "not executed", or TRL's refusal."""
    task = next(task for task in tasks if task.kind == "benign")
    call = next(iter(script_for(suite, task, "oracle").calls))
    call = {"name": call["name"], "arguments": dict(call.get("arguments") or {})}
    prototypes = suite.tools()
    tools = [prototypes[tool] for tool in sorted(task.tools)]
    model = families.model(tokenizer)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in families.ends(name)]
    model.generation_config.eos_token_id = sorted(set(ends))
    requests = [RolloutRequest(task, task.messages)]
    try:
        _, ids = templates.written(tokenizer, task.messages, call, tools)
        with tempfile.TemporaryDirectory() as folder, quietly():
            trainer = PFPOTrainer(
                model=model,
                reward_funcs=["utility"],
                args=config(folder),
                train_dataset=request_dataset(requests),
                processing_class=tokenizer,
                environment_factory=environment_factories({"workbench": suite}, [task], None),
            )
            script(trainer, [ended(ids, ends), [ends[0]]])
            (trajectory,) = trainer.rollout(requests)
    except Exception as error:  # whatever TRL or the template says
        return f"refused: {str(error).splitlines()[0][:100] or type(error).__name__}"
    made = [(c.name, c.arguments) for c in trajectory.calls]
    return "executed" if made == [(call["name"], call["arguments"])] else "not executed"


def config(folder: str) -> PFPOConfig:
    return PFPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=512,
        max_tool_calling_iterations=2,
        report_to="none",
        gradient_checkpointing=False,
    )


def ended(ids: list[int], ends: list[int]) -> list[int]:
    """The tokens up to their last end of a turn; with one where there is none."""
    last = max((i for i, token in enumerate(ids) if token in ends), default=None)
    return [*ids, ends[-1]] if last is None else ids[: last + 1]


def script(trainer: Any, turns: list[list[int]]) -> None:
    """Have the model write these tokens, one list for each turn, whatever it is asked."""
    left = iter(turns)

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        said = torch.tensor(next(left)).expand(len(input_ids), -1)
        return torch.cat([input_ids, said], dim=1)

    trainer.model.generate = generate


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| template | verdict | why | thinking | rollout | confirmed |", "|---|---|---|---|---|---|"]
    for row in rows:
        why = (
            ""
            if row["verdict"] == "ok"
            else re.split("; | use |Set ", row["reason"].partition(": ")[2] or row["reason"])[0]
        )
        cells = [f"`{row['template']}`", row["verdict"], why, row["thinking"], row["rollout"]]
        cells = [cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells]
        lines.append(f"| {' | '.join([*cells, 'yes' if row['confirmed'] else '**no**'])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [judged(name) for name in [*families.names(), *FORKS]]
    lines = table(rows)
    print("\n".join(lines))
    if asked.output:
        asked.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
