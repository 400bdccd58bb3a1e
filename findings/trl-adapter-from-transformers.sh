#!/usr/bin/env bash
# trl 1.16.0 with transformers 5.23.0 and peft 0.21.2: an adapter that from_pretrained loaded is thrown away by TRL's trainers, or not trained.
#
# One would guess that a policy which `AutoModelForCausalLM.from_pretrained` reads from an adapter's folder is what a trainer goes on from, as when
# peft's own class reads it. It is the right policy until then. Given a `peft_config` for the next stage, the trainer calls get_peft_model; both
# adapters are named "default", so the new, empty one takes the place of the learned one in each layer, and training begins at the base model. peft
# warns that there will be "multiple adapters"; there is one. TRL refuses a PeftModel with a `peft_config`, but this is not a PeftModel to it.
# Without `peft_config` all is frozen, since from_pretrained loads adapters for inference. The optimizer has nothing to do and nothing stops the run:
# gradient checkpointing, on by default, makes the embeddings' output require a gradient, so that `backward` does not fail. DPO's reference is the
# base model in both cases.
#
# Seen: what DPOTrainer and SFTTrainer start from, whether two steps change a weight, and which policy DPO's reference is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0 peft==0.21.2 trl==1.16.0
cat > "$folder/show.py" <<'PY'
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import use_adapter

torch.set_num_threads(1)
words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2, "pay": 3, "done": 4, "no": 5}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
size = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
folder = Path(sys.argv[1])
rows = {
    DPOTrainer: Dataset.from_list([{"prompt": "pay", "chosen": " done", "rejected": " no"}] * 8),
    SFTTrainer: Dataset.from_list([{"prompt": "pay", "completion": " done"}] * 8),
}


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[3, 4, 5]])).logits


def which(model):
    return next((name for name, wanted in policies.items() if torch.allclose(logits(model), wanted, atol=1e-5)), "neither")


def reference(trainer):
    if trainer.ref_model is not None:
        return which(trainer.ref_model)
    with use_adapter(trainer.model, "ref" if "ref" in trainer.model.peft_config else None):  # as TRL does
        return which(trainer.model)


def show(name, model, trainer_class, config_class, lora=None):
    args = config_class(str(folder / "out"), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", max_steps=2,
                        learning_rate=1e-2)
    set_seed(0)
    try:
        trainer = trainer_class(model, args=args, train_dataset=rows[trainer_class], processing_class=tokenizer, peft_config=lora)
    except ValueError:
        print(f"{name}: refused")
        return
    begins = which(trainer.model)
    compared = f", reference {reference(trainer)}" if trainer_class is DPOTrainer else ""
    before = [weights.clone() for weights in trainer.model.parameters()]
    trainer.train()
    learns = any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters()))
    print(f"{name}: begins at {begins}{compared}, {'learns' if learns else 'learns nothing'}")


set_seed(0)
LlamaForCausalLM(LlamaConfig(**size)).save_pretrained(folder / "base")
base = AutoModelForCausalLM.from_pretrained(folder / "base")
policies = {"base": logits(base)}
first = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False))
policies["adapter"] = logits(first)  # random, in the place of trained
first.save_pretrained(folder / "adapter")
plain, peft = AutoModelForCausalLM.from_pretrained, AutoPeftModelForCausalLM.from_pretrained
print("from_pretrained alone:", which(plain(folder / "adapter")))
show("SFT with peft_config", plain(folder / "adapter"), SFTTrainer, SFTConfig, LoraConfig(r=4, target_modules="all-linear"))
show("DPO with peft_config", plain(folder / "adapter"), DPOTrainer, DPOConfig, LoraConfig(r=4, target_modules="all-linear"))
show("DPO without", plain(folder / "adapter"), DPOTrainer, DPOConfig)
show("DPO with peft_config, by peft's class", peft(folder / "adapter"), DPOTrainer, DPOConfig, LoraConfig(r=4, target_modules="all-linear"))
show("DPO without, by peft's class", peft(folder / "adapter", is_trainable=True), DPOTrainer, DPOConfig)
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder" 2>"$folder/errors" | grep -E "^(from_pretrained|SFT|DPO)" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
from_pretrained alone: adapter
SFT with peft_config: begins at base, learns
DPO with peft_config: begins at base, reference base, learns
DPO without: begins at adapter, reference base, learns nothing
DPO with peft_config, by peft's class: refused
DPO without, by peft's class: begins at adapter, reference adapter, learns
SEEN
echo "as described"
