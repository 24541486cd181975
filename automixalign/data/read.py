"""Read preference rows from wherever a task's source points, each with the place it came from."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from automixalign import files, s3
from automixalign.config import SYNTHETIC, TaskSpec
from automixalign.errors import DataError
from automixalign.synthetic import generate

_READERS = (".jsonl", ".ndjson", ".json", ".parquet")


class Row(NamedTuple):
    """A row as it stands in its source."""

    where: str
    """File and line, for messages."""
    data: Any


def read_rows(task: TaskSpec, seed: int) -> Iterator[Row]:
    """Yield every row of a task's source: file, folder, `s3://`, hub id or `synthetic:NAME`.

    Raises:
        DataError: the source is not there or not readable; names file and line.
    """
    source = task.source
    if source.startswith(SYNTHETIC):
        assert task.limit is not None  # noqa: S101  the schema requires it
        name = source.removeprefix(SYNTHETIC)
        for number, data in enumerate(generate(name, task.limit, seed), start=1):
            yield Row(f"{source}:{number}", data)
    elif source.startswith(s3.SCHEME):
        with tempfile.TemporaryDirectory() as folder:
            fetched = s3.download(source, Path(folder))
            yield from _read_path(fetched, named=source)
    elif Path(source).exists():
        yield from _read_path(Path(source), named=source)
    elif looks_like_path(source):
        raise DataError(f"task {task.name}: {source} does not exist")
    else:
        yield from _read_hub(task)


def looks_like_path(source: str) -> bool:
    """Whether a source that does not exist was meant as a path rather than as a hub id `owner/name`."""
    return source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith(_READERS)


def fingerprint(task: TaskSpec) -> str:
    """What changes when the content behind a source changes: digest of files, ETags on S3, else the source.

    Raises:
        DataError, StorageError: a local or S3 source is not there.
    """
    source = task.source
    if source.startswith(SYNTHETIC):
        return source
    if source.startswith(s3.SCHEME):
        return json.dumps(s3.list_objects(source))
    if Path(source).exists():
        return files.digest(Path(source))
    if looks_like_path(source):
        raise DataError(f"task {task.name}: {source} does not exist")
    return f"hub:{source}:{task.hub_split}"


def _read_path(path: Path, named: str) -> Iterator[Row]:
    """A file by its suffix; a folder as a saved dataset if it is one, else all its data files in order."""
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            yield from _read_saved_dataset(path, named)
            return
        inside = sorted(file for file in path.rglob("*") if _is_data(file, path))
        if not inside:
            raise DataError(f"{named}: no {', '.join(_READERS)} file in this folder")
        for file in inside:
            yield from _read_path(file, named=f"{named.rstrip('/')}/{file.relative_to(path)}")
    elif path.suffix == ".parquet":
        yield from _read_parquet(path, named)
    elif path.suffix in _READERS:
        yield from _read_json_lines(path, named)
    else:
        raise DataError(f"{named}: unknown kind of file; there are: {', '.join(_READERS)}")


def _is_data(file: Path, folder: Path) -> bool:
    """Whether a file belongs to the data; hidden ones do not, as for the folder's digest."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix in _READERS and file.is_file() and not hidden


def _read_json_lines(path: Path, named: str) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            where = f"{named}:{number}"
            try:
                # utf-8-sig: editors on Windows put a byte order mark in front of the first line.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8: {error}") from error
            if not line.strip():
                continue
            try:
                yield Row(where, json.loads(line))
            except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
                raise DataError(f"{where}: not a JSON document: {error}") from error


def _read_parquet(path: Path, named: str) -> Iterator[Row]:
    try:
        batches = pq.ParquetFile(path).iter_batches(batch_size=256)
        number = 0
        for batch in batches:
            for data in batch.to_pylist():
                number += 1
                yield Row(f"{named}:{number}", {k: v for k, v in data.items() if v is not None})
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise DataError(f"{named}: not a readable Parquet file: {error}") from error


def _read_saved_dataset(path: Path, named: str) -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{named}: not a readable saved data set: {error}") from error
    parts = data if isinstance(data, dict) else {"": data}
    for part, rows in parts.items():
        for number, row in enumerate(rows, start=1):
            where = f"{named}/{part}:{number}" if part else f"{named}:{number}"
            yield Row(where, {k: v for k, v in row.items() if v is not None})


def _read_hub(task: TaskSpec) -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_dataset(task.source, split=task.hub_split)
    except Exception as error:  # the hub client raises a dozen kinds, none of them ours
        raise DataError(
            f"task {task.name}: {task.source} is neither a local path nor a readable hub data set "
            f"with a split {task.hub_split!r}: {error}"
        ) from error
    for number, row in enumerate(data, start=1):
        where = f"{task.source}[{task.hub_split}]:{number}"
        yield Row(where, {k: v for k, v in row.items() if v is not None})
