"""Budgets for tests, as a plugin file: flat ones, wrong ones, and one that learns and writes down what it was told."""

from __future__ import annotations

from fate_trl import Component, hookimpl


class Flat:
    """As many for each; what is left over for the first ones."""

    def tries(self, items, *, total, low, high, rng):
        each, left = divmod(total, len(items))
        return [each + (i < left) for i in range(len(items))]


class Wrong:
    """Returns what it must not."""

    def __init__(self, how: str):
        self.how = how

    def tries(self, items, *, total, low, high, rng):
        shares = Flat().tries(items, total=total, low=low, high=high, rng=rng)
        return {
            "few": shares[:-1],
            "sum": [share + 1 for share in shares],
            "high": [total, *[0] * (len(items) - 1)],
            "half": [share + 0.5 for share in shares],
            "nan": [float("nan")] * len(items),
            "infinite": [float("inf")] * len(items),
            "texts": ["many"] * len(items),
            "none": None,
        }[self.how]


class Hardest:
    """What came to fewest successes gets most; ties by chance."""

    def __init__(self):
        self.seen = {}

    def tries(self, items, *, total, low, high, rng):
        assert len(items) * low <= total <= len(items) * high
        shares, left = [low] * len(items), total - low * len(items)
        order = sorted(range(len(items)), key=lambda i: (self.seen.get(items[i].key, 0.5), rng.random()))
        for i in order:
            more = min(left, high - low)
            shares[i] += more
            left -= more
        return shares

    def told(self, spent):
        for each in spent:
            if each.rollouts:
                self.seen[each.item.key] = each.successes / each.rollouts

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = dict(state["seen"])

    def metrics(self):
        return {"known": len(self.seen)}


@hookimpl
def fate_trl_budgets():
    return [
        Component("flat", Flat, "as many for each"),
        Component("wrong", Wrong, "what it must not"),
        Component("hardest", Hardest, "what failed most gets most"),
    ]
