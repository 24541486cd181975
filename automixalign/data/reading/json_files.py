"""Read rows as JSON: one object a line, or one array of objects."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from automixalign.data.reading.row import Row, Unreadable
from automixalign.data.reading.streams import MAX_LINE_BYTES, decode, naming, open_text, read_lines
from automixalign.system.errors import DataError

_CHUNK = 1 << 20
_BLANKS = re.compile(r"[ \t\r\n]*")
_OPEN_LINE = re.compile(rb"[^\n]*[{\[,][ \t\r]*\n")
"""A line after which an object goes on."""
_FORMS = "one object a line, or an array of objects"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; of two equal fields, `json` would keep the last without a word."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {repeated!r:.80} occurs twice")
    return fields


_PLAIN = json.JSONDecoder()
_DECODER = json.JSONDecoder(object_pairs_hook=_object)
decode_json = _DECODER.decode
"""Decode a JSON document in which no object has a field twice. One decoder for all rows saves time."""


def read_json_lines(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a JSONL file; blank lines are none.

    Raises:
        DataError: the file cannot be read, or is UTF-16.
    """
    with naming(name, "JSONL file"), open_text(path) as stream:
        yield from _rows_of_lines(stream, name)


def read_json(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a JSON file: an array of objects, or one object a line.

    An array is decoded element by element, so that a file may be larger than the memory.

    Raises:
        DataError: the file cannot be read, is UTF-16 or an array that breaks off, or holds one object around
            the rows.
    """
    with naming(name, "JSON file"), open_text(path) as stream:
        start = stream.peek(_CHUNK).lstrip()
        if start.startswith(b"["):
            yield from _rows_of_array(stream, name)
            return
        if _OPEN_LINE.match(start):
            raise ValueError(f"its first line is not a complete object; write {_FORMS}")
        yield from map(_refuse_wrapper, _rows_of_lines(stream, name))


def _rows_of_lines(stream: io.BufferedReader, name: str) -> Iterator[Row]:
    for number, line in enumerate(read_lines(stream), start=1):
        if not line.isspace():
            yield Row(f"{name}:{number}", _decode_row(line))


def _decode_row(line: bytes) -> dict[str, Any] | Unreadable:
    try:
        return _checked(decode_json(decode(line)))
    except json.JSONDecodeError as error:  # its line and column may be those after the line
        column = min(error.pos, len(error.doc.rstrip())) + 1
        problem = f"{error.msg} at column {column}; every line must be a complete JSON object"
        return Unreadable(f"not a JSON document: {problem}")
    except RecursionError:
        return Unreadable("not a JSON document: it is nested too deeply")
    except ValueError as error:  # not UTF-8, a number of 5,000 digits, or a repeated field
        return Unreadable(str(error))


def _checked(data: Any) -> dict[str, Any] | Unreadable:
    return data if isinstance(data, dict) else Unreadable(f"a row must be an object, not {data!r:.40}")


def _refuse_wrapper(row: Row) -> Row:
    if isinstance(row.data, dict) and len(row.data) == 1 and isinstance(next(iter(row.data.values())), list):
        (field,) = row.data
        raise DataError(f"{row.where}: the rows are inside the field {field!r:.80}; write {_FORMS}")
    return row


class _Window:
    """The part of a JSON text that is in memory."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._source, self._text, self._at = text, "", 0
        self.line = 1

    def next_character(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            match = _BLANKS.match(self._text, self._at)
            self._move(match.end() if match else self._at)
            if self._at < len(self._text) or not self._grow():
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Skip one character."""
        self._move(self._at + 1)

    def value(self) -> Any:
        """Decode the next value; it is `Unreadable` where an object has a field twice.

        Raises:
            ValueError: the text is not JSON, so that the rest of it cannot be read.
        """
        decoder, problem = _DECODER, None
        while True:
            try:
                data, end = decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._grow():  # the value may be cut at the end of the window
                    continue
                raise ValueError(f"{error.msg} in the row that begins at line {self.line}") from error
            except ValueError as error:
                if decoder is _PLAIN:
                    raise
                decoder, problem = _PLAIN, Unreadable(str(error))  # it finds the end
                continue
            except RecursionError as error:
                raise ValueError(f"line {self.line} is nested too deeply") from error
            if end == len(self._text) and self._grow():  # a number may go on
                continue
            self._move(end)
            return data if problem is None else problem

    def _move(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _grow(self) -> bool:
        """Read on; false at the end of the file, or if one row takes more than `MAX_LINE_BYTES`."""
        rest = self._text[self._at :]
        if len(rest) > MAX_LINE_BYTES:
            return False
        chunk = self._source.read(max(_CHUNK, len(rest)))
        self._text, self._at = rest + chunk, 0
        return bool(chunk)


def _rows_of_array(stream: io.BufferedReader, name: str) -> Iterator[Row]:
    window = _Window(io.TextIOWrapper(stream, encoding="utf-8", newline=""))
    window.next_character()
    separator, following = "[", window.next_character()
    while following == separator:
        window.skip()
        if window.next_character() == "]":
            break
        where, data = f"{name}:{window.line}", window.value()
        yield Row(where, data if isinstance(data, Unreadable) else _checked(data))
        separator, following = ",", window.next_character()
    if window.next_character() != "]":
        raise ValueError(f"the array breaks off at line {window.line}: there is no ',' and no ']'")
    window.skip()
    if window.next_character():
        raise ValueError(f"line {window.line} has text after the end of the array")
