"""A calendar whose dates travel as texts, and are understood inside."""

from __future__ import annotations

import datetime


class Diary:
    def reset(self, events: list | None = None, **kwargs) -> None:
        self.events = [tuple(event) for event in events or []]

    def add(self, day: str, title: str, hours: float = 1.0, guests: list[str] | None = None) -> str:
        """
        Enter an event.

        Args:
            day: The date, as 2031-05-17.
            title: What it is.
            hours: How long it takes.
            guests: Who else comes.
        """
        when = datetime.date.fromisoformat(day)
        self.events.append((when.isoformat(), title, hours, sorted(guests or [])))
        return f"{title} on {when:%d %B %Y}"

    def free(self, day: str) -> str:
        """
        Say whether a day is free.

        Args:
            day: The date, as 2031-05-17.
        """
        when = datetime.date.fromisoformat(day).isoformat()
        return "no" if any(event[0] == when for event in self.events) else "yes"
