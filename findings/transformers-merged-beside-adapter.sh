#!/usr/bin/env bash
# transformers 5.23.0 with peft 0.21.2: a merged model, saved where its adapter lies, is loaded with the adapter applied twice.
#
# One would guess that a folder with a whole model in it is loaded as that model, or at worst as the adapter on the base model that
# adapter_config.json names. `from_pretrained` takes the weights of the folder and puts the adapter of the folder on top. So
# `merge_and_unload().save_pretrained(folder)`, into the folder to which a trainer saved the adapter, gives a model that is neither, without a word.
# peft's AutoPeftModelForCausalLM goes to the named base model and is right about the same folder.
#
# Seen: how much of the adapter's change there is in the weights: 1 for the adapter alone, 2 with the merged model beside it, 1 by peft's class, and 1
# for the merged model once adapter_config.json is gone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
cat > "$folder/show.py" <<'PY'
import sys
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

base, out = Path(sys.argv[1], "base"), Path(sys.argv[1], "out")
size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(vocab_size=64, **size)).save_pretrained(base)


def weight(model):
    """One layer's weight, with what an adapter adds to it."""
    [layer] = [module for name, module in model.named_modules() if name.endswith("layers.0.self_attn.q_proj")]
    return layer.weight + (layer.get_delta_weight("default") if hasattr(layer, "get_delta_weight") else 0)


def say(what, loader=AutoModelForCausalLM):
    change = weight(loader.from_pretrained(out)) - start
    print(f"{what}: {float((change * learned).sum() / learned.square().sum()):.2f}")


start = weight(AutoModelForCausalLM.from_pretrained(base))
lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)  # random, in the place of trained
model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
learned = weight(model) - start
model.save_pretrained(out)
say("adapter alone")
model.merge_and_unload().save_pretrained(out)
say("adapter and merged model")
say("adapter and merged model, by peft's class", AutoPeftModelForCausalLM)
(out / "adapter_config.json").unlink()
say("merged model alone")
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
adapter alone: 1.00
adapter and merged model: 2.00
adapter and merged model, by peft's class: 1.00
merged model alone: 1.00
SEEN
echo "as described"
