"""The built-in suite, and the small policy that makes a first run need no download.

`suite.py` is the world; `policy/` is a tiny language model with planted failures, made by `python -m
fate_trl.workbench.build`. docs/workbench.md says what was planted.
"""

from pathlib import Path

POLICY = Path(__file__).parent / "policy"
"""Folder of the embedded policy, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."""
