"""Read the pairs of all sources of a task."""

import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

from automixalign.config.data import AtLeast, Scalar, SourceSpec, TaskSpec, VerifierSpec
from automixalign.data.pairs import Pair, Turn, answer_text, make_pair, text_of
from automixalign.data.reading.row import OpenSource, Row, Unreadable
from automixalign.data.reading.rows import open_source
from automixalign.data.row_formats.chat import Chat
from automixalign.data.row_formats.registry import make_format
from automixalign.data.row_formats.row_format import DroppedRow, RowFormat
from automixalign.system.errors import DataError


class RowVerifier(Protocol):
    """What reading needs of a verifier."""

    columns: ClassVar[tuple[str, ...]]
    """The columns that it reads of a row."""

    def check_row(self, prompt: Turn, chosen: str, answer: str, row: Mapping[str, Any]) -> bool:
        """Whether the chosen answer of a row passes; a ValueError says that its right answer cannot pass."""


MakeVerifier: TypeAlias = Callable[[VerifierSpec], RowVerifier]

MAX_NAMED_ROWS = 10
"""The largest number of different faults that an error names, each with its first row."""
_MAX_COUNTED_ROWS = 1000
"""The bad rows that are counted; reading goes no further."""
_MAX_ROW = 100_000
"""The largest number of characters that a verifier's columns of a row may take as JSON."""
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_Condition: TypeAlias = Scalar | list[Scalar] | AtLeast


class _Source(NamedTuple):
    spec: SourceSpec
    rows: OpenSource
    row_format: RowFormat


class TaskReader:
    """The pairs of a task. Iterating reads them, each with the number of its source, again each time.

    Iterating raises a DataError that names the first bad rows, each with file and line.
    """

    def __init__(self, task: TaskSpec, sources: list[_Source], seed: int, verifier: RowVerifier | None) -> None:
        self.task = task
        self.counts: list[Counter[str]] = []
        """For each source, the rows of the last reading: `read`, and those left out by reason."""
        self.passed_over = [source.rows.passed_over for source in sources]
        """For each source, its files that are not read, and why."""
        self.commits = [source.rows.commit for source in sources]
        """For each source, the commit of the data set; None for one that is not on the hub."""
        self.conversational: bool | None = None
        """Whether its pairs are messages; None before the first one."""
        self.texts_as_messages = 0
        """Pairs of plain text in the last reading that became messages, because others are messages."""
        self.derived_prompts = 0
        """Pairs whose prompt was split off their sides, in the last reading."""
        self.derived: Pair | None = None
        """The first pair whose prompt was split off its sides."""
        self.chosen_failed = 0
        """Pairs of the last reading whose chosen answer does not pass a verifier that needs no right one."""
        self._sources, self._seed = sources, seed
        self._verifier = verifier

    def __iter__(self) -> Iterator[tuple[int, Pair]]:
        self.counts = [Counter(read=0) for _ in self._sources]
        self.derived_prompts = self.texts_as_messages = 0
        if self.conversational is None and self._any_messages_first():
            self.conversational = True
        self.chosen_failed = 0
        for number, source in enumerate(self._sources):
            for pair in self._pairs(number, source):
                yield number, pair

    def _any_messages_first(self) -> bool:
        """Whether the first row of any file holds messages; the plain text of others then becomes messages."""
        firsts = (
            self._pair(source, row, "", set()) for source in self._sources for row in source.rows.first_rows()
        )
        return any(isinstance(pair, Pair) and not isinstance(pair.prompt, str) for pair in firsts)

    def _pairs(self, number: int, source: _Source) -> Iterator[Pair]:
        counts, seed = self.counts[number], f"format:{self._seed}:{self.task.name}:{number}"
        unseen = set(source.spec.where)
        rows = iter(source.rows)
        for index, row in enumerate(rows):
            counts["read"] += 1
            pair = self._pair(source, row, f"{seed}:{index}", unseen)
            if isinstance(pair, Pair):
                yield self._in_one_form(pair, row.where)
            elif isinstance(pair, Unreadable):
                self._refuse(source, Row(row.where, pair), rows)
            else:
                counts[pair] += 1
        if unseen and counts["read"]:
            raise DataError(
                f"task {self.task.name}: {source.rows.name}: no row has the column {min(unseen)!r}, "
                "which 'where' names"
            )

    def _in_one_form(self, pair: Pair, where: str) -> Pair:
        """The pair as messages, if the task has messages."""
        if pair.derived:
            self.derived_prompts += 1
            self.derived = self.derived or pair
        plain = isinstance(pair.prompt, str)
        if self.conversational is None:
            self.conversational = not plain
        if plain and self.conversational:
            self.texts_as_messages += 1
            return make_pair(Chat().read(pair._asdict(), random.Random))._replace(row=pair.row)
        if not plain and not self.conversational:
            raise DataError(
                f"task {self.task.name}: mixes plain text and messages: {where} is the first row of messages; "
                "set 'format: chat', which makes messages of all rows"
            )
        return pair

    def _pair(self, source: _Source, row: Row, seed: str, unseen: set[str]) -> Pair | Unreadable | str:
        """The pair of a row, what is wrong with the row, or the reason why it is left out."""
        data = row.data
        if isinstance(data, Unreadable):
            return data
        try:
            for column, condition in source.spec.where.items():
                value = _lookup(data, column)
                if value is not _ABSENT:
                    unseen.discard(column)
                if not _meets(value, condition, column):
                    return "filtered"
            columns = source.spec.columns
            fields = data if columns is None else _renamed(data, columns)
            pair = make_pair(source.row_format.read(fields, lambda: random.Random(seed)))
            if self._verifier is not None:
                return self._checked(pair, self._verifier, data)
        except DroppedRow as reason:
            return str(reason)
        except ValueError as error:
            return Unreadable(str(error))
        return pair

    def _checked(self, pair: Pair, verifier: RowVerifier, data: Mapping[str, Any]) -> Pair:
        """The pair with the columns of its row that the verifier reads."""
        row = {column: _lookup(data, column) for column in verifier.columns}
        try:
            if missing := [column for column, value in row.items() if value is _ABSENT]:
                raise ValueError(f"reads the column {missing[0]!r}; there are: {', '.join(data)}")
            text = _to_json(row) if row else None
            if text and len(text) > _MAX_ROW:
                raise ValueError(f"reads {len(text):,} characters of a row; at most {_MAX_ROW:,} are kept")
            kept = json.loads(text or "{}")
            if not verifier.check_row(pair.prompt, answer_text(pair.chosen), pair.answer or "", kept):
                self.chosen_failed += 1
        except (TypeError, ValueError, RecursionError) as error:
            name = self.task.verifier and self.task.verifier.name
            raise ValueError(
                f"the verifier {name!r} {error} for the prompt {text_of(pair.prompt)!r:.80}"
            ) from error
        return pair._replace(row=text)

    def _refuse(self, source: _Source, first: Row, rest: Iterator[Row]) -> None:
        """Name the faults of a source's rows, from the first bad row on; equal faults are counted."""
        places = {first.data.problem: [first.where]}  # type: ignore[union-attr]
        count = 1
        for row in rest:
            if isinstance(fault := self._pair(source, row, "", set()), Unreadable):
                places.setdefault(fault.problem, []).append(row.where)
                count += 1
            if len(places) > MAX_NAMED_ROWS or count > _MAX_COUNTED_ROWS:
                break
        faults = [
            f"{rows[0]}: {problem}" + (f" (and {len(rows) - 1} more, to {rows[-1]})" if len(rows) > 1 else "")
            for problem, rows in places.items()
        ]
        if count == 1:
            raise DataError(f"task {self.task.name}: {faults[0]}")
        complete = len(places) <= MAX_NAMED_ROWS and count <= _MAX_COUNTED_ROWS
        title = f"task {self.task.name}: {'' if complete else 'at least '}{count} bad rows:"
        raise DataError("\n  ".join([title, *faults[:MAX_NAMED_ROWS]]))


@contextmanager
def open_task(task: TaskSpec, seed: int, make_verifier: MakeVerifier) -> Iterator[TaskReader]:
    """Open the sources of a task; downloads are removed at the end of the context.

    Args:
        seed: the seed of generated rows and of the draws of row formats.
        make_verifier: makes the task's verifier, which must pass the right answer of every row.

    Raises:
        DataError, StorageError: a source is missing or unreadable.
        ConfigError: a row format or verifier does not exist, or has no such option.
    """
    verifier = make_verifier(task.verifier) if task.verifier else None
    with ExitStack() as stack:
        sources = []
        for spec in task.sources:
            row_format = make_format(spec.format_spec)
            columns = _needed_columns(spec, row_format, verifier.columns if verifier else ())
            generated_rows = task.generated_rows(spec)
            rows = stack.enter_context(open_source(f"task {task.name}", spec, columns, seed, generated_rows))
            sources.append(_Source(spec, rows, row_format))
        yield TaskReader(task, sources, seed, verifier)


def _needed_columns(spec: SourceSpec, row_format: RowFormat, verified: Iterable[str]) -> Collection[str]:
    columns = spec.columns or {}
    names = chain(row_format.columns, columns.values(), spec.where, verified)
    return {part for name in names for part in (name, name.split(".")[0])}


_ABSENT: Any = object()


def _lookup(row: Any, name: str) -> Any:
    """A column, or a field inside one by dots: `output.text`."""
    if isinstance(row, Mapping) and name in row:
        return row[name]
    first, dot, rest = name.partition(".")
    return _lookup(row[first], rest) if dot and isinstance(row, Mapping) and first in row else _ABSENT


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the names that its format reads."""
    renamed = {name: value for name, value in row.items() if name not in columns.values()}
    for field, column in columns.items():
        value = _lookup(row, column)
        if value is _ABSENT:
            raise ValueError(f"the column {column!r} of 'columns' is missing; there are: {', '.join(row)}")
        renamed[field] = value
    return renamed


def _meets(value: Any, condition: _Condition, column: str) -> bool:
    """Whether a value meets a condition of `where`; a missing or null value meets none."""
    if value is _ABSENT or value is None:
        return False
    if isinstance(condition, AtLeast):
        try:
            return float(value) >= condition.min
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the column {column!r} must hold a number for 'where', not {value!r:.40}"
            ) from error
    return any(
        _equal(value, allowed) for allowed in (condition if isinstance(condition, list) else [condition])
    )


def _equal(value: Any, allowed: Scalar) -> bool:
    """Whether they are equal; tables of text, as in CSV, hold numbers and truth values as text."""
    if isinstance(value, str) and not isinstance(allowed, str):
        return value.strip().lower() == str(allowed).lower()
    return isinstance(value, bool) is isinstance(allowed, bool) and value == allowed
