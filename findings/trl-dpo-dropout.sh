#!/usr/bin/env bash
# trl 1.16.0 with peft 0.21.2: a DPOTrainer takes the dropout of the model that it is given, and never gives it back.
#
# One would guess that `disable_dropout` (True by default) holds for that training. It sets every Dropout of the caller's own model to
# p = 0, LoRA's among them, when the trainer is made. Whatever trains the model next, SFT or GRPO in a loop over stages, runs without the
# dropout that its LoRA configuration still says.
#
# Seen: 0.1 in the configuration before and after; 0.1 in the module before, 0 after the trainer is made and gone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0 peft==0.21.2 trl==1.16.0
cat > "$folder/show.py" <<'PY'
import gc
import sys

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2, "pay": 3, "done": 4, "no": 5}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
size = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
model = get_peft_model(LlamaForCausalLM(LlamaConfig(**size)), LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear"))


def dropout():
    return {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}, model.peft_config["default"].lora_dropout


print("before:", *dropout())
rows = Dataset.from_list([{"prompt": "pay", "chosen": "done", "rejected": "no"}])
args = DPOConfig(sys.argv[1], use_cpu=True, bf16=False, report_to="none")
trainer = DPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer)
del trainer
gc.collect()
print("after:", *dropout())
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/out" 2>/dev/null | tee "$folder/seen"
grep -qx "before: {0.1} 0.1" "$folder/seen"
grep -qx "after: {0} 0.1" "$folder/seen"
echo "as described"
