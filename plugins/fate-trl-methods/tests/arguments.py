"""Arguments for the contract suite, as JSON, with two tiny models in the folder named: python arguments.py FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, set_seed


def tiny_model(folder: Path, seed: int) -> str:
    """A Llama with random weights and as many tokens as the contract suite's trajectories take."""
    set_seed(seed)
    size = {"vocab_size": 1000, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2, num_key_value_heads=1)).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    threshold = {"thresholds": {"security": 0.9}}
    models = {"policy": tiny_model(target / "policy", 0), "reference": tiny_model(target / "reference", 1)}
    given = {
        "lagrangian": threshold,
        "cost-gate": threshold,
        "implicit-reward": models,
        "log-ratio": {"sft": models["policy"], "base": models["reference"], "low": -100.0, "high": 100.0},
        "program": {"everywhere": True},
        "kl-by-kind": {"factors": {"attacked": 2.0}},
        "preference-vectors": {"eta": [0.1]},
    }
    sys.stdout.write(json.dumps(given))
