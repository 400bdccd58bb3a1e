#!/usr/bin/env bash
# trl 1.16.0 with peft 0.21.2: the reference of an adapter's DPO is not the policy that it starts from, for four ways to set up LoRA.
#
# One would guess that before the first step the policy equals its reference, so that DPO's first loss is log 2, and the KL of GRPO, KTO and RLOO
# is 0. For an adapter that has learned, TRL makes a second one, "ref", and copies the parameters whose names hold ".default."; those of peft's
# trained token rows, and of LoRA on an embedding, end in ".default", and stay as before any training. For a fresh adapter the reference is the model
# with adapters off; PiSSA and OLoRA take what they put into the adapter out of the base, so that is a model that never was. Nothing warns.
# TRL's own SFTTrainer trains token rows where `chat_template_path` adds tokens.
#
# Seen: whether the reference's logits are those of the policy before the first step, and whether the first loss is log 2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0 peft==0.21.2 trl==1.16.0
cat > "$folder/show.py" <<'PY'
import math
import sys

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import use_adapter

words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2, "pay": 3, "<call>": 4, "no": 5}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
torch.set_num_threads(1)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
size = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
pairs = Dataset.from_list([{"prompt": "pay", "chosen": " <call> pay", "rejected": " <call> no"}] * 4)
args = DPOConfig(sys.argv[1], use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", max_steps=1,
                 logging_steps=1)


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[3, 4, 5]])).logits


def first(name, learned, **lora):
    """An adapter that has learned, which TRL is to copy, or a fresh one, which TRL makes."""
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**size))
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", **lora)
    if learned:
        model, lora = get_peft_model(model, lora), None
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn_like(parameter)  # in the place of training
    trainer = DPOTrainer(model, args=args, train_dataset=pairs, processing_class=tokenizer, peft_config=lora)
    policy = logits(trainer.model)
    with use_adapter(trainer.model, "ref" if learned else None):  # as TRL does
        apart = float((logits(trainer.model) - policy).abs().max())
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    print(f"{name}: reference {'equal' if apart < 1e-5 else 'apart'}, first loss {'' if abs(loss - math.log(2)) < 1e-5 else 'not '}log 2")


linear = {"target_modules": ["q_proj", "v_proj"]}
first("learned, linear layers", True, **linear)
first("learned, and one token's row", True, **linear, trainable_token_indices=[4])
first("learned, and the embedding", True, target_modules=["q_proj", "v_proj", "embed_tokens"])
first("fresh, linear layers", False, **linear)
first("fresh, PiSSA", False, **linear, init_lora_weights="pissa")
first("fresh, OLoRA", False, **linear, init_lora_weights="olora")
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/out" 2>"$folder/errors" | grep -E "^(learned|fresh)" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
learned, linear layers: reference equal, first loss log 2
learned, and one token's row: reference apart, first loss not log 2
learned, and the embedding: reference apart, first loss not log 2
fresh, linear layers: reference equal, first loss log 2
fresh, PiSSA: reference apart, first loss not log 2
fresh, OLoRA: reference apart, first loss not log 2
SEEN
echo "as described"
