"""A row of a source, as it was read."""

from typing import Any, NamedTuple


class Unreadable(NamedTuple):
    """Stands for the columns of a row that cannot be read."""

    problem: str
    """What is wrong with it, for a message that begins with file and line."""


class Row(NamedTuple):
    """A row of a source, not checked yet."""

    where: str
    """File and line, for messages."""
    data: dict[str, Any] | Unreadable
    """Column -> value; a null is None."""
