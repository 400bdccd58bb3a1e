"""The family `losses`: each policy loss by what shows that it works, on log-probabilities that are given."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import fate_trl_methods
import numpy as np
import pytest
import torch
from batches import Ppo, batch_of, ppo, slope
from worlds import row_facts

from fate_trl import plugins
from fate_trl.errors import RecipeError

FILE = Path(fate_trl_methods.__file__).parent / "losses.py"

torch.manual_seed(0)
LOGPS = torch.randn(8, 3).double() - 2
OLD = LOGPS + 0.1 * torch.randn(8, 3).double()
REWARD = torch.tensor([1.0, 0.25, 0.5, 0.0, 0.75, 0.75, 0.0, 0.25])


def load(name, **arguments):
    return plugins.load("policy loss", f"{FILE}/{name}", arguments)


def facts(**told):
    """Facts about one group of four rows."""
    rows = row_facts(resolved=[[True, False, True, False]])
    for name, values in told.items():
        object.__setattr__(rows, name, np.array(values))
    return rows


# ------------------------------------------------------------------------------------------------ bounds


def test_gbpo_is_ppo_at_ratio_one():
    loss = load("gbpo")
    given = batch_of(LOGPS[:4], [1.0, 0.7, 0.3, 0.0], ref=None, loss=loss)
    ours, theirs = slope(loss, given), slope(ppo, given)
    assert torch.allclose(ours, theirs)
    assert ours.abs().min() > 0


def test_gbpo_pulls_back_past_the_bound_where_ppo_does_nothing():
    loss = load("gbpo")
    old = LOGPS[:4] - math.log(1.3)
    given = batch_of(LOGPS[:4], [1.0, 1.0, 0.0, 0.0], ref=None, loss=loss, old=old)
    ours, theirs = slope(loss, given), slope(ppo, given)
    assert not theirs[:2].any(), "better rows, past 1.2"
    assert torch.allclose(ours[:2], torch.full((2, 3), 1.3 * 0.5 / 12).double()), "the ratio's own slope, times |A|"
    assert torch.allclose(ours[2:], theirs[2:])


def test_gbpo_gives_a_majority_of_ties_the_target_one():
    loss = load("gbpo")
    given = batch_of(LOGPS[:4], [1.0, 1.0, 1.0, 0.0], ref=None, loss=loss)
    assert given.columns["side"].tolist() == [0, 0, 0, -1]
    moved = batch_of(LOGPS[:4], [1.0, 1.0, 1.0, 0.0], ref=None, loss=loss, old=LOGPS[:4] - 0.1)
    assert (slope(loss, moved)[:3] > 0).all(), "a ratio above 1 is pulled back to 1, though the advantage is above 0"


def test_gbpo_adds_the_divergence_where_there_is_a_reference():
    loss = load("gbpo")
    with_, without = (batch_of(LOGPS, REWARD, ref=ref, groups=2, loss=loss) for ref in (-1.5, None))
    assert loss(with_).item() - loss(without).item() == pytest.approx(0.1 * with_.mean(with_.kl_B_T).item())


def test_hapo_clip_widens_upward_where_the_entropy_is_high():
    loss = load("hapo-clip")
    entropy = torch.tensor([[0.01, 0.1, 1.0, 2.0]] * 2).double()
    given = batch_of(torch.zeros(2, 4), [1.0, 0.0], ref=None, entropy_B_T=entropy)
    high, low = loss.bounds(given)
    assert (high.diff(dim=1) >= 0).all()
    assert (low.diff(dim=1) <= 0).all()
    assert high[0, 3] > 0.2
    assert high[0, 0] == 0.2
    assert low[0, 0] > 0.2
    assert low[0, 3] == 0.2
    up = batch_of(torch.full((2, 4), math.log(1.3)), [1.0, 0.0], ref=None, entropy_B_T=entropy, old=0.0)
    assert not slope(loss, up)[0, :2].any(), "certain tokens are past their bound"
    assert slope(loss, up)[0, 3] != 0, "an uncertain one is not"
    assert loss.metrics()["widened"] == 0.5


def test_hapo_clip_of_no_strength_is_ppo():
    given = batch_of(LOGPS, REWARD, ref=None, groups=2, old=OLD, entropy_B_T=torch.rand(8, 3).double())
    assert load("hapo-clip", strength=0.0)(given).item() == ppo(given).item()


# ------------------------------------------------------------------------------------------------ entropy


def categorical(logits, loss, steps=60, rate=0.5):
    """Entropies of one distribution that a loss moves, by tokens drawn from it; no row is better than another."""
    logits = logits.clone().requires_grad_()
    out = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        all_V = logits.log_softmax(dim=0)
        tokens_B = torch.multinomial(all_V.detach().exp(), 64, replacement=True, generator=generator)
        entropy = -(all_V.exp() * all_V).sum().detach()
        out.append(entropy.item())
        given = batch_of(
            all_V[tokens_B][:, None],
            torch.ones(64),
            advantages=torch.full((64,), 1e-9),
            ref=None,
            entropy_B_T=entropy.expand(64, 1),
            logits_B_T_V=logits.detach().expand(64, 1, len(logits)),
        )
        (gradient,) = torch.autograd.grad(loss(given), logits)
        logits = (logits.detach() - rate * gradient).requires_grad_()
    return out


@pytest.mark.parametrize(
    ("logits", "target"), [([4.0, 1.0, 0.0, 0.0], 1.0), ([0.2, 0.1, 0.0, 0.0], 1.0)], ids=["from below", "from above"]
)
def test_dcpo_draws_the_entropy_to_its_target_from_both_sides(logits, target):
    # A steady pull of a tenth as large as the target is away would do; sampling noise takes the mean of the last ten.
    entropies = categorical(torch.tensor(logits).double(), load("dcpo", alpha=1.0, target=target, warm=3.0, cool=0.3))
    before, after = entropies[0], float(np.mean(entropies[-10:]))
    assert abs(after - target) < abs(before - target) / 2
    loss = load("dcpo", target=10.0)
    loss(batch_of(LOGPS, REWARD, ref=None, groups=2, logits_B_T_V=torch.randn(8, 3, 5).double()))
    assert loss.metrics() == {"temperature": 1.2}


def test_dcpo_of_alpha_zero_is_ppo_and_its_weights_are_ratios_of_probabilities():
    given = batch_of(LOGPS, REWARD, ref=None, groups=2, old=OLD)
    assert load("dcpo", alpha=0.0)(given).item() == ppo(given).item()
    logits = torch.randn(2, 3, 5).double()
    tokens = torch.tensor([[0, 1, 2], [3, 4, 0]])[..., None]
    chosen = logits.log_softmax(-1).gather(2, tokens)[..., 0]
    given = batch_of(chosen, [1.0, 0.0], ref=None, logits_B_T_V=logits)
    tempered = (logits / 2).softmax(-1).gather(2, tokens)[..., 0]
    assert torch.allclose(load("dcpo").weights(given, 2.0), tempered / chosen.exp())


# ------------------------------------------------------------------------------------------------ by row


def test_kl_by_kind_scales_the_term_of_a_row_by_its_kind():
    loss = load("kl-by-kind", factors={"attacked": 3.0, "harmful": 0.0})
    kinds = facts(kind_G_N=[["attacked", "harmful", "benign", "benign"]])
    given = batch_of(LOGPS[:4], torch.zeros(4), ref=-1.0, loss=loss, rows=kinds)
    every = slope(lambda batch: batch.mean(0.1 * batch.kl_B_T), given)
    factors = torch.tensor([[3.0], [0.0], [1.0], [1.0]]).double()
    assert torch.allclose(slope(loss, given), factors * every)
    with pytest.raises(RecipeError, match=r"no kind 'atacked'; did you mean 'attacked'"):
        load("kl-by-kind", factors={"atacked": 1.0})


def test_kl_by_spread_without_spread_is_no_penalty():
    loss = load("kl-by-spread")
    rows = facts(spread_G_N_M=[[[0.0], [np.nan], [0.5], [0.25]]])
    given = batch_of(LOGPS[:4], torch.zeros(4), ref=-1.0, loss=loss, rows=rows)
    assert given.columns["factor"].tolist() == [0.0, 0.0, 1.0, 0.25]
    found = slope(loss, given)
    assert not found[:2].any()
    assert found[2:].abs().min() > 0


def arms(loss, rewards, steps=400, rate=0.5, reference=True, **told):
    """The shares that a policy over arms ends with, from even ones: each arm is a row of one group, weighted alike."""
    logits = torch.zeros(len(rewards)).double().requires_grad_()
    for _ in range(steps):
        logps = logits.log_softmax(dim=0)[:, None]
        ref = -math.log(len(rewards)) if reference else None
        given = batch_of(logps, rewards, ref=ref, loss=loss, **told)
        (gradient,) = torch.autograd.grad(loss(given), logits)
        logits = (logits.detach() - rate * gradient).requires_grad_()
    return logits.softmax(dim=0).detach()


def test_kl_by_spread_keeps_the_worst_case_above_that_of_the_mean():
    """The best arm by the mean is the one that judges disagree about most: it could be the worst."""
    rewards, spread = [0.6, 0.5, 0.4, 0.3], [0.5, 0.0, 0.0, 0.0]
    rows = facts(spread_G_N_M=[[[value] for value in spread]])
    careful = arms(load("kl-by-spread", scale=40.0), rewards, rows=rows, beta=0.5)
    plain = arms(ppo, rewards)
    worst = torch.tensor(rewards) - torch.tensor(spread)
    assert (careful * worst).sum() > (plain * worst).sum()


def test_positive_nll_falls_on_successes_alone():
    loss = load("positive-nll", weight=0.3)
    given = batch_of(LOGPS[:4], torch.zeros(4), ref=None, loss=loss, rows=facts())
    found = slope(loss, given)
    assert torch.allclose(found[[0, 2]], torch.full((2, 3), -0.3 / 6).double())
    assert not found[[1, 3]].any()
    assert loss.metrics() == {"resolved": 0.5}
    assert load("positive-nll", weight=0.0)(given).item() == ppo(given).item()


# ------------------------------------------------------------------------------------------------ regressions


def test_rebel_is_zero_iff_gaps_of_log_ratios_are_those_of_rewards():
    loss = load("rebel", eta=0.5)
    meets = batch_of(LOGPS, REWARD, groups=2, old=LOGPS - (0.5 * REWARD[:, None] + 1.0) / 3, loss=loss)
    assert loss(meets).item() == pytest.approx(0, abs=1e-12)
    assert loss(batch_of(LOGPS, REWARD, groups=2, old=OLD, loss=loss)).item() > 1e-3


def test_rebel_is_the_mean_over_pairs():
    loss = load("rebel")
    given = batch_of(LOGPS, REWARD, groups=2, old=OLD, loss=loss)
    errors = (given.log_ratio_B - REWARD).tolist()
    pairs = [(errors[i] - errors[j]) ** 2 for start in (0, 4) for i in range(start, start + 4) for j in range(start, i)]
    assert loss(given).item() == pytest.approx(np.mean(pairs))


def sees_no_constant(name):
    """Whether a constant per prompt, exact in binary, leaves the gradient as it is, to the bit; PPO's is another."""
    loss, shift = load(name), torch.tensor([2.0] * 4 + [-4.0] * 4)
    one, other = (slope(loss, batch_of(LOGPS, r, groups=2, old=OLD, loss=loss)) for r in (REWARD, REWARD + shift))
    before, after = (slope(Ppo(), batch_of(LOGPS, r, groups=2, old=OLD)) for r in (REWARD, REWARD + shift))
    return torch.equal(one, other) and one.abs().max() > 0 and not torch.allclose(before, after)


def test_rebel_does_not_see_a_constant_per_prompt():
    assert sees_no_constant("rebel")


def test_p3o_does_not_see_a_constant_per_prompt():
    assert sees_no_constant("p3o")


@pytest.mark.parametrize("clip", ["joint", "separate"])
def test_p3o_on_policy_is_the_gradient_of_pairs_and_clips_the_ratios(clip):
    loss = load("p3o", clip=clip)
    given = batch_of(LOGPS[:2], [1.0, 0.5], old=LOGPS[:2])
    assert torch.allclose(slope(loss, given), torch.tensor([[-0.25] * 3, [0.25] * 3]).double())
    far = batch_of(LOGPS[:2], [1.0, 0.5], old=LOGPS[:2] - 1)
    most = 1.2 if clip == "joint" else 1.2**2
    assert torch.allclose(slope(loss, far), most * torch.tensor([[-0.25] * 3, [0.25] * 3]).double())


def test_dro_has_the_optimal_value_at_the_optimum_of_a_bandit():
    loss, beta, rewards = load("dro"), 0.5, [1.0, 0.5, 0.0, 0.25]
    shares = arms(loss, rewards, steps=3000, rate=2.0, beta=beta)
    optimum = torch.tensor([math.exp(r / beta) for r in rewards]).double()
    assert torch.allclose(shares, optimum / optimum.sum(), atol=1e-3)
    given = batch_of(shares.log()[:, None], rewards, ref=-math.log(4), beta=beta)
    value = beta * math.log(optimum.mean())
    assert loss.values(given) == pytest.approx([value] * 4, abs=1e-3)
    assert loss(given).item() == pytest.approx(0, abs=1e-5)


def test_a_star_po_equals_trls_loss_on_the_same_tensors(tmp_path):
    """A2POTrainer's own compute_loss, on sums of log-probabilities that are given."""
    from types import SimpleNamespace

    a2po = pytest.importorskip("trl.experimental.a2po")
    loss = load("a-star-po", temperature=0.5)
    given = batch_of(LOGPS, REWARD, ref=-1.7, groups=2, loss=loss, beta=0.01)
    value = 0.5 * (torch.logsumexp(REWARD.reshape(2, 4).double() / 0.5, dim=1) - math.log(4)).repeat_interleave(4)
    assert torch.allclose(given.columns["value"], value)
    theirs = SimpleNamespace(
        model=SimpleNamespace(training=True),
        _get_sequence_logps=lambda *_: given.logps_B_T.sum(dim=1),
        args=SimpleNamespace(beta2=0.01),
        _metrics={"train": {"implicit_reward": [], "advantage": []}},
    )
    inputs = {"input_ids": None, "attention_mask": None, "logits_to_keep": None}
    inputs |= {"ref_logps": given.ref_logps_B_T.sum(dim=1), "rewards": REWARD.double(), "v_star": value}
    expected = a2po.A2POTrainer.compute_loss(theirs, None, inputs)
    assert loss(given).item() == pytest.approx(expected.item(), rel=1e-12)


def test_exo_of_two_rows_is_exo_pair(tmp_path):
    """DPOTrainer's own loss on a tiny model, and ours on the log-probabilities that it made."""
    from test_preference import PAIRS, loss_of, moved, trainer_of

    smoothing = 1e-2
    exo = load("exo", temperature=1 / math.log((1 - smoothing) / smoothing))

    def as_group(pairs):
        sides = [_row(side, i) for i in range(4) for side in (pairs.chosen, pairs.rejected)]
        logps, ref = (torch.stack(values) for values in zip(*sides, strict=True))
        given = batch_of(logps, [1.0, 0.0] * 4, groups=4, beta=pairs.beta)
        return exo(dataclasses.replace(given, ref_logps_B_T=ref.double()))

    theirs = loss_of(moved(trainer_of(PAIRS, tmp_path, loss_type="exo_pair", label_smoothing=smoothing)))
    ours = loss_of(moved(trainer_of(PAIRS, tmp_path, pair_loss=as_group)))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert ours.item() != pytest.approx(0, abs=1e-3)


def _row(side, i):
    return side.logps_B_T[i], side.ref_logps_B_T[i]


def test_exo_rests_where_the_shares_are_those_of_the_rewards():
    loss = load("exo", temperature=0.5)
    resting = (REWARD[:4].double() / 0.5 / 0.1)[:, None].expand(4, 3) / 3
    assert slope(loss, batch_of(resting, REWARD[:4], loss=loss)).abs().max() < 1e-12
    assert slope(loss, batch_of(LOGPS[:4], REWARD[:4], loss=loss)).abs().max() > 1e-3


def test_trpa_does_not_see_the_scale_of_rewards():
    loss = load("trpa")
    one, other = (batch_of(LOGPS[:4], reward, loss=loss, rows=facts()) for reward in (REWARD[:4], 100 * REWARD[:4] - 3))
    assert loss(one).item() == loss(other).item()
    turned = batch_of(LOGPS[:4], -REWARD[:4], loss=loss, rows=facts())
    assert loss(turned).item() != pytest.approx(loss(one).item())


def test_trpa_counts_the_top_level_more_and_takes_all_pairs():
    loss = load("trpa", kappa=2.5)
    given = batch_of(LOGPS[:4], [1.0, 0.5, 1.0, 0.0], ref=-1.0, loss=loss, rows=facts(), beta=0.4)
    score = given.ref_log_ratio_B / 3
    pairs = [(2.5, 0, 1), (2.5, 0, 3), (2.5, 2, 1), (2.5, 2, 3), (1.0, 1, 3)]
    expected = [-torch.nn.functional.logsigmoid(k * 0.4 * (score[i] - score[j])).item() for k, i, j in pairs]
    assert loss(given).item() == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(("resolved", "sign"), [(True, 1.0), (False, -1.0)])
def test_trpa_takes_its_fallback_where_a_group_has_one_level(resolved, sign):
    loss = load("trpa")
    rows = facts(resolved_G_N=[[resolved] * 4])
    given = batch_of(LOGPS[:4], torch.full((4,), 0.5), ref=-1.0, loss=loss, rows=rows)
    score = given.ref_log_ratio_B / 3
    assert loss(given).item() == pytest.approx(-torch.nn.functional.logsigmoid(sign * score).mean().item())


GROUPED = ["rebel", "p3o", "dro", "exo", "trpa"]


@pytest.mark.parametrize("name", [*GROUPED, "a-star-po"])
def test_rows_that_are_out_take_no_part(name):
    """Of a group of four one row is out: the loss is that of the three others, and it gets no gradient."""
    loss, valid = load(name), [True, True, True, False]
    rows = facts(resolved_G_N=[[True, False, True, False]])
    reward = torch.tensor([1.0, 0.25, 0.5, 99.0])
    given = batch_of(LOGPS[:4], reward, ref=-1.5, old=OLD[:4], valid=valid, loss=loss, rows=rows)
    found = slope(loss, given)
    assert not found[3].any()
    assert found[:3].abs().min() > 0
    three = facts(resolved_G_N=[[True, False, True]])
    without = batch_of(LOGPS[:3], reward[:3], ref=-1.5, old=OLD[:3], loss=loss, rows=three)
    assert loss(given).item() == pytest.approx(loss(without).item())


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_that_is_all_out_gives_zero_and_no_gradient(name):
    loss = load(name)
    given = batch_of(LOGPS[:4], torch.zeros(4), valid=[False] * 4, loss=loss, rows=facts())
    assert loss(given).item() == 0
    assert not slope(loss, given).any()


def test_arguments_are_checked():
    for name, arguments in (
        ("rebel", {"eta": 0.0}),
        ("p3o", {"clip": "none"}),
        ("exo", {"temperature": 0}),
        ("dcpo", {"warm": 0.5}),
        ("hapo-clip", {"strength": 2.0}),
        ("kl-by-kind", {}),
    ):
        with pytest.raises(RecipeError, match=next(iter(arguments), "factors")):
            load(name, **arguments)
