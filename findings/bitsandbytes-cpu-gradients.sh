#!/usr/bin/env bash
# bitsandbytes 0.50.2 with torch 2.13.0 on a CPU that has AVX512-BF16: after one forward in eval mode, 4-bit layers pass no gradient on.
#
# One would guess that evaluating a 4-bit model between two epochs of LoRA changes nothing. On such a CPU the first forward without
# gradient in eval mode lays the 4-bit weights out anew for a faster kernel, for good. Back in train mode that kernel is used, and no gradient
# flows through the layer to what stands before it: adapters further down stop learning what comes through it, without an error.
#
# Seen: the input of a Linear4bit has a gradient before; after a forward in eval mode and back in train mode it has none.
set -euo pipefail
grep -q avx512_bf16 /proc/cpuinfo || { echo "this needs a CPU with AVX512-BF16"; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 bitsandbytes==0.50.2
cat > "$folder/show.py" <<'PY'
import torch
from bitsandbytes.nn import Linear4bit

layer = Linear4bit(128, 128, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")


def gradient():
    x = torch.randn(2, 128, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    if y.requires_grad:
        y.sum().backward()
    return x.grad is not None


print("before:", gradient())
layer.eval()
with torch.no_grad():
    layer(torch.randn(2, 128, dtype=torch.bfloat16))
layer.train()
print("after:", gradient())
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" 2>/dev/null | tee "$folder/seen"
grep -qx "before: True" "$folder/seen"
grep -qx "after: False" "$folder/seen"
echo "as described"
