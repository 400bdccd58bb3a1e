#!/usr/bin/env bash
# trl 1.16.0 with transformers 5.23.0 and peft 0.21.2: GRPO draws its rollouts with LoRA's dropout on.
#
# One would guess that completions come from the policy as it is saved and evaluated, so with dropout off. Without vLLM, GRPOTrainer calls `generate`
# within the training step, and neither sets the model to eval mode: each forward of the rollout drops other inputs of the adapter. RLOOTrainer does
# the same. `disable_dropout` is False in both, and `trl grpo --use_peft` brings lora_dropout 0.05. Rewards are those of a noisier policy; the
# log-probabilities before the update and in it have other masks too, so the ratio is not 1 even where nothing has been learned.
# With `use_vllm` the rollouts have no dropout; evaluation, which is in eval mode, has none either.
#
# Seen: how many different completions eight rollouts of one prompt give with top_k=1, in training and in evaluation; one is to be expected. And
# whether tokens hit the clip range of 0.2 at a learning rate of 0, with two passes over a batch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0 peft==0.21.2 trl==1.16.0
cat > "$folder/show.py" <<'PY'
import sys

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig, GRPOTrainer

torch.set_num_threads(1)
vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(60))])}
words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
prompt = Dataset.from_list([{"prompt": "w1 w2 w3"}] * 8)


def show(name, **settings):
    dropout = settings.pop("lora_dropout")
    said = {"training": [], "evaluation": []}

    def reward(completions, **_):
        said["training" if trainer.model.training else "evaluation"].append(len(set(completions)))
        return [float(i) for i in range(len(completions))]

    set_seed(0)
    lora = LoraConfig(r=8, lora_alpha=32, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **size)), lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)  # in the place of training
    args = GRPOConfig(sys.argv[1], use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
                      top_k=1, learning_rate=0.0, num_generations=8, per_device_train_batch_size=8, per_device_eval_batch_size=8,
                      num_iterations=2, max_steps=2, max_completion_length=8, **settings)
    trainer = GRPOTrainer(model, reward, args=args, train_dataset=prompt, eval_dataset=prompt.take(1), processing_class=tokenizer)
    trainer.train()
    trainer.evaluate()
    clipped = max(entry.get("clip_ratio/region_mean", 0) for entry in trainer.state.log_history)
    kinds = {phase: "one" if max(counts) == 1 else "several" for phase, counts in said.items()}
    print(f"{name}: {kinds['training']} in training, {kinds['evaluation']} in evaluation; {'some' if clipped else 'no'} tokens clipped")


show("lora_dropout 0", lora_dropout=0.0)
show("lora_dropout 0.05", lora_dropout=0.05)
show("lora_dropout 0.05, disable_dropout", lora_dropout=0.05, disable_dropout=True)
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/out" 2>"$folder/errors" | grep "^lora_dropout" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
lora_dropout 0: one in training, one in evaluation; no tokens clipped
lora_dropout 0.05: several in training, one in evaluation; some tokens clipped
lora_dropout 0.05, disable_dropout: one in training, one in evaluation; no tokens clipped
SEEN
echo "as described"
