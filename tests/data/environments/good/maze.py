"""A maze from a seed: the observation of `reset` and each result say what can be seen."""

import random
from typing import Literal

STEPS = {"north": (0, -1), "south": (0, 1), "west": (-1, 0), "east": (1, 0)}


class Maze:
    def reset(self, seed=0, size=4, **kwargs):
        draw = random.Random(seed)
        self.size = size
        self.walls = {(draw.randrange(size), draw.randrange(size)) for _ in range(size)} - {
            (0, 0),
            (size - 1, size - 1),
        }
        self.place = (0, 0)
        return f"\nYou stand at {self.place}; the exit is at {(size - 1, size - 1)}."

    def move(self, direction: Literal["north", "south", "west", "east"]) -> str:
        """Go one step.

        Args:
            direction: Where to.
        """
        x, y = self.place[0] + STEPS[direction][0], self.place[1] + STEPS[direction][1]
        if (x, y) in self.walls or not (0 <= x < self.size and 0 <= y < self.size):
            return "There is a wall."
        self.place = (x, y)
        return f"You stand at {self.place}."

    def get_reward(self) -> float:
        return float(self.place == (self.size - 1, self.size - 1))
