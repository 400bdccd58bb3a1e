#!/usr/bin/env bash
# trl 1.16.0 with datasets 5.2.0 and transformers 5.23.0: a tool call with a date, read from a JSON Lines file, teaches "<datetime>".
#
# One would guess that `load_dataset("json")` gives an SFTTrainer the calls that stand in the file. Where all rows call with the same argument names,
# the arguments become a typed record: a text that looks like a date is read as a timestamp, and 2 becomes 2.0 if another row says 2.5. The chat
# template then sees no datetime: transformers hands it plain JSON, and in the place of anything else the name of its type. Nothing warns.
# `Dataset.from_list` with the same rows keeps the date; numbers it changes in the same way.
#
# Seen: what the file says, and the call in the tokens that SFTTrainer trains on, with Qwen3's template, for the two ways to load the rows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0 jinja2==3.1.6 trl==1.16.0
cat > "$folder/show.py" <<'PY'
import json
import sys
from pathlib import Path

import trl
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

folder = Path(sys.argv[1])
signs = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]  # one token for each byte
letters = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(signs)}, merges=[]))
letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>")
tokenizer.chat_template = Path(trl.__file__).with_name("chat_templates").joinpath("qwen3.jinja").read_text()
size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(signs), **size))


def row(**arguments):
    call = {"type": "function", "function": {"name": "pay", "arguments": arguments}}
    asked, answered = {"role": "user", "content": "Pay."}, {"role": "assistant", "content": "", "tool_calls": [call]}
    return {"prompt": [asked], "completion": [answered]}


rows = [row(day="2024-05-20", amount=2), row(day="2024-05-21", amount=2.5)]
file = folder / "rows.jsonl"
file.write_text("\n".join(map(json.dumps, rows)))
print("written:", json.dumps(rows[0]["completion"][0]["tool_calls"][0]["function"]))
for name, data in {
    "load_dataset": load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache")),
    "from_list": Dataset.from_list(rows),
}.items():
    args = SFTConfig(str(folder / "out"), use_cpu=True, bf16=False, report_to="none")
    trainer = SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
    text = tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    print(name + ":", next(line for line in text.splitlines() if line.startswith('{"name"')))
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder" 2>/dev/null | grep -E "^(written|load_dataset|from_list): " | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
written: {"name": "pay", "arguments": {"day": "2024-05-20", "amount": 2}}
load_dataset: {"name": "pay", "arguments": {"day": "<datetime>", "amount": 2.0}}
from_list: {"name": "pay", "arguments": {"day": "2024-05-20", "amount": 2.0}}
SEEN
echo "as described"
