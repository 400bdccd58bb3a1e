"""A plugin in one file: a verifier, an observer, and nothing else. It passes the contract suite."""

from fate_trl import Component, Score, hookimpl

RECORDS = []


class Polite:
    """`politeness`: 0 if the answer insults.

    Args:
        words: What counts as an insult.
    """

    objectives = ("politeness",)

    def __init__(self, words: list[str] = ["idiot"]):  # noqa: B006 (never changed)
        self.words = words

    def score(self, trajectories):
        return [{"politeness": self._one(trajectory.answer)} for trajectory in trajectories]

    def _one(self, answer):
        rude = any(word in answer for word in self.words)
        return Score(0.0, reason="an insult", feedback="Be polite.") if rude else Score(1.0)


@hookimpl
def fate_trl_verifiers():
    return [Component("polite", Polite, "answers do not insult")]


@hookimpl
def fate_trl_round_finished(record):
    RECORDS.append(record)
