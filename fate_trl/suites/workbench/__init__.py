"""The built-in suites, and the small policies that make a first run need no download.

`suite.py` and `tradeoffs.py` are the worlds; `policy/` and `tradeoffs_policy/` are tiny language models with planted
failures, made by `python -m fate_trl.suites.workbench.build`.
docs/workbench.md and docs/tradeoffs.md say what was planted.
"""

from pathlib import Path

POLICY = Path(__file__).parent / "policy"
"""Folder of the embedded policy, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."""

POLICIES = {"workbench": POLICY, "tradeoffs": Path(__file__).parent / "tradeoffs_policy"}
"""The same of each suite's own policy."""
