"""Choices as enums, optional ones as well; a model sends the value, not the member."""

from enum import Enum, IntEnum
from typing import Optional, Union


class Mode(Enum):
    HEAT = "heat"
    COOL = "cool"
    OFF = "off"


class Fan(IntEnum):
    LOW = 1
    HIGH = 2


class Thermostat:
    def reset(self, mode: str = "off", **kwargs) -> None:
        self.mode = Mode(mode)
        self.target = None
        self.fan = Fan.LOW

    def set(self, mode: Mode, target: Optional[float] = None, fan: Union[Fan, None] = Fan.LOW) -> str:  # noqa: UP007, UP045
        """Set the thermostat.

        Args:
            mode: What it shall do.
            target: Degrees; null to keep it.
            fan: How fast; null to keep it.
        """
        self.mode = Mode(mode)
        self.target = self.target if target is None else target
        self.fan = self.fan if fan is None else Fan(fan)
        return f"{self.mode.value}, fan {self.fan.value}"
