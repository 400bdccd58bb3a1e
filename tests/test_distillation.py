"""Self-distillation on turns at fault: the turns, the divergence, the stage and its checkpoints, and the rounds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_checkpoints import At, Killed, losses
from test_preference import FAILED, REPAIRED, RUN, TASK, Tokens, card
from test_stages import folder, learner  # noqa: F401 (a fixture)

from fate_trl.errors import RecipeError
from fate_trl.ledger import fsck
from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.loop.hindsight import hindsight_of, write_hindsight
from fate_trl.recipe.loading import make_recipe
from fate_trl.report import charts
from fate_trl.report.reading import Run
from fate_trl.report.summary import summarise
from fate_trl.train import learner as torch_learner
from fate_trl.train.distillation import divergence, side
from fate_trl.types import Failure, Hindsight, Repair, Score, ScoreCard

torch.set_num_threads(1)

KEYS = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_steps": 1, "use_cpu": True}
LORA = {"lora": {"r": 4, "lora_dropout": 0.1}, "threads": 1}

CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "pay", "arguments": {}}}]}
PAID = {"role": "tool", "name": "pay", "content": "paid"}
SAID = {"role": "assistant", "content": "done"}
TWICE = dataclasses.replace(
    FAILED,
    messages=(CALL, PAID, SAID),
    completion_ids=(5, 6, 7, 8, 9),
    policy_mask=(1, 1, 0, 1, 1),
)
DONE = dataclasses.replace(REPAIRED, messages=({"role": "assistant", "content": "the bill is paid"},))


def repaired(step, failed=TWICE, index=0):
    at_fault = ScoreCard({"security": Score(0.0, feedback="You paid a stranger.", step=step)})
    return Repair(Failure(failed, at_fault), (DONE,), (card(security=1.0),), chosen=index)


def hindsight(prompt=(3, 20, 21), before=(), turn=(22, 23, 1), said="pay"):
    return Hindsight("till", "t", 1, prompt, before, turn, ({"role": "user", "content": said},), (), 0, 0)


TURNS = [
    hindsight(),
    hindsight((3, 27), (28, 29), (30, 1), "pay better"),
    hindsight((3, 33, 34), turn=(35, 1)),
    hindsight((3, 40), (41,), (42, 43, 36, 1), "done"),
]

# ------------------------------------------------------------------------------------------------ turns


@pytest.mark.parametrize(
    ("step", "before", "turn"),
    [(0, (), (5, 6)), (2, (5, 6, 7), (8, 9))],
    ids=["the first turn", "the last turn"],
)
def test_the_turn_that_a_verifier_faults_is_found_with_all_that_went_before(step, before, turn):
    made = hindsight_of(repaired(step), 3)
    assert (made.prompt_ids, made.before_ids, made.turn_ids) == ((3, 4), before, turn)
    assert (made.failure, made.repair, made.round) == (TWICE.attempt, DONE.attempt, 3)
    assert Hindsight.from_dict(made.to_dict()) == made


def test_the_teacher_is_told_of_the_failure_the_feedback_and_the_repair():
    (message,) = hindsight_of(repaired(0), 1).teacher
    told = message["content"]
    assert told.startswith(TASK.messages[-1]["content"])
    places = [
        told.index(part)
        for part in ("you called: pay", "You paid a stranger.", "A later attempt", "you said: the bill")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "without",
    [
        repaired(None),
        repaired(1),
        repaired(0, dataclasses.replace(TWICE, prompt_ids=(), completion_ids=(), policy_mask=())),
        repaired(2, dataclasses.replace(TWICE, policy_mask=(1, 1, 0, 0, 0))),
    ],
    ids=["no step is named", "a tool's message", "recorded elsewhere", "the turn has no token"],
)
def test_a_failure_without_such_a_turn_is_counted(tmp_path, without):
    run = RunDirectory(tmp_path)
    told = write_hindsight(run, "turns.jsonl", [without, repaired(0), repaired(0, index=None)], 1)
    assert told == {"turns": 1, "turns_left_out": 1}
    assert len(list(run.read("turns.jsonl"))) == 1


# ------------------------------------------------------------------------------------------------ the divergence


def test_the_divergence_is_the_sum_over_all_tokens_in_both_directions():
    policy, teacher = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    p, q = policy.softmax(-1), teacher.softmax(-1)
    forward, backward = (q * (q / p).log()).sum(-1), (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(divergence(policy, teacher, reverse=False), forward)
    torch.testing.assert_close(divergence(policy, teacher, reverse=True), backward)
    assert divergence(policy, policy, reverse=False).abs().max() < 1e-6


def test_sequences_of_one_side_end_together_and_count_their_places_from_their_start():
    inputs = side([[5, 6, 7], [8]], 0)
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def trainer_of(made, turns=TURNS, reverse=False):
    made.fresh()
    rows = [made._in_hindsight(turn) for turn in turns]
    args = torch_learner.TrainingArguments(**{**made.settings(1), "remove_unused_columns": False, "use_cpu": True})
    return torch_learner.DistillationTrainer(made.model, args, rows, made.tokenizer, [], reverse), rows


def moved(model):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("model", [{}, LORA], ids=["all weights", "adapter"])
def test_a_batch_of_any_lengths_is_the_mean_over_its_tokens_against_the_stages_start(folder, model):  # noqa: F811
    made = learner(folder, model=model, distillation=KEYS)
    trainer, rows = trainer_of(made)
    made.model.eval()

    def of(row, part):
        ids = torch.tensor([row[f"{part}_ids"]])
        return made.model(input_ids=ids).logits[:, -len(row["turn_ids"]) - 1 : -1]

    teachers = [of(row, "teacher").detach() for row in rows]  # before anything moves
    moved(made.model)
    each = [divergence(of(row, "student"), taught, False) for row, taught in zip(rows, teachers, strict=True)]
    loss = trainer.compute_loss(made.model, trainer._collated(rows))
    torch.testing.assert_close(loss, torch.cat(each, dim=1).mean(), rtol=1e-4, atol=1e-6)
    assert loss > 0.01


def test_with_nothing_to_know_better_there_is_nothing_to_learn(folder):  # noqa: F811
    made = learner(folder, distillation=KEYS)
    trainer, rows = trainer_of(made)
    made.model.eval()
    same = [{**row, "teacher_ids": row["student_ids"]} for row in rows]
    assert trainer.compute_loss(made.model, trainer._collated(same)).item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_comes_from_the_turns_alone(folder):  # noqa: F811
    made = learner(folder, distillation=KEYS)
    trainer, rows = trainer_of(made, TURNS[:1])
    moved(made.model)
    seen = []
    made.model.get_output_embeddings().register_forward_hook(lambda _, __, out: out.retain_grad() or seen.append(out))
    with torch.enable_grad():
        trainer.compute_loss(made.model, trainer._collated(rows)).backward()
    (logits,) = seen
    assert logits.shape[1] == len(rows[0]["turn_ids"]) + 1, "logits of the prompt are never made"
    assert logits.grad[:, :-1].abs().sum(-1).min() > 0
    assert logits.grad[:, -1].abs().max() == 0, "what would follow the turn is nobody's business"


# ------------------------------------------------------------------------------------------------ the stage


@pytest.mark.parametrize("model", [{}, LORA], ids=["all weights", "adapter"])
@pytest.mark.parametrize("way", ["forward", "reverse"])
def test_the_policy_moves_towards_its_hindsight(folder, model, way):  # noqa: F811
    keys = {**KEYS, "max_steps": 12, "per_device_train_batch_size": 4, "divergence": way}
    made = learner(folder, model=model, distillation=keys)
    told = made.distillation(TURNS, 3)
    assert told["rows"] == 4
    assert told["trained_tokens"] > sum(len(turn.turn_ids) for turn in TURNS) * 2 * 12
    first, *_, last = losses(told)
    assert last < first * 0.8
    assert "ref" not in getattr(made.model, "peft_config", {}), "the teacher goes with the stage"


@pytest.mark.parametrize("model", [{}, LORA], ids=["all weights", "adapter"])
def test_killed_and_resumed_it_ends_with_the_same_weights(folder, tmp_path, monkeypatch, model):  # noqa: F811
    whole = learner(folder, model=model, distillation=KEYS)
    unbroken = whole.distillation(TURNS, 3, str(tmp_path / "whole"))

    def kill():
        raise Killed

    first = learner(folder, model=model, distillation=KEYS)
    monkeypatch.setattr(torch_learner, "_Steps", lambda reporter: At(4, kill))
    with pytest.raises(Killed):
        first.distillation(TURNS, 3, str(tmp_path / "part"))
    monkeypatch.undo()
    last = learner(folder, model=model, distillation=KEYS)
    resumed = last.distillation(TURNS, 3, str(tmp_path / "part"))
    assert losses(resumed) == losses(unbroken)
    assert len(losses(resumed)) == 6
    after, wanted = last.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)


# ------------------------------------------------------------------------------------------------ rounds


class Taught(Tokens):
    """A scripted learner whose trajectories have a run of tokens per turn."""

    def rollout(self, requests, seed):
        out = []
        for t in super().rollout(requests, seed):
            own = [int(message["role"] == "assistant") for message in t.messages]
            out.append(dataclasses.replace(t, completion_ids=tuple(range(len(own))), policy_mask=tuple(own)))
        return out

    def distillation(self, turns, seed, scratch=None):
        if self.deadly:
            raise Killed
        self.seen = tuple(turns)
        return {**super().distillation(turns, seed, scratch), **self.told}


def run_in(path, deadly=False, told=None, **changes):
    def made(suites, *_):
        one = Taught(suites)
        one.deadly, one.told = deadly, told or {}
        return one

    recipe, run = make_recipe({**RUN, **changes}), RunDirectory(path)
    run.write_text("recipe.yaml", recipe.dump())
    evolution = assemble(recipe, run, made)
    evolution()
    return evolution


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        ({}, ["sft", "distillation", "pfpo"]),
        ({"sft": None, "pfpo": None}, ["distillation"]),
        ({"preference": {}}, ["sft", "distillation", "preference", "pfpo"]),
    ],
    ids=["beside sft", "alone", "beside all"],
)
def test_a_round_learns_in_hindsight(tmp_path, changes, order):
    evolution = run_in(tmp_path / "run", distillation={}, **changes)
    assert [stage for stage, _ in evolution.learner.trained] == order
    reader = RunReader.open(tmp_path / "run")
    turns = [Hindsight.from_dict(record) for record in reader.read("rounds/01/hindsight.jsonl")]
    assert len(turns) == reader.stages(1)["hindsight"]["turns"] > 0
    assert all(turn.turn_ids for turn in turns)
    told = evolution.learner.seen
    assert told == tuple(turns) or "preference" in changes


def test_without_the_key_a_round_is_what_it_was(tmp_path):
    evolution = run_in(tmp_path / "run")
    assert [stage for stage, _ in evolution.learner.trained] == ["sft", "pfpo"]
    assert not (tmp_path / "run/rounds/01/hindsight.jsonl").exists()


def test_a_run_killed_in_the_stage_goes_on_with_the_same_turns(tmp_path):
    run_in(tmp_path / "whole", distillation={})
    with pytest.raises(Killed):
        run_in(tmp_path / "part", deadly=True, distillation={})
    run_in(tmp_path / "part", distillation={})
    for name in ("rollouts", "repairs", "selections", "buffer", "hindsight"):
        whole, part = ((tmp_path / which / f"rounds/01/{name}.jsonl").read_bytes() for which in ("whole", "part"))
        assert whole == part


def test_a_damaged_file_of_turns_is_made_again_from_its_records(tmp_path):
    run_in(tmp_path / "run", distillation={})
    file = tmp_path / "run/rounds/01/hindsight.jsonl"
    before = file.read_bytes()
    file.write_bytes(b"{broken\n" + before)
    (damage,) = fsck.repair(RunDirectory(tmp_path / "run"))
    assert damage.again == {"hindsight"}
    run_in(tmp_path / "run", distillation={})
    assert file.read_bytes() == before


def test_the_report_shows_the_divergence(folder, tmp_path):  # noqa: F811
    told = learner(folder, distillation=KEYS).distillation(TURNS, 3)
    run_in(tmp_path / "run", distillation={}, told=told)
    found = summarise(Run.open(tmp_path / "run"))
    assert len(found["training"]["distillation"]["loss"]) == 6
    assert "Distillation: divergence from hindsight, nats per token" in [c.title for c in charts.training(found)]


# ------------------------------------------------------------------------------------------------ the recipe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distillation": {}, "repair": None, "sft": None}, "distillation has no failures to learn from"),
        ({"distillation": {"divergence": "sideways"}}, "forward"),
        ({"distillation": {"learning_rat": 1e-3}}, r"learning_rate.*the keys of transformers' TrainingArguments"),
        ({"distillation": {"learning_rate": 0.0}}, "it is above 0"),
    ],
    ids=["no repairs", "no such divergence", "no such key", "no rate"],
)
def test_what_a_recipe_cannot_ask_for_is_said(changes, said):
    with pytest.raises(RecipeError, match=said):
        make_recipe({**RUN, **changes})
