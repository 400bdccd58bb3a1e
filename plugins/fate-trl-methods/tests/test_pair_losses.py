"""Pair losses with real pairs and tiny models: each by what shows that it works, where it is DPO, where loss falls."""

from __future__ import annotations

import dataclasses
import math

import pytest

pytest.importorskip("fate_trl_methods", reason="not installed: pip install plugins/fate-trl-methods")
pytest.importorskip("tiny")

import tiny
import torch
from test_checkpoints import At, Killed, losses
from test_pair_facts import FULL, Asks, asked, own_logps, trainer_of
from test_preference import KEYS, moved
from test_stages import folder, learner  # noqa: F401 (a fixture)

from fate_trl import plugins
from fate_trl.hookspecs import PairBatch, PairSide
from fate_trl.train import learner as torch_learner
from fate_trl.train.pair_facts import key_of

torch.set_num_threads(1)

NAMES = sorted(plugins.components("preferences", "pair loss"))


def load(name, **arguments):
    return plugins.load("pair loss", f"preferences/{name}", arguments)


def sides(chosen, rejected, reference=0.0):
    """Sides of one turn each, whose log-ratios are the sums of these (B, T)."""
    out = []
    for ratios in (chosen, rejected):
        logps = torch.tensor(ratios, requires_grad=True)
        out.append(PairSide(logps, torch.full_like(logps, reference), torch.zeros_like(logps, dtype=torch.long)))
    return out


def batch_of(chosen, rejected, beta=0.5, **more):
    count = len(chosen)
    told = {"key_B": torch.arange(count), "fault_B": torch.full((count,), -1)}
    return PairBatch(*sides(chosen, rejected), torch.full((count,), 0.5), beta, **{**told, **more})


def dpo(given):
    margin = given.chosen.log_ratio_B - given.rejected.log_ratio_B
    return -torch.nn.functional.logsigmoid(given.beta * margin).mean()


def gradients(loss, given):
    loss(given).backward()
    return given.chosen.logps_B_T.grad, given.rejected.logps_B_T.grad


def without(given, side):
    """The batch, this side of every pair lacking."""
    lacking = getattr(given, side)
    zeros = torch.zeros_like(lacking.logps_B_T.detach()).requires_grad_()
    empty = PairSide(zeros, torch.zeros_like(lacking.ref_logps_B_T), torch.full_like(lacking.turn_B_T, -1))
    return dataclasses.replace(given, **{side: empty})


def lone(pair, side):
    """The pair without a side."""
    return dataclasses.replace(pair, **{f"{side}_ids": (), f"{side}_mask": ()})


def trained(folder, loss, pairs=FULL, **keys):  # noqa: F811
    made = learner(folder, preference={**KEYS, "max_steps": 12, **keys})
    made.pair_loss = loss
    made.keep_states_of({"pair-loss": loss})
    return made, made.preference(pairs, 3)


def log_prob(model, pair, side, prompt=None):
    """Of a side's own tokens."""
    return own_logps(model, prompt or pair.prompt_ids, getattr(pair, f"{side}_ids"), getattr(pair, f"{side}_mask"))


def of_all(model, side, pairs=FULL):
    return sum(log_prob(model, pair, side) for pair in pairs)


# ------------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", NAMES)
def test_what_a_tool_said_gets_gradient_0(tmp_path, name):
    """At each place of the last layer whose next token a tool wrote, or the prompt has."""
    ours = moved(trainer_of(load(name), tmp_path))
    batch = ours.data_collator([ours.train_dataset[i] for i in range(len(FULL))])
    hidden = []

    def keep(module, _, output):
        output.retain_grad()
        hidden.append(output)

    hook = ours.model.model.norm.register_forward_hook(keep)
    masks = [batch["completion_mask"], *([batch["further"]["completion_mask"]] if "further" in batch else [])]
    ours.compute_loss(ours.model, batch).backward()
    hook.remove()
    for output, mask in zip(hidden, masks, strict=True):
        own = torch.nn.functional.pad(mask[:, 1:], (0, 1)).bool()
        moving = output.grad.abs().sum(dim=-1) > 0
        assert not moving[~own].any()
        assert moving[own].any()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tgdpo", {"alpha": 0.0}),
        ("tgdpo", {"alpha": 0.0, "reward": "policy"}),
        ("h-dpo", {"alpha": 1.0}),
        ("vpo", {"weight": 0.0}),
        ("hypo", {"kl": 0.0}),
        ("spac", {"weight": 0.0}),
        ("rationale", {"weight": 0.0}),
        ("feasible", {"rate": 0.0}),
        ("relative", {"tau": 1e-3}),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(map(str, value.values())),
)
def test_at_its_neutral_argument_a_loss_is_dpos(tmp_path, name, arguments):
    """That of TRL, on pairs of a tiny model."""
    ours = asked(moved(trainer_of(load(name, **arguments), tmp_path))).item()
    theirs = asked(moved(trainer_of(None, tmp_path))).item()
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert theirs != pytest.approx(math.log(2), abs=1e-3)
    elsewhere = asked(moved(trainer_of(load(name), tmp_path))).item()
    assert name == "feasible" or elsewhere != pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("name", ["h-dpo", "vpo", "rationale", "feasible", "hypo", "spac"])
def test_it_is_so_to_the_bit_where_nothing_is_summed_twice(tmp_path, name):
    neutral = {"h-dpo": {"alpha": 1.0}, "feasible": {"rate": 0}, "hypo": {"kl": 0.0}}
    ours = asked(moved(trainer_of(load(name, **neutral.get(name, {"weight": 0.0})), tmp_path)))
    assert torch.equal(ours, asked(moved(trainer_of(None, tmp_path))))


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_raises_the_margin_of_the_pairs(folder, name):  # noqa: F811
    made = learner(folder, preference={**KEYS, "max_steps": 12})
    before = of_all(made.model, "chosen") - of_all(made.model, "rejected")
    after, told = trained(folder, load(name))
    assert of_all(after.model, "chosen") - of_all(after.model, "rejected") > before
    assert told["accuracy"] > 0.5


# ------------------------------------------------------------------------------------------------ one by one


def test_tgdpo_turns_at_fault_have_the_larger_gradient():
    ratios = [[0.1, 0.1, 0.1, 0.1]]
    given = batch_of(ratios, ratios, fault_B=torch.tensor([1]))
    turns = torch.tensor([[0, 0, 1, 1]])
    given = dataclasses.replace(
        given, rejected=dataclasses.replace(given.rejected, turn_B_T=turns), fault_B=torch.tensor([1])
    )
    chosen, rejected = gradients(load("tgdpo", alpha=0.5), given)
    assert (rejected[0] / rejected[0, 0]).tolist() == pytest.approx([1, 1, 1.5, 1.5])
    assert (chosen[0] / chosen[0, 0]).tolist() == pytest.approx([1] * 4), "the chosen side has no fault"


def test_tgdpo_of_a_real_pair_moves_the_turn_that_a_verifier_faults(tmp_path):
    pair = dataclasses.replace(FULL[1], fault=(2, 3))  # the second turn; a tool spoke in between
    for alpha, grows in ((0.0, False), (1.0, True)):
        loss = load("tgdpo", alpha=alpha)
        seen = []

        def told(batch, loss=loss, seen=seen):
            batch.rejected.logps_B_T.retain_grad()
            seen.append(batch)
            return loss(batch)

        asked(trainer_of(told, tmp_path, [pair])).backward()
        turn, slope = seen[0].rejected.turn_B_T[0], seen[0].rejected.logps_B_T.grad[0]
        assert seen[0].fault_B.tolist() == [1]
        assert (slope[turn == 1] / slope[turn == 0] > 1.5).all() == grows


def test_tgdpo_policys_own_reward_weighs_chosen_up_and_rejected_down():
    chosen, rejected = gradients(load("tgdpo", alpha=1.0, reward="policy"), batch_of([[1.0, 0.0]], [[1.0, 0.0]]))
    assert (chosen[0, 0] / chosen[0, 1]).item() == pytest.approx(1.5)
    assert (rejected[0, 0] / rejected[0, 1]).item() == pytest.approx(0.5)


def inpo_batch(chosen, rejected, first=(0.0, 0.0), beta=0.5):
    given = batch_of([[chosen]], [[rejected]], beta)
    parts = {
        name: dataclasses.replace(getattr(given, name), first_logps_B_T=torch.tensor([[value]]))
        for name, value in zip(("chosen", "rejected"), first, strict=True)
    }
    return dataclasses.replace(given, **parts)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_inpo_is_at_rest_where_h_is_half_of_one_by_eta(ratio):
    """eta is beta, .5; the first policy's own odds are .4, of which `ratio` is subtracted."""

    def slope(margin):
        return gradients(load("inpo", ratio=ratio), inpo_batch(margin, 0.0, (0.3, -0.1)))[0].item()

    rest = 1 / (2 * 0.5) + ratio * 0.4
    assert slope(rest) == pytest.approx(0, abs=1e-6)
    assert slope(rest - 0.1) < 0 < slope(rest + 0.1)


def test_inpo_at_ratio_1_is_ipo_without_trls_division_by_length(tmp_path):
    """On sides of one token TRL divides by 1; there both are the same."""
    short = [
        dataclasses.replace(pair, chosen_ids=(22,), chosen_mask=(1,), rejected_ids=(24,), rejected_mask=(1,))
        for pair in FULL
    ]
    ours = asked(moved(trainer_of(load("inpo", ratio=1.0), tmp_path, short)))
    theirs = asked(moved(trainer_of(None, tmp_path, short, loss_type="ipo")))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    longer, divided = (
        asked(moved(trainer_of(*given, tmp_path, **keys))).item()
        for given, keys in (((load("inpo", ratio=1.0),), {}), ((None,), {"loss_type": "ipo"}))
    )
    assert longer != pytest.approx(divided, rel=1e-3)


def entropy_under(alpha):
    """Of a policy over six answers with rewards, at H-DPO's optimum on exact preferences."""
    reward_K = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5])
    reference_K = torch.tensor([0.3, 0.1, 0.2, 0.1, 0.2, 0.1]).log()
    logits_K = reference_K.clone().requires_grad_()
    optimiser, loss, beta = torch.optim.Adam([logits_K], lr=0.02), load("h-dpo", alpha=alpha), 0.5
    i_B, j_B = (index.flatten() for index in torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij"))
    kept = torch.nonzero(i_B != j_B).flatten()
    better_B = (reward_K[i_B] - reward_K[j_B]).sigmoid()
    # each pair as often as it is preferred: batches of one pair, weighed
    for _ in range(800):
        logps_K = logits_K.log_softmax(0)
        total = 0
        for pair in kept.tolist():
            i, j = i_B[pair], j_B[pair]
            parts = [PairSide(logps_K[k].view(1, 1), reference_K[k].view(1, 1), torch.zeros(1, 1)) for k in (i, j)]
            total = total + better_B[pair] * loss(PairBatch(*parts, None, beta))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    policy_K = logits_K.detach().softmax(0)
    wanted_K = ((reference_K + reward_K / beta) / alpha).softmax(0)
    return policy_K, wanted_K


def test_h_dpo_below_1_has_less_entropy_and_its_optimum_is_the_sharpened_one():
    entropies = []
    for alpha in (0.7, 1.0):
        policy_K, wanted_K = entropy_under(alpha)
        assert torch.allclose(policy_K, wanted_K, atol=0.02)
        entropies.append(-(policy_K * policy_K.log()).sum().item())
    assert entropies[0] < entropies[1] - 0.1


@pytest.mark.parametrize("calibration", ["chosen", "rejected"])
def test_vpo_sign_says_which_way_calibration_samples_go(folder, calibration):  # noqa: F811
    """After as many steps, beside DPO's."""
    told = {"weight": 2.0, "calibration": calibration}
    ways = {value: load("vpo", value=value, **told) for value in ("pessimistic", "optimistic")}
    now = {name: of_all(trained(folder, loss)[0].model, calibration) for name, loss in ways.items()}
    plain = of_all(trained(folder, Asks())[0].model, calibration)
    assert now["optimistic"] < plain < now["pessimistic"]


def test_pmpo_from_failures_alone_stays_bounded_where_the_divergence_weighs_enough():
    """Log-ratios of free tokens: without the divergence they fall for ever, with it they end at log(1 - 1 / kl)."""
    ends = {}
    for kl in (0.0, 4.0):
        logps = torch.zeros(1, 3, requires_grad=True)
        optimiser, loss = torch.optim.SGD([logps], lr=0.05), load("pmpo", alpha=0.0, kl=kl)
        for _ in range(400):
            side = PairSide(logps, torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.long))
            given = without(PairBatch(side, side, torch.zeros(1), 0.1), "chosen")
            optimiser.zero_grad()
            loss(given).backward()
            optimiser.step()
        ends[kl] = logps.detach()[0].tolist()
    assert ends[4.0] == pytest.approx([math.log(1 - 1 / 4)] * 3, abs=1e-4)
    assert max(ends[0.0]) < -10


def test_pmpo_on_a_model_failures_alone_fall_less_with_the_divergence(folder):  # noqa: F811
    pairs = [lone(pair, "chosen") for pair in FULL]
    falls = [of_all(trained(folder, load("pmpo", alpha=0.0, kl=kl), pairs)[0].model, "rejected") for kl in (0.0, 8.0)]
    start = of_all(learner(folder).model, "rejected")
    assert falls[0] < falls[1] < start


@pytest.mark.parametrize("lacking", ["chosen", "rejected"])
def test_uapo_trains_on_failures_alone_and_on_repairs_alone(folder, lacking):  # noqa: F811
    start = learner(folder).model
    kept = {"chosen": "rejected", "rejected": "chosen"}[lacking]
    made, told = trained(folder, load("uapo"), [lone(pair, lacking) for pair in FULL])
    moved_by = of_all(made.model, kept) - of_all(start, kept)
    assert (moved_by > 0) == (kept == "chosen")
    assert told["rows"] == 4
    assert made.pair_loss.anchor == 0, "one kind alone says nothing of where it belongs"


def test_uapo_without_an_anchor_is_trls_bco_pair(tmp_path):
    ours = asked(moved(trainer_of(load("uapo"), tmp_path)))
    theirs = asked(moved(trainer_of(None, tmp_path, loss_type="bco_pair")))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_uapo_anchor_settles_between_repairs_and_failures():
    loss = load("uapo", rate=0.5)
    given = batch_of([[3.0], [5.0]], [[1.0], [-1.0]], beta=1.0)
    still = [dataclasses.replace(s, logps_B_T=s.logps_B_T.detach()) for s in (given.chosen, given.rejected)]
    for _ in range(200):
        loss.learn(dataclasses.replace(given, chosen=still[0], rejected=still[1]))
    assert loss.anchor == pytest.approx(2.0, abs=0.05)


def test_srpo_improves_on_a_failure_that_it_is_shown_pass_by_pass(folder):  # noqa: F811
    """After 1 to 5 passes over the pairs: the repair's lead over the failure, under the prompt that shows one."""
    leads = []
    for passes in range(6):
        model = learner(folder).model
        if passes:
            keys = {"learning_rate": 3e-3, "max_steps": 2 * passes, "beta": 0.1, "lr_scheduler_type": "constant"}
            model = trained(folder, load("srpo"), **keys)[0].model
        parts = [
            [log_prob(model, pair, side, pair.repair_prompt_ids) for pair in FULL] for side in ("chosen", "rejected")
        ]
        leads.append([repair - failure for repair, failure in zip(*parts, strict=True)])
    sums = [sum(lead) for lead in leads]
    assert sums == sorted(sums)
    assert all(now > before for before, now in zip(leads[0], leads[5], strict=True)), "of every pair"


def test_srpo_at_alpha_1_has_the_optimum_of_ipo():
    given = batch_of([[1.0]], [[0.0]])  # 1 / (2 beta) is 1
    context = sides([[5.0]], [[0.0]])
    given = dataclasses.replace(given, repaired=context[0], failed=context[1])
    assert gradients(load("srpo", alpha=1.0), given)[0].item() == pytest.approx(0, abs=1e-6)
    assert context[0].logps_B_T.grad.item() == 0
    load("srpo", alpha=0.0)(given).backward()
    assert context[0].logps_B_T.grad.item() > 0, "more than it is to lead by"


def test_relative_weighs_failures_of_like_prompts_more():
    """Two prompts that share a token, and one that shares none; the gradient on a failure follows its weight."""
    prompts = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    given = batch_of([[0.0]] * 3, [[0.0]] * 3, prompt_B_D=prompts)
    alone = dataclasses.replace(given.chosen, turn_B_T=torch.tensor([[0], [-1], [-1]]))
    given = dataclasses.replace(given, chosen=alone)
    slopes = gradients(load("relative", tau=0.5), given)[1].flatten()
    wanted = (torch.tensor([0.0, -0.5, -1.0]) / 0.5).softmax(0)
    assert (slopes / slopes.sum()).tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_relative_as_tau_falls_is_dpo():
    prompts = torch.eye(3)
    given = batch_of([[0.5], [1.0], [-0.3]], [[0.1], [-0.2], [0.4]], prompt_B_D=prompts)
    gaps = [abs(load("relative", tau=tau)(given).item() - dpo(given).item()) for tau in (1.0, 0.3, 0.1, 0.02)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-6


def test_relative_trains_with_more_failures_than_repairs(folder):  # noqa: F811
    pairs = [FULL[0], *(lone(pair, "chosen") for pair in FULL[1:])]
    start = learner(folder).model
    made, told = trained(folder, load("relative"), pairs, per_device_train_batch_size=4)
    assert told["rows"] == 4
    assert log_prob(made.model, FULL[0], "chosen") > log_prob(start, FULL[0], "chosen")
    assert all(log_prob(made.model, pair, "rejected") < log_prob(start, pair, "rejected") for pair in FULL)
    none = batch_of([[0.1]], [[0.2]], prompt_B_D=torch.ones(1, 1))
    assert load("relative")(without(none, "rejected")).item() == 0


def said(model):
    """Cross-entropy of the rationale, per pair."""
    ids = tiny.make_tokenizer()(FULL[0].feedback)["input_ids"]
    return -sum(own_logps(model, pair.prompt_ids + pair.rejected_ids, ids, (1,) * len(ids)) for pair in FULL) / 4


def test_rationale_cross_entropy_falls_and_dpos_does_not_do_that(folder):  # noqa: F811
    before = said(learner(folder).model)
    with_it, without_it = (said(trained(folder, loss)[0].model) for loss in (load("rationale"), Asks()))
    assert with_it < before - 1
    assert with_it < without_it - 1


def feasible_run(folder, loss, **keys):  # noqa: F811
    """Losses of the four pairs after the training, one of them contradicted by another."""
    against = dataclasses.replace(
        FULL[3],
        chosen_ids=FULL[0].rejected_ids,
        chosen_mask=FULL[0].rejected_mask,
        prompt_ids=FULL[0].prompt_ids,
        rejected_ids=FULL[0].chosen_ids,
        rejected_mask=FULL[0].chosen_mask,
    )
    pairs = [*[FULL[0]] * 3, against, FULL[1], FULL[2]]
    pairs = [dataclasses.replace(pair, repair=i) for i, pair in enumerate(pairs)]
    told = {"max_steps": 40, "per_device_train_batch_size": 6, "learning_rate": 3e-3, "beta": 1.0, **keys}
    start = learner(folder).model
    made, _ = trained(folder, loss, pairs, **told)
    each = []
    for pair in pairs:
        gains = [log_prob(made.model, pair, side) - log_prob(start, pair, side) for side in ("chosen", "rejected")]
        each.append(math.log1p(math.exp(-(gains[0] - gains[1]))))
    return pairs, each, made.pair_loss


def test_feasible_pairs_above_epsilon_gain_weight(folder):  # noqa: F811
    """Three pairs outvote one that says the contrary; its multiplier grows, those of the satisfied ones fall."""
    pairs, _, loss = feasible_run(folder, load("feasible", epsilon=0.5, rate=0.1))
    multipliers = [loss.multiplier(key_of(pair)) for pair in pairs]
    assert multipliers[3] > 1 > max(multipliers[4:])
    assert loss.metrics()["multiplier_max"] == max(multipliers)


def test_feasible_more_pairs_are_satisfied_than_by_the_mean():
    """One margin for three pairs, and its negative for a fourth: the mean gives the fourth up, at 1.39; all four can be
    below .75."""
    satisfied = []
    for rate in (0.0, 0.05):
        margin, loss = torch.zeros(1, requires_grad=True), load("feasible", epsilon=0.75, rate=rate)
        optimiser = torch.optim.SGD([margin], lr=0.1)
        for _ in range(3000):
            ratios_B_1 = torch.cat([margin, margin, margin, -margin])[:, None]
            still = torch.zeros(4, 1)
            pair_sides = [PairSide(ratios, still, still.long()) for ratios in (ratios_B_1, still)]
            given = PairBatch(*pair_sides, still[:, 0], 1.0, torch.arange(4))
            optimiser.zero_grad()
            loss(given).backward()
            loss.learn(
                dataclasses.replace(given, chosen=dataclasses.replace(given.chosen, logps_B_T=ratios_B_1.detach()))
            )
            optimiser.step()
        each = [math.log1p(math.exp(-sign * margin.item())) for sign in (1, 1, 1, -1)]
        satisfied.append(sum(value <= 0.751 for value in each))
    assert satisfied == [3, 4]


def test_feasible_on_the_chosen_side_bounds_its_cross_entropy():
    given = batch_of([[-1.0, -3.0]], [[-9.0, -9.0]])
    loss = load("feasible", on="chosen", epsilon=0.5, rate=0.1, slack=0.5)
    assert loss(given).item() == pytest.approx(2.0)
    loss.learn(given)
    assert loss.multiplier(0) == pytest.approx(1 + 0.1 * (2.0 - 0.5 - 0.5))
    assert gradients(loss, given)[1] is None or not gradients(loss, given)[1].any()


@pytest.mark.parametrize("name", ["feasible", "uapo"])
def test_feasible_and_uapo_killed_and_resumed_equal_a_run_that_was_not(folder, tmp_path, monkeypatch, name):  # noqa: F811
    """Losses, weights and state, to the bit."""

    def made():
        own = learner(folder, preference=KEYS)
        own.pair_loss = load(name, rate=0.3)
        own.keep_states_of({"pair-loss": own.pair_loss})
        return own

    def kill():
        raise Killed

    whole, first, last = made(), made(), made()
    unbroken = whole.preference(FULL, 3, str(tmp_path / "whole"))
    monkeypatch.setattr(torch_learner, "_Steps", lambda reporter: At(4, kill))
    with pytest.raises(Killed):
        first.preference(FULL, 3, str(tmp_path / "part"))
    monkeypatch.undo()
    resumed = last.preference(FULL, 3, str(tmp_path / "part"))
    assert losses(resumed) == losses(unbroken)
    assert last.pair_loss.state_dict() == whole.pair_loss.state_dict() != load(name).state_dict()
    after, wanted = tiny.state(last.model), tiny.state(whole.model)
    assert all(torch.equal(after[key], wanted[key]) for key in wanted)
    assert resumed["pair_loss"] == unbroken["pair_loss"] == last.pair_loss.metrics()
    last.save(str(tmp_path / "policy"))
    fresh = made()
    fresh.load(str(tmp_path / "policy"))
    assert fresh.pair_loss.state_dict() == whole.pair_loss.state_dict()
