"""The model card: what a policy was trained on, what it was measured at, and how far that goes.

Made from the run directory alone, without a model, a token or the network. Names in it come from files, so they are
escaped: a card is shown as Markdown by sites that render it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..errors import LedgerError
from ..ledger.reading import RunReader
from ..messages import counted, visible
from ..metrics import DIRECTIONS

SAFETY = ("asr", "exposed", "hcr", "harm_share", "vrr", "safe_score", "safe_inert")
UTILITY = ("resolved", "benign_utility", "tsr", "brr", "brr_look_alike", "valid_calls", "inert")

_BESIDE = ("refuse-all", "do-nothing")  # a policy that is safe, and one that is harmless, by doing nothing
_ARROWS = {1: " ↑", -1: " ↓", 0: ""}
_LIMITS = """\
- Measured on the held-out tasks of the suites above, and on nothing else. Another set of tools, a longer conversation
  or an attacker who adapts to this model may do better than these numbers say.
- An attack success of 0 in n tasks is an interval, not a guarantee; read its upper end.
- Attack success alone says little: read it next to `resolved` and to what refusing everything would score.
- The model has learned to call the tools that its training tasks offered. Limits around them are still needed."""
_UNTESTED = "Nothing: its run left the test to `fate-trl eval`."


def model_card(run: RunReader, round: int, base: str | None = None) -> str:
    """The card of the policy after a round, as a README.md with the hub's front matter.

    Args:
        run: A run with metrics.
        round: 0 for the model before training.
        base: Hub id of the model that it was trained from; None where it has none.

    Raises:
        LedgerError: The run has no recipe, no manifest, or no metrics of that round that it should have.
    """
    from huggingface_hub import EvalResult, ModelCardData

    recipe, manifest, rows = _read(run)
    measured = [row for row in rows if row["split"] == "test" and row["kind"] == "all"]
    own = [row for row in measured if row["round"] == round and row["policy"] not in ("oracle", "obey", *_BESIDE)]
    untested = (recipe.get("evaluation") or {}).get("tasks") == 0
    if not own and not untested:
        raise LedgerError(f"{run.path} has no test metrics of round {round}; evaluate it first.")
    policy = own[-1]["policy"] if own else f"round-{round}"
    name = f"{run.path.resolve().name}-{policy}"
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=row["suite"],
            dataset_name=row["suite"],
            dataset_split="test",
            metric_type=metric,
            metric_value=row["metrics"][metric]["value"],
        )
        for row in own
        if row["policy"] == policy and row["suite"] != "all"
        for metric in (*SAFETY, *UTILITY)
        if metric in row["metrics"]
    ]
    data = ModelCardData(
        model_name=name,
        base_model=base,
        library_name="peft" if recipe["model"].get("lora") else "transformers",
        tags=["fate-trl", "trl", "pfpo", "tool-use", "safety"],
        eval_results=results or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_plain(name)}",
        "A tool-using model, trained from its own failed trajectories with fate-trl "
        "(FATE, [arXiv 2605.11882](https://arxiv.org/abs/2605.11882))."
        if round
        else "A tool-using model, as it was before training with fate-trl.",
        "## What it was measured at",
        *(_tables(measured, policy) if own else [_UNTESTED]),
        "## Data",
        _suites(manifest["suites"]),
        "## Limits",
        _LIMITS if own else _LIMITS.splitlines()[-1],
        "## How to load it",
        _loading(recipe),
        "## How it was made",
        _versions(manifest),
        _indented(yaml.safe_dump(recipe, sort_keys=False)),
    ]
    return "\n\n".join(parts) + "\n"


def _read(run: RunReader) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    manifest, metrics, recipe = run.read_json("manifest.json"), run.read_json("metrics.json"), run.recipe_values()
    if not recipe or manifest is None or metrics is None:
        raise LedgerError(f"{run.path} has no recipe.yaml, manifest.json or metrics.json yet; let the run finish.")
    return recipe, manifest, metrics["rows"]


def _tables(measured: Sequence[Mapping[str, Any]], policy: str) -> list[str]:
    """Safety and utility per suite: the policy before training, after it, and what doing nothing would score."""
    parts = []
    suites = [row["suite"] for row in measured if row["policy"] == policy]
    for suite in suites if len(suites) > 2 else suites[:1]:  # one suite has the numbers of all
        rows = [row for row in measured if row["suite"] == suite]
        before = next((row for row in rows if row["round"] == 0 and row["policy"] != policy), None)
        shown = [before] if before and before["policy"] not in ("oracle", "obey", *_BESIDE) else []
        shown += [next(row for row in rows if row["policy"] == name) for name in (policy, *_BESIDE) if _has(rows, name)]
        own = sorted({m for row in shown for m in row["metrics"] if m.startswith("mean_") and m not in DIRECTIONS})
        parts.append(f"### {_plain('All suites' if suite == 'all' else suite)}, test split, % with 95 % intervals")
        for title, names in (("Safety", SAFETY), ("Utility", (*UTILITY, *own))):
            parts.append(_table(title, [name for name in names if any(name in r["metrics"] for r in shown)], shown))
        excluded = sum(row["errors"].get("excluded", 0) for row in shown)
        if excluded:
            parts.append(f"{counted(excluded, 'cases')} had an infrastructure error, left out here.")
    return parts


def _has(rows: Sequence[Mapping[str, Any]], policy: str) -> bool:
    return any(row["policy"] == policy for row in rows)


def _table(title: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"| {title} | " + " | ".join(_plain(row["policy"]) for row in rows) + " |"]
    lines.append("|---|" + "---|" * len(rows))
    for name in names:
        cells = (_cell(row["metrics"].get(name)) for row in rows)
        lines.append(f"| {_plain(name)}{_ARROWS[DIRECTIONS.get(name, 1)]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "–"
    few = ", few clusters" if metric.get("few_clusters") else ""
    value, low, high = (100 * metric[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}] (n {metric['n']}{few})"


def _suites(suites: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| suite | version | licence of its data |", "|---|---|---|"]
    for name, described in suites.items():
        licence = described.get("licence", "not stated by the suite")
        lines.append(f"| {_plain(name)} | {_plain(described.get('version', '–'))} | {_plain(licence)} |")
    return "\n".join(lines)


def _loading(recipe: Mapping[str, Any]) -> str:
    if recipe["model"].get("lora"):
        lines = [
            "from peft import AutoPeftModelForCausalLM",
            "model = AutoPeftModelForCausalLM.from_pretrained(FOLDER)",
        ]
    else:
        lines = [
            "from transformers import AutoModelForCausalLM",
            "model = AutoModelForCausalLM.from_pretrained(FOLDER)",
        ]
    lines += ["from transformers import AutoTokenizer", "tokenizer = AutoTokenizer.from_pretrained(FOLDER)"]
    return (
        _indented("\n".join(lines)) + "\n\nMerged weights (`fate-trl save --merge`) load as a plain transformers model."
    )


def _versions(manifest: Mapping[str, Any]) -> str:
    packages = {"fate-trl": manifest["fate_trl"], **manifest["packages"]}
    return ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in packages.items()) + ". The recipe:"


def _indented(text: str) -> str:
    """A code block that no line of the text can end."""
    return "\n".join(f"    {line}" for line in visible(text).split("\n"))


def _plain(text: Any) -> str:
    """A text that Markdown and HTML leave as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", html.escape(visible(" ".join(str(text).split()))))
