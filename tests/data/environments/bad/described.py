"""Tools that transformers cannot describe to a model, one class for each way."""

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from decimal import Decimal


class _Base:
    def reset(self, **kwargs):
        pass


class Undocumented(_Base):
    def look(self, day: str) -> str:
        return day


class NumPyStyle(_Base):
    def look(self, day: str) -> str:
        """Look at a day.

        Parameters
        ----------
        day : str
            The day.
        """
        return day


class SphinxStyle(_Base):
    def look(self, day: str) -> str:
        """Look at a day.

        :param str day: The day.
        """
        return day


class TypesInBrackets(_Base):
    def look(self, day: str) -> str:
        """Look at a day.

        Args:
            day (str): The day.
        """
        return day


class HalfDescribed(_Base):
    def look(self, day: str, hour: int = 0) -> str:
        """Look at a day.

        Args:
            day: The day.
        """
        return day


class Untyped(_Base):
    def look(self, day) -> str:
        """Look at a day.

        Args:
            day: The day.
        """
        return day


class Dates(_Base):
    def look(self, day: datetime.date) -> str:
        """Look at a day.

        Args:
            day: The day.
        """
        return str(day)


@dataclass
class Point:
    x: int


class DataclassArgument(_Base):
    def look(self, place: Point) -> str:
        """Look at a place.

        Args:
            place: Where.
        """
        return str(place)


class Place(TypedDict):
    x: int


class TypedDictArgument(_Base):
    def look(self, place: Place | None = None) -> str:
        """Look at a place.

        Args:
            place: Where.
        """
        return str(place)


class OnlyForTypeCheckers(_Base):
    def pay(self, amount: "Decimal") -> str:
        """Pay.

        Args:
            amount: How much.
        """
        return str(amount)


class BadChoices(_Base):
    def drink(self, cup: str) -> str:
        """Drink.

        Args:
            cup: What of (choices: [tea, coffee])
        """
        return cup
