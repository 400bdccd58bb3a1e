#!/usr/bin/env bash
# peft 0.21.2: add_weighted_adapter makes rsLoRA adapters the square root of the new rank too strong, and leaves out what is not LoRA's two matrices.
#
# One would guess that the average of an adapter and its own copy is that adapter: peft calls "svd", the default, and "cat" precise. The new one
# gets lora_alpha = r, which means a scale of 1, and all else from the first one's configuration. With `use_rslora` the scale is lora_alpha / √r,
# so √r: 4 at rank 16, and more with "cat", where the ranks add up. Of DoRA the magnitudes are those of the base again, and rows trained by
# `trainable_token_indices` and biases of `lora_bias` are as before training. Nothing warns.
#
# Seen: how much of the adapter's change to a layer its average with a copy has (1 for plain LoRA), and whether the policy is the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
cat > "$folder/show.py" <<'PY'
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
size = {"vocab_size": 16, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[3, 4, 5]])).logits


def show(name, **lora):
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"], **lora)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**size)), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)  # in the place of training
    model.add_adapter("second", config)
    set_peft_model_state_dict(model, get_peft_model_state_dict(model), adapter_name="second")
    policy = logits(model)
    model.set_adapter("second")
    assert torch.allclose(logits(model), policy, atol=1e-5), "the second is no copy"
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    learned = layer.get_delta_weight("default")
    for kind in ("svd", "cat"):
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], kind, combination_type=kind)
        model.set_adapter(kind)
        share = float((layer.get_delta_weight(kind) * learned).sum() / learned.square().sum())
        same = torch.allclose(logits(model), policy, atol=1e-4)
        print(f"{name}, {kind}: {share:.2f}, {'the same policy' if same else 'another policy'}")


show("LoRA")
show("rsLoRA", use_rslora=True)
show("DoRA", use_dora=True)
show("LoRA and a token's row", trainable_token_indices=[4])
show("LoRA with biases", lora_bias=True)
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" 2>"$folder/errors" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
LoRA, svd: 1.00, the same policy
LoRA, cat: 1.00, the same policy
rsLoRA, svd: 4.00, another policy
rsLoRA, cat: 5.66, another policy
DoRA, svd: 1.00, another policy
DoRA, cat: 1.00, another policy
LoRA and a token's row, svd: 1.00, another policy
LoRA and a token's row, cat: 1.00, another policy
LoRA with biases, svd: 1.00, another policy
LoRA with biases, cat: 1.00, another policy
SEEN
echo "as described"
