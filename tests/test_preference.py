"""The preference stage: pairs, TRL's losses on our masks, its reference, checkpoints, and a recipe's keys for it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from test_checkpoints import At, Killed, losses
from test_stages import folder, learner  # noqa: F401 (a fixture)
from trl import DPOConfig, DPOTrainer

from fate_trl import plugins
from fate_trl.choose.pairings import ChosenFailure, pair_of
from fate_trl.errors import FateError, PluginError, RecipeError
from fate_trl.hookspecs import Tried
from fate_trl.ledger import fsck
from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.loop.pairing import pairs_of
from fate_trl.metrics.concerns import diagnose
from fate_trl.recipe.components import components_of, plugins_of
from fate_trl.recipe.loading import make_recipe
from fate_trl.report import charts, page
from fate_trl.report.reading import Run
from fate_trl.report.summary import summarise
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.train import learner as torch_learner
from fate_trl.train.preference import SETTINGS, PairCollator, PairTrainer, dropout_kept, rows_of, summary_of
from fate_trl.train.prefix import support
from fate_trl.train.prefix.sharing import share_training
from fate_trl.types import Failure, Pair, Repair, Score, ScoreCard, Task, Trajectory

torch.set_num_threads(1)

KEYS = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_steps": 1, "use_cpu": True}
LORA = {"lora": {"r": 4, "lora_dropout": 0.1}, "threads": 1}


def pair(prompt=(3, 20, 21), chosen=(22, 23, 1), rejected=(24, 25, 26, 1), chosen_mask=None, rejected_mask=None):
    return Pair(
        "till",
        "t",
        1,
        prompt,
        chosen,
        chosen_mask or (1,) * len(chosen),
        rejected,
        rejected_mask or (1,) * len(rejected),
        0.5,
        0,
        0,
    )


PAIRS = [
    pair(),
    pair((3, 27), (28, 29, 30, 1), (31, 32, 1), (1, 0, 1, 1), (1, 0, 1)),
    pair((3, 33, 34), (35, 1), (36, 37, 38, 39, 1)),
    pair((3, 40), (41, 42, 1), (43, 1), (1, 0, 1)),
]
SINGLE = [PAIRS[0], PAIRS[2]]
"""Pairs of one turn: the policy wrote all that follows the prompt."""


def trainer_of(pairs, tmp_path, model=None, pair_loss=None, **keys):
    tokenizer = tiny.make_tokenizer()
    defaults = {**SETTINGS, "output_dir": str(tmp_path), "report_to": "none", "disable_tqdm": True, "bf16": False}
    defaults |= {"gradient_checkpointing": False, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    args = DPOConfig(**{**defaults, **keys})
    return PairTrainer(
        model or tiny.make_model(tokenizer), args, rows_of(pairs, args.max_length), tokenizer, [], pair_loss
    )


def moved(trainer, seed=5):
    """The trainer's model away from its reference, so that margins are not 0."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return trainer


def loss_of(trainer):
    """The loss of one batch of all its rows, in float64 as a number, and as it is."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    return trainer.compute_loss(trainer.model, batch)


# ------------------------------------------------------------------------------------------------ the losses


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "sigmoid_norm"])
def test_on_pairs_of_one_turn_a_loss_and_its_gradient_equal_trls_to_the_bit(tmp_path, loss):
    ours = moved(trainer_of(SINGLE, tmp_path, loss_type=loss))
    tokenizer = tiny.make_tokenizer()
    theirs = moved(
        DPOTrainer(
            tiny.make_model(tokenizer),
            ref_model=tiny.make_model(tokenizer),
            args=ours.args,
            train_dataset=Dataset.from_list([{"prompt": "pay", "chosen": "done", "rejected": "fine"}]),
            processing_class=tokenizer,
        )
    )
    rows = [{name: list(getattr(p, f"{name}_ids")) for name in ("prompt", "chosen", "rejected")} for p in SINGLE]
    batch = theirs.data_collator([{f"{name}_ids": ids for name, ids in row.items()} for row in rows])
    expected, got = theirs.compute_loss(theirs.model, batch), loss_of(ours)
    assert torch.equal(got, expected)
    got.backward()
    expected.backward()
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if b.grad is not None)


@pytest.mark.parametrize("loss", [["sigmoid", "sft"], ["ipo"], ["robust"]])
def test_what_a_tool_said_gets_gradient_0(tmp_path, loss):
    """At each place of the last layer whose next token a tool wrote, or the prompt has."""
    ours = moved(trainer_of(PAIRS, tmp_path, loss_type=loss))
    batch = ours.data_collator([ours.train_dataset[i] for i in range(len(PAIRS))])
    hidden = []

    def keep(module, _, output):
        output.retain_grad()
        hidden.append(output)

    hook = ours.model.model.norm.register_forward_hook(keep)
    ours.compute_loss(ours.model, batch).backward()
    hook.remove()
    own = torch.nn.functional.pad(batch["completion_mask"][:, 1:], (0, 1)).bool()
    moving = hidden[0].grad.abs().sum(dim=-1) > 0
    assert moving[own].all()
    assert not moving[~own].any()
    assert own.sum() == sum(sum(p.chosen_mask) + sum(p.rejected_mask) for p in PAIRS)


@pytest.mark.parametrize(
    "keys",
    [
        {"loss_type": "robust", "label_smoothing": 0.0},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.0]},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
    ],
    ids=["robust without noise", "sigmoid and nothing of sft", "alpha divergence at 1"],
)
def test_at_its_neutral_argument_a_loss_is_dpos(tmp_path, keys):
    assert loss_of(moved(trainer_of(PAIRS, tmp_path, **keys))).item() == pytest.approx(
        loss_of(moved(trainer_of(PAIRS, tmp_path))).item(), abs=1e-6
    )


@pytest.mark.parametrize(
    "keys",
    [
        {"loss_type": "robust", "label_smoothing": 0.2},
        {"loss_type": ["sigmoid", "sft"]},
        {"loss_type": "ipo"},
        {"loss_type": "discopop"},
        {"loss_type": "exo_pair", "label_smoothing": 1e-3},
        {"f_divergence_type": "forward_kl"},
        {"f_divergence_type": "js_divergence"},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    ],
    ids=lambda keys: " ".join(map(str, keys.values())),
)
def test_elsewhere_it_is_another_and_finite(tmp_path, keys):
    ours, dpo = (loss_of(moved(trainer_of(PAIRS, tmp_path, **k))).item() for k in (keys, {}))
    assert abs(ours) < 1e4
    assert ours != pytest.approx(dpo, abs=1e-6)


class Dpo:
    """DPO, as a plugin would write it, which keeps what it was given."""

    def __call__(self, batch):
        self.batch = batch
        margin_B = batch.chosen.log_ratio_B - batch.rejected.log_ratio_B
        return -torch.nn.functional.logsigmoid(batch.beta * margin_B).mean()


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "adapter"])
def test_a_plugins_dpo_is_trls_to_the_bit(tmp_path, adapter):
    def model():
        whole = tiny.make_model(tiny.make_tokenizer())
        return get_peft_model(whole, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))

    def made(loss):
        torch.manual_seed(1)
        return trainer_of(PAIRS, tmp_path, model() if adapter else None, loss)

    def shifted(trainer):
        torch.manual_seed(5)
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if ".default." in name or not adapter:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        return trainer

    own = Dpo()
    ours, theirs = (loss_of(shifted(made(loss))) for loss in (own, None))
    assert torch.equal(ours.detach(), theirs.detach())
    assert theirs.item() != pytest.approx(0.6931, abs=1e-3)
    assert torch.equal(own.batch.score_gap_B, torch.full((4,), 0.5))
    assert own.batch.chosen.turn_B_T[1].tolist()[:5] == [-1, 0, -1, 1, 1]
    assert (own.batch.chosen.logps_B_T[own.batch.chosen.turn_B_T < 0] == 0).all()


@pytest.mark.parametrize(
    "wrong",
    [0.5, None, torch.zeros(2, requires_grad=True), torch.tensor(0.5), torch.tensor(torch.inf, requires_grad=True)],
)
def test_a_pair_loss_that_returns_no_scalar_with_a_gradient_is_named(tmp_path, wrong):
    class Odd:
        def __call__(self, batch):
            return wrong

    with pytest.raises(PluginError, match="the pair loss Odd returned"):
        loss_of(trainer_of(PAIRS, tmp_path, pair_loss=Odd()))


def test_a_length_limit_keeps_the_start_and_leaves_out_what_has_no_own_token_then():
    assert len(rows_of(PAIRS, None)) == 4
    assert [row["prompt_ids"] for row in rows_of(PAIRS, 3)] == [[3, 27], [3, 40]]
    batch = PairCollator(0, 4, 3)(rows_of(PAIRS, 4))
    assert batch["input_ids"].shape == (8, 6)
    assert batch["attention_mask"].sum(dim=1).max() == 4


# ------------------------------------------------------------------------------------------------ shared prompts


LONG = [
    pair(tuple(range(3, 33)), (22, 23, 1), (24, 25, 26, 1)),
    pair(tuple(range(3, 33)), (22, 23, 30, 1), (22, 23, 31, 41, 1), (0, 0, 1, 1), (0, 0, 1, 0, 1)),
    pair(tuple(range(5, 20)), (28, 29, 30, 1), (31, 32, 1), (1, 0, 1, 1), (1, 0, 1)),
]
"""Long prompts, one of them of two pairs, and sides that begin alike."""


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.5]},
        {"use_weighting": True},
        {"ld_alpha": 0.5},
        {"pair_loss": Dpo()},
    ],
    ids=["sigmoid", "ipo and sft", "weighted", "by length", "a plugin's"],
)
@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "adapter"])
def test_shared_prompts_have_the_same_loss_gradients_and_metrics(tmp_path, adapter, keys, monkeypatch):
    found = []
    widths = []
    for shares in (False, True):
        torch.manual_seed(1)
        model = tiny.make_model(tiny.make_tokenizer())
        if adapter:
            model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        made = trainer_of(LONG, tmp_path, model, **keys)
        torch.manual_seed(5)
        with torch.no_grad():
            for name, parameter in made.model.named_parameters():
                if not adapter or ".default." in name:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        if shares:
            share_training(made, made.head_fields)
        embedded = made.model.get_input_embeddings()
        hook = embedded.register_forward_hook(lambda _, given, __: widths.append(given[0].numel()))
        loss = loss_of(made)
        hook.remove()
        loss.backward()
        gradients = {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None}
        metrics = {name: values[-1] for name, values in made._metrics["train"].items()}
        found.append((loss.detach(), gradients, metrics))
    (loss, gradients, metrics), (ours, same, told) = found
    assert ours == pytest.approx(loss.item(), abs=1e-5)
    assert gradients.keys() == same.keys()
    assert all(torch.allclose(same[name], gradients[name], atol=1e-5) for name in gradients)
    assert told == pytest.approx(metrics, abs=1e-4)
    assert widths[-1] < widths[0] / 2, "prompts are read once"


def sharing(made):
    made.recipe.share_prefixes = True
    return made


def test_a_model_that_cannot_share_learns_trls_way_and_says_so_once(folder, caplog, monkeypatch):  # noqa: F811
    monkeypatch.setattr(support, "of_trainer", lambda trainer: "its layers look back three tokens")
    monkeypatch.setattr(support, "_said", set())
    made = sharing(learner(folder, preference=KEYS))
    first, _ = made.preference(LONG, 3), made.preference(LONG, 4)
    assert caplog.text.count("Training runs as TRL does it, prefixes are not shared: its layers look back") == 1
    plain = learner(folder, preference=KEYS).preference(LONG, 3)
    assert losses(first) == losses(plain), "to the bit"


@pytest.mark.parametrize("model", [{}, LORA], ids=["all weights", "adapter"])
def test_a_stage_with_shared_prompts_learns_the_same(folder, model):  # noqa: F811
    keys = {**KEYS, "learning_rate": 1e-3}
    plain = learner(folder, model=model, preference=keys).preference(LONG, 3)
    shares = sharing(learner(folder, model=model, preference=keys)).preference(LONG, 3)
    assert losses(shares) == pytest.approx(losses(plain), abs=1e-4)
    assert shares["margin"] == pytest.approx(plain["margin"], abs=1e-3)
    assert losses(shares) != losses(plain), "sums in another order: it was not TRL's way"


# ------------------------------------------------------------------------------------------------ the stage


def margin(made, pairs):
    """Mean over pairs of the log-probability of the chosen side's own tokens less that of the rejected one's."""
    made.model.eval()
    batch = PairCollator(0)(rows_of(pairs, None))
    with torch.no_grad():
        logits = made.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    chosen, rejected = (logps * batch["completion_mask"][:, 1:]).sum(dim=1).chunk(2)
    return (chosen - rejected).mean().item()


@pytest.mark.parametrize("model", [{}, LORA], ids=["all weights", "adapter"])
def test_the_stage_raises_the_margin_and_says_so(folder, model):  # noqa: F811
    made = learner(folder, model=model, preference={**KEYS, "max_steps": 12})
    dropout = [module.p for module in made.model.modules() if isinstance(module, torch.nn.Dropout)]
    before = margin(made, PAIRS)
    told = made.preference(PAIRS, 3)
    assert margin(made, PAIRS) > before
    assert told["rows"] == 4
    assert told["steps"] == 12
    assert told["accuracy"] > 0.5
    assert told["margin"] > 0
    assert told["chosen_tokens_mean"] == pytest.approx((3 + 3 + 2 + 2) / 4)
    assert told["log"][0]["rewards/margins"] == pytest.approx(0, abs=1e-6), "the reference is the stage's start"
    assert [m.p for m in made.model.modules() if isinstance(m, torch.nn.Dropout)] == dropout
    again = made.preference(PAIRS, 4)
    assert again["log"][0]["rewards/margins"] == pytest.approx(0, abs=1e-6), "of the next stage its own start"


def test_discopop_learns_the_wrong_way_from_its_reference_and_that_is_said(folder, caplog):  # noqa: F811
    keys = {"loss_type": "discopop", "max_steps": 20, "learning_rate": 1e-3, "beta": 0.1}
    made = learner(folder, preference={**KEYS, **keys})
    told = made.preference(PAIRS, 3)
    assert told["accuracy"] < 0.5
    assert "learned the wrong way" in caplog.text
    caplog.clear()
    learner(folder, preference=KEYS).preference(PAIRS, 3)
    assert "wrong way" not in caplog.text


def test_no_pair_short_enough_is_said(folder):  # noqa: F811
    with pytest.raises(FateError, match=r"preference.max_length is 2: none of 4 pairs"):
        learner(folder, preference={**KEYS, "max_length": 2}).preference(PAIRS, 3)


@pytest.mark.parametrize("model", [{}, LORA], ids=["all weights", "adapter"])
def test_killed_and_resumed_it_ends_with_the_same_weights(folder, tmp_path, monkeypatch, model):  # noqa: F811
    whole = learner(folder, model=model, preference=KEYS)
    unbroken = whole.preference(PAIRS, 3, str(tmp_path / "whole"))

    def kill():
        raise Killed

    first = learner(folder, model=model, preference=KEYS)
    monkeypatch.setattr(torch_learner, "_Steps", lambda reporter: At(4, kill))
    with pytest.raises(Killed):
        first.preference(PAIRS, 3, str(tmp_path / "part"))
    monkeypatch.undo()
    last = learner(folder, model=model, preference=KEYS)
    resumed = last.preference(PAIRS, 3, str(tmp_path / "part"))
    assert losses(resumed) == losses(unbroken)
    assert len(losses(resumed)) == 6
    assert {key: resumed[key] for key in ("margin", "accuracy")} == {k: unbroken[k] for k in ("margin", "accuracy")}
    after, wanted = last.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)


def test_the_report_shows_margins_accuracy_and_lengths(folder, tmp_path):  # noqa: F811
    told = learner(folder, preference=KEYS).preference(PAIRS, 3)
    run_in(tmp_path / "run", preference={}, told=told)
    found = summarise(Run.open(tmp_path / "run"))
    assert len(found["training"]["preference"]["rewards/margins"]) == 6
    titles = [chart.title for chart in charts.training(found)]
    assert {title for title in titles if title.startswith("Preference")} == {
        "Preference: pairs in which the chosen side is ahead",
        "Preference: margin between the sides",
    }
    (items,) = [row["items"] for row in found["cost"] if row["stage"] == "preference"]
    assert "of the pairs" in items
    assert "tokens 2.5 chosen, 3.25 rejected" in items


def test_the_report_has_a_round_of_pairs_with_the_components_own_numbers(tmp_path):
    told = {"accuracy": 0.75, "margin": 0.2, "chosen_tokens_mean": 2.0, "rejected_tokens_mean": 3.5}
    told["pair_loss"] = {"multiplier_mean": 1.25}
    path = tmp_path / "own.py"
    path.write_text(OWN_NUMBERS)
    run_in(tmp_path / "run", preference={"pairing": str(path)}, told=told)
    run = Run.open(tmp_path / "run")
    (found,) = summarise(run)["pairs"]
    made = [json.loads(line) for line in (tmp_path / "run/rounds/01/pairs.jsonl").read_text().splitlines()]
    assert (found["pairs"], found["left_out"]) == (len(made), 0)
    assert found["rejected"] == {"the failure": len(made)}
    gaps = [pair["score_gap"] for pair in made]
    assert found["gap"] == pytest.approx({"mean": sum(gaps) / len(gaps), "low": min(gaps), "high": max(gaps)})
    assert (found["accuracy"], found["margin"], found["tokens"]) == (0.75, 0.2, {"chosen": 2.0, "rejected": 3.5})
    assert found["own"] == [["pairing", "wide share", 0.5], ["pair loss", "multiplier mean", 1.25]]
    text = page.report(run)
    assert 'id="pairs"' in text
    assert "multiplier mean" in text


OWN_NUMBERS = """
from fate_trl import Component, hookimpl, pair_of

class Own:
    def pairs(self, tried):
        chosen = [r for r in tried.repairs if r.chosen is not None]
        return [
            pair_of((r.candidates[r.chosen], r.cards[r.chosen]), (r.failure.trajectory, r.failure.card),
                    r.failure.trajectory, tried.round)
            for r in chosen
        ]

    def metrics(self):
        return {"wide_share": 0.5}

@hookimpl
def fate_trl_pairings():
    return [Component("own", Own, "with numbers of its own")]
"""


def test_what_learned_the_wrong_way_is_a_concern():
    (concern,) = diagnose([], {1: {"preference": {"accuracy": 0.03, "margin": -0.2}}})
    assert concern.rule == "wrong-way"
    assert "3 %" in concern.text
    still = {"accuracy": 0.03, "margin": 0.1}
    assert diagnose([], {1: {"preference": still}}) == [], "pairs that have not moved are not ahead"


def test_dropout_is_given_back_after_an_error_too():
    model = torch.nn.Sequential(torch.nn.Dropout(0.3))

    def switched_off():
        with dropout_kept(model):
            model[0].p = 0.0
            raise Killed

    with pytest.raises(Killed):
        switched_off()
    assert model[0].p == 0.3


def test_a_stage_without_a_log_has_no_margin():
    assert set(summary_of(rows_of(PAIRS, None), [])) == {"chosen_tokens_mean", "rejected_tokens_mean"}


# ------------------------------------------------------------------------------------------------ pairs


def card(**values):
    return ScoreCard({name: Score(v) if v is not None else Score.not_applicable() for name, v in values.items()})


TASK = Task("t", "till", "benign", ({"role": "user", "content": "pay"},))
FAILED = Trajectory(
    TASK, TASK.messages, prompt_ids=(3, 4), completion_ids=(5, 6, 7, 8), policy_mask=(1, 0, 1, 1), stage="collect"
)
REPAIRED = Trajectory(
    TASK,
    ({"role": "user", "content": "pay, better"},),
    prompt_ids=(9, 9),
    completion_ids=(10, 11),
    policy_mask=(1, 1),
    stage="repair",
    attempt=2,
)
AGAIN = dataclasses.replace(REPAIRED, prompt=(*TASK.messages, {"role": "assistant", "content": "look"}))


def repair(chosen=REPAIRED, failed=FAILED, index=0):
    failure = Failure(failed, card(security=1.0, utility=0.0, over_refusal=None))
    return Repair(failure, (chosen,), (card(security=1.0, utility=1.0, over_refusal=None),), chosen=index)


def paired(repairs, round, by=None):
    return pairs_of(by or ChosenFailure(), Tried(round, repairs))


def test_a_repair_and_its_failure_stand_under_the_plain_prompt():
    (made,), counts = paired([repair(), repair(index=None)], 3)
    assert counts == {"pairs": 1}
    told = {"repair_prompt_ids": (9, 9)}
    assert made == Pair("till", "t", 3, (3, 4), (10, 11), (1, 1), (5, 6, 7, 8), (1, 0, 1, 1), 0.5, 0, 2, **told)
    assert Pair.from_dict(made.to_dict()) == made


def test_turns_that_both_sides_begin_with_get_no_loss():
    went_on = dataclasses.replace(AGAIN, prompt_ids=(3, 4, 5, 6))
    ((made,), _) = paired([repair(went_on)], 1)
    assert (made.prompt_ids, made.chosen_ids, made.chosen_mask) == ((3, 4), (5, 6, 10, 11), (0, 0, 1, 1))
    assert (made.rejected_ids, made.rejected_mask) == ((5, 6, 7, 8), (0, 0, 1, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        repair(failed=dataclasses.replace(FAILED, prompt_ids=(), completion_ids=(), policy_mask=())),
        repair(dataclasses.replace(REPAIRED, completion_ids=(), policy_mask=())),
        repair(dataclasses.replace(AGAIN, prompt_ids=(3, 4, 99))),
        repair(dataclasses.replace(AGAIN, prompt_ids=(99, 4, 5, 6))),
        repair(dataclasses.replace(REPAIRED, policy_mask=(0, 0))),
    ],
    ids=["recorded failure", "recorded repair", "another beginning", "another prompt", "no own token"],
)
def test_what_cannot_be_paired_is_counted(wrong):
    assert paired([wrong], 1) == ([], {"pairs": 0, "pairs_left_out": 1})


class Given:
    """A pairing that returns what it was given."""

    def __init__(self, answer):
        self.answer = answer

    def pairs(self, tried):
        return self.answer

    def metrics(self):
        return {"asked": 1}


FITS = pair_of((REPAIRED, card(utility=1.0)), (FAILED, card(utility=0.0)), FAILED, 1)


def test_a_pairing_is_asked_and_its_own_numbers_stand_in_the_record():
    made, counts = paired([repair()], 1, Given([FITS, None, FITS]))
    assert made == [FITS, FITS]
    assert counts == {"pairs": 2, "pairs_left_out": 1, "pairing": {"asked": 1.0}}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((FITS,), "returned"),
        ([{"suite": "till"}], "it returns a list of Pair"),
        ([dataclasses.replace(FITS, round=2)], "is of another round"),
        ([dataclasses.replace(FITS, task="secret")], "or of a task without a failure in it"),
        ([dataclasses.replace(FITS, chosen_mask=(1,))], "a mask of another length"),
        ([dataclasses.replace(FITS, prompt_ids=())], "has no prompt"),
        ([dataclasses.replace(FITS, rejected_mask=(0, 0, 0, 0))], "has a side without loss"),
    ],
    ids=["no list", "no pair", "another round", "another task", "short mask", "no prompt", "no loss"],
)
def test_a_pairing_that_returns_what_cannot_be_trained_on_is_named(answer, said):
    with pytest.raises(PluginError, match=f"the pairing Given.*{said}"):
        paired([repair()], 1, Given(answer))


def test_either_side_may_be_another_candidate_and_the_pair_says_which():
    other = dataclasses.replace(REPAIRED, attempt=1, completion_ids=(12, 13, 14), policy_mask=(1, 1, 1))
    made = pair_of((REPAIRED, card(utility=1.0)), (other, card(utility=0.5)), FAILED, 2)
    assert (made.prompt_ids, made.chosen_ids, made.rejected_ids) == ((3, 4), (10, 11), (12, 13, 14))
    assert (made.rejected_stage, made.rejected_round, made.failure, made.repair) == ("repair", 0, 1, 2)
    both = (dataclasses.replace(AGAIN, prompt_ids=(3, 4, 5, 6), attempt=n, completion_ids=(9, n)) for n in (1, 2))
    made = pair_of(*((side, card(utility=1.0)) for side in both), FAILED, 2)
    assert (made.chosen_ids, made.rejected_ids) == ((5, 6, 9, 1), (5, 6, 9, 2))
    assert made.chosen_mask == made.rejected_mask == (0, 0, 1, 1), "turns that both were given"


# ------------------------------------------------------------------------------------------------ rounds


class Tokens(ScriptedLearner):
    """A scripted learner whose trajectories have tokens, as a model's have; it is killed when asked to train on pairs
    while `deadly`."""

    deadly = False
    seen: tuple[Pair, ...] = ()
    told: Mapping[str, Any] = MappingProxyType({})

    def rollout(self, requests, seed):
        return [
            dataclasses.replace(t, prompt_ids=(1, 2), completion_ids=(3, 4, len(t.calls)), policy_mask=(1, 0, 1))
            for t in super().rollout(requests, seed)
        ]

    def preference(self, pairs, seed, scratch=None):
        if self.deadly:
            raise Killed
        self.seen = tuple(pairs)
        return {**super().preference(pairs, seed, scratch), **self.told}


RUN = {
    "suites": [{"name": "workbench", "args": {"train": 12, "validation": 6, "test": 6}}],
    "evaluation": {"baselines": False},
    "repair": {"k": 3},
    "rounds": 1,
}


def run_in(path, deadly=False, told=None, **changes):
    def made(suites, *_):
        learner = Tokens(suites)
        learner.deadly = deadly
        learner.told = told or {}
        return learner

    recipe, run = make_recipe({**RUN, **changes}), RunDirectory(path)
    run.write_text("recipe.yaml", recipe.dump())
    evolution = assemble(recipe, run, made)
    evolution()
    return evolution


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        ({}, ["sft", "preference", "pfpo"]),
        ({"sft": None}, ["preference", "pfpo"]),
        ({"pfpo": None}, ["sft", "preference"]),
        ({"sft": None, "pfpo": None}, ["preference"]),
    ],
    ids=["beside both", "in the place of sft", "in the place of pfpo", "alone"],
)
def test_a_round_learns_from_its_pairs(tmp_path, changes, order):
    evolution = run_in(tmp_path / "run", preference={}, **changes)
    assert [stage for stage, _ in evolution.learner.trained] == order
    reader = RunReader.open(tmp_path / "run")
    pairs = [Pair.from_dict(record) for record in reader.read("rounds/01/pairs.jsonl")]
    chosen = [record for record in reader.read("rounds/01/selections.jsonl") if record["chosen"] is not None]
    assert len(pairs) == len(chosen) == reader.stages(1)["pairs"]["pairs"] > 0
    assert [[p.suite, p.task, p.failure] for p in pairs] == [record["failure"][1:] for record in chosen]
    assert [p.repair for p in pairs] == [record["candidates"][record["chosen"]][3] for record in chosen]
    assert all(0 < p.score_gap <= 1 for p in pairs), "what resolves is better than what failed"
    assert evolution.learner.seen == tuple(pairs)


def test_without_the_key_a_round_is_what_it_was(tmp_path):
    evolution = run_in(tmp_path / "run")
    assert [stage for stage, _ in evolution.learner.trained] == ["sft", "pfpo"]
    assert not (tmp_path / "run/rounds/01/pairs.jsonl").exists()


def test_a_run_killed_in_the_stage_goes_on_with_the_same_pairs(tmp_path):
    run_in(tmp_path / "whole", preference={})
    with pytest.raises(Killed):
        run_in(tmp_path / "part", deadly=True, preference={})
    run_in(tmp_path / "part", preference={})
    files = ("rollouts", "repairs", "selections", "buffer", "pairs")
    for name in files:
        whole, part = ((tmp_path / which / f"rounds/01/{name}.jsonl").read_bytes() for which in ("whole", "part"))
        assert whole == part


def test_a_damaged_pair_is_made_again(tmp_path):
    run_in(tmp_path / "run", preference={})
    file = tmp_path / "run/rounds/01/pairs.jsonl"
    good = file.read_bytes()
    file.write_bytes(b"{]\n" + good)
    (damage,) = fsck.repair(RunDirectory(tmp_path / "run"))
    assert (damage.file, damage.again) == ("rounds/01/pairs.jsonl", {"pairs"})
    run_in(tmp_path / "run", preference={})
    assert file.read_bytes() == good


# ------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"loss_type": "sigmoyd"}, "TRL has no 'sigmoyd'; did you mean 'sigmoid'"),
        ({"loss_type": ["sigmoid", "x"]}, "TRL has no 'x'"),
        ({"loss_type": []}, "it is one of sigmoid"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "as many numbers"),
        ({"loss_type": "exo_pair"}, "exo_pair needs label_smoothing above 0"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, r"with robust it is in \[0, 0.5\)"),
        ({"loss_type": "aot", "use_weighting": True}, "cannot go with aot"),
        ({"f_divergence_type": "kl"}, "TRL has no 'kl'"),
        ({"f_divergence_type": "forward_kl", "loss_type": "nca_pair"}, "cannot go with the loss nca_pair"),
        ({"beta": 0}, "preference.beta is 0; it is above 0"),
        ({"learning_rate": 0}, "preference.learning_rate is 0; it is above 0"),
        ({"bata": 0.1}, "unknown recipe key 'preference.bata'; did you mean 'beta'"),
        ({"pairing": {"name": "chosen-failure", "args": {"margin": 1}}}, "does not take 'margin'"),
        ({"sync_ref_model": True}, "the reference is the policy as the stage finds it"),
        ({"precompute_ref_log_probs": True}, "the reference is the policy as the stage finds it"),
        ({"padding_free": True}, "neither padding_free"),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_recipe_is_told_before_a_model_loads(keys, said):
    with pytest.raises(RecipeError, match=said):
        make_recipe({"suites": ["workbench"], "preference": keys})


PAGE = Path(__file__).parent.parent / "docs/method.md"


def written(where, name):
    """A file of the documentation, as it stands there."""
    (text,) = re.findall(rf'```python title="{name}"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = where / name
    path.write_text(text)
    return path


@pytest.fixture
def documented(tmp_path):
    """The pair loss of the documentation, in a file of its own."""
    return written(tmp_path, "sure.py")


def test_the_pairing_of_the_documentation_pairs_the_shortest_candidate_that_resolves(tmp_path):
    path = written(tmp_path, "brief.py")
    evolution = run_in(tmp_path / "run", preference={"pairing": {"name": str(path), "args": {"calls": 3}}})
    pairs = evolution.learner.seen
    assert pairs
    cases = RunReader.open(tmp_path / "run").cases("rounds/01/repairs.jsonl", "repair")
    resolved = {(t.task.id, t.attempt): len(t.calls) for t, card in cases if card.resolved}
    for pair in pairs:
        others = [calls for (task, _), calls in resolved.items() if task == pair.task]
        assert resolved[pair.task, pair.repair] == min(others) <= 3


def test_the_pair_loss_of_the_documentation_trains(folder, documented):  # noqa: F811
    keys = {**KEYS, "max_steps": 12, "loss": {"name": str(documented), "args": {"power": 2.0}}}
    recipe = make_recipe({"suites": ["workbench"], "preference": keys})
    made = learner(folder, preference=keys)
    made.pair_loss = components_of(recipe).pair_loss
    before = margin(made, PAIRS)
    told = made.preference(PAIRS, 3)
    assert margin(made, PAIRS) > before
    assert told["accuracy"] > 0.5


def test_the_documented_loss_is_dpo_where_every_gap_is_1_and_less_below(tmp_path, documented):
    sure = [dataclasses.replace(p, score_gap=1.0) for p in PAIRS]
    own = plugins.load("pair loss", str(documented))
    assert torch.equal(
        loss_of(moved(trainer_of(sure, tmp_path, pair_loss=own))), loss_of(moved(trainer_of(sure, tmp_path)))
    )
    ours, dpo = (loss_of(moved(trainer_of(PAIRS, tmp_path, pair_loss=loss))).item() for loss in (own, None))
    assert ours == pytest.approx(dpo / 2, rel=1e-6)


def test_a_pair_loss_is_checked_with_the_recipe(documented):
    def recipe(**keys):
        return make_recipe({"suites": ["workbench"], "preference": {"loss": str(documented), **keys}})

    assert plugins_of(recipe()) == sorted(["fate-trl", str(documented)])
    with pytest.raises(RecipeError, match=r"preference.loss_type says something of TRL's losses"):
        recipe(loss_type="ipo")
    with pytest.raises(RecipeError, match="does not take 'powr'; did you mean 'power'"):
        recipe(loss={"name": str(documented), "args": {"powr": 1}})
    with pytest.raises(PluginError, match="no pair loss 'nowhere'"):
        recipe(loss="nowhere")
    with pytest.raises(PluginError, match=r"no pairing 'all'. There are: chosen-failure"):
        recipe(pairing="all")


def test_without_repairs_there_are_no_pairs():
    with pytest.raises(RecipeError, match="repair is null, so preference has no pairs"):
        make_recipe({"suites": ["workbench"], "repair": None, "sft": None, "preference": {}})


def test_it_is_left_out_by_default_and_stands_alone_where_asked():
    assert make_recipe({"suites": ["workbench"]}).preference is None
    made = make_recipe({"suites": ["workbench"], "sft": None, "pfpo": None, "preference": {"beta": 0.2}})
    assert made.preference.trl == {"beta": 0.2}


def test_the_method_of_trl_that_is_overridden_is_there():
    assert callable(DPOTrainer._prepare_dataset)
