"""The base of row formats."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

from automixalign.system.schema import Schema

Fields: TypeAlias = dict[str, Any]
"""`prompt`, `chosen` and `rejected`, and perhaps `answer`, `tools` and `chat_template_kwargs`, as in TRL.
`derived` is True where the prompt was split off the sides."""
Draw: TypeAlias = Callable[[], random.Random]
"""Makes the random generator of one row, from the run's seed, the task and the row."""
Messages: TypeAlias = list[dict[str, Any]]

EXTRAS = ("answer", "tools", "chat_template_kwargs")
"""Optional fields that a format may pass on as they are."""


class DroppedRow(Exception):  # noqa: N818  no error: the row is well-formed, and says nothing
    """A row that holds no preference; its text is the reason it is counted by, such as `tie`."""


class RowFormat(Schema, ABC):
    """Reads the rows of one layout. The fields of a subclass are its options.

    `read` raises `ValueError` for a row that has another layout; its text says which field is wrong.
    """

    columns: ClassVar[tuple[str, ...]]
    """The columns that `read` may use. The others are not read from files that hold columns separately."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Those of the columns that a row may lack."""
    marks: ClassVar[tuple[str, ...]] = ()
    """Those of the columns that only show another layout; the key `columns` of a source cannot map them."""

    @abstractmethod
    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The preference of a row.

        Args:
            row: column -> value.
            draw: makes the random generator of this row.

        Raises:
            DroppedRow: the row holds no preference.
            ValueError: the row has another layout.
        """


def messages(prompt: str, system: str | None = None) -> Messages:
    """A prompt of one user message, after a system message if there is one."""
    opening = [{"role": "system", "content": system}] if system and system.strip() else []
    return [*opening, {"role": "user", "content": prompt}]


def reply(text: str) -> Messages:
    """One assistant message."""
    return [{"role": "assistant", "content": text}]


def extras(row: Mapping[str, Any]) -> Fields:
    """The optional fields of a row that are passed on as they are."""
    return {name: row[name] for name in EXTRAS if name in row}
