"""Pair losses with samples of the policy's own: by what shows that they work, exactly and on a tiny model."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
pytest.importorskip("tiny")

import torch
from test_pair_facts import FULL, Asks
from test_pair_losses import batch_of, load, log_prob, of_all, trained
from test_stages import folder, learner  # noqa: F401 (a fixture)

from fate_trl.hookspecs import PairBatch, PairSide

torch.set_num_threads(1)

LENGTH = 4
KEYS = {"learning_rate": 3e-3, "lr_scheduler_type": "constant", "beta": 0.5, "per_device_train_batch_size": 4}


def side(logps_K, reference_K, answers):
    """Answers of one token, with what a policy and a reference over all answers say of them."""
    parts = (logps_K[answers][:, None], reference_K[answers][:, None])
    return PairSide(*parts, torch.zeros(len(answers), 1, dtype=torch.long))


def with_own(given, ratios):
    """A batch whose own samples have these log-ratios, (B, T)."""
    logps = torch.tensor(ratios, requires_grad=True)
    own = PairSide(logps, torch.zeros_like(logps), torch.zeros_like(logps, dtype=torch.long))
    return dataclasses.replace(given, own=own)


# ------------------------------------------------------------------------------------------------ hypo


def test_hypo_divergence_has_the_gradient_of_the_papers_term():
    """lambda sg(log pi / pi_ref) log pi on own samples, and DPO's on the pairs."""
    ratios = [[0.4, -0.1], [-0.7, 0.2]]
    given = with_own(batch_of([[0.3], [0.1]], [[-0.2], [0.5]]), ratios)
    load("hypo", kl=0.3)(given).backward()
    term = torch.tensor(ratios, requires_grad=True)
    (0.3 * (term.sum(dim=1).detach() * term.sum(dim=1)).mean()).backward()
    assert torch.allclose(given.own.logps_B_T.grad, term.grad)
    alone = batch_of([[0.3], [0.1]], [[-0.2], [0.5]])
    load("hypo", kl=0.0)(with_own(alone, ratios)).backward()
    assert torch.equal(given.chosen.logps_B_T.grad, alone.chosen.logps_B_T.grad)


def table(loss, until):
    """(margin, KL) of a policy over six answers that learned from one pair, once `until` of the margin holds or after
    enough steps; KL(policy to reference) is exact.

    Of the two features that tell the sides apart one moves other answers, too, that no pair is of. Own samples are
    drawn from the reference, as at the stage's start.
    """
    features_K_F = torch.tensor([[1.0, 0.5], [-1.0, -0.5], [0.0, 2.0], [0.0, -2.0], [0.0, 1.5], [0.0, -1.0]])
    reference_K = torch.tensor([0.2, 0.2, 0.1, 0.2, 0.2, 0.1]).log()
    weights_F = torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.SGD([weights_F], lr=0.05)
    own = torch.multinomial(reference_K.exp(), 512, replacement=True, generator=torch.Generator().manual_seed(0))
    margin = logps_K = None
    for _ in range(3000):
        logps_K = (reference_K + features_K_F @ weights_F).log_softmax(0)
        margin = (logps_K[0] - logps_K[1]).item()
        if until(margin):
            break
        pair = [side(logps_K, reference_K, torch.full((512,), k)) for k in (0, 1)]
        given = PairBatch(*pair, torch.ones(512), 0.5, own=side(logps_K, reference_K, own))
        optimiser.zero_grad()
        loss(given).backward()
        optimiser.step()
    return margin, (logps_K.exp() * (logps_K - reference_K)).sum().item()


@pytest.mark.parametrize("kl", [0.4, 1.0])
def test_hypo_at_an_equal_margin_is_nearer_to_the_reference_than_dpo(kl):
    """Where it comes to rest, DPO's policy of no greater a margin is farther off."""
    margin, ours = table(load("hypo", kl=kl), lambda _: False)
    reached, dpos = table(load("hypo", kl=0.0), lambda now: now >= 0.99 * margin)
    assert 0.1 < reached <= margin
    assert ours < 0.9 * dpos


def sampled(model, prompt, seed):
    """Tokens that a model writes after a prompt, of LENGTH."""
    ids, generator = list(prompt), torch.Generator().manual_seed(seed)
    model.eval()
    for _ in range(LENGTH):
        with torch.no_grad():
            probs = model(torch.tensor([ids])).logits[0, -1].softmax(0)
        ids.append(int(torch.multinomial(probs, 1, generator=generator)))
    return tuple(ids[len(prompt) :])


def sampling(model, copies=8):
    """The pairs, each a few times, with samples of the model's own."""
    return [
        dataclasses.replace(pair, own_ids=sampled(model, pair.prompt_ids, 10 * n + i), own_mask=(1,) * LENGTH)
        for n in range(copies)
        for i, pair in enumerate(FULL)
    ]


def divergence(model, start):
    """KL(model to start) on fresh samples of the model: at each token exactly, summed, mean over samples."""
    total = 0.0
    for n in range(40):
        prompt = FULL[n % 4].prompt_ids
        ids = torch.tensor([[*prompt, *sampled(model, prompt, n)]])
        with torch.no_grad():
            now, then = (m(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (model, start))
        total += (now.exp() * (now - then)).sum().item()
    return total / 40


def test_hypo_of_a_tiny_model_is_nearer_to_where_it_began_on_fresh_samples(folder):  # noqa: F811
    """Than DPO that took as few steps as led to no greater margin."""
    start = learner(folder).model
    pairs = sampling(start)

    def after(loss, steps):
        model = trained(folder, loss, pairs, **{**KEYS, "max_steps": steps})[0].model
        lead = of_all(model, "chosen") - of_all(model, "rejected")
        return lead, divergence(model, start)

    lead, control = after(Asks(), 14)
    more, ours = after(load("hypo"), 24)
    assert more >= lead
    assert ours < 0.9 * control


# ------------------------------------------------------------------------------------------------ spac


def test_spac_own_samples_end_below_the_chosen_side(folder):  # noqa: F811
    """By implicit reward, in every pair; DPO leaves less between them."""
    start = learner(folder).model
    pairs = sampling(start, 1)
    gaps = {}
    for name, loss in {"dpo": Asks(), "spac": load("spac", weight=1.0)}.items():
        model = trained(folder, loss, pairs, **{**KEYS, "max_steps": 10})[0].model
        rewards = [
            [log_prob(model, pair, which) - log_prob(start, pair, which) for pair in pairs]
            for which in ("own", "chosen")
        ]
        gaps[name] = [chosen - own for own, chosen in zip(*rewards, strict=True)]
    assert min(gaps["spac"]) >= 0
    assert all(more > less for more, less in zip(gaps["spac"], gaps["dpo"], strict=True))


def test_spac_pulls_own_samples_down_and_the_chosen_side_up_alike():
    given = with_own(batch_of([[0.2]], [[0.2]]), [[0.1, 0.3]])
    load("spac", weight=0.4)(given).backward()
    assert given.own.logps_B_T.grad.tolist()[0] == pytest.approx([0.4 * 0.5] * 2)
    assert given.chosen.logps_B_T.grad.item() == pytest.approx(-0.5 * 0.5 - 0.4 * 0.5)
