"""Policy losses and callbacks that break their contract, each in one way; only the good ones may pass."""

import random

import numpy as np

from fate_trl import Component, hookimpl


class Good:
    """REINFORCE."""

    def __call__(self, batch):
        return -batch.mean(batch.ratio_B_T * batch.advantages_B_T)


class Grouped(Good):
    """Good too: over whole groups, with a reference, logits, a column and numbers for the log."""

    whole_groups = reference = logits = True
    needs = ("utility",)

    def columns(self, scores_G_N_M, *, reward_G_N, objectives, valid_G_N, rows):
        utility_G_N = np.nan_to_num(scores_G_N_M[:, :, objectives.index("utility")])
        return {"side": np.sign(utility_G_N - 0.5), "calls": rows.prefix_G_N}

    def __call__(self, batch):
        spread = batch.logits_B_T_V.std() * batch.together_B_B.double().mean()
        return batch.mean(batch.kl_B_T) + batch.row_mean(batch.ref_log_ratio_B * batch.reward_B) * spread

    def metrics(self):
        return {"one": 1.0}


class Vector(Good):
    def __call__(self, batch):
        return batch.ratio_B_T.sum(dim=1)


class Detached(Good):
    def __call__(self, batch):
        return super().__call__(batch).detach()


class Infinite(Good):
    def __call__(self, batch):
        return super().__call__(batch) / batch.reward_B.sum() / 0


class Still(Good):
    def __call__(self, batch):
        return 0 * super().__call__(batch)


class Dice(Good):
    def __call__(self, batch):
        return super().__call__(batch) * random.random()


class Mutating(Good):
    def __call__(self, batch):
        batch.advantages_B_T.mul_(2)
        return super().__call__(batch)


class First(Good):
    """Its first row counts more."""

    def __call__(self, batch):
        return super().__call__(batch) + batch.log_ratio_B[0]


class Greedy(Good):
    """Reads a reference that it did not ask for."""

    def __call__(self, batch):
        return batch.ref_log_ratio_B.mean()


class Narrow(Good):
    def columns(self, scores_G_N_M, *, reward_G_N, objectives, valid_G_N):
        return {"mean": reward_G_N.mean(axis=1)}


class Drawn(Good):
    def columns(self, scores_G_N_M, *, reward_G_N, objectives, valid_G_N):
        return {"noise": np.random.default_rng().random(valid_G_N.shape)}


class Unlogged(Good):
    def metrics(self):
        return {"nothing": float("nan")}


class Factor:
    """A good callback: learns, reshapes, and keeps its state."""

    def __init__(self):
        self.factor = 1.0

    def learn(self, scores_G_N_M, *, objectives, valid_G_N, rows):
        self.factor += float(np.nanmean(scores_G_N_M)) + rows.length_G_N.mean()

    def reshape(self, advantages):
        return advantages * self.factor

    def state_dict(self):
        return {"factor": self.factor}

    def load_state_dict(self, state):
        self.factor = state["factor"]

    def metrics(self):
        return {"factor": self.factor}


class Idle:
    pass


class Forgetful(Factor):
    def load_state_dict(self, state):
        pass


class Stateless:
    def learn(self, scores_G_N_M, *, objectives, valid_G_N):
        self.seen = True


class Cutting(Factor):
    def reshape(self, advantages):
        return advantages[:1]


class InPlace(Factor):
    def reshape(self, advantages):
        return advantages.mul_(2)


class Blind(Factor):
    def columns(self, scores_G_N_M, *, reward_G_N, objectives, valid_G_N):
        return {"score": np.nan_to_num(reward_G_N)}


@hookimpl
def fate_trl_policy_losses():
    losses = {"good": Good, "grouped": Grouped, "vector": Vector, "detached": Detached, "infinite": Infinite}
    losses |= {"still": Still, "dice": Dice, "changing": Mutating, "first": First, "greedy": Greedy}
    losses |= {"narrow": Narrow, "drawn": Drawn, "unlogged": Unlogged}
    return [Component(name, factory, "x") for name, factory in losses.items()]


@hookimpl
def fate_trl_callbacks():
    callbacks = {"factor": Factor, "idle": Idle, "forgetful": Forgetful, "stateless": Stateless}
    callbacks |= {"cutting": Cutting, "in-place": InPlace, "blind": Blind}
    return [Component(name, factory, "x") for name, factory in callbacks.items()]
