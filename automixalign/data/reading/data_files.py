"""Read one data file by its kind."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeAlias

from automixalign.config.sources import COMPRESSIONS, DATA_SUFFIXES, data_suffix
from automixalign.data.reading.csv_files import read_csv
from automixalign.data.reading.json_files import read_json, read_json_lines
from automixalign.data.reading.row import Row
from automixalign.data.reading.tables import read_arrow, read_parquet
from automixalign.system.errors import DataError

KINDS = f"{', '.join(DATA_SUFFIXES)}, each also with {' or '.join(COMPRESSIONS)}"
"""The kinds of data files, for messages."""

_Reader: TypeAlias = Callable[[Path, str, Collection[str] | None], Iterator[Row]]

_READERS: dict[str, _Reader] = {
    ".jsonl": lambda path, name, _: read_json_lines(path, name),
    ".ndjson": lambda path, name, _: read_json_lines(path, name),
    ".json": lambda path, name, _: read_json(path, name),
    ".csv": lambda path, name, _: read_csv(path, name, ","),
    ".tsv": lambda path, name, _: read_csv(path, name, "\t"),
    ".parquet": read_parquet,
    ".arrow": lambda path, name, columns: read_arrow([path], name, columns),
}


def check_kind(path: Path, name: str) -> str:
    """The kind of a data file, as a suffix.

    Raises:
        DataError: the file is of another kind.
    """
    suffix = data_suffix(path.name)
    if suffix is None:
        raise DataError(f"{name}: unknown kind of file; convert or unpack it; the kinds are: {KINDS}")
    return suffix


def read_file(path: Path, name: str, columns: Collection[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a data file.

    Args:
        name: the file, for messages.
        columns: read these columns only, where they are stored apart from the others; None reads all.

    Raises:
        DataError: the file is of no known kind, or cannot be read.
    """
    return _READERS[check_kind(path, name)](path, name, columns)
