"""Policy losses and callbacks, on made-up generations and log-probabilities."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ...hookspecs import PolicyBatch, Rows, Stateful, takes_rows
from ...types import OBJECTIVES
from .. import samples
from .helpers import generator, make

VOCABULARY = 5
MEMBERS = ("attach", "learn", "reshape", "columns", "watch")


def _generations() -> list[tuple[np.ndarray, np.ndarray, Rows]]:
    return [(scores, valid, samples.rows(scores, valid)) for scores, valid in samples.groups()]


def _put(component: Any, method: str, generation: tuple[np.ndarray, np.ndarray, Rows]) -> Any:
    """Ask `columns` or `learn`, on copies."""
    scores_G_N_M, valid_G_N, rows = generation
    ask = getattr(component, method)
    needed = list(getattr(component, "needs", ()))
    names = [*needed, *(name for name in OBJECTIVES if name not in needed)][: scores_G_N_M.shape[2]]
    more: dict[str, Any] = {"rows": copy.deepcopy(rows)} if takes_rows(ask) else {}
    if method == "columns":
        more["reward_G_N"] = _reward(scores_G_N_M, valid_G_N)
    return ask(scores_G_N_M.copy(), objectives=names, valid_G_N=valid_G_N.copy(), **more)


def _reward(scores_G_N_M: np.ndarray, valid_G_N: np.ndarray) -> np.ndarray:
    known_G_N = np.maximum((~np.isnan(scores_G_N_M)).sum(axis=2), 1)
    return np.where(valid_G_N, np.nansum(scores_G_N_M, axis=2) / known_G_N, np.nan)


def _checked_columns(component: Any, generation: tuple[np.ndarray, np.ndarray, Rows]) -> dict[str, np.ndarray]:
    found = {name: np.array(values, float) for name, values in _put(component, "columns", generation).items()}
    for name, values in found.items():
        assert values.shape == generation[1].shape, f"column {name!r} must be (G, N)"
        assert np.isfinite(values[generation[1]]).all(), f"column {name!r} is finite in rows that are valid"
    return found


def _batch(loss: Any, generation: tuple[np.ndarray, np.ndarray, Rows], moved: float) -> PolicyBatch:
    """The generation as a micro-batch, with what the loss declares that it needs and nothing else."""
    torch = pytest.importorskip("torch", reason="policy losses need torch")
    scores_G_N_M, valid_G_N, rows = generation
    own_B_T = torch.tensor(rows.turn_G_N_T.reshape(valid_G_N.size, -1) >= 0)
    rng = generator(scores_G_N_M.shape[2])
    logits_B_T_V = torch.tensor(rng.normal(size=(*own_B_T.shape, VOCABULARY)))
    logps_B_T = torch.where(own_B_T, logits_B_T_V.log_softmax(dim=-1)[..., 0], 0.0)
    old_B_T = logps_B_T - moved * torch.where(own_B_T, torch.tensor(rng.normal(size=own_B_T.shape)), 0.0)
    reward_B = torch.tensor(np.nan_to_num(_reward(scores_G_N_M, valid_G_N)).reshape(-1))
    valid_B = torch.tensor(valid_G_N.reshape(-1))
    columns = _checked_columns(loss, generation) if hasattr(loss, "columns") else {}
    mean_B = reward_B.reshape(valid_G_N.shape).mean(dim=1).repeat_interleave(valid_G_N.shape[1])
    all_B_T_V = logits_B_T_V.log_softmax(dim=-1)
    groups, size = valid_G_N.shape
    return PolicyBatch(
        logps_B_T=logps_B_T.clone().requires_grad_(),
        old_logps_B_T=old_B_T,
        mask_B_T=own_B_T.int(),
        entropy_B_T=torch.where(own_B_T, -(all_B_T_V.exp() * all_B_T_V).sum(dim=-1), 0.0),
        advantages_B_T=torch.where(valid_B, reward_B - mean_B, 0.0)[:, None],
        reward_B=reward_B,
        valid_B=valid_B,
        columns={name: torch.tensor(np.where(valid_G_N, values, 0.0).reshape(-1)) for name, values in columns.items()},
        beta=0.1 if getattr(loss, "reference", False) else 0.0,
        epsilon_low=0.2,
        epsilon_high=0.28,
        importance_B_T=torch.ones(len(reward_B), 1),
        ref_logps_B_T=logps_B_T - 0.1 * own_B_T if getattr(loss, "reference", False) else None,
        group_B=torch.arange(groups).repeat_interleave(size) if getattr(loss, "whole_groups", False) else None,
        logits_B_T_V=logits_B_T_V if getattr(loss, "logits", False) else None,
    )


def _batches(loss: Any) -> Iterator[PolicyBatch]:
    """On the samples and after some updates on them."""
    needed = len(set(getattr(loss, "needs", ())))
    for i, generation in enumerate(each for each in _generations() if each[0].shape[2] >= needed):
        yield _batch(loss, generation, moved=0.1 * (i % 2))


def _slope(loss: Any, batch: PolicyBatch) -> Any:
    batch.logps_B_T.grad = None
    loss(batch).backward()
    return batch.logps_B_T.grad


def test_policy_loss_returns_a_scalar_with_a_gradient(policy_loss: Any) -> None:
    for batch in _batches(policy_loss):
        loss = policy_loss(batch)
        assert loss.ndim == 0, "a scalar, the mean over the micro-batch"
        assert loss.requires_grad, "what it returns depends on logps_B_T"
        assert loss.isfinite(), f"the loss is {loss}"
        assert _slope(policy_loss, dataclasses.replace(batch)).isfinite().all(), "its gradient is not finite"


def test_policy_loss_moves_the_policy(policy_loss: Any) -> None:
    assert any(_slope(policy_loss, batch).abs().max() > 0 for batch in _batches(policy_loss))


def test_policy_loss_says_the_same_twice_and_does_not_change_its_input(policy_loss: Any) -> None:
    for batch in _batches(policy_loss):
        before = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        kept = {name: value.detach().clone() for name, value in before.items() if hasattr(value, "detach")}
        once, twice = (float(policy_loss(dataclasses.replace(batch))) for _ in range(2))
        assert once == twice, "what draws by chance, or changes in between, cannot be resumed"
        assert all((before[name] == value).all() for name, value in kept.items()), "it changed what it was told"


def test_policy_loss_does_not_depend_on_the_order_of_rows(policy_loss: Any) -> None:
    for batch in _batches(policy_loss):
        order = generator().permutation(len(batch.reward_B)).tolist()
        turned = {
            field.name: value[order].detach()
            for field in dataclasses.fields(batch)
            if hasattr(value := getattr(batch, field.name), "detach")
        }
        columns = {name: values[order] for name, values in batch.columns.items()}
        other = dataclasses.replace(batch, **turned, columns=columns)
        assert float(policy_loss(other)) == pytest.approx(float(policy_loss(batch)), rel=1e-5, abs=1e-7)


def test_policy_loss_columns_depend_on_the_generation_alone(policy_loss: Any) -> None:
    _check_columns(policy_loss)


def test_policy_loss_numbers_for_the_log_are_numbers(policy_loss: Any) -> None:
    for batch in _batches(policy_loss):
        policy_loss(batch)
    _check_metrics(policy_loss)


def test_callback_has_something_to_do(callback: Any) -> None:
    events = [name for name in dir(callback) if name.startswith("on_") and callable(getattr(callback, name))]
    assert events or any(hasattr(callback, name) for name in MEMBERS), f"it has no event, and none of {MEMBERS}"


def test_callback_columns_depend_on_the_generation_alone(callback: Any) -> None:
    assert not hasattr(callback, "columns") or hasattr(callback, "watch"), "columns are for `watch`, which it lacks"
    _check_columns(callback)


def test_callback_takes_generations_in_and_goes_on_from_its_saved_state(
    request: pytest.FixtureRequest, callback: Any
) -> None:
    """What it learned, through JSON, into another one: the same state, and the same after more of it."""
    learning = copy.deepcopy(callback)
    if hasattr(learning, "learn"):
        assert isinstance(learning, Stateful), "what learns has state_dict() and load_state_dict(state), or forgets it"
        for generation in _generations()[:6]:
            _put(learning, "learn", generation)
    _check_metrics(learning)
    if not isinstance(learning, Stateful):
        return
    resumed = make(request.config, "callback", request.node.callspec.params["callback"])
    resumed.load_state_dict(json.loads(json.dumps(learning.state_dict())))
    for generation in _generations()[6:8]:
        assert json.dumps(resumed.state_dict()) == json.dumps(learning.state_dict())
        for each in (learning, resumed) if hasattr(learning, "learn") else ():
            _put(each, "learn", generation)


def test_callback_reshapes_advantages_to_as_many(callback: Any) -> None:
    if not hasattr(callback, "reshape"):
        return
    torch = pytest.importorskip("torch", reason="advantages are torch's tensors")
    for shape in ((8,), (8, samples.TOKENS)):
        before = torch.tensor(generator().normal(size=shape))
        kept = before.clone()
        after = callback.reshape(before)
        assert after.shape == before.shape
        assert after.isfinite().all()
        assert (before == kept).all(), "it changed what it was given; return another tensor"


def _check_columns(component: Any) -> None:
    if not hasattr(component, "columns"):
        return
    needed = len(set(getattr(component, "needs", ())))
    for generation in _generations():
        if generation[0].shape[2] < needed:
            continue
        once, twice = (_checked_columns(component, generation) for _ in range(2))
        assert list(once) == list(twice)
        same = all(np.array_equal(once[name], twice[name], equal_nan=True) for name in once)
        assert same, "the second time differs"


def _check_metrics(component: Any) -> None:
    for name, value in component.metrics().items() if hasattr(component, "metrics") else ():
        assert isinstance(name, str)
        assert np.isfinite(float(value)), f"{name} is {value}"
