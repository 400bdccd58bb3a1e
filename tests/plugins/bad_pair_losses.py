"""Pair losses with one fault each, for the contract suite, and good ones beside them."""

from fate_trl import Component, hookimpl


def dpo_of(batch):
    from torch.nn.functional import logsigmoid

    return -logsigmoid(batch.beta * (batch.chosen.log_ratio_B - batch.rejected.log_ratio_B))


class Good:
    """DPO."""

    def __call__(self, batch):
        return dpo_of(batch).mean()


class Told(Good):
    """Uses every fact that it asks for."""

    needs = ("first_policy", "own", "prompts", "rationale", "repair_prompt")

    def __call__(self, batch):
        firsts = batch.chosen.first_logps_B_T.sum() + batch.prompt_B_D.sum()
        more = batch.rationale.logps_B_T.mean() + batch.repaired.log_ratio_B.mean() - batch.failed.log_ratio_B.mean()
        return super().__call__(batch) - 0.01 * (more + batch.own.log_ratio_B.mean()) + 0 * firsts


class Lone:
    """Takes sides without a partner."""

    unpaired = True

    def __call__(self, batch):
        sides = [(side.log_ratio_B * side.there_B).sum() for side in (batch.chosen, batch.rejected)]
        return (sides[1] - sides[0]) / len(batch.key_B)


class Learns(Good):
    """Counts batches."""

    def __init__(self):
        self.seen = 0

    def __call__(self, batch):
        return dpo_of(batch).mean() / (1 + self.seen)

    def learn(self, batch):
        self.seen += 1

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Rows(Good):
    def __call__(self, batch):
        return dpo_of(batch)


class Number(Good):
    def __call__(self, batch):
        return dpo_of(batch).mean().item()


class Blind(Good):
    def __call__(self, batch):
        return super().__call__(batch).detach()


class Exploding(Good):
    def __call__(self, batch):
        return (batch.rejected.log_ratio_B - batch.chosen.log_ratio_B).exp().exp().mean()


class Backwards(Good):
    def __call__(self, batch):
        return -super().__call__(batch)


class FirstOnly(Good):
    def __call__(self, batch):
        return dpo_of(batch)[0]


class Counting(Learns):
    def __call__(self, batch):
        self.seen += 1
        return super().__call__(batch)


class Spoiling(Good):
    def __call__(self, batch):
        batch.score_gap_B.mul_(0.5)
        return super().__call__(batch)


class Dividing(Lone):
    def __call__(self, batch):
        sides = [side.log_ratio_B.sum() / side.there_B.sum() for side in (batch.chosen, batch.rejected)]
        return sides[1] - sides[0]


class Curious(Good):
    needs = ("embeddings",)


class Forgetful(Learns):
    def load_state_dict(self, state):
        pass


class Stateless(Good):
    def learn(self, batch):
        pass


@hookimpl
def fate_trl_pair_losses():
    kinds = {
        **{"good": Good, "told": Told, "lone": Lone, "learns": Learns},
        **{"rows": Rows, "number": Number, "blind": Blind, "exploding": Exploding, "backwards": Backwards},
        **{"first-only": FirstOnly, "counting": Counting, "spoiling": Spoiling, "dividing": Dividing},
        **{"curious": Curious, "forgetful": Forgetful, "stateless": Stateless},
    }
    return [Component(name, kind, "for the contract suite") for name, kind in kinds.items()]
