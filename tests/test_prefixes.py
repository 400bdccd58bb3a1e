"""Shared prefixes: what is computed once is what TRL computes again and again, in rollouts and in updates."""

from __future__ import annotations

import logging
import random
import threading
import time

import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from benchmarks.memory import in_4bit
from fate_trl.errors import RecipeError
from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.recipe.loading import make_recipe
from fate_trl.suites.episodes import environment_factories
from fate_trl.train.batches import whole_groups
from fate_trl.train.build import build
from fate_trl.train.config import PFPOConfig
from fate_trl.train.prefix import support, updates
from fate_trl.train.prefix.cache import Prefix, Prefixes, levels, shared
from fate_trl.train.prefix.rollouts import Rollouts
from fate_trl.train.prefix.sharing import share_training
from fate_trl.train.prefix.updates import share_updates
from fate_trl.train.rows import request_dataset
from fate_trl.train.trainer import PFPOTrainer

SIZE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "initializer_range": 0.3,
}
ARCHITECTURES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config, {}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {"head_dim": 8}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"head_dim": 8, "layer_types": ["full_attention"] * 2}),
}
WINDOWED = {
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"head_dim": 8, "sliding_window": 8}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 8}),
    "lfm2": (Lfm2ForCausalLM, Lfm2Config, {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
}


def model_of(made, **more):
    cls, config, own = made
    torch.manual_seed(0)
    return cls(config(**{**SIZE, **own, **more})).eval()


def greedy(**more):
    settings = {
        "max_new_tokens": 24,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": [1],
        "disable_compile": True,
    }
    return GenerationConfig(**{**settings, **more})


def prompts_of(seed, groups=5):
    """Groups of one to three equal prompts, some of them with a head in common, some of a single token."""
    rng = random.Random(seed)
    head = [rng.randrange(2, 60) for _ in range(30)]
    out = []
    for number in range(groups):
        own = [rng.randrange(2, 60) for _ in range(rng.choice((1, 4, 25)))]
        out += [head * (number % 3 > 0) + own] * rng.randrange(1, 4)
    return out


def generated(model, prompts, config):
    """What `generate` says to left-padded prompts, up to its first end."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, longest:].tolist()
    return [row[: row.index(1) + 1] if 1 in row else row for row in out]


def said(rows):
    return [row.ids[len(row.prompt) :] for row in rows]


# ------------------------------------------------------------------------------------------------ rollouts


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("cache_gb", [1.0, 2e-4, 1e-9], ids=["all rows", "some rows", "one row"])
def test_greedy_rollouts_say_what_generate_says(name, cache_gb):
    model = model_of(ARCHITECTURES[name]).double()  # a tie must not be decided by rounding
    assert support.of_config(model.config) == support.of_trial(model) == ""
    prompts = prompts_of(name)
    rollouts = Rollouts(model, greedy(), [1], cache_gb)
    assert said(rollouts.run(prompts, 0)) == generated(model, prompts, greedy())
    assert rollouts.spent.tokens["asked"] == sum(map(len, prompts))
    assert rollouts.spent.tokens["read"] <= rollouts.spent.tokens["asked"]


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_and_recurrent_layers_are_refused(name):
    assert "layers without a full cache" in support.of_config(model_of(WINDOWED[name]).config)


def test_a_trial_finds_positions_that_count_from_the_padding():
    config = GPT2Config(vocab_size=60, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    model = GPT2LMHeadModel(config).eval()
    assert support.of_config(config) == ""
    assert "answers otherwise" in support.of_trial(model)


def test_each_prefix_is_read_once_and_none_outlives_the_weights():
    model = model_of(ARCHITECTURES["llama"])
    head = list(range(2, 42))
    prompts = [[*head, 50], [*head, 50], [*head, 51, 52]]
    rollouts = Rollouts(model, greedy(max_new_tokens=1), [1], 1.0)
    rollouts.run(prompts, 0, weights="before")
    assert rollouts.spent.tokens["read"] == len(head) + 1 + 2
    rollouts.run(prompts, 0, weights="before")
    assert rollouts.spent.tokens["read"] == len(head) + 1 + 2, "all of it was held"
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    assert said(rollouts.run(prompts, 0, weights="after")) == generated(model, prompts, greedy(max_new_tokens=1))
    assert rollouts.spent.tokens["read"] == 2 * (len(head) + 1 + 2)


def test_prefixes_go_by_how_long_ago_they_were_used():
    held = Prefixes(limit=3 * 400)
    states = [(torch.zeros(1, 5, 5), torch.zeros(1, 5, 10))]  # 300 bytes, and 100 of logits
    for first in (1, 2, 3):
        held.add(Prefix((first, 9), states, torch.zeros(25)))
    assert held.longest((1, 9))[1] == 2
    held.add(Prefix((4, 9), states, torch.zeros(25)))
    held.shrink()
    assert [held.longest((first, 9))[1] for first in (1, 2, 3, 4)] == [2, 0, 2, 2]


@pytest.mark.parametrize("seed", range(20))
def test_levels_read_every_prompt_behind_what_it_shares(seed):
    rng = random.Random(seed)
    stems = [tuple(rng.randrange(3) for _ in range(rng.randrange(1, 60))) for _ in range(4)]
    prompts = {stem + tuple(rng.randrange(3) for _ in range(rng.randrange(8))) for stem in stems for _ in range(4)}
    read = [ids for level in levels(list(prompts)) for ids in level]
    assert prompts <= set(read)
    assert len(read) == len(set(read))
    assert shared((1, 2, 3), (1, 2, 4)) == 2
    assert shared((1, 2), (1, 2, 4)) == 2
    assert shared((1,), (2,)) == 0


SAMPLING = [
    {},
    {"temperature": 0.5},
    {"top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9},
    {"repetition_penalty": 1.8},
]


@pytest.mark.parametrize("settings", SAMPLING, ids=str)
def test_first_tokens_are_distributed_as_those_of_generate(settings):
    """Chi-square of 2,000 draws against the distribution that transformers' own processors leave; 99.9 % quantile."""
    model = model_of(ARCHITECTURES["llama"], initializer_range=0.1)
    config = greedy(max_new_tokens=1, **{"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings})
    prompt = [5, 6, 7, 5]
    draws = 2000
    rows = Rollouts(model, config, [1], 1.0).run([prompt] * draws, seed=1)
    found = torch.bincount(torch.tensor([row.ids[-1] for row in rows]), minlength=60).double()
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor([prompt]), generation_config=config, output_scores=True, return_dict_in_generate=True
        )
    expected = out.scores[0][0].double().softmax(0) * draws
    assert found[expected == 0].sum() == 0
    common = expected >= 5
    pairs = [(found[common], expected[common])]
    if expected[~common].sum() >= 5:
        pairs.append((found[~common].sum()[None], expected[~common].sum()[None]))
    statistic = sum(((f - e) ** 2 / e).sum() for f, e in pairs)
    degrees = sum(len(f) for f, _ in pairs) - 1
    quantile = degrees * (1 - 2 / (9 * degrees) + 3.09 * (2 / (9 * degrees)) ** 0.5) ** 3  # Wilson and Hilferty
    assert statistic < quantile


def test_what_a_row_samples_depends_on_neither_slots_nor_neighbours():
    model = model_of(ARCHITECTURES["qwen3"]).double()
    prompts = prompts_of(3)
    config = greedy(do_sample=True, temperature=1.0, top_k=0)
    alike = [said(Rollouts(model, config, [1], gb).run(prompts, seed=7)) for gb in (1.0, 2e-4, 1e-9)]
    assert alike[0] == alike[1] == alike[2]
    assert alike[0] != said(Rollouts(model, config, [1], 1.0).run(prompts, seed=8))
    assert said(Rollouts(model, config, [1], 1.0).run(prompts[:4], seed=7)) == alike[0][:4]
    assert len({tuple(ids) for ids in said(Rollouts(model, config, [1], 1.0).run([prompts[0]] * 8, seed=7))}) > 1


# ------------------------------------------------------------------------------------------------ episodes


def make(folder, suite=None, **changes):
    suite = suite or tiny.TillSuite()
    tasks = list(suite.tasks("train", 0))
    tokenizer = tiny.make_tokenizer()
    changes = {"max_completion_length": 48, "learning_rate": 1e-3, **changes}
    trainer = PFPOTrainer(
        tiny.acting_model(tokenizer),
        ["security", "utility", "over_refusal", "trajectory_control"],
        tiny.config(PFPOConfig, folder, **changes),
        request_dataset(tiny.requests_for(tasks, "pfpo")),
        processing_class=tokenizer,
        environment_factory=environment_factories({"till": suite}, tasks),
    )
    return trainer, tasks


@pytest.mark.parametrize("limits", [{}, {"max_completion_length": 20}, {"max_tool_calling_iterations": 1}], ids=str)
def test_episodes_are_those_of_trls_tool_loop(tmp_path, limits):
    plain, tasks = make(tmp_path, generation_kwargs={"do_sample": False}, **limits)
    ours, _ = make(tmp_path, generation_kwargs={"do_sample": False}, share_prefixes=True, **limits)
    requests = tiny.requests_for(tasks * 2)
    made = ours.rollout(requests)
    assert made == plain.rollout(requests)
    assert any(trajectory.calls for trajectory in made)
    assert ours.sharing.spent.tokens["read"] < ours.sharing.spent.tokens["asked"]


class Slow(tiny.TillSuite):
    """Tools take their time, another one at each call."""

    def __init__(self, seed):
        super().__init__()
        self.waits = random.Random(seed)
        self.running = self.most = 0
        self.lock = threading.Lock()

    def open(self, task):
        suite, till = self, super().open(task)
        execute = till.execute

        def slowly(name, arguments):
            with suite.lock:
                suite.running += 1
                suite.most = max(suite.most, suite.running)
                pause = suite.waits.uniform(0, 0.03)
            time.sleep(pause)
            with suite.lock:
                suite.running -= 1
            return execute(name, arguments)

        till.execute = slowly
        return till


def test_a_seed_decides_the_trajectories_however_long_tools_take(tmp_path):
    found, most = [], 0
    for waits in range(3):
        suite = Slow(waits)
        trainer, tasks = make(tmp_path, suite, share_prefixes=True)
        torch.manual_seed(5)
        found.append(trainer.rollout(tiny.requests_for(tasks * 4)))
        most = max(most, suite.most)
    assert found[0] == found[1] == found[2]
    assert most > 1, "tools of several rows run at a time"


def test_training_counts_and_logs_as_before(tmp_path):
    trainer, _ = make(tmp_path, share_prefixes=True, max_steps=2, num_iterations=2, steps_per_generation=2)
    before = tiny.state(trainer.model)
    trainer.train()
    assert any((before[name] != value).any() for name, value in tiny.state(trainer.model).items())
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"entropy", "tools/call_frequency", "objective/security/attacked", "tokens/trained"} <= logged


@pytest.mark.parametrize("name", WINDOWED)
def test_models_that_cannot_share_train_trls_way_and_say_why(tmp_path, caplog, name, monkeypatch):
    monkeypatch.setattr(support, "_said", set())
    tokenizer = tiny.make_tokenizer()
    model = model_of(WINDOWED[name], vocab_size=len(tokenizer), initializer_range=0.02)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "pay alice"}]}] * 4)
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            trainer = PFPOTrainer(
                model,
                lambda completion_ids, **_: [float(len(ids)) for ids in completion_ids],
                tiny.config(PFPOConfig, tmp_path, max_steps=1, share_prefixes=True, scale_rewards="group"),
                rows,
                processing_class=tokenizer,
            )
    assert trainer.sharing is None
    trainer.train()
    (line,) = [record.message for record in caplog.records if "prefixes are not shared" in record.message]
    assert "layers without a full cache" in line


@pytest.mark.parametrize("wrong", [{"prefix_cache_gb": 0}, {"pack_tokens": 0}], ids=str)
def test_numbers_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(RecipeError, match="must be above 0"):
        tiny.config(PFPOConfig, tmp_path, **wrong)


def test_generation_settings_that_only_generate_knows_leave_rollouts_to_it(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(support, "_said", set())
    trainer, tasks = make(tmp_path, share_prefixes=True, generation_kwargs={"num_beams": 2})
    assert not trainer.sharing.generates
    assert "num_beams" in caplog.text
    assert len(trainer.rollout(tiny.requests_for(tasks))) == 4


# ------------------------------------------------------------------------------------------------ updates


def ragged(rng, groups, completions):
    """Left-padded prompts, right-padded completions, with labels as GRPO has them, and some tokens left out."""
    rows = []
    head = [rng.randrange(2, 60) for _ in range(rng.randrange(20))]
    for _ in range(groups):
        prompt = head + [rng.randrange(2, 60) for _ in range(rng.randrange(1, 30))]
        rows += [(prompt, [rng.randrange(2, 5) for _ in range(rng.randrange(1, 20))]) for _ in range(completions)]
    rows += rows[:1]  # two rows that are equal
    p, c = (max(len(row[i]) for row in rows) for i in (0, 1))
    ids = torch.tensor([[0] * (p - len(a)) + a + b + [0] * (c - len(b)) for a, b in rows])
    mask = torch.tensor([[0] * (p - len(a)) + [1] * len(a + b) + [0] * (c - len(b)) for a, b in rows])
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :p] = -100
    labels[torch.rand(labels.shape) < 0.2] = -100  # tool results
    return ids, mask, labels


def answers(model, ids, mask, labels, weights):
    """The fused head's answer, and the gradients of a weighted sum of it."""
    out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    ((out.log_probs * weights).sum() + 0.1 * out.entropy.sum()).backward()
    return out, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("seed", range(len(ARCHITECTURES)))
@pytest.mark.parametrize("budget", [4096, 50], ids=["one call", "several calls"])
@pytest.mark.parametrize("fused", [False, True], ids=["own head", "fused head"])
def test_packed_updates_equal_plain_ones(seed, budget, fused, monkeypatch):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    given = ragged(rng, groups=rng.randrange(1, 4), completions=rng.randrange(1, 5))
    weights = torch.randn(given[0].shape)[:, 1:]
    name = list(ARCHITECTURES)[seed]
    lora, checkpointing = seed % 2 == 0, seed % 3 == 0
    found = []
    for packed in (False, True):
        model = model_of(ARCHITECTURES[name], initializer_range=0.1)
        add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy", "is_top1"))
        if packed:
            share_updates(model, temperature=0.7, budget=budget, entropy_gradient=True)
            if fused:
                monkeypatch.setattr(updates, "_head", lambda *_: updates._fused)
                share_updates(model, budget=budget)
        whole = model
        if lora:
            torch.manual_seed(0)
            whole = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        if checkpointing:
            whole.gradient_checkpointing_enable({"use_reentrant": False})
            whole.enable_input_require_grads()
        whole.train()
        found.append(answers(whole, *given, weights))
    (plain, expected), (ours, gradients) = found
    torch.testing.assert_close(ours.log_probs, plain.log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.entropy, plain.entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.loss, plain.loss, rtol=1e-5, atol=1e-6)
    assert (ours.is_top1 == plain.is_top1)[given[2][:, 1:] != -100].float().mean() > 0.99  # but for ties
    assert torch.equal(ours.label_mask, plain.label_mask)
    assert (gradients - expected).norm() < 1e-5 * expected.norm()


def test_a_trial_leaves_gradients_of_4_bit_weights():
    pytest.importorskip("bitsandbytes")
    model = model_of(ARCHITECTURES["llama"], hidden_size=64)
    in_4bit(model, torch.float32, "cpu")
    model.train()
    embedded = model.get_input_embeddings().weight.requires_grad_()
    found = []
    for _ in range(2):
        embedded.grad = None
        model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
        found.append(embedded.grad)
        assert support.of_trial(model) == ""  # in eval mode
    torch.testing.assert_close(*found)


def test_a_group_costs_its_prompt_once():
    prompt, rng = list(range(2, 42)), random.Random(0)
    rows = [prompt + [rng.randrange(2, 60) for _ in range(6)] for _ in range(8)]
    wanted = [range(40, 46)] * 8
    packs = updates.packs_of(rows, [list(w) for w in wanted], hidden=32, budget=4096)
    assert len(packs) == 1
    assert len(packs[0]) <= 40 + 8 * 6 + 8, "and a copy of its last token for each further first one"


def test_a_batch_without_labels_is_left_to_trl():
    model = model_of(ARCHITECTURES["llama"])
    add_fused_lm_head(model)
    share_updates(model)
    ids = torch.tensor([[3, 4, 5]])
    out = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.full_like(ids, -100), fused_lm_head=True
    )
    out.log_probs.sum().backward()
    assert model(input_ids=ids).logits.shape == (1, 3, 60), "without the head it is the model's own forward"


def test_groups_stay_whole_through_trls_shuffle():
    rows = torch.randperm(12)
    batch = {"row": rows, "value": rows.double()[:, None], "num_items_in_batch": torch.tensor(5)}
    parts = [{k: v[i : i + 4] if v.ndim else v for k, v in batch.items()} for i in (0, 4, 8)]
    whole = whole_groups(parts)
    assert [part["row"].tolist() for part in whole] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert all(torch.equal(part["value"][:, 0], part["row"].double()) for part in whole)
    assert [int(part["num_items_in_batch"]) for part in whole] == [5, 5, 5]


def test_sft_on_shared_rows_learns_the_same(tmp_path):
    rng = random.Random(1)
    head = [rng.randrange(2, 40) for _ in range(20)]
    rows = [head[: 10 + 5 * (i % 2)] + [rng.randrange(2, 40) for _ in range(5 + i % 4)] for i in range(16)]
    examples = [{"input_ids": row, "labels": [-100] * 10 + row[10:]} for row in rows]
    found = []
    for share in (False, True):
        tokenizer = tiny.make_tokenizer()
        config = {"per_device_train_batch_size": 8, "max_steps": 3, "learning_rate": 1e-3, "max_length": None}
        common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
        trainer = SFTTrainer(
            model=tiny.make_model(tokenizer),
            args=SFTConfig(**config, **common, save_strategy="no", logging_steps=1, gradient_checkpointing=False),
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
        )
        if share:
            share_training(trainer)
        trainer.train()
        found.append(trainer)
    logs = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in found]
    for key in ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens"):
        plain, ours = ([entry[key] for entry in log] for log in logs)
        assert ours == pytest.approx(plain, rel=1e-4), key


# ------------------------------------------------------------------------------------------------ where time goes


def test_a_stage_says_where_its_time_went(tmp_path):
    recipe = make_recipe(
        {
            "suites": [{"name": "workbench", "args": {"train": 8, "validation": 2, "test": 2}}],
            "share_prefixes": True,
            "rounds": 1,
            "rollout": {"chunk": 8, "max_completion_length": 32},
            "repair": {"k": 2},
            "sft": None,
            "pfpo": {"max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4},
            "evaluation": {"validation": 0},
        }
    )
    build(recipe, RunDirectory(tmp_path))()
    stages = {record["stage"]: record for record in RunReader.open(str(tmp_path)).stages(1).values()}
    collect, pfpo = stages["collect"], stages["pfpo"]
    assert {"reading", "decoding", "between", "verifying"} <= set(collect["time"])
    assert collect["read_tokens"] > 0
    assert collect["spared_tokens"] > 0, "later turns read their results only"
    assert {"reading", "decoding", "training", "verifying"} <= set(pfpo["time"])
    for stage in (collect, pfpo, stages["eval-test"]):
        assert sum(stage["time"].values()) == pytest.approx(stage["seconds"])
        assert min(stage["time"].values()) >= 0, "no second is counted twice"


@pytest.mark.parametrize("share", [True, False], ids=["shared", "as TRL does it"])
def test_waiting_for_tools_is_told_from_decoding(tmp_path, share):
    suite = Slow(0)
    trainer, tasks = make(tmp_path, suite, share_prefixes=share, generation_kwargs={"do_sample": False})
    began = time.perf_counter()
    made = trainer.rollout(tiny.requests_for(tasks))
    took = time.perf_counter() - began
    assert any(trajectory.calls for trajectory in made)
    seconds = trainer.spent.seconds
    assert 0 < seconds["tools"] <= sum(seconds.values()) <= took
    assert {"reading", "decoding", "between"} <= set(seconds) if share else seconds["generating"] > 0
