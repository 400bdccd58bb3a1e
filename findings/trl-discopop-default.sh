#!/usr/bin/env bash
# trl 1.16.0: DPO with loss_type="discopop" and its default temperature learns to prefer the rejected side.
#
# One would guess that each `loss_type` of DPOConfig moves the chosen side ahead, at its defaults. At a margin of 0, where every training starts,
# discopop's loss rises with the margin while `discopop_tau` is below about 0.1, and its default is 0.05. Nothing says so but the logged
# accuracy, which falls.
#
# Seen: after 40 steps on four pairs the margin is below 0 with discopop as it is, above 0 with discopop_tau=0.2, and with sigmoid.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0 trl==1.16.0
cat > "$folder/show.py" <<'PY'
import sys

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import DPOConfig, DPOTrainer

vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", "pay", "send", "done", "sent", "no", "never"])}
words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
size = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
pairs = [("pay", " done", " no"), ("send", " sent", " never"), ("pay", " done", " never"), ("send", " sent", " no")]
rows = Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), pair)) for pair in pairs])


def margin(**loss):
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**size))
    model.save_pretrained(sys.argv[1] + "/model")
    args = DPOConfig(sys.argv[1], use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, logging_steps=1, max_steps=40,
                     save_strategy="no", learning_rate=1e-3, gradient_checkpointing=False, **loss)
    trainer = DPOTrainer(sys.argv[1] + "/model", args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry][-1]


for name, loss in {
    "discopop": {"loss_type": ["discopop"]},
    "discopop, tau 0.2": {"loss_type": ["discopop"], "discopop_tau": 0.2},
    "sigmoid": {"loss_type": ["sigmoid"]},
}.items():
    print(name + ":", "ahead" if margin(**loss) > 0 else "behind")
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/out" 2>/dev/null | grep -E "^(discopop|sigmoid)" | tee "$folder/seen"
grep -qx "discopop: behind" "$folder/seen"
grep -qx "discopop, tau 0.2: ahead" "$folder/seen"
grep -qx "sigmoid: ahead" "$folder/seen"
echo "as described"
