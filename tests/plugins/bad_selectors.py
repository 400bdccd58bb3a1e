"""Selectors that break their contract, each in one way; only `good` may pass the contract suite."""

import numpy as np

from fate_trl import Choice, Component, hookimpl
from fate_trl.choose.selectors import ParetoFront


class Good:
    """A built-in, behind the two methods of the contract."""

    def __init__(self):
        self.inner = ParetoFront()

    def choose(self, scores_K_M, *, objectives, rng):
        return self.inner.choose(scores_K_M, objectives=objectives, rng=rng)

    def reward(self, scores_G_N_M, *, objectives, valid_G_N):
        return self.inner.reward(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)


class Advantages:
    """Good too: sets advantages, not rewards."""

    def choose(self, scores_K_M, *, objectives, rng):
        return Good().choose(scores_K_M, objectives=objectives, rng=rng)

    def advantages(self, scores_G_N_M, *, objectives, valid_G_N):
        rewards = Good().reward(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)
        return np.nan_to_num(rewards - np.nanmean(rewards, axis=1, keepdims=True))


class Taught(Advantages):
    """Good too: learns how far to go, and needs one objective."""

    needs = ("utility",)

    def __init__(self):
        self.scale = 1.0

    def advantages(self, scores_G_N_M, *, objectives, valid_G_N):
        assert "utility" in objectives
        return self.scale * super().advantages(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)

    def learn(self, scores_G_N_M, *, objectives, valid_G_N, rows):
        self.scale += float(rows.resolved_G_N.mean()) / 8

    def state_dict(self):
        return {"scale": self.scale}

    def load_state_dict(self, state):
        self.scale = state["scale"]

    def metrics(self):
        return {"scale": self.scale}


class Relative(Advantages):
    """Good too: compares the groups of a batch, and says so."""

    whole_batch = True

    def advantages(self, scores_G_N_M, *, objectives, valid_G_N):
        own = super().advantages(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)
        return own / (1 + len(own))


class Thrifty(Advantages):
    """Good too: fewer tokens are better, and it says that more than scores counts."""

    orders = False

    def advantages(self, scores_G_N_M, *, objectives, valid_G_N, rows):
        return np.where(valid_G_N[:, :, None] & (rows.turn_G_N_T >= 0), 1 / rows.length_G_N[:, :, None], 0.0)


class Batchwise(Relative):
    """Does not say so."""

    whole_batch = False


class Greedy(Thrifty):
    """Does not say so."""

    orders = True


class Forgetful(Taught):
    """Leaves out what it learned."""

    def load_state_dict(self, state):
        self.scale = 1.0


class Stateless(Advantages):
    """Learns, and has nothing to be saved."""

    def learn(self, scores_G_N_M, *, objectives, valid_G_N):
        self.seen = len(scores_G_N_M)


class Drifting(Taught):
    """Changes when it is asked."""

    def advantages(self, scores_G_N_M, *, objectives, valid_G_N):
        self.scale += 1e-6
        return super().advantages(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)


class Dominated(Good):
    """Picks the candidate with the lowest sum."""

    def choose(self, scores_K_M, *, objectives, rng):
        right = super().choose(scores_K_M, objectives=objectives, rng=rng)
        return right and Choice(int(np.nansum(scores_K_M, axis=1).argmin()), right.front, "sum")


class Ordered(Good):
    """Says that all candidates are the front."""

    def choose(self, scores_K_M, *, objectives, rng):
        right = super().choose(scores_K_M, objectives=objectives, rng=rng)
        return right and Choice(right.index, tuple(range(len(scores_K_M))), right.decided_by)


class Undecided(Good):
    """Gives up where an objective does not apply."""

    def choose(self, scores_K_M, *, objectives, rng):
        if np.isnan(scores_K_M).any():
            return None
        return super().choose(scores_K_M, objectives=objectives, rng=rng)


class Eager(Good):
    """Chooses among no candidates."""

    def choose(self, scores_K_M, *, objectives, rng):
        if not len(scores_K_M):
            return Choice(0, (0,), "only")
        return super().choose(scores_K_M, objectives=objectives, rng=rng)


class Dice(Good):
    """A member of the front, but by no `rng` of ours."""

    def choose(self, scores_K_M, *, objectives, rng):
        right = super().choose(scores_K_M, objectives=objectives, rng=rng)
        return right and Choice(int(np.random.default_rng().choice(right.front)), right.front, "dice")


class Upside(Good):
    def reward(self, scores_G_N_M, *, objectives, valid_G_N):
        return -super().reward(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)


class Flat(Good):
    def reward(self, scores_G_N_M, *, objectives, valid_G_N):
        return np.where(valid_G_N, 1.0, np.nan)


class Forgiving(Good):
    """Rewards errors with 0, which may be above what others earn."""

    def reward(self, scores_G_N_M, *, objectives, valid_G_N):
        rewards = super().reward(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)
        return np.nan_to_num(rewards)


class Summing(Good):
    """NaN where an objective does not apply."""

    def reward(self, scores_G_N_M, *, objectives, valid_G_N):
        return np.where(valid_G_N, scores_G_N_M.sum(axis=2), np.nan)


class Squashed(Good):
    """One reward per group."""

    def reward(self, scores_G_N_M, *, objectives, valid_G_N):
        return np.nansum(scores_G_N_M, axis=(1, 2))


class FirstCome(Good):
    """Rows that come first earn a little more."""

    def reward(self, scores_G_N_M, *, objectives, valid_G_N):
        rewards = super().reward(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)
        return 100 * rewards - np.arange(rewards.shape[1])


class Mutating(Good):
    def choose(self, scores_K_M, *, objectives, rng):
        np.nan_to_num(scores_K_M, copy=False)
        return super().choose(scores_K_M, objectives=objectives, rng=rng)

    def reward(self, scores_G_N_M, *, objectives, valid_G_N):
        rewards = super().reward(scores_G_N_M, objectives=objectives, valid_G_N=valid_G_N)
        np.nan_to_num(scores_G_N_M, copy=False)
        return rewards


@hookimpl
def fate_trl_selectors():
    kinds = {
        "good": Good,
        "advantages": Advantages,
        "taught": Taught,
        "relative": Relative,
        "thrifty": Thrifty,
        "batchwise": Batchwise,
        "greedy": Greedy,
        "forgetful": Forgetful,
        "stateless": Stateless,
        "drifting": Drifting,
        "dominated": Dominated,
        "ordered": Ordered,
        "undecided": Undecided,
        "eager": Eager,
        "dice": Dice,
        "upside": Upside,
        "flat": Flat,
        "forgiving": Forgiving,
        "summing": Summing,
        "squashed": Squashed,
        "first-come": FirstCome,
        "mutating": Mutating,
    }
    return [Component(name, factory, f"a {name} selector") for name, factory in kinds.items()]
