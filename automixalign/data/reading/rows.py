"""Read the rows of a task's source, each with its file and line for messages."""

import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from automixalign.config.data import SourceSpec, TaskSpec
from automixalign.config.sources import DATA_SUFFIXES, GeneratedSource, HubSource, parse_task
from automixalign.data.reading.row import Row
from automixalign.quickstart.synthetic import SYNTHETIC_TASKS, generate
from automixalign.storage import files
from automixalign.system.errors import DataError

MAX_LINE_BYTES = 64 << 20
"""A longer line is refused before it is read into memory whole."""


class OpenSource:
    """A source of a task, as files of this machine. Iterating reads its rows, again each time.

    Args:
        name: what messages call it.
        rows: starts a reading of all rows.
    """

    def __init__(self, name: str, rows: Callable[[], Iterator[Row]], passed_over: dict[str, str]) -> None:
        self.name, self._rows = name, rows
        self.passed_over = passed_over
        """File of the source that is not read -> why."""

    def __iter__(self) -> Iterator[Row]:
        return self._rows()


@contextmanager
def open_source(
    task: TaskSpec, spec: SourceSpec, seed: int, columns: Collection[str] | None = None
) -> Iterator[OpenSource]:
    """Open one source of a task; a download is removed at the end of the context.

    Args:
        task: names the task in messages.
        spec: the source, one of the task's.
        seed: the seed of generated rows.
        columns: read these columns only, where they are stored apart from the others; None reads all.

    Raises:
        DataError, StorageError: the source is missing or unreadable. Iterating raises a DataError for a file
            that ends in the middle or is of another kind; a single row that cannot be read is `Unreadable`.
    """
    source = parse_task(task.name, spec)
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(source, HubSource):
            yield OpenSource(spec.path, lambda: _read_hub(task, spec), {})
        elif isinstance(source, GeneratedSource):
            yield OpenSource(spec.path, lambda: _generate(source, task.generated_rows(spec), seed), {})
        else:
            path = source.fetch(Path(scratch))
            yield OpenSource(spec.path, lambda: _read_path(path, spec.path), {})


def _generate(source: GeneratedSource, count: int | None, seed: int) -> Iterator[Row]:
    rows = SYNTHETIC_TASKS[source.name].prompts if count is None else count
    for number, data in enumerate(generate(source.name, rows, seed), start=1):
        yield Row(f"{source.text}:{number}", data)


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
        batches = file.iter_batches(batch_size=256)
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


def _read_hub(task: TaskSpec, spec: SourceSpec) -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_dataset(spec.path, split=spec.split or "train")
    except Exception as error:  # the hub's client raises many kinds
        raise DataError(
            f"task {task.name}: {spec.path} is neither a local path nor a readable hub data set "
            f"with a split {spec.split!r}: {error}"
        ) from error
    yield from _rows(_with_fields(data), f"{spec.path}[{spec.split}]")


def _with_fields(data: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set without decoding: an image may be an address, which would be fetched."""
    for table in data.with_format("arrow").iter(batch_size=256):
        yield from table.to_pylist()


def _rows(rows: Iterable[dict[str, Any]], source_name: str) -> Iterator[Row]:
    """Number the rows of a table."""
    for number, row in enumerate(rows, start=1):
        yield Row(f"{source_name}:{number}", row)
