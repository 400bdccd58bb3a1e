"""What a plugin's pair loss may ask for: facts, further sequences, pairs of one side, and what it learns."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from test_checkpoints import At, Killed, losses
from test_preference import AGAIN, FAILED, KEYS, LORA, PAIRS, REPAIRED, moved, run_in
from test_stages import folder, learner, requests  # noqa: F401 (a fixture)
from trl import DPOConfig
from trl.trainer.utils import use_adapter

from fate_trl.choose.pairings import pair_of
from fate_trl.errors import FateError, PluginError, RecipeError
from fate_trl.ledger.reading import RunReader
from fate_trl.recipe.checks import check_pair_loss
from fate_trl.recipe.loading import make_recipe
from fate_trl.train import learner as torch_learner
from fate_trl.train.pair_facts import fault_turn, key_of, prompt_counts
from fate_trl.train.preference import SETTINGS, PairTrainer, rows_of, tokens_in
from fate_trl.train.prefix.sharing import share_training
from fate_trl.types import Score, ScoreCard

torch.set_num_threads(1)

FULL = [
    dataclasses.replace(
        pair,
        feedback="look before you pay",
        repair_prompt_ids=(3, 10 + i, 15),
        fault=(0, 1) if i % 2 else (),
        own_ids=(24 + i, 38, 39),
        own_mask=(1, 0, 1),
    )
    for i, pair in enumerate(PAIRS)
]
"""Pairs with all facts."""


class Asks:
    """DPO that keeps what it is told, and asks for what it is made with."""

    def __init__(self, *needs, unpaired=False):
        self.needs = needs
        self.unpaired = unpaired

    def __call__(self, batch):
        self.batch = batch
        margin_B = batch.chosen.log_ratio_B - batch.rejected.log_ratio_B
        return -torch.nn.functional.logsigmoid(batch.beta * margin_B).mean()


def adapted():
    whole = tiny.make_model(tiny.make_tokenizer())
    return get_peft_model(whole, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def trainer_of(loss, tmp_path, pairs=FULL, model=None, first=None, **keys):
    tokenizer = tiny.make_tokenizer()
    defaults = {**SETTINGS, "output_dir": str(tmp_path), "report_to": "none", "disable_tqdm": True, "bf16": False}
    defaults |= {"gradient_checkpointing": False, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    args = DPOConfig(**{**defaults, **keys})
    rows = rows_of(pairs, args.max_length, loss, tokenizer)
    return PairTrainer(model or tiny.make_model(tokenizer), args, rows, tokenizer, [], loss, first)


def asked(trainer):
    """The loss of one batch of all rows."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    return trainer.compute_loss(trainer.model, batch)


def own_logps(model, before, ids, mask):
    """Sum of a model's log-probabilities of a sequence's own tokens, by itself."""
    tokens = torch.tensor([[*before, *ids]])
    with torch.no_grad():
        logits = model(tokens).logits[0, :-1]
    logps = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return (logps * torch.tensor(([0] * len(before) + list(mask))[1:])).sum().item()


# ------------------------------------------------------------------------------------------------ facts


def test_what_costs_something_is_made_where_it_is_asked_for_only(tmp_path):
    loss = Asks()
    asked(trainer_of(loss, tmp_path))
    batch = loss.batch
    assert batch.rationale is batch.repaired is batch.failed is batch.own is batch.prompt_B_D is None
    assert batch.chosen.first_logps_B_T is None
    assert batch.key_B.tolist() == [key_of(pair) for pair in FULL]
    assert batch.fault_B.tolist() == [-1, 0, -1, 0]
    assert batch.chosen.there_B.all()


@pytest.mark.parametrize("shared", [False, True], ids=["each by itself", "shared prefixes"])
@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "adapter"])
def test_further_sequences_have_the_log_probabilities_of_both_models(tmp_path, adapter, shared):
    loss = Asks("rationale", "repair_prompt", "own")
    torch.manual_seed(1)
    trainer = trainer_of(loss, tmp_path, model=adapted() if adapter else None)
    if not adapter:
        moved(trainer)
    if shared:
        share_training(trainer, trainer.head_fields)
    asked(trainer)
    said = tiny.make_tokenizer()(FULL[0].feedback)["input_ids"]
    model = trainer.model
    for i, pair in enumerate(FULL):
        parts = {
            "repaired": (pair.repair_prompt_ids, pair.chosen_ids, pair.chosen_mask),
            "failed": (pair.repair_prompt_ids, pair.rejected_ids, pair.rejected_mask),
            "rationale": (pair.prompt_ids + pair.rejected_ids, said, (1,) * len(said)),
            "own": (pair.prompt_ids, pair.own_ids, pair.own_mask),
        }
        for name in parts:
            side = getattr(loss.batch, name)
            assert side.logps_B_T[i].sum().item() == pytest.approx(own_logps(model, *parts[name]), abs=1e-4)
            if adapter:
                with use_adapter(model, "ref"):
                    wanted = own_logps(model, *parts[name])
            else:
                wanted = own_logps(trainer.ref_model, *parts[name])
            assert side.ref_logps_B_T[i].sum().item() == pytest.approx(wanted, abs=1e-4)
            assert (side.logps_B_T[i][side.turn_B_T[i] < 0] == 0).all()
    assert loss.batch.rationale.logps_B_T.requires_grad
    assert not loss.batch.rationale.ref_logps_B_T.requires_grad


@pytest.mark.parametrize("model", [{}, LORA], ids=["all weights", "adapter"])
def test_the_first_policy_is_the_one_that_the_run_began_with(folder, tmp_path, monkeypatch, model):  # noqa: F811
    made = learner(folder, model=model, preference={**KEYS, "max_steps": 2})
    made.save(str(tmp_path / "first"))
    wanted = [
        [own_logps(made.model, p.prompt_ids, getattr(p, f"{s}_ids"), getattr(p, f"{s}_mask")) for p in FULL]
        for s in ("chosen", "rejected")
    ]
    made.preference(FULL, 1)
    made.pair_loss, made.first_policy = Asks("first_policy"), lambda: str(tmp_path / "first")
    trainers = []

    class Kept(PairTrainer):
        def __init__(self, *args):
            super().__init__(*args)
            trainers.append(self)

    monkeypatch.setattr(torch_learner.preference, "PairTrainer", Kept)
    told = made.preference(FULL, 3)
    assert told["log"][0]["rewards/margins"] == pytest.approx(0, abs=1e-6), "the model has its own weights again"
    (trainer,) = trainers
    rows = list(trainer.train_dataset)
    for side, values in zip(("chosen", "rejected"), wanted, strict=True):
        assert [sum(row[f"{side}_first"]) for row in rows] == pytest.approx(values, abs=1e-4)
    batch = made.pair_loss.batch
    assert not torch.allclose(batch.chosen.first_logps_B_T, batch.chosen.ref_logps_B_T), "the stage began elsewhere"


def test_where_the_first_policy_is_unknown_it_is_the_reference(tmp_path):
    loss = Asks("first_policy")
    asked(moved(trainer_of(loss, tmp_path)))
    assert torch.equal(loss.batch.chosen.first_logps_B_T, loss.batch.chosen.ref_logps_B_T)
    assert not torch.equal(loss.batch.chosen.first_logps_B_T, loss.batch.chosen.logps_B_T.detach())


def test_prompts_are_counted_without_what_they_share(tmp_path):
    assert prompt_counts([(1, 2, 3, 3), (1, 2, 4)]).tolist() == [[2, 0], [0, 1]]
    assert prompt_counts([(1, 2), (1, 2)]).tolist() == [[1, 1], [1, 1]], "all alike: they are alike"
    loss = Asks("prompts")
    asked(trainer_of(loss, tmp_path))
    assert loss.batch.prompt_B_D.sum(dim=1).tolist() == [2, 1, 2, 1]


def test_pairs_that_lack_what_is_asked_for_are_left_out_and_all_of_them_is_an_error(folder, tmp_path):  # noqa: F811
    tokenizer = tiny.make_tokenizer()
    assert len(rows_of([*FULL[:2], *PAIRS[2:]], None, Asks("rationale"), tokenizer)) == 2
    made = learner(folder, preference=KEYS)
    made.pair_loss = Asks("repair_prompt")
    with pytest.raises(FateError, match="Asks needs a repair prompt, and none of 4 pairs has one"):
        made.preference(PAIRS, 3)
    assert len(rows_of(FULL, 6, Asks("rationale"), tokenizer)) < 4, "what is cut off is not there"


def test_tokens_of_further_sequences_are_counted():
    made = [rows_of(FULL[:1], None, Asks(*needs), tiny.make_tokenizer()) for needs in ((), ("repair_prompt",))]
    (plain,), (more,) = made
    assert tokens_in(plain) == 2 * 3 + 3 + 4
    assert tokens_in(more) == tokens_in(plain) + 2 * 3 + 3 + 4


def test_a_side_may_be_lacking_where_the_loss_says_so(tmp_path):
    lone = [dataclasses.replace(FULL[0], chosen_ids=(), chosen_mask=()), FULL[1]]
    lone += [dataclasses.replace(FULL[2], rejected_ids=(), rejected_mask=())]
    assert len(rows_of(lone, None, Asks(), None)) == 1
    loss = Asks(unpaired=True)
    asked(trainer_of(loss, tmp_path, lone)).backward()
    assert loss.batch.chosen.there_B.tolist() == [False, True, True]
    assert loss.batch.rejected.there_B.tolist() == [True, True, False]
    assert (loss.batch.chosen.logps_B_T[0] == 0).all()
    assert (loss.batch.rejected.ref_logps_B_T[2] == 0).all()


def test_a_pair_tells_what_the_verifiers_said_and_the_turn_that_they_fault():
    spoke = tuple({"role": role, "content": "…"} for role in ("assistant", "tool", "assistant"))
    failed = dataclasses.replace(FAILED, messages=spoke)

    def made(step, better=REPAIRED):
        card = ScoreCard({"security": Score(0.0, feedback="Do not pay Eve.", step=step), "utility": Score(0.0)})
        return pair_of((better, card), (failed, card), failed, 1)

    assert made(2).feedback == "Do not pay Eve."
    assert [made(step).fault for step in (0, 2, 1, None, 9)] == [(0, 1), (2, 4), (), (), ()]
    assert [fault_turn(made(step)) for step in (0, 2, None)] == [0, 1, -1]
    assert made(2).repair_prompt_ids == REPAIRED.prompt_ids
    went_on = made(2, dataclasses.replace(AGAIN, prompt_ids=(3, 4, 5, 6)))
    assert went_on.repair_prompt_ids == (), "it was shown no failure"
    assert went_on.fault == (2, 4)
    assert fault_turn(went_on) == 0, "the turn before it gets no loss, and is none"
    assert fault_turn(dataclasses.replace(went_on, rejected_mask=(0, 0, 0, 0))) == -1


# ------------------------------------------------------------------------------------------------ state


class Counts(Asks):
    """DPO in which a pair counts less the more often it was seen."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __call__(self, batch):
        margin_B = batch.chosen.log_ratio_B - batch.rejected.log_ratio_B
        weight_B = torch.tensor([1 / (1 + self.seen.get(str(key), 0)) for key in batch.key_B.tolist()])
        return -(weight_B * torch.nn.functional.logsigmoid(batch.beta * margin_B)).mean()

    def learn(self, batch):
        assert not batch.chosen.logps_B_T.requires_grad
        for key in map(str, batch.key_B.tolist()):
            self.seen[key] = self.seen.get(key, 0) + 1

    def state_dict(self):
        return {"seen": dict(self.seen)}

    def load_state_dict(self, state):
        self.seen = dict(state["seen"])

    def metrics(self):
        return {"seen": float(sum(self.seen.values()))}


def counting(folder, **keys):  # noqa: F811
    made = learner(folder, preference={**KEYS, **keys})
    made.pair_loss = Counts()
    made.keep_states_of({"pair-loss": made.pair_loss})
    return made


def test_what_a_loss_learned_is_resumed_saved_and_taken_back(folder, tmp_path, monkeypatch):  # noqa: F811
    whole = counting(folder)
    unbroken = whole.preference(PAIRS, 3, str(tmp_path / "whole"))
    assert whole.pair_loss.seen == {str(key_of(pair)): 3 for pair in PAIRS}, "6 steps of 2 pairs"
    assert unbroken["pair_loss"] == {"seen": 12}
    assert [entry["loss/seen"] for entry in unbroken["log"] if "loss/seen" in entry] == [2, 4, 6, 8, 10, 12]

    def kill():
        raise Killed

    first = counting(folder)
    monkeypatch.setattr(torch_learner, "_Steps", lambda reporter: At(4, kill))
    with pytest.raises(Killed):
        first.preference(PAIRS, 3, str(tmp_path / "part"))
    monkeypatch.undo()
    last = counting(folder)
    resumed = last.preference(PAIRS, 3, str(tmp_path / "part"))
    assert last.pair_loss.seen == whole.pair_loss.seen
    assert losses(resumed) == losses(unbroken)
    last.save(str(tmp_path / "policy"))
    fresh = counting(folder)
    fresh.load(str(tmp_path / "policy"))
    assert fresh.pair_loss.seen == whole.pair_loss.seen
    assert counting(folder).pair_loss.seen == {}


# ------------------------------------------------------------------------------------------------ declarations


class Text(Asks):
    def __init__(self):
        self.needs = "prompts"


class Forgets(Asks):
    def learn(self, batch): ...


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (Asks("embeddings"), r"Asks needs 'embeddings'; `needs` is a tuple out of first_policy, prompts"),
        (
            type("Text", (Asks,), {"__init__": lambda self: setattr(self, "needs", "prompts")})(),
            "needs 'prompts'; `need",
        ),
        (Forgets(), "Forgets has `learn`, but neither state_dict"),
        (object(), "cannot be called"),
    ],
    ids=["unknown", "a text", "forgets", "no function"],
)
def test_a_loss_that_breaks_its_contract_is_told_with_the_recipe(loss, said):
    with pytest.raises(PluginError, match=said):
        check_pair_loss(loss, None, "reflect", None)


ASKING = """
from fate_trl import Component, hookimpl
class Asking:
    needs = ("repair_prompt",)
    def __call__(self, batch): ...
@hookimpl
def fate_trl_pair_losses():
    return [Component("asking", Asking, "asks for the repair prompt")]
"""


@pytest.mark.parametrize("strategy", ["resample", "resume"])
def test_repair_prompts_that_show_no_failure_are_refused_before_a_model_loads(tmp_path, strategy):
    file = tmp_path / "asking.py"
    file.write_text(ASKING)
    keys = {"suites": ["workbench"], "preference": {"loss": str(file)}}
    with pytest.raises(RecipeError, match=f"and those of {strategy} do not"):
        make_recipe({**keys, "repair": {"strategy": strategy}})
    make_recipe(keys)


LONE = ASKING.replace('needs = ("repair_prompt",)', "unpaired = True")


def test_a_pairing_of_one_side_needs_a_loss_that_takes_it(tmp_path):
    file = tmp_path / "asking.py"
    keys = {"suites": ["workbench"]}
    pairing = {"name": "chosen-failure", "args": {"unpaired": True}}
    with pytest.raises(RecipeError, match="TRL's losses take none: set loss"):
        make_recipe({**keys, "preference": {"pairing": pairing}})
    file.write_text(ASKING)
    with pytest.raises(RecipeError, match="the pair loss Asking takes none"):
        make_recipe({**keys, "preference": {"pairing": pairing, "loss": str(file)}})
    file = tmp_path / "lone.py"
    file.write_text(LONE)
    make_recipe({**keys, "preference": {"pairing": pairing, "loss": str(file)}})


def test_in_a_run_failures_without_a_repair_stand_alone_and_pairs_keep_what_was_said(tmp_path):
    (tmp_path / "lone.py").write_text(LONE)
    pairing = {"name": "chosen-failure", "args": {"unpaired": True}}
    preference = {"pairing": pairing, "loss": str(tmp_path / "lone.py")}
    evolution = run_in(tmp_path / "run", preference=preference, repair={"k": 1})
    told = RunReader.open(tmp_path / "run").stages(1)
    pairs = evolution.learner.seen
    alone = [pair for pair in pairs if not pair.chosen_ids]
    assert told["pairs"]["pairing"] == {"alone": len(alone)}
    assert 0 < len(alone) < len(pairs) == told["collect"]["failures"]
    assert all(pair.repair == -1 and any(pair.rejected_mask) for pair in alone)
    assert all(pair.feedback for pair in pairs)
    assert all(bool(pair.repair_prompt_ids) == bool(pair.chosen_ids) for pair in pairs)


def test_the_turn_that_a_verifier_faults_is_found_in_what_a_model_wrote(tmp_path):
    """A policy that acts: of each of its messages the tokens, tools' results in between."""
    tokenizer = tiny.make_tokenizer()
    tiny.acting_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made = learner(tmp_path)
    tried = made.rollout(requests(made) * 4, seed=1)
    assert max(len(trajectory.messages) for trajectory in tried) > 2
    for failed in tried:
        spoken = [i for i, message in enumerate(failed.messages) if message["role"] == "assistant"]
        for turn, step in enumerate(spoken):
            card = ScoreCard({"security": Score(0.0, step=step)})
            pair = pair_of((failed, card), (failed, card), failed, 1)
            assert fault_turn(pair) == turn
            said = tokenizer.decode(pair.rejected_ids[slice(*pair.fault)])
            assert all(call["function"]["name"] in said for call in failed.messages[step].get("tool_calls") or ())
