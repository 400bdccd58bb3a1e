"""TRL's own losses on pairs of trajectories, reached by `preference.loss_type`: each by what shows that it works."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
pytest.importorskip("tiny")

import torch
from test_pair_facts import FULL, Asks, asked, trainer_of
from test_pair_losses import log_prob, lone, of_all
from test_preference import KEYS, moved, pair
from test_stages import folder, learner  # noqa: F401 (a fixture)

torch.set_num_threads(1)


def flipped(of):
    return dataclasses.replace(
        of,
        chosen_ids=of.rejected_ids,
        chosen_mask=of.rejected_mask,
        rejected_ids=of.chosen_ids,
        rejected_mask=of.chosen_mask,
    )


def loss_on(tmp_path, pairs, **keys):
    return asked(moved(trainer_of(None, tmp_path, pairs, **keys))).item()


def stage(folder, pairs, start=None, **keys):  # noqa: F811
    made = learner(folder, preference={**KEYS, **keys})
    if start is not None:
        made.load(str(start))
    return made, made.preference(pairs, 3)


def test_robust_with_a_fifth_of_the_pairs_flipped_is_the_clean_loss(tmp_path):
    """Its mean over four right pairs and one that is the wrong way round is DPO's of the right ones; DPO's is not."""
    for right in FULL:
        noisy = [*[right] * 4, flipped(right)]
        clean = loss_on(tmp_path, [right])
        robust = loss_on(tmp_path, noisy, loss_type="robust", label_smoothing=0.2)
        assert robust == pytest.approx(clean, abs=1e-5)
        assert loss_on(tmp_path, noisy) != pytest.approx(clean, abs=1e-4)


def test_ipo_is_at_rest_where_the_margin_per_token_is_half_of_one_by_beta(tmp_path):
    """Of a side's own tokens: what a tool said does not divide."""

    def margin(trainer, of):
        sides = []
        for side in ("chosen", "rejected"):
            gain = log_prob(trainer.model, of, side) - log_prob(trainer.ref_model, of, side)
            sides.append(gain / sum(getattr(of, f"{side}_mask")))
        return sides[0] - sides[1]

    def slope(of, beta):
        trainer = moved(trainer_of(None, tmp_path, [of], loss_type="ipo", beta=beta))
        asked(trainer).backward()
        return max(p.grad.abs().max().item() for p in trainer.model.parameters() if p.grad is not None)

    for given in FULL[1], FULL[3]:  # a tool spoke in both
        found = margin(moved(trainer_of(None, tmp_path, [given])), given)
        of, rest = (given, found) if found > 0 else (flipped(given), -found)
        assert slope(of, 1 / (2 * rest)) < 1e-3 * slope(of, 1 / (4 * rest))


def test_exo_pair_is_the_divergence_to_the_smoothed_label(tmp_path):
    """KL of (sigma(z), sigma(-z)) from (1 - epsilon, epsilon), z the pair's margin times beta."""
    epsilon = 0.1
    beta = 0.5
    clean = loss_on(tmp_path, [FULL[0]], beta=beta)
    z = -math.log(math.expm1(clean))
    q = 1 / (1 + math.exp(-z))
    wanted = q * math.log(q / (1 - epsilon)) + (1 - q) * math.log((1 - q) / epsilon)
    found = loss_on(tmp_path, [FULL[0]], beta=beta, loss_type="exo_pair", label_smoothing=epsilon)
    assert found == pytest.approx(wanted, rel=1e-3)


def test_exo_pair_raises_the_margin(folder):  # noqa: F811
    _, told = stage(folder, FULL, loss_type="exo_pair", label_smoothing=1e-3, max_steps=12)
    assert told["margin"] > 0
    assert told["accuracy"] > 0.5


@pytest.mark.parametrize("tau", [0.05, 0.2])
def test_discopop_learns_the_wrong_way_at_its_default_tau_and_is_warned_of(folder, caplog, tau):  # noqa: F811
    """Its slope at margin 0 is -.75 + .0767 / tau: positive below a tau of .102."""
    keys = {"loss_type": "discopop", "discopop_tau": tau, "max_steps": 20, "learning_rate": 1e-3}
    _, told = stage(folder, FULL, **keys)
    assert (told["margin"] > 0) == (tau > 0.102)
    assert ("learned the wrong way" in caplog.text) == (tau < 0.102)


def test_sigmoid_sft_keeps_repairs_likely_while_the_margin_rises_and_sigmoid_alone_does_not(folder, tmp_path):  # noqa: F811
    """From a policy that has learned the repairs: pairs of one prompt, where what is chosen in one is rejected in
    another."""
    answers = [(token, 1) for token in (22, 24, 28, 31)]
    pairs = [pair((3, 20, 21), *both) for both in itertools.pairwise(answers)]
    whole = {"per_device_train_batch_size": 3, "beta": 0.1}
    warm, _ = stage(folder, pairs, loss_type=["sft"], max_steps=40, **whole)
    warm.save(str(tmp_path / "warm"))
    before = of_all(warm.model, "chosen", pairs)
    after = {}
    for name, losses in {"alone": "sigmoid", "with sft": ["sigmoid", "sft"]}.items():
        made, told = stage(folder, pairs, tmp_path / "warm", loss_type=losses, max_steps=20, **whole)
        assert told["margin"] > 0.5
        after[name] = of_all(made.model, "chosen", pairs)
    assert after["alone"] < before - 1
    assert after["with sft"] > before


def test_f_divergence_type_reverse_kl_is_sigmoid_to_the_bit(tmp_path):
    losses = [asked(moved(trainer_of(None, tmp_path, **keys))) for keys in ({}, {"f_divergence_type": "reverse_kl"})]
    assert torch.equal(*losses)


def test_f_divergence_type_js_bounds_the_chosen_sides_reward_by_beta_log_2(tmp_path):
    """Beside a side that is not there, however far the policy goes; reverse KL has no such bound."""
    sided = trainer_of(Asks(unpaired=True), tmp_path, [lone(FULL[0], "rejected")])
    batch = sided.data_collator([sided.train_dataset[0]])
    optimiser = torch.optim.Adam(sided.model.parameters(), lr=1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        sided.compute_loss(sided.model, batch).backward()
        optimiser.step()

    def reward(kind):
        trainer = trainer_of(None, tmp_path, f_divergence_type=kind, beta=1.0)
        trainer.model.load_state_dict(sided.model.state_dict())
        return -math.log(math.expm1(trainer.compute_loss(trainer.model, batch).item()))

    assert 0.5 < reward("js_divergence") <= math.log(2) + 1e-6
    assert reward("reverse_kl") > 4
