"""Pair losses, by what they declare: facts that they need, pairs of one side, and what they learn. These need torch."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from ...hookspecs import PairBatch, PairSide, Stateful
from ...recipe.preference_checks import check_pair_loss
from .helpers import make

PAIRS, TOKENS = 4, 9
TURNS = np.array([-1, 0, 0, -1, -1, 1, 1, -1, 2])
"""A side of three turns, with tools' results in between."""


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="pair losses are checked where torch is installed")


def _side(torch: Any, seed: int, far: float, like: Any = None) -> PairSide:
    """Log-probabilities of four sides; the policy is `far` from its reference, which is like that of another side."""
    rng = np.random.default_rng(seed)
    own_B_T = np.broadcast_to(TURNS >= 0, (PAIRS, TOKENS))
    ref_B_T = np.where(own_B_T, -rng.random((PAIRS, TOKENS)) - 1, 0.0)
    logps_B_T = np.where(own_B_T, ref_B_T + far * rng.normal(size=(PAIRS, TOKENS)), 0.0)
    first_B_T = np.where(own_B_T, ref_B_T + 0.2 * (far > 0) * rng.normal(size=(PAIRS, TOKENS)), 0.0)
    tensors = [torch.tensor(values, dtype=torch.float32) for values in (logps_B_T, ref_B_T, first_B_T)]
    turn_B_T = torch.tensor(np.broadcast_to(TURNS, (PAIRS, TOKENS)).copy())
    return PairSide(tensors[0].requires_grad_(), tensors[1], turn_B_T, tensors[2])


def _batch(torch: Any, loss: Any, seed: int = 0, far: float = 0.3, gap: float = 0.5) -> PairBatch:
    """Four pairs, with the facts that the loss needs and no other."""
    needs = tuple(getattr(loss, "needs", ()))
    sides = [_side(torch, 10 * seed + i, far) for i in range(6)]
    if "first_policy" not in needs:
        sides = [replace(side, first_logps_B_T=None) for side in sides]
    repaired, failed = (sides[2], sides[3]) if "repair_prompt" in needs else (None, None)
    return PairBatch(
        sides[0],
        sides[1],
        score_gap_B=torch.full((PAIRS,), gap),
        beta=0.1,
        key_B=torch.arange(PAIRS) + 100 * seed,
        fault_B=torch.tensor([0, -1, 2, 1]),
        prompt_B_D=torch.eye(PAIRS) + 0.2 if "prompts" in needs else None,
        rationale=sides[4] if "rationale" in needs else None,
        repaired=repaired,
        failed=failed,
        own=sides[5] if "own" in needs else None,
    )


def _changed(batch: Any, change: Callable[[Any], Any]) -> Any:
    """The batch, every tensor of it changed."""
    if batch is None or isinstance(batch, float):
        return batch
    if not isinstance(batch, PairBatch | PairSide):
        return change(batch)
    parts: dict[str, Any] = {field.name: _changed(getattr(batch, field.name), change) for field in fields(batch)}
    return replace(batch, **parts)


def _lacking(torch: Any, batch: PairBatch, name: str, where: list[int]) -> PairBatch:
    """The batch without one side of some pairs."""
    side: PairSide = getattr(batch, name)
    kept_B_1 = torch.tensor([[pair not in where] for pair in range(PAIRS)])
    first = None if side.first_logps_B_T is None else side.first_logps_B_T * kept_B_1
    lone = replace(
        side,
        logps_B_T=(side.logps_B_T * kept_B_1).detach().requires_grad_(),
        ref_logps_B_T=side.ref_logps_B_T * kept_B_1,
        turn_B_T=torch.where(kept_B_1, side.turn_B_T, -1),
        first_logps_B_T=first,
    )
    return replace(batch, chosen=lone) if name == "chosen" else replace(batch, rejected=lone)


def _slopes(torch: Any, loss: Any, batch: PairBatch) -> tuple[Any, list[Any]]:
    """The loss, and its gradient on both sides' log-probabilities."""
    value = loss(batch)
    assert isinstance(value, torch.Tensor), "a scalar tensor"
    assert value.ndim == 0, "a scalar tensor"
    assert value.requires_grad, "it has a gradient"
    sides = [batch.chosen.logps_B_T, batch.rejected.logps_B_T]
    slopes = torch.autograd.grad(value, sides, allow_unused=True)
    return value, [torch.zeros_like(side) if s is None else s for s, side in zip(slopes, sides, strict=True)]


def test_pair_loss_declares_what_there_is(pair_loss: Any) -> None:
    check_pair_loss(pair_loss, None, "", None)


def test_pair_loss_is_a_finite_scalar_with_a_gradient(pair_loss: Any, torch: Any) -> None:
    """Near the reference and far from it, for all sorts of score gaps, and for a single pair."""
    for seed, far, gap in ((0, 0.0, 0.5), (1, 0.3, 0.0), (2, 3.0, 1.0), (3, 0.3, -0.5)):
        batch = _batch(torch, pair_loss, seed, far, gap)
        one = _changed(batch, lambda values: values[:1].detach().requires_grad_(values.is_floating_point()))
        for given in (batch, one):
            value, slopes = _slopes(torch, pair_loss, given)
            assert torch.isfinite(value), f"{float(value)} where the policy is {far} from its reference"
            assert all(torch.isfinite(slope).all() for slope in slopes)


def test_pair_loss_begins_in_the_right_direction(pair_loss: Any, torch: Any) -> None:
    """At the reference, where every stage begins: a step makes chosen sides likelier than rejected ones."""
    _, slopes = _slopes(torch, pair_loss, _batch(torch, pair_loss, far=0.0))
    assert float(slopes[0].sum() - slopes[1].sum()) < 0, "raising the margin raises the loss"


def test_pair_loss_does_not_depend_on_the_order_of_pairs(pair_loss: Any, torch: Any) -> None:
    batch, order = _batch(torch, pair_loss), torch.tensor([2, 0, 3, 1])
    moved = _changed(batch, lambda values: values[order])
    assert pair_loss(moved).item() == pytest.approx(pair_loss(batch).item(), rel=1e-5)


def test_pair_loss_changes_neither_itself_nor_its_input(pair_loss: Any, torch: Any) -> None:
    batch = _batch(torch, pair_loss)
    before = copy.deepcopy(_changed(batch, lambda values: values.detach().clone()))
    once, twice = (pair_loss(batch).item() for _ in range(2))
    assert once == twice, "asked again it says something else; let it change in `learn` alone"
    for one, other in zip(_tensors(batch), _tensors(before), strict=True):
        assert torch.equal(one, other), "it changed its input"


def _tensors(batch: PairBatch) -> list[Any]:
    found: list[Any] = []
    _changed(batch, found.append)
    return found


def test_pair_loss_takes_pairs_of_one_side(pair_loss: Any, torch: Any) -> None:
    if not getattr(pair_loss, "unpaired", False):
        return  # it declares nothing of it, so it never meets one
    for name in ("chosen", "rejected"):
        for where in ([0, 2], list(range(PAIRS))):
            batch = _lacking(torch, _batch(torch, pair_loss), name, where)
            value, slopes = _slopes(torch, pair_loss, batch)
            assert torch.isfinite(value), f"without the {name} side of {len(where)} of {PAIRS} pairs"
            assert all(torch.isfinite(slope).all() for slope in slopes)


def test_pair_loss_goes_on_from_its_saved_state(request: pytest.FixtureRequest, pair_loss: Any, torch: Any) -> None:
    """What it learned, through JSON, into another one: the same losses, and the same state after more of it."""
    if not hasattr(pair_loss, "learn"):
        return  # it does not learn
    assert isinstance(pair_loss, Stateful), "what learns has state_dict() and load_state_dict(state), or forgets it"
    learning, resumed = (make(request.config, "pair loss", request.node.callspec.params["pair_loss"]) for _ in range(2))
    still = [_changed(_batch(torch, pair_loss, seed), lambda values: values.detach()) for seed in range(4)]
    for batch in still[:2]:
        learning.learn(batch)
    resumed.load_state_dict(json.loads(json.dumps(learning.state_dict(), sort_keys=True)))
    for seed, batch in enumerate(still[1:], start=1):
        asked = [one(_batch(torch, pair_loss, seed)).item() for one in (learning, resumed)]
        assert asked[0] == asked[1]
        for one in (learning, resumed):
            one.learn(batch)
        assert json.dumps(resumed.state_dict(), sort_keys=True) == json.dumps(learning.state_dict(), sort_keys=True)
    for name, value in getattr(learning, "metrics", dict)().items():
        assert np.isfinite(value), f"{name} is {value}"
