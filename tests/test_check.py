"""`fate-trl check`: what it finds wrong, what it says then, and how near its count of memory is to real tensors."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from benchmarks import families
from fate_trl.cli import app
from fate_trl.errors import RecipeError
from fate_trl.preflight import findings, hub, memory
from fate_trl.preflight.prefixes import prefix_findings
from fate_trl.preflight.subject import Subject
from fate_trl.recipe.loading import find_recipe, make_recipe, override, read_values
from fate_trl.train import learner, models


def recipe_of(*sets):
    data = read_values(find_recipe("quickstart"))
    for text in ("suites=[{name: workbench, args: {train: 24, validation: 3, test: 6}}]", *sets):
        override(data, text)
    return make_recipe(data)


def found(*sets, **kwargs):
    return {finding.check: finding for finding in findings.findings(recipe_of(*sets), **kwargs)}


@pytest.fixture(scope="module")
def fine():
    return found("pfpo.gradient_accumulation_steps=1", "pfpo.per_device_train_batch_size=16")


def test_a_recipe_that_works_has_no_error(fine):
    assert {finding.verdict for finding in fine.values()} == {"ok"}
    assert {"chat template", "tool calls", "thinking", "prompts", "oracle traces", "repair prompts"} <= set(fine)
    assert {"batches", "combinations", "time", "licence: workbench", "licence: model"} <= set(fine)
    assert [name for name in fine if name.startswith("memory")] == [
        "memory: collect, repair, evaluate",
        "memory: sft",
        "memory: pfpo: generate",
        "memory: pfpo: train",
    ]
    assert "not measured" in fine["time"].reason
    assert fine["repair prompts"].data["max"] > fine["prompts"].data["max"], "they quote a trajectory"


def test_completions_that_are_too_short_are_told_with_the_length_that_does():
    short = found("rollout.max_completion_length=16", "pfpo=null", "sft=null")["oracle traces"]
    assert short.verdict == "error"
    assert short.data["share_cut"] > 0.5
    length = int(short.advice.split("rollout.max_completion_length to ")[1].split()[0])
    assert (
        found(f"rollout.max_completion_length={length}", "pfpo=null", "sft=null")["oracle traces"].data["share_cut"]
        < 0.1
    )


def test_a_context_that_is_too_short():
    long = found("rollout.max_completion_length=505", "pfpo=null", "sft=null")["repair prompts"]
    assert long.verdict == "warning"
    assert "exceed the context of 512" in long.reason


def test_calls_that_need_more_rounds_than_allowed():
    few = found("rollout.max_tool_calling_iterations=1", "pfpo=null", "sft=null")["oracle traces"]
    assert "rollout.max_tool_calling_iterations to" in few.advice


@pytest.mark.parametrize(
    ("sets", "verdict", "words"),
    [
        (("pfpo.per_device_train_batch_size=64", "rollout.tasks=7"), "error", "7 prompts are fewer than the 8 groups"),
        (("pfpo.per_device_train_batch_size=8",), "warning", "1 groups of 8"),
        (("pfpo.per_device_train_batch_size=16", "pfpo.max_steps=-1"), "ok", "12 steps an epoch, 36 in all"),
    ],
)
def test_batches(sets, verdict, words):
    batches = list(findings._batches(recipe_of(*sets), 24))[-1]
    assert batches.verdict == verdict
    assert words in batches.reason


def test_steps_are_those_that_trls_sampler_gives():
    from trl.trainer.utils import RepeatSampler

    for prompts, groups, size, rows, accumulation in ((24, 2, 8, 16, 1), (25, 4, 4, 4, 4), (7, 2, 8, 8, 2)):
        drawn = RepeatSampler(range(prompts), mini_repeat_count=size, batch_size=groups, repeat_count=1)
        sets = (
            f"rollout.tasks={prompts}",
            f"pfpo.num_generations={size}",
            "pfpo.max_steps=-1",
            "pfpo.num_train_epochs=1",
        )
        sets += (f"pfpo.per_device_train_batch_size={rows}", f"pfpo.gradient_accumulation_steps={accumulation}")
        assert list(findings._batches(recipe_of(*sets), 99))[-1].data["steps"] == len(list(drawn)) // (
            rows * accumulation
        )


def test_combinations():
    names = ("bitsandbytes", "lm_head", "continuous batching", "second copy", "deprecated")
    recipe = recipe_of(
        "model.lora={target_modules: [q_proj, lm_head]}",
        "sft.optim=paged_adamw_8bit",
        "rollout.use_transformers_continuous_batching=true",
        "sft.use_liger_kernel=true",
    )
    said = " ".join(finding.reason for finding in findings._combinations(recipe))
    missing = {"second copy"} | ({"bitsandbytes"} if findings.importlib.util.find_spec("bitsandbytes") else set())
    assert [name for name in names if name not in said] == [name for name in names if name in missing]
    (full,) = findings._combinations(recipe_of("pfpo.beta=0.1"))
    assert "second copy of the model" in full.reason


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch):
    monkeypatch.setattr(hub, "_answers", lambda host, port: False)
    monkeypatch.setattr(learner, "load_model", lambda model: pytest.fail("it was loaded"))
    with pytest.raises(RecipeError, match=r"nobody/nothing is not in the hub's cache here, and .* cannot be reached"):
        findings._tokenizer_and_config(recipe_of("model.path=nobody/nothing"))


# ------------------------------------------------------------------------------------------------ memory


def test_too_little_memory_is_an_error_with_its_parts():
    small = found("sft=null", device_memory=0.9)
    assert small["memory: pfpo: train"].verdict == "error"
    assert "CUDA context 1" in small["memory: pfpo: train"].reason
    assert small["memory: collect, repair, evaluate"].verdict == "error"
    chunk = ("rollout.chunk=4096", "pfpo=null", "sft=null")
    more = found(*chunk, "share_prefixes=false", device_memory=4)["memory: collect, repair, evaluate"]
    assert more.verdict == "warning", "a rollout goes on with fewer rows"
    rows = int(more.advice.removeprefix("Set rollout.chunk: ").rstrip("."))
    plain = (f"rollout.chunk={rows}", "pfpo=null", "sft=null", "share_prefixes=false")
    fitted = found(*plain, device_memory=4)["memory: collect, repair, evaluate"]
    assert fitted.verdict == "ok"
    assert fitted.data["bytes"] == pytest.approx(0.9 * 4 * 2**30, rel=0.02), "and no fewer than need be"
    shared = found(*chunk, "rollout.prefix_cache_gb=0.5", device_memory=4)["memory: collect, repair, evaluate"]
    assert shared.verdict == "ok", "rows that share prefixes take turns within their bound"


def test_whether_prefixes_are_shared_is_told():
    sets = ("pfpo=null", "sft=null")
    told = found(*sets)["prefixes"]
    assert (told.verdict, "shared in rollouts and training" in told.reason) == ("ok", True)
    assert "prefixes" not in found(*sets, "share_prefixes=false")
    continuous = found(*sets, "rollout.use_transformers_continuous_batching=true")["prefixes"]
    assert continuous.reason.startswith("shared in training;")
    config = AutoConfig.from_pretrained(models.model_folder(recipe_of().model))
    config.sliding_window = 16
    subject = Subject(recipe_of(), {}, {}, None, config)
    (windowed,) = prefix_findings(subject)
    assert windowed.verdict == "warning"
    assert "layers without a full cache" in windowed.reason


def test_packed_updates_need_less_than_plain_ones():
    def need(share):
        recipe = recipe_of(f"share_prefixes={share}", "pfpo.per_device_train_batch_size=32")
        config = AutoConfig.from_pretrained(models.model_folder(recipe.model))
        lengths = memory.Lengths(prompt=400, longest_prompt=400, completion=64)
        return {n.stage: n.total for n in memory.estimate(recipe, config, lengths, gpu=False, device_memory=None)}

    assert need("true")["pfpo: train"] < need("false")["pfpo: train"]


@pytest.mark.parametrize("model", [{}, {"lora": {"r": 4}}, {"lora": {"r": 8, "target_modules": ["q_proj"]}}])
def test_weights_are_counted_exactly(model):
    recipe = make_recipe({"suites": ["workbench"], "model": model})
    loaded, _ = models.load_model(recipe.model)
    config = AutoConfig.from_pretrained(models.model_folder(recipe.model))
    counted = memory._Counted(recipe, config, gpu=False)
    sizes = {trained: 0 for trained in (True, False)}
    for parameter in loaded.parameters():
        sizes[parameter.requires_grad] += parameter.nbytes
    assert sum(counted.held().values()) - memory.PROCESS == sum(sizes.values())
    assert sum(counted.trained) * counted.trained_bytes == sizes[True]


def test_four_bits_take_the_linear_layers_and_leave_the_head():
    recipe = make_recipe({"suites": ["workbench"], "model": {"load_in_4bit": True, "lora": {}, "dtype": "bfloat16"}})
    config = families.model(families.tokenizer("qwen3"), "qwen3").config
    model = AutoModelForCausalLM.from_config(config)
    linear = sum(
        m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"
    )
    rest = sum(p.numel() for p in model.parameters()) - linear
    assert memory._Counted(recipe, config, gpu=True).base == int(linear * memory.NF4_BYTES + rest * 2)


def test_what_is_alive_is_what_real_tensors_hold():
    layer = torch.nn.Linear(64, 64, bias=False)
    data = torch.randn(100, 64)
    with memory.alive(layer) as counted:
        hidden = layer(data).relu()
        assert counted.now == hidden.nbytes, "the product is gone, since relu keeps its own result"
        del hidden
        assert counted.now == 0
    assert counted.peak == 2 * 100 * 64 * 4


def test_checkpointing_and_fewer_rows_need_less():
    config = families.model(families.tokenizer("qwen3"), "qwen3", num_hidden_layers=3).config
    recipe = make_recipe({"suites": ["workbench"], "model": {"lora": {}}})
    counted = memory._Counted(recipe, config, gpu=False)
    plain, fewer, short, saved = (
        counted.training(trl, rows, length, length)["activations"]
        for trl, rows, length in (({}, 4, 128), ({}, 2, 128), ({}, 4, 64), ({"gradient_checkpointing": True}, 4, 128))
    )
    assert fewer == pytest.approx(plain / 2, rel=0.1)
    assert short < plain
    assert saved < plain / 2


# ------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("sets", "status"), [((), 0), (("rollout.max_completion_length=4",), 1), (("pfpo.num_generations=7",), 1)]
)
def test_the_exit_status_says_whether_there_is_an_error(sets, status):
    arguments = ["check", "quickstart", "--json", "--set", "suites=[{name: workbench, args: {train: 24}}]"]
    for text in (*sets, "rollout.tasks=24", "sft=null"):
        arguments += ["--set", text]
    done = CliRunner().invoke(app, arguments)
    said = json.loads(done.stdout)
    assert done.exit_code == status
    assert said["ok"] is (status == 0)
    assert any(finding["verdict"] == "error" for finding in said["findings"]) is (status == 1)


def test_what_a_recipe_says_is_escaped(monkeypatch):
    monkeypatch.setattr(findings, "findings", lambda *_: [findings.Finding("x", "error", "[red]\x1b[31m", "[bold]do")])
    done = CliRunner().invoke(app, ["check", "quickstart"])
    assert done.exit_code == 1
    assert "[red]" in done.stdout
    assert "\x1b[31m" not in done.stdout
    assert "1 error, 0 warning, 0 ok" in done.stdout


def test_measuring_times_a_batch_and_a_step():
    sets = (
        "rollout.tasks=8",
        "rollout.chunk=8",
        "rollout.max_completion_length=24",
        "pfpo.per_device_train_batch_size=8",
    )
    timed = findings._measured(recipe_of(*sets))
    assert set(timed.data["seconds"]) == {"trajectory", "SFT step", "PFPO step"}
    assert all(value > 0 for value in timed.data["seconds"].values())
