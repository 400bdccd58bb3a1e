"""`transformers serve` on loopback, with a model of two layers that was taught by heart what to write."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import shop
import torch

from benchmarks import families
from fate_trl.serve.endpoint import tool_schema

CALL = '<tool_call>\n{"name": "pay", "arguments": {"to": "alice"}}\n</tool_call>'
WRITES = {
    0: CALL,
    1: '<tool_call>\n{"name": "pay", "arguments": {"to": \n</tool_call>',
    2: '<tool_call>\n{"name": "pay", "arguments": {"to": "alice"}}',
    3: '<tool_call>\n{"name": "pay"}\n</tool_call>',
    4: '<tool_call>\n{"name": "pay", "arguments": "order 3"}\n</tool_call>',
    5: '<tool_call>\n{"arguments": {"to": "alice"}}\n</tool_call>',
    6: "Done.",
    7: '{"name": "pay", "arguments": {"to": "alice"}}',
}
"""What it writes, by the number of the shop's task; "Done." after a result, "Hello!" when it is greeted."""


REFUSED = json.dumps({"error": "pay: the arguments are no JSON object: 'order 3'"})


def memoriser(folder, steps=500):
    """Save a model that writes `WRITES`; returns the last loss."""
    from trl.chat_template_utils import add_response_schema

    torch.set_num_threads(1)
    tokenizer = families.tokenizer("qwen2_5")
    add_response_schema(tokenizer)
    rows = list(_rows(tokenizer))
    longest = max(len(prompt) + len(said) for prompt, said in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for i, (prompt, said) in enumerate(rows):
        ids[i, : len(prompt) + len(said)] = torch.tensor(prompt + said)
        labels[i, len(prompt) : len(prompt) + len(said)] = torch.tensor(said)
    model = families.model(tokenizer, hidden_size=64, intermediate_size=128, head_dim=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.003:
            break
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loss.item()


def _rows(tokenizer):
    """(prompt, what it writes), as token ids."""
    tools = [tool_schema(tool) for _, tool in sorted(shop.Suite().tools().items())]

    def row(messages, text, tools=tools):
        given = {"tools": tools, "add_generation_prompt": True, "tokenize": True, "return_dict": False}
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        return tokenizer.apply_chat_template(messages, **given), [*tokenizer.encode(text), end]

    for number, text in WRITES.items():
        yield row(shop.task(number).messages, text)
    for number, arguments, result in ((0, {"to": "alice"}, "paid"), (4, {}, REFUSED)):
        call = {"type": "function", "function": {"name": "pay", "arguments": arguments}}
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        asked = shop.task(number).messages
        yield row([*asked, called, {"role": "tool", "name": "pay", "content": result}], "Done.")
    yield row([{"role": "user", "content": "Hello."}], "Hello!", None)


@contextlib.contextmanager
def serving(folder):
    """The URL of a server of that model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    command += ["--port", str(port), "--host", "127.0.0.1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **quiet) as process:
        try:
            for _ in range(240):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                    break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
