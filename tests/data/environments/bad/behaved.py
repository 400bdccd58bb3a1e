"""Environments that describe themselves well and behave badly, one class for each way."""

import asyncio
import os
import random
import sys
import time


class _Base:
    def reset(self, **kwargs):
        self.seen = []

    def look(self) -> str:
        """Look around."""
        return "nothing"


class Hanging(_Base):
    def wait(self, seconds: int) -> str:
        """Wait.

        Args:
            seconds: How long.
        """
        while True:
            time.sleep(0.01)


class HangingAsync(_Base):
    async def wait(self) -> str:
        """Wait."""
        await asyncio.Event().wait()
        return "never"


class HangingReset(_Base):
    def reset(self, **kwargs):
        time.sleep(3600)


class Silent(_Base):
    def note(self, text: str):
        """Write a note.

        Args:
            text: What.
        """
        self.seen.append(text)


class Lists(_Base):
    def names(self) -> list[str]:
        """List the names."""
        return ["ann", "bob"]


class Dicts(_Base):
    def person(self) -> dict:
        """Show a person."""
        return {"name": "ann", "age": 31}


class Objects(_Base):
    def thing(self):
        """Show a thing."""
        return object()


class Images(_Base):
    def show(self):
        """Show the screen."""
        return [{"type": "image", "image": "pixels"}]


class Forgotten(_Base):
    def fetch(self):
        """Fetch it."""
        return self._fetch()

    async def _fetch(self):
        return "it"


class Shared(_Base):
    orders = []  # noqa: RUF012

    def reset(self, **kwargs):
        pass

    def order(self, item: str) -> str:
        """Order something.

        Args:
            item: What.
        """
        self.orders.append(item)
        return f"{len(self.orders)} orders"


class CarriedOver(_Base):
    def __init__(self):
        self.total = 0

    def add(self, amount: int) -> str:
        """Add.

        Args:
            amount: How much.
        """
        self.total += amount
        return str(self.total)


class HashSeed(_Base):
    def guests(self) -> str:
        """List the guests."""
        return ", ".join({"ann", "bob", "cleo", "dan", "eve", "finn", "gus"})


class Random(_Base):
    def roll(self) -> str:
        """Roll the dice."""
        return str(random.random())


class RandomReset(_Base):
    def reset(self, **kwargs):
        self.secret = random.random()
        return f"The number is {self.secret}."


class Broken(_Base):
    def total(self) -> str:
        """Sum up."""
        return str(self.sums)


class Refusing(_Base):
    def take(self, key: str) -> str:
        """Take a key.

        Args:
            key: Which.
        """
        raise ValueError(f"there is no key {key}")


class Demanding(_Base):
    def __init__(self, url):
        self.url = url


class DemandingReset(_Base):
    def reset(self, word, **kwargs):
        self.word = word


class Strict(_Base):
    def reset(self):
        self.seen = []


class FailingReset(_Base):
    def reset(self, **kwargs):
        raise ConnectionError("no server at localhost:1")


class Messages(_Base):
    def reset(self, **kwargs):
        return [{"role": "user", "content": "Begin."}]


class Leaving(_Base):
    def leave(self) -> str:
        """Leave."""
        sys.exit(3)


class Crashing(_Base):
    def crash(self) -> str:
        """Crash."""
        os._exit(3)


class Printing(_Base):
    def shout(self) -> str:
        """Shout."""
        print('{"not": "an answer"}')
        return "shouted"


class Lying(_Base):
    def get_reward(self):
        return "well done"


class Ungenerous(_Base):
    def get_reward(self):
        return -3.0
