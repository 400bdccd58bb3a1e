"""The learner on torch: rows to tokens, training directions, save and load, one module through several trainers."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import tiny
import torch
from disk import file_size

from fate_trl.errors import FateError, LedgerError, RecipeError
from fate_trl.loop.repairing import row_of
from fate_trl.loop.reporter import Silent
from fate_trl.recipe.loading import make_recipe
from fate_trl.suites.scripted import perform
from fate_trl.train import learner as torch_learner
from fate_trl.train.checkpoints import last_checkpoint
from fate_trl.train.examples import tokens_of
from fate_trl.train.learner import TrlLearner
from fate_trl.types import BufferRow, RolloutRequest, Script
from fate_trl.verify.scoring import OverRefusal, Security, TrajectoryControl, Utility

PAY = Script(({"name": "look", "arguments": {}}, {"name": "pay", "arguments": {"to": "alice"}}), "done")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny untrained model on disk, as a user's own would be."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny.make_tokenizer()
    tiny.make_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def learner(folder, **changes) -> TrlLearner:
    sections = {
        "model": {"path": str(folder), "threads": 1},
        "rollout": {"chunk": 4, "max_completion_length": 24, "max_tool_calling_iterations": 3},
        "sft": {"max_steps": 8, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "use_cpu": True},
        "pfpo": {"max_steps": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 8, "num_generations": 4},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    recipe = make_recipe({"suites": ["workbench"], **sections})
    suites = {"till": tiny.TillSuite()}
    from fate_trl.choose.selectors import ParetoFront

    verifiers = [Security(), Utility(), OverRefusal(), TrajectoryControl()]
    made = TrlLearner(recipe, suites, verifiers, ParetoFront(), Silent())
    made.tasks = list(suites["till"].tasks("train", 0))
    return made


def requests(made: TrlLearner, stage: str = "collect") -> list[RolloutRequest]:
    return [RolloutRequest(task, task.messages, stage) for task in made.tasks]


def oracle_row(made: TrlLearner) -> BufferRow:
    request = requests(made)[0]
    return row_of(perform(made.suites["till"], request, PAY), "oracle", 0)


def log_prob(made: TrlLearner, row: BufferRow, temperature: float = 1.0) -> float:
    """Mean log-probability of the row's own tokens."""
    example = tokens_of(row, made.tokenizer, made.tools_of(row))
    ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"][1:])
    made.model.eval()
    with torch.no_grad():
        logits = made.model(ids).logits[0, :-1] / temperature
    kept = labels != -100
    return logits.log_softmax(-1)[kept].gather(1, labels[kept, None]).mean().item()


# ------------------------------------------------------------------------------------------------ rows to tokens


def test_sampled_tokens_are_taken_as_they_are():
    row = BufferRow("repair", "s", "t", prompt_ids=(5, 6), completion_ids=(7, 8, 9), policy_mask=(1, 0, 1))
    assert tokens_of(row, None, ()) == {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, -100, 9]}


def test_rendered_messages_begin_like_a_rollout_and_lose_on_the_policys_words_only(folder):
    made = learner(folder)
    row = oracle_row(made)
    example = tokens_of(row, made.tokenizer, made.tools_of(row))
    (sampled,) = made.rollout(requests(made)[:1], seed=1)
    start = next(i for i, label in enumerate(example["labels"]) if label != -100)
    assert tuple(example["input_ids"][:start]) == sampled.prompt_ids
    learned = made.tokenizer.decode([label for label in example["labels"] if label != -100])
    assert "pay" in learned
    assert "owed" not in learned  # a tool said it
    assert learned.count("<|end|>") == 3  # two calls and an answer
    assert made.tokenizer.decode(example["input_ids"]).endswith("done<|end|>")


def test_a_template_that_rewrites_history_is_refused(folder):
    made = learner(folder)
    made.tokenizer.chat_template = "{{ messages | length }} {% for m in messages %}{{ m.content }} {% endfor %}"
    row = oracle_row(made)
    with pytest.raises(FateError, match="prefix-preserving"):
        tokens_of(dataclasses.replace(row, tools=()), made.tokenizer, ())


# ------------------------------------------------------------------------------------------------ training


def test_sft_raises_the_rows_log_probability(folder):
    made = learner(folder)
    row = oracle_row(made)
    before = log_prob(made, row)
    summary = made.sft([row] * 8, seed=3, stage="sft")
    assert summary["steps"] == 8
    assert log_prob(made, row) > before + 0.1


def test_each_step_and_each_batch_of_rollouts_looks_whether_memory_is_short(folder, monkeypatch):
    looked = []
    monkeypatch.setattr("fate_trl.train.processor.mind_memory", lambda: looked.append("step"))
    monkeypatch.setattr("fate_trl.train.learner.mind_memory", lambda: looked.append("batch"))
    made = learner(folder)
    steps = made.sft([oracle_row(made)] * 4, seed=3, stage="sft")["steps"]
    assert len(looked) == steps == 8
    assert set(looked) == {"step"}
    made.rollout(requests(made)[:1], seed=1)
    assert looked[-1] == "batch"


def test_lora_trains_the_adapter_alone(folder):
    made = learner(folder, model={"path": str(folder), "lora": {"r": 4}, "threads": 1})
    row = oracle_row(made)
    base = {n: p.detach().clone() for n, p in made.model.named_parameters() if "lora" not in n}
    before = log_prob(made, row)
    made.sft([row] * 8, seed=3, stage="sft")
    assert log_prob(made, row) > before
    assert all(torch.equal(p, base[n]) for n, p in made.model.named_parameters() if n in base)


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_load_brings_back_what_save_wrote(folder, tmp_path, lora):
    made = learner(folder, model={"path": str(folder), "lora": lora, "threads": 1})
    row = oracle_row(made)
    made.save(str(tmp_path / "before"))
    before = log_prob(made, row)
    made.sft([row] * 4, seed=3, stage="sft")
    assert log_prob(made, row) != before
    made.load(str(tmp_path / "before"))
    assert log_prob(made, row) == before


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_weights_that_a_wrapper_split_are_handed_over_through_a_folder(folder, monkeypatch, lora):
    """Accelerate wraps by FSDP on accelerators only; here the trainer says that it did, and saves what it trained."""
    plain = learner(folder, model={"path": str(folder), "lora": lora, "threads": 1})
    wrapped = learner(folder, model={"path": str(folder), "lora": lora, "threads": 1})
    take_back = TrlLearner._take_back

    def split(made: TrlLearner, trainer, scratch):
        trained = made.model
        wrapper = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False, save_model=trainer.save_model)
        take_back(made, wrapper, scratch)
        assert made.model is not trained
        with torch.no_grad():  # what stays with the wrapper is worthless
            for parameter in trained.parameters():
                parameter.zero_()

    rows = [oracle_row(plain)] * 4
    plain.sft(rows, seed=3, stage="sft")
    with monkeypatch.context() as patch:
        patch.setattr(TrlLearner, "_take_back", split)
        wrapped.sft(rows, seed=3, stage="sft")
        assert log_prob(wrapped, rows[0]) == log_prob(plain, rows[0])
        assert [t.messages for t in wrapped.rollout(requests(wrapped), 5)] == [
            t.messages for t in plain.rollout(requests(plain), 5)
        ]
        wrapped.pfpo(requests(wrapped, "pfpo"), seed=4)
    plain.pfpo(requests(plain, "pfpo"), seed=4)
    assert log_prob(wrapped, rows[0]) == log_prob(plain, rows[0])


def test_a_missing_policy_is_a_clear_error(folder, tmp_path):
    made = learner(folder)
    with pytest.raises(LedgerError, match=r"nowhere cannot be loaded.*fsck"):
        made.load(str(tmp_path / "nowhere"))
    made.save(str(tmp_path / "policy"))
    weights = tmp_path / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(LedgerError, match=r"policy cannot be loaded.*fsck"):
        made.load(str(tmp_path / "policy"))


def test_a_full_disk_names_the_policy_or_the_checkpoint(folder, tmp_path):
    made = learner(folder, sft={"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4})
    with file_size(20_000), pytest.raises(LedgerError, match=r"cannot write the policy to .*resume"):
        made.save(str(tmp_path / "policy"))
    row = oracle_row(made)
    with file_size(20_000), pytest.raises(LedgerError, match=r"cannot write a checkpoint to .*scratch.*resume"):
        made.sft([row] * 8, 3, "sft", str(tmp_path / "scratch"))
    assert last_checkpoint(str(tmp_path / "scratch")) is None
    assert learner(folder).sft([row] * 8, 3, "sft", str(tmp_path / "scratch"))["steps"] == 8


ON_A_CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), ON_A_CPU])
def test_where_memory_runs_out_fewer_are_rolled_out_at_a_time(folder, error):
    made, tried = learner(folder), []
    made.rollout(requests(made), seed=5)
    roll = made._roller.rollout

    def scarce(asked):
        tried.append(len(asked))
        if len(asked) > 2:
            raise error
        return roll(asked)

    made._roller.rollout = scarce
    four = [request for request in requests(made) for _ in range(2)][:4]
    found = made.rollout(four, seed=5)
    assert [t.task.id for t in found] == [request.task.id for request in four]
    assert tried == [4, 2, 2]
    assert len(made.rollout(four, seed=6)) == 4
    assert tried[3:] == [2, 2], "what did not fit is not tried again"

    def none(asked):
        raise MemoryError

    made._roller.rollout = none
    with pytest.raises(FateError, match=r"rollout\.max_completion_length"):
        made.rollout(four, seed=7)


@pytest.mark.parametrize(
    ("error", "said"),
    [(ON_A_CPU, "out of memory in training: .*per_device_train_batch_size"), (RuntimeError("shapes"), "^shapes$")],
    ids=["a CPU's allocator", "another error of torch"],
)
def test_memory_that_runs_out_in_training_is_said_with_what_to_lower(folder, monkeypatch, error, said):
    def failed(self, *_, **__):
        raise error

    made = learner(folder)
    row = oracle_row(made)
    monkeypatch.setattr(torch_learner.SFTTrainer, "train", failed)
    with pytest.raises((FateError, RuntimeError), match=said):
        made.sft([row] * 2, 3, "sft")


def test_an_error_of_torch_in_a_rollout_is_not_taken_for_memory(folder):
    made = learner(folder)
    made.rollout(requests(made), seed=5)

    def failed(asked):
        raise RuntimeError("shapes")

    made._roller.rollout = failed
    with pytest.raises(RuntimeError, match=r"^shapes$"):
        made.rollout(requests(made), seed=6)


def test_stages_do_not_nest_their_patches(folder, tmp_path):
    """After SFT, PFPO at a temperature and rollouts, the module computes what its saved weights compute."""
    made = learner(folder, rollout={"temperature": 0.7})
    pristine = type(made.model).forward
    row = oracle_row(made)
    made.sft([row] * 4, seed=3, stage="sft")
    made.pfpo(requests(made, "pfpo"), seed=4)
    made.rollout(requests(made), seed=5)
    made.sft([row] * 4, seed=6, stage="sft")
    assert made.model.forward.__func__ is pristine
    made.save(str(tmp_path / "policy"))
    again = learner(tmp_path / "policy")
    assert log_prob(again, row, 0.7) == pytest.approx(log_prob(made, row, 0.7), abs=1e-6)


def test_rollouts_repeat_by_seed_whatever_came_before(folder):
    made = learner(folder)
    first = made.rollout(requests(made), seed=11)
    other = made.rollout(requests(made), seed=12)
    again = made.rollout(requests(made), seed=11)
    assert [t.completion_ids for t in first] == [t.completion_ids for t in again]
    assert [t.completion_ids for t in first] != [t.completion_ids for t in other]


def test_the_kl_term_is_to_where_the_stage_began(folder):
    """TRL's reference is the model as its folder has it: after SFT, KL would pull the policy back to before it."""
    made = learner(folder, pfpo={"beta": 0.1, "max_steps": 1})
    made.sft([oracle_row(made)] * 4, 0, "sft")
    (step,) = (entry for entry in made.pfpo(requests(made, "pfpo"), 0)["log"] if "kl" in entry)
    assert step["kl"] == pytest.approx(0, abs=1e-5)


def test_pfpo_with_kl_twice_on_one_adapter(folder):
    """TRL keeps a copy of the adapter as reference; a second stage must get a new copy, not the first one's."""
    made = learner(folder, model={"path": str(folder), "lora": {"r": 4}, "threads": 1}, pfpo={"beta": 0.1})
    for seed in (1, 2):
        summary = made.pfpo(requests(made, "pfpo"), seed=seed)
        assert summary["log"][0]["kl"] == pytest.approx(0, abs=1e-5)  # the reference is the policy as the stage began
    assert "ref" not in made.model.peft_config


class Engine:
    """Stands where TRL starts vLLM, which no test machine has; says what it was given."""

    started: list = []  # noqa: RUF012

    def __init__(self, **given):
        vars(self).update(given, _weight_metadata="of the first")
        self.started.append(self)


def test_stages_share_one_vllm(folder, monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Engine)
    vllm = {"use_vllm": True, "vllm_mode": "colocate", "temperature": 0.5}
    made = learner(folder, rollout={"use_vllm": True, "vllm_mode": "colocate"})
    first = made._pfpo_trainer(requests(made), 0, per_device_train_batch_size=2, num_generations=2)
    again = made._pfpo_trainer(requests(made), 0, per_device_train_batch_size=4, num_generations=2, **vllm)
    assert Engine.started == [again.vllm_generation] == [first.vllm_generation]
    assert again.vllm_generation.accelerator is again.accelerator
    assert again.vllm_generation.temperature == 0.5, "what the later stage asks for holds"
    assert again.vllm_generation._weight_metadata is None
    assert again._last_loaded_step == -1, "weights are sent before the first generation"


@pytest.mark.parametrize(("stage", "settings"), [("sft", {"lr_scheduler_type": "cosin"}), ("pfpo", {"optim": "adamm"})])
def test_values_that_trl_refuses_are_said_before_the_model_loads(stage, settings, monkeypatch):
    monkeypatch.setattr(torch_learner, "load_model", lambda model: pytest.fail("it was loaded"))
    recipe = make_recipe({"suites": ["workbench"], stage: settings})
    with pytest.raises(RecipeError, match=f"{stage}: {next(iter(settings.values()))} is not a valid"):
        TrlLearner(recipe, {}, [], None, Silent())
