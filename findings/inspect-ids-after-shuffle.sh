#!/usr/bin/env bash
# inspect_ai 0.3.285: samples without ids are numbered after the shuffle, so the same id names another sample in another log.
#
# One would guess that a sample's id names the sample. Where a data set brings no ids, Inspect gives 1, 2, 3 … when the evaluation
# starts, and a shuffled data set is numbered in its shuffled order. Pairing two logs by (id, epoch) then compares different cases.
#
# Seen: two shuffles of the same ten samples; ids agree in number, and name different inputs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q inspect_ai==0.3.285
cat > "$folder/show.py" <<'PY'
import sys

import tiktoken


class Words:
    """In the place of an encoding that is downloaded: offline, counting tokens would fail."""

    def encode(self, text, **_):
        return text.split()


tiktoken.get_encoding = lambda name: Words()

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import match


def inputs(seed):
    data = MemoryDataset([Sample(input=f"question {i}", target="x") for i in range(10)])
    data.shuffle(seed)
    [log] = eval(Task(dataset=data, scorer=match()), model="mockllm/model", log_dir=sys.argv[1], display="none")
    return {sample.id: sample.input for sample in log.samples}


one, other = inputs(1), inputs(2)
print("the same ids:", one.keys() == other.keys(), "the same inputs behind them:", one == other)
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/logs" | tee "$folder/seen"
grep -qx "the same ids: True the same inputs behind them: False" "$folder/seen"
echo "as described"
