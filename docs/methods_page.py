"""docs/methods.md, made from the components while the site is built: reference.py asks for it.

python docs/methods_page.py prints it. A method's status is "works" only where tests that begin with its name are there.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from fate_trl import plugins

ROOT = Path(__file__).parent.parent
FAMILIES = sorted(file.stem for file in (ROOT / "plugins/fate-trl-methods/fate_trl_methods").glob("*papers*.py"))
"""Modules of fate_trl_methods that hold rows."""

CORE = (
    (
        "fate_trl",
        "On-Policy Self-Evolution via Failure Trajectories for Agentic Safety Alignment",
        "test_end_to_end.py",
    ),
    (
        "command `front`",
        "C-MORL: Multi-Objective Reinforcement Learning through Efficient Discovery of Pareto Front",
        "test_front.py",
    ),
    ("`ensemble`", "Reward Model Ensembles Help Mitigate Overoptimization", "test_ensembles.py"),
    ("logged metrics", "Secrets of RLHF in Large Language Models Part I: PPO", "test_trainer.py"),
    (
        "merge `soup`, as `pfpo.reference` and `preference.reference`",
        "SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF",
        "test_references.py",
    ),
    (
        "stage `distillation`",
        "ours, after SDFT (2601.19897), HinT-SD (2605.17873)",
        "test_distillation.py",
    ),
    ("`evaluation.margin`", "Utility-Learning Tension in Self-Modifying Agents", "test_evolution.py"),
    (
        "`pfpo.exchange`",
        "Scaf-GRPO: Scaffolded Group Relative Policy Optimization for Enhancing LLM Reasoning",
        "test_exchange.py",
    ),
    (
        "recipe `iterative-dpo`",
        "Enhancing LLM Reasoning with Iterative DPO: A Comprehensive Empirical Investigation",
        "test_iterative_dpo.py",
    ),
    (
        "`security`, `utility` by the executed state",
        "RLHS: Mitigating Misalignment in RLHF with Hindsight Simulation",
        "test_verifiers.py",
    ),
)
"""What the core has of the literature by itself: where, the paper, its tests."""

INTRODUCTION = """# Methods of the literature

The self-evolution of fate-trl stands among some 150 papers on preference optimisation, policy optimisation, constraints
and several objectives. What of them fits its loop is a component each, one key of a recipe away: most are in
[fate-trl-methods](../plugins/fate-trl-methods), some in [fate-trl-judge](../plugins/fate-trl-judge).

A method **works** if tests under its name check what shows that it does, on real scores, and on tiny models where it
needs tokens. Marks of a formula's source: read in *the authors' code*, on *a published page*, in *an abstract*;
**[recall]** is from memory of the paper, and not confirmed; *derived* and *ours* are this project's.

Some fields of work have no counterpart here, and will have none soon: decoding under a value network (*Iterative Value
Function Optimization for Guided Decoding*, *Qsharp: Provably Optimal Distributional RL for LLM Post-Training*: policies
are sampled by TRL's engines as they are), attacks on embeddings (*DROJ: A Prompt-Driven Attack against Large Language
Models*: dual use, and tools hand over text), critics on hidden states and gradients through a verifier (verifiers are
programs or served models), tabular and continuous control (*From Data to Rewards: a Bilevel Optimization Perspective on
Maximum Likelihood Estimation*: there are no tokens in it), and analyses of what a model values (*Utility Engineering:
Analyzing and Controlling Emergent Value Systems in AIs*: nothing is trained by them).

Left out so far, though they could fit:

- *Your Language Model is Its Own Critic: Reinforcement Learning with Value Estimation from Actor's Internal States*
  probes hidden states, which TRL's fused head does not hand out; *Risk-aware Direct Preference Optimization under
  Nested Risk Measure* needs logits there.
- *PARL: A Unified Framework for Policy Alignment in Reinforcement Learning* and *Behavior Alignment via Reward Function
  Optimization* fit verifiers anew between rounds: verifiers here are programs or served models, and stay as they are
  while a policy is compared with them.
- *Implicit Reward as the Bridge: A Unified View of SFT and DPO Connections* changes the loss of SFT, for which there is
  no hook; TRL's `dft` is a key away.
- *SGDPO: Self-Guided Direct Preference Optimization for Language Model Alignment*: what its pilot term is stands in no
  source that we found.
"""

PLUGIN = "plugins/fate-trl-methods"


@cache
def tests() -> dict[str, list[str]]:
    """Names of the tests in each file of the plugins that hold methods."""
    out = {}
    for file in sorted([*ROOT.glob(f"{PLUGIN}/tests/test_*.py"), *ROOT.glob("plugins/fate-trl-judge/tests/test_*.py")]):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        out[file.relative_to(ROOT).as_posix()] = found
    return out


def tests_of(row: Any) -> list[str]:
    """`file::test` of each test that begins with the method's name."""
    return [
        f"{file}::{test}" for file, names in tests().items() for test in names if test.startswith(f"test_{row.name}_")
    ]


def factory_of(row: Any) -> Callable[..., Any]:
    """What makes the component; for a command, its function."""
    plugin, _, _ = row.component.partition("/")
    for type in plugins.HOOKS:
        if "/" in row.component and row.component.rpartition("/")[2] in plugins.components(plugin, type):
            return plugins.components(plugin, type)[row.component.rpartition("/")[2]].factory
    from fate_trl_methods import dualize

    return {"fate-trl-dualize": dualize.dualize}[row.component]


def words_of(row: Any) -> tuple[str, str]:
    """The formula (the docstring up to its source), and the source."""
    if row.formula:
        return row.formula, row.source
    factory = factory_of(row)
    text = inspect.getdoc(factory) or ""
    if "Source:" not in text:  # a command's formula stands at the top of its module
        text = inspect.getdoc(sys.modules[factory.__module__]) or ""
    body = re.split(r"\n(?:Args|Attributes|Raises|Returns):", text)[0]
    formula, _, source = body.partition("\nSource: ")
    if not source:
        formula, source = body, "the authors' code; the solver (Newton's method) is ours."
    return formula.strip(), " ".join(source.split())


def rows() -> list[Any]:
    """Every method's row."""
    import importlib

    modules = (importlib.import_module(f"fate_trl_methods.{name}") for name in FAMILIES)
    return [row for module in modules for row in module.ROWS]


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    heads = list(head)
    out = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*out, *("| " + " | ".join(" ".join(cell.split()) for cell in line) + " |" for line in lines)])


def page() -> str:
    """The page, as Markdown."""
    every = rows()
    lines = []
    sections = []
    for row in every:
        formula, source = words_of(row)
        found = tests_of(row)
        status = "works" if found else "no test"
        anchor = row.component.replace("/", "")
        paper = f"{row.paper}, arXiv {row.number}" if row.number else row.paper
        lines.append((f"[`{row.component}`](#{anchor})", row.kind, paper, row.shows, status))
        checked = ", ".join(f"`{test.partition('::')[2]}`" for test in found)
        where = sorted({test.partition("::")[0] for test in found})
        sections += [
            f"### `{row.component}` {{#{anchor}}}",
            f"*{paper}.* {formula}",
            f"**Source and what is ours:** {source}",
            f"**Shows that it works:** {row.shows}. " + (f"{', '.join(where)}: {checked}." if found else "No test."),
        ]
    core = [
        (where, paper, f"`tests/{file}`", "works" if (ROOT / "tests" / file).is_file() else "no test")
        for where, paper, file in CORE
    ]
    parts = [
        INTRODUCTION,
        "## All of them",
        table(("component", "kind", "paper", "what shows that it works", "status"), lines),
        "Part of the core:",
        table(("where", "paper", "tests", "status"), core),
        "## Formulas",
        *sections,
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
