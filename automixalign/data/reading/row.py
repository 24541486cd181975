"""A row of a source, as it was read, and the rows of a source."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple


class Unreadable(NamedTuple):
    """Stands for the columns of a row that cannot be read."""

    problem: str
    """What is wrong with it, for a message that begins with file and line."""


class Row(NamedTuple):
    """A row of a source, not checked yet."""

    where: str
    """File and line, for messages; for a table, the number of the row. Both count from 1."""
    data: dict[str, Any] | Unreadable
    """Column -> value; a null is None."""


class OpenSource:
    """A source of a task, as files of this machine. Iterating reads its rows, again each time.

    Args:
        name: what messages call it.
        parts: each starts a reading of a part, such as a file.
        passed_over: the files that are not read.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Callable[[], Iterator[Row]]],
        passed_over: dict[str, str] | None = None,
    ) -> None:
        self.name, self._parts = name, parts
        self.passed_over = passed_over or {}
        """File, relative to the source -> why it is not read."""
        self.commit: str | None = None
        """Of a data set on the hub."""

    def __iter__(self) -> Iterator[Row]:
        return chain.from_iterable(read() for read in self._parts)

    def first_rows(self) -> Iterator[Row]:
        """The first row of each part that has one."""
        for read in self._parts:
            yield from islice(read(), 1)
