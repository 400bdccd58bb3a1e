"""`fate-trl check`: what it finds wrong, what it says then, and how near its count of memory is to real tensors."""

import json

import pytest
import steps_that_die
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from benchmarks import families
from fate_trl.cli import app
from fate_trl.errors import RecipeError
from fate_trl.preflight import findings, hub, memory, stepping
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
        (("pfpo.per_device_train_batch_size=8",), "warning", "1 group of 8"),
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


def needs_of_pairs(*sets):
    recipe = recipe_of(*sets)
    config = AutoConfig.from_pretrained(models.model_folder(recipe.model))
    lengths = memory.Lengths(prompt=400, longest_prompt=900, completion=64)
    found = memory.estimate(recipe, config, lengths, gpu=False, device_memory=None)
    return next(need for need in found if need.stage == "preference")


def test_pairs_hold_a_reference_and_share_their_prompt():
    sets = ("preference={}", "preference.per_device_train_batch_size=8")
    plain, shared = (needs_of_pairs(*sets, f"share_prefixes={share}") for share in ("false", "true"))
    assert plain.parts["reference"] == plain.parts["base weights"] == shared.parts["reference"], "a copy of all weights"
    assert 0.4 < shared.parts["activations"] / plain.parts["activations"] < 0.65, "928 tokens of 1,856"
    assert shared.total < plain.total
    one = needs_of_pairs("preference={}", "preference.per_device_train_batch_size=1", "share_prefixes=true")
    assert one.total < shared.total
    adapter = needs_of_pairs("preference={}", "model.lora={}")
    assert adapter.parts["reference"] == adapter.parts["adapter"]
    short = needs_of_pairs(*sets, "preference.max_length=200", "share_prefixes=true")
    assert short.total < shared.total


SIDES = """
from fate_trl import Component, hookimpl
class Asks:
    def __init__(self, needs: list):
        self.needs = tuple(needs)
    def __call__(self, batch):
        return 0 * batch.chosen.logps_B_T.sum()
@hookimpl
def fate_trl_pair_losses():
    return [Component("asks", Asks, "asks for further sides of a pair")]
"""


@pytest.mark.parametrize("share", ["false", "true"])
def test_further_sides_of_a_pair_are_counted(tmp_path, share):
    """Each is held beside both sides until its backward, so the more a pair loss asks for, the more it takes."""
    (tmp_path / "asks.py").write_text(SIDES)

    def need(*facts, more=()):
        loss = json.dumps({"name": str(tmp_path / "asks.py"), "args": {"needs": facts}})
        return needs_of_pairs(
            f"preference={{loss: {loss}, per_device_train_batch_size: 2}}", f"share_prefixes={share}", *more
        )

    none, prompts, own, repair, all_of_them = (
        need(*facts) for facts in ((), ("prompts",), ("own",), ("repair_prompt",), ("own", "repair_prompt"))
    )
    assert "further sides" not in none.parts
    assert none.total == prompts.total, "counts of tokens are small"
    assert none.total < own.total < repair.total < all_of_them.total
    assert {name: part for name, part in own.parts.items() if name != "further sides"} == none.parts
    short = need("own", more=("preference.max_length=200",))
    assert short.parts["further sides"] < own.parts["further sides"]


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
        counted.plain(trl, rows, length, length).parts["activations"]
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


# ------------------------------------------------------------------------------------------------ a step


SMALL = ("model.threads=1", "rollout.max_completion_length=48", "sft.per_device_train_batch_size=3")
SMALL += ("pfpo.per_device_train_batch_size=4", "pfpo.num_generations=4", "preference={per_device_train_batch_size: 2}")


def test_each_training_stage_is_tried_at_its_full_length():
    tried = found(*SMALL, step=True)
    rows = {"sft": 3, "preference": 4, "pfpo": 4}
    assert [name for name in tried if name.startswith("step")] == [f"step: {stage}" for stage in rows]
    for stage, number in rows.items():
        finding = tried[f"step: {stage}"]
        assert finding.verdict == "ok", finding.reason
        assert (finding.data["rows"], finding.data["completion"]) == (number, 48)
        assert 0.5 < finding.data["peak"] / finding.data["estimate"] < 2
    assert tried["step: sft"].data["prompt"] == tried["repair prompts"].data["max"], "SFT learns repairs"
    assert tried["step: pfpo"].data["prompt"] == tried["prompts"].data["max"] < tried["step: sft"].data["prompt"]
    assert "memory: preference" in tried


def plan_of(*sets):
    return stepping.Plan(recipe_of(*sets), memory.Lengths(10, 20, 30), object(), room=2**30)


def needs():
    return {name: memory.Need(name, {"all": 2**29}) for name in stepping.STAGES.values()}


@pytest.mark.parametrize(
    ("how", "words", "advice"),
    [
        (steps_that_die.killed, "was killed, as the system does where memory runs out", "sft.per_device_train_batch"),
        (steps_that_die.left, "ended with status 3", ""),
    ],
)
def test_a_process_that_ends_in_a_step_is_told(monkeypatch, how, words, advice):
    monkeypatch.setattr(stepping, "take", how)
    plan = plan_of()
    object.__setattr__(plan, "request", "any")
    (finding,) = stepping.step_findings(plan, needs())
    assert (finding.check, finding.verdict) == ("step: sft", "error")
    assert words in finding.reason
    assert advice in finding.advice


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_out_of_memory_is_told_with_what_to_lower(error):
    wrapped = RecipeError("in training")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        told = stepping._told(plan_of(), "pfpo", stepping._failure(each), needs()["pfpo: train"])
        assert (told.verdict, told.reason) == ("error", "out of memory")
        assert "Set pfpo.per_device_train_batch_size: 1, or lower rollout.max_completion_length" in told.advice
    other = stepping._told(plan_of(), "pfpo", stepping._failure(ValueError("no such")), needs()["pfpo: train"])
    assert (other.verdict, other.reason, other.advice) == ("error", "ValueError: no such", "")


def test_a_peak_near_the_devices_end_is_a_warning():
    told = {"peak": 0.95 * 2**30, "gpu": False, "seconds": 1.0, "prompt": 1, "completion": 1}
    finding = stepping._told(plan_of(), "sft", told, needs()["sft"])
    assert finding.verdict == "warning"
    assert "1.90 times the estimate of 0.50" in finding.reason


def test_steps_are_of_whole_groups_and_as_few_rows_as_go_through_at_a_time():
    short = stepping.shortened(
        recipe_of("pfpo.per_device_train_batch_size=6", "pfpo.num_generations=4", "pfpo.gradient_accumulation_steps=4")
    )
    assert short.pfpo.trl["gradient_accumulation_steps"] == 2  # 12 rows are three groups of 4
    assert short.pfpo.trl["max_steps"] == 2


def test_a_step_on_a_gpu_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="leave --device-memory out"):
        found("sft=null", device_memory=24, step=True)


# ------------------------------------------------------------------------------------------------ a GRPOConfig


GRPO = "per_device_train_batch_size: 4\nnum_generations: 4\nmax_completion_length: 40\noutput_dir: out\n"


@pytest.fixture
def grpo(tmp_path):
    """Runs `check --grpo` on this text; returns (exit status, findings by name)."""

    def run(text, *options):
        (tmp_path / "grpo.yaml").write_text(text)
        done = CliRunner().invoke(app, ["check", "--grpo", str(tmp_path / "grpo.yaml"), "--json", *options])
        return done.exit_code, {found["check"]: found for found in json.loads(done.stdout)["findings"]}

    return run


def test_a_grpo_config_alone_is_enough_with_a_suite(grpo):
    status, found = grpo(GRPO, "--model", "embedded", "--suite", "workbench")
    assert status == 0
    assert found["tool calls"]["data"]["calls"] > 0
    assert found["chat template"]["verdict"] == "ok"
    assert found["prompts"]["data"]["max"] > 0
    assert "limit 40" in found["oracle traces"]["reason"]
    assert [name for name in found if name.startswith("memory")] == ["memory: generate", "memory: train"]
    assert not any("pfpo" in each["reason"] + each["advice"] for each in found.values())


def test_a_grpo_config_with_a_data_set_of_prompts(grpo, tmp_path):
    rows = [{"prompt": "Say hello.", "answer": 1}, {"prompt": [{"role": "user", "content": "Say it again."}]}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = f"model_name_or_path: embedded\ndataset_name: {tmp_path}/data.jsonl\n{GRPO}"
    status, found = grpo(text, "--step")
    assert status == 0
    assert found["prompts"]["data"]["n"] == 2
    assert "no task offers tools" in found["chat template"]["reason"]
    assert found["step: pfpo"]["data"]["completion"] == 40


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("num_generation: 4\n", (), "GRPOConfig has no key num_generation; did you mean 'num_generations'?"),
        ("beta: high\n", (), "beta is the text 'high'; it is of type float"),
        ("per_device_train_batch_size: 3\nnum_generations: 4\n", (), "is not a multiple of num_generations = 4"),
        (GRPO, (), "names no data set; give --suite NAME"),
        (GRPO, ("--dataset", "owner/data"), "'owner/data' is no .jsonl, .json, .csv file here"),
        (GRPO, ("--suite", "workbench", "--model", "runs/none/here"), "no folder 'runs/none/here'"),
        ("model_init_kwargs: 3\n", (), "model_init_kwargs must be a mapping"),
        ("dataset_name: [1, 2]\n", ("--model", "embedded"), "the data set '[1, 2]' is no .jsonl"),
        ("[1, 2]\n", (), "must hold a mapping of GRPOConfig's keys"),
    ],
)
def test_what_is_wrong_with_a_grpo_config_is_told_by_name(grpo, tmp_path, text, options, words):
    if not options:
        options = () if text == GRPO else ("--suite", "workbench")
    status, found = grpo(text, *(() if "--model" in options else ("--model", "embedded")), *options)
    assert status == 1
    assert list(found) == ["recipe"]
    assert words in found["recipe"]["reason"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("data.json", "3", "must hold a list of rows"),
        ("data.json", "[" * 100_000, "cannot be read"),
        ("data.csv", "prompt\n" + "x" * 200_000, "field larger than field limit"),
    ],
    ids=["a number", "deep", "a long field"],
)
def test_a_data_set_that_is_none_is_told(grpo, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    status, found = grpo(GRPO, "--model", "embedded", "--dataset", str(tmp_path / name))
    assert status == 1
    assert words in found["recipe"]["reason"]


def test_a_value_of_another_type_is_told_by_the_key_of_the_file(grpo):
    status, found = grpo("use_peft: true\nlora_r: .nan\n", "--model", "embedded", "--suite", "workbench")
    assert status == 1
    assert found["recipe"]["reason"].startswith("lora_r: ")


def test_a_column_that_is_not_there_is_told(grpo, tmp_path):
    (tmp_path / "data.csv").write_text("question,answer\nWhat?,1\n")
    status, found = grpo(GRPO, "--model", "embedded", "--dataset", str(tmp_path / "data.csv"))
    assert status == 1
    assert "row 1 has no 'prompt', which GRPOTrainer needs; it has question, answer" in found["recipe"]["reason"]


@pytest.mark.parametrize(
    "options", [(), ("quickstart", "--grpo", "x.yaml"), ("quickstart", "--suite", "workbench")], ids=str
)
def test_options_that_do_not_go_together(options):
    done = CliRunner().invoke(app, ["check", *options])
    assert isinstance(done.exception, RecipeError)


def test_each_wrong_key_is_an_error_of_its_own():
    done = CliRunner().invoke(app, ["check", "quickstart", "--set", "sft.lr=1", "--set", "pfpo.beta=high", "--json"])
    assert done.exit_code == 1
    reasons = [found["reason"] for found in json.loads(done.stdout)["findings"]]
    assert len(reasons) == 2
    assert "sft.lr" in reasons[0]
    assert "pfpo.beta" in reasons[1]
