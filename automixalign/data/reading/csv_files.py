"""Read rows from CSV and TSV files, whose first record names the columns.

Every cell is text, and an empty one is the empty text. A cell that holds a JSON object, or a list of them, is
decoded, so that a cell can hold messages.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from automixalign.data.reading.json_files import decode_json
from automixalign.data.reading.row import Row, Unreadable
from automixalign.data.reading.streams import MAX_LINE_BYTES, decode, naming, open_text, read_lines

_PYTHON_MESSAGES = re.compile(r"(?:array\()?\[\s*\{\s*'(?:[^{}]*[\s,]')?(?:role|content|from|value)'\s*:")
"""How pandas and datasets write a list of messages to CSV."""
_DELIMITERS = ",;\t"


def read_csv(path: Path, name: str, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a CSV file, each named by the line where its record begins.

    Raises:
        DataError: the file cannot be read, is UTF-16, or its header has an empty or a repeated name, or another
            separator.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    with naming(name, "CSV file"), open_text(path) as stream:
        records = _Records(stream, delimiter)
        header = next(records, (1, []))[1]
        if isinstance(header, Unreadable):
            raise ValueError(f"its header: {header.problem}")
        for column in header:
            if not column.strip():
                raise ValueError("a column has no name in the header (pandas: write it with index=False)")
            if header.count(column) > 1:
                raise ValueError(f"the header names the column {column!r:.80} twice")
        if len(header) == 1 and (
            other := next((mark for mark in _DELIMITERS if mark != delimiter and mark in header[0]), None)
        ):
            raise ValueError(
                f"its columns are separated by {other!r}; separate them by {delimiter!r} (its header is "
                f"{header[0]!r:.80})"
            )
        for line, cells in records:
            data = cells if isinstance(cells, Unreadable) else _columns(header, cells, delimiter)
            yield Row(f"{name}:{line}", data)


class _Records:
    """The records of a CSV file, each with the line where it begins. Blank lines are none."""

    def __init__(self, stream: io.BufferedReader, delimiter: str) -> None:
        self._problem: str | None = None
        self._reader = csv.reader(self._lines(stream), delimiter=delimiter, strict=True)

    def __iter__(self) -> Iterator[tuple[int, list[str] | Unreadable]]:
        return self

    def __next__(self) -> tuple[int, list[str] | Unreadable]:
        while True:
            line = self._reader.line_num + 1
            self._problem = None
            try:
                cells = next(self._reader)
            except csv.Error as error:
                return line, Unreadable(f"not a CSV record: {error}; is a quote not closed or not doubled?")
            if self._problem is not None:
                return line, Unreadable(self._problem)
            if cells:
                return line, cells

    def _lines(self, stream: io.BufferedReader) -> Iterator[str]:
        for line in read_lines(stream):
            try:
                yield decode(line)
            except ValueError as error:
                self._problem = str(error)
                yield line[:MAX_LINE_BYTES].decode(errors="replace")


def _columns(header: list[str], cells: list[str], delimiter: str) -> dict[str, Any] | Unreadable:
    if len(cells) != len(header):
        problem = f"it has {len(cells)} cells, and the header names {len(header)} columns"
        advice = f"; put a cell that holds {delimiter!r} in double quotes" if len(cells) > len(header) else ""
        return Unreadable(problem + advice)
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    for column, cell in row.items():
        if cell.startswith(("[", "{", "array([")):
            if _PYTHON_MESSAGES.match(cell):
                problem = f"the column {column!r:.80} is a Python list, not JSON; write it with json.dumps"
                return Unreadable(problem)
            row[column] = _value(cell)
    return row


def _value(cell: str) -> Any:
    """The object, or the list of objects, that a cell holds; the text itself if it holds something else."""
    try:
        value = decode_json(cell)
    except (ValueError, RecursionError):
        return cell
    items = value if isinstance(value, list) else [value]
    return value if items and all(isinstance(item, dict) for item in items) else cell
