"""Pairings."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ...hookspecs import Tried
from ...loop.pairing import pairs_of
from ...record import dumps
from ...verify import scoring
from .. import samples
from .helpers import as_json, assert_same


@pytest.fixture(scope="module")
def tried() -> Tried:
    return samples.tried()


def test_pairs_can_be_learned_from(pairing: Any, tried: Tried) -> None:
    made, counts = pairs_of(pairing, tried)
    assert counts["pairs"] == len(made)
    for pair in made:
        assert set(pair.chosen_mask) | set(pair.rejected_mask) <= {0, 1}
        assert -1 <= pair.score_gap <= 1
    assert pairs_of(pairing, Tried(1, []))[0] == [], "a round without failures has no pairs"


def test_pairs_are_of_tokens_that_were_sampled(pairing: Any, tried: Tried) -> None:
    """Loss falls on nothing but what the policy wrote: tools' results have none."""
    own = {
        (trajectory.task.id, trajectory.completion_ids): trajectory.policy_mask
        for trajectory in samples.trajectories_of(tried)
    }
    for pair in pairs_of(pairing, tried)[0]:
        for ids, mask in ((pair.chosen_ids, pair.chosen_mask), (pair.rejected_ids, pair.rejected_mask)):
            written = own.get((pair.task, ids))
            assert written is not None, "a side is what followed the prompt in some trajectory of the round"
            assert all(a <= b for a, b in zip(mask, written, strict=True)), "loss on what the policy did not write"


def test_pairs_depend_on_the_round_alone(pairing: Any, tried: Tried) -> None:
    once, twice = (pairs_of(pairing, tried)[0] for _ in range(2))
    assert_same(as_json(twice), as_json(once), "the second time differs")


def test_a_pairing_does_not_change_its_input(pairing: Any, tried: Tried) -> None:
    before = copy.deepcopy(tried.repairs)
    pairing.pairs(tried)
    assert_same(as_json(tried.repairs), as_json(before), "it changed a repair, or their order")


def test_a_pairings_own_numbers_are_numbers(pairing: Any, tried: Tried) -> None:
    _, counts = pairs_of(pairing, tried)
    assert dumps(counts)


def test_a_pairing_never_judges(pairing: Any) -> None:
    assert not scoring.is_verifier(pairing), "it is a verifier as well; make two components of it"
