"""A state that is a dataclass, made anew by each reset."""

from dataclasses import dataclass, field


@dataclass
class Note:
    text: str
    tags: set[str] = field(default_factory=set)


@dataclass
class State:
    notes: dict[int, Note] = field(default_factory=dict)
    next: int = 1


class Notes:
    state: State

    def reset(self, **kwargs):
        self.state = State()

    def add(self, text: str, tags: list[str] = []) -> str:  # noqa: B006
        """Add a note.

        Args:
            text: What it says.
            tags: Its tags.
        """
        number, self.state.next = self.state.next, self.state.next + 1
        self.state.notes[number] = Note(text, set(tags))
        return f"note {number}"

    def tagged(self, tag: str) -> str:
        """Find notes by a tag.

        Args:
            tag: The tag.
        """
        found = [f"{number}: {note.text}" for number, note in self.state.notes.items() if tag in note.tags]
        return "\n".join(found) or "none"
