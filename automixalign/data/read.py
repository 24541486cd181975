"""Read the rows of a task's source, each with its file and line for messages."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from automixalign.config.data import TaskSpec
from automixalign.config.sources import DATA_SUFFIXES, GeneratedSource, HubSource, parse_task
from automixalign.quickstart.synthetic import SYNTHETIC_TASKS, generate
from automixalign.storage import files
from automixalign.system.errors import DataError

FIELDS = ("prompt", "chosen", "rejected", "answer")
"""The fields of a row that are read; other columns are ignored."""

MAX_LINE_BYTES = 64 << 20
"""A longer line is refused before it is read into memory whole."""


class Row(NamedTuple):
    """A row of a source, not checked yet."""

    where: str
    """File and line, for messages."""
    data: Any


def read_rows(task: TaskSpec, seed: int) -> Iterator[Row]:
    """Yield every row of a task's source.

    Args:
        task: the task; the forms of its source are those of `config.sources`.
        seed: the seed of generated rows.

    Raises:
        DataError, StorageError: the source is missing or unreadable; the message names file and line.
    """
    source = parse_task(task.name, task.source, task.hub_split)
    if isinstance(source, HubSource):
        yield from _read_hub(task)
    elif isinstance(source, GeneratedSource):
        rows = SYNTHETIC_TASKS[source.name].prompts if task.limit is None else task.limit
        for number, data in enumerate(generate(source.name, rows, seed), start=1):
            yield Row(f"{task.source}:{number}", data)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield from _read_path(source.fetch(Path(scratch)), source_name=task.source)


def _read_path(path: Path, source_name: str) -> Iterator[Row]:
    """Read a file by its suffix; a folder is a saved data set or holds data files."""
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            yield from _read_saved_dataset(path, source_name)
            return
        try:
            data_files = [file for file in files.list_files(path) if file.suffix in DATA_SUFFIXES]
        except OSError as error:  # without the unreadable part, a model would train on a part of the data
            raise DataError(f"{source_name}: {error.filename} cannot be read: {error.strerror}") from error
        if not data_files:
            raise DataError(f"{source_name}: no {', '.join(DATA_SUFFIXES)} file in this folder")
        for file in data_files:
            yield from _read_path(file, source_name=f"{source_name.rstrip('/')}/{file.relative_to(path)}")
    elif path.suffix == ".parquet":
        yield from _read_parquet(path, source_name)
    elif path.suffix in DATA_SUFFIXES:
        yield from _read_json_lines(path, source_name)
    else:
        raise DataError(f"{source_name}: unknown kind of file; there are: {', '.join(DATA_SUFFIXES)}")


def _read_json_lines(path: Path, source_name: str) -> Iterator[Row]:
    for number, raw in enumerate(_lines(path, source_name), start=1):
        where = f"{source_name}:{number}"
        if len(raw) > MAX_LINE_BYTES:
            raise DataError(f"{where}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
        try:
            # utf-8-sig: editors on Windows write a byte order mark before the first line.
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8: {error}") from error
        if not line.strip():
            continue
        try:
            yield Row(where, json.loads(line, object_pairs_hook=_object))
        except json.JSONDecodeError as error:  # its line number is not that of the file
            problem = f"{error.msg} at column {error.colno}; every line must be a complete JSON object"
            raise DataError(f"{where}: not a JSON document: {problem}") from error
        except RecursionError as error:
            raise DataError(f"{where}: not a JSON document: it is nested too deeply") from error
        except ValueError as error:  # a number of 5,000 digits, or a repeated field
            raise DataError(f"{where}: not a JSON document: {error}") from error


def _lines(path: Path, source_name: str) -> Iterator[bytes]:
    """Yield the lines of a file, a line that is too long cut after `MAX_LINE_BYTES` + 1."""
    try:
        with path.open("rb") as stream:
            while line := stream.readline(MAX_LINE_BYTES + 1):
                yield line
    except OSError as error:
        raise DataError(f"{source_name}: cannot be read: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; of two equal fields, `json` would keep the last without a word."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"the field {name!r:.80} occurs twice")
        fields[name] = value
    return fields


def _read_parquet(path: Path, source_name: str) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
        columns = [name for name in FIELDS if name in file.schema_arrow.names]
        batches = file.iter_batches(batch_size=256, columns=columns)
        yield from _rows((data for batch in batches for data in batch.to_pylist()), source_name)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{source_name}: not a readable Parquet file: {error}") from error


def _read_saved_dataset(path: Path, source_name: str) -> Iterator[Row]:
    import datasets

    _check_files_are_inside(path, source_name)
    try:
        data = datasets.load_from_disk(str(path))
        parts = data if isinstance(data, dict) else {"": data}
        for part, rows in parts.items():
            yield from _rows(_with_fields(rows), f"{source_name}/{part}" if part else source_name)
    except DataError:
        raise
    except Exception as error:  # its JSON and Arrow files can be broken in many ways
        raise DataError(f"{source_name}: not a readable saved data set: {error}") from error


def _check_files_are_inside(path: Path, source_name: str) -> None:
    for state in path.rglob("state.json"):
        try:
            names = [file["filename"] for file in files.read_json(state)["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{source_name}: not a readable saved data set: {state.name}: {error!r}") from error
        for name in names:
            if Path(name).name != name:
                raise DataError(f"{source_name}: {state.name} names {name!r}, which is no file of this folder")


def _read_hub(task: TaskSpec) -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_dataset(task.source, split=task.hub_split)
    except Exception as error:  # the hub's client raises many kinds
        raise DataError(
            f"task {task.name}: {task.source} is neither a local path nor a readable hub data set "
            f"with a split {task.hub_split!r}: {error}"
        ) from error
    yield from _rows(_with_fields(data), f"{task.source}[{task.hub_split}]")


def _with_fields(data: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set without decoding: an image may be an address, which would be fetched."""
    columns = data.select_columns([name for name in FIELDS if name in data.column_names])
    for table in columns.with_format("arrow").iter(batch_size=256):
        yield from table.to_pylist()


def _rows(rows: Iterable[dict[str, Any]], source_name: str) -> Iterator[Row]:
    """Number the rows of a table and remove null fields."""
    for number, row in enumerate(rows, start=1):
        yield Row(f"{source_name}:{number}", {key: value for key, value in row.items() if value is not None})
